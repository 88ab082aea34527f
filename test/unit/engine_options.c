/* Socket options: each one that can be set is set to another value, saved, and found on a new socket. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/time.h>

#include <cmocka.h>

#include "inet.h"
#include "socksave.h"
#include "testnet.h"

static struct testnet net;
static struct fault f;

/* Values that differ from the default. */
static const struct setting {
	int level, name, value;
	int kinds; /* 1 TCP, 2 UDP, 4 IPv6 only */
} settings[] = {
	{ SOL_SOCKET, SO_REUSEADDR, 1, 3 },
	{ SOL_SOCKET, SO_REUSEPORT, 1, 3 },
	{ SOL_SOCKET, SO_DONTROUTE, 1, 3 },
	{ SOL_SOCKET, SO_BROADCAST, 1, 3 },
	{ SOL_SOCKET, SO_KEEPALIVE, 1, 1 },
	{ SOL_SOCKET, SO_OOBINLINE, 1, 3 },
	{ SOL_SOCKET, SO_MARK, 77, 3 },
	{ SOL_SOCKET, SO_PRIORITY, 3, 3 },
	{ SOL_SOCKET, SO_RCVLOWAT, 10, 3 },
	{ SOL_SOCKET, SO_NO_CHECK, 1, 2 },
	{ SOL_SOCKET, SO_TIMESTAMP, 1, 3 },
	{ SOL_SOCKET, SO_RXQ_OVFL, 1, 2 },
	{ SOL_SOCKET, SO_PEEK_OFF, 5, 2 },
	{ SOL_SOCKET, SO_ZEROCOPY, 1, 1 },
	{ SOL_SOCKET, SO_SNDBUF, 50000, 3 },
	{ SOL_SOCKET, SO_RCVBUF, 60000, 3 },
	{ SOL_SOCKET, SO_BUSY_POLL, 20, 3 },
	{ IPPROTO_IP, IP_TOS, 0x10, 3 },
	{ IPPROTO_IP, IP_TTL, 33, 3 },
	{ IPPROTO_IP, IP_MINTTL, 5, 3 },
	{ IPPROTO_IP, IP_FREEBIND, 1, 3 },
	{ IPPROTO_IP, IP_TRANSPARENT, 1, 3 },
	{ IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, 3 },
	{ IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, 3 },
	{ IPPROTO_IP, IP_RECVERR, 1, 3 },
	{ IPPROTO_IP, IP_PKTINFO, 1, 3 },
	{ IPPROTO_IP, IP_RECVTTL, 1, 2 },
	{ IPPROTO_IP, IP_RECVTOS, 1, 2 },
	{ IPPROTO_IP, IP_MULTICAST_TTL, 9, 2 },
	{ IPPROTO_IP, IP_MULTICAST_LOOP, 0, 2 },
	{ IPPROTO_IP, IP_MULTICAST_ALL, 0, 2 },
	{ IPPROTO_IPV6, IPV6_V6ONLY, 1, 7 },
	{ IPPROTO_IPV6, IPV6_TCLASS, 0x20, 7 },
	{ IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44, 7 },
	{ IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO, 7 },
	{ IPPROTO_IPV6, IPV6_RECVERR, 1, 7 },
	{ IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, 7 },
	{ IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, 7 },
	{ IPPROTO_IPV6, IPV6_RECVTCLASS, 1, 7 },
	{ IPPROTO_IPV6, IPV6_DONTFRAG, 1, 7 },
	{ IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0, 7 },
	{ IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 8, 6 },
	{ IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0, 6 },
	{ IPPROTO_TCP, TCP_NODELAY, 1, 1 },
	{ IPPROTO_TCP, TCP_CORK, 1, 1 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 100, 1 },
	{ IPPROTO_TCP, TCP_KEEPINTVL, 20, 1 },
	{ IPPROTO_TCP, TCP_KEEPCNT, 4, 1 },
	{ IPPROTO_TCP, TCP_SYNCNT, 3, 1 },
	{ IPPROTO_TCP, TCP_LINGER2, 17, 1 },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, 5000, 1 },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT, 9000, 1 },
	{ IPPROTO_TCP, TCP_MAXSEG, 900, 1 },
	{ IPPROTO_TCP, TCP_FASTOPEN, 16, 1 },
	{ IPPROTO_TCP, TCP_SAVE_SYN, 1, 1 },
	{ IPPROTO_TCP, TCP_INQ, 1, 1 },
	{ IPPROTO_UDP, UDP_SEGMENT, 1000, 2 },
	{ IPPROTO_UDP, UDP_GRO, 1, 2 },
};

