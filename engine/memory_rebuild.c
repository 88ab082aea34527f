/*
 * Boundaries that mmap and mprotect alone did not make. The kernel merges neighbours that are alike; the source may have
 * two mappings where it would make one here, and the other way round. A mapping of either sort is built again elsewhere,
 * with a first page of its own, and moved into place: a moved mapping keeps its old page offset, so it merges with
 * nothing, and it is one. What it holds is copied here, nothing is sent again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory_dest.h"
#include "pagemap.h"
#include "readmem.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Neighbours that only a lock keeps apart: one mapping until the lock is set. */
static bool may_be_one(const VmaEntry *a, const VmaEntry *b)
{
	const uint64_t locks = MAP_FLAG_LOCKED | MAP_FLAG_LOCKONFAULT;
	return a->end == b->start && ((a->vm_flags ^ b->vm_flags) & locks) &&
	       ((a->vm_flags ^ b->vm_flags) & ~locks) == 0 && a->prot == b->prot && a->flags == b->flags &&
	       (a->status & VMA_TYPE) == (b->status & VMA_TYPE) && a->shmid == b->shmid;
}

static bool wrong_kind(const struct map *m, const VmaEntry *e)
{
	if (e->status & VMA_SPECIAL)
		return m->kind != (e->status & VMA_VDSO	  ? MAP_KIND_VDSO
				   : e->status & VMA_VVAR ? MAP_KIND_VVAR
							  : MAP_KIND_VSYSCALL);
	if (m->shared != !!(e->flags & MAP_SHARED))
		return true;
	if (e->status & VMA_ANON_PRIVATE)
		return m->kind != MAP_KIND_ANON;
	return m->pgoff != e->pgoff;
}

static int differs(const struct map *m, const VmaEntry *e, struct fault *f)
{
	fault_set(f, FAULT_VERIFY,
		  "mapping %llx-%llx (protection %u, offset %llx) of the source is %llx-%llx (%u, %llx, %s) here",
		  (unsigned long long)e->start, (unsigned long long)e->end, e->prot, (unsigned long long)e->pgoff,
		  (unsigned long long)m->start, (unsigned long long)m->end, m->prot, (unsigned long long)m->pgoff,
		  m->path[0] ? m->path : "anonymous");
	return -1;
}

int target_compare(const struct maps *have, const MmEntry *mm, bool locked, size_t *at, struct fault *f)
{
	size_t i = 0, j = 0;
	while (j < mm->n_vmas) {
		const VmaEntry *e = mm->vmas[j];
		size_t last = j;
		*at = j;
		if (i >= have->n)
			return fault_set(f, FAULT_VERIFY, "mapping %llx-%llx of the source is missing here",
					 (unsigned long long)e->start, (unsigned long long)e->end);
		const struct map *m = &have->v[i++];
		while (!locked && last + 1 < mm->n_vmas && m->end > mm->vmas[last]->end &&
		       may_be_one(mm->vmas[last], mm->vmas[last + 1]))
			last++;
		if (m->start != e->start || m->end != mm->vmas[last]->end || m->prot != e->prot || wrong_kind(m, e))
			return differs(m, e, f);
		j = last + 1;
	}
	if (i < have->n)
		return fault_set(f, FAULT_VERIFY, "mapping %llx-%llx (%s) is here and not on the source",
				 (unsigned long long)have->v[i].start, (unsigned long long)have->v[i].end,
				 have->v[i].path[0] ? have->v[i].path : "anonymous");
	return 0;
}

/* Pages to the new place, through our buffer. */
static int copy_run(struct memory_target *t, uint64_t from, uint64_t to, uint64_t npages, struct fault *f)
{
	while (npages) {
		uint64_t n = npages < MEMORY_TARGET_BUF / PAGE_BYTES ? npages : MEMORY_TARGET_BUF / PAGE_BYTES;
		uint64_t absent[MEMORY_TARGET_BUF / PAGE_BYTES / 64] = { 0 };
		struct readmem_piece piece = { from, (uint32_t)n };
		struct iovec local = { t->buf, n * PAGE_BYTES }, remote = { (void *)(uintptr_t)to, n * PAGE_BYTES };
		if (readmem_pieces(t->p, &piece, 1, t->buf, absent, f) < 0)
			return -1;
		if (process_vm_writev(t->p->pid, &local, 1, &remote, 1, 0) != (ssize_t)(n * PAGE_BYTES))
			return fault_errno(f, FAULT_SYSTEM, "copy memory within the vessel");
		from += n * PAGE_BYTES;
		to += n * PAGE_BYTES;
		npages -= n;
	}
	return 0;
}

