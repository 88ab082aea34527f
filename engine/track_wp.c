/*
 * Tracking by write protection: a userfaultfd of the process, made in it by remote call and taken out, with
 * WP_ASYNC: a store into a protected page lifts the protection, and nobody has to answer. PAGEMAP_SCAN reads
 * and protects in one step. When we die the last descriptor closes and all protection ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "track.h"

/* linux/userfaultfd.h of 6.4 and 6.7 */
#define FEATURE_WP_UNPOPULATED (1 << 13)
#define FEATURE_WP_ASYNC       (1 << 15)
#define FEATURES \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC)

#define HUGE_PAGE ((uintptr_t)2 << 20)

struct wp {
	struct tracker t;
	int uffd;
};

static int enable(int uffd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };
	return ioctl(uffd, UFFDIO_API, &api);
}

static int watch(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register reg = { .range = { start, end - start }, .mode = UFFDIO_REGISTER_MODE_WP };
	return ioctl(uffd, UFFDIO_REGISTER, &reg);
}

/* Pages of the range that were written, or -1. */
static int written(const struct pagemap *pm, uint64_t start, uint64_t end)
{
	struct pagemap_region v[8];
	size_t n;
	uint64_t walked;
	struct pagemap_query q = {
		.start = start,
		.end = end,
		.need = PAGEMAP_WRITTEN,
		.any = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
		.give = PAGEMAP_WRITTEN,
		.protect = true,
		.must_track = true,
	};
	if (pagemap_scan(pm, &q, v, ARRAY_LEN(v), &n, &walked) < 0 || walked != end)
		return -1;
	int pages = 0;
	for (size_t i = 0; i < n; i++)
		pages += (int)((v[i].end - v[i].start) / PAGE_BYTES);
	return pages;
}

/* Two of four pages are there at first; then one of these is written, and one that was not there. */
static bool test_on(int uffd, const struct pagemap *pm, volatile char *mem, char *why, size_t len)
{
	uint64_t start = (uint64_t)(uintptr_t)mem, end = start + 4 * PAGE_BYTES;
	mem[0] = mem[PAGE_BYTES] = 1;
	if (watch(uffd, start, end) < 0)
		return snprintf(why, len, "registering a page: %s", strerror(errno)), false;
	int first = written(pm, start, end), idle = written(pm, start, end);
	mem[PAGE_BYTES] = 2;
	mem[3 * PAGE_BYTES] = 3;
	int two = written(pm, start, end), end_state = written(pm, start, end);
	if (first == 2 && idle == 0 && two == 2 && end_state == 0 && mem[PAGE_BYTES] == 2 && mem[3 * PAGE_BYTES] == 3)
		return true;
	snprintf(why, len, "a page of our own is not reported as written (%d %d %d %d)", first, idle, two, end_state);
	return false;
}

static bool wp_test(char *why, size_t len)
{
	auto_fd uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		return snprintf(why, len, "userfaultfd: %s", strerror(errno)), false;
	if (enable(uffd) < 0)
		return snprintf(why, len, "userfaultfd without asynchronous write protection (Linux 6.7)"), false;
	auto_fd self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct pagemap pm;
	if (self < 0 || pagemap_open(self, &pm) < 0)
		return snprintf(why, len, "/proc/self/pagemap: %s", strerror(errno)), false;
	bool ok = false;
	char *mem = mmap(NULL, 4 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!pm.scan)
		snprintf(why, len, "no PAGEMAP_SCAN (Linux 6.7)");
	else if (mem == MAP_FAILED)
		snprintf(why, len, "mmap: %s", strerror(errno));
	else
		ok = test_on(uffd, &pm, mem, why, len);
	if (mem != MAP_FAILED)
		munmap(mem, 4 * PAGE_BYTES);
	pagemap_close(&pm);
	return ok;
}

static void wp_close(struct tracker *t)
{
	struct wp *w = (struct wp *)t;
	util_close(&w->uffd);
	pagemap_close(&t->pm);
	free(w);
}

/* Is a page that is dropped after it was protected reported as written, also where its page table has gone or never was?
 * Documented nowhere: asked once in this process's life, of 4 MiB of our own. */
