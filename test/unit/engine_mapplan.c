#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "mapplan.h"
#include "maps.h"

#define PAGE ((uint64_t)4096)

static VmaEntry *vma(struct arena *a, uint64_t start, uint64_t end, uint32_t status, uint64_t shmid, uint64_t pgoff)
{
	VmaEntry *e = arena_msg(a, VmaEntry, vma_entry);
	e->start = start * PAGE;
	e->end = end * PAGE;
	e->status = status | VMA_REGULAR;
	e->flags = status & (VMA_FILE_SHARED | VMA_ANON_SHARED) ? MAP_SHARED : MAP_PRIVATE;
	e->shmid = shmid;
	e->pgoff = pgoff * PAGE;
	e->prot = PROT_READ;
	return e;
}

/* One old mapping and one new one: does it stay? */
static void rule(void **state)
{
	(void)state;
	enum { ANON = VMA_ANON_PRIVATE, FILE_ = VMA_FILE_PRIVATE, SHM = VMA_ANON_SHARED };
	static const struct {
		uint32_t old_status, new_status;
		uint64_t old_id, new_id, old_pgoff, new_pgoff;
		uint32_t old_flags, new_flags, old_vm, new_vm;
		bool stays;
	} rows[] = {
		{ ANON, ANON, 0, 0, 0, 0, 0, 0, 0, 0, true },
		{ ANON | VMA_HEAP, ANON, 0, 0, 0, 0, 0, 0, 0, 0, true },
		{ ANON, FILE_, 0, 1, 0, 0, 0, 0, 0, 0, false },
		{ FILE_, FILE_, 1, 1, 5, 5, 0, 0, 0, 0, true },
		{ FILE_, FILE_, 1, 2, 5, 5, 0, 0, 0, 0, false },
		{ FILE_, FILE_, 1, 1, 5, 6, 0, 0, 0, 0, false },
		{ FILE_, FILE_ | VMA_MEMFD, 1, 1, 5, 5, 0, 0, 0, 0, false },
		{ SHM, SHM, 3, 3, 0, 0, 0, 0, 0, 0, true },
		{ SHM, SHM, 3, 3, 0, 0, 0, 0, 0, MAP_FLAG_MAYWRITE, false },
		{ ANON, ANON, 0, 0, 0, 0, MAP_GROWSDOWN, 0, 0, 0, false },
		{ ANON, ANON, 0, 0, 0, 0, 0, MAP_NORESERVE, 0, 0, false },
		{ ANON, ANON, 0, 0, 0, 0, 0, 0, MAP_FLAG_HUGEPAGE, 0, false },
		{ ANON, ANON, 0, 0, 0, 0, 0, 0, 0, MAP_FLAG_HUGEPAGE, true },
		{ ANON, ANON, 0, 0, 0, 0, 0, 0, MAP_FLAG_HUGEPAGE, MAP_FLAG_NOHUGEPAGE, true },
		{ ANON, ANON, 0, 0, 0, 0, 0, 0, MAP_FLAG_DONTDUMP, MAP_FLAG_LOCKED, true },
		{ VMA_VDSO | ANON, VMA_VDSO | ANON, 0, 0, 0, 0, 0, 0, 0, 0, false },
	};
	struct arena *a = arena_new();
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		VmaEntry *o = vma(a, 10, 20, rows[i].old_status, rows[i].old_id, rows[i].old_pgoff);
		VmaEntry *n = vma(a, 10, 20, rows[i].new_status, rows[i].new_id, rows[i].new_pgoff);
		o->flags |= rows[i].old_flags;
		n->flags |= rows[i].new_flags;
		o->vm_flags = rows[i].old_vm;
		n->vm_flags = rows[i].new_vm;
		n->prot = PROT_READ | PROT_WRITE; /* never matters */
		if (mapplan_stays(o, n) != rows[i].stays)
			fail_msg("row %zu", i);
	}
	arena_free(a);
}

enum { PAGES = 200 };

/* What a page is, so that two lists can be compared page by page. */
struct cell {
	int id; /* 0: nothing; else a mapping's identity */
	int64_t delta;
};

