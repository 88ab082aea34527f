/*
 * Digests of a stopped process's memory, for --verify: XXH3-128 of each 2 MiB piece that holds anything. Both sides call
 * the same function, and get the same list when memory is the same.
 *
 * A page that is not there and a page of zeroes are the same in anonymous memory; in a private file mapping only the
 * pages that differ from the file count, all of them. Shared objects come after the mappings, with DIGEST_OBJECT in
 * `start`. Nothing is populated by it.
 */
#ifndef ENGINE_DIGEST_H
#define ENGINE_DIGEST_H

#include "process.h"
#include "remote.h"
#include "arena.h"
#include "image.pb-c.h"
#include "wire.pb-c.h"

#define DIGEST_PIECE ((uint64_t)2 << 20)
/* start and end of a piece of object `i` (index in mm.objects) */
#define DIGEST_OBJECT(i, offset) ((uint64_t)1 << 63 | (uint64_t)(i) << 47 | (offset))

/* fds[n_fds]: descriptors of mm.objects; their offsets are not moved. */
int digest_memory(struct process *p, const MmEntry *mm, const int *fds, size_t n_fds, const struct range *masked,
		  size_t n_masked, struct arena *a, Cpr__MemoryDigest ***out, size_t *n, struct fault *f) MUST_CHECK;

#endif
