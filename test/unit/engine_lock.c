/* The network lock: what it drops and what not, how it ends, and what it costs. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "lock.h"
#include "testnet.h"

#define ID	 "01234567-89ab-cdef-0123-456789abcdef"
#define TABLE	 "cpr-" ID
#define OTHER_ID "11111111-89ab-cdef-0123-456789abcdef"

static struct testnet net;

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static bool table_there(const char *name)
{
	return testnet_number("nft list tables | grep -c 'table inet %s$'", name) == 1;
}

static struct net_flow flow(int family, int protocol, const char *local, int lport, const char *remote, int rport)
{
	struct net_flow w = { .family = family, .protocol = protocol };

	inet_pton(family, local, w.local);
	inet_pton(family, remote ? remote : family == AF_INET ? "0.0.0.0" : "::", w.remote);
	w.local_port = (uint16_t)lport;
	w.remote_port = (uint16_t)rport;
	return w;
}

/* A socket in `host`, bound (and connected) there. */
static int sock(int host, int family, int type, const char *local, int lport, const char *remote, int rport)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)lport) };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons((uint16_t)lport) };
	int fd, on = 1;

	testnet_enter(&net, host);
	fd = socket(family, type, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	inet_pton(AF_INET, local, &four.sin_addr);
	inet_pton(AF_INET6, local, &six.sin6_addr);
	assert_int_equal(family == AF_INET ? bind(fd, (struct sockaddr *)&four, sizeof(four))
					   : bind(fd, (struct sockaddr *)&six, sizeof(six)),
			 0);
	if (!remote)
		return fd;
	four.sin_port = six.sin6_port = htons((uint16_t)rport);
	inet_pton(AF_INET, remote, &four.sin_addr);
	inet_pton(AF_INET6, remote, &six.sin6_addr);
	if (family == AF_INET ? connect(fd, (struct sockaddr *)&four, sizeof(four))
			      : connect(fd, (struct sockaddr *)&six, sizeof(six)))
		assert_int_equal(errno, EINPROGRESS);
	return fd;
}

