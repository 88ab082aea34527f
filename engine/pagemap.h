/*
 * /proc/PID/pagemap: which pages of a process are there, and which were written.
 *
 * By PAGEMAP_SCAN (Linux 6.7), else by reading the entries, which is slower and knows fewer categories.
 */
#ifndef ENGINE_PAGEMAP_H
#define ENGINE_PAGEMAP_H

#include "util.h"

/* Categories: the kernel's PAGE_IS_* (linux/fs.h of 6.7 and later; not in Debian 12's headers). */
#define PAGEMAP_TRACKED	   0x1u /* registered for asynchronous write protection */
#define PAGEMAP_WRITTEN	   0x2u
#define PAGEMAP_FILE	   0x4u
#define PAGEMAP_PRESENT	   0x8u
#define PAGEMAP_SWAPPED	   0x10u
#define PAGEMAP_ZERO	   0x20u /* the zero page */
#define PAGEMAP_HUGE	   0x40u
#define PAGEMAP_SOFT_DIRTY 0x80u
#define PAGEMAP_GUARD	   0x100u /* 6.15 */

struct pagemap_region {
	uint64_t start, end;
	uint64_t is; /* categories, of those asked for by `give` */
};

struct pagemap_query {
	uint64_t start, end;
	uint64_t need;	 /* all of these … */
	uint64_t lack;	 /* … none of these … */
	uint64_t any;	 /* … and at least one of these, when not 0 */
	uint64_t give;	 /* categories to report */
	bool protect;	 /* write-protect what matches, in the same step */
	bool must_track; /* EPERM when a mapping on the way is not tracked */
};

struct pagemap {
	int fd;
	bool scan;  /* PAGEMAP_SCAN is there */
	bool guard; /* … and knows PAGEMAP_GUARD */
};

/* procfd: /proc/PID. 0, or -1 with errno. */
int pagemap_open(int procfd, struct pagemap *pm) MUST_CHECK;
void pagemap_close(struct pagemap *pm);
/* Regions of q's range, up to max. *walked: how far it got; call again from there until it is q->end. -1 with errno;
 * then nothing is known of what lies behind q->start (EPERM: see must_track; ESRCH: the memory is gone). */
int pagemap_scan(const struct pagemap *pm, const struct pagemap_query *q, struct pagemap_region *v, size_t max,
		 size_t *n, uint64_t *walked) MUST_CHECK;

#endif
