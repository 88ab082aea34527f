#include "warden_agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "convert.h"
#include "spawn.h"
#include "warden_proto.h"

#define START_MS   10000
#define QUEUE	   (4 << 20) /* asks that wait while the warden is at something */
#define EVENTS_MAX 64	     /* in one go, so that the agent stays responsive */

struct wa {
	int sock; /* -1: the warden is gone */
	pid_t pid;
	int pidfd;
	struct wa_handlers h;
	void *ctx;
};

static int exec_warden(const struct wa_paths *p, int sock, pid_t *pid, int *pidfd, struct fault *f)
{
	char level[16];
	snprintf(level, sizeof(level), "%d", p->log_level);
	const char *argv[] = {
		p->warden,    "--worker", p->worker, "--wire",	    p->wire, "--run-dir", p->run_dir,
		"--ca",	      p->ca,	  "--cert",  p->cert,	    "--key", p->key,	  "--wire-user",
		p->wire_user, "--name",	  p->name,   "--log-level", level,   NULL,
	};
	return spawn((char *const *)argv, sock, SPAWN_SESSION, pid, pidfd, f);
}

/* Its first word: ready, or why not. */
static int first_word(struct wa *w, struct fault *f)
{
	struct wp_event e;
	int fds[WP_FDS_MAX];
	size_t n = 0;
	struct pollfd p = { .fd = w->sock, .events = POLLIN };
	if (poll(&p, 1, START_MS) <= 0)
		return fault_set(f, FAULT_TIMEOUT, "cpr-warden did not start within %d ms", START_MS);
	if (wp_recv(w->sock, &e, sizeof(e), fds, &n, MSG_DONTWAIT) <= 0)
		return fault_set(f, FAULT_INTERNAL, "cpr-warden ended at its start; its messages say why");
	if (e.kind == WP_EVENT_READY)
		return 0;
	wp_clean_fault(&e.fault);
	*f = e.fault;
	return fault_while(f, "starting cpr-warden");
}

int wa_start(const struct wa_paths *paths, const struct wa_handlers *h, void *ctx, struct wa **out, struct fault *f)
{
	int ends[2], queue = QUEUE;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return fault_errno(f, FAULT_SYSTEM, "a socket for the warden");
	auto_fd theirs = ends[1];
	for (int i = 0; i < 2; i++)
		if (setsockopt(ends[i], SOL_SOCKET, SO_SNDBUFFORCE, &queue, sizeof(queue)) < 0)
			setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &queue, sizeof(queue));
	struct wa *w = calloc(1, sizeof(*w));
	if (!w)
		abort();
	*w = (struct wa){ .sock = ends[0], .pidfd = -1, .h = *h, .ctx = ctx };
	if (exec_warden(paths, theirs, &w->pid, &w->pidfd, f) < 0) {
		wa_free(w);
		return -1;
	}
	util_close(&theirs);
	if (first_word(w, f) < 0) {
		wa_free(w);
		return -1;
	}
	*out = w;
	return 0;
}

int wa_fd(const struct wa *w)
{
	return w->sock;
}

void wa_free(struct wa *w)
{
	if (!w)
		return;
	util_close(&w->sock);
	if (w->pid > 0)
		waitpid(w->pid, NULL, WNOHANG); /* still at work: it is init's when we are gone */
	util_close(&w->pidfd);
	free(w);
}

static void lost(struct wa *w)
{
	util_close(&w->sock);
	if (w->pid > 0 && waitpid(w->pid, NULL, WNOHANG) == w->pid)
		w->pid = 0;
	w->h.warden_gone(w->ctx);
}

