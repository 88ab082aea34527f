/*
 * Links: two workers, two real cpr-wire processes with real certificates between them, TCP over the loopback device;
 * and links whose wire is this test, which does what a hostile wire could.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "convert.h"
#include "ring.h"
#include "tls.h"
#include "wirepair.h"

#define MS 1000000ull

static char dir[] = "/tmp/cpr-test-link.XXXXXX";

/* ---- certificates ---- */

static void shell(const char *fmt, ...) PRINTF(1, 2);
static void shell(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd) != 0)
		fail_msg("failed: %s", cmd);
}

static const char *file(const char *name)
{
	static char paths[16][128];
	static unsigned n;
	char *p = paths[n++ % 16];
	snprintf(p, sizeof(paths[0]), "%s/%s", dir, name);
	return p;
}

static int make_pki(void **state)
{
	(void)state;
	const char *pki = getenv("CPR_PKI") ? getenv("CPR_PKI") : "tools/cpr-pki";
	if (!mkdtemp(dir))
		return -1;
	shell("{ %s ca %s && %s host %s host1 127.0.0.1 && %s host %s host2; } >%s/log 2>&1", pki, dir, pki, dir, pki,
	      dir, dir);
	shell("CPR_PKI_DAYS=0 %s host %s old >%s/log 2>&1", pki, dir, dir);
	shell("{ %s ca %s/other && %s host %s/other host1; } >%s/log 2>&1", pki, dir, pki, dir, dir);
	return 0;
}

static int remove_pki(void **state)
{
	(void)state;
	shell("rm -rf %s", dir);
	return 0;
}

/* ---- pairs ---- */

static void tcp_pair(int pair[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	auto_fd l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(l, (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (void *)&a, &len), 0);
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(pair[0], (void *)&a, sizeof(a)), 0);
	pair[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	assert_true(pair[1] >= 0);
}

/* 0 is the client, host1; 1 the server, host2. */
struct pair {
	struct wire_side side[2];
	struct link *l[2];
	struct fault f[2]; /* of the hellos */
	int r[2];
};

static void pair_start(struct pair *p, const char *ca0, const char *cert0, const char *expect)
{
	int tcp[2];
	char key0[64];
	snprintf(key0, sizeof(key0), "%.*s.key", (int)(strlen(cert0) - 4), cert0);
	tcp_pair(tcp);
	*p = (struct pair){ 0 };
	p->side[0] = (struct wire_side){ .ca = file(ca0),
					 .cert = file(cert0),
					 .key = file(key0),
					 .sock = tcp[0],
					 .client = true,
					 .expect = expect };
	p->side[1] = (struct wire_side){
		.ca = file("ca.pem"), .cert = file("host2.pem"), .key = file("host2.key"), .sock = tcp[1]
	};
	for (int i = 0; i < 2; i++)
		if (wire_side_start(&p->side[i], &p->f[i]) < 0)
			fail_msg("%s", p->f[i].what);
	for (int i = 0; i < 2; i++)
		p->r[i] = wire_side_hello(&p->side[i], 15000, &p->f[i]);
}

static void pair_open(struct pair *p)
{
	pair_start(p, "ca.pem", "host1.pem", "host2");
	for (int i = 0; i < 2; i++) {
		if (p->r[i] < 0)
			fail_msg("side %d: %s (%s)", i, p->f[i].what, p->f[i].where);
		p->l[i] = link_open(&p->side[i].fds, &p->f[i]);
		assert_non_null(p->l[i]);
	}
	assert_string_equal(p->side[0].peer, "host2");
	assert_string_equal(p->side[1].peer, "host1");
}

/* Each wire ends by itself when its worker does. */
static void pair_close(struct pair *p)
{
	for (int i = 0; i < 2; i++) {
		link_close(p->l[i]);
		link_fds_close(&p->side[i].fds);
	}
	for (int i = 0; i < 2; i++)
		assert_true(wire_side_reap(&p->side[i], 7000) >= 0);
}

static struct fault oops;
#define must_be(call, value)                                                   \
	do {                                                                   \
		if ((call) != (value))                                         \
			fail_msg("%s: %s (%s)", #call, oops.what, oops.where); \
	} while (0)
#define must(call)	 must_be(call, 0)
#define must_frame(call) must_be(call, 1)

static void fill(uint8_t *p, size_t n, uint64_t seed)
{
	for (size_t i = 0; i + 8 <= n; i += 8) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		memcpy(p + i, &seed, 8);
	}
}

static bool filled(const uint8_t *p, size_t n, uint64_t seed)
{
	for (size_t i = 0; i + 8 <= n; i += 8) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		if (memcmp(p + i, &seed, 8) != 0)
			return false;
	}
	return true;
}