/* Something sent by one arrives at the other within the time. */
static bool passes(int from, int to, int ms)
{
	struct pollfd p = { to, POLLIN, 0 };
	char c = 'x';

	(void)!send(from, &c, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (poll(&p, 1, ms) != 1)
		return false;
	return recv(to, &c, 1, MSG_DONTWAIT) == 1;
}

struct pair {
	int here, there; /* sockets at A and at B */
};

static struct pair tcp_pair(int family, const char *a, const char *b, int port)
{
	struct pair p;
	int l = sock(HOST_A, family, SOCK_STREAM, a, port, NULL, 0);

	assert_int_equal(listen(l, 1), 0);
	p.there = sock(HOST_B, family, SOCK_STREAM, b, port + 1, a, port);
	p.here = accept(l, NULL, NULL);
	close(l);
	testnet_enter(&net, HOST_A);
	return p;
}

static struct pair udp_pair(int family, const char *a, const char *b, int port)
{
	struct pair p;

	p.here = sock(HOST_A, family, SOCK_DGRAM, a, port, b, port + 1);
	p.there = sock(HOST_B, family, SOCK_DGRAM, b, port + 1, a, port);
	testnet_enter(&net, HOST_A);
	return p;
}

static void drops_what_it_shall(void **state)
{
	struct pair tcp4, tcp6, udp4, udp6, free4, freeudp;
	int bound, sender, listening, client;
	struct net_flow flows[8];
	struct pollfd p;
	struct net_lock *l;
	struct fault f;
	char why[200];
	size_t n = 0;

	(void)state;
	tcp4 = tcp_pair(AF_INET, "10.99.0.1", "10.99.0.2", 1000);
	tcp6 = tcp_pair(AF_INET6, "fd99::1", "fd99::2", 1000);
	udp4 = udp_pair(AF_INET, "10.99.0.1", "10.99.0.2", 1000);
	udp6 = udp_pair(AF_INET6, "fd99::1", "fd99::2", 1000);
	free4 = tcp_pair(AF_INET, "10.99.0.1", "10.99.0.2", 2000);
	freeudp = udp_pair(AF_INET, "10.99.0.1", "10.99.0.2", 2000);
	bound = sock(HOST_A, AF_INET6, SOCK_DGRAM, "::", 3000, NULL, 0);
	sender = sock(HOST_B, AF_INET, SOCK_DGRAM, "10.99.0.2", 3001, "10.99.0.1", 3000);
	listening = sock(HOST_A, AF_INET, SOCK_STREAM, "10.99.0.1", 2000, NULL, 0);
	listen(listening, 5);
	assert_true(passes(sender, bound, 1000) && passes(freeudp.here, freeudp.there, 1000));

	flows[n++] = flow(AF_INET, IPPROTO_TCP, "10.99.0.1", 1000, "10.99.0.2", 1001);
	flows[n++] = flow(AF_INET6, IPPROTO_TCP, "fd99::1", 1000, "fd99::2", 1001);
	flows[n++] = flow(AF_INET, IPPROTO_UDP, "10.99.0.1", 1000, "10.99.0.2", 1001);
	flows[n++] = flow(AF_INET6, IPPROTO_UDP, "fd99::1", 1000, "fd99::2", 1001);
	flows[n++] = flow(AF_INET6, IPPROTO_UDP, "::", 3000, NULL, 0);
	flows[n++] = flow(AF_INET, IPPROTO_TCP, "10.99.0.1", 2000, NULL, 0); /* listening, same port as free4 */

	testnet_enter(&net, HOST_A);
	assert_int_equal(net_lock_open(NULL, ID, &l, why, sizeof(why), &f), 0);
	printf("%s\n", why);
	assert_string_equal(net_lock_backend(l), "nftables");
	assert_int_equal(net_lock_prepare(l, flows, 3, &f), 0);
	assert_true(passes(tcp4.there, tcp4.here, 1000) && passes(tcp4.here, tcp4.there, 1000)); /* not yet */
	assert_int_equal(net_lock_engage(l, flows, n, NULL, &f), 0);

	assert_false(passes(tcp4.there, tcp4.here, 40));
	assert_false(passes(tcp6.there, tcp6.here, 40));
	assert_false(passes(tcp4.here, tcp4.there, 40));
	assert_false(passes(tcp6.here, tcp6.there, 40));
	assert_false(passes(udp4.there, udp4.here, 40));
	assert_false(passes(udp4.here, udp4.there, 40));
	assert_false(passes(udp6.there, udp6.here, 40));
	assert_false(passes(sender, bound, 40));
	assert_true(passes(free4.there, free4.here, 1000) && passes(free4.here, free4.there, 1000));
	assert_true(passes(freeudp.there, freeudp.here, 1000) && passes(freeudp.here, freeudp.there, 1000));
	client = sock(HOST_B, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, "10.99.0.2", 4000, "10.99.0.1", 2000);
	p = (struct pollfd){ client, POLLOUT, 0 };
	assert_int_equal(poll(&p, 1, 60), 0); /* no connection, and no refusal */

	testnet_enter(&net, HOST_A);
	assert_int_equal(net_lock_release(l, &f), 0);
	assert_false(table_there(TABLE));
	assert_true(passes(tcp4.there, tcp4.here, 3000) && passes(tcp6.here, tcp6.there, 3000));
	assert_true(passes(udp4.there, udp4.here, 1000) && passes(udp6.here, udp6.there, 1000));
	assert_int_equal(poll(&p, 1, 3000), 1);
	assert_int_equal(testnet_counter("TcpOutRsts") + testnet_counter("TcpEstabResets"), 0);
	net_lock_close(l);
	close(bound), close(sender), close(listening), close(client);
	close(tcp4.here), close(tcp4.there), close(tcp6.here), close(tcp6.there), close(udp4.here), close(udp4.there);
	close(udp6.here), close(udp6.there), close(free4.here), close(free4.there), close(freeudp.here);
	close(freeudp.there);
}

static void vanishes_with_its_owner(void **state)
{
	struct net_flow w = flow(AF_INET, IPPROTO_TCP, "10.99.0.1", 1000, "10.99.0.2", 1001);
	int ready[2], status;
	char c;
	pid_t pid;

	(void)state;
	testnet_enter(&net, HOST_A);
	testnet_sh("nft add table inet someone; nft add chain inet someone c '{ type filter hook input priority 0; }'; "
		   "nft add table inet " TABLE "x");
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		struct net_lock *l;
		struct fault f;

		if (net_lock_open("nftables", ID, &l, NULL, 0, &f) < 0 || net_lock_engage(l, &w, 1, NULL, &f) < 0 ||
		    write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_true(table_there(TABLE));
	testnet_sh("nft flush ruleset");
	assert_true(table_there(TABLE)); /* a firewall that is loaded again does not open it */
	testnet_sh("nft add table inet someone");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	for (int i = 0; i < 100 && table_there(TABLE); i++)
		usleep(10000);
	assert_false(table_there(TABLE));
	assert_true(table_there("someone"));
	testnet_sh("nft delete table inet someone");
	close(ready[0]);
	close(ready[1]);
}

static void plain_one_outlives(void **state)
{
	struct net_flow w = flow(AF_INET, IPPROTO_UDP, "10.99.0.1", 1000, "10.99.0.2", 1001);
	struct pair udp = udp_pair(AF_INET, "10.99.0.1", "10.99.0.2", 1000);
	struct fault f;

	(void)state;
	testnet_sh("nft add table inet someone");
	assert_int_equal(net_lock_keep(ID, &w, 1, &f), 0);
	assert_true(table_there(TABLE "-kept"));
	assert_false(passes(udp.there, udp.here, 40));
	assert_int_equal(net_lock_remove(-1, TABLE "-kept", &f), 0);
	assert_int_equal(net_lock_remove(-1, TABLE "-kept", &f), 0); /* missing is fine */
	assert_int_equal(net_lock_remove(-1, "someone", &f), -1);    /* not ours */
	assert_int_equal(net_lock_remove(-1, "cpr-1; flush ruleset", &f), -1);
	assert_true(table_there("someone"));
	assert_true(passes(udp.there, udp.here, 1000));
	testnet_sh("nft delete table inet someone");
	close(udp.here);
	close(udp.there);
}

static void says_what_is_wrong(void **state)
{
	struct net_lock *l;
	struct fault f;
	char why[200];

	(void)state;
	testnet_enter(&net, HOST_A);
	assert_int_equal(net_lock_open("iptablez", ID, &l, NULL, 0, &f), -1);
	assert_int_equal(f.code, FAULT_USAGE);
	assert_int_equal(net_lock_open(NULL, "a; flush ruleset", &l, NULL, 0, &f), -1);
	assert_int_equal(net_lock_open("none", ID, &l, why, sizeof(why), &f), 0);
	assert_string_equal(why, "none (asked for)");
	assert_int_equal(net_lock_engage(l, NULL, 0, NULL, &f), 0);
	assert_int_equal(net_lock_release(l, &f), 0);
	net_lock_close(l);
}

/* Two at once, and the time each step takes. */
static void cost(void **state)
{
	static const size_t sizes[] = { 1, 100, 1000, 10000 };
	struct net_flow *flows = calloc(10000, sizeof(*flows));
	struct net_lock *l, *other;
	struct fault f;

	(void)state;
	testnet_enter(&net, HOST_A);
	for (size_t i = 0; i < 10000; i++) {
		char b[32];

		snprintf(b, sizeof(b), "10.98.%zu.%zu", i / 250, i % 250);
		flows[i] = flow(AF_INET, IPPROTO_TCP, "10.99.0.1", 6379, b, 40000);
	}
	assert_int_equal(net_lock_open(NULL, OTHER_ID, &other, NULL, 0, &f), 0);
	assert_int_equal(net_lock_engage(other, flows, 10, NULL, &f), 0);
	for (int prepared = 0; prepared < 2; prepared++)
		for (size_t s = 0; s < 4; s++) {
			double t0 = now_ms(), t1, t2, t3, t4;

			assert_int_equal(net_lock_open(NULL, ID, &l, NULL, 0, &f), 0);
			t1 = now_ms();
			if (prepared)
				assert_int_equal(net_lock_prepare(l, flows, sizes[s], &f), 0);
			t2 = now_ms();
			assert_int_equal(net_lock_engage(l, flows, sizes[s], NULL, &f), 0);
			t3 = now_ms();
			assert_int_equal(net_lock_release(l, &f), 0);
			t4 = now_ms();
			printf("%5zu flows%s: open %.2f, prepare %.2f, engage %.2f, release %.2f ms\n", sizes[s],
			       prepared ? " prepared" : "", t1 - t0, t2 - t1, t3 - t2, t4 - t3);
			net_lock_close(l);
		}
	assert_true(table_there("cpr-" OTHER_ID));
	net_lock_close(other);
	assert_false(table_there("cpr-" OTHER_ID));
	free(flows);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(drops_what_it_shall),
		cmocka_unit_test(vanishes_with_its_owner),
		cmocka_unit_test(plain_one_outlives),
		cmocka_unit_test(says_what_is_wrong),
		cmocka_unit_test(cost),
	};

	alarm(120);
	testnet_make(&net);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
