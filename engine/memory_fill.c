/*
 * Reading what a round's queue names, straight into the caller's buffer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memory_source.h"
#include "readmem.h"

#define BATCH_PAGES  4096u
#define BATCH_PIECES ((size_t)READMEM_PIECES)

/* A batch: pieces of the queue, and where their pages lie in the buffer. */
struct batch {
	size_t n, pages;
	struct item v[BATCH_PIECES];
	uint64_t absent[BATCH_PAGES / 64];
};

struct out {
	char *data;
	struct memory_segment *segs;
	size_t n_segs, n_pages;
};

/* As many items as the room lets, the last one perhaps in part. Each page may need a segment of its own. */
static void take_batch(struct memory *m, struct batch *b, size_t max_pages, size_t max_segs)
{
	size_t room = max_pages < BATCH_PAGES ? max_pages : BATCH_PAGES;
	b->n = b->pages = 0;
	memset(b->absent, 0, sizeof(b->absent));
	while (m->item_head < m->n_items && b->n < BATCH_PIECES && max_segs > 0) {
		struct item *it = &m->items[m->item_head];
		size_t take = it->npages;
		if (it->what == ITEM_DATA) {
			if (take > room)
				take = room;
			if (take > max_segs)
				take = max_segs;
			if (!take)
				return;
			room -= take;
			max_segs -= take;
			b->pages += take;
		} else {
			max_segs--;
		}
		b->v[b->n] = *it;
		b->v[b->n++].npages = (uint32_t)take;
		it->npages -= (uint32_t)take;
		it->addr += take * PAGE_BYTES;
		if (!it->npages)
			m->item_head++;
	}
}