static int get(int fd, int level, int name, int *v)
{
	socklen_t len = sizeof(*v);

	*v = 0;
	return getsockopt(fd, level, name, v, &len);
}

/* Saved, packed, restored on the other host: the new socket. */
static int moved(struct socksave *m, int fd)
{
	const FileEntry *e;
	int there;

	e = socksave_save(m, fd, &f);
	assert_non_null(e);
	testnet_enter(&net, HOST_C);
	there = socksave_restore(m, e, 3, &f);
	testnet_enter(&net, HOST_A);
	assert_true(there >= 0);
	return there;
}

static void each_option(void **state)
{
	(void)state;
	testnet_enter(&net, HOST_A);
	for (int kind = 0; kind < 4; kind++) {
		int type = kind & 1 ? SOCK_DGRAM : SOCK_STREAM, family = kind & 2 ? AF_INET6 : AF_INET;
		int tried = 0;

		for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
			const struct setting *s = &settings[i];
			struct socksave m;
			int fd, there, before, want, have;

			if (!(s->kinds & (kind & 1 ? 2 : 1)) || ((s->kinds & 4) && family == AF_INET))
				continue;
			fd = socket(family, type, 0);
			assert_int_equal(get(fd, s->level, s->name, &before), 0);
			if (setsockopt(fd, s->level, s->name, &s->value, sizeof(s->value)) < 0) {
				printf("skipped: option %d:%d: %s\n", s->level, s->name, strerror(errno));
				close(fd);
				continue;
			}
			assert_int_equal(get(fd, s->level, s->name, &want), 0);
			if (want == before)
				print_message("option %d:%d has no effect\n", s->level, s->name);
			socksave_init(&m, NULL);
			there = moved(&m, fd);
			assert_int_equal(get(there, s->level, s->name, &have), 0);
			if (have != want)
				fail_msg("option %d:%d of kind %d is %d, was %d", s->level, s->name, kind, have, want);
			assert_int_equal(m.report.n, 0);
			tried++;
			close(fd), close(there);
			socksave_done(&m);
		}
		assert_true(tried > 25);
	}
}

/* A socket that nobody touched has nothing to store but its congestion control. */
static void fresh_is_empty(void **state)
{
	(void)state;
	testnet_enter(&net, HOST_A);
	for (int kind = 0; kind < 4; kind++) {
		int fd = socket(kind & 2 ? AF_INET6 : AF_INET, kind & 1 ? SOCK_DGRAM : SOCK_STREAM, 0);
		struct socksave m;
		const FileEntry *e;

		socksave_init(&m, NULL);
		e = socksave_save(&m, fd, &f);
		assert_non_null(e);
		for (size_t i = 0; i < e->isk->n_options; i++)
			print_message("%u:%u\n", e->isk->options[i]->level, e->isk->options[i]->name);
		assert_int_equal(e->isk->n_options, kind & 1 ? 0 : 1);
		close(fd);
		socksave_done(&m);
	}
}

