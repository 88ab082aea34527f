#include "warden.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "custody.h"
#include "lock.h"
#include "log.h"
#include "spawn.h"
#include "warden_proto.h"
#include "wire_start.h"

#define WIRES_MAX   256
#define WORKERS_MAX 64
#define SWEEP_MS    1000
#define LINGER_MS   3000

struct wire {
	LIST_ENTRY(wire) list;
	uint64_t conn;
	pid_t pid;   /* 0: reaped */
	int pidfd;   /* -1: reaped */
	int control; /* -1: it has told */
	bool up;
	bool has_link; /* not yet given to a worker */
	bool unwanted; /* the agent is not interested any more */
	struct link_fds link;
	char peer[WIRE_PEER_MAX];
};

struct worker {
	LIST_ENTRY(worker) list;
	uint64_t conn;
	pid_t pid;
	int pidfd;
	int sock;
	bool done;
	char text[1024]; /* what was done at the end */
	struct custody *c;
};

struct warden {
	const struct warden_conf *conf;
	struct custody_host host;
	uid_t wire_uid;
	gid_t wire_gid;
	int agent; /* -1: gone */
	pid_t agent_pid;
	int signals;
	bool stopping;
	uint64_t give_up_ns; /* on wires, when there is nothing else to do */
	unsigned n_wires, n_workers;
	LIST_HEAD(, wire) wires;
	LIST_HEAD(, worker) workers;
};

/* ---- to the agent ---- */

static void agent_gone(struct warden *w, const char *why)
{
	if (w->agent < 0)
		return;
	log_notice("warden", "%s; %u workers are left", why, w->n_workers);
	util_close(&w->agent);
}

static void tell(struct warden *w, struct wp_event *e)
{
	e->size = sizeof(*e);
	if (w->agent >= 0 && wp_send(w->agent, e, sizeof(*e), NULL, 0) < 0)
		agent_gone(w, "the agent does not listen");
}

static void tell_wire_failed(struct warden *w, uint64_t conn, const struct fault *why)
{
	struct wp_event e = { .kind = WP_EVENT_WIRE_FAILED, .conn = conn, .fault = *why };
	tell(w, &e);
}

static void tell_worker_exit(struct warden *w, const struct worker *k, bool crashed)
{
	struct wp_event e = { .kind = WP_EVENT_WORKER_EXIT, .conn = k->conn };
	e.state = k->c->j.state;
	e.crashed = crashed;
	memcpy(e.migration, k->c->j.migration, sizeof(e.migration));
	memcpy(e.text, k->text, sizeof(e.text));
	tell(w, &e);
}

/* ---- wires ---- */

static struct wire *find_wire(struct warden *w, uint64_t conn)
{
	struct wire *x;
	LIST_FOREACH(x, &w->wires, list)
	if (x->conn == conn && !x->unwanted)
		return x;
	return NULL;
}

static void drop_link(struct wire *x)
{
	if (x->has_link)
		link_fds_close(&x->link);
	x->has_link = false;
}

/* It ends by itself when nobody holds its link any more. */
static void let_wire_go(struct wire *x)
{
	util_close(&x->control);
	drop_link(x);
	x->unwanted = true;
}

/* Ended already, and nobody wants what it left. */
static void free_if_over(struct warden *w, struct wire *x)
{
	if (x->pid || !x->unwanted)
		return;
	LIST_REMOVE(x, list);
	w->n_wires--;
	free(x);
}

