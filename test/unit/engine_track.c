/*
 * Trackers: what a child writes, in threads and through changing mappings, is reported, and nothing is missed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "readmem.h"
#include "track.h"

#define RW	(PROT_READ | PROT_WRITE)
#define ANON	(MAP_PRIVATE | MAP_ANONYMOUS)
#define PAGES	4096
#define THREADS 4

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

struct child {
	pid_t pid;
	int to, from;
	char *mem; /* the same address in both */
	struct process *p;
	struct tracker *t;
};

static void start(struct child *c, void (*fn)(char *mem, int in, int out))
{
	int to[2], from[2];
	assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
	c->mem = mmap(NULL, PAGES * PAGE_BYTES, RW, ANON, -1, 0);
	assert_ptr_not_equal(c->mem, MAP_FAILED);
	madvise(c->mem, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
	c->pid = fork();
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		fn(c->mem, to[0], from[1]);
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	c->to = to[1];
	c->from = from[0];
}

static void hear(struct child *c)
{
	char b;
	struct pollfd p = { .fd = c->from, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_int_equal(read(c->from, &b, 1), 1);
}

static void step(struct child *c)
{
	assert_int_equal(write(c->to, "x", 1), 1);
	hear(c);
}

static void open_tracker(struct child *c, const char *name)
{
	struct remote *r;
	OK(process_open(&c->p, c->pid, &f));
	OK(process_stop(c->p, &f));
	OK(remote_open(c->p, NULL, 0, &r, &f));
	OK(track_open(c->p, r, name, &c->t, &f));
	OK(remote_close(r, &f));
	OK(process_release(c->p, &f));
}

static void stop(struct child *c)
{
	track_close(c->t);
	process_close(c->p);
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	close(c->to);
	close(c->from);
	munmap(c->mem, PAGES * PAGE_BYTES);
}

static struct track_range range(const void *start, size_t pages)
{
	uint64_t at = (uint64_t)(uintptr_t)start, end = at + pages * PAGE_BYTES;
	return (struct track_range){ .start = at, .end = end, .map = { at, end } };
}

/* Written pages of the first 64 as bits; -1 when the range can't be tracked. */
static uint64_t written(struct child *c, struct track_range r, bool look)
{
	uint64_t bits = 0, from = r.start;
	while (r.start < r.end) {
		struct pagemap_region v[7];
		size_t n;
		bool tracked;
		OK(c->t->ops->scan(c->t, &r, look, v, ARRAY_LEN(v), &n, &r.start, &tracked, &f));
		if (!tracked)
			return UINT64_MAX;
		for (size_t i = 0; i < n; i++)
			for (uint64_t a = v[i].start; a < v[i].end; a += PAGE_BYTES)
				if ((a - from) / PAGE_BYTES < 64)
					bits |= (uint64_t)1 << (a - from) / PAGE_BYTES;
	}
	return bits;
}

static void say(int out, int in)
{
	char b;
	if (write(out, "!", 1) != 1 || read(in, &b, 1) != 1)
		_exit(1);
}

static void changes(char *mem, int in, int out)
{
	for (int i = 0; i < 4; i++)
		mem[i * PAGE_BYTES] = 1;
	say(out, in);
	mem[PAGE_BYTES] = 2;
	mem[9 * PAGE_BYTES] = 2; /* was never there */
	say(out, in);
	madvise(mem, PAGE_BYTES, MADV_DONTNEED);
	mem[2 * PAGE_BYTES] = 3;
	say(out, in);
	mmap(mem, 8 * PAGE_BYTES, RW, ANON | MAP_FIXED, -1, 0); /* another mapping in its place */
	mem[5 * PAGE_BYTES] = 4;
	say(out, in);
	mprotect(mem + 5 * PAGE_BYTES, PAGE_BYTES, PROT_READ);
	say(out, in);
	pause();
}

static void exact(void **state)
{
	struct child c;
	(void)state;
	start(&c, changes);
	hear(&c);
	open_tracker(&c, "wp-async");
	struct track_range r = range(c.mem, 16);
	r.map = range(c.mem, PAGES).map;
	assert_int_equal(written(&c, r, false), 0xf);
	assert_int_equal(written(&c, r, false), 0);
	step(&c);
	assert_int_equal(written(&c, r, true), 0x202);
	assert_int_equal(written(&c, r, true), 0x202);
	assert_int_equal(written(&c, r, false), 0x202);
	assert_int_equal(written(&c, r, false), 0);
	step(&c);
	assert_int_equal(written(&c, r, false), 4);
	step(&c);
	/* A part was replaced: the whole range counts as written. */
	assert_int_equal(written(&c, r, false), 0x220);
	assert_int_equal(written(&c, r, false), 0);
	step(&c);
	assert_int_equal(written(&c, r, false), 0);
	OK(process_stop(c.p, &f));
	struct pagemap_region v[8];
	size_t n;
	OK(c.t->ops->scan_all(c.t, &r, v, ARRAY_LEN(v), &n, &r.start, &f));
	assert_int_equal(n, 2);
	for (size_t i = 0; i < n; i++)
		assert_false(v[i].is & PAGEMAP_WRITTEN);
	stop(&c);
}

/* Threads that write all the time; at the end the copy must be the memory. */

static char *writers_mem;
static atomic_bool writers_stop;

static void *writer(void *arg)
{
	unsigned long x = (unsigned long)(uintptr_t)arg * 7919 + 1;
	while (!atomic_load(&writers_stop)) {
		x = x * 6364136223846793005ul + 1442695040888963407ul;
		char *page = writers_mem + (x >> 33) % PAGES * PAGE_BYTES;
		*(volatile unsigned long *)(page + (x >> 20) % 512 * 8) = x;
		if ((x >> 50) % 4096 == 0)
			madvise(page, PAGE_BYTES, MADV_DONTNEED);
	}
	return NULL;
}

static void writers(char *mem, int in, int out)
{
	writers_mem = mem;
	for (uintptr_t i = 0; i < THREADS; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, writer, (void *)i))
			_exit(1);
	}
	say(out, in);
	pause();
}

