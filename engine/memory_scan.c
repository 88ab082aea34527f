/*
 * What has to be sent in a round: mappings by the tracker, window by window (protect a piece, read it, go on: what is
 * written meanwhile further on is sent once, not twice), then shared objects. In the last round the process is stopped
 * and one scan of everything that is there says what is written, what the destination has to drop, and where guard
 * pages are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memory_source.h"

#define WINDOW	    ((uint64_t)64 << 20)
#define WINDOW_MAX  ((uint64_t)1 << 40)
#define HUGE_PAGE   ((uint64_t)2 << 20)
#define DENSE_LOOKS 65536
#define ITEMS_MAX   ((size_t)512 << 10) /* 12 MiB: then the last round is scanned in pieces, too */

static void push(struct memory *m, enum item_what what, uint16_t space, uint32_t map, uint64_t addr, uint64_t npages)
{
	while (npages) {
		uint32_t n = npages < (1u << 20) ? (uint32_t)npages : 1u << 20;
		if (util_grow((void **)&m->items, &m->cap_items, m->n_items, sizeof(*m->items)) < 0)
			abort();
		m->items[m->n_items++] = (struct item){ addr, n, map, space, (uint16_t)what };
		if (m->last && what == ITEM_DATA)
			m->round_pages += n;
		addr += (uint64_t)n * PAGE_BYTES;
		npages -= n;
	}
}

/* Pages of a set in a range that the source no longer has. */
static void drop_sent(struct memory *m, struct pageset *sent, uint16_t space, uint32_t map, uint64_t start,
		      uint64_t end)
{
	uint64_t at = start / PAGE_BYTES, stop = end / PAGE_BYTES, run;
	for (; (at = pageset_next(sent, at, stop, &run)) < stop; at += run) {
		push(m, ITEM_DISCARD, space, map, at * PAGE_BYTES, run);
		pageset_remove(sent, at, run);
	}
}

static void add_guard(struct memory *m, uint64_t start, uint64_t end)
{
	if (m->n_guards && m->guards[m->n_guards - 1].end == start) {
		m->guards[m->n_guards - 1].end = end;
		return;
	}
	if (util_grow((void **)&m->guards, &m->cap_guards, m->n_guards, sizeof(*m->guards)) < 0)
		abort();
	m->guards[m->n_guards++] = (struct range){ start, end };
}

static struct track_range range_of(const struct map *v)
{
	return (struct track_range){
		.start = v->start,
		.end = v->end,
		.map = { v->start, v->end },
		.private_file = v->kind == MAP_KIND_FILE || v->kind == MAP_KIND_MEMFD_PRIVATE,
	};
}

/* Pages of the zero page: the same as none for anonymous memory, and nothing the file's page could be. */
static void push_zero_page(struct memory *m, uint32_t map, uint64_t start, uint64_t end)
{
	uint64_t at = start / PAGE_BYTES, stop = end / PAGE_BYTES, run;
	for (; (at = pageset_next(m->sent, at, stop, &run)) < stop; at += run)
		push(m, ITEM_ZERO, 0, map, at * PAGE_BYTES, run);
	m->zero_pages += (end - start) / PAGE_BYTES;
}

static void take_region(struct memory *m, uint32_t map, const struct pagemap_region *r)
{
	m->saw_guard |= (r->is & PAGEMAP_GUARD) != 0;
	if ((r->is & PAGEMAP_ZERO) && !memory_kind_filelike(m->maps.v[map].kind))
		push_zero_page(m, map, r->start, r->end);
	else
		push(m, ITEM_DATA, 0, map, r->start, (r->end - r->start) / PAGE_BYTES);
}

static bool to_scan(const struct memory *m, const struct map *v)
{
	if (memory_kind_private(v->kind))
		return true;
	/* A file's pages go only at the very end: hosts may share the file, old versions have no business in it. */
	return m->last && v->kind == MAP_KIND_FILE_SHARED && (v->flags & MAP_FLAG_MAYWRITE);
}

