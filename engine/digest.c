#include "digest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "mapplan.h"
#include "pagemap.h"
#include "readmem.h"

#define REGIONS 1024

struct digest {
	struct process *p;
	struct pagemap pm;
	const struct range *masked;
	size_t n_masked;
	struct arena *a;
	Cpr__MemoryDigest **list;
	size_t n;
	char *buf; /* DIGEST_PIECE */
	struct pagemap_region *regions;
	XXH3_state_t *hash;
	uint64_t piece; /* start of the piece being hashed, aligned */
	uint64_t piece_min, piece_max;
	bool any, keep_zeroes;
};

static void flush(struct digest *d)
{
	if (!d->any)
		return;
	XXH128_hash_t h = XXH3_128bits_digest(d->hash);
	Cpr__MemoryDigest *e = arena_msg(d->a, Cpr__MemoryDigest, cpr__memory_digest);
	e->start = d->piece > d->piece_min ? d->piece : d->piece_min;
	e->end = d->piece + DIGEST_PIECE < d->piece_max ? d->piece + DIGEST_PIECE : d->piece_max;
	e->lo = h.low64;
	e->hi = h.high64;
	arena_push(d->a, d->n, d->list, e);
	d->any = false;
}

static void mask(const struct digest *d, uint64_t addr, char *buf, size_t len)
{
	for (size_t i = 0; i < d->n_masked; i++) {
		uint64_t from = d->masked[i].start > addr ? d->masked[i].start : addr;
		uint64_t to = d->masked[i].end < addr + len ? d->masked[i].end : addr + len;
		if (from < to)
			memset(buf + (from - addr), 0, to - from);
	}
}

static void add_page(struct digest *d, uint64_t at, const char *page)
{
	if (!d->keep_zeroes && readmem_page_is_zero(page))
		return;
	if (!d->any || d->piece != (at & ~(DIGEST_PIECE - 1))) {
		flush(d);
		d->piece = at & ~(DIGEST_PIECE - 1);
		XXH3_128bits_reset(d->hash);
		d->any = true;
	}
	XXH3_128bits_update(d->hash, &at, sizeof(at));
	XXH3_128bits_update(d->hash, page, PAGE_BYTES);
}

static int add_region(struct digest *d, uint64_t start, uint64_t end, struct fault *f)
{
	while (start < end) {
		uint64_t len = end - start < DIGEST_PIECE ? end - start : DIGEST_PIECE;
		uint64_t absent[DIGEST_PIECE / PAGE_BYTES / 64] = { 0 };
		struct readmem_piece piece = { start, (uint32_t)(len / PAGE_BYTES) };
		if (readmem_pieces(d->p, &piece, 1, d->buf, absent, f) < 0)
			return -1;
		mask(d, start, d->buf, len);
		for (uint64_t i = 0; i < len / PAGE_BYTES; i++)
			if (!(absent[i / 64] >> (i % 64) & 1))
				add_page(d, start + i * PAGE_BYTES, d->buf + i * PAGE_BYTES);
		start += len;
	}
	return 0;
}

static int add_vma(struct digest *d, const VmaEntry *e, struct fault *f)
{
	bool file = e->status & VMA_FILE_PRIVATE;
	struct pagemap_query q = {
		.start = e->start,
		.end = e->end,
		.lack = (file ? PAGEMAP_FILE : 0) | (d->pm.scan ? PAGEMAP_ZERO : 0),
		.any = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
	};
	d->keep_zeroes = file;
	d->piece_min = e->start;
	d->piece_max = e->end;
	while (q.start < q.end) {
		size_t n;
		if (pagemap_scan(&d->pm, &q, d->regions, REGIONS, &n, &q.start) < 0)
			return fault_errno(f, FAULT_PROCESS_GONE, "scan the page table of pid %d", d->p->pid);
		for (size_t i = 0; i < n; i++)
			if (add_region(d, d->regions[i].start, d->regions[i].end, f) < 0)
				return -1;
	}
	flush(d);
	return 0;
}

static int add_data(struct digest *d, int fd, size_t index, uint64_t start, uint64_t end, struct fault *f)
{
	for (uint64_t len; start < end; start += len) {
		len = DIGEST_PIECE - start % DIGEST_PIECE;
		if (len > end - start)
			len = end - start;
		ssize_t got = pread(fd, d->buf, len, (off_t)start);
		if (got < 0)
			return fault_errno(f, FAULT_SYSTEM, "read shared memory");
		memset(d->buf + got, 0, (PAGE_BYTES - (size_t)got % PAGE_BYTES) % PAGE_BYTES);
		for (ssize_t i = 0; i < got; i += (ssize_t)PAGE_BYTES)
			add_page(d, DIGEST_OBJECT(index, start + (uint64_t)i), d->buf + i);
		if ((uint64_t)got < len)
			return 0;
	}
	return 0;
}

static int add_object(struct digest *d, int object, size_t index, struct fault *f)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", object);
	auto_fd fd = open(path, O_RDONLY | O_CLOEXEC); /* an offset of its own */
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "open shared memory");
	d->keep_zeroes = false;
	d->piece_min = DIGEST_OBJECT(index, 0);
	d->piece_max = UINT64_MAX;
	for (off_t at = 0;;) {
		off_t data = lseek(fd, at, SEEK_DATA);
		if (data < 0)
			break;
		at = lseek(fd, data, SEEK_HOLE);
		if (at < 0 || add_data(d, fd, index, (uint64_t)data, (uint64_t)at, f) < 0)
			return at < 0 ? fault_errno(f, FAULT_SYSTEM, "look for data in shared memory") : -1;
	}
	flush(d);
	return 0;
}

static int run(struct digest *d, const MmEntry *mm, const int *fds, size_t n_fds, struct fault *f)
{
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i];
		if (!(e->status & VMA_SPECIAL) && (e->status & (VMA_ANON_PRIVATE | VMA_FILE_PRIVATE)) &&
		    add_vma(d, e, f) < 0)
			return fault_while(f, "digesting %llx-%llx", (unsigned long long)e->start,
					   (unsigned long long)e->end);
	}
	for (size_t i = 0; i < n_fds; i++)
		if (fds[i] >= 0 && add_object(d, fds[i], i, f) < 0)
			return fault_while(f, "digesting shared memory object %zu", i);
	return 0;
}

int digest_memory(struct process *p, const MmEntry *mm, const int *fds, size_t n_fds, const struct range *masked,
		  size_t n_masked, struct arena *a, Cpr__MemoryDigest ***out, size_t *n, struct fault *f)
{
	struct digest d = { .p = p, .masked = masked, .n_masked = n_masked, .a = a };
	if (pagemap_open(p->procfd, &d.pm) < 0)
		return fault_errno(f, FAULT_PROCESS_GONE, "open /proc/%d/pagemap", p->pid);
	d.buf = malloc(DIGEST_PIECE);
	d.regions = malloc(REGIONS * sizeof(*d.regions));
	d.hash = XXH3_createState();
	int r = d.buf && d.regions && d.hash ? run(&d, mm, fds, n_fds, f)
					     : fault_errno(f, FAULT_NO_MEMORY, "digest memory");
	XXH3_freeState(d.hash);
	free(d.regions);
	free(d.buf);
	pagemap_close(&d.pm);
	if (r < 0)
		return fault_while(f, "digesting the memory of pid %d (%s)", p->pid, p->comm);
	*out = d.list;
	*n = d.n;
	return 0;
}