static void copy(struct child *c, char *to, const struct pagemap_region *v)
{
	uint64_t absent[PAGES / 64] = { 0 }, base = (uint64_t)(uintptr_t)c->mem;
	struct readmem_piece piece = { v->start, (uint32_t)((v->end - v->start) / PAGE_BYTES) };
	OK(readmem_pieces(c->p, &piece, 1, to + (v->start - base), absent, &f));
}

static void nothing_missed(void **state)
{
	struct child c;
	const char *name = *state;
	static char mirror[PAGES * 4096], final[PAGES * 4096];
	uint64_t reported = 0;
	memset(mirror, 0, sizeof(mirror));
	start(&c, writers);
	hear(&c);
	open_tracker(&c, name);
	for (int round = 0; round < 30; round++) {
		struct track_range r = range(c.mem, PAGES);
		OK(track_begin(c.t, &r, 1, &f));
		while (r.start < r.end) {
			struct pagemap_region v[64];
			size_t n;
			bool tracked;
			OK(c.t->ops->scan(c.t, &r, false, v, ARRAY_LEN(v), &n, &r.start, &tracked, &f));
			assert_int_equal(tracked, c.t->ops->rounds);
			for (size_t i = 0; i < n; i++) {
				copy(&c, mirror, &v[i]);
				reported += (v[i].end - v[i].start) / PAGE_BYTES;
			}
		}
	}
	OK(process_stop(c.p, &f));
	struct track_range r = range(c.mem, PAGES);
	uint64_t seen = r.start, base = r.start;
	while (r.start < r.end) {
		struct pagemap_region v[64];
		size_t n;
		OK(c.t->ops->scan_all(c.t, &r, v, ARRAY_LEN(v), &n, &r.start, &f));
		for (size_t i = 0; i < n; i++) {
			memset(mirror + (seen - base), 0, v[i].start - seen); /* dropped */
			if (v[i].is & PAGEMAP_WRITTEN)
				copy(&c, mirror, &v[i]);
			seen = v[i].end;
		}
	}
	memset(mirror + (seen - base), 0, r.end - seen);
	uint64_t absent[PAGES / 64] = { 0 };
	struct readmem_piece all = { base, PAGES };
	OK(readmem_pieces(c.p, &all, 1, final, absent, &f));
	for (size_t i = 0; i < PAGES; i++)
		if (memcmp(mirror + i * PAGE_BYTES, final + i * PAGE_BYTES, PAGE_BYTES) != 0)
			fail_msg("page %zu was missed", i);
	print_message("%s: %llu pages reported\n", name, (unsigned long long)reported);
	stop(&c);
}