static int start_wire(struct warden *w, const struct wp_ask *a, int sock, struct wire *x, struct fault *f)
{
	auto_fd ca = open(w->conf->ca, O_RDONLY | O_CLOEXEC);
	if (ca < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s", w->conf->ca);
	auto_fd cert = open(w->conf->cert, O_RDONLY | O_CLOEXEC);
	if (cert < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s", w->conf->cert);
	auto_fd key = open(w->conf->key, O_RDONLY | O_CLOEXEC);
	if (key < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s", w->conf->key);
	if (link_create(&x->link, f) < 0)
		return -1;
	x->has_link = true;
	struct wire_conf c = {
		.program = w->conf->wire,
		.client = a->client,
		.expect = a->expect[0] ? a->expect : NULL,
		.uid = w->wire_uid,
		.gid = w->wire_gid,
		.sock = sock,
		.ca = ca,
		.cert = cert,
		.key = key,
		.link = &x->link,
	};
	struct wire_proc proc;
	if (wire_start(&c, &proc, f) < 0)
		return -1;
	util_close(&x->link.wire_end);
	x->pid = proc.pid;
	x->control = proc.control;
	x->pidfd = (int)syscall(SYS_pidfd_open, proc.pid, 0);
	return x->pidfd < 0 ? fault_errno(f, FAULT_SYSTEM, "watch the wire process") : 0;
}

static int ask_wire(struct warden *w, const struct wp_ask *a, int fds[WP_FDS_MAX], struct fault *f)
{
	int type = 0;
	socklen_t len = sizeof(type);
	if (getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return fault_set(f, FAULT_INTERNAL, "a connection that is no stream socket");
	if (find_wire(w, a->conn) || w->n_wires >= WIRES_MAX)
		return fault_set(f, FAULT_BUSY, "connection %llu is known, or there are too many",
				 (unsigned long long)a->conn);
	struct wire *x = calloc(1, sizeof(*x));
	if (!x)
		return fault_errno(f, FAULT_NO_MEMORY, "a connection");
	x->conn = a->conn;
	x->pidfd = x->control = -1;
	if (start_wire(w, a, fds[0], x, f) < 0) {
		let_wire_go(x);
		if (!x->pid) {
			free(x);
			return -1;
		}
		/* can't be watched: is reaped here, at once */
		kill(x->pid, SIGKILL);
		waitpid(x->pid, NULL, 0);
		free(x);
		return -1;
	}
	w->n_wires++;
	LIST_INSERT_HEAD(&w->wires, x, list);
	return 0;
}

/* The agent's word to an authenticated peer: the wire sends what lies in the ring before it closes. Nothing is waited
 * for, and nothing of it is understood here. */
static void say_why(struct wire *x, const uint8_t *abort, size_t len)
{
	struct fault f;
	struct link *l = x->has_link ? link_open(&x->link, &f) : NULL;
	if (!l)
		return;
	link_set_timeout(l, 0);
	if (link_send(l, FRAME_ABORT, 0, abort, len, &f) < 0)
		log_err(x->peer, "it can't be told why: %s", f.what);
	link_close(l);
}

static int ask_close_wire(struct warden *w, const struct wp_ask *a, int fds[WP_FDS_MAX], struct fault *f)
{
	(void)fds;
	(void)f;
	struct wire *x = find_wire(w, a->conn);
	if (!x)
		return 0;
	if (x->up && a->options_len)
		say_why(x, a->options, a->options_len);
	let_wire_go(x);
	free_if_over(w, x);
	return 0;
}

static void wire_talks(struct warden *w, struct wire *x)
{
	struct fault f;
	int r = wire_hello_read(x->control, x->peer, &f);
	if (r == 0)
		return;
	util_close(&x->control);
	if (r < 0) {
		tell_wire_failed(w, x->conn, &f);
		let_wire_go(x);
		return;
	}
	x->up = true;
	struct wp_event e = { .kind = WP_EVENT_WIRE_UP, .conn = x->conn };
	snprintf(e.peer, sizeof(e.peer), "%s", x->peer);
	tell(w, &e);
}

static void wire_ended(struct warden *w, struct wire *x)
{
	int status;
	if (waitpid(x->pid, &status, WNOHANG) <= 0)
		return;
	if (x->control >= 0) /* what it said last, or that it said nothing */
		wire_talks(w, x);
	x->pid = 0;
	util_close(&x->pidfd);
	/* Why it ended may lie in the ring (the peer's policy says no): the worker that the agent is about to ask for,
	 * having been told that it is up, reads it. */
	if (!x->up || !x->has_link)
		let_wire_go(x);
	free_if_over(w, x);
}

/* ---- starting workers ---- */

static int send_start(const struct warden *w, const struct worker *k, struct wire *x, const struct wp_ask *a,
		      int events, struct fault *f)
{
	struct wp_start s = { .size = sizeof(s), .side = a->side, .pid = a->pid, .options_len = a->options_len };
	int fds[WP_START_FDS];
	memcpy(fds, &x->link, sizeof(x->link));
	fds[LINK_FD_COUNT] = events;
	/* The wire's own end is closed here since it started; the worker would only close it. */
	fds[LINK_FD_COUNT - 1] = x->link.worker_end;
	memcpy(s.migration, a->migration, sizeof(s.migration));
	snprintf(s.peer, sizeof(s.peer), "%s", x->peer);
	snprintf(s.host, sizeof(s.host), "%s", w->conf->name);
	memcpy(s.options, a->options, a->options_len);
	if (wp_send(k->sock, &s, sizeof(s), fds, WP_START_FDS) < 0)
		return fault_errno(f, FAULT_SYSTEM, "hand the connection to a worker");
	return 0;
}

static int start_worker(struct warden *w, struct worker *k, struct wire *x, const struct wp_ask *a, int events,
			struct fault *f)
{
	int ends[2];
	char *argv[] = { (char *)w->conf->worker, NULL };
	k->c = custody_new(&w->host, a->side, a->migration, a->pid, x->peer);
	if (!k->c)
		return fault_errno(f, FAULT_NO_MEMORY, "a worker");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return fault_errno(f, FAULT_SYSTEM, "a socket for a worker");
	auto_fd theirs = ends[1];
	k->sock = ends[0];
	/* Sent first: it is there when the worker looks. */
	if (send_start(w, k, x, a, events, f) < 0)
		return -1;
	return spawn(argv, theirs, SPAWN_WITH_US, &k->pid, &k->pidfd, f);
}

static void free_worker(struct worker *k)
{
	custody_free(k->c);
	util_close(&k->sock);
	util_close(&k->pidfd);
	free(k);
}

static int check_worker(struct warden *w, const struct wp_ask *a, const struct wire *x, struct fault *f)
{
	struct worker *k;
	if (!x || !x->up || !x->has_link)
		return fault_set(f, FAULT_INTERNAL, "no connection %llu that is up", (unsigned long long)a->conn);
	if (w->n_workers >= WORKERS_MAX)
		return fault_set(f, FAULT_BUSY, "%u migrations are running", w->n_workers);
	if (a->side == HANDOFF_DESTINATION)
		return a->pid == 0 && !a->migration[0]
			       ? 0
			       : fault_set(f, FAULT_INTERNAL, "the offer says what a destination's migration is about");
	if (a->side != HANDOFF_SOURCE || !journal_is_uuid(a->migration))
		return fault_set(f, FAULT_INTERNAL, "'%s' is no migration id", a->migration);
	LIST_FOREACH(k, &w->workers, list)
	if (!strcmp(k->c->j.migration, a->migration))
		return fault_set(f, FAULT_BUSY, "migration %s is running", a->migration);
	if (journal_exists(w->host.run, a->migration))
		return fault_set(f, FAULT_BUSY, "migration %s is known here already", a->migration);
	return 0;
}

static int ask_worker(struct warden *w, const struct wp_ask *a, int fds[WP_FDS_MAX], struct fault *f)
{
	struct wire *x = find_wire(w, a->conn);
	if (check_worker(w, a, x, f) < 0)
		return -1;
	struct worker *k = calloc(1, sizeof(*k));
	if (!k)
		return fault_errno(f, FAULT_NO_MEMORY, "a worker");
	k->conn = a->conn;
	k->sock = k->pidfd = -1;
	if (start_worker(w, k, x, a, fds[0], f) < 0) {
		free_worker(k);
		return -1;
	}
	w->n_workers++;
	LIST_INSERT_HEAD(&w->workers, k, list);
	log_debug(a->migration[0] ? a->migration : "-", "worker %d started for %s", (int)k->pid, x->peer);
	let_wire_go(x);
	free_if_over(w, x);
	return 0;
}

/* ---- what the agent asks for ---- */

static const struct {
	const char *name;
	size_t fds;
	int (*fn)(struct warden *w, const struct wp_ask *a, int fds[WP_FDS_MAX], struct fault *f);
} asks[] = {
	[WP_ASK_WIRE] = { "wire", 1, ask_wire },
	[WP_ASK_CLOSE_WIRE] = { "close-wire", 0, ask_close_wire },
	[WP_ASK_WORKER] = { "worker", 1, ask_worker },
};
_Static_assert(ARRAY_LEN(asks) == WP_ASK_KINDS, "the whole list");

static void refuse(struct warden *w, const struct wp_ask *a, const struct fault *f)
{
	if (a->kind != WP_ASK_WORKER) {
		tell_wire_failed(w, a->conn, f);
		return;
	}
	struct worker none = { .conn = a->conn };
	none.c = custody_new(&w->host, a->side == HANDOFF_SOURCE ? HANDOFF_SOURCE : HANDOFF_DESTINATION, a->migration,
			     a->pid, "");
	if (!none.c)
		return;
	snprintf(none.text, sizeof(none.text), "no worker could be started: %s", f->what);
	tell_worker_exit(w, &none, true);
	custody_free(none.c);
}

static void agent_asks(struct warden *w)
{
	struct wp_ask a;
	struct fault f = { 0 };
	int fds[WP_FDS_MAX];
	size_t n = 0;
	int r = wp_recv(w->agent, &a, sizeof(a), fds, &n, MSG_DONTWAIT);
	if (r < 0 && errno == EAGAIN)
		return;
	if (r <= 0) {
		agent_gone(w, r == 0 ? "the agent is gone" : "the agent sent what it must not send");
		return;
	}
	wp_clean(a.migration, sizeof(a.migration));
	wp_clean(a.expect, sizeof(a.expect));
	if (a.kind >= WP_ASK_KINDS || n != asks[a.kind].fds || a.options_len > WP_OPTIONS_MAX)
		agent_gone(w, "the agent asks for what is not on the list");
	else if (w->stopping)
		r = fault_set(&f, FAULT_AGENT_DOWN, "the warden is stopping");
	else
		r = asks[a.kind].fn(w, &a, fds, &f);
	for (size_t i = 0; i < n; i++)
		util_close(&fds[i]);
	if (r < 0)
		refuse(w, &a, &f);
}

/* ---- what a worker asks for ---- */

/* One of ours, or one that somebody else is at. */
static int check_free(struct warden *w, const struct worker *self, pid_t pid, struct fault *f)
{
	struct worker *k;
	struct wire *x;
	bool ours = pid == getpid() || pid == w->agent_pid;
	LIST_FOREACH(x, &w->wires, list)
	ours |= x->pid == pid;
	LIST_FOREACH(k, &w->workers, list)
	{
		ours |= k->pid == pid;
		if (k != self && k->c->j.group[0] && custody_has(k->c, pid))
			return fault_set(f, FAULT_BUSY, "pid %d is in migration %s", (int)pid, k->c->j.migration);
	}
	return ours ? fault_set(f, FAULT_NOT_MOVABLE, "pid %d is a part of cpr", (int)pid) : 0;
}

static int op_name(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)fd;
	return custody_name(k->c, q->migration, q->pid, f);
}

static int op_state(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)fd;
	return custody_state(k->c, q->to, q->why, q->text, f);
}

static int op_adopt(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)fd;
	return check_free(w, k, q->pid, f) < 0 ? -1 : custody_adopt(k->c, q->pid, f);
}

static int op_cgroup(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	return custody_cgroup(k->c, q->text, fd, f);
}

static int op_keep_lock(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	if (*fd < 0 || q->flows > WP_FLOWS_MAX || fcntl(*fd, F_GET_SEALS) < 0)
		return fault_set(f, FAULT_INTERNAL, "flows that are none");
	size_t size = q->flows * sizeof(struct net_flow);
	auto_free struct net_flow *flows = malloc(size + 1);
	if (!flows || pread(*fd, flows, size, 0) != (ssize_t)size)
		return fault_errno(f, FAULT_SYSTEM, "read %zu flows", (size_t)q->flows);
	return custody_keep_lock(k->c, flows, q->flows, f);
}

static int op_run(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)fd;
	return custody_run(k->c, q->pid, f);
}