static int read_object(struct memory *m, const struct item *it, char *buf, struct fault *f)
{
	size_t len = (size_t)it->npages * PAGE_BYTES, got = 0;
	while (got < len) {
		ssize_t n = pread(m->objects.v[it->space - 1].fd, buf + got, len - got, (off_t)(it->addr + got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fault_errno(f, FAULT_SYSTEM, "read shared memory of pid %d (%s)", m->p->pid, m->p->comm);
		if (n == 0)
			break;
		got += (size_t)n;
	}
	memset(buf + got, 0, len - got);
	return 0;
}

/* Neighbouring pieces of the address space are read by one call. */
static int read_batch(struct memory *m, struct batch *b, char *data, struct fault *f)
{
	struct readmem_piece pieces[BATCH_PIECES];
	size_t n = 0, pages = 0, first = 0;
	for (size_t i = 0; i <= b->n; i++) {
		const struct item *it = i < b->n ? &b->v[i] : NULL;
		if (it && it->what != ITEM_DATA)
			continue;
		if (it && !it->space) {
			pieces[n++] = (struct readmem_piece){ it->addr, it->npages };
			pages += it->npages;
			continue;
		}
		if (n) {
			/* `absent` counts from the first page of this call. */
			uint64_t absent[BATCH_PAGES / 64] = { 0 };
			if (readmem_pieces(m->p, pieces, n, data + first * PAGE_BYTES, absent, f) < 0)
				return -1;
			for (size_t k = 0; k < pages; k++)
				if (absent[k / 64] >> (k % 64) & 1)
					b->absent[(first + k) / 64] |= (uint64_t)1 << ((first + k) % 64);
			first += pages;
			n = pages = 0;
		}
		if (it) {
			if (read_object(m, it, data + first * PAGE_BYTES, f) < 0)
				return -1;
			first += it->npages;
		}
	}
	return 0;
}

/* `join`: may grow the segment before. */
static void add_segment(struct out *o, const struct item *it, uint64_t addr, size_t npages, uint16_t flags, bool join)
{
	struct memory_segment *s = o->n_segs ? &o->segs[o->n_segs - 1] : NULL;
	if (join && s && s->space == it->space && s->flags == flags &&
	    s->addr + (uint64_t)s->npages * PAGE_BYTES == addr && s->npages + npages < (1u << 20)) {
		s->npages += (uint32_t)npages;
		return;
	}
	o->segs[o->n_segs++] =
		(struct memory_segment){ .addr = addr, .npages = (uint32_t)npages, .space = it->space, .flags = flags };
}

static struct pageset *sent_of(struct memory *m, const struct item *it)
{
	return it->space ? m->objects.v[it->space - 1].sent : m->sent;
}

/* A page of zeroes: nothing where the destination has nothing yet; but in a private file mapping a missing page is the
 * file's. */
static void put_zero(struct memory *m, struct out *o, const struct item *it, uint64_t addr, bool *join)
{
	struct pageset *sent = sent_of(m, it);
	uint64_t page = addr / PAGE_BYTES;
	bool filelike = !it->space && memory_kind_filelike(m->maps.v[it->map].kind);
	m->zero_pages++;
	if (filelike)
		pageset_add(sent, page, 1);
	else if (pageset_has(sent, page))
		pageset_remove(sent, page, 1);
	else
		return;
	add_segment(o, it, addr, 1, MEMORY_SEGMENT_ZERO, *join);
	*join = true;
}

static void put_data(struct memory *m, struct out *o, const struct item *it, const char *from, uint64_t addr, size_t n,
		     bool *join)
{
	char *to = o->data + o->n_pages * PAGE_BYTES;
	if (to != from)
		memmove(to, from, n * PAGE_BYTES);
	o->n_pages += n;
	if (it->space || m->maps.v[it->map].kind != MAP_KIND_FILE_SHARED)
		pageset_add(sent_of(m, it), addr / PAGE_BYTES, n);
	add_segment(o, it, addr, n, 0, *join);
	*join = true;
}

static void put_item(struct memory *m, struct batch *b, struct out *o, const struct item *it, size_t *page,
		     bool joinable)
{
	bool join = joinable;
	const char *base = o->data + *page * PAGE_BYTES;
	for (size_t i = 0; i < it->npages;) {
		size_t at = *page + i, run = 0;
		uint64_t addr = it->addr + i * PAGE_BYTES;
		if (b->absent[at / 64] >> (at % 64) & 1) {
			i++; /* unmapped since it was scanned: the next list of mappings says so */
			continue;
		}
		while (i + run < it->npages && !(b->absent[(at + run) / 64] >> ((at + run) % 64) & 1) &&
		       !readmem_page_is_zero(base + (i + run) * PAGE_BYTES))
			run++;
		if (run) {
			put_data(m, o, it, base + i * PAGE_BYTES, addr, run, &join);
			i += run;
		} else {
			put_zero(m, o, it, addr, &join);
			i++;
		}
	}
	*page += it->npages;
}

static void put_batch(struct memory *m, struct batch *b, struct out *o)
{
	size_t page = 0;
	uint32_t map = 0;
	for (size_t i = 0; i < b->n; i++) {
		const struct item *it = &b->v[i];
		bool join = i && it->map == map; /* a segment stays in one mapping */
		map = it->map;
		if (it->what == ITEM_DATA) {
			put_item(m, b, o, it, &page, join);
			continue;
		}
		if (it->what == ITEM_ZERO)
			pageset_remove(sent_of(m, it), it->addr / PAGE_BYTES, it->npages);
		add_segment(o, it, it->addr, it->npages,
			    it->what == ITEM_ZERO ? MEMORY_SEGMENT_ZERO : MEMORY_SEGMENT_DISCARD, join);
	}
}

static int check_absent(const struct memory *m, const struct batch *b, struct fault *f)
{
	for (size_t i = 0; m->last && i < (b->pages + 63) / 64; i++)
		if (b->absent[i])
			return fault_set(f, FAULT_SYSTEM, "a page of pid %d (%s) is there but can't be read", m->p->pid,
					 m->p->comm);
	return 0;
}

int memory_fill(struct memory *m, void *data, size_t max_pages, struct memory_segment *segs, size_t max_segs,
		size_t *n_pages, size_t *n_segs, struct fault *f)
{
	struct out o = { .data = data, .segs = segs };
	struct batch b;
	while (!o.n_segs) {
		if (m->item_head == m->n_items) {
			if (memory_scan_more(m, f) < 0)
				return fault_while(f, "looking for written pages of pid %d (%s)", m->p->pid,
						   m->p->comm);
			if (!m->n_items)
				break;
		}
		take_batch(m, &b, max_pages, max_segs);
		if (!b.n)
			return fault_set(f, FAULT_INTERNAL, "no room for a single page");
		if (read_batch(m, &b, data, f) < 0 || check_absent(m, &b, f) < 0)
			return fault_while(f, "reading pages of pid %d (%s)", m->p->pid, m->p->comm);
		put_batch(m, &b, &o);
	}
	*n_pages = o.n_pages;
	*n_segs = o.n_segs;
	return 0;
}