/* ---- what must work ---- */

static void send_all_types(struct link *l)
{
	static const size_t parts[] = { 0, 8, 4096, 1u << 20, UINT32_MAX };
	uint8_t *buf = malloc(64u << 20);
	for (unsigned type = 1; type < 64; type++)
		for (size_t i = 0; frame_max(type) && i < ARRAY_LEN(parts); i++) {
			size_t n = parts[i] < frame_max(type) ? parts[i] : frame_max(type);
			fill(buf, n, type * 100 + i);
			must(link_send(l, (enum frame_type)type, type * 1000 + i, buf, n, &oops));
		}
	free(buf);
}

static void receive_all_types(struct link *l)
{
	static const size_t parts[] = { 0, 8, 4096, 1u << 20, UINT32_MAX };
	struct frame fr;
	for (unsigned type = 1; type < 64; type++)
		for (size_t i = 0; frame_max(type) && i < ARRAY_LEN(parts); i++) {
			size_t n = parts[i] < frame_max(type) ? parts[i] : frame_max(type);
			must_frame(link_recv(l, &fr, 20000, &oops));
			assert_int_equal(fr.h.type, type);
			assert_int_equal(fr.h.length, n);
			assert_int_equal(fr.h.arg, type * 1000 + i);
			assert_true(filled(fr.payload, n, type * 100 + i));
		}
}

static void test_all_types(void **state)
{
	(void)state;
	for (int from = 0; from < 2; from++) {
		struct pair p;
		int status;
		pair_open(&p);
		pid_t pid = fork();
		if (pid == 0) {
			send_all_types(p.l[from]);
			_exit(0);
		}
		receive_all_types(p.l[!from]);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		pair_close(&p);
	}
}

