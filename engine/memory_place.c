/*
 * Pages from the source, straight to where they will live. Every address is from outside and is checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory_dest.h"

#define PIECES 1024

/* Writes that go by one process_vm_writev: data is contiguous, places are not. */
struct writer {
	struct memory_target *t;
	const char *data; /* of the first piece */
	size_t n, bytes;
	struct iovec v[PIECES];
	struct calls_list drops; /* madvise calls, at the end */
};

static const char zeroes[PAGE_BYTES * 16] __attribute__((aligned(4096)));

static int write_forced(struct memory_target *t, uint64_t addr, const char *data, size_t len, struct fault *f)
{
	while (len) {
		ssize_t n = pwrite(t->p->memfd, data, len, (off_t)addr);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fault_errno(f, errno == ENOMEM ? FAULT_NO_MEMORY : FAULT_SYSTEM,
					   "write %zu bytes at %llx of pid %d", len, (unsigned long long)addr,
					   t->p->pid);
		addr += (uint64_t)n;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int flush(struct writer *w, struct fault *f)
{
	size_t at = 0;
	while (at < w->n) {
		struct iovec local = { (void *)w->data, w->bytes };
		ssize_t n = process_vm_writev(w->t->p->pid, &local, 1, w->v + at, w->n - at, 0);
		if (n < 0 && errno == ESRCH)
			return fault_set(f, FAULT_PROCESS_GONE, "the vessel %d is gone", w->t->p->pid);
		size_t done = n > 0 ? (size_t)n : 0;
		w->data += done;
		w->bytes -= done;
		while (at < w->n && done >= w->v[at].iov_len)
			done -= w->v[at++].iov_len;
		if (at == w->n)
			break;
		/* A page that we took to be there is not: it has to be made by a fault. */
		if (w->t->uffd >= 0) {
			w->v[at].iov_base = (char *)w->v[at].iov_base + done;
			w->v[at].iov_len -= done;
			target_fresh_close(w->t);
			continue;
		}
		/* Refused in the middle (no memory, or a protection of which we don't know): the piece it stopped in goes
		 * the other way, which says why when that fails, too. */
		uint64_t addr = (uint64_t)(uintptr_t)w->v[at].iov_base + done;
		size_t rest = w->v[at].iov_len - done;
		if (write_forced(w->t, addr, w->data, rest, f) < 0)
			return -1;
		w->data += rest;
		w->bytes -= rest;
		at++;
	}
	w->n = w->bytes = 0;
	return 0;
}

static int put(struct writer *w, uint64_t addr, const char *data, size_t len, struct fault *f)
{
	if (w->n == PIECES || (w->n && w->data + w->bytes != data))
		if (flush(w, f) < 0)
			return -1;
	if (!w->n)
		w->data = data;
	w->bytes += len;
	struct iovec *last = w->n ? &w->v[w->n - 1] : NULL;
	if (last && (uint64_t)(uintptr_t)last->iov_base + last->iov_len == addr)
		last->iov_len += len;
	else
		w->v[w->n++] = (struct iovec){ (void *)(uintptr_t)addr, len };
	return 0;
}

/* Of a private mapping: what is not there yet goes the fast way. */
static int put_private(struct writer *w, uint64_t addr, const char *data, size_t len, struct fault *f)
{
	while (len) {
		bool fresh;
		size_t n = target_fresh_run(w->t, addr, len, &fresh), done = 0;
		if (fresh)
			done = target_fresh_copy(w->t, addr, data, n);
		if (!done) {
			done = fresh ? PAGE_BYTES : n;
			if (put(w, addr, data, done, f) < 0)
				return -1;
		}
		addr += done;
		data += done;
		len -= done;
	}
	return 0;
}

/* A shared mapping that is not writable now: /proc/PID/mem is refused there. */
static int write_shared(struct memory_target *t, const VmaEntry *e, uint64_t addr, const char *data, size_t len,
			struct fault *f)
{
	struct calls_list l = { 0 };
	target_call(&l, SYS_mprotect, e->start, e->end - e->start, e->prot | PROT_READ | PROT_WRITE, 0, 0, 0);
	if (target_run(t, &l, "make a mapping writable", f) < 0 || write_forced(t, addr, data, len, f) < 0)
		return -1;
	target_call(&l, SYS_mprotect, e->start, e->end - e->start, e->prot, 0, 0, 0);
	return target_run(t, &l, "protect a mapping again", f);
}

static int write_page_range(struct writer *w, const VmaEntry *e, uint64_t addr, const char *data, size_t len,
			    struct fault *f)
{
	if ((e->prot & PROT_WRITE) && !(e->prot & PROT_EXEC))
		return put_private(w, addr, data, len, f);
	if ((e->flags & MAP_SHARED) && !(e->prot & PROT_WRITE))
		return write_shared(w->t, e, addr, data, len, f);
	return write_forced(w->t, addr, data, len, f);
}

static int write_zeroes(struct writer *w, const VmaEntry *e, uint64_t addr, uint64_t len, struct fault *f)
{
	while (len) {
		size_t n = len < sizeof(zeroes) ? (size_t)len : sizeof(zeroes);
		if (write_page_range(w, e, addr, zeroes, n, f) < 0)
			return -1;
		addr += n;
		len -= n;
	}
	return 0;
}

static int bad(const struct memory_segment *s, const char *why, struct fault *f)
{
	return fault_set(f, FAULT_PROTOCOL, "pages for %llx (%u pages, space %u, flags %u): %s",
			 (unsigned long long)s->addr, s->npages, s->space, s->flags, why);
}

static int place_private(struct writer *w, const struct memory_segment *s, const char *data, struct fault *f)
{
	uint64_t len = (uint64_t)s->npages * PAGE_BYTES;
	const VmaEntry *e = mapplan_find(w->t->mm, s->addr);
	if (!e || s->addr + len > e->end)
		return bad(s, "not in one mapping", f);
	bool own = e->status & (VMA_ANON_PRIVATE | VMA_FILE_PRIVATE);
	bool file = (e->status & VMA_FILE_SHARED) && (e->vm_flags & MAP_FLAG_MAYWRITE);
	if ((e->status & VMA_SPECIAL) || (!own && !file))
		return bad(s, "a mapping that takes no pages", f);
	if (!s->flags)
		return write_page_range(w, e, s->addr, data, len, f);
	if ((s->flags & MEMORY_SEGMENT_ZERO) && !(e->status & VMA_ANON_PRIVATE))
		return write_zeroes(w, e, s->addr, len, f);
	if (!own)
		return bad(s, "a file is not dropped", f);
	target_fresh_dropped(w->t, s->addr, len);
	target_call(&w->drops, SYS_madvise, s->addr, len, MADV_DONTNEED, 0, 0, 0);
	return 0;
}

/* Where the vessel has page `offset` of an object writable, and how far that goes. */
static int object_place(struct writer *w, size_t object, uint64_t offset, uint64_t *addr, uint64_t *len,
			struct fault *f)
{
	const MmEntry *mm = w->t->mm;
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i];
		if (!(e->status & VMA_ANON_SHARED) || e->shmid != object + 1 || !(e->prot & PROT_WRITE) ||
		    offset < e->pgoff || offset - e->pgoff >= e->end - e->start)
			continue;
		*addr = e->start + (offset - e->pgoff);
		*len = e->end - *addr;
		return 0;
	}
	/* The calls behind it need the vessel for themselves. */
	if (flush(w, f) < 0 || target_window(w->t, object, f) < 0)
		return -1;
	*addr = w->t->objects[object].window.start + offset;
	*len = w->t->objects[object].window.end - *addr;
	return 0;
}

