/*
 * Rings between two processes: random sizes, wrap-around, sleeping and waking; and what a hostile other side can do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ring.h"

#define SIZE	65536u
#define STREAM	(64u << 20)
#define WAIT_MS 10000

/* Offsets of the shared indices (ring.c): what a hostile process would write. */
#define HEAD 0
#define TAIL 128

struct both {
	int mem, data, space;
	struct ring p, c;
	uint8_t *raw; /* the shared memory as somebody else sees it */
};

static void both_init(struct both *b)
{
	struct fault f;
	b->mem = ring_create(SIZE, "test", &f);
	b->data = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	b->space = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_true(b->mem >= 0 && b->data >= 0 && b->space >= 0);
	assert_int_equal(ring_map(&b->p, b->mem, SIZE, RING_PRODUCER, b->data, b->space, &f), 0);
	assert_int_equal(ring_map(&b->c, b->mem, SIZE, RING_CONSUMER, b->data, b->space, &f), 0);
	b->raw = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, b->mem, 0);
	assert_true(b->raw != MAP_FAILED);
}

static void both_done(struct both *b)
{
	ring_unmap(&b->p);
	ring_unmap(&b->c);
	munmap(b->raw, SIZE);
	close(b->mem);
	close(b->data);
	close(b->space);
}

static bool signalled(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, 0) == 1;
}

