/*
 * Shared objects of a process on the source: memfds and anonymous shared memory, each once, however many mappings and
 * descriptors name it. Read through a file description of our own (reopened, never a duplicate: a seek on a
 * duplicate moves the program's offset); it also keeps device and inode from being used again.
 */
#ifndef ENGINE_SHOBJ_H
#define ENGINE_SHOBJ_H

#include <sys/stat.h>

#include "maps.h"
#include "pageset.h"

struct shobj {
	int fd;
	bool memfd;
	char *name; /* memfd_create's; NULL: anonymous shared memory */
	struct stat st;
	bool settled;	      /* st was taken long enough after its mtime to tell a later change by it */
	bool known;	      /* st is there */
	bool resend;	      /* changed by other means than stores (write, fallocate, truncate): all of it again */
	bool untracked;	      /* a mapping of it can't be tracked */
	bool grown;	      /* may have data where nothing was sent yet */
	struct pageset *sent; /* pages of it that the destination has content for */
};

struct shobj_list {
	size_t n, cap;
	struct shobj *v; /* index: mm.objects, id - 1; never removed */
};

void shobj_list_free(struct shobj_list *l);
/* Finds or opens the object of a mapping of kind SHM, MEMFD, MEMFD_PRIVATE. *index. FAULT_PROCESS_GONE is for an
 * unmapped one, too: read the mappings again. */
int shobj_of_map(struct shobj_list *l, struct process *p, const struct map *m, size_t *index,
		 struct fault *f) MUST_CHECK;
/* memfds that only a descriptor holds. */
int shobj_scan_fds(struct shobj_list *l, struct process *p, struct fault *f) MUST_CHECK;
/* Looks at size, mtime and blocks: sets resend, grown. */
int shobj_refresh(struct shobj *o, struct fault *f) MUST_CHECK;
/* The next range of pages with data in [from, to): bytes, page multiples. False: no more. */
bool shobj_data(const struct shobj *o, uint64_t from, uint64_t to, uint64_t *start, uint64_t *end);
uint64_t shobj_bytes(const struct shobj *o); /* allocated */
uint32_t shobj_seals(const struct shobj *o);

#endif