static int copy_pages(struct memory_target *t, const VmaEntry *e, uint64_t to, struct fault *f)
{
	struct pagemap pm;
	struct pagemap_region v[256];
	if (pagemap_open(t->p->procfd, &pm) < 0)
		return fault_errno(f, FAULT_SYSTEM, "open the vessel's pagemap");
	struct pagemap_query q = {
		.start = e->start,
		.end = e->end,
		.lack = e->status & VMA_FILE_PRIVATE ? PAGEMAP_FILE : 0,
		.any = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
	};
	int r = 0;
	while (r == 0 && q.start < q.end) {
		size_t n;
		r = pagemap_scan(&pm, &q, v, ARRAY_LEN(v), &n, &q.start);
		if (r < 0)
			fault_errno(f, FAULT_SYSTEM, "scan the vessel's page table");
		for (size_t i = 0; r == 0 && i < n; i++)
			r = copy_run(t, v[i].start, to + (v[i].start - e->start), (v[i].end - v[i].start) / PAGE_BYTES,
				     f);
	}
	pagemap_close(&pm);
	return r;
}

/* Its own description of the file: mappings of different ones never merge. */
static int build_elsewhere(struct memory_target *t, const VmaEntry *e, uint64_t at, const struct filetab *files,
			   struct fault *f)
{
	struct target_open job = { .vma = e };
	struct calls_list l = { 0 };
	bool file = !(e->status & VMA_ANON_PRIVATE), private = !(e->flags & MAP_SHARED);
	uint32_t prot = private ? PROT_READ | PROT_WRITE : e->prot;
	if (file && target_open_files(t, files, &job, 1, f) < 0)
		return -1;
	int r = target_mmap_call(e, e->start, e->end, at, prot, file ? job.fd : -1, &l, f);
	if (r == 0) {
		target_advise_calls(e, at, at + (e->end - e->start), 0, &l);
		if (e->status & VMA_ANON_PRIVATE)
			target_call(&l, SYS_madvise, at, PAGE_BYTES, MADV_POPULATE_WRITE, 0, 0, 0);
		r = target_run(t, &l, "map", f);
	}
	if (file && target_close_files(t, &job, 1, r < 0 ? NULL : f) < 0)
		r = -1;
	return r;
}

static int rebuild_one(struct memory_target *t, const MmEntry *mm, const VmaEntry *e, const struct filetab *files,
		       struct fault *f)
{
	uint64_t len = e->end - e->start, at = target_hole(t, mm, len, f);
	bool private = !(e->flags & MAP_SHARED);
	struct calls_list l = { 0 };
	if (!at || build_elsewhere(t, e, at, files, f) < 0 || (private && copy_pages(t, e, at, f) < 0))
		return -1;
	if (private && e->prot != (PROT_READ | PROT_WRITE))
		target_call(&l, SYS_mprotect, at, len, e->prot, 0, 0, 0);
	target_call(&l, SYS_munmap, e->start, len, 0, 0, 0, 0);
	target_call(&l, SYS_mremap, at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, e->start, 0);
	if (target_run(t, &l, "move into place", f) < 0)
		return -1;
	return e->name ? target_name(t, e, f) : 0;
}

/* Which mapping to build again: of two that were merged into one, the second. */
static const VmaEntry *culprit(const struct maps *have, const MmEntry *mm, size_t at)
{
	const VmaEntry *e = mm->vmas[at];
	const struct map *m = maps_find(have, e->start);
	if (m && m->start == e->start && m->end > e->end && at + 1 < mm->n_vmas)
		return mm->vmas[at + 1];
	return e;
}

int target_rebuild(struct memory_target *t, const MmEntry *mm, const struct filetab *files, struct fault *f)
{
	const VmaEntry *before = NULL;
	for (size_t tries = 0;; tries++) {
		struct maps have;
		size_t at = 0;
		if (target_read_maps(t, &have, f) < 0)
			return -1;
		if (target_compare(&have, mm, false, &at, f) == 0) {
			maps_free(&have);
			return 0;
		}
		const VmaEntry *e = at < mm->n_vmas ? culprit(&have, mm, at) : NULL;
		maps_free(&have);
		if (!e || e == before || (e->status & VMA_SPECIAL) || tries > mm->n_vmas)
			return -1;
		before = e;
		if (rebuild_one(t, mm, e, files, f) < 0)
			return fault_while(f, "building mapping %llx-%llx again", (unsigned long long)e->start,
					   (unsigned long long)e->end);
	}
}
