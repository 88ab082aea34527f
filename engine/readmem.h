/*
 * Reading many pieces of a process's memory at once, and looking for zero pages.
 */
#ifndef ENGINE_READMEM_H
#define ENGINE_READMEM_H

#include "process.h"

struct readmem_piece {
	uint64_t addr;
	uint32_t npages;
};

#define READMEM_PIECES 512

/* All pieces, one after the other, into buf: by process_vm_readv, and where that is refused (PROT_NONE, write-only)
 * by /proc/PID/mem. A page that can't be read (unmapped meanwhile) is zeroed in buf and its bit set in `absent`, one
 * bit a page of buf, which the caller has cleared. n <= READMEM_PIECES. */
int readmem_pieces(struct process *p, const struct readmem_piece *v, size_t n, void *buf, uint64_t *absent,
		   struct fault *f) MUST_CHECK;
bool readmem_page_is_zero(const void *page); /* PAGE_BYTES, aligned to 8 */

#endif