static void structured(void **state)
{
	struct linger linger = { 1, 7 }, l2 = { 0 };
	struct timeval tv = { 3, 250000 }, tv2 = { 0 };
	struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
				      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 99, 0, 1), BPF_STMT(BPF_RET | BPF_K, 0),
				      BPF_STMT(BPF_RET | BPF_K, 0xffff) };
	struct sock_fprog prog = { ARRAY_LEN(code), code };
	struct sock_filter back[8] = { 0 };
	struct in_addr mif = { htonl(0x0a630001) };
	unsigned ifindex, v;
	char dev[IF_NAMESIZE] = "", cc[16] = "";
	struct socksave m;
	int fd, there, on = 1;
	socklen_t len;

	(void)state;
	(void)mif;
	/* the same device has another number on C */
	testnet_enter(&net, HOST_C);
	testnet_sh("ip link add dummy0 type dummy 2>/dev/null || ip link add dummy0 type veth peer name dummy1");
	testnet_enter(&net, HOST_A);
	testnet_sh("ip link add xx type veth peer name dummy0");
	ifindex = if_nametoindex("dummy0");
	fd = socket(AF_INET6, SOCK_DGRAM, 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on)), 0);
	socksave_init(&m, NULL);
	there = moved(&m, fd);
	len = sizeof(l2);
	assert_int_equal(getsockopt(there, SOL_SOCKET, SO_LINGER, &l2, &len), 0);
	assert_memory_equal(&linger, &l2, sizeof(l2));
	len = sizeof(tv2);
	assert_int_equal(getsockopt(there, SOL_SOCKET, SO_RCVTIMEO, &tv2, &len), 0);
	assert_int_equal(tv2.tv_sec, 3);
	len = sizeof(dev);
	assert_int_equal(getsockopt(there, SOL_SOCKET, SO_BINDTODEVICE, dev, &len), 0);
	assert_string_equal(dev, "eth0");
	len = ARRAY_LEN(back);
	assert_int_equal(getsockopt(there, SOL_SOCKET, SO_GET_FILTER, back, &len), 0);
	assert_int_equal(len, ARRAY_LEN(code));
	assert_memory_equal(back, code, sizeof(code));
	assert_int_equal(setsockopt(there, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on)), -1); /* locked */
	assert_int_equal(m.report.n, 0);
	close(fd), close(there);
	/* by number here, by name on the way */
	fd = socket(AF_INET6, SOCK_DGRAM, 0);
	assert_int_equal(setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &ifindex, sizeof(ifindex)), 0);
	there = moved(&m, fd);
	len = sizeof(v);
	assert_int_equal(getsockopt(there, IPPROTO_IPV6, IPV6_MULTICAST_IF, &v, &len), 0);
	testnet_enter(&net, HOST_C);
	assert_int_equal(v, if_nametoindex("dummy0"));
	assert_int_not_equal(v, ifindex);
	testnet_enter(&net, HOST_A);
	close(fd), close(there);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
	there = moved(&m, fd);
	len = sizeof(cc);
	assert_int_equal(getsockopt(there, IPPROTO_TCP, TCP_CONGESTION, cc, &len), 0);
	assert_string_equal(cc, "reno");
	close(fd), close(there);
	socksave_done(&m);
}

/* What can't be set is named; a device that is missing is an error. */
static void names_losses(void **state)
{
	struct socksave m;
	const FileEntry *e;
	FileEntry *changed;
	SkOptionEntry unknown = SK_OPTION_ENTRY__INIT;
	int fd;

	(void)state;
	testnet_enter(&net, HOST_A);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
	socksave_init(&m, NULL);
	e = socksave_save(&m, fd, &f);
	assert_non_null(e);
	close(fd);
	changed = (FileEntry *)e;
	memcpy(changed->isk->options[0]->value.data, "nosu", 4);
	fd = socksave_restore(&m, changed, 3, &f);
	assert_true(fd >= 0);
	assert_int_equal(m.report.n, 1);
	assert_int_equal(m.report.findings[0].severity, REPORT_LOSS);
	assert_non_null(strstr(m.report.findings[0].reason, "TCP_CONGESTION"));
	close(fd);
	unknown.level = 4711;
	unknown.name = 1;
	changed->isk->options[0] = &unknown;
	fd = socksave_restore(&m, changed, 3, &f);
	assert_true(fd >= 0);
	assert_int_equal(m.report.n, 2);
	close(fd);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "xx", 3), 0);
	e = socksave_save(&m, fd, &f);
	assert_non_null(e);
	close(fd);
	testnet_enter(&net, HOST_C);
	assert_int_equal(socksave_restore(&m, e, 3, &f), -1);
	assert_int_equal(f.code, FAULT_NETWORK);
	socksave_done(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_option),
		cmocka_unit_test(fresh_is_empty),
		cmocka_unit_test(structured),
		cmocka_unit_test(names_losses),
	};

	alarm(60);
	setvbuf(stdout, NULL, _IONBF, 0);
	testnet_make(&net);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