static void test_pages(void **state)
{
	(void)state;
	enum { FRAMES = 64, DATA = 1 << 20 };
	struct pair p;
	struct frame fr;
	pair_open(&p);
	pid_t pid = fork();
	if (pid == 0) {
		link_close(p.l[1]);
		for (int i = 0; i < FRAMES; i++) {
			size_t room = DATA + (size_t)(i % 3) * 16;
			uint8_t *at = link_begin(p.l[0], FRAME_PAGES, FRAME_PAGES_MAX * 4096 + 1024 * 16, NULL);
			if (!at)
				_exit(1);
			fill(at, room, (uint64_t)i);
			if (link_commit(p.l[0], (uint64_t)i, room, NULL) < 0)
				_exit(2);
			/* bytes in the other direction at the same time */
			if (link_expect(p.l[0], FRAME_ROUND_ACK, &fr, 10000, NULL) != 1 || fr.h.arg != (uint64_t)i)
				_exit(3);
		}
		if (link_drain(p.l[0], 10000, NULL) < 0 || link_bytes_taken(p.l[0]) != link_bytes_sent(p.l[0]))
			_exit(4);
		link_close(p.l[0]);
		_exit(0);
	}
	for (int i = 0; i < FRAMES; i++) {
		must(link_send(p.l[1], FRAME_ROUND_ACK, (uint64_t)i, NULL, 0, &oops));
		must_frame(link_expect(p.l[1], FRAME_PAGES, &fr, 10000, &oops));
		assert_int_equal(fr.h.arg, i);
		assert_int_equal(fr.h.length, DATA + (i % 3) * 16);
		assert_true(filled(fr.payload, fr.h.length, (uint64_t)i));
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	pair_close(&p);
}

static void test_messages(void **state)
{
	(void)state;
	struct pair p;
	struct frame fr;
	struct fault f;
	pair_open(&p);
	struct arena *a = arena_new();
	Cpr__Hello *m = arena_msg(a, Cpr__Hello, cpr__hello), *back;
	m->protocol = FRAME_PROTOCOL;
	m->version = m->host = m->boot_id = (char *)"x";
	must(link_send_msg(p.l[0], FRAME_HELLO, &m->base, &oops));
	must_frame(link_expect(p.l[1], FRAME_HELLO, &fr, 10000, &oops));
	back = link_unpack(&fr, &cpr__hello__descriptor, a, &f);
	assert_non_null(back);
	assert_int_equal(back->protocol, FRAME_PROTOCOL);
	/* not this message */
	assert_null(link_unpack(&fr, &cpr__offer__descriptor, a, &f));
	assert_int_equal(f.code, FAULT_PROTOCOL);
	/* too long for its type */
	m->version = arena_alloc(a, 5000);
	memset(m->version, 'v', 4999);
	assert_int_equal(link_send_msg(p.l[0], FRAME_HELLO, &m->base, &f), -1);
	assert_int_equal(f.code, FAULT_INTERNAL);
	/* more than half of the ring */
	Cpr__MapUpdate *big = arena_msg(a, Cpr__MapUpdate, cpr__map_update), *big_back;
	big->mm.len = 3u << 20;
	big->mm.data = arena_alloc(a, big->mm.len);
	fill(big->mm.data, big->mm.len, 5);
	must(link_send_msg(p.l[0], FRAME_MAPS, &big->base, &oops));
	must_frame(link_expect(p.l[1], FRAME_MAPS, &fr, 10000, &oops));
	big_back = link_unpack(&fr, &cpr__map_update__descriptor, a, &f);
	assert_non_null(big_back);
	assert_true(filled(big_back->mm.data, big_back->mm.len, 5));
	/* a frame that is not due */
	must(link_send(p.l[1], FRAME_COMMIT, 0, NULL, 0, &oops));
	assert_int_equal(link_expect(p.l[0], FRAME_READY, &fr, 10000, &f), -1);
	assert_int_equal(f.code, FAULT_PROTOCOL);
	assert_non_null(strstr(f.what, "COMMIT"));
	/* nothing comes */
	uint64_t start = util_monotonic_ns();
	assert_int_equal(link_recv(p.l[0], &fr, 50, &f), 0);
	assert_in_range((util_monotonic_ns() - start) / MS, 50, 500);
	/* then something does, and the descriptor tells */
	struct pollfd pfd = { .fd = link_poll_fd(p.l[0]), .events = POLLIN };
	assert_int_equal(link_recv(p.l[0], &fr, 0, &f), 0);
	assert_int_equal(poll(&pfd, 1, 0), 0);
	must(link_send(p.l[1], FRAME_READY, 7, NULL, 0, &oops));
	assert_int_equal(poll(&pfd, 1, 5000), 1);
	assert_int_equal(link_recv(p.l[0], &fr, 0, &f), 1);
	assert_int_equal(fr.h.arg, 7);
	arena_free(a);
	pair_close(&p);
}

static void send_abort(struct link *l, enum fault_code code, const char *what)
{
	struct fault why = { 0 };
	struct arena *a = arena_new();
	fault_set(&why, code, "%s", what);
	fault_while(&why, "testing\033[31m");
	Cpr__Abort *m = arena_msg(a, Cpr__Abort, cpr__abort);
	m->fault = convert_fault_out(a, &why);
	must(link_send_msg(l, FRAME_ABORT, &m->base, &oops));
	arena_free(a);
}

static void test_abort(void **state)
{
	(void)state;
	struct pair p;
	struct frame fr;
	struct fault f;
	pair_open(&p);
	send_abort(p.l[1], FAULT_PID_TAKEN, "pid 77 is\r\ntaken");
	assert_int_equal(link_expect(p.l[0], FRAME_ACCEPT, &fr, 10000, &f), -1);
	assert_int_equal(f.code, FAULT_PID_TAKEN);
	assert_string_equal(f.what, "pid 77 is??taken");
	assert_non_null(strstr(f.trail, "while testing?[31m"));
	pair_close(&p);
}

/* The source is busy sending; the destination gives up. What the source sees is the reason, not a broken connection. */
static void test_abort_while_sending(void **state)
{
	(void)state;
	struct pair p;
	struct fault f = { 0 };
	static uint8_t data[1 << 20];
	pair_open(&p);
	/* until rings and sockets are full: the destination's has unread bytes when it is closed */
	link_set_timeout(p.l[0], 300);
	while (link_send(p.l[0], FRAME_PAGES, 0, data, sizeof(data), &f) == 0)
		;
	assert_int_equal(f.code, FAULT_TIMEOUT);
	link_set_timeout(p.l[0], 10000);
	send_abort(p.l[1], FAULT_NO_MEMORY, "not enough");
	link_close(p.l[1]);
	p.l[1] = NULL;
	uint64_t start = util_monotonic_ns();
	while (link_send(p.l[0], FRAME_PAGES, 0, data, sizeof(data), &f) == 0)
		assert_in_range((util_monotonic_ns() - start) / MS, 0, 10000);
	assert_int_equal(f.code, FAULT_NO_MEMORY);
	pair_close(&p);
}

/* What was committed arrives, although the worker is gone at once. */
static void test_close_sends_all(void **state)
{
	(void)state;
	enum { FRAMES = 40 };
	static uint8_t data[200000];
	struct pair p;
	struct frame fr;
	struct fault f = { 0 };
	pair_open(&p);
	pid_t pid = fork();
	if (pid == 0) {
		link_close(p.l[1]);
		for (int i = 0; i < FRAMES; i++)
			if (link_send(p.l[0], FRAME_IMAGE, (uint64_t)i, data, sizeof(data), NULL) < 0)
				_exit(1);
		raise(SIGKILL); /* no link_close either */
	}
	link_close(p.l[0]);
	p.l[0] = NULL;
	for (int i = 0; i < FRAMES; i++) {
		must_frame(link_expect(p.l[1], FRAME_IMAGE, &fr, 10000, &oops));
		assert_int_equal(fr.h.arg, i);
	}
	assert_int_equal(link_recv(p.l[1], &fr, 10000, &f), -1);
	assert_int_equal(f.code, FAULT_PEER_LOST);
	assert_string_equal(f.what, "host1 closed the connection");
	assert_int_equal(link_recv(p.l[1], &fr, 10000, &f), -1); /* and again */
	assert_int_equal(f.code, FAULT_PEER_LOST);
	waitpid(pid, NULL, 0);
	pair_close(&p);
}

/* ---- deaths ---- */

static void test_killed_wire(void **state)
{
	(void)state;
	for (int victim = 0; victim < 2; victim++) {
		struct pair p;
		struct frame fr;
		struct fault f = { 0 };
		static uint8_t data[1 << 20];
		pair_open(&p);
		kill(p.side[victim].proc.pid, SIGKILL);
		uint64_t start = util_monotonic_ns();
		for (int i = 0; i < 2; i++) {
			assert_int_equal(link_recv(p.l[i], &fr, 10000, &f), -1);
			assert_int_equal(f.code, FAULT_PEER_LOST);
			while (link_send(p.l[i], FRAME_PAGES, 0, data, sizeof(data), &f) == 0)
				;
			assert_int_equal(f.code, FAULT_PEER_LOST);
		}
		assert_in_range((util_monotonic_ns() - start) / MS, 0, 1000);
		pair_close(&p);
	}
}

static void test_wire_dies_with_its_link(void **state)
{
	(void)state;
	struct pair p;
	pair_start(&p, "ca.pem", "host1.pem", NULL);
	assert_int_equal(p.r[0], 0);
	assert_int_equal(p.r[1], 0);
	/* no worker ever: the warden closes the descriptors */
	for (int i = 0; i < 2; i++)
		link_fds_close(&p.side[i].fds);
	for (int i = 0; i < 2; i++)
		assert_true(WIFEXITED(wire_side_reap(&p.side[i], 7000)));
}

static void status_line(pid_t pid, const char *name, const char *key, char *out, size_t len)
{
	char path[64];
	size_t n;
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	auto_free char *s = util_read_file(AT_FDCWD, path, &n);
	assert_non_null(s);
	const char *at = strstr(s, key);
	assert_non_null(at);
	at += strlen(key);
	snprintf(out, len, "%.*s", (int)strcspn(at, "\n"), at);
}

static void test_wire_has_nothing(void **state)
{
	(void)state;
	static const char *const expected[][2] = {
		{ "\nCapPrm:\t", "0000000000000000" },
		{ "\nCapEff:\t", "0000000000000000" },
		{ "\nUid:\t", "65534\t65534\t65534\t65534" },
		{ "\nGid:\t", "65534\t65534\t65534\t65534" },
		{ "\nGroups:\t", " " },
		{ "\nNoNewPrivs:\t", "1" },
		{ "\nSeccomp:\t", "2" },
	};
	struct pair p;
	char line[256], path[64];
	pair_open(&p);
	for (int i = 0; i < 2; i++) {
		pid_t pid = p.side[i].proc.pid;
		for (size_t j = 0; j < ARRAY_LEN(expected); j++) {
			status_line(pid, "status", expected[j][0], line, sizeof(line));
			assert_string_equal(line, expected[j][1]);
		}
		status_line(pid, "limits", "Max core file size", line, sizeof(line));
		assert_int_equal(strspn(line, " 0"), strcspn(line, "b")); /* 0 0 bytes */
		/* not dumpable: its /proc belongs to root */
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, WIRE_FD_KEY);
		assert_int_equal(access(path, F_OK), -1);
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, WIRE_FD_END);
		assert_int_equal(access(path, F_OK), -1);
	}
	must(link_send(p.l[0], FRAME_COMMIT, 0, NULL, 0, &oops));
	pair_close(&p);
}

