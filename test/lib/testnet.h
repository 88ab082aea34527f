/*
 * Network namespaces of a test's own: hosts on one switch. They vanish with the test process, also when it dies.
 *
 *	testnet_make(&t)           before anything else; t.ns[0..2] are hosts A, B, C: 10.99.0.1..3/24, fd99::1..3/64
 *	testnet_enter(&t, HOST_A)  this process (thread) makes its sockets there from now on
 */
#ifndef TEST_TESTNET_H
#define TEST_TESTNET_H

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HOST_A, HOST_B, HOST_C, SWITCH, TESTNET_COUNT };

struct testnet {
	int home, ns[TESTNET_COUNT];
};

static inline void testnet_enter(const struct testnet *t, int host)
{
	if (setns(host < 0 ? t->home : t->ns[host], CLONE_NEWNET) < 0) {
		perror("setns");
		abort();
	}
}

/* A shell command in the present namespace; aborts when it fails. */
__attribute__((format(printf, 1, 2))) static inline void testnet_sh(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd) != 0) {
		fprintf(stderr, "failed: %s\n", cmd);
		abort();
	}
}

/* First line of a command's output as a number. */
__attribute__((format(printf, 1, 2))) static inline long testnet_number(const char *fmt, ...)
{
	char cmd[1024], line[128] = "0";
	va_list ap;
	FILE *p;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	p = popen(cmd, "r");
	if (p && !fgets(line, sizeof(line), p))
		strcpy(line, "0");
	if (p)
		pclose(p);
	return atol(line);
}

/* A counter of /proc/net/snmp or netstat, by name as nstat(8) has it. */
static inline long testnet_counter(const char *name)
{
	return testnet_number("nstat -asz %s 2>/dev/null | awk '/^%s /{print $2}'", name, name);
}

static inline void testnet_make(struct testnet *t)
{
	t->home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < TESTNET_COUNT; i++) {
		if (unshare(CLONE_NEWNET) < 0) {
			perror("unshare");
			abort();
		}
		t->ns[i] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		testnet_sh("ip link set lo up");
	}
	testnet_sh("ip link add br0 type bridge && ip link set br0 up"); /* in the switch */
	for (int i = 0; i < SWITCH; i++) {
		testnet_sh("ip link add v%d type veth peer name eth0 netns /proc/%d/fd/%d", i, (int)getpid(), t->ns[i]);
		testnet_sh("ip link set v%d master br0 up", i);
		testnet_enter(t, i);
		testnet_sh("ip addr add 10.99.0.%d/24 dev eth0; ip -6 addr add fd99::%d/64 dev eth0 nodad; "
			   "ip link set eth0 up",
			   i + 1, i + 1);
		testnet_enter(t, SWITCH);
	}
	testnet_enter(t, HOST_A);
}

#endif