static int scan_window(struct memory *m, uint32_t map, struct fault *f)
{
	const struct map *v = &m->maps.v[map];
	struct track_range r = range_of(v);
	size_t before = m->n_items;
	r.start = m->at_addr;
	if (v->end - r.start > m->window + HUGE_PAGE)
		r.end = (r.start + m->window) & ~(HUGE_PAGE - 1); /* a huge page is protected whole, or split */
	r.fresh = m->fresh_maps[map] && m->tracker->ops->begin;
	m->at_addr = r.end;
	while (r.start < r.end) {
		size_t n;
		bool tracked;
		if (m->tracker->ops->scan(m->tracker, &r, false, m->regions, MEMORY_REGIONS, &n, &r.start, &tracked,
					  f) < 0)
			return fault_while(f, "scanning %llx-%llx", (unsigned long long)v->start,
					   (unsigned long long)v->end);
		for (size_t i = 0; i < n; i++)
			take_region(m, map, &m->regions[i]);
	}
	m->window = m->n_items > before ? WINDOW : m->window < WINDOW_MAX ? m->window * 2 : WINDOW_MAX;
	return 0;
}

static void take_last_region(struct memory *m, uint32_t map, uint64_t *seen, const struct pagemap_region *r)
{
	bool shared_file = m->maps.v[map].kind == MAP_KIND_FILE_SHARED;
	if (!shared_file && (r->is & PAGEMAP_GUARD)) {
		add_guard(m, r->start, r->end);
		return; /* nothing is there: *seen stays, what was sent is dropped */
	}
	if (!shared_file)
		drop_sent(m, m->sent, 0, map, *seen, r->start);
	*seen = r->end;
	if (shared_file)
		push(m, ITEM_DATA, 0, map, r->start, (r->end - r->start) / PAGE_BYTES);
	else if (r->is & PAGEMAP_WRITTEN)
		take_region(m, map, r);
}

static void take_changed_region(struct memory *m, uint32_t map, const struct pagemap_region *r)
{
	if (r->is & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) && !(r->is & PAGEMAP_GUARD)) {
		take_region(m, map, r);
		return;
	}
	if (r->is & PAGEMAP_GUARD)
		add_guard(m, r->start, r->end);
	drop_sent(m, m->sent, 0, map, r->start, r->end);
}

/* A quarter of it was sent: holes, which scan_changed has to walk, are not what it is made of. */
static bool dense(const struct memory *m, const struct map *v)
{
	uint64_t at = v->start / PAGE_BYTES, stop = v->end / PAGE_BYTES, run, have = 0, want = (stop - at) / 4;
	for (int i = 0; i < DENSE_LOOKS && (at = pageset_next(m->sent, at, stop, &run)) < stop; i++, at += run)
		if ((have += run) >= want)
			return true;
	return false;
}

/* The differences alone, where the tracker can tell them: this is in the pause, and scan_all costs 3 ms a GiB. */
static int scan_changed(struct memory *m, uint32_t map, bool *able, struct fault *f)
{
	const struct map *v = &m->maps.v[map];
	struct track_range r = range_of(v);
	*able = m->tracker->ops->scan_changed && v->kind == MAP_KIND_ANON && !m->saw_guard &&
		!(v->flags & MAP_FLAG_GUARD) && dense(m, v);
	while (*able && r.start < r.end) {
		size_t n;
		uint64_t start = r.start;
		if (m->tracker->ops->scan_changed(m->tracker, &r, m->regions, MEMORY_REGIONS, &n, &r.start, able, f) <
		    0)
			return fault_while(f, "scanning %llx-%llx", (unsigned long long)v->start,
					   (unsigned long long)v->end);
		if (!*able && start != v->start) /* what was taken so far would be taken twice */
			return fault_set(f, FAULT_PROCESS_GONE, "mappings of pid %d changed while it was stopped",
					 m->p->pid);
		for (size_t i = 0; *able && i < n; i++)
			take_changed_region(m, map, &m->regions[i]);
	}
	return 0;
}

static int scan_last(struct memory *m, uint32_t map, struct fault *f)
{
	const struct map *v = &m->maps.v[map];
	struct track_range r = range_of(v);
	uint64_t seen = v->start;
	bool done;
	if (scan_changed(m, map, &done, f) < 0)
		return -1;
	if (done)
		return 0;
	while (r.start < r.end) {
		size_t n;
		if (m->tracker->ops->scan_all(m->tracker, &r, m->regions, MEMORY_REGIONS, &n, &r.start, f) < 0)
			return fault_while(f, "scanning %llx-%llx", (unsigned long long)v->start,
					   (unsigned long long)v->end);
		for (size_t i = 0; i < n; i++)
			take_last_region(m, map, &seen, &m->regions[i]);
	}
	if (v->kind != MAP_KIND_FILE_SHARED)
		drop_sent(m, m->sent, 0, map, seen, v->end);
	return 0;
}

