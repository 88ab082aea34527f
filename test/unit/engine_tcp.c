/* TCP sockets, moved from host A to host C while the peer on B uses them. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "address.h"
#include "inet.h"
#include "lock.h"
#include "socksave.h"
#include "testnet.h"

#define ID_A "aaaaaaaa-0000-0000-0000-000000000001"
#define ID_C "cccccccc-0000-0000-0000-000000000001"

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

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Which family a test runs in. */
struct family {
	const char *name, *service, *peer, *add;
	int family;
};

static const struct family families[] = {
	{ "IPv4", "10.99.0.100", "10.99.0.2", "10.99.0.100/24@eth0", AF_INET },
	{ "IPv6", "fd99::100", "fd99::2", "fd99::100/64@eth0", AF_INET6 },
	{ "IPv4 in IPv6", "::ffff:10.99.0.100", "::ffff:10.99.0.2", "10.99.0.100/24@eth0", AF_INET6 },
};

static socklen_t address(const struct family *w, const char *text, int port, union inet_addr *a)
{
	memset(a, 0, sizeof(*a));
	a->any.sa_family = (sa_family_t)w->family;
	if (w->family == AF_INET) {
		inet_pton(AF_INET, text, &a->v4.sin_addr);
		a->v4.sin_port = htons((uint16_t)port);
	} else {
		inet_pton(AF_INET6, text, &a->v6.sin6_addr);
		a->v6.sin6_port = htons((uint16_t)port);
	}
	return inet_addr_len(a);
}

static struct net_address service(const struct family *w)
{
	struct net_address a;

	OK(net_address_parse(w->add, &a, &f));
	return a;
}

static void service_to(const struct family *w, int host)
{
	struct net_address a = service(w);

	testnet_enter(&net, host);
	OK(net_address_add(&a, NULL, &f));
	OK(net_address_announce(&a, NULL, &f));
}

static void service_gone(const struct family *w, int host)
{
	struct net_address a = service(w);

	testnet_enter(&net, host);
	OK(net_address_remove(&a, NULL, &f));
}

