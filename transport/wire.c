/*
 * The pump: TCP socket on one side, two rings on the other. Decrypts straight into the down ring, encrypts straight
 * out of the up ring, sleeps only when nothing can be moved.
 */
#include "wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "convert.h"
#include "link.h"
#include "ring.h"
#include "tls.h"
#include "wire_sandbox.h"

#define BURST_BYTES    ((size_t)1 << 20)   /* one direction, before the other has its turn */
#define ROOM_WORTH     ((size_t)256 << 10) /* a full down ring: worth waking up for */
#define CLOSE_MS       5000
#define DEAD_PEER_MS   20000
#define LAST_WORDS_MAX 4096

struct pump {
	struct tls *tls;
	struct ring up, down;
	bool in_dry;	  /* the socket has nothing to read */
	bool in_full;	  /* the down ring has no room */
	bool worker_gone; /* nobody reads the down ring, nothing is added to the up ring */
};

enum moved { MOVED_FAILED = -1, MOVED_NOTHING, MOVED_SOME, MOVED_END };

/* ---- moving ---- */

static enum moved pump_out(struct pump *p, struct fault *f)
{
	const uint8_t *at;
	size_t done = 0, have, n;
	while (done < BURST_BYTES) {
		if (ring_data(&p->up, &at, &have, f) < 0)
			return MOVED_FAILED;
		if (have == 0)
			break;
		enum tls_status s = tls_write(p->tls, at, have, &n, f);
		if (s == TLS_FAILED)
			return MOVED_FAILED;
		if (s != TLS_DONE)
			break;
		ring_consume(&p->up, n);
		done += n;
	}
	if (tls_unsent(p->tls) && tls_flush(p->tls, f) == TLS_FAILED)
		return MOVED_FAILED;
	return done ? MOVED_SOME : MOVED_NOTHING;
}

/* Where the next bytes of the peer go. When the worker is gone they are read all the same, and forgotten: a peer that
 * can't send may not be able to receive, either. */
static int in_space(struct pump *p, uint8_t **at, size_t *room, struct fault *f)
{
	static uint8_t nowhere[16384];
	if (!p->worker_gone)
		return ring_room(&p->down, at, room, f);
	*at = nowhere;
	*room = sizeof(nowhere);
	return 0;
}

static enum moved pump_in(struct pump *p, struct fault *f)
{
	uint8_t *at;
	size_t done = 0, room, n;
	p->in_dry = p->in_full = false;
	while (done < BURST_BYTES) {
		if (in_space(p, &at, &room, f) < 0)
			return MOVED_FAILED;
		p->in_full = room == 0;
		if (p->in_full)
			break;
		enum tls_status s = tls_read(p->tls, at, room, &n, f);
		p->in_dry = s == TLS_BLOCKED;
		if (s == TLS_FAILED)
			return MOVED_FAILED;
		if (s == TLS_END)
			return MOVED_END;
		if (s != TLS_DONE)
			break;
		if (!p->worker_gone)
			ring_produce(&p->down, n);
		done += n;
	}
	return done ? MOVED_SOME : MOVED_NOTHING;
}

/* ---- sleeping ---- */

/* 1: there is something to do already. */
static int arm(struct pump *p, struct fault *f)
{
	int r = p->worker_gone ? 0 : ring_arm(&p->up, 1, f);
	if (r == 0 && p->in_full)
		r = ring_arm(&p->down, ROOM_WORTH, f);
	return r;
}

static int pump_sleep(struct pump *p, struct fault *f)
{
	bool unsent = tls_unsent(p->tls);
	/* Bytes that wait in the up ring because the socket is full need no arming: the socket is what is waited for. */
	int r = unsent ? 0 : arm(p, f);
	if (unsent && p->in_full)
		r = ring_arm(&p->down, ROOM_WORTH, f);
	if (r)
		return r < 0 ? -1 : 0;
	short events = (short)((p->in_dry ? POLLIN : 0) | (unsent ? POLLOUT : 0));
	struct pollfd fds[] = {
		/* a socket that nothing is wanted from would still report its hang-up, over and over */
		{ .fd = events ? WIRE_FD_SOCKET : -1, .events = events },
		{ .fd = WIRE_FD_UP_DATA, .events = POLLIN },
		{ .fd = WIRE_FD_DOWN_SPACE, .events = POLLIN },
		{ .fd = p->worker_gone ? -1 : WIRE_FD_LINK, .events = 0 },
	};
	if (poll(fds, ARRAY_LEN(fds), -1) < 0)
		return errno == EINTR ? 0 : fault_errno(f, FAULT_SYSTEM, "wait for something to do");
	if (fds[1].revents)
		ring_woken(&p->up);
	if (fds[2].revents)
		ring_woken(&p->down);
	if (fds[3].revents)
		p->worker_gone = true;
	return 0;
}

/* ---- the end ---- */

/* Everything is sent: says so, and waits until the peer has hung up. Closing a socket with unread bytes would reset the
 * connection: what is lost on its way is then never sent again. */