static MmEntry *random_list(struct arena *a, unsigned *rnd, struct cell cells[PAGES])
{
	MmEntry *mm = arena_msg(a, MmEntry, mm_entry);
	memset(cells, 0, PAGES * sizeof(*cells));
	for (uint64_t at = 1; at < PAGES;) {
		*rnd = *rnd * 1103515245u + 12345u;
		unsigned x = *rnd >> 8;
		uint64_t end = at + 1 + x % 20;
		if (end > PAGES)
			end = PAGES;
		if (x >> 5 & 3) {
			bool file = x >> 7 & 1;
			uint64_t id = 1 + (x >> 8 & 1), pgoff = file ? at + (x >> 9 & 1) : 0;
			VmaEntry *e = vma(a, at, end, file ? VMA_FILE_PRIVATE : VMA_ANON_PRIVATE, file ? id : 0, pgoff);
			e->prot = x >> 12 & 3;
			arena_push(a, mm->n_vmas, mm->vmas, e);
			for (uint64_t p = at; p < end; p++)
				cells[p] = (struct cell){ file ? (int)id + 1 : 1, file ? (int64_t)(pgoff - at) : 0 };
		}
		at = end;
	}
	return mm;
}

/* A page is kept if and only if it is the same in both lists; kept ranges lie in one mapping of either list; gaps are the
 * rest. */
static void model(void **state)
{
	(void)state;
	unsigned rnd = 3;
	for (int round = 0; round < 3000; round++) {
		struct arena *a = arena_new();
		struct cell was[PAGES], is[PAGES];
		bool kept[PAGES] = { false }, gap[PAGES] = { false };
		MmEntry *o = random_list(a, &rnd, was), *n = random_list(a, &rnd, is);
		struct mapplan p;
		mapplan_make(o, n, &p);
		for (size_t i = 0; i < p.n; i++) {
			const struct mapplan_keep *k = &p.keep[i];
			assert_true(i == 0 || p.keep[i - 1].end <= k->start);
			assert_true(k->start < k->end);
			assert_true(o->vmas[k->old_index]->start <= k->start && o->vmas[k->old_index]->end >= k->end);
			assert_true(n->vmas[k->new_index]->start <= k->start && n->vmas[k->new_index]->end >= k->end);
			for (uint64_t at = k->start / PAGE; at < k->end / PAGE; at++)
				kept[at] = true;
		}
		for (size_t i = 0; i < n->n_vmas; i++) {
			uint64_t at = n->vmas[i]->start, from, to;
			while (mapplan_gap(&p, &at, n->vmas[i]->end, &from, &to)) {
				assert_true(from < to && to <= n->vmas[i]->end);
				for (uint64_t k = from / PAGE; k < to / PAGE; k++)
					gap[k] = true;
			}
		}
		for (uint64_t at = 1; at < PAGES; at++) {
			bool same = is[at].id && was[at].id == is[at].id && was[at].delta == is[at].delta;
			assert_int_equal(kept[at], same);
			assert_int_equal(gap[at], is[at].id && !same);
			const VmaEntry *e = mapplan_find(n, at * PAGE);
			assert_int_equal(e != NULL, is[at].id != 0);
		}
		mapplan_done(&p);
		arena_free(a);
	}
}

static void nothing_before(void **state)
{
	(void)state;
	struct arena *a = arena_new();
	MmEntry *mm = arena_msg(a, MmEntry, mm_entry);
	arena_push(a, mm->n_vmas, mm->vmas, vma(a, 5, 9, VMA_ANON_PRIVATE, 0, 0));
	struct mapplan p;
	uint64_t at = 5 * PAGE, from, to;
	mapplan_make(NULL, mm, &p);
	assert_int_equal(p.n, 0);
	assert_true(mapplan_gap(&p, &at, 9 * PAGE, &from, &to));
	assert_true(from == 5 * PAGE && to == 9 * PAGE);
	assert_false(mapplan_gap(&p, &at, 9 * PAGE, &from, &to));
	mapplan_done(&p);
	arena_free(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule),
		cmocka_unit_test(model),
		cmocka_unit_test(nothing_before),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
