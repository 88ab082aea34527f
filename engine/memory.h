/*
 * Memory, both sides. The source sends in rounds while the process runs; the destination places pages
 * straight where they will live.
 *
 *	source                                        destination
 *	memory_open(p, r, "auto")  (process stopped)  memory_target_new(v)
 *	process_release …
 *	memory_round_begin(m, false)
 *	  memory_mm(m) when it changed      ── MAPS ──▶ memory_target_maps
 *	  memory_fill until it gives none   ─ PAGES ──▶ memory_target_place
 *	… rounds; then stopped, after the last remote call:
 *	memory_round_begin(m, true), fill   ────────▶   the same
 *	memory_digest                       ─ SEAL ──▶  memory_target_finish, memory_target_digest
 *	memory_close(m): tracking ends (it may take 20 ms a GiB: not in the pause)
 *
 * Both sides hold no copy of any page, and 1/32768 of the memory's size in bitmaps.
 */
#ifndef ENGINE_MEMORY_H
#define ENGINE_MEMORY_H

#include "filetab.h"
#include "maps.h"
#include "vessel.h"
#include "wire.pb-c.h"

/* The same layout as struct frame_segment (transport/frame.h), which the worker asserts. */
struct memory_segment {
	uint64_t addr;
	uint32_t npages;
	uint16_t space; /* 0: address space, else index of mm.objects + 1 */
	uint16_t flags; /* MEMORY_SEGMENT_* */
};
#define MEMORY_SEGMENT_ZERO    1u
#define MEMORY_SEGMENT_DISCARD 2u

struct memory;

/* tracking: NULL (what the self-test finds best), "wp-async", "soft-dirty", "none". The process is stopped, r open. An
 * asked-for tracker that does not work here is FAULT_KERNEL; unset falls back to none. */
int memory_open(struct process *p, struct remote *r, const char *tracking, struct filetab *files, struct memory **out,
		struct fault *f) MUST_CHECK;
const char *memory_tracking(const struct memory *m);
/* Blockers of the process's mappings, and the files they need. The process may run: it takes 20 ms a GiB. */
int memory_check(struct process *p, struct report *report, struct arena *a, Cpr__NeededFile ***files, size_t *n_files,
		 uint64_t *resident_bytes, struct fault *f) MUST_CHECK;
/* Reads the mappings anew, registers new ones with the tracker, finds what has to be sent. *maps_changed: memory_mm()
 * has to be sent before the pages. Not `last`: the process may run. */
int memory_round_begin(struct memory *m, bool last, bool *maps_changed, struct fault *f) MUST_CHECK;
const MmEntry *memory_mm(const struct memory *m);
/* Next pages of the round: up to max_pages pages into data, up to max_segs segments. Both 0: the round is over. */
int memory_fill(struct memory *m, void *data, size_t max_pages, struct memory_segment *segs, size_t max_segs,
		size_t *n_pages, size_t *n_segs, struct fault *f) MUST_CHECK;
uint64_t memory_round_pages(const struct memory *m);	  /* of the round begun: what fill will give, at most */
uint64_t memory_round_zero_pages(const struct memory *m); /* skipped or sent as ZERO so far in this round */
/* A cheap look (clean scan) at how much is dirty now, in pages, without resetting anything. */
int memory_dirty_pages(struct memory *m, uint64_t *pages, struct fault *f) MUST_CHECK;
/* mm fields (brk, arg, env, auxv, exe), final mappings: IMAGE_MM. Stopped, r open (prctl, brk); before the last round. */
int memory_save(struct memory *m, struct remote *r, struct image *img, struct fault *f) MUST_CHECK;
/* --verify: digests of all memory, by mapping and 2 MiB piece; what the kernel writes itself (rseq areas of `masked`
 * ranges) counts as zero. */
int memory_digest(struct memory *m, const struct range *masked, size_t n_masked, struct arena *a,
		  Cpr__MemoryDigest ***out, size_t *n, struct fault *f) MUST_CHECK;
void memory_close(struct memory *m); /* the target's protection ends; NULL is fine */

/* Trackers, with their self-test (also for cpr-agent --check). */
struct memory_tracker_info {
	const char *name;
	bool works;
	char why[128]; /* when it does not */
};
size_t memory_trackers(struct memory_tracker_info *out, size_t max);

struct memory_target;
int memory_target_new(struct vessel *v, struct memory_target **out, struct fault *f) MUST_CHECK;
void memory_target_free(struct memory_target *t);
/* Makes the vessel's mappings those of mm: exact boundaries, prot (writable or not), kinds, names, advice. Content of
 * what stays is kept. files: entries that mm names. */
int memory_target_maps(struct memory_target *t, const MmEntry *mm, const struct filetab *files,
		       struct fault *f) MUST_CHECK;
int memory_target_place(struct memory_target *t, const void *data, size_t n_pages, const struct memory_segment *segs,
			size_t n_segs, struct fault *f) MUST_CHECK;
/* After the last round: vDSO, mlock, final protection; brk, arg, env, auxv, exe link from mm (PR_SET_MM_MAP). Needs the
 * helper (exe). Then the vessel's maps are compared with mm: FAULT_VERIFY when a boundary differs. */
int memory_target_finish(struct memory_target *t, const MmEntry *mm, const struct filetab *files,
			 struct fault *f) MUST_CHECK;
int memory_target_digest(struct memory_target *t, const Cpr__MemoryDigest *const *expect, size_t n,
			 const struct range *masked, size_t n_masked, struct fault *f) MUST_CHECK; /* FAULT_VERIFY */
/* Descriptors (in the worker) of the shared objects of mm, for fd restore; -1 where none. */
const int *memory_target_objects(const struct memory_target *t, size_t *n);

/* vDSO of this kernel as a process maps it: digest of its bytes and the page counts, for vetting. */
/* Destination: the vessel's vDSO against the offer's; a difference is a blocker. */
int memory_check_vdso(struct vessel *v, const Cpr__Offer *offer, struct report *report, struct fault *f) MUST_CHECK;
int memory_vdso_info(struct process *p, uint8_t digest[16], uint32_t *vdso_pages, uint32_t *vvar_pages,
		     struct fault *f) MUST_CHECK;

#endif