/* What of the object's mapping v is written: its pages into `dirty`. Only where the object has data, so that asking for
 * pages that are not in the page table costs no page tables for holes. */
static int scan_object_map(struct memory *m, struct shobj *o, const struct map *v, struct pageset *dirty,
			   struct fault *f)
{
	uint64_t from = v->pgoff, to = v->pgoff + (v->end - v->start), start, end;
	for (; shobj_data(o, from, to, &start, &end); from = end) {
		struct track_range r = range_of(v);
		r.shared = true;
		r.start = v->start + (start - v->pgoff);
		r.end = v->start + (end - v->pgoff);
		r.fresh = !m->last && m->fresh_maps[v - m->maps.v] && m->tracker->ops->begin;
		while (r.start < r.end) {
			size_t n;
			bool tracked = true;
			int ret = m->last ? m->tracker->ops->scan_all(m->tracker, &r, m->regions, MEMORY_REGIONS, &n,
								      &r.start, f)
					  : m->tracker->ops->scan(m->tracker, &r, false, m->regions, MEMORY_REGIONS, &n,
								  &r.start, &tracked, f);
			if (ret < 0)
				return -1;
			o->untracked |= !tracked;
			for (size_t i = 0; i < n; i++)
				if (m->regions[i].is & PAGEMAP_WRITTEN)
					pageset_add(dirty, (m->regions[i].start - v->start + v->pgoff) / PAGE_BYTES,
						    (m->regions[i].end - m->regions[i].start) / PAGE_BYTES);
		}
	}
	return 0;
}

/* All data, or what is not sent of it; what was sent and has no data any more is dropped. */
static void compare_object(struct memory *m, struct shobj *o, uint16_t space, bool all, struct pageset *dirty)
{
	uint64_t from = 0, start, end, size = (uint64_t)o->st.st_size;
	for (; shobj_data(o, from, size, &start, &end); from = end) {
		drop_sent(m, o->sent, space, ITEM_NO_MAP, from, start);
		uint64_t at = start / PAGE_BYTES, stop = end / PAGE_BYTES, run;
		if (all) {
			pageset_add(dirty, at, stop - at);
			continue;
		}
		while (at < stop) {
			uint64_t sent = pageset_next(o->sent, at, stop, &run);
			pageset_add(dirty, at, sent - at);
			at = sent + run;
		}
	}
	drop_sent(m, o->sent, space, ITEM_NO_MAP, from, (uint64_t)1 << 56);
}

static int scan_object(struct memory *m, size_t index, struct fault *f)
{
	struct shobj *o = &m->objects.v[index];
	uint16_t space = (uint16_t)(index + 1);
	struct pageset *dirty = pageset_new();
	int r = 0;
	for (size_t i = 0; r == 0 && i < m->maps.n; i++) {
		const struct map *v = &m->maps.v[i];
		/* What was opened for reading only is refused by the tracker, and can't be written by stores. */
		if (memory_kind_object(v->kind) && v->ino == o->st.st_ino && v->dev == o->st.st_dev &&
		    (v->flags & MAP_FLAG_MAYWRITE))
			r = scan_object_map(m, o, v, dirty, f);
	}
	if (r == 0 && (m->last || (m->tracker->ops->rounds && !o->untracked))) {
		if (o->resend || o->grown || m->last)
			compare_object(m, o, space, o->resend || o->untracked || !m->tracker->ops->rounds, dirty);
		o->resend = o->grown = false;
		uint64_t at = 0, end = (uint64_t)1 << 44, run;
		for (; (at = pageset_next(dirty, at, end, &run)) < end; at += run)
			push(m, ITEM_DATA, space, ITEM_NO_MAP, at * PAGE_BYTES, run);
	}
	pageset_free(dirty);
	return r;
}