static int op_undo_push(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)fd;
	return custody_undo_push(k->c, &q->undo, f);
}

static int op_undo_drop(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)fd;
	return custody_undo_drop(k->c, q->undo_kind, f);
}

static int op_done(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	(void)w;
	(void)q;
	(void)fd;
	if (custody_settle(k->c, false, "the worker is done", k->text, sizeof(k->text), f) < 0)
		return -1;
	k->done = true;
	return 0;
}

/* The ones without arguments. */
#define PLAIN(op, fn)                                                                                     \
	static int op(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f) \
	{                                                                                                 \
		(void)w;                                                                                  \
		(void)q;                                                                                  \
		(void)fd;                                                                                 \
		return fn(k->c, f);                                                                       \
	}
PLAIN(op_freeze, custody_freeze)
PLAIN(op_thaw, custody_thaw)
PLAIN(op_remove, custody_remove)
PLAIN(op_undo, custody_undo)
PLAIN(op_forget, custody_forget)

/* fd: in, the descriptor that came; out, the one that goes back. */
static int (*const ops[])(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f) = {
	[WP_NAME] = op_name,	 [WP_STATE] = op_state,		[WP_ADOPT] = op_adopt,	       [WP_CGROUP] = op_cgroup,
	[WP_FREEZE] = op_freeze, [WP_THAW] = op_thaw,		[WP_KEEP_LOCK] = op_keep_lock, [WP_RUN] = op_run,
	[WP_REMOVE] = op_remove, [WP_UNDO_PUSH] = op_undo_push, [WP_UNDO_DROP] = op_undo_drop, [WP_UNDO] = op_undo,
	[WP_FORGET] = op_forget, [WP_DONE] = op_done,
};
_Static_assert(ARRAY_LEN(ops) == WP_OPS_COUNT, "the whole list");

