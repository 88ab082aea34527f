/* UDP sockets: bound, connected, neither; what is lost is named; a source that is left alone. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "address.h"
#include "inet.h"
#include "socksave.h"
#include "testnet.h"

static struct testnet net;
static struct fault f;

#define OK(call)                                              \
	do {                                                  \
		if ((call) < 0) {                             \
			char line_[1200];                     \
			fault_line(&f, line_, sizeof(line_)); \
			fail_msg("%s: %s", #call, line_);     \
		}                                             \
	} while (0)

struct family {
	const char *service, *peer, *add;
	int family;
};

static const struct family families[] = {
	{ "10.99.0.100", "10.99.0.2", "10.99.0.100/24@eth0", AF_INET },
	{ "fd99::100", "fd99::2", "fd99::100/64@eth0", AF_INET6 },
	{ "::ffff:10.99.0.100", "::ffff:10.99.0.2", "10.99.0.100/24@eth0", AF_INET6 },
};

static socklen_t address(const struct family *w, const char *text, int port, union inet_addr *a)
{
	memset(a, 0, sizeof(*a));
	a->any.sa_family = (sa_family_t)w->family;
	if (w->family == AF_INET) {
		assert_int_equal(inet_pton(AF_INET, text, &a->v4.sin_addr), 1);
		a->v4.sin_port = htons((uint16_t)port);
	} else {
		assert_int_equal(inet_pton(AF_INET6, text, &a->v6.sin6_addr), 1);
		a->v6.sin6_port = htons((uint16_t)port);
	}
	return inet_addr_len(a);
}

static int sock(const struct family *w, const char *local, int lport, const char *remote, int rport)
{
	union inet_addr a;
	socklen_t len;
	int fd = socket(w->family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (local) {
		len = address(w, local, lport, &a);
		assert_int_equal(bind(fd, &a.any, len), 0);
	}
	if (remote) {
		len = address(w, remote, rport, &a);
		assert_int_equal(connect(fd, &a.any, len), 0);
	}
	return fd;
}

static void service(const struct family *w, int host, bool there)
{
	struct net_address a;

	OK(net_address_parse(w->add, &a, &f));
	testnet_enter(&net, host);
	OK(there ? net_address_add(&a, NULL, &f) : net_address_remove(&a, NULL, &f));
	if (there)
		OK(net_address_announce(&a, NULL, &f));
}

static void same_names(const union inet_addr was[2], int fd, bool connected)
{
	union inet_addr now[2] = { 0 };
	socklen_t len = sizeof(now[0]);

	assert_int_equal(getsockname(fd, &now[0].any, &len), 0);
	len = sizeof(now[1]);
	assert_int_equal(getpeername(fd, &now[1].any, &len), connected ? 0 : -1);
	assert_memory_equal(was, now, sizeof(now));
}

static void names(int fd, union inet_addr out[2])
{
	socklen_t len = sizeof(out[0]);

	memset(out, 0, 2 * sizeof(*out));
	getsockname(fd, &out[0].any, &len);
	len = sizeof(out[1]);
	if (getpeername(fd, &out[1].any, &len) < 0)
		memset(&out[1], 0, sizeof(out[1]));
}

static bool arrives(int from, int to)
{
	struct pollfd p = { to, POLLIN, 0 };
	char x[8];

	return send(from, "hi", 2, 0) == 2 && poll(&p, 1, 2000) == 1 && recv(to, x, sizeof(x), MSG_DONTWAIT) == 2;
}

static void moves(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(families); i++) {
		const struct family *w = &families[i];
		const FileEntry *e[3];
		union inet_addr was[3][2];
		struct socksave m;
		int fd[3], peer, ttl = 7, on = 1, v;
		socklen_t len = sizeof(v);

		service(w, HOST_A, true);
		fd[0] = sock(w, w->service, 700, w->peer, 701);
		fd[1] = sock(w, w->family == AF_INET ? "0.0.0.0" : "::", 702, NULL, 0);
		fd[2] = sock(w, NULL, 0, NULL, 0);
		assert_int_equal(setsockopt(fd[1], IPPROTO_IP, IP_MULTICAST_TTL, &ttl, sizeof(ttl)), 0);
		assert_int_equal(setsockopt(fd[1], SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)), 0);
		assert_int_equal(setsockopt(fd[2], SOL_SOCKET, SO_RCVBUF, &(int){ 60000 }, sizeof(int)), 0);
		socksave_init(&m, NULL);
		for (int k = 0; k < 3; k++) {
			names(fd[k], was[k]);
			e[k] = socksave_save(&m, fd[k], &f);
			OK(e[k] ? 0 : -1);
			close(fd[k]);
		}
		service(w, HOST_A, false);
		testnet_enter(&net, HOST_C); /* before the address is there */
		for (int k = 0; k < 3; k++) {
			fd[k] = socksave_restore(&m, e[k], 50, &f);
			OK(fd[k]);
			assert_true(fd[k] >= 50);
			same_names(was[k], fd[k], k == 0);
		}
		service(w, HOST_C, true);
		testnet_enter(&net, HOST_B);
		peer = sock(w, w->peer, 701, w->service, 700);
		assert_true(arrives(fd[0], peer));
		assert_true(arrives(peer, fd[0]));
		assert_int_equal(getsockopt(fd[1], IPPROTO_IP, IP_MULTICAST_TTL, &v, &len), 0);
		assert_int_equal(v, 7);
		assert_int_equal(getsockopt(fd[1], SOL_SOCKET, SO_BROADCAST, &v, &len), 0);
		assert_int_equal(v, 1);
		assert_int_equal(getsockopt(fd[2], SOL_SOCKET, SO_RCVBUF, &v, &len), 0);
		assert_int_equal(v, 120000);
		assert_int_equal(getsockopt(fd[0], IPPROTO_IP, IP_TRANSPARENT, &v, &len), 0);
		assert_int_equal(v, 0);
		assert_int_equal(m.report.n, 0);
		close(peer), close(fd[0]), close(fd[1]), close(fd[2]);
		socksave_done(&m);
		service(w, HOST_C, false);
	}
}

