#include "readmem.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Pages are read to where they are sent from, behind a frame's head: no alignment to rely on. */
typedef uint64_t words __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint64_t word __attribute__((aligned(1), may_alias));

#if defined(__x86_64__) && !defined(__clang__) /* clang 14 gives the clones' resolver another name */
__attribute__((target_clones("avx2", "default")))
#endif
bool readmem_page_is_zero(const void *page)
{
	const words *w = page;
	if (*(const word *)page)
		return false;
	for (size_t i = 0; i < PAGE_BYTES / sizeof(words); i += 8) {
		words o = (w[i] | w[i + 1]) | (w[i + 2] | w[i + 3]) | (w[i + 4] | w[i + 5]) | (w[i + 6] | w[i + 7]);
		if (o[0] | o[1] | o[2] | o[3])
			return false;
	}
	return true;
}

static int gone(const struct process *p, struct fault *f)
{
	return fault_set(f, FAULT_PROCESS_GONE, "process %d (%s) exited while its memory was read", p->pid, p->comm);
}

/* One page after the other: rare. */
static void read_slowly(const struct process *p, uint64_t addr, size_t npages, char *buf, size_t page, uint64_t *absent)
{
	for (size_t i = 0; i < npages; i++, buf += PAGE_BYTES, addr += PAGE_BYTES) {
		if (p->memfd >= 0 && pread(p->memfd, buf, PAGE_BYTES, (off_t)addr) == (ssize_t)PAGE_BYTES)
			continue;
		memset(buf, 0, PAGE_BYTES);
		absent[(page + i) / 64] |= (uint64_t)1 << ((page + i) % 64);
	}
}

/* What process_vm_readv refused: whole if that goes, else page by page. */
static void read_piece(const struct process *p, uint64_t addr, size_t npages, char *buf, size_t page, uint64_t *absent)
{
	size_t len = npages * PAGE_BYTES;
	if (p->memfd < 0 || pread(p->memfd, buf, len, (off_t)addr) != (ssize_t)len)
		read_slowly(p, addr, npages, buf, page, absent);
}

int readmem_pieces(struct process *p, const struct readmem_piece *v, size_t n, void *buf, uint64_t *absent,
		   struct fault *f)
{
	char *at = buf;
	size_t done = 0; /* pages */
	while (n) {
		struct iovec remote[READMEM_PIECES], local;
		size_t total = 0, k = n < READMEM_PIECES ? n : READMEM_PIECES;
		for (size_t i = 0; i < k; i++) {
			size_t len = (size_t)v[i].npages * PAGE_BYTES;
			remote[i] = (struct iovec){ (void *)(uintptr_t)v[i].addr, len };
			total += len;
		}
		local = (struct iovec){ at, total };
		ssize_t got = process_vm_readv(p->pid, &local, 1, remote, k, 0);
		if (got < 0 && errno == ESRCH)
			return gone(p, f);
		if (got < 0 && errno != EFAULT)
			return fault_errno(f, FAULT_SYSTEM, "read memory of pid %d (%s)", p->pid, p->comm);
		size_t pages = got > 0 ? (size_t)got / PAGE_BYTES : 0;
		/* Whole pieces that were read, and the pages of the one it ended in. */
		while (k && pages >= v->npages) {
			pages -= v->npages;
			done += v->npages;
			at += (size_t)v->npages * PAGE_BYTES;
			v++, n--, k--;
		}
		if (!k)
			continue;
		read_piece(p, v->addr + pages * PAGE_BYTES, v->npages - pages, at + pages * PAGE_BYTES, done + pages,
			   absent);
		done += v->npages;
		at += (size_t)v->npages * PAGE_BYTES;
		v++, n--;
	}
	return 0;
}