int memory_scan_more(struct memory *m, struct fault *f)
{
	m->item_head = m->n_items = 0;
	size_t enough = m->last ? ITEMS_MAX : 1;
	for (; m->at_map < m->maps.n && m->n_items < enough; m->at_map++, m->at_addr = 0) {
		const struct map *v = &m->maps.v[m->at_map];
		if (!to_scan(m, v))
			continue;
		if (m->last) {
			if (scan_last(m, (uint32_t)m->at_map, f) < 0)
				return -1;
			continue;
		}
		if (!m->at_addr)
			m->at_addr = v->start;
		while (m->at_addr < v->end && m->n_items < enough)
			if (scan_window(m, (uint32_t)m->at_map, f) < 0)
				return -1;
		if (m->at_addr < v->end)
			return 0;
	}
	for (; m->at_map >= m->maps.n && m->at_object < m->objects.n && m->n_items < enough; m->at_object++)
		if (scan_object(m, m->at_object, f) < 0)
			return fault_while(f, "scanning shared memory (%s)",
					   m->objects.v[m->at_object].name ? m->objects.v[m->at_object].name
									   : "anonymous");
	return 0;
}

int memory_scan_guards(struct memory *m, size_t from_map, struct fault *f)
{
	for (size_t i = from_map; i < m->maps.n; i++) {
		const struct map *v = &m->maps.v[i];
		if (!memory_kind_private(v->kind) || !(v->flags & MAP_FLAG_GUARD))
			continue;
		struct pagemap_query q = { .start = v->start, .end = v->end, .need = PAGEMAP_GUARD };
		while (m->tracker->pm.guard && q.start < q.end) {
			size_t n;
			if (pagemap_scan(&m->tracker->pm, &q, m->regions, MEMORY_REGIONS, &n, &q.start) < 0)
				return track_fault(m->tracker, f);
			for (size_t k = 0; k < n; k++)
				add_guard(m, m->regions[k].start, m->regions[k].end);
		}
	}
	return 0;
}

static int look_map(struct memory *m, const struct map *v, uint64_t *pages, struct fault *f)
{
	struct track_range r = range_of(v);
	while (r.start < r.end) {
		size_t n;
		bool tracked;
		if (m->tracker->ops->scan(m->tracker, &r, true, m->regions, MEMORY_REGIONS, &n, &r.start, &tracked, f) <
		    0)
			return -1;
		for (size_t i = 0; i < n; i++)
			if (!(m->regions[i].is & PAGEMAP_ZERO))
				*pages += (m->regions[i].end - m->regions[i].start) / PAGE_BYTES;
	}
	return 0;
}

int memory_scan_look(struct memory *m, uint64_t *pages, struct fault *f)
{
	uint64_t total = 0;
	for (size_t i = 0; i < m->maps.n; i++) {
		const struct map *v = &m->maps.v[i];
		if (memory_kind_private(v->kind) || (memory_kind_object(v->kind) && (v->flags & MAP_FLAG_MAYWRITE)))
			if (look_map(m, v, &total, f) < 0)
				return -1;
	}
	for (size_t i = 0; i < m->objects.n; i++)
		if (m->objects.v[i].resend && m->tracker->ops->rounds)
			total += shobj_bytes(&m->objects.v[i]) / PAGE_BYTES;
	*pages = total;
	return 0;
}

/* Ranges for trackers that take a snapshot at the start of a round. */
static int begin_tracker(struct memory *m, struct fault *f)
{
	struct track_range *v = calloc(m->maps.n + 1, sizeof(*v));
	if (!v)
		return fault_errno(f, FAULT_NO_MEMORY, "keep a list of mappings");
	size_t n = 0;
	for (size_t i = 0; i < m->maps.n; i++)
		if (memory_kind_private(m->maps.v[i].kind) || memory_kind_object(m->maps.v[i].kind)) {
			v[n] = range_of(&m->maps.v[i]);
			v[n++].shared = memory_kind_object(m->maps.v[i].kind);
		}
	int r = track_begin(m->tracker, v, n, f);
	free(v);
	return r;
}

int memory_scan_begin(struct memory *m, struct fault *f)
{
	m->at_map = m->at_object = 0;
	m->at_addr = 0;
	m->window = WINDOW;
	m->item_head = m->n_items = 0;
	m->round_pages = m->zero_pages = 0;
	m->n_guards = 0;
	if (!m->last) {
		if (m->tracker->ops->rounds && memory_scan_look(m, &m->round_pages, f) < 0)
			return -1;
		return begin_tracker(m, f);
	}
	if (memory_scan_more(m, f) < 0)
		return -1;
	return memory_scan_guards(m, m->at_map, f);
}