static int listener(const struct family *w, int port, int reuse)
{
	union inet_addr a;
	socklen_t len = address(w, w->service, port, &a);
	int fd = socket(w->family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
	assert_int_equal(bind(fd, &a.any, len), 0);
	assert_int_equal(listen(fd, 100), 0);
	return fd;
}

/* here at A (accepted), there at B. */
struct conn {
	int here, there;
};

static struct conn connection(const struct family *w, int l, int port)
{
	struct conn c;
	union inet_addr a;
	socklen_t len;

	testnet_enter(&net, HOST_B);
	c.there = socket(w->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	len = address(w, w->service, port, &a);
	assert_int_equal(connect(c.there, &a.any, len), 0);
	testnet_enter(&net, HOST_A);
	c.here = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	assert_true(c.here >= 0);
	return c;
}

static unsigned state_of(int fd)
{
	struct tcp_info i = { 0 };
	socklen_t len = sizeof(i);

	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &len);
	return i.tcpi_state;
}

static bool wait_state(int fd, unsigned state)
{
	for (int i = 0; i < 300 && state_of(fd) != state; i++)
		usleep(10000);
	return state_of(fd) == state;
}

static long resets(void)
{
	long n = 0;

	for (int h = HOST_A; h <= HOST_C; h++) {
		testnet_enter(&net, h);
		n += testnet_counter("TcpOutRsts"); /* a silent close at A counts as EstabResets there */
		n += h == HOST_B ? testnet_counter("TcpEstabResets") : 0;
	}
	return n;
}

/* The lock of a host on what the descriptors are. */
static struct net_lock *lock(int host, const char *id, const int *fds, size_t n)
{
	struct net_flow *flows = calloc(n, sizeof(*flows));
	struct net_lock *l;
	size_t k = 0;

	testnet_enter(&net, host);
	for (size_t i = 0; i < n; i++)
		k += inet_flow_of_socket(fds[i], &flows[k]);
	OK(net_lock_open(NULL, id, &l, NULL, 0, &f));
	OK(net_lock_engage(l, flows, k, NULL, &f));
	free(flows);
	return l;
}

static struct net_lock *lock_image(const struct socksave *m)
{
	struct net_lock *l;
	struct net_flow *flows;
	size_t n;

	OK(filetab_put(m->files, m->img, &f));
	OK(net_lock_flows(m->img, &flows, &n, &f));
	OK(net_lock_open(NULL, ID_C, &l, NULL, 0, &f));
	OK(net_lock_engage(l, flows, n, NULL, &f));
	free(flows);
	return l;
}

/* Sockets of this process at A: moved to C, where they have the same numbers. The source's are closed silently. */
static void move(const struct family *w, int *fds, size_t n, struct socksave *m)
{
	const FileEntry **e = calloc(n, sizeof(*e));
	struct net_lock *la = lock(HOST_A, ID_A, fds, n), *lc;
	int on = 1;

	for (size_t i = 0; i < n; i++) {
		e[i] = socksave_save(m, fds[i], &f);
		OK(e[i] ? 0 : -1);
	}
	for (size_t i = 0; i < n; i++) {
		setsockopt(fds[i], IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
		close(fds[i]);
	}
	service_gone(w, HOST_A);
	testnet_enter(&net, HOST_C);
	lc = lock_image(m);
	for (size_t i = 0; i < n; i++) {
		fds[i] = socksave_restore(m, e[i], 200, &f);
		OK(fds[i]);
		assert_true(fds[i] >= 200);
	}
	service_to(w, HOST_C);
	OK(net_lock_release(lc, &f));
	for (size_t i = 0; i < n; i++)
		OK(socksave_commit(m, e[i], fds[i], &f));
	net_lock_close(lc);
	net_lock_close(la);
	free(e);
}

static int int_option(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	getsockopt(fd, level, name, &v, &len);
	return v;
}

static void set_option(int fd, int level, int name, int v)
{
	assert_int_equal(setsockopt(fd, level, name, &v, sizeof(v)), 0);
}

/* ---- a stream in full flow, both ways ---- */

struct half {
	volatile uint64_t sent, received, wrong;
	volatile int error;
};

struct flow_state {
	volatile int hold, held, stop, peer_deaf;
	volatile double gap;
	struct half server, peer;
};

static uint8_t pattern(uint64_t n, unsigned salt)
{
	return (uint8_t)((n + salt) * 2654435761u >> 13);
}

/* One turn: fills the out-queue, empties some of the in-queue. Counts are exact after each call. */
static void turn(int fd, struct half *h, unsigned mine, unsigned theirs, bool send_more, bool read_more, double *last,
		 volatile double *gap)
{
	static uint8_t buf[65536];
	size_t len = 1 + h->sent % 9000;
	ssize_t n = 0;

	if (send_more) {
		for (size_t i = 0; i < len; i++)
			buf[i] = pattern(h->sent + i, mine);
		n = send(fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0)
			h->sent += (uint64_t)n;
		else if (errno != EAGAIN)
			h->error = errno;
	}
	if (!read_more)
		return;
	n = recv(fd, buf, 3500, MSG_DONTWAIT); /* slower than the other sends: both queues fill */
	if (n > 0) {
		for (ssize_t i = 0; i < n; i++)
			h->wrong += buf[i] != pattern(h->received + (uint64_t)i, theirs);
		h->received += (uint64_t)n;
		if (last) {
			double t = now_ms();

			if (*last && t - *last > *gap)
				*gap = t - *last;
			*last = t;
		}
	} else if (n == 0 || errno != EAGAIN) {
		h->error = n == 0 ? -1 : errno;
	}
}

static void serve(int fd, struct flow_state *s)
{
	while (!s->hold && !s->server.error)
		turn(fd, &s->server, 1, 2, !s->stop, true, NULL, NULL);
	s->held = 1;
}

static void use(int fd, struct flow_state *s)
{
	double last = 0;

	while (!s->peer.error && (!s->stop || s->peer.received < s->server.sent || s->server.received < s->peer.sent))
		turn(fd, &s->peer, 2, 1, !s->stop, !s->peer_deaf, &last, &s->gap);
}

static void wait_for(volatile int *flag)
{
	for (int i = 0; i < 5000 && !*flag; i++)
		usleep(1000);
	assert_true(*flag);
}

/* `lock_first`: what was in flight both ways is lost or unacknowledged; else both queues come to rest. */
static void stream_of(const struct family *w, bool lock_first)
{
	struct flow_state *s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct socksave m;
	struct net_lock *la, *lc;
	const FileEntry *e;
	struct net_address svc = service(w);
	pid_t server, peer;
	struct conn c;
	int l, fd, pidfd, in, out, unsent;
	long before;
	uint64_t then;
	struct net_flow flow;
	double t[8];

	service_to(w, HOST_A);
	l = listener(w, 4444, 1);
	c = connection(w, l, 4444);
	before = resets();
	testnet_enter(&net, HOST_A);
	server = fork();
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(c.there); /* else it would be in repair mode, too */
		serve(c.here, s);
		for (;;)
			pause();
	}
	peer = fork();
	if (!peer) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(c.here);
		use(c.there, s);
		_exit(0);
	}
	fd = c.here;
	close(c.there);
	close(l);
	close(fd);
	OK(net_lock_open(NULL, ID_A, &la, NULL, 0, &f));
	while ((s->server.received < 2000000 || s->peer.received < 2000000) && !s->peer.error)
		usleep(1000);

	/* Freeze; the peer goes on for a moment, then the lock. */
	pidfd = (int)syscall(SYS_pidfd_open, server, 0);
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	assert_true(fd >= 0);
	assert_true(inet_flow_of_socket(fd, &flow));
	s->gap = 0;
	if (!lock_first) {
		s->peer_deaf = 1; /* fills our out-queue, up to a closed window */
		for (int full = 0; full < 10; full = unsent ? full + 1 : 0) {
			usleep(1000);
			ioctl(fd, SIOCOUTQNSD, &unsent);
		}
		s->hold = 1;
		wait_for(&s->held);
		for (in = 0; !in; usleep(1000)) /* it goes on sending; alarm(2) bounds this */
			ioctl(fd, SIOCINQ, &in);
	}
	t[0] = now_ms();
	OK(net_lock_engage(la, &flow, 1, NULL, &f));
	s->hold = 1;
	wait_for(&s->held);
	t[1] = now_ms();
	socksave_init(&m, NULL);
	e = socksave_save(&m, fd, &f);
	OK(e ? 0 : -1);
	t[2] = now_ms();
	ioctl(fd, SIOCINQ, &in), ioctl(fd, SIOCOUTQ, &out), ioctl(fd, SIOCOUTQNSD, &unsent);
	close(fd);
	OK(sock_repair_all(server, true, &f));
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	OK(net_address_remove(&svc, NULL, &f));
	t[3] = now_ms();
	testnet_enter(&net, HOST_C);
	lc = lock_image(&m);
	t[4] = now_ms();
	fd = socksave_restore(&m, e, 100, &f);
	OK(fd);
	t[5] = now_ms();
	OK(net_address_add(&svc, NULL, &f));
	OK(net_address_announce(&svc, NULL, &f));
	OK(net_lock_release(lc, &f));
	OK(socksave_commit(&m, e, fd, &f));
	t[6] = now_ms();
	s->hold = s->peer_deaf = 0;
	server = fork();
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(fd, s);
		_exit(0);
	}
	close(fd);
	then = s->peer.received;
	for (int i = 0; i < 5000 && s->peer.received < then + 20000000 && !s->peer.error; i++)
		usleep(1000);
	printf("%s, %s: queues in %d, out %d (%d unsent); lock %.2f, save %.2f, close+address %.2f, lock there %.2f, "
	       "restore "
	       "%.2f, address+commit %.2f ms; peer's gap %.1f ms\n",
	       lock_first ? "lock first" : "freeze first", w->name, in, out, unsent, t[1] - t[0], t[2] - t[1],
	       t[3] - t[2], t[4] - t[3], t[5] - t[4], t[6] - t[5], s->gap);
	assert_true(s->peer.received > then);
	s->stop = 1;
	for (int i = 0; i < 10000 && !s->peer.error && !s->server.error && waitpid(peer, NULL, WNOHANG) == 0; i++)
		usleep(1000);
	s->hold = 1;
	waitpid(server, NULL, 0);
	assert_int_equal(s->peer.error, 0);
	assert_int_equal(s->peer.wrong + s->server.wrong, 0);
	assert_true(s->peer.received == s->server.sent && s->server.received == s->peer.sent);
	assert_true(lock_first || (in > 0 && out > 0));
	assert_true(resets() == before);
	net_lock_close(lc);
	net_lock_close(la);
	socksave_done(&m);
	close(pidfd);
	service_gone(w, HOST_C);
	munmap(s, 4096);
}

