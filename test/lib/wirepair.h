/*
 * For tests and benchmarks: a link whose wire is a real cpr-wire on a TCP socket.
 */
#ifndef TEST_WIREPAIR_H
#define TEST_WIREPAIR_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "link.h"
#include "wire_start.h"

struct wire_side {
	const char *ca, *cert, *key; /* paths */
	const char *expect;
	bool client;
	int sock;
	/* out */
	struct link_fds fds;
	struct wire_proc proc;
	char peer[WIRE_PEER_MAX];
};

/* $CPR_WIRE, else cpr-wire beside the folder of this program. */
static inline const char *wire_side_program(void)
{
	static char path[4096];
	const char *env = getenv("CPR_WIRE");
	if (env)
		return env;
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	if (n <= 0)
		return "cpr-wire";
	path[n] = '\0';
	for (int i = 0; i < 2; i++)
		*strrchr(path, '/') = '\0';
	return strcat(path, "/cpr-wire");
}

static inline int wire_side_start(struct wire_side *s, struct fault *f)
{
	struct wire_conf c = { .program = wire_side_program(),
			       .client = s->client,
			       .expect = s->expect,
			       .sock = s->sock,
			       .link = &s->fds };
	if (wire_user("nobody", &c.uid, &c.gid, f) < 0 || link_create(&s->fds, f) < 0)
		return -1;
	auto_fd ca = open(s->ca, O_RDONLY | O_CLOEXEC);
	auto_fd cert = open(s->cert, O_RDONLY | O_CLOEXEC);
	auto_fd key = open(s->key, O_RDONLY | O_CLOEXEC);
	if (ca < 0 || cert < 0 || key < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s, %s, %s", s->ca, s->cert, s->key);
	c.ca = ca;
	c.cert = cert;
	c.key = key;
	int r = wire_start(&c, &s->proc, f);
	util_close(&s->sock);
	util_close(&s->fds.wire_end);
	return r;
}

/* Waits for the end of the handshake. */
static inline int wire_side_hello(struct wire_side *s, int timeout_ms, struct fault *f)
{
	struct pollfd p = { .fd = s->proc.control, .events = POLLIN };
	if (poll(&p, 1, timeout_ms) <= 0)
		return fault_set(f, FAULT_TIMEOUT, "no hello from the wire");
	int r = wire_hello_read(s->proc.control, s->peer, f);
	util_close(&s->proc.control);
	return r == 1 ? 0 : -1;
}

/* Waits for the wire's end; its wait status, or -1 when it still runs (then it is killed). */
static inline int wire_side_reap(struct wire_side *s, int timeout_ms)
{
	int status, r = 0;
	uint64_t end = util_monotonic_ns() + (uint64_t)timeout_ms * 1000000;
	while ((r = waitpid(s->proc.pid, &status, WNOHANG)) == 0 && util_monotonic_ns() < end)
		poll(NULL, 0, 2);
	if (r == s->proc.pid)
		return status;
	kill(s->proc.pid, SIGKILL);
	waitpid(s->proc.pid, &status, 0);
	return -1;
}

#endif
