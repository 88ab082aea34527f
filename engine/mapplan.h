/*
 * What of the old mappings' content stays in the new ones: a pure function of two lists, which both sides call with
 * the same lists. The source marks everything else as not sent; the destination maps it anew.
 *
 * The rule: memory stays where an old and a new mapping overlap that differ only in what can be changed on a mapping
 * that exists: protection, advice, name, lock, boundaries. The vDSO and its data are no part of it.
 */
#ifndef ENGINE_MAPPLAN_H
#define ENGINE_MAPPLAN_H

#include "image.pb-c.h"
#include "util.h"

/* vma_entry.status, as CRIU has it */
#define VMA_REGULAR	 (1u << 0)
#define VMA_STACK	 (1u << 1)
#define VMA_VSYSCALL	 (1u << 2)
#define VMA_VDSO	 (1u << 3)
#define VMA_HEAP	 (1u << 5)
#define VMA_FILE_PRIVATE (1u << 6)
#define VMA_FILE_SHARED	 (1u << 7)
#define VMA_ANON_SHARED	 (1u << 8)
#define VMA_ANON_PRIVATE (1u << 9)
#define VMA_VVAR	 (1u << 12)
#define VMA_MEMFD	 (1u << 14) /* with FILE_PRIVATE or ANON_SHARED */
#define VMA_SPECIAL	 (VMA_VSYSCALL | VMA_VDSO | VMA_VVAR)
#define VMA_FILE	 (VMA_FILE_PRIVATE | VMA_FILE_SHARED)
#define VMA_TYPE	 (VMA_FILE | VMA_ANON_SHARED | VMA_ANON_PRIVATE | VMA_MEMFD | VMA_SPECIAL)

struct mapplan_keep {
	size_t old_index, new_index;
	uint64_t start, end;
};

struct mapplan {
	size_t n, cap;
	struct mapplan_keep *keep; /* by address */
};

bool mapplan_stays(const VmaEntry *old, const VmaEntry *fresh);
/* Lists are sorted and do not overlap; old may be NULL. Aborts when memory for the list can't be had. */
void mapplan_make(const MmEntry *old, const MmEntry *fresh, struct mapplan *out);
void mapplan_done(struct mapplan *p);
/* Parts of [start, end) that the plan does not keep, one at a call from *at on. False: no more. */
bool mapplan_gap(const struct mapplan *p, uint64_t *at, uint64_t end, uint64_t *gap_start, uint64_t *gap_end);
/* The mapping that holds addr, or NULL. */
const VmaEntry *mapplan_find(const MmEntry *mm, uint64_t addr);

#endif