static size_t n_pushed, n_dropped;

static int push(void *ctx, const struct undo *u, struct fault *fault)
{
	(void)ctx;
	(void)fault;
	assert_int_equal(u->kind, UNDO_PEEK_OFF);
	n_pushed++;
	return 0;
}

static int drop(void *ctx, enum undo_kind kind, struct fault *fault)
{
	(void)ctx;
	(void)fault;
	(void)kind;
	n_dropped++;
	return 0;
}

/* Unread ones are named, and stay where they are. */
static void names_the_unread(void **state)
{
	static const int offsets[] = { -1, 0, 1 };
	struct undo_log log = { push, drop, NULL };

	(void)state;
	testnet_enter(&net, HOST_A);
	for (size_t i = 0; i < ARRAY_LEN(offsets); i++) {
		int r = sock(&families[0], "127.0.0.1", 800, NULL, 0), v;
		int s = sock(&families[0], NULL, 0, "127.0.0.1", 800);
		socklen_t len = sizeof(v);
		struct socksave m;
		char x[8];

		setsockopt(r, SOL_SOCKET, SO_PEEK_OFF, &offsets[i], sizeof(int));
		assert_int_equal(send(s, "a", 1, 0) + send(s, "bcd", 3, 0) + send(s, "ef", 2, 0), 6);
		n_pushed = n_dropped = 0;
		socksave_init(&m, &log);
		OK(socksave_save(&m, r, &f) ? 0 : -1);
		assert_true(n_pushed == 1 && n_dropped == 1);
		assert_int_equal(m.report.n, 1);
		assert_int_equal(m.report.findings[0].severity, REPORT_LOSS);
		assert_string_equal(m.report.findings[0].reason, "3 unread datagrams are not carried");
		assert_int_equal(getsockopt(r, SOL_SOCKET, SO_PEEK_OFF, &v, &len), 0);
		assert_int_equal(v, offsets[i]);
		assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), 1);
		assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), 3);
		assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), 2);
		close(r), close(s);
		socksave_done(&m);
	}
}

static void refuses_corked(void **state)
{
	struct socksave m;
	int s, r, on = 1, off = 0;
	char x[8];

	(void)state;
	testnet_enter(&net, HOST_A);
	r = sock(&families[0], "127.0.0.1", 801, NULL, 0);
	s = sock(&families[0], NULL, 0, "127.0.0.1", 801);
	setsockopt(s, IPPROTO_UDP, UDP_CORK, &on, sizeof(on));
	assert_int_equal(send(s, "ab", 2, 0), 2);
	socksave_init(&m, NULL);
	assert_null(socksave_save(&m, s, &f));
	assert_int_equal(f.code, FAULT_UNSUPPORTED);
	assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), -1); /* still held back */
	setsockopt(s, IPPROTO_UDP, UDP_CORK, &off, sizeof(off));
	assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), 2);
	/* MSG_MORE corks without the option */
	assert_int_equal(send(s, "cd", 2, MSG_MORE), 2);
	assert_null(socksave_save(&m, s, &f));
	assert_int_equal(send(s, "ef", 2, 0), 2);
	assert_int_equal(recv(r, x, sizeof(x), MSG_DONTWAIT), 4);
	OK(socksave_save(&m, s, &f) ? 0 : -1);
	close(r), close(s);
	socksave_done(&m);
}

static void says_what_is_wrong(void **state)
{
	const struct family *w = &families[0];
	const FileEntry *e;
	struct socksave m;
	int a, b;

	(void)state;
	testnet_enter(&net, HOST_A);
	a = sock(w, "0.0.0.0", 900, NULL, 0);
	socksave_init(&m, NULL);
	e = socksave_save(&m, a, &f);
	assert_non_null(e);
	close(a);
	testnet_enter(&net, HOST_C);
	b = sock(w, "0.0.0.0", 900, NULL, 0);
	assert_int_equal(socksave_restore(&m, e, 3, &f), -1);
	assert_int_equal(f.code, FAULT_BUSY);
	close(b);
	/* no route */
	testnet_enter(&net, HOST_A);
	testnet_sh("ip route add 192.0.2.0/24 dev eth0");
	a = sock(w, NULL, 0, "192.0.2.7", 5);
	e = socksave_save(&m, a, &f);
	assert_non_null(e);
	close(a);
	testnet_sh("ip route del 192.0.2.0/24 dev eth0");
	testnet_enter(&net, HOST_C);
	assert_int_equal(socksave_restore(&m, e, 3, &f), -1);
	assert_int_equal(f.code, FAULT_NETWORK);
	socksave_done(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(moves),
		cmocka_unit_test(names_the_unread),
		cmocka_unit_test(refuses_corked),
		cmocka_unit_test(says_what_is_wrong),
	};

	alarm(60);
	setvbuf(stdout, NULL, _IONBF, 0);
	testnet_make(&net);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