static uint32_t next_random(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

/* Sleeps for `want`; false when nothing came in time: a lost wake-up. */
static bool wait_for(struct ring *r, size_t want)
{
	struct fault f;
	struct pollfd p = { .fd = ring_fd(r), .events = POLLIN };
	int armed = ring_arm(r, want, &f);
	if (armed)
		return armed > 0;
	if (poll(&p, 1, WAIT_MS) != 1)
		return false;
	ring_woken(r);
	return true;
}

static uint8_t pattern(uint64_t i)
{
	return (uint8_t)(i * 167 + (i >> 8) * 13 + (i >> 16));
}

/* Random pieces; now and then as large as the ring, and now and then one byte. */
static size_t piece(uint32_t *seed)
{
	uint32_t r = next_random(seed);
	return r % 16 == 0 ? 1 : r % 16 == 1 ? SIZE : 1 + (r >> 8) % 9000;
}

static int produce_stream(struct ring *r)
{
	struct fault f;
	uint32_t seed = 12345;
	for (uint64_t done = 0; done < STREAM;) {
		size_t n = piece(&seed), room;
		uint8_t *at;
		if (n > STREAM - done)
			n = STREAM - done;
		while (ring_room(r, &at, &room, &f) == 0 && room < n)
			if (!wait_for(r, n))
				return 2;
		if (room < n)
			return 3;
		for (size_t i = 0; i < n; i++)
			at[i] = pattern(done + i);
		ring_produce(r, n);
		done += n;
	}
	return 0;
}

static void test_stream(void **state)
{
	(void)state;
	struct both b;
	struct fault f;
	uint32_t seed = 999;
	both_init(&b);
	pid_t pid = fork();
	if (pid == 0)
		_exit(produce_stream(&b.p));
	for (uint64_t done = 0; done < STREAM;) {
		size_t want = piece(&seed), n;
		const uint8_t *at;
		if (want > STREAM - done)
			want = STREAM - done;
		assert_int_equal(ring_data(&b.c, &at, &n, &f), 0);
		/* Half of the time waits for all of it, else takes what is there: both sides sleep at times. */
		size_t need = seed & 64 ? want : 1;
		/* The producer may need all of the room for one piece: then waiting for more than is there hangs. */
		if (n < need && n == 0) {
			assert_true(wait_for(&b.c, 1));
			continue;
		}
		n = n < want ? n : want;
		for (size_t i = 0; i < n; i++)
			if (at[i] != pattern(done + i))
				fail_msg("wrong byte at %llu", (unsigned long long)(done + i));
		ring_consume(&b.c, n);
		done += n;
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	both_done(&b);
}

/* One byte there and back: each step sleeps, so a lost wake-up shows at once. */
static void test_ping_pong(void **state)
{
	(void)state;
	enum { ROUNDS = 30000 };
	struct both there, back;
	struct fault f;
	const uint8_t *at;
	uint8_t *to;
	size_t n;
	both_init(&there);
	both_init(&back);
	pid_t pid = fork();
	for (int i = 0; i < ROUNDS; i++) {
		struct ring *out = pid ? &there.p : &back.p, *in = pid ? &back.c : &there.c;
		bool ok = true;
		if (pid) {
			ok = ring_room(out, &to, &n, &f) == 0 && n > 0;
			*to = (uint8_t)i;
			ring_produce(out, 1);
		}
		while (ok && (ok = ring_data(in, &at, &n, &f) == 0) && n == 0)
			ok = wait_for(in, 1);
		ok = ok && n == 1 && *at == (uint8_t)i;
		if (!ok && !pid)
			_exit(1);
		assert_true(ok);
		ring_consume(in, 1);
		if (!pid) {
			if (ring_room(out, &to, &n, &f) < 0)
				_exit(1);
			*to = (uint8_t)i;
			ring_produce(out, 1);
		}
	}
	if (!pid)
		_exit(0);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	both_done(&there);
	both_done(&back);
}

/* No system call while nobody sleeps, one wake-up per sleep, and only when enough is there. */
static void test_wakes_once(void **state)
{
	(void)state;
	struct both b;
	struct fault f;
	both_init(&b);
	ring_produce(&b.p, 100);
	assert_false(signalled(b.data));
	assert_int_equal(ring_arm(&b.c, 100, &f), 1); /* already there */
	assert_int_equal(ring_arm(&b.c, 300, &f), 0);
	ring_produce(&b.p, 100);
	assert_false(signalled(b.data));
	ring_produce(&b.p, 100);
	assert_true(signalled(b.data));
	ring_woken(&b.c);
	assert_false(signalled(b.data));
	ring_produce(&b.p, 100);
	assert_false(signalled(b.data));
	/* The producer: room for all. */
	assert_int_equal(ring_arm(&b.p, SIZE - 400, &f), 1);
	assert_int_equal(ring_arm(&b.p, SIZE, &f), 0);
	ring_consume(&b.c, 399);
	assert_false(signalled(b.space));
	ring_consume(&b.c, 1);
	assert_true(signalled(b.space));
	assert_true(ring_taken(&b.p) == 400);
	both_done(&b);
}

static void test_contiguous(void **state)
{
	(void)state;
	struct both b;
	struct fault f;
	const uint8_t *in;
	uint8_t *out;
	size_t n;
	both_init(&b);
	ring_produce(&b.p, SIZE - 10);
	ring_consume(&b.c, SIZE - 10);
	assert_int_equal(ring_room(&b.p, &out, &n, &f), 0);
	assert_int_equal(n, SIZE);
	memset(out, 0xa5, SIZE);
	ring_produce(&b.p, SIZE);
	assert_int_equal(ring_data(&b.c, &in, &n, &f), 0);
	assert_int_equal(n, SIZE);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(in[i], 0xa5);
	both_done(&b);
}

static void poke(struct both *b, size_t offset, uint64_t v)
{
	memcpy(b->raw + offset, &v, 8);
}

static void test_hostile_indices(void **state)
{
	(void)state;
	/* With head at 1000 and tail at 400. */
	static const uint64_t bad_tail[] = { 399, 0, 1001, SIZE, UINT64_MAX, 1ull << 63, 400 - SIZE };
	static const uint64_t bad_head[] = { 999, 0, 400 + SIZE + 1, UINT64_MAX, 1ull << 63, 1000 - SIZE };
	const uint8_t *in;
	uint8_t *out;
	size_t n;
	for (size_t i = 0; i < ARRAY_LEN(bad_tail) + ARRAY_LEN(bad_head); i++) {
		struct both b;
		struct fault f = { 0 };
		bool tail = i < ARRAY_LEN(bad_tail);
		both_init(&b);
		ring_produce(&b.p, 1000);
		assert_int_equal(ring_data(&b.c, &in, &n, &f), 0);
		ring_consume(&b.c, 400);
		assert_int_equal(ring_room(&b.p, &out, &n, &f), 0);
		assert_int_equal(n, SIZE - 600);
		poke(&b, tail ? TAIL : HEAD, tail ? bad_tail[i] : bad_head[i - ARRAY_LEN(bad_tail)]);
		n = 77;
		assert_int_equal(tail ? ring_room(&b.p, &out, &n, &f) : ring_data(&b.c, &in, &n, &f), -1);
		assert_int_equal(f.code, FAULT_PROTOCOL);
		assert_int_equal(n, 77);
		assert_int_equal(ring_arm(tail ? &b.p : &b.c, SIZE, &f), -1);
		if (tail)
			assert_true(ring_taken(&b.p) == 400);
		both_done(&b);
	}
	/* What we have published ourselves may be overwritten: it is not read back. */
	struct both b;
	struct fault f;
	both_init(&b);
	ring_produce(&b.p, 1000);
	poke(&b, HEAD, 5);
	assert_int_equal(ring_room(&b.p, &out, &n, &f), 0);
	assert_int_equal(n, SIZE - 1000);
	both_done(&b);
}

static void test_memory_is_checked(void **state)
{
	(void)state;
	struct fault f = { 0 };
	struct ring r;
	auto_fd good = ring_create(SIZE, "test", &f);
	auto_fd open_end = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	auto_fd null = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(ftruncate(open_end, SIZE + sysconf(_SC_PAGESIZE)), 0);
	assert_int_equal(ring_map(&r, good, 2 * SIZE, RING_PRODUCER, -1, -1, &f), -1);
	assert_int_equal(f.code, FAULT_PROTOCOL);
	assert_int_equal(ring_map(&r, open_end, SIZE, RING_PRODUCER, -1, -1, &f), -1);
	assert_int_equal(f.code, FAULT_PROTOCOL);
	assert_int_equal(ring_map(&r, null, SIZE, RING_PRODUCER, -1, -1, &f), -1);
	assert_int_equal(ftruncate(good, 0), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stream),		cmocka_unit_test(test_ping_pong),
		cmocka_unit_test(test_wakes_once),	cmocka_unit_test(test_contiguous),
		cmocka_unit_test(test_hostile_indices), cmocka_unit_test(test_memory_is_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