static void handle(struct wa *w, struct wp_event *e)
{
	wp_clean(e->migration, sizeof(e->migration));
	wp_clean(e->peer, sizeof(e->peer));
	wp_clean(e->text, sizeof(e->text));
	switch (e->kind) {
	case WP_EVENT_WIRE_UP:
		w->h.wire_up(w->ctx, e->conn, e->peer);
		break;
	case WP_EVENT_WIRE_FAILED:
		wp_clean_fault(&e->fault);
		w->h.wire_failed(w->ctx, e->conn, &e->fault);
		break;
	case WP_EVENT_WORKER_EXIT:
		w->h.worker_exit(w->ctx, e->conn, e->migration,
				 e->state < HANDOFF_STATE_COUNT ? (enum handoff_state)e->state : HANDOFF_NONE,
				 e->crashed, e->text);
		break;
	case WP_EVENT_READY:
	case WP_EVENT_FAILED:
		break;
	}
}

void wa_dispatch(struct wa *w)
{
	struct wp_event e;
	int fds[WP_FDS_MAX];
	for (int i = 0; i < EVENTS_MAX && w->sock >= 0; i++) {
		size_t n = 0;
		int r = wp_recv(w->sock, &e, sizeof(e), fds, &n, MSG_DONTWAIT);
		for (size_t k = 0; k < n; k++)
			util_close(&fds[k]);
		if (r < 0 && errno == EAGAIN)
			return;
		if (r <= 0)
			lost(w);
		else
			handle(w, &e);
	}
}

static int ask(struct wa *w, struct wp_ask *a, int fd, struct fault *f)
{
	a->size = sizeof(*a);
	if (w->sock < 0)
		return fault_set(f, FAULT_INTERNAL, "the warden is gone");
	if (wp_send(w->sock, a, sizeof(*a), &fd, fd >= 0) < 0)
		return fault_errno(f, errno == EAGAIN ? FAULT_BUSY : FAULT_INTERNAL, "ask the warden");
	return 0;
}

static int copy(char *to, size_t size, const char *from, const char *what, struct fault *f)
{
	if (strlen(from) >= size)
		return fault_set(f, FAULT_USAGE, "%s of %zu characters", what, strlen(from));
	memcpy(to, from, strlen(from) + 1);
	return 0;
}

int wa_wire(struct wa *w, uint64_t conn, int sock, bool client, const char *expect, struct fault *f)
{
	auto_fd handed = sock;
	struct wp_ask a = { .kind = WP_ASK_WIRE, .conn = conn, .client = client };
	if (expect && copy(a.expect, sizeof(a.expect), expect, "a host name", f) < 0)
		return -1;
	return ask(w, &a, handed, f);
}

/* Packed here: the warden passes it on without a look. */
static void pack_abort(const struct fault *why, struct wp_ask *to)
{
	struct arena *a = arena_new();
	Cpr__Abort m = CPR__ABORT__INIT;
	m.fault = convert_fault_out(a, why);
	size_t len = cpr__abort__get_packed_size(&m);
	if (len <= sizeof(to->options))
		to->options_len = (uint32_t)cpr__abort__pack(&m, to->options);
	arena_free(a);
}

int wa_close_wire(struct wa *w, uint64_t conn, const struct fault *why, struct fault *f)
{
	struct wp_ask a = { .kind = WP_ASK_CLOSE_WIRE, .conn = conn };
	if (why)
		pack_abort(why, &a);
	return ask(w, &a, -1, f);
}

int wa_worker(struct wa *w, uint64_t conn, enum handoff_side side, const char *migration, pid_t pid,
	      const void *options, size_t options_len, int *events_fd, struct fault *f)
{
	int ends[2];
	struct wp_ask a = { .kind = WP_ASK_WORKER, .conn = conn, .side = side, .pid = pid };
	if (copy(a.migration, sizeof(a.migration), migration, "a migration id", f) < 0)
		return -1;
	if (options_len > sizeof(a.options))
		return fault_set(f, FAULT_USAGE, "options of %zu bytes; at most %zu", options_len, sizeof(a.options));
	if (options_len)
		memcpy(a.options, options, options_len);
	a.options_len = (uint32_t)options_len;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return fault_errno(f, FAULT_SYSTEM, "a socket for events");
	auto_fd ours = ends[0];
	auto_fd theirs = ends[1];
	if (ask(w, &a, theirs, f) < 0)
		return -1;
	*events_fd = take_fd(&ours);
	return 0;
}