static void execs(char *mem, int in, int out)
{
	mem[0] = 1;
	say(out, in);
	write(out, "!", 1);
	execl("/bin/sleep", "sleep", "30", (char *)NULL);
	_exit(1);
}

static void gone(void **state)
{
	struct child c;
	(void)state;
	start(&c, execs);
	hear(&c);
	open_tracker(&c, "wp-async");
	struct track_range r = range(c.mem, 16);
	r.map = range(c.mem, PAGES).map;
	assert_int_equal(written(&c, r, false), 1);
	step(&c);
	/* Until exec has happened: the pipe's other end closes. */
	struct pollfd p = { .fd = c.from, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 10000), 1);
	struct pagemap_region v[4];
	size_t n;
	bool tracked;
	uint64_t walked;
	assert_int_equal(c.t->ops->scan(c.t, &r, false, v, 4, &n, &walked, &tracked, &f), -1);
	assert_int_equal(f.code, FAULT_PROCESS_GONE);
	stop(&c);
}

static void names(void **state)
{
	(void)state;
	char why[128];
	assert_true(track_works(&track_none, why, sizeof(why)));
	assert_true(track_works(&track_wp_async, why, sizeof(why)));
	print_message("soft-dirty: %s\n", track_works(&track_soft_dirty, why, sizeof(why)) ? "works" : why);
	struct tracker *t;
	assert_int_equal(track_open(NULL, NULL, "magic", &t, &f), -1);
	assert_int_equal(f.code, FAULT_USAGE);
	if (!track_works(&track_soft_dirty, why, sizeof(why))) {
		assert_int_equal(track_open(NULL, NULL, "soft-dirty", &t, &f), -1);
		assert_int_equal(f.code, FAULT_KERNEL);
	}
}

/* Reading entries instead of PAGEMAP_SCAN gives the same answers. */
static void by_entries(void **state)
{
	(void)state;
	auto_fd self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct pagemap pm;
	assert_int_equal(pagemap_open(self, &pm), 0);
	char *mem = mmap(NULL, PAGES * PAGE_BYTES, RW, ANON, -1, 0);
	for (size_t i = 0; i < PAGES; i += 1 + i % 3)
		mem[i * PAGE_BYTES] = 1;
	struct pagemap_query q = {
		.start = (uint64_t)(uintptr_t)mem,
		.end = (uint64_t)(uintptr_t)mem + PAGES * PAGE_BYTES,
		.lack = PAGEMAP_FILE,
		.any = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
	};
	static struct pagemap_region a[PAGES], b[PAGES];
	size_t n = 0, m = 0;
	for (int scan = 0; scan < 2; scan++) {
		struct pagemap_query w = q;
		size_t *total = scan ? &n : &m;
		pm.scan = scan;
		while (w.start < w.end) {
			size_t got;
			assert_int_equal(pagemap_scan(&pm, &w, (scan ? a : b) + *total, 5, &got, &w.start), 0);
			*total += got;
		}
	}
	assert_true(n > 10);
	assert_int_equal(n, m);
	for (size_t i = 0; i < n; i++)
		assert_true(a[i].start == b[i].start && a[i].end == b[i].end);
	pagemap_close(&pm);
	munmap(mem, PAGES * PAGE_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),
		cmocka_unit_test(by_entries),
		cmocka_unit_test(exact),
		{ "nothing missed, wp-async", nothing_missed, NULL, NULL, "wp-async" },
		{ "nothing missed, none", nothing_missed, NULL, NULL, "none" },
		cmocka_unit_test(gone),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
