#include "mapplan.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "maps.h"

/* THP advice can be changed but never taken back. */
static bool advice_reachable(const VmaEntry *old, const VmaEntry *fresh)
{
	const uint64_t thp = MAP_FLAG_HUGEPAGE | MAP_FLAG_NOHUGEPAGE;
	return !(old->vm_flags & thp) || (fresh->vm_flags & thp);
}

bool mapplan_stays(const VmaEntry *old, const VmaEntry *fresh)
{
	const uint32_t fixed = MAP_SHARED | MAP_PRIVATE | MAP_GROWSDOWN | MAP_NORESERVE;
	if ((old->status & VMA_TYPE) != (fresh->status & VMA_TYPE) || (fresh->status & VMA_SPECIAL) ||
	    (old->flags & fixed) != (fresh->flags & fixed) || !advice_reachable(old, fresh))
		return false;
	if (fresh->status & VMA_ANON_PRIVATE)
		return true;
	/* What can be mprotected to be writable one day depends on how the file was opened. */
	if ((fresh->flags & MAP_SHARED) && ((old->vm_flags ^ fresh->vm_flags) & MAP_FLAG_MAYWRITE))
		return false;
	return old->shmid == fresh->shmid && old->pgoff - old->start == fresh->pgoff - fresh->start;
}

static void add(struct mapplan *p, size_t old_index, size_t new_index, uint64_t start, uint64_t end)
{
	if (util_grow((void **)&p->keep, &p->cap, p->n, sizeof(*p->keep)) < 0)
		abort();
	p->keep[p->n++] = (struct mapplan_keep){ old_index, new_index, start, end };
}

void mapplan_make(const MmEntry *old, const MmEntry *fresh, struct mapplan *out)
{
	*out = (struct mapplan){ 0 };
	size_t i = 0, n_old = old ? old->n_vmas : 0;
	for (size_t j = 0; j < fresh->n_vmas; j++) {
		const VmaEntry *n = fresh->vmas[j];
		while (i < n_old && old->vmas[i]->end <= n->start)
			i++;
		for (size_t k = i; k < n_old && old->vmas[k]->start < n->end; k++) {
			const VmaEntry *o = old->vmas[k];
			if (mapplan_stays(o, n))
				add(out, k, j, o->start > n->start ? o->start : n->start,
				    o->end < n->end ? o->end : n->end);
		}
	}
}

void mapplan_done(struct mapplan *p)
{
	free(p->keep);
	*p = (struct mapplan){ 0 };
}

/* Index of the first kept range that ends behind addr. */
static size_t first_behind(const struct mapplan *p, uint64_t addr)
{
	size_t lo = 0, hi = p->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (p->keep[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool mapplan_gap(const struct mapplan *p, uint64_t *at, uint64_t end, uint64_t *gap_start, uint64_t *gap_end)
{
	size_t i = first_behind(p, *at);
	while (i < p->n && p->keep[i].start <= *at && *at < end)
		*at = p->keep[i++].end;
	if (*at >= end)
		return false;
	*gap_start = *at;
	*gap_end = i < p->n && p->keep[i].start < end ? p->keep[i].start : end;
	*at = *gap_end;
	return true;
}

const VmaEntry *mapplan_find(const MmEntry *mm, uint64_t addr)
{
	size_t lo = 0, hi = mm->n_vmas;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (mm->vmas[mid]->end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < mm->n_vmas && mm->vmas[lo]->start <= addr ? mm->vmas[lo] : NULL;
}