static void stream_moves(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(families); i++)
		for (int first = 0; first < 2; first++)
			stream_of(&families[i], first);
}

/* ---- what the kinds keep ---- */

static void exchange(int a, int b)
{
	char x[6] = "";
	struct pollfd p = { b, POLLIN, 0 };

	assert_int_equal(send(a, "hello", 5, MSG_NOSIGNAL), 5);
	assert_int_equal(poll(&p, 1, 3000), 1);
	assert_int_equal(recv(b, x, 5, 0), 5);
	assert_string_equal(x, "hello");
}

/* A listener and its connections share a port, the listener without SO_REUSEADDR; in any order. */
static void port_is_shared(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(families); i++)
		for (int listener_first = 0; listener_first < 2; listener_first++) {
			const struct family *w = &families[i];
			struct socksave m;
			struct conn c, c2;
			int l, fds[2];
			union inet_addr a;
			struct tcp_info info;
			socklen_t len = sizeof(info);

			service_to(w, HOST_A);
			l = listener(w, 5000, 0);
			set_option(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3);
			set_option(l, SOL_SOCKET, SO_REUSEPORT, 1);
			set_option(l, SOL_SOCKET, SO_KEEPALIVE, 1);
			assert_int_equal(fchown(l, 1000, 1001), 0);
			set_option(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
			c = connection(w, l, 5000);
			set_option(c.here, IPPROTO_TCP, TCP_NODELAY, 1);
			set_option(c.here, IPPROTO_TCP, TCP_KEEPIDLE, 77);
			set_option(c.here, SOL_SOCKET, SO_SNDBUF, 70000);
			assert_int_equal(setsockopt(c.here, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
			assert_int_equal(fcntl(c.here, F_SETFL, O_NONBLOCK), 0);
			fds[0] = listener_first ? l : c.here;
			fds[1] = listener_first ? c.here : l;
			socksave_init(&m, NULL);
			move(w, fds, 2, &m);
			l = fds[!listener_first];
			c.here = fds[listener_first];
			exchange(c.there, c.here);
			exchange(c.here, c.there);
			assert_int_equal(int_option(l, SOL_SOCKET, SO_REUSEADDR), 0);
			assert_int_equal(int_option(l, SOL_SOCKET, SO_REUSEPORT), 1);
			assert_int_equal(int_option(c.here, SOL_SOCKET, SO_REUSEADDR), 0);
			assert_int_equal(int_option(c.here, IPPROTO_IP, IP_TRANSPARENT), 0);
			assert_int_equal(int_option(c.here, IPPROTO_TCP, TCP_NODELAY), 1);
			assert_int_equal(int_option(c.here, IPPROTO_TCP, TCP_KEEPIDLE), 77);
			assert_int_equal(int_option(c.here, SOL_SOCKET, SO_SNDBUF), 140000);
			assert_int_equal(int_option(c.here, SOL_SOCKET, 72 /* SO_BUF_LOCK */), 1);
			assert_int_equal(int_option(c.here, IPPROTO_TCP, TCP_REPAIR), 0);
			assert_true(fcntl(c.here, F_GETFL) & O_NONBLOCK);
			assert_int_equal(getsockopt(l, IPPROTO_TCP, TCP_INFO, &info, &len), 0);
			assert_int_equal(info.tcpi_sacked, 100); /* backlog */
			struct stat st;
			assert_int_equal(fstat(l, &st), 0);
			assert_int_equal(st.st_uid, 1000);
			assert_int_equal(st.st_gid, 1001);
			assert_int_equal(report_count(&m.report, REPORT_LOSS), 0);
			/* new connections are taken */
			testnet_enter(&net, HOST_B);
			c2.there = socket(w->family, SOCK_STREAM, 0);
			len = address(w, w->service, 5000, &a);
			assert_int_equal(connect(c2.there, &a.any, len), 0);
			c2.here = accept(l, NULL, NULL);
			exchange(c2.there, c2.here);
			close(c2.there), close(c2.here), close(c.there), close(c.here), close(l);
			socksave_done(&m);
			service_gone(w, HOST_C);
		}
}

/* ---- half-closed ---- */

static void drain(int fd, const char *expect)
{
	char buf[64] = "";
	size_t have = 0;
	struct pollfd p = { fd, POLLIN, 0 };

	for (;;) {
		assert_int_equal(poll(&p, 1, 3000), 1);
		ssize_t n = recv(fd, buf + have, sizeof(buf) - 1 - have, 0);
		assert_true(n >= 0);
		if (!n)
			break;
		have += (size_t)n;
	}
	assert_string_equal(buf, expect);
}

enum { WE = 1, THEY = 2 };

/* What each side does before the move, and under which lock: packets that don't arrive make the unacked states. */
static const struct closing {
	unsigned state;
	int first, second; /* who ends its direction first, and then */
	bool lock_before;  /* nothing arrives any more, from before our FIN */
} closings[] = {
	{ INET_CLOSE_WAIT, THEY, 0, false },
	{ INET_FIN_WAIT2, WE, 0, false },
	{ INET_FIN_WAIT1, WE, 0, true },
	{ INET_LAST_ACK, THEY, WE, true },
};

static void closing_one(const struct family *w, const struct closing *x)
{
	struct socksave m;
	struct net_lock *lk = NULL;
	struct conn c;
	int l, fds[1];

	service_to(w, HOST_A);
	l = listener(w, 5001, 1);
	c = connection(w, l, 5001);
	close(l);
	assert_int_equal(send(c.there, "from peer", 9, 0), 9);
	assert_int_equal(send(c.here, "from here", 9, 0), 9);
	usleep(20000);
	if (x->first == THEY) {
		shutdown(c.there, SHUT_WR);
		assert_true(wait_state(c.here, INET_CLOSE_WAIT));
	}
	if (x->lock_before)
		lk = lock(HOST_A, "bbbbbbbb-0000-0000-0000-000000000001", &c.here, 1);
	if (x->first == WE || x->second == WE)
		shutdown(c.here, SHUT_WR);
	assert_true(wait_state(c.here, x->state));
	socksave_init(&m, NULL);
	fds[0] = c.here;
	move(w, fds, 1, &m);
	c.here = fds[0];
	if (x->state == INET_CLOSE_WAIT)
		assert_int_equal(state_of(c.here), INET_CLOSE_WAIT);
	if (lk)
		net_lock_close(lk);
	if (x->first == THEY) { /* we have their end; ours goes on if it may */
		drain(c.here, "from peer");
		if (!x->second) {
			assert_int_equal(send(c.here, "!", 1, 0), 1);
			close(c.here);
			drain(c.there, "from here!");
		} else {
			drain(c.there, "from here");
			assert_true(wait_state(c.here, INET_CLOSE));
			close(c.here);
		}
	} else {
		drain(c.there, "from here");
		assert_true(wait_state(c.here, INET_FIN_WAIT2));
		assert_int_equal(send(c.there, "!", 1, 0), 1);
		close(c.there);
		drain(c.here, "from peer!");
		close(c.here);
	}
	close(c.there);
	socksave_done(&m);
	service_gone(w, HOST_C);
}

static void half_closed_moves(void **state)
{
	long before = resets();

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(families); i++)
		for (size_t k = 0; k < ARRAY_LEN(closings); k++) {
			printf("%s, state %u\n", families[i].name, closings[k].state);
			closing_one(&families[i], &closings[k]);
		}
	assert_int_equal(resets(), before);
}

/* Both ends close at once: CLOSING needs both FINs to cross. */
static void closing_moves(void **state)
{
	const struct family *w = &families[0];
	struct socksave m;
	struct conn c;
	int l, fds[1];

	(void)state;
	service_to(w, HOST_A);
	l = listener(w, 5002, 1);
	c = connection(w, l, 5002);
	close(l);
	testnet_enter(&net, HOST_B); /* what we send is lost there; what they send arrives */
	testnet_sh("nft add table inet x; nft add chain inet x i '{ type filter hook input priority 0; }'; "
		   "nft add rule inet x i tcp sport 5002 drop");
	shutdown(c.here, SHUT_WR);
	assert_true(wait_state(c.here, INET_FIN_WAIT1));
	shutdown(c.there, SHUT_WR);
	assert_true(wait_state(c.here, INET_CLOSING));
	socksave_init(&m, NULL);
	fds[0] = c.here;
	move(w, fds, 1, &m);
	assert_int_equal(state_of(fds[0]), INET_CLOSING);
	testnet_enter(&net, HOST_B);
	testnet_sh("nft delete table inet x");
	drain(fds[0], "");
	drain(c.there, "");
	close(fds[0]);
	close(c.there);
	socksave_done(&m);
	service_gone(w, HOST_C);
}

/* Over, but not closed by the program: end of file, or the error once. */
static void ended_moves(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(families); i++)
		for (int reset = 0; reset < 2; reset++) {
			const struct family *w = &families[i];
			struct linger hard = { 1, 0 };
			struct socksave m;
			struct conn c;
			int l, fds[1];
			char buf[16];

			service_to(w, HOST_A);
			l = listener(w, 5003, 1);
			c = connection(w, l, 5003);
			close(l);
			assert_int_equal(send(c.there, "last", 4, 0), 4);
			if (reset)
				setsockopt(c.there, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
			else
				shutdown(c.here, SHUT_WR);
			usleep(20000);
			close(c.there);
			assert_true(wait_state(c.here, INET_CLOSE));
			socksave_init(&m, NULL);
			fds[0] = c.here;
			move(w, fds, 1, &m);
			assert_int_equal(state_of(fds[0]), INET_CLOSE);
			memset(buf, 0, sizeof(buf));
			assert_int_equal(recv(fds[0], buf, sizeof(buf), MSG_DONTWAIT), 4);
			assert_string_equal(buf, "last");
			if (reset) {
				assert_int_equal(recv(fds[0], buf, 1, MSG_DONTWAIT), -1);
				assert_int_equal(errno, ECONNRESET);
			}
			assert_int_equal(recv(fds[0], buf, 1, MSG_DONTWAIT), 0);
			assert_int_equal(send(fds[0], buf, 1, MSG_NOSIGNAL | MSG_DONTWAIT), -1);
			assert_int_equal(errno, EPIPE);
			close(fds[0]);
			socksave_done(&m);
			service_gone(w, HOST_C);
		}
}

/* ---- an abort finds everything as it was ---- */

static struct undo pushed[64];
static size_t n_pushed, n_dropped;

static int push(void *ctx, const struct undo *u, struct fault *fault)
{
	(void)ctx;
	(void)fault;
	pushed[n_pushed++] = *u;
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

static void source_is_unharmed(void **state)
{
	const struct family *w = &families[0];
	struct undo_log log = { push, drop, NULL };
	struct fd_save end = { .undo = &log };
	struct socksave m;
	struct conn c;
	int l, off = 3;
	long before = resets(), probes;
	char buf[16] = "";

	(void)state;
	service_to(w, HOST_A);
	l = listener(w, 5004, 1);
	c = connection(w, l, 5004);
	set_option(c.here, SOL_SOCKET, SO_REUSEADDR, 1);
	assert_int_equal(send(c.there, "abcdef", 6, 0), 6);
	usleep(20000);
	bool peek_off = setsockopt(c.here, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)) == 0;
	probes = testnet_counter("TcpExtTCPWinProbe");
	n_pushed = n_dropped = 0;
	socksave_init(&m, &log);
	OK(socksave_save(&m, c.here, &f) ? 0 : -1);
	end.repair_noted = m.repair_noted;
	OK(socksave_save(&m, l, &f) ? 0 : -1);
	OK(socksave_save(&m, c.here, &f) ? 0 : -1);
	OK(sock_save_end(&end, &f));
	assert_int_equal(pushed[0].kind, UNDO_REPAIR);
	if (peek_off) {
		assert_int_equal(n_pushed, 3); /* repair once, the offset each time */
		assert_int_equal(pushed[1].kind, UNDO_PEEK_OFF);
		assert_int_equal(pushed[1].value, 3);
		assert_int_equal(int_option(c.here, SOL_SOCKET, SO_PEEK_OFF), 3);
		set_option(c.here, SOL_SOCKET, SO_PEEK_OFF, -1);
	}
	assert_int_equal(n_dropped, n_pushed);
	assert_int_equal(int_option(c.here, IPPROTO_TCP, TCP_REPAIR), 0);
	assert_int_equal(int_option(c.here, SOL_SOCKET, SO_REUSEADDR), 1);
	assert_int_equal(testnet_counter("TcpExtTCPWinProbe"), probes);
	assert_int_equal(recv(c.here, buf, 6, MSG_DONTWAIT), 6);
	assert_string_equal(buf, "abcdef");
	exchange(c.here, c.there);
	exchange(c.there, c.here);
	assert_int_equal(resets(), before);
	close(c.here), close(c.there), close(l);
	socksave_done(&m);
	service_gone(w, HOST_A);
}

/* A worker dies in the middle: the warden's part. */
static void repair_is_undone(void **state)
{
	const struct family *w = &families[0];
	struct conn c;
	pid_t pid;
	int l, ready[2], go[2], status, pidfd, fd, on = 1;
	char x;

	(void)state;
	service_to(w, HOST_A);
	l = listener(w, 5005, 1);
	c = connection(w, l, 5005);
	assert_int_equal(pipe(ready) | pipe(go), 0);
	pid = fork();
	if (!pid) { /* the program: owner of both */
		if (write(ready[1], "r", 1) != 1 || read(go[0], &x, 1) != 1)
			_exit(1);
		_exit(int_option(c.here, SOL_SOCKET, SO_REUSEADDR) == 1 && send(c.here, "hello", 5, 0) == 5 ? 0 : 2);
	}
	assert_int_equal(read(ready[0], &x, 1), 1);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, c.here, 0);
	assert_int_equal(setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)), 0);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1); /* that is how it would stay */
	OK(sock_repair_all(pid, false, &f));
	OK(sock_repair_all(pid, false, &f));
	assert_int_equal(int_option(fd, IPPROTO_TCP, TCP_REPAIR), 0);
	assert_int_equal(write(go[1], "g", 1), 1);
	assert_int_equal(recv(c.there, &x, 1, 0), 1);
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	OK(sock_repair_all(pid, false, &f)); /* gone: nothing to do */
	close(fd), close(pidfd), close(c.here), close(c.there), close(l);
	close(ready[0]), close(ready[1]), close(go[0]), close(go[1]);
	service_gone(w, HOST_A);
}