/* ---- certificates ---- */

static void refused(const char *ca0, const char *cert0, const char *expect, enum fault_code code0, const char *what0,
		    enum fault_code code1, const char *what1)
{
	struct pair p;
	pair_start(&p, ca0, cert0, expect);
	assert_int_equal(p.r[0], -1);
	assert_int_equal(p.r[1], -1);
	if (p.f[0].code != code0 || !strstr(p.f[0].what, what0))
		fail_msg("client: %s: %s", fault_code_name(p.f[0].code), p.f[0].what);
	if (p.f[1].code != code1 || !strstr(p.f[1].what, what1))
		fail_msg("server: %s: %s", fault_code_name(p.f[1].code), p.f[1].what);
	pair_close(&p);
}

static void test_certificates(void **state)
{
	(void)state;
	const enum fault_code C = FAULT_CERTIFICATE;
	refused("ca.pem", "host1.pem", "host3", C, "the certificate is for host2, not host3", C, "refused this host's");
	refused("ca.pem", "host1.pem", "10.1.2.3", C, "the certificate is for host2, not 10.1.2.3", C,
		"refused this host's");
	refused("other/ca.pem", "host1.pem", "host2", C, "of host2 is of an authority that is unknown here", C,
		"does not know the authority");
	refused("ca.pem", "other/host1.pem", "host2", C,
		"host2 refused this host's certificate: it does not know the authority", C,
		"of host1 is of an authority that is unknown here");
	refused("ca.pem", "old.pem", "host2", C, "it has expired", C, "the certificate of old has expired");
}