static void say_goodbye(struct pump *p)
{
	static char nowhere[65536];
	uint64_t deadline = util_monotonic_ns() + (uint64_t)CLOSE_MS * 1000000, now;
	enum tls_status s = tls_close_notify(p->tls, NULL);
	bool shut = false;
	while (s != TLS_FAILED && (now = util_monotonic_ns()) < deadline) {
		if (s == TLS_DONE && !shut) {
			shutdown(WIRE_FD_SOCKET, SHUT_WR);
			shut = true;
		}
		struct pollfd fd = { .fd = WIRE_FD_SOCKET, .events = (short)(POLLIN | (shut ? 0 : POLLOUT)) };
		if (poll(&fd, 1, (int)((deadline - now) / 1000000 + 1)) < 0 && errno != EINTR)
			return;
		if (!shut && (fd.revents & POLLOUT))
			s = tls_flush(p->tls, NULL);
		ssize_t n = recv(WIRE_FD_SOCKET, nowhere, sizeof(nowhere), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return;
	}
}

static void last_words(const struct fault *f)
{
	uint8_t buf[LAST_WORDS_MAX];
	struct arena *a = arena_new();
	Cpr__Fault *m = convert_fault_out(a, f);
	if (cpr__fault__get_packed_size(m) <= sizeof(buf)) {
		size_t n = cpr__fault__pack(m, buf);
		ssize_t ignored = send(WIRE_FD_LINK, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		(void)ignored;
	}
	arena_free(a);
}

/* 0: the worker hung up, and everything is sent. -1: the connection is over. */
static int pump_run(struct pump *p, struct fault *f)
{
	for (;;) {
		/* before looking at the ring: what was committed before the hang-up must not be missed */
		bool over = p->worker_gone;
		enum moved out = pump_out(p, f);
		/* What the peer sent before it went is delivered, however the sending failed. */
		enum moved in;
		do
			in = pump_in(p, out == MOVED_FAILED ? NULL : f);
		while (out == MOVED_FAILED && in == MOVED_SOME);
		if (out == MOVED_FAILED || in == MOVED_FAILED)
			return -1;
		if (in == MOVED_END)
			return fault_set(f, FAULT_PEER_LOST, "%s closed the connection", tls_peer(p->tls));
		/* whatever the peer still sends: there is nobody to read it */
		if (over && out == MOVED_NOTHING && !tls_unsent(p->tls))
			return 0;
		if (out == MOVED_SOME || in == MOVED_SOME)
			continue;
		if (pump_sleep(p, f) < 0)
			return -1;
	}
}

/* ---- set-up ---- */

/* Buffer sizes are left to the kernel, which adapts them up to tcp_rmem and tcp_wmem; setting them would cap them at
 * the lower rmem_max and wmem_max. None of this is needed for correctness. */
static void set_up_socket(void)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{ IPPROTO_TCP, TCP_NODELAY, 1 },  { SOL_SOCKET, SO_KEEPALIVE, 1 },
		{ IPPROTO_TCP, TCP_KEEPIDLE, 5 }, { IPPROTO_TCP, TCP_KEEPINTVL, 5 },
		{ IPPROTO_TCP, TCP_KEEPCNT, 3 },  { IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS },
	};
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		(void)setsockopt(WIRE_FD_SOCKET, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int set_up(struct pump *p, bool client, const char *expect, struct fault *f)
{
	const struct tls_conf conf = {
		.client = client,
		.expect = expect,
		.ca_fd = WIRE_FD_CA,
		.cert_fd = WIRE_FD_CERT,
		.key_fd = WIRE_FD_KEY,
	};
	if (!(p->tls = tls_new(&conf, f)))
		return -1;
	if (ring_map(&p->up, WIRE_FD_UP_MEM, LINK_RING_BYTES, RING_CONSUMER, WIRE_FD_UP_DATA, WIRE_FD_UP_SPACE, f) <
		    0 ||
	    ring_map(&p->down, WIRE_FD_DOWN_MEM, LINK_RING_BYTES, RING_PRODUCER, WIRE_FD_DOWN_DATA, WIRE_FD_DOWN_SPACE,
		     f) < 0)
		return -1;
	close(WIRE_FD_CA);
	close(WIRE_FD_CERT);
	close(WIRE_FD_KEY);
	close(WIRE_FD_UP_MEM);
	close(WIRE_FD_DOWN_MEM);
	set_up_socket();
	tzset(); /* reads a file, which OpenSSL would have done while it looks at dates */
	return 0;
}

static int say_hello(struct wire_hello *h)
{
	h->size = sizeof(*h);
	int r = send(WIRE_FD_CONTROL, h, sizeof(*h), MSG_NOSIGNAL) == sizeof(*h) ? 0 : -1;
	close(WIRE_FD_CONTROL);
	return r;
}

int wire_run(bool client, const char *expect)
{
	static struct pump p;
	struct wire_hello h = { 0 };
	struct fault f = { 0 };
	signal(SIGPIPE, SIG_IGN);
	/* From the handshake on, bytes of a stranger are looked at: the cage is closed before. */
	if (set_up(&p, client, expect, &h.fault) < 0 || wire_sandbox_enter(&h.fault) < 0 ||
	    tls_handshake(p.tls, WIRE_FD_SOCKET, WIRE_HANDSHAKE_MS, WIRE_FD_CONTROL, &h.fault) < 0)
		return say_hello(&h) < 0 ? 2 : 1;
	h.up = 1;
	snprintf(h.peer, sizeof(h.peer), "%s", tls_peer(p.tls));
	if (say_hello(&h) < 0)
		return 2;
	if (pump_run(&p, &f) < 0) {
		last_words(&f);
		return 1;
	}
	say_goodbye(&p);
	return 0;
}