static void refuses(void **state)
{
	const struct family *w = &families[0];
	struct socksave m;
	struct conn c;
	union inet_addr a;
	socklen_t len;
	struct report report;
	struct fd_info i;
	struct fd_needs needs = { .a = arena_new() };
	int l, fd;

	(void)state;
	service_to(w, HOST_A);
	socksave_init(&m, NULL);
	l = listener(w, 5006, 1);
	c = connection(w, l, 5006);
	/* a connection that nobody has accepted */
	testnet_enter(&net, HOST_B);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	len = address(w, w->service, 5006, &a);
	assert_int_equal(connect(fd, &a.any, len), 0);
	testnet_enter(&net, HOST_A);
	usleep(20000);
	assert_null(socksave_save(&m, l, &f));
	assert_int_equal(f.code, FAULT_BUSY);
	assert_non_null(strstr(f.what, "1 connections wait"));
	close(fd);
	/* urgent data */
	assert_int_equal(send(c.there, "u", 1, MSG_OOB), 1);
	usleep(20000);
	assert_null(socksave_save(&m, c.here, &f));
	assert_int_equal(f.code, FAULT_UNSUPPORTED);
	assert_int_equal(int_option(c.here, IPPROTO_TCP, TCP_REPAIR), 0);
	/* still connecting */
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	testnet_sh("ip neigh replace 10.99.0.222 lladdr 02:00:00:00:00:01 dev eth0");
	len = address(w, "10.99.0.222", 9, &a);
	assert_int_equal(connect(fd, &a.any, len), -1);
	assert_null(socksave_save(&m, fd, &f));
	report_init(&report);
	socksave_info(fd, &i);
	OK(sock_tcp_kind.check(&i, NULL, &report, &needs, &f));
	assert_int_equal(report_count(&report, REPORT_BLOCKER), 1);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 262 /* MPTCP */);
	if (fd >= 0) {
		socksave_info(fd, &i);
		assert_true(sock_tcp_kind.claims(&i));
		OK(sock_tcp_kind.check(&i, NULL, &report, &needs, &f));
		assert_int_equal(report_count(&report, REPORT_BLOCKER), 2);
		close(fd);
	} else {
		printf("skipped: no MPTCP in this kernel\n");
	}
	/* what the destination must have */
	socksave_info(l, &i);
	OK(sock_tcp_kind.check(&i, NULL, &report, &needs, &f));
	assert_int_equal(needs.n_ports, 1);
	assert_int_equal(needs.ports[0], 5006);
	assert_string_equal(needs.addresses[needs.n_addresses - 1]->address, w->service);
	report_done(&report);
	arena_free(needs.a);
	socksave_done(&m);
	close(l), close(c.here), close(c.there);
	service_gone(w, HOST_A);
}