/* By address: the peer's name comes from its certificate. */
static void test_address(void **state)
{
	(void)state;
	int tcp[2];
	tcp_pair(tcp);
	struct wire_side s[2] = {
		{ .ca = file("ca.pem"),
		  .cert = file("host2.pem"),
		  .key = file("host2.key"),
		  .sock = tcp[0],
		  .client = true,
		  .expect = "127.0.0.1" },
		{ .ca = file("ca.pem"), .cert = file("host1.pem"), .key = file("host1.key"), .sock = tcp[1] },
	};
	for (int i = 0; i < 2; i++)
		must(wire_side_start(&s[i], &oops));
	for (int i = 0; i < 2; i++)
		must(wire_side_hello(&s[i], 15000, &oops));
	assert_string_equal(s[0].peer, "host1");
	for (int i = 0; i < 2; i++)
		link_fds_close(&s[i].fds);
	for (int i = 0; i < 2; i++)
		assert_true(WIFEXITED(wire_side_reap(&s[i], 7000)));
}

/* A stranger on the socket: what it says, and what becomes of it. */
static void stranger(const char *says, bool hangs_up, enum fault_code code, const char *what)
{
	int tcp[2];
	struct fault f = { 0 };
	tcp_pair(tcp);
	if (*says)
		assert_true(write(tcp[0], says, strlen(says)) > 0);
	if (hangs_up)
		shutdown(tcp[0], SHUT_WR);
	const struct tls_conf conf = { .ca_fd = open(file("ca.pem"), O_RDONLY),
				       .cert_fd = open(file("host1.pem"), O_RDONLY),
				       .key_fd = open(file("host1.key"), O_RDONLY) };
	struct tls *t = tls_new(&conf, &f);
	assert_non_null(t);
	uint64_t start = util_monotonic_ns();
	assert_int_equal(tls_handshake(t, tcp[1], 300, -1, &f), -1);
	assert_in_range((util_monotonic_ns() - start) / MS, 0, 1000);
	if (f.code != code || !strstr(f.what, what))
		fail_msg("%s: %s", fault_code_name(f.code), f.what);
	tls_free(t);
	close(conf.ca_fd);
	close(conf.cert_fd);
	close(conf.key_fd);
	close(tcp[0]);
	close(tcp[1]);
}

