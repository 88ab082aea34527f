#include "moves.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uuid/uuid.h>

#include "convert.h"
#include "endpoint.h"
#include "log.h"

#define MOVES_EVENT_MAX ((size_t)1 << 20)

struct move {
	LIST_ENTRY(move) link;
	struct moves *mv;
	uint64_t conn;
	enum handoff_side side;
	char peer[256];
	struct migration *m; /* NULL: destination, id not known yet; or over */
	void *options;	     /* source, until the worker has them */
	size_t options_len;
	int events_fd; /* -1 before the worker and after its end of file */
	struct event *io;
	bool worker; /* one was started */
};

struct moves {
	struct event_base *base;
	struct wa *wa;
	const struct conf *conf;
	struct migrations *ms;
	struct peers *peers;
	LIST_HEAD(, move) list;
	bool stopping;
	uint8_t *buf; /* one event */
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

static struct move *find(struct moves *mv, uint64_t conn)
{
	struct move *x;
	LIST_FOREACH(x, &mv->list, link)
	{
		if (x->conn == conn)
			return x;
	}
	return NULL;
}

static const char *subject(const struct move *x)
{
	return x->m && x->m->id[0] ? x->m->id : x->peer;
}

static void stop_events(struct move *x)
{
	if (x->io)
		event_free(x->io);
	x->io = NULL;
	util_close(&x->events_fd);
}

static struct move *move_new(struct moves *mv, uint64_t conn, enum handoff_side side, const char *peer)
{
	struct move *x = must(calloc(1, sizeof(*x)));
	x->mv = mv;
	x->conn = conn;
	x->side = side;
	x->events_fd = -1;
	snprintf(x->peer, sizeof(x->peer), "%s", peer);
	LIST_INSERT_HEAD(&mv->list, x, link);
	return x;
}

static void move_free(struct move *x)
{
	stop_events(x);
	LIST_REMOVE(x, link);
	free(x->options);
	free(x);
}

/* The agent's own word that a migration has failed. */
static void fail(struct move *x, const struct fault *why)
{
	log_err(subject(x), "failed: %s: %s", fault_code_name(why->code), why->what);
	if (x->m)
		migrations_fail(x->mv->ms, x->m, why);
	x->m = NULL;
}

static void state_event(struct moves *mv, struct migration *m, const char *state, const char *reason)
{
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__STATE;
	e.migration = m->id;
	e.state = (char *)state;
	e.reason = (char *)reason;
	e.has_pid = m->pid > 0;
	e.pid = (uint32_t)m->pid;
	e.comm = m->comm;
	migrations_event(mv->ms, m, &e);
}

static void log_event(const struct move *x, const Cpr__Event *e)
{
	if (e->kind == CPR__EVENT__KIND__LOG && e->text)
		log_line(e->has_level && e->level <= LOG_LEVEL_ERR ? LOG_LEVEL_ERR : LOG_LEVEL_DEBUG, subject(x), "%s",
			 e->text);
	else if (e->kind == CPR__EVENT__KIND__STATE)
		log_debug(subject(x), "%s%s%s", e->state ? e->state : "?", e->reason ? ": " : "",
			  e->reason ? e->reason : "");
	else if (e->kind == CPR__EVENT__KIND__FAILED)
		log_err(subject(x), "failed: %s", e->fault && e->fault->what ? e->fault->what : "no reason given");
	else if (e->kind == CPR__EVENT__KIND__DONE && x->m)
		log_notice(subject(x), "pid %d (%s) runs on %s", (int)x->m->pid, x->m->comm,
			   x->side == HANDOFF_SOURCE ? x->peer : x->mv->conf->name);
}

/* A destination's worker tells its migration's id with its first event. */
static int learn_id(struct move *x, const Cpr__Event *e, struct fault *f)
{
	struct moves *mv = x->mv;
	if (x->m)
		return 0;
	if (!e->migration[0])
		return 1; /* still before the offer */
	x->m = migrations_add(mv->ms, HANDOFF_DESTINATION, e->migration, 0, "", x->peer, f);
	return x->m ? 0 : -1;
}

static void ask_cancel(struct move *x)
{
	if (x->events_fd >= 0 && send(x->events_fd, "C", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
		log_err(subject(x), "its worker can't be asked to cancel: %s", strerror(errno));
}

static void take(struct move *x, const Cpr__Event *e)
{
	struct fault f;
	int r = x->side == HANDOFF_DESTINATION || x->m ? learn_id(x, e, &f) : 1;
	if (r < 0) {
		log_err(subject(x), "its worker said what can't be: %s", f.what);
		ask_cancel(x);
		stop_events(x);
		return;
	}
	log_event(x, e);
	if (r > 0)
		return;
	migrations_event(x->mv->ms, x->m, e);
	if (x->m->over) {
		x->m = NULL;
		stop_events(x);
	}
}

static void take_event(struct move *x, const uint8_t *buf, size_t len)
{
	struct arena *a = arena_new();
	Cpr__Event *e = cpr__event__unpack(arena_pb(a), len, buf);
	if (e)
		take(x, e);
	else
		log_err(subject(x), "an event of %zu bytes from its worker can't be read", len);
	arena_free(a);
}

/* 1: there may be more */
static int read_event(struct move *x)
{
	ssize_t n = recv(x->events_fd, x->mv->buf, MOVES_EVENT_MAX, MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		stop_events(x); /* worker_exit says why */
		return 0;
	}
	if ((size_t)n > MOVES_EVENT_MAX)
		log_err(subject(x), "an event of %zd bytes was dropped", n);
	else
		take_event(x, x->mv->buf, (size_t)n);
	return x->events_fd >= 0;
}

static void on_event(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd;
	(void)what;
	for (int i = 0; i < 64 && read_event(ctx); i++)
		;
}

static int start_worker(struct move *x, struct fault *f)
{
	struct moves *mv = x->mv;
	int fd;
	if (wa_worker(mv->wa, x->conn, x->side, x->m ? x->m->id : "", x->m ? x->m->pid : 0, x->options, x->options_len,
		      &fd, f) < 0)
		return -1;
	x->worker = true;
	x->events_fd = fd;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		log_err(subject(x), "flags of its events socket: %s", strerror(errno));
	x->io = must(event_new(mv->base, fd, EV_READ | EV_PERSIST, on_event, x));
	event_add(x->io, NULL);
	peers_handed_over(mv->peers, x->conn);
	return 0;
}

static void runs_here(const struct move *x, struct fault *f)
{
	if (x->m && x->side == HANDOFF_SOURCE)
		fault_hint(f, "pid %d (%s) runs on %s as before.", (int)x->m->pid, x->m->comm, x->mv->conf->name);
}

static void on_connected(void *ctx, uint64_t conn, const char *peer)
{
	struct move *x = find(ctx, conn);
	struct fault f;
	if (!x)
		return;
	log_debug(subject(x), "connected to %s", peer);
	if (start_worker(x, &f) == 0)
		return;
	fault_while(&f, "starting the worker");
	runs_here(x, &f);
	peers_close(x->mv->peers, conn);
	fail(x, &f);
	move_free(x);
}

static void on_failed(void *ctx, uint64_t conn, const struct fault *why)
{
	struct move *x = find(ctx, conn);
	if (!x)
		return;
	struct fault f = *why;
	fault_while(&f, "connecting to %s", x->peer);
	runs_here(x, &f);
	fail(x, &f);
	move_free(x);
}

static void on_arrived(void *ctx, uint64_t conn, const char *peer)
{
	struct moves *mv = ctx;
	struct fault f;
	struct move *x = move_new(mv, conn, HANDOFF_DESTINATION, peer);
	log_debug(peer, "connected to push a process");
	if (moves_running(mv) > conf_number(mv->conf->max_migrations)) {
		fault_set(&f, FAULT_BUSY, "%s migrations run on %s already", mv->conf->max_migrations, mv->conf->name);
		fault_hint(&f, "Wait for one to end, or raise max-migrations there.");
	} else if (start_worker(x, &f) == 0) {
		return;
	}
	log_err(peer, "can't take a process: %s", f.what);
	peers_refuse(mv->peers, conn, &f);
	move_free(x);
}

const struct peers_handlers *moves_handlers(void)
{
	static const struct peers_handlers h = { on_connected, on_failed, on_arrived };
	return &h;
}

/* What can be said before a connection is made; the worker looks again, and closer. */
static int check_request(struct moves *mv, const struct request *rq, const char *host, struct fault *f)
{
	if (mv->stopping)
		return fault_set(f, FAULT_AGENT_DOWN, "cpr-agent is stopping");
	if (!strcasecmp(host, mv->conf->name)) {
		fault_set(f, FAULT_USAGE, "the process is on %s already", host);
		return fault_hint(f, "Name another host with --to.");
	}
	if (rq->pid == 1 || rq->pid == getpid()) {
		fault_set(f, FAULT_NOT_MOVABLE, "pid %d is %s", (int)rq->pid,
			  rq->pid == 1 ? "the init of this host" : "cpr-agent itself");
		return fault_hint(f, "Choose another process.");
	}
	if (kill(rq->pid, 0) < 0 && errno == ESRCH) {
		fault_set(f, FAULT_NO_PROCESS, "there is no process %d", (int)rq->pid);
		return fault_hint(f, "Find it with \"pgrep -a NAME\".");
	}
	struct migration *other = migrations_of_pid(mv->ms, rq->pid);
	if (other) {
		fault_set(f, FAULT_BUSY, "pid %d is being moved to %s by migration %s", (int)rq->pid, other->peer,
			  other->id);
		return fault_hint(f, "Wait for it, or cancel it with \"cpr-migrate cancel %s\".", other->id);
	}
	if (migrations_running(mv->ms) >= conf_number(mv->conf->max_migrations)) {
		fault_set(f, FAULT_BUSY, "%s migrations are running", mv->conf->max_migrations);
		return fault_hint(f, "Wait for one to end, or raise max-migrations.");
	}
	return 0;
}

static void read_comm(pid_t pid, char *comm, size_t len)
{
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	snprintf(comm, len, "%.*s", text ? (int)strcspn(text, "\n") : 0, text ? text : "");
}

int moves_start(struct moves *mv, const struct request *rq, struct migration **out, struct fault *f)
{
	char host[256], id[MIGRATION_ID], comm[64];
	uint16_t port;
	if (endpoint_split(rq->to, host, sizeof(host), &port, f) < 0 || check_request(mv, rq, host, f) < 0)
		return -1;
	uint64_t conn;
	if (peers_connect(mv->peers, rq->to, &conn, f) < 0)
		return -1;
	uuid_t uuid;
	uuid_generate_random(uuid);
	uuid_unparse_lower(uuid, id);
	read_comm(rq->pid, comm, sizeof(comm));
	struct migration *m = migrations_add(mv->ms, HANDOFF_SOURCE, id, rq->pid, comm, host, f);
	if (!m) {
		peers_close(mv->peers, conn);
		return -1;
	}
	struct move *x = move_new(mv, conn, HANDOFF_SOURCE, host);
	x->m = m;
	x->options_len = cpr__options__get_packed_size(rq->options);
	x->options = must(malloc(x->options_len + 1));
	cpr__options__pack(rq->options, x->options);
	log_notice(id, "pid %d (%s) is to move to %s", (int)rq->pid, comm, rq->to);
	state_event(mv, m, "CONNECTING", host);
	*out = m;
	return 0;
}

static struct move *of_migration(struct moves *mv, const struct migration *m)
{
	struct move *x;
	LIST_FOREACH(x, &mv->list, link)
	{
		if (x->m == m)
			return x;
	}
	return NULL;
}

static void cancel_connecting(struct move *x)
{
	struct fault f;
	fault_set(&f, FAULT_CANCELLED, "cancelled while connecting to %s", x->peer);
	runs_here(x, &f);
	peers_close(x->mv->peers, x->conn);
	fail(x, &f);
	move_free(x);
}

/* Before the first handoff state of the worker, nothing is decided. */
static bool undecided(const struct migration *m)
{
	enum handoff_state s = handoff_state_parse(m->state);
	return s == HANDOFF_NONE || handoff_undecided(s);
}

int moves_cancel(struct moves *mv, struct migration *m, struct fault *f)
{
	struct move *x = of_migration(mv, m);
	if (m->over || !x)
		return fault_set(f, FAULT_USAGE, "migration %s is over", m->id);
	if (!undecided(m)) {
		fault_set(f, FAULT_BUSY, "migration %s is past its commit (%s): it can't be cancelled any more", m->id,
			  m->state);
		return fault_hint(f, "See its outcome with \"cpr-migrate show %s\".", m->id);
	}
	log_notice(m->id, "to be cancelled");
	if (!x->worker)
		cancel_connecting(x);
	else
		ask_cancel(x);
	return 0;
}

size_t moves_stop(struct moves *mv)
{
	struct move *x, *next;
	struct fault f;
	mv->stopping = true;
	for (x = LIST_FIRST(&mv->list); x; x = next) {
		next = LIST_NEXT(x, link);
		if (x->m && undecided(x->m) && moves_cancel(mv, x->m, &f) < 0)
			log_err(subject(x), "%s", f.what);
		else if (!x->m && x->events_fd >= 0)
			ask_cancel(x);
	}
	return moves_running(mv);
}

size_t moves_running(const struct moves *mv)
{
	size_t n = 0;
	const struct move *x;
	LIST_FOREACH(x, &mv->list, link)
	{
		n++;
	}
	return n;
}

/* Where the process is, by the last state that was journalled. */
static void tell_where(const struct move *x, enum handoff_state state, struct fault *f)
{
	const char *here = x->mv->conf->name, *there = x->peer;
	int pid = (int)x->m->pid;
	const char *comm = x->m->comm;
	if (state == HANDOFF_DONE)
		fault_hint(f, "pid %d (%s) runs on %s.", pid, comm, there);
	else if (state == HANDOFF_RUNNING)
		fault_hint(f, "pid %d (%s) runs on %s.", pid, comm, here);
	else if (state == HANDOFF_COMMITTING || state == HANDOFF_IN_DOUBT)
		fault_hint(f,
			   "pid %d (%s) stays frozen on %s: the commit was sent, and only %s can say whether it runs "
			   "there.",
			   pid, comm, here, there);
	else if (x->side == HANDOFF_SOURCE)
		fault_hint(f, "pid %d (%s) runs on %s as before.", pid, comm, here);
	else
		fault_hint(f, "Nothing of it is left on %s; on %s it runs as before.", here, there);
}

void moves_worker_exit(struct moves *mv, uint64_t conn, const char *migration, enum handoff_state state, bool crashed,
		       const char *text)
{
	struct move *x = find(mv, conn);
	if (!x) {
		log_debug(migration && *migration ? migration : "moves", "a worker that is not known has ended");
		return;
	}
	/* Its last words may still be in the socket. */
	while (x->events_fd >= 0 && read_event(x))
		;
	if (x->m) {
		struct fault f;
		bool doubt = state == HANDOFF_COMMITTING || state == HANDOFF_IN_DOUBT;
		fault_set(&f, doubt ? FAULT_IN_DOUBT : FAULT_WORKER_DIED,
			  "the worker of this migration %s in state %s%s%s", crashed ? "died" : "ended without a word",
			  handoff_state_name(state), text && *text ? ": " : "", text ? text : "");
		tell_where(x, state, &f);
		if (state != HANDOFF_NONE)
			state_event(mv, x->m, handoff_state_name(state), "worker-died");
		fail(x, &f);
	} else if (crashed) {
		log_err(subject(x), "a worker died: %s", text ? text : "");
	}
	peers_close(mv->peers, conn);
	move_free(x);
}

void moves_warden_gone(struct moves *mv)
{
	struct move *x;
	while ((x = LIST_FIRST(&mv->list))) {
		struct fault f;
		fault_set(&f, FAULT_INTERNAL, "cpr-warden died, so nothing is known of this migration any more");
		fault_hint(&f, "Restart cpr-agent: the warden finishes or undoes it from its journal.");
		fail(x, &f);
		move_free(x);
	}
}

struct moves *moves_new(struct event_base *base, struct wa *wa, const struct conf *c, struct migrations *ms)
{
	struct moves *mv = must(calloc(1, sizeof(*mv)));
	mv->base = base;
	mv->wa = wa;
	mv->conf = c;
	mv->ms = ms;
	mv->buf = must(malloc(MOVES_EVENT_MAX));
	return mv;
}

void moves_use_peers(struct moves *mv, struct peers *p)
{
	mv->peers = p;
}

void moves_free(struct moves *mv)
{
	struct move *x;
	if (!mv)
		return;
	while ((x = LIST_FIRST(&mv->list)))
		move_free(x);
	free(mv->buf);
	free(mv);
}