/* Fresh and bound ones; and the port of someone else on the destination. */
static void idle_moves(void **state)
{
	const struct family *w = &families[0];
	struct socksave m;
	const FileEntry *fresh, *bound, *listening;
	union inet_addr a, b;
	socklen_t len;
	int fd[3], l;

	(void)state;
	service_to(w, HOST_A);
	socksave_init(&m, NULL);
	fd[0] = socket(AF_INET, SOCK_STREAM, 0);
	set_option(fd[0], IPPROTO_TCP, TCP_MAXSEG, 1000);
	fd[1] = socket(AF_INET, SOCK_STREAM, 0);
	len = address(w, w->service, 5007, &a);
	assert_int_equal(bind(fd[1], &a.any, len), 0);
	fd[2] = listener(w, 5008, 1);
	fresh = socksave_save(&m, fd[0], &f);
	bound = socksave_save(&m, fd[1], &f);
	listening = socksave_save(&m, fd[2], &f);
	assert_true(fresh && bound && listening);
	close(fd[0]), close(fd[1]), close(fd[2]);
	service_gone(w, HOST_A);
	service_to(w, HOST_C);
	l = listener(w, 5008, 1);
	assert_int_equal(socksave_restore(&m, listening, 3, &f), -1);
	assert_int_equal(f.code, FAULT_BUSY);
	fd[0] = socksave_restore(&m, fresh, 300, &f);
	fd[1] = socksave_restore(&m, bound, 3, &f);
	assert_true(fd[0] >= 300 && fd[1] >= 3);
	assert_int_equal(int_option(fd[0], IPPROTO_TCP, TCP_MAXSEG), 1000);
	len = sizeof(b);
	memset(&b, 0, sizeof(b));
	assert_int_equal(getsockname(fd[1], &b.any, &len), 0);
	assert_memory_equal(&a, &b, sizeof(a.v4));
	close(l), close(fd[0]), close(fd[1]);
	socksave_done(&m);
	service_gone(w, HOST_C);
}