static void test_strangers(void **state)
{
	(void)state;
	stranger("", false, FAULT_TIMEOUT, "did not finish");
	stranger("", true, FAULT_PEER_LOST, "closed the connection");
	stranger("GET / HTTP/1.1\r\n\r\n", false, FAULT_PROTOCOL, "TLS");
	stranger("\x16\x03\x01\x40\x00garbage", true, FAULT_PEER_LOST, "closed");
}

static void test_bad_files(void **state)
{
	(void)state;
	static const char *const sets[][4] = {
		{ "ca.pem", "host1.pem", "host2.key", "key can't be used with its certificate" },
		{ "host1.key", "host1.pem", "host1.key", "holds no certificate" },
		{ "ca.pem", "log", "host1.key", "certificate can't be used" },
		{ "ca.pem", "host1.pem", "log", "key can't be used" },
	};
	for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
		struct fault f = { 0 };
		const struct tls_conf conf = { .ca_fd = open(file(sets[i][0]), O_RDONLY),
					       .cert_fd = open(file(sets[i][1]), O_RDONLY),
					       .key_fd = open(file(sets[i][2]), O_RDONLY) };
		assert_null(tls_new(&conf, &f));
		assert_int_equal(f.code, FAULT_CONFIG);
		assert_non_null(strstr(f.what, sets[i][3]));
		close(conf.ca_fd);
		close(conf.cert_fd);
		close(conf.key_fd);
	}
}

/* ---- a hostile wire: this test ---- */

struct evil {
	struct link *l;
	struct ring down;
	int up_mem, data, space, end;
};

static void evil_open(struct evil *e)
{
	struct link_fds fds;
	must(link_create(&fds, &oops));
	e->data = dup(fds.down_data);
	e->space = dup(fds.down_space);
	e->end = dup(fds.wire_end);
	must(ring_map(&e->down, fds.down_mem, LINK_RING_BYTES, RING_PRODUCER, e->data, e->space, &oops));
	struct fault f;
	e->l = link_open(&fds, &f);
	assert_non_null(e->l);
}

static void evil_close(struct evil *e)
{
	link_close(e->l);
	ring_unmap(&e->down);
	close(e->data);
	close(e->space);
	if (e->end >= 0)
		close(e->end);
}

static void evil_write(struct evil *e, const void *p, size_t n)
{
	uint8_t *at;
	size_t room;
	must(ring_room(&e->down, &at, &room, &oops));
	assert_true(room >= n);
	memcpy(at, p, n);
	ring_produce(&e->down, n);
}

static void evil_frame(struct evil *e, unsigned type, uint32_t length, unsigned flags)
{
	struct frame_header h = { .type = (uint16_t)type, .length = length, .flags = (uint16_t)flags };
	uint8_t bytes[FRAME_HEADER];
	frame_encode(&h, bytes);
	evil_write(e, bytes, sizeof(bytes));
}

static void test_hostile_frames(void **state)
{
	(void)state;
	static const struct {
		unsigned type;
		uint32_t length;
		unsigned flags;
	} bad[] = { { 0, 0, 0 },
		    { 99, 0, 0 },
		    { FRAME_IMAGE, 0xffffffff, 0 },
		    { FRAME_COMMIT, 4097, 0 },
		    { FRAME_COMMIT, 0, 4 } };
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct evil e;
		struct frame fr;
		struct fault f = { 0 };
		evil_open(&e);
		evil_frame(&e, bad[i].type, bad[i].length, bad[i].flags);
		assert_int_equal(link_recv(e.l, &fr, 1000, &f), -1);
		assert_int_equal(f.code, FAULT_PROTOCOL);
		evil_close(&e);
	}
}

/* A frame whose rest never comes; the wire hangs up in its midst. */
static void test_half_frames(void **state)
{
	(void)state;
	static const uint32_t lengths[] = { 100, 60u << 20 };
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		struct evil e;
		struct frame fr;
		struct fault f = { 0 };
		evil_open(&e);
		evil_frame(&e, FRAME_IMAGE, lengths[i], 0);
		evil_write(&e, "half", 4);
		assert_int_equal(link_recv(e.l, &fr, 20, &f), 0);
		assert_int_equal(link_recv(e.l, &fr, 20, &f), 0);
		close(e.end);
		e.end = -1;
		assert_int_equal(link_recv(e.l, &fr, 1000, &f), -1);
		assert_int_equal(f.code, FAULT_PEER_LOST);
		evil_close(&e);
	}
}