static int place_object(struct writer *w, const struct memory_segment *s, const char *data, struct fault *f)
{
	struct memory_target *t = w->t;
	size_t object = s->space - 1u;
	uint64_t len = (uint64_t)s->npages * PAGE_BYTES, offset = s->addr;
	if (object >= t->n_objects || t->objects[object].fd < 0)
		return bad(s, "no such shared memory", f);
	uint64_t size = (t->objects[object].size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
	if (s->flags) { /* zero or dropped: the same; also what lies behind a file that was cut */
		if (fallocate(t->objects[object].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			      (off_t)len) < 0)
			return fault_errno(f, FAULT_SYSTEM, "drop pages of shared memory");
		return 0;
	}
	if (offset >= size || len > size - offset)
		return bad(s, "behind the end of the shared memory", f);
	while (len) {
		uint64_t addr, room;
		if (object_place(w, object, offset, &addr, &room, f) < 0)
			return -1;
		uint64_t n = len < room ? len : room;
		if (put(w, addr, data, n, f) < 0)
			return -1;
		offset += n;
		data += n;
		len -= n;
	}
	return 0;
}

static int check(const struct memory_target *t, size_t n_pages, const struct memory_segment *segs, size_t n_segs,
		 struct fault *f)
{
	uint64_t pages = 0;
	if (!t->mm)
		return fault_set(f, FAULT_PROTOCOL, "pages before the first list of mappings");
	for (size_t i = 0; i < n_segs; i++) {
		const struct memory_segment *s = &segs[i];
		if (s->addr % PAGE_BYTES || !s->npages || s->addr >> 56)
			return bad(s, "not a range of pages", f);
		if (s->flags > MEMORY_SEGMENT_DISCARD || s->flags == (MEMORY_SEGMENT_ZERO | MEMORY_SEGMENT_DISCARD))
			return bad(s, "unknown flags", f);
		pages += s->flags ? 0 : s->npages;
	}
	if (pages != n_pages)
		return fault_set(f, FAULT_PROTOCOL, "segments for %llu pages with %zu pages of data",
				 (unsigned long long)pages, n_pages);
	return 0;
}

int memory_target_place(struct memory_target *t, const void *data, size_t n_pages, const struct memory_segment *segs,
			size_t n_segs, struct fault *f)
{
	struct writer w = { .t = t };
	const char *from = data;
	if (check(t, n_pages, segs, n_segs, f) < 0)
		return -1;
	int r = 0;
	for (size_t i = 0; r == 0 && i < n_segs; i++) {
		r = segs[i].space ? place_object(&w, &segs[i], from, f) : place_private(&w, &segs[i], from, f);
		if (!segs[i].flags)
			from += (size_t)segs[i].npages * PAGE_BYTES;
	}
	if (r == 0)
		r = flush(&w, f);
	if (r == 0)
		r = target_run(t, &w.drops, "drop pages", f);
	free(w.drops.v);
	return r < 0 ? fault_while(f, "placing pages of pid %d", t->p->pid) : 0;
}