/* ---- many ---- */

static void many_move(void **state)
{
	enum { MANY = 1000 };
	const struct family *w = &families[0];
	struct conn *c = calloc(MANY, sizeof(*c));
	int *fds = calloc(MANY + 1, sizeof(*fds));
	const FileEntry **e = calloc(MANY + 1, sizeof(*e));
	struct net_flow *flows = calloc(MANY + 1, sizeof(*flows));
	struct net_lock *la, *lc;
	struct socksave m;
	int l, on = 1;
	long before = resets();
	double t[8];

	(void)state;
	testnet_enter(&net, HOST_C); /* the locks first: libnftables can't have a socket numbered above 1023 */
	OK(net_lock_open(NULL, ID_C, &lc, NULL, 0, &f));
	service_to(w, HOST_A);
	OK(net_lock_open(NULL, ID_A, &la, NULL, 0, &f));
	l = listener(w, 5009, 1);
	for (int i = 0; i < MANY; i++) {
		c[i] = connection(w, l, 5009);
		assert_int_equal(send(c[i].there, "hello", 5, 0), 5);
		fds[i] = c[i].here;
	}
	fds[MANY] = l;
	for (int i = 0; i <= MANY; i++)
		assert_true(inet_flow_of_socket(fds[i], &flows[i]));
	OK(net_lock_prepare(la, flows, MANY + 1, &f));
	t[6] = now_ms();
	OK(net_lock_engage(la, flows, MANY + 1, NULL, &f));
	socksave_init(&m, NULL);
	t[0] = now_ms();
	for (int i = 0; i <= MANY; i++)
		OK((e[i] = socksave_save(&m, fds[i], &f)) ? 0 : -1);
	t[1] = now_ms();
	for (int i = 0; i <= MANY; i++) {
		setsockopt(fds[i], IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
		close(fds[i]);
	}
	service_gone(w, HOST_A);
	testnet_enter(&net, HOST_C);
	OK(net_lock_engage(lc, flows, MANY + 1, NULL, &f));
	t[2] = now_ms();
	for (int i = 0; i <= MANY; i++)
		OK(fds[i] = socksave_restore(&m, e[i], 3, &f));
	t[3] = now_ms();
	service_to(w, HOST_C);
	OK(net_lock_release(lc, &f));
	t[4] = now_ms();
	for (int i = 0; i <= MANY; i++)
		OK(socksave_commit(&m, e[i], fds[i], &f));
	t[5] = now_ms();
	printf("%d connections: save %.1f, restore %.1f, commit %.1f ms\n", MANY, t[1] - t[0], t[3] - t[2],
	       t[5] - t[4]);
	for (int i = 0; i < MANY; i++) {
		char x[6] = "";

		assert_int_equal(recv(fds[i], x, 5, MSG_DONTWAIT), 5);
		assert_string_equal(x, "hello");
		exchange(fds[i], c[i].there);
		close(fds[i]);
		close(c[i].there);
	}
	assert_int_equal(resets(), before);
	close(fds[MANY]);
	net_lock_close(lc);
	net_lock_close(la);
	socksave_done(&m);
	free(c), free(fds), free(e), free(flows);
	service_gone(w, HOST_C);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stream_moves),	     cmocka_unit_test(port_is_shared),
		cmocka_unit_test(half_closed_moves), cmocka_unit_test(closing_moves),
		cmocka_unit_test(ended_moves),	     cmocka_unit_test(source_is_unharmed),
		cmocka_unit_test(repair_is_undone),  cmocka_unit_test(refuses),
		cmocka_unit_test(idle_moves),	     cmocka_unit_test(many_move),
	};
	struct rlimit many = { 10000, 10000 };

	alarm(180);
	setvbuf(stdout, NULL, _IONBF, 0);
	setrlimit(RLIMIT_NOFILE, &many);
	testnet_make(&net);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