static int serve(struct warden *w, struct worker *k, struct wp_request *q, int *fd, struct fault *f)
{
	wp_clean(q->migration, sizeof(q->migration));
	wp_clean(q->text, sizeof(q->text));
	if (q->op >= WP_OPS_COUNT || k->done)
		return fault_set(f, FAULT_INTERNAL, "request %u is not on the list", q->op);
	return ops[q->op](w, k, q, fd, f);
}

static void worker_asks(struct warden *w, struct worker *k)
{
	struct wp_request q;
	struct wp_reply reply = { .size = sizeof(reply) };
	int fds[WP_FDS_MAX];
	size_t n = 0;
	int r = wp_recv(k->sock, &q, sizeof(q), fds, &n, MSG_DONTWAIT);
	if (r < 0 && errno == EAGAIN)
		return;
	if (r <= 0) { /* dead, or about to be: pidfd tells */
		if (r < 0)
			kill(k->pid, SIGKILL);
		util_close(&k->sock);
		return;
	}
	auto_fd came = fds[0];
	for (size_t i = 1; i < n; i++)
		util_close(&fds[i]);
	int fd = came;
	reply.result = serve(w, k, &q, &fd, &reply.fault);
	auto_fd goes = fd != came && reply.result == 0 ? fd : -1;
	if (wp_send(k->sock, &reply, sizeof(reply), &goes, goes >= 0) < 0) {
		log_err("warden", "worker %d does not take its answers", (int)k->pid);
		kill(k->pid, SIGKILL);
	}
}

