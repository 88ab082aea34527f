/*
 * What the files of the destination side share: memory_target.c (life, finish), memory_layout.c (mappings),
 * memory_rebuild.c (mappings that don't come out as wanted), memory_object.c (shared objects), memory_place.c (pages),
 * memory_fresh.c (pages that are not there yet).
 * Not for others.
 */
#ifndef ENGINE_MEMORY_DEST_H
#define ENGINE_MEMORY_DEST_H

#include "mapplan.h"
#include "memory.h"
#include "pageset.h"

struct target_object {
	int fd;		     /* the worker's; -1: not made yet */
	uint64_t size;	     /* bytes */
	struct range window; /* a mapping of all of it in the vessel, only for writing; 0, 0: none */
};

struct memory_target {
	struct vessel *v;
	struct process *p;   /* v's */
	struct remote *r;    /* v's */
	struct arena *arena; /* of mm */
	MmEntry *mm;	     /* what the vessel's mappings are; NULL at first */
	size_t n_objects;
	struct target_object *objects;
	int *object_fds; /* for memory_target_objects */
	char *buf;	 /* MEMORY_TARGET_BUF: rebuilding */

	/* memory_fresh.c */
	int uffd;
	bool no_uffd; /* it was tried */
	size_t n_armed, cap_armed;
	struct range *armed;	/* mappings registered for missing pages, in order */
	struct pageset *placed; /* pages there that were placed: a hint, nothing depends on it */
};
#define MEMORY_TARGET_BUF ((size_t)2 << 20)

/* A list of remote calls, sent in pieces that fit the scratch. Every call must succeed. */
struct calls_list {
	size_t n, cap;
	struct remote_entry *v;
};
void target_call(struct calls_list *l, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
		 uint64_t a5);
/* Runs and empties the list. `what` for the fault. */
int target_run(struct memory_target *t, struct calls_list *l, const char *what, struct fault *f) MUST_CHECK;
int target_one(struct memory_target *t, long *ret, struct fault *f, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
	       uint64_t a3, uint64_t a4, uint64_t a5) MUST_CHECK;

/* Descriptors in the vessel's table for mmap: of a file mapping or an object, one per mapping. */
struct target_open {
	const VmaEntry *vma; /* NULL: `object` */
	size_t object;	     /* index; read-only when the vma's mapping can never be written */
	const RegFileEntry *reg;
	int worker_fd; /* of the object, to be fetched */
	int fd;	       /* the result */
};
int target_open_files(struct memory_target *t, const struct filetab *files, struct target_open *v, size_t n,
		      struct fault *f) MUST_CHECK;
int target_close_files(struct memory_target *t, struct target_open *v, size_t n, struct fault *f) MUST_CHECK;

/* The mappings of the vessel without the stub and our windows. */
int target_read_maps(struct memory_target *t, struct maps *out, struct fault *f) MUST_CHECK;
/* A place for our own use: clear of the vessel's mappings, the wanted ones, and all that mm names. 0: none. */
uint64_t target_hole(struct memory_target *t, const MmEntry *mm, uint64_t len, struct fault *f);
struct range *target_keep_clear(const struct memory_target *t, const MmEntry *mm, size_t *n); /* malloc */

int target_objects_update(struct memory_target *t, const MmEntry *mm, struct fault *f) MUST_CHECK;
int target_window(struct memory_target *t, size_t object, struct fault *f) MUST_CHECK; /* maps it when it is not */
int target_windows_drop(struct memory_target *t, const MmEntry *overlapping,
			struct fault *f) MUST_CHECK; /* NULL: all */

void target_fresh_arm(struct memory_target *t);
void target_fresh_disarm(struct memory_target *t);
void target_fresh_close(struct memory_target *t);
/* How far from addr on pages are all of one sort: *fresh, to be given to target_fresh_copy, or not. */
size_t target_fresh_run(const struct memory_target *t, uint64_t addr, size_t len, bool *fresh);
/* Bytes placed, from the start: fewer than len when a page is there already, or can't be placed so. */
size_t target_fresh_copy(struct memory_target *t, uint64_t addr, const char *data, size_t len);
void target_fresh_dropped(struct memory_target *t, uint64_t addr, uint64_t len);

int target_mmap_call(const VmaEntry *e, uint64_t start, uint64_t end, uint64_t at, uint32_t prot, int fd,
		     struct calls_list *l, struct fault *f) MUST_CHECK;
void target_advise_calls(const VmaEntry *e, uint64_t start, uint64_t end, uint32_t have, struct calls_list *l);
int target_name(struct memory_target *t, const VmaEntry *e, struct fault *f) MUST_CHECK;
/* Makes the vessel's mapping boundaries those of mm, where mmap and mprotect alone did not. */
int target_rebuild(struct memory_target *t, const MmEntry *mm, const struct filetab *files, struct fault *f) MUST_CHECK;
/* FAULT_VERIFY with the first difference. `locks`: neighbours that differ only in a lock are one mapping until it is
 * set. */
int target_compare(const struct maps *have, const MmEntry *mm, bool locked, size_t *at, struct fault *f) MUST_CHECK;
int target_check_mm(const MmEntry *mm, struct fault *f) MUST_CHECK; /* from outside: everything is looked at */

#endif
