/*
 * Tracking by soft-dirty bits: "4" in clear_refs clears them, a store sets them again. Reading and clearing are two
 * steps, so each round stops the process between them and keeps what it read in a bitmap.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pageset.h"
#include "track.h"

struct soft {
	struct tracker t;
	struct pageset *dirty; /* of this round */
};

static bool soft_dirty(const struct pagemap *pm, const void *page)
{
	struct pagemap_region v[1];
	size_t n;
	uint64_t walked, at = (uint64_t)(uintptr_t)page;
	struct pagemap_query q = { .start = at, .end = at + PAGE_BYTES, .need = PAGEMAP_SOFT_DIRTY };
	return pagemap_scan(pm, &q, v, 1, &n, &walked) == 0 && n == 1;
}

static bool test_page(const struct pagemap *pm, int self, volatile char *mem, char *why, size_t len)
{
	mem[0] = 1;
	if (util_write_file(self, "clear_refs", "4") < 0)
		return snprintf(why, len, "clear_refs: %s", strerror(errno)), false;
	bool clean = !soft_dirty(pm, (const void *)mem);
	mem[0] = 2;
	bool dirty = soft_dirty(pm, (const void *)mem);
	if (clean && dirty)
		return true;
	snprintf(why, len, "a page of our own %s", clean ? "is not reported as written" : "can't be marked clean");
	return false;
}

static bool soft_test(char *why, size_t len)
{
	auto_fd self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct pagemap pm;
	if (self < 0 || pagemap_open(self, &pm) < 0)
		return snprintf(why, len, "/proc/self/pagemap: %s", strerror(errno)), false;
	pm.scan = false; /* PAGEMAP_SCAN reports soft-dirty only on newer kernels */
	bool ok = false;
	void *mem = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) {
		snprintf(why, len, "mmap: %s", strerror(errno));
	} else {
		ok = test_page(&pm, self, mem, why, len);
		munmap(mem, PAGE_BYTES);
	}
	pagemap_close(&pm);
	return ok;
}

static void soft_close(struct tracker *t)
{
	struct soft *s = (struct soft *)t;
	pageset_free(s->dirty);
	pagemap_close(&t->pm);
	free(s);
}

static int soft_open(struct process *p, struct remote *r, struct tracker **out, struct fault *f)
{
	(void)r;
	struct soft *s = calloc(1, sizeof(*s));
	if (!s)
		return fault_errno(f, FAULT_NO_MEMORY, "open dirty tracking");
	if (track_init(&s->t, &track_soft_dirty, p, f) < 0) {
		free(s);
		return -1;
	}
	s->t.pm.scan = false;
	*out = &s->t;
	return 0;
}

static void fill_query(const struct track_range *r, struct pagemap_query *q)
{
	*q = (struct pagemap_query){
		.start = r->start,
		.end = r->end,
		.lack = r->private_file ? PAGEMAP_FILE : 0,
		.any = r->shared ? 0 : PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
		.give = PAGEMAP_SOFT_DIRTY | PAGEMAP_GUARD,
	};
}

static int collect(struct soft *s, const struct track_range *r, struct fault *f)
{
	struct pagemap_region v[256];
	struct pagemap_query q;
	fill_query(r, &q);
	q.need = PAGEMAP_SOFT_DIRTY;
	while (q.start < q.end) {
		size_t n;
		if (pagemap_scan(&s->t.pm, &q, v, ARRAY_LEN(v), &n, &q.start) < 0)
			return track_fault(&s->t, f);
		for (size_t i = 0; i < n; i++)
			pageset_add(s->dirty, v[i].start / PAGE_BYTES, (v[i].end - v[i].start) / PAGE_BYTES);
	}
	return 0;
}

static int snapshot(struct soft *s, const struct track_range *v, size_t n, struct fault *f)
{
	for (size_t i = 0; i < n; i++)
		if (collect(s, &v[i], f) < 0)
			return -1;
	if (util_write_file(s->t.p->procfd, "clear_refs", "4") < 0)
		return fault_errno(f, FAULT_KERNEL, "clear the soft-dirty bits of pid %d", s->t.p->pid);
	return 0;
}

static int soft_begin(struct tracker *t, const struct track_range *v, size_t n, struct fault *f)
{
	struct soft *s = (struct soft *)t;
	bool running = !t->p->stopped;
	pageset_free(s->dirty);
	s->dirty = pageset_new();
	if (running && process_stop(t->p, f) < 0)
		return -1;
	int r = snapshot(s, v, n, f);
	if (running && process_release(t->p, r < 0 ? NULL : f) < 0)
		return -1;
	return r;
}

/* Directly from the page table: a look, or a mapping that the round's snapshot does not cover. */
static int soft_direct(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max, size_t *n,
		       uint64_t *walked, struct fault *f)
{
	struct pagemap_query q;
	fill_query(r, &q);
	q.need = r->fresh ? 0 : PAGEMAP_SOFT_DIRTY;
	q.give = 0;
	if (pagemap_scan(&t->pm, &q, v, max, n, walked) < 0)
		return track_fault(t, f);
	for (size_t i = 0; i < *n; i++)
		v[i].is = PAGEMAP_WRITTEN;
	return 0;
}

static int soft_scan(struct tracker *t, struct track_range *r, bool look, struct pagemap_region *v, size_t max,
		     size_t *n, uint64_t *walked, bool *tracked, struct fault *f)
{
	struct soft *s = (struct soft *)t;
	*tracked = true;
	if (look || r->fresh)
		return soft_direct(t, r, v, max, n, walked, f);
	uint64_t at = r->start / PAGE_BYTES, end = r->end / PAGE_BYTES, run;
	for (*n = 0; *n < max && (at = pageset_next(s->dirty, at, end, &run)) < end; at += run)
		v[(*n)++] = (struct pagemap_region){ at * PAGE_BYTES, (at + run) * PAGE_BYTES, PAGEMAP_WRITTEN };
	*walked = at * PAGE_BYTES;
	return 0;
}

static int soft_scan_all(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max,
			 size_t *n, uint64_t *walked, struct fault *f)
{
	struct pagemap_query q;
	fill_query(r, &q);
	if (r->shared)
		q.need = PAGEMAP_SOFT_DIRTY;
	else
		q.any |= PAGEMAP_GUARD;
	if (pagemap_scan(&t->pm, &q, v, max, n, walked) < 0)
		return track_fault(t, f);
	for (size_t i = 0; i < *n; i++)
		v[i].is = (v[i].is & PAGEMAP_SOFT_DIRTY ? PAGEMAP_WRITTEN : 0) | (v[i].is & PAGEMAP_GUARD);
	return 0;
}

const struct tracker_ops track_soft_dirty = {
	.name = "soft-dirty",
	.rounds = true,
	.self_test = soft_test,
	.open = soft_open,
	.begin = soft_begin,
	.scan = soft_scan,
	.scan_all = soft_scan_all,
	.close = soft_close,
};