/* ---- the end of a worker ---- */

static void describe(int status, char *buf, size_t len)
{
	if (WIFSIGNALED(status))
		snprintf(buf, len, "the worker was killed by signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	else
		snprintf(buf, len, "the worker ended with status %d", WEXITSTATUS(status));
}

static void worker_ended(struct warden *w, struct worker *k)
{
	int status;
	char how[128];
	struct fault f;
	if (waitpid(k->pid, &status, WNOHANG) <= 0)
		return;
	/* Left in doubt in good order: there is nothing more that it could have done. */
	bool crashed = !k->done && !(WIFEXITED(status) && k->c->j.state == HANDOFF_IN_DOUBT);
	if (!k->done) {
		describe(status, how, sizeof(how));
		if (custody_settle(k->c, true, how, k->text, sizeof(k->text), &f) < 0)
			snprintf(k->text, sizeof(k->text), "%s; %s", how, f.what);
		const char *subject = k->c->j.migration[0] ? k->c->j.migration : "-";
		if (crashed)
			log_err(subject, "%s", k->text);
		else
			log_notice(subject, "%s", k->text);
	}
	tell_worker_exit(w, k, crashed);
	LIST_REMOVE(k, list);
	w->n_workers--;
	free_worker(k);
}

/* ---- what a dead warden left ---- */

static int recover(void *ctx, const char *migration, struct fault *f)
{
	struct warden *w = ctx;
	char text[1024];
	struct fault g;
	(void)f;
	struct custody *c = custody_load(&w->host, migration, &g);
	if (!c) {
		log_err(migration, "%s%s%s", g.what, g.hint[0] ? ". " : "", g.hint);
		return 0;
	}
	bool finished = handoff_final(c->j.state) && !c->j.group[0] && !c->j.n_undo;
	if (strcmp(c->j.boot_id, w->host.boot_id) != 0) {
		if (journal_remove(w->host.run, migration, &g) < 0)
			log_err(migration, "%s", g.what);
	} else if (!finished || !(c->j.ready)) {
		if (custody_settle(c, true, "worker and warden were gone", text, sizeof(text), &g) < 0)
			log_err(migration, "%s", g.what);
		else
			log_notice(migration, "%s", text);
	}
	custody_free(c);
	return 0;
}

/* ---- the loop ---- */

static void check_ourselves(void)
{
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 || prctl(PR_GET_SECCOMP, 0, 0, 0, 0) > 0)
		log_err("warden", "runs with no_new_privs or a seccomp filter, which every process restored here "
				  "inherits: remove them from its unit");
}