static bool drops_on(int uffd, const struct pagemap *pm, char *mem)
{
	uint64_t start = (uint64_t)(uintptr_t)mem, middle = start + HUGE_PAGE, end = start + 2 * HUGE_PAGE, walked;
	struct pagemap_region v[8];
	size_t n;
	bool page = false, hole = false;
	madvise(mem, 2 * HUGE_PAGE, MADV_NOHUGEPAGE);
	mem[0] = mem[PAGE_BYTES] = 1;
	if (watch(uffd, start, end) < 0 || written(pm, start, end) < 0)
		return false;
	madvise(mem + PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
	struct pagemap_query q = { .start = start, .end = end, .must_track = true };
	q.need = q.give = PAGEMAP_WRITTEN;
	if (pagemap_scan(pm, &q, v, ARRAY_LEN(v), &n, &walked) < 0 || walked != end)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (v[i].start <= start) /* the page that is as it was */
			return false;
		page |= v[i].start <= start + PAGE_BYTES && v[i].end >= start + 2 * PAGE_BYTES;
		hole |= v[i].start <= middle && v[i].end >= end;
	}
	return page && hole;
}

static bool sees_drops(void)
{
	static int known = -1;
	if (known >= 0)
		return known;
	known = 0;
	auto_fd uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	auto_fd self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct pagemap pm;
	if (uffd < 0 || self < 0 || enable(uffd) < 0 || pagemap_open(self, &pm) < 0)
		return false;
	char *mem = mmap(NULL, 3 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem != MAP_FAILED) {
		uintptr_t at = ((uintptr_t)mem + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
		known = drops_on(uffd, &pm, (char *)at);
		munmap(mem, 3 * HUGE_PAGE);
	}
	pagemap_close(&pm);
	return known;
}

int track_wp_adopt(struct process *p, int uffd, struct tracker **out, struct fault *f)
{
	struct wp *w = calloc(1, sizeof(*w));
	if (!w) {
		util_close(&uffd);
		return fault_errno(f, FAULT_NO_MEMORY, "open dirty tracking");
	}
	w->uffd = uffd;
	sees_drops(); /* now, not in the pause */
	if (enable(uffd) < 0)
		fault_errno(f, FAULT_KERNEL, "switch on write tracking of pid %d", p->pid);
	else if (track_init(&w->t, &track_wp_async, p, f) == 0) {
		*out = &w->t;
		return 0;
	}
	util_close(&w->uffd);
	free(w);
	return -1;
}

/* The descriptor table of the process is full: its soft limit goes up for the moment of the call. */
static int make_with_limit(struct remote *r, int flags, long *ret, struct fault *f)
{
	pid_t pid = remote_process(r)->pid;
	struct rlimit was, now;
	uint64_t at = remote_scratch(r);
	long set;
	if (REMOTE(r, pid, &set, f, SYS_prlimit64, 0, RLIMIT_NOFILE, 0, at) < 0 || set < 0 ||
	    remote_get(r, 0, &was, sizeof(was), f) < 0)
		return -1;
	now = was;
	now.rlim_cur = was.rlim_max;
	if (remote_put(r, 0, &now, sizeof(now), f) < 0 ||
	    REMOTE(r, pid, &set, f, SYS_prlimit64, 0, RLIMIT_NOFILE, at, 0) < 0 ||
	    REMOTE(r, pid, ret, f, SYS_userfaultfd, (uint64_t)flags) < 0 ||
	    remote_put(r, 0, &was, sizeof(was), f) < 0 ||
	    REMOTE(r, pid, &set, f, SYS_prlimit64, 0, RLIMIT_NOFILE, at, 0) < 0)
		return -1;
	return 0;
}

static int make_uffd(struct remote *r, long *ret, struct fault *f)
{
	pid_t pid = remote_process(r)->pid;
	int flags = O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY;
	if (REMOTE(r, pid, ret, f, SYS_userfaultfd, (uint64_t)flags) < 0)
		return -1;
	if (*ret == -EMFILE && make_with_limit(r, flags, ret, f) < 0)
		return fault_while(f, "raising the descriptor limit of pid %d for a moment", pid);
	if (*ret == -EPERM && REMOTE(r, pid, ret, f, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK) < 0)
		return -1;
	return 0;
}

static int wp_open(struct process *p, struct remote *r, struct tracker **out, struct fault *f)
{
	long fd, closed;
	if (make_uffd(r, &fd, f) < 0)
		return fault_while(f, "making a userfaultfd in pid %d (%s)", p->pid, p->comm);
	if (fd < 0)
		return fault_neg(f, FAULT_KERNEL, fd, "make a userfaultfd in pid %d (%s)", p->pid, p->comm);
	auto_fd uffd = process_getfd(p, (int)fd, f);
	if (REMOTE(r, p->pid, &closed, uffd < 0 ? NULL : f, SYS_close, (uint64_t)fd) < 0 || uffd < 0)
		return fault_while(f, "taking the userfaultfd out of pid %d (%s)", p->pid, p->comm);
	return track_wp_adopt(p, take_fd(&uffd), out, f);
}

static void fill_query(const struct track_range *r, struct pagemap_query *q)
{
	*q = (struct pagemap_query){
		.start = r->start,
		.end = r->end,
		.lack = r->private_file ? PAGEMAP_FILE : 0,
		/* Without this a sparse mapping of 64 GiB costs 300 ms and 112 MB of page tables (p1e). */
		.any = r->shared ? 0 : PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
		.give = PAGEMAP_WRITTEN | PAGEMAP_ZERO | PAGEMAP_GUARD,
	};
}

/* The scan refuses a range that is not registered: new, moved, replaced. As a scan that fails half-way has protected
 * pages without reporting them, all of the range counts as written then, to its end. */
static int wp_scan(struct tracker *t, struct track_range *r, bool look, struct pagemap_region *v, size_t max, size_t *n,
		   uint64_t *walked, bool *tracked, struct fault *f)
{
	struct pagemap_query q;
	fill_query(r, &q);
	q.protect = q.must_track = !look;
	*tracked = true;
	for (int attempt = 0; attempt < 2; attempt++) {
		q.need = r->fresh ? 0 : PAGEMAP_WRITTEN;
		if (pagemap_scan(&t->pm, &q, v, max, n, walked) == 0) {
			for (size_t i = 0; i < *n; i++)
				v[i].is |= PAGEMAP_WRITTEN;
			return 0;
		}
		if (errno != EPERM)
			return track_fault(t, f);
		if (attempt || watch(((struct wp *)t)->uffd, r->map.start, r->map.end) < 0)
			break;
		r->fresh = true;
	}
	if (errno == ENOMEM)
		return track_fault(t, f);
	*tracked = false; /* gone again, changing under our eyes, or of a kind that can't be tracked */
	*n = 0;
	*walked = r->end;
	return 0;
}

static int wp_scan_all(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max, size_t *n,
		       uint64_t *walked, struct fault *f)
{
	struct pagemap_query q;
	fill_query(r, &q);
	if (r->shared)
		q.need = PAGEMAP_WRITTEN;
	else
		q.any |= PAGEMAP_GUARD;
	q.must_track = true;
	if (pagemap_scan(&t->pm, &q, v, max, n, walked) == 0)
		return 0;
	if (errno != EPERM)
		return track_fault(t, f);
	q.must_track = false;
	q.need = 0;
	if (pagemap_scan(&t->pm, &q, v, max, n, walked) < 0)
		return track_fault(t, f);
	for (size_t i = 0; i < *n; i++)
		v[i].is |= PAGEMAP_WRITTEN;
	return 0;
}

static int wp_scan_changed(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max,
			   size_t *n, uint64_t *walked, bool *able, struct fault *f)
{
	struct pagemap_query q = { .start = r->start, .end = r->end, .need = PAGEMAP_WRITTEN, .must_track = true };
	q.give = PAGEMAP_WRITTEN | PAGEMAP_PRESENT | PAGEMAP_SWAPPED | PAGEMAP_ZERO | PAGEMAP_GUARD;
	*able = sees_drops();
	if (!*able || pagemap_scan(&t->pm, &q, v, max, n, walked) == 0)
		return 0;
	*able = false;
	return errno == EPERM ? 0 : track_fault(t, f);
}

const struct tracker_ops track_wp_async = {
	.name = "wp-async",
	.rounds = true,
	.self_test = wp_test,
	.open = wp_open,
	.scan = wp_scan,
	.scan_all = wp_scan_all,
	.scan_changed = wp_scan_changed,
	.close = wp_close,
};