static void test_last_words(void **state)
{
	(void)state;
	struct evil e;
	struct frame fr;
	struct fault why, f = { 0 };
	uint8_t buf[2048];
	struct arena *a = arena_new();
	fault_set(&why, FAULT_TIMEOUT, "no answer");
	size_t n = cpr__fault__pack(convert_fault_out(a, &why), buf);
	arena_free(a);
	evil_open(&e);
	evil_frame(&e, FRAME_RESUMED, 0, 0);
	assert_int_equal(send(e.end, buf, n, 0), (ssize_t)n);
	close(e.end);
	e.end = -1;
	/* first what it sent, then why it went */
	assert_int_equal(link_recv(e.l, &fr, 1000, &f), 1);
	assert_int_equal(fr.h.type, FRAME_RESUMED);
	assert_int_equal(link_recv(e.l, &fr, 1000, &f), -1);
	assert_int_equal(f.code, FAULT_TIMEOUT);
	assert_string_equal(f.what, "no answer");
	evil_close(&e);

	evil_open(&e);
	assert_int_equal(send(e.end, "\xff\xff garbage", 10, 0), 10);
	close(e.end);
	e.end = -1;
	assert_int_equal(link_recv(e.l, &fr, 1000, &f), -1);
	assert_int_equal(f.code, FAULT_PEER_LOST);
	evil_close(&e);
}

/* A valid message of which two bytes each become more than sixty in memory: the arena must not swallow it. */
static void test_bomb(void **state)
{
	(void)state;
	static const size_t counts[] = { 20000, 1u << 21 };
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		struct fault f = { 0 };
		struct arena *a = arena_new();
		Cpr__TaskInfo *m = arena_msg(a, Cpr__TaskInfo, cpr__task_info);
		uint8_t *bomb = malloc(64 + 2 * counts[i]);
		size_t n = cpr__task_info__pack(m, bomb);
		memset(bomb + n, 0x20, 2 * counts[i]); /* tids: tag 4, a number; here 32 each time */
		n += 2 * counts[i];
		struct frame fr = { .h = { .type = FRAME_OFFER, .length = (uint32_t)n }, .payload = bomb };
		m = link_unpack(&fr, &cpr__task_info__descriptor, a, &f);
		assert_int_equal(m != NULL, i == 0);
		assert_int_equal(f.code, i == 0 ? FAULT_NONE : FAULT_PROTOCOL);
		arena_free(a);
		free(bomb);
	}
}

static void test_nobody_takes(void **state)
{
	(void)state;
	struct evil e;
	struct fault f = { 0 };
	static uint8_t data[1 << 20];
	evil_open(&e);
	link_set_timeout(e.l, 50);
	while (link_send(e.l, FRAME_PAGES, 0, data, sizeof(data), &f) == 0)
		;
	assert_int_equal(f.code, FAULT_TIMEOUT);
	assert_int_equal(link_drain(e.l, 10, &f), -1);
	assert_int_equal(f.code, FAULT_TIMEOUT);
	assert_true(link_bytes_taken(e.l) == 0 && link_bytes_sent(e.l) > 0);
	assert_null(link_begin(e.l, FRAME_IMAGE, 3u << 20, &f)); /* never fits */
	assert_int_equal(f.code, FAULT_INTERNAL);
	assert_int_equal(link_commit(e.l, 0, 0, &f), -1);
	evil_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_types),
		cmocka_unit_test(test_pages),
		cmocka_unit_test(test_messages),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_abort_while_sending),
		cmocka_unit_test(test_close_sends_all),
		cmocka_unit_test(test_killed_wire),
		cmocka_unit_test(test_wire_dies_with_its_link),
		cmocka_unit_test(test_wire_has_nothing),
		cmocka_unit_test(test_certificates),
		cmocka_unit_test(test_address),
		cmocka_unit_test(test_strangers),
		cmocka_unit_test(test_bad_files),
		cmocka_unit_test(test_hostile_frames),
		cmocka_unit_test(test_half_frames),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_bomb),
		cmocka_unit_test(test_nobody_takes),
	};
	return cmocka_run_group_tests(tests, make_pki, remove_pki);
}