static int open_signals(struct fault *f)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? fault_errno(f, FAULT_SYSTEM, "signalfd") : fd;
}

/* Nobody will use them any more. */
static void drop_idle_wires(struct warden *w)
{
	struct wire *x, *next;
	for (x = LIST_FIRST(&w->wires); x; x = next) {
		next = LIST_NEXT(x, list);
		if (x->has_link || x->control >= 0)
			let_wire_go(x);
		free_if_over(w, x);
	}
}

struct waits {
	struct pollfd *p;
	size_t n, cap;
};

static void wait_on(struct waits *v, int fd)
{
	v->p[v->n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
}

static bool ready(struct waits *v)
{
	return v->p[v->n++].revents != 0;
}

/* The same order as in dispatch(). */
static void collect(struct warden *w, struct waits *v)
{
	struct wire *x;
	struct worker *k;
	v->n = 0;
	wait_on(v, w->signals);
	wait_on(v, w->agent);
	LIST_FOREACH(k, &w->workers, list)
	{
		wait_on(v, k->sock);
		wait_on(v, k->pidfd);
	}
	LIST_FOREACH(x, &w->wires, list)
	{
		wait_on(v, x->control);
		wait_on(v, x->pidfd);
	}
}

static void dispatch(struct warden *w, struct waits *v)
{
	v->n = 0;
	bool sig = ready(v), agent = ready(v);
	struct worker *next_worker;
	for (struct worker *k = LIST_FIRST(&w->workers); k; k = next_worker) {
		next_worker = LIST_NEXT(k, list);
		bool request = ready(v), ended = ready(v);
		/* Nobody is left who could go on from what a dead worker asked for. */
		if (ended)
			worker_ended(w, k);
		else if (request)
			worker_asks(w, k);
	}
	struct wire *next_wire;
	for (struct wire *x = LIST_FIRST(&w->wires); x; x = next_wire) {
		next_wire = LIST_NEXT(x, list);
		if (ready(v) && x->control >= 0)
			wire_talks(w, x);
		if (ready(v))
			wire_ended(w, x);
	}
	if (agent && w->agent >= 0) /* last: it makes new workers and wires */
		agent_asks(w);
	if (sig) {
		log_notice("warden", "told to stop; %u workers are left", w->n_workers);
		struct signalfd_siginfo s;
		w->stopping = read(w->signals, &s, sizeof(s)) > 0 || w->stopping;
	}
}

/* False: the end. Wires get time to send what was committed: they end with this process. */
static bool goes_on(struct warden *w, int *timeout_ms)
{
	*timeout_ms = SWEEP_MS;
	if (w->agent >= 0 && !w->stopping)
		return true;
	drop_idle_wires(w);
	if (!LIST_EMPTY(&w->workers))
		return true;
	uint64_t now = util_monotonic_ns();
	if (!w->give_up_ns)
		w->give_up_ns = now + LINGER_MS * 1000000ull;
	*timeout_ms = LINGER_MS;
	return !LIST_EMPTY(&w->wires) && now < w->give_up_ns;
}

static int loop(struct warden *w, struct fault *f)
{
	/* signals, agent, and two of each child */
	struct waits v = { .cap = 2 + 2 * (WIRES_MAX + WORKERS_MAX) };
	v.p = calloc(v.cap, sizeof(*v.p));
	if (!v.p)
		return fault_errno(f, FAULT_NO_MEMORY, "the loop");
	int r = 0;
	for (int timeout; goes_on(w, &timeout);) {
		collect(w, &v);
		int n = poll(v.p, v.n, timeout);
		if (n == 0) /* groups of restored processes that have exited since */
			freezer_sweep(&w->host.cgroups);
		else if (n > 0)
			dispatch(w, &v);
		else if (errno != EINTR) {
			r = fault_errno(f, FAULT_SYSTEM, "poll");
			break;
		}
	}
	free(v.p);
	return r;
}

/* They are opened for each connection, so that they can be renewed; that they are not there at all is said at once. */
static int check_files(const struct warden_conf *c, struct fault *f)
{
	const char *files[] = { c->ca, c->cert, c->key };
	for (size_t i = 0; i < ARRAY_LEN(files); i++)
		if (access(files[i], R_OK) < 0) {
			fault_errno(f, FAULT_CONFIG, "read %s", files[i]);
			return fault_hint(f,
					  "Certificates are made with cpr-pki, and named with --ca, --cert and --key.");
		}
	return 0;
}

static int start(struct warden *w, struct fault *f)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	if (getsockopt(w->agent, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return fault_errno(f, FAULT_USAGE, "descriptor %d is no socket to an agent", w->agent);
	w->agent_pid = peer.pid;
	if (check_files(w->conf, f) < 0 || wire_user(w->conf->wire_user, &w->wire_uid, &w->wire_gid, f) < 0)
		return -1;
	if (custody_host_open(w->conf->run_dir, &w->host, f) < 0)
		return -1;
	w->signals = open_signals(f);
	if (w->signals < 0)
		return -1;
	check_ourselves();
	if (journal_each(w->host.run, recover, w, f) < 0)
		return -1;
	freezer_sweep(&w->host.cgroups);
	return 0;
}

/* Wires that are still at work end with us. */
static void free_all(struct warden *w)
{
	struct wire *x;
	while ((x = LIST_FIRST(&w->wires))) {
		let_wire_go(x);
		util_close(&x->pidfd);
		LIST_REMOVE(x, list);
		free(x);
	}
	util_close(&w->signals);
	util_close(&w->agent);
	custody_host_close(&w->host);
}

int warden_run(const struct warden_conf *conf, struct fault *f)
{
	struct warden w = { .conf = conf, .agent = conf->agent, .signals = -1, .host = { .run = -1, .nft = -1 } };
	struct wp_event hello = { .kind = WP_EVENT_READY };
	LIST_INIT(&w.wires);
	LIST_INIT(&w.workers);
	int r = start(&w, f);
	if (r < 0) {
		hello.kind = WP_EVENT_FAILED;
		hello.fault = *f;
	}
	tell(&w, &hello);
	if (r == 0)
		r = loop(&w, f);
	free_all(&w);
	return r;
}
