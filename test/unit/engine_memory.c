/*
 * A process with every kind of mapping, moved into a vessel in rounds while it writes, then compared: byte by byte,
 * mapping by mapping, flag by flag.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "readmem.h"

#define MIB	   ((size_t)1 << 20)
#define RW	   (PROT_READ | PROT_WRITE)
#define ANON	   (MAP_PRIVATE | MAP_ANONYMOUS)
#define MAX_PAGES  512
#define MAX_SEGS   1024
#define GUARD	   102 /* MADV_GUARD_INSTALL */
#define ROUND_SIZE ((size_t)48 * MIB)

static char file_path[] = "/var/tmp/cpr-memory-XXXXXX";

/* The victim. */

struct victim_memory {
	char *big, *thp, *sparse, *file, *file_shared, *shm, *memfd, *memfd_alias, *changing, *priv_memfd, *text, *low;
	int fd_only, memfd_fd;
};

static void fill(char *p, size_t len, unsigned seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
	for (size_t i = 0; i + 8 <= len; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(p + i, &x, 8);
	}
}

static char *map(size_t len, int prot, int flags, int fd, off_t off)
{
	char *p = mmap(NULL, len, prot, flags, fd, off);
	if (p == MAP_FAILED)
		_exit(90);
	return p;
}

static void make_anonymous(struct victim_memory *v)
{
	v->big = map(ROUND_SIZE, RW, ANON, -1, 0);
	fill(v->big, ROUND_SIZE / 2, 1);
	v->thp = map(8 * MIB, RW, ANON, -1, 0);
	madvise(v->thp, 8 * MIB, MADV_HUGEPAGE);
	fill(v->thp, 8 * MIB, 2);
	v->sparse = map((size_t)64 << 30, RW, ANON | MAP_NORESERVE, -1, 0);
	for (size_t i = 0; i < 64; i++)
		fill(v->sparse + i * ((size_t)1 << 30), 5000, (unsigned)i);
	char *none = map(16 * PAGE_BYTES, RW, ANON, -1, 0);
	fill(none, 16 * PAGE_BYTES, 3);
	mprotect(none + 4 * PAGE_BYTES, 4 * PAGE_BYTES, PROT_NONE);
	mprotect(none + 8 * PAGE_BYTES, 4 * PAGE_BYTES, PROT_WRITE);
	mprotect(none + 12 * PAGE_BYTES, 4 * PAGE_BYTES, PROT_READ);
	char *down = map(64 * PAGE_BYTES, RW, ANON, -1, 0);
	munmap(down, 64 * PAGE_BYTES);
	down = mmap(down + 32 * PAGE_BYTES, 16 * PAGE_BYTES, RW, ANON | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	fill(down, 16 * PAGE_BYTES, 4);
	char *advised = map(64 * PAGE_BYTES, RW, ANON, -1, 0);
	static const int advice[] = { MADV_DONTFORK,   MADV_DONTDUMP, MADV_WIPEONFORK,
				      MADV_SEQUENTIAL, MADV_RANDOM,   MADV_NOHUGEPAGE };
	for (size_t i = 0; i < ARRAY_LEN(advice); i++)
		madvise(advised + i * 8 * PAGE_BYTES, 8 * PAGE_BYTES, advice[i]);
	fill(advised, 64 * PAGE_BYTES, 5);
	char *locked = map(8 * PAGE_BYTES, RW, ANON, -1, 0);
	mlock(locked + 2 * PAGE_BYTES, 2 * PAGE_BYTES);
	mlock2(locked + 4 * PAGE_BYTES, 2 * PAGE_BYTES, MLOCK_ONFAULT);
	fill(locked, 8 * PAGE_BYTES, 6);
	char *guarded = map(16 * PAGE_BYTES, RW, ANON, -1, 0);
	fill(guarded, 16 * PAGE_BYTES, 7);
	madvise(guarded + 4 * PAGE_BYTES, 2 * PAGE_BYTES, GUARD);
	v->text = map(4 * PAGE_BYTES, RW, ANON, -1, 0);
	fill(v->text, 4 * PAGE_BYTES, 8);
	mprotect(v->text, 4 * PAGE_BYTES, PROT_READ | PROT_EXEC);
	v->changing = map(64 * PAGE_BYTES, RW, ANON, -1, 0);
	fill(v->changing, 64 * PAGE_BYTES, 9);
	char *heap = sbrk(1 * MIB);
	fill(heap, 512 * 1024, 10);
	/* Two neighbours that are alike and not one: written apart, then moved together. */
	char *a = map(8 * PAGE_BYTES, RW, ANON, -1, 0), *b = map(4 * PAGE_BYTES, RW, ANON, -1, 0);
	fill(b, 4 * PAGE_BYTES, 11);
	fill(a, 4 * PAGE_BYTES, 12);
	mremap(b, 4 * PAGE_BYTES, 4 * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, a + 4 * PAGE_BYTES);
}

static void make_files(struct victim_memory *v)
{
	int fd = open(file_path, O_RDWR), ro = open(file_path, O_RDONLY);
	v->file = map(32 * PAGE_BYTES, RW, MAP_PRIVATE, ro, 4 * PAGE_BYTES);
	fill(v->file + 2 * PAGE_BYTES, 2 * PAGE_BYTES, 20);
	memset(v->file + 20 * PAGE_BYTES, 0, PAGE_BYTES); /* zeroes where the file has none */
	mprotect(v->file + 16 * PAGE_BYTES, 16 * PAGE_BYTES, PROT_READ);
	v->file_shared = map(16 * PAGE_BYTES, RW, MAP_SHARED, fd, 0);
	map(16 * PAGE_BYTES, PROT_READ, MAP_SHARED, ro, 0);
	close(fd);
	close(ro);
	v->shm = map(4 * MIB, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fill(v->shm + MIB, MIB, 21);
	mprotect(v->shm + MIB, PAGE_BYTES, PROT_READ);
	v->memfd_fd = memfd_create("shared one", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ftruncate(v->memfd_fd, 4 * MIB);
	v->memfd = map(2 * MIB, RW, MAP_SHARED, v->memfd_fd, 0);
	v->memfd_alias = map(MIB, RW, MAP_SHARED, v->memfd_fd, MIB);
	v->priv_memfd = map(MIB, RW, MAP_PRIVATE, v->memfd_fd, 0);
	fill(v->memfd, MIB, 22);
	fill(v->priv_memfd + 4 * PAGE_BYTES, PAGE_BYTES, 23);
	v->fd_only = memfd_create("descriptor only", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char block[8192];
	fill(block, sizeof(block), 24);
	pwrite(v->fd_only, block, sizeof(block), 65536);
	ftruncate(v->fd_only, 200000);
	int sealed = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	write(sealed, block, sizeof(block));
	fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	map(2 * PAGE_BYTES, PROT_READ, MAP_SHARED, sealed, 0);
}

/* One batch of writes of all kinds; the layout changes, too. */
static void work(struct victim_memory *v, unsigned n)
{
	fill(v->big + (n * 37 % 4096) * PAGE_BYTES, 3 * PAGE_BYTES, n);
	fill(v->thp + (n * 5 % 2000) * PAGE_BYTES, 100, n);
	fill(v->sparse + (size_t)(n % 64) * ((size_t)1 << 30) + (n % 7) * PAGE_BYTES, 100, n);
	fill(v->file + (n % 16) * PAGE_BYTES, 100, n);
	fill(v->file_shared + (n % 16) * PAGE_BYTES, 8, n);
	fill(v->shm + (n * 3 % 200) * PAGE_BYTES, 64, n);
	fill(v->memfd_alias + (n % 256) * PAGE_BYTES, 64, n);
	fill(v->priv_memfd + (n % 32) * PAGE_BYTES, 64, n);
	if (n % 5 == 0)
		madvise(v->big + (n * 91 % 4000) * PAGE_BYTES, 8 * PAGE_BYTES, MADV_DONTNEED);
	if (n % 7 == 0)
		memset(v->big + (n * 53 % 4096) * PAGE_BYTES, 0, 2 * PAGE_BYTES);
	if (n % 11 == 0)
		pwrite(v->fd_only, &n, sizeof(n), (off_t)(n * 977 % 150000));
	if (n % 13 == 0)
		madvise(v->file + (n % 16) * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
	if (n % 17 == 0)
		madvise(v->shm + (n % 200) * PAGE_BYTES, 2 * PAGE_BYTES, MADV_REMOVE);
}

static void change_layout(struct victim_memory *v, unsigned n)
{
	size_t k = n % 60;
	switch (n % 6) {
	case 0:
		munmap(v->changing + k * PAGE_BYTES, 2 * PAGE_BYTES);
		break;
	case 1:
		mmap(v->changing + k * PAGE_BYTES, 3 * PAGE_BYTES, RW, ANON | MAP_FIXED, -1, 0);
		fill(v->changing + k * PAGE_BYTES, 2 * PAGE_BYTES, n);
		break;
	case 2:
		mprotect(v->changing + k * PAGE_BYTES, 2 * PAGE_BYTES, PROT_READ);
		break;
	case 3:
		mprotect(v->changing + k * PAGE_BYTES, 4 * PAGE_BYTES, RW);
		break;
	case 4: {
		char *p = map(4 * PAGE_BYTES, RW, ANON, -1, 0);
		fill(p, 4 * PAGE_BYTES, n);
		mremap(p, 4 * PAGE_BYTES, 4 * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, v->changing + k * PAGE_BYTES);
		break;
	}
	case 5: {
		char *p = sbrk(3 * (intptr_t)PAGE_BYTES);
		fill(p, 2 * PAGE_BYTES, n);
	}
	}
}

/* Commands: 'r' answer once; 'w' work until the next byte; 'q' quit. */
static void victim(int in, int out)
{
	struct victim_memory v;
	unsigned n = 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	make_anonymous(&v);
	make_files(&v);
	for (;;) {
		char c;
		if (write(out, "!", 1) != 1 || read(in, &c, 1) != 1 || c == 'q')
			_exit(0);
		struct pollfd p = { .fd = in, .events = POLLIN };
		for (unsigned k = 0; c == 'w' && poll(&p, 1, 0) == 0; k++) {
			work(&v, n++);
			if (k % 64 == 63)
				change_layout(&v, n / 64);
		}
	}
}

/* The test. */

struct pair {
	pid_t pid;
	int to, from;
	struct process *p;
	struct memory *m;
	struct filetab *files;
	struct vessel *v;
	struct memory_target *t;
	uint64_t pages, zero, discard;
	char *data;
};

static struct fault f;

static void check_ok(int r, const char *what)
{
	if (r == 0)
		return;
	char line[1024];
	fault_line(&f, line, sizeof(line));
	fail_msg("%s: %s", what, line);
}
#define OK(x) check_ok((x), #x)

static void tell(struct pair *x, char c)
{
	assert_int_equal(write(x->to, &c, 1), 1);
}

static void hear(struct pair *x)
{
	char c;
	struct pollfd p = { .fd = x->from, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_int_equal(read(x->from, &c, 1), 1);
}

static pid_t free_pid(void)
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
	return pid;
}

static void start(struct pair *x, void (*fn)(int in, int out))
{
	int to[2], from[2];
	assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
	memset(x, 0, sizeof(*x));
	x->pid = fork();
	assert_true(x->pid >= 0);
	if (x->pid == 0) {
		close(to[1]);
		close(from[0]);
		fn(to[0], from[1]);
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	x->to = to[1];
	x->from = from[0];
	hear(x);
	x->data = malloc(MAX_PAGES * PAGE_BYTES);
	x->files = filetab_new();
	OK(process_open(&x->p, x->pid, &f));
}

static void open_both(struct pair *x, const char *tracking)
{
	struct remote *r;
	struct vessel_spec spec = { .pid = free_pid(), .new_session = true, .cgroup_fd = -1 };
	OK(process_stop(x->p, &f));
	OK(remote_open(x->p, NULL, 0, &r, &f));
	OK(memory_open(x->p, r, tracking, x->files, &x->m, &f));
	OK(remote_close(r, &f));
	OK(process_release(x->p, &f));
	OK(vessel_new(&spec, &x->v, &f));
	OK(memory_target_new(x->v, &x->t, &f));
}

static void fill_all(struct pair *x)
{
	for (;;) {
		struct memory_segment segs[MAX_SEGS];
		size_t n_pages, n_segs;
		OK(memory_fill(x->m, x->data, MAX_PAGES, segs, MAX_SEGS, &n_pages, &n_segs, &f));
		if (!n_segs)
			break;
		assert_true(n_pages <= MAX_PAGES && n_segs <= MAX_SEGS);
		x->pages += n_pages;
		for (size_t i = 0; i < n_segs; i++) {
			x->zero += segs[i].flags & MEMORY_SEGMENT_ZERO ? segs[i].npages : 0;
			x->discard += segs[i].flags & MEMORY_SEGMENT_DISCARD ? segs[i].npages : 0;
		}
		OK(memory_target_place(x->t, x->data, n_pages, segs, n_segs, &f));
	}
}

static void one_round(struct pair *x, bool last)
{
	bool changed;
	OK(memory_round_begin(x->m, last, &changed, &f));
	if (changed)
		OK(memory_target_maps(x->t, memory_mm(x->m), x->files, &f));
	fill_all(x);
}

static MmEntry *finish(struct pair *x, struct image *img)
{
	struct remote *r;
	OK(process_stop(x->p, &f));
	OK(remote_open(x->p, NULL, 0, &r, &f));
	OK(memory_save(x->m, r, img, &f));
	OK(remote_close(r, &f));
	one_round(x, true);
	MmEntry *mm = image_get(img, IMAGE_MM, (uint32_t)x->pid);
	assert_non_null(mm);
	OK(memory_target_finish(x->t, mm, x->files, &f));
	return mm;
}

static void compare_bytes(struct process *a, struct process *b, const struct map *m)
{
	enum { N = 256 };
	static char x[N * 4096], y[N * 4096];
	for (uint64_t at = m->start; at < m->end; at += sizeof(x)) {
		size_t len = m->end - at < sizeof(x) ? m->end - at : sizeof(x);
		memset(x, 0, len);
		memset(y, 0, len);
		for (size_t i = 0; i < len; i += PAGE_BYTES) {
			ssize_t p = pread(a->memfd, x + i, PAGE_BYTES, (off_t)(at + i));
			ssize_t q = pread(b->memfd, y + i, PAGE_BYTES, (off_t)(at + i));
			if (p != q || memcmp(x + i, y + i, PAGE_BYTES) != 0)
				fail_msg("%llx of %llx-%llx %s: %zd %zd", (unsigned long long)(at + i),
					 (unsigned long long)m->start, (unsigned long long)m->end, m->path, p, q);
		}
	}
}

static void compare_all(struct pair *x, struct range stub)
{
	struct maps a, b;
	struct process *v = vessel_process(x->v);
	/* Our own tracking shows in the source; "gu" spreads to neighbours and never goes away. */
	const uint32_t flags = ~(MAP_FLAG_UFFD | MAP_FLAG_GUARD);
	OK(maps_read(x->p, true, &a, &f));
	OK(maps_read(v, true, &b, &f));
	size_t j = 0;
	for (size_t i = 0; i < a.n; i++, j++) {
		while (j < b.n && b.v[j].start >= stub.start && b.v[j].end <= stub.end)
			j++;
		assert_true(j < b.n);
		const struct map *m = &a.v[i], *n = &b.v[j];
		if (m->start != n->start || m->end != n->end || m->prot != n->prot || m->kind != n->kind ||
		    m->shared != n->shared || m->pgoff != n->pgoff || strcmp(m->path, n->path) != 0 ||
		    (m->flags & flags) != (n->flags & flags))
			fail_msg("%llx-%llx %u %u %x %s is %llx-%llx %u %u %x %s", (unsigned long long)m->start,
				 (unsigned long long)m->end, m->prot, m->kind, m->flags & flags, m->path,
				 (unsigned long long)n->start, (unsigned long long)n->end, n->prot, n->kind,
				 n->flags & flags, n->path);
		if (m->kind != MAP_KIND_VVAR && m->kind != MAP_KIND_VSYSCALL && m->end - m->start < (size_t)1 << 30)
			compare_bytes(x->p, v, m);
	}
	maps_free(&a);
	maps_free(&b);
}

static void compare_objects(struct pair *x)
{
	size_t n;
	const int *fds = memory_target_objects(x->t, &n);
	const MmEntry *mm = memory_mm(x->m);
	assert_int_equal(n, mm->n_objects);
	for (size_t i = 0; i < n; i++) {
		struct stat st;
		assert_int_equal(fstat(fds[i], &st), 0);
		assert_int_equal(st.st_size, mm->objects[i]->size);
		if (mm->objects[i]->name)
			assert_int_equal(fcntl(fds[i], F_GET_SEALS), mm->objects[i]->seals);
	}
}

static void compare_digests(struct pair *x)
{
	struct arena *a = arena_new();
	Cpr__MemoryDigest **list;
	size_t n;
	OK(memory_digest(x->m, NULL, 0, a, &list, &n, &f));
	assert_true(n > 0);
	OK(memory_target_digest(x->t, (const Cpr__MemoryDigest *const *)list, n, NULL, 0, &f));
	list[n / 2]->lo ^= 1;
	assert_int_equal(memory_target_digest(x->t, (const Cpr__MemoryDigest *const *)list, n, NULL, 0, &f), -1);
	assert_int_equal(f.code, FAULT_VERIFY);
	arena_free(a);
}

static void stop(struct pair *x)
{
	memory_target_free(x->t);
	if (x->v)
		vessel_discard(x->v);
	memory_close(x->m);
	process_close(x->p);
	kill(x->pid, SIGKILL);
	waitpid(x->pid, NULL, 0);
	filetab_free(x->files);
	free(x->data);
	close(x->to);
	close(x->from);
}

static void every_kind(void **state)
{
	struct pair x;
	struct image *img = image_new();
	start(&x, victim);
	open_both(&x, *state);
	tell(&x, 'w');
	for (int i = 0; i < 6; i++)
		one_round(&x, false);
	finish(&x, img);
	compare_all(&x, remote_stub_range(vessel_remote(x.v)));
	compare_objects(&x);
	compare_digests(&x);
	print_message("%s: %llu pages, %llu zero, %llu dropped\n", memory_tracking(x.m), (unsigned long long)x.pages,
		      (unsigned long long)x.zero, (unsigned long long)x.discard);
	stop(&x);
	image_free(img);
}

static double seconds(uint64_t since)
{
	return (double)(util_monotonic_ns() - since) / 1e9;
}

#define SPEED_BYTES ((size_t)512 * MIB)

static void big_victim(int in, int out)
{
	char c;
	char *p = map(SPEED_BYTES, RW, ANON, -1, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fill(p, SPEED_BYTES, 1);
	while (write(out, "!", 1) == 1 && read(in, &c, 1) == 1)
		fill(p + SPEED_BYTES / 2, 4 * MIB, (unsigned char)c);
	_exit(0);
}

/* Figures, and that the end does not grow with what was sent before. */
static void speed(void **state)
{
	(void)state;
	struct pair x;
	struct image *img = image_new();
	bool changed;
	start(&x, big_victim);
	open_both(&x, NULL);
	OK(memory_round_begin(x.m, false, &changed, &f));
	OK(memory_target_maps(x.t, memory_mm(x.m), x.files, &f));
	uint64_t begin = util_monotonic_ns(), reading = 0, placing = 0;
	for (;;) {
		struct memory_segment segs[MAX_SEGS];
		size_t n_pages, n_segs;
		uint64_t at = util_clock_ns(CLOCK_THREAD_CPUTIME_ID); /* other jobs share the CPUs */
		OK(memory_fill(x.m, x.data, MAX_PAGES, segs, MAX_SEGS, &n_pages, &n_segs, &f));
		reading += util_clock_ns(CLOCK_THREAD_CPUTIME_ID) - at;
		if (!n_segs)
			break;
		at = util_clock_ns(CLOCK_THREAD_CPUTIME_ID);
		OK(memory_target_place(x.t, x.data, n_pages, segs, n_segs, &f));
		placing += util_clock_ns(CLOCK_THREAD_CPUTIME_ID) - at;
	}
	print_message("fill %.2f GB/s, place %.2f GB/s, together %.2f GB/s\n", (double)SPEED_BYTES / (double)reading,
		      (double)SPEED_BYTES / (double)placing, (double)SPEED_BYTES / 1e9 / seconds(begin));
	tell(&x, 'x');
	hear(&x);
	uint64_t dirty;
	begin = util_monotonic_ns();
	OK(memory_dirty_pages(x.m, &dirty, &f));
	print_message("look %.2f ms: %llu pages\n", seconds(begin) * 1e3, (unsigned long long)dirty);
	assert_in_range(dirty, 4 * MIB / PAGE_BYTES, 4 * MIB / PAGE_BYTES + 64);
	struct remote *r;
	OK(process_stop(x.p, &f));
	begin = util_monotonic_ns();
	OK(remote_open(x.p, NULL, 0, &r, &f));
	OK(memory_save(x.m, r, img, &f));
	OK(remote_close(r, &f));
	double save = seconds(begin);
	uint64_t at = util_monotonic_ns();
	OK(memory_round_begin(x.m, true, &changed, &f));
	double scan = seconds(at);
	if (changed)
		OK(memory_target_maps(x.t, memory_mm(x.m), x.files, &f));
	at = util_monotonic_ns();
	fill_all(&x);
	double send = seconds(at);
	at = util_monotonic_ns();
	OK(memory_target_finish(x.t, image_get(img, IMAGE_MM, (uint32_t)x.pid), x.files, &f));
	print_message("last round: save %.2f ms, scan %.2f ms, %llu pages %.2f ms, finish %.2f ms\n", save * 1e3,
		      scan * 1e3, (unsigned long long)x.pages, send * 1e3, seconds(at) * 1e3);
	assert_in_range(x.pages, 4 * MIB / PAGE_BYTES, 4 * MIB / PAGE_BYTES + 256);
	at = util_monotonic_ns();
	compare_digests(&x);
	print_message("digests of both sides: %.0f ms\n", seconds(at) * 1e3 / 3);
	stop(&x);
	image_free(img);
}

/* What a peer might send: refused, and the vessel is as it was. */
static void hostile(void **state)
{
	(void)state;
	struct pair x;
	static const struct memory_segment bad[] = {
		{ 0x1001, 1, 0, 0 },
		{ 0x1000, 0, 0, 0 },
		{ 0x7f0000000000, UINT32_MAX, 0, MEMORY_SEGMENT_ZERO },
		{ 0xffffffffff600000, 1, 0, MEMORY_SEGMENT_ZERO },
		{ 0x1000, 1, 0, MEMORY_SEGMENT_ZERO },
		{ 0x1000, 1, 0, 3 },
		{ 0x1000, 1, 0, 4 },
		{ 0x1000, 1, 60000, MEMORY_SEGMENT_DISCARD },
		{ 0x100000000, 1, 1, 0 },
	};
	start(&x, victim);
	open_both(&x, NULL);
	assert_int_equal(memory_target_place(x.t, x.data, 0, NULL, 0, &f), -1); /* before the first list */
	one_round(&x, false);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(memory_target_place(x.t, x.data, bad[i].flags ? 0 : bad[i].npages, &bad[i], 1, &f),
				 -1);
		assert_int_equal(f.code, FAULT_PROTOCOL);
	}
	const MmEntry *mm = memory_mm(x.m);
	struct memory_segment good = { mm->vmas[mm->n_vmas / 2]->start, 1, 0, 0 };
	assert_int_equal(memory_target_place(x.t, x.data, 2, &good, 1, &f), -1);
	MmEntry copy = *mm;
	VmaEntry first = *mm->vmas[0], *list[] = { &first, mm->vmas[1] };
	copy.vmas = list;
	copy.n_vmas = 2;
	for (int i = 0; i < 6; i++) {
		first = *mm->vmas[0];
		first.end = i == 0 ? first.start : i == 1 ? mm->vmas[1]->end : first.end;
		first.start += i == 2 ? 1 : 0;
		first.prot = i == 3 ? 64 : first.prot;
		first.status = i == 4 ? 1u << 20 : first.status;
		first.start = i == 5 ? 0 : first.start;
		assert_int_equal(memory_target_maps(x.t, &copy, x.files, &f), -1);
		assert_int_equal(f.code, FAULT_PROTOCOL);
	}
	one_round(&x, false);
	stop(&x);
}

static void holder(int in, int out)
{
	char c;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	map(PAGE_BYTES, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0)[0] = 1;
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	int fd = (int)syscall(SYS_memfd_secret, 0);
	if (fd >= 0 && ftruncate(fd, (off_t)PAGE_BYTES) == 0)
		mmap(NULL, PAGE_BYTES, RW, MAP_SHARED, fd, 0);
	if (write(out, "!", 1) == 1 && read(in, &c, 1) == 1)
		_exit(0);
}

/* Blockers, each with object and remedy; needed files with digests. */
static void vetting(void **state)
{
	(void)state;
	struct pair x;
	struct report report;
	struct arena *a = arena_new();
	Cpr__NeededFile **files;
	size_t n_files, found = 0;
	uint64_t bytes;
	report_init(&report);
	start(&x, victim);
	OK(process_stop(x.p, &f));
	OK(memory_check(x.p, &report, a, &files, &n_files, &bytes, &f));
	for (size_t i = 0; i < report.n; i++)
		print_message("%s: %s\n", report.findings[i].object, report.findings[i].reason);
	assert_int_equal(report_count(&report, REPORT_BLOCKER), 0);
	assert_true(bytes > ROUND_SIZE / 2 && bytes < 4 * ROUND_SIZE);
	for (size_t i = 0; i < n_files; i++) {
		bool ours = !strcmp(files[i]->path, file_path);
		found += ours ? 1 : 0;
		assert_int_equal(files[i]->has_digest, !ours); /* ours is written to */
		assert_true(files[i]->size > 0 || !ours);
	}
	assert_int_equal(found, 1);
	stop(&x);
	start(&x, holder);
	OK(process_stop(x.p, &f));
	OK(memory_check(x.p, &report, a, &files, &n_files, &bytes, &f));
	for (size_t i = 0; i < report.n; i++)
		print_message("%s: %s\n", report.findings[i].object, report.findings[i].reason);
	assert_true(report_count(&report, REPORT_BLOCKER) >= 1);
	stop(&x);
	report_done(&report);
	arena_free(a);
}

static int setup(void **state)
{
	(void)state;
	char block[PAGE_BYTES * 64];
	struct rlimit r = { 64 * MIB, 64 * MIB };
	setrlimit(RLIMIT_MEMLOCK, &r);
	int fd = mkstemp(file_path);
	fill(block, sizeof(block), 99);
	if (fd < 0 || write(fd, block, sizeof(block)) != (ssize_t)sizeof(block))
		return -1;
	return close(fd);
}

static int teardown(void **state)
{
	(void)state;
	return unlink(file_path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{ "every kind, wp-async", every_kind, NULL, NULL, "wp-async" },
		{ "every kind, none", every_kind, NULL, NULL, "none" },
		cmocka_unit_test(hostile),
		cmocka_unit_test(vetting),
		cmocka_unit_test(speed),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
