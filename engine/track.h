/*
 * Dirty tracking: which pages of a process were written since they were last asked for.
 *
 *	track_open(p, r, name, &t)     process stopped, r open; self-tested
 *	  begin                        start of a round
 *	  scan                         piece by piece; what it reports counts as clean from then on: protect first, read then
 *	                               (look: the same without any effect)
 *	scan_all                       process stopped: everything that is there, with what is written
 *	scan_changed                   the same question, answered by the differences alone
 *	track_close(t)
 *
 * Backends are chosen by a test on a page of our own, never by architecture or version: clear_refs "succeeds" on
 * kernels without soft-dirty, and old arm64 kernels accept a registration that never reports anything.
 */
#ifndef ENGINE_TRACK_H
#define ENGINE_TRACK_H

#include "pagemap.h"
#include "remote.h"

struct track_range {
	uint64_t start, end;
	struct range map;  /* the whole mapping: it is registered as a whole, or the kernel would split it */
	bool fresh;	   /* all of it counts as written: set by the caller for what is new to it, and by scan for
			    * what was not tracked; keep it set while the range is walked */
	bool private_file; /* pages of the file itself don't count */
	bool shared;	   /* of a shared object: pages that are not in the page table now count, too (reclaim takes
			    * them out of it). The range has to be one where the object has data. */
};

struct tracker;

struct tracker_ops {
	const char *name;
	bool rounds; /* knows what changed while the process runs */
	/* True when it works here; else why not. */
	bool (*self_test)(char *why, size_t len);
	int (*open)(struct process *p, struct remote *r, struct tracker **out, struct fault *f);
	int (*begin)(struct tracker *t, const struct track_range *v, size_t n, struct fault *f); /* may be NULL */
	/* Regions of r, `is` PAGEMAP_WRITTEN and perhaps PAGEMAP_ZERO. *tracked false: this range can't be tracked, all
	 * of it has to be sent at the end. */
	int (*scan)(struct tracker *t, struct track_range *r, bool look, struct pagemap_region *v, size_t max,
		    size_t *n, uint64_t *walked, bool *tracked, struct fault *f);
	int (*scan_all)(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max, size_t *n,
			uint64_t *walked, struct fault *f);
	/* Anonymous memory of a stopped process: only what is not as it was when last protected; a region that is
	 * neither PRESENT nor SWAPPED was dropped (or was never there). A fifth of scan_all's time where memory is dense,
	 * and blind to guard pages that were there when it was protected. *able false: this kernel, or this range,
	 * can't tell; then nothing is known. May be NULL. */
	int (*scan_changed)(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max,
			    size_t *n, uint64_t *walked, bool *able, struct fault *f);
	void (*close)(struct tracker *t);
};

struct tracker { /* a backend's own struct begins with it */
	const struct tracker_ops *ops;
	struct process *p;
	struct pagemap pm;
};

extern const struct tracker_ops track_wp_async, track_soft_dirty, track_none;
extern const struct tracker_ops *const track_backends[]; /* best first */
extern const size_t track_backend_count;

/* NULL: the best that works, `none` in the end. A name: that one, or FAULT_KERNEL (FAULT_USAGE: no such name). */
int track_open(struct process *p, struct remote *r, const char *name, struct tracker **out, struct fault *f) MUST_CHECK;
void track_close(struct tracker *t); /* NULL is fine */
/* The self-test, once per process. */
bool track_works(const struct tracker_ops *ops, char *why, size_t len);

static inline int track_begin(struct tracker *t, const struct track_range *v, size_t n, struct fault *f)
{
	return t->ops->begin ? t->ops->begin(t, v, n, f) : 0;
}

/* For backends: the common part of open, and a fault for an errno of pagemap_scan. */
int track_init(struct tracker *t, const struct tracker_ops *ops, struct process *p, struct fault *f) MUST_CHECK;
int track_fault(const struct tracker *t, struct fault *f);

/* A tracker from a userfaultfd of the process that is at hand already (tests). Takes uffd. */
int track_wp_adopt(struct process *p, int uffd, struct tracker **out, struct fault *f) MUST_CHECK;

#endif
