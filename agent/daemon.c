#include "daemon.h"

#include <errno.h>
#include <event2/event.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "log.h"
#include "moves.h"
#include "peers.h"

struct daemon {
	const struct conf *conf;
	const struct listeners *listeners;
	json_object *trackers;
	struct event_base *base;
	struct wa *wa;
	struct migrations *migrations;
	struct moves *moves;
	struct peers *peers;
	struct api *api;
	struct event *warden_io, *sigterm, *sigint, *stop_timer;
	uint64_t stop_before_ns; /* 0: not stopping */
	bool warden_gone;
};

static void on_wire_up(void *ctx, uint64_t conn, const char *peer)
{
	peers_wire_up(((struct daemon *)ctx)->peers, conn, peer);
}

static void on_wire_failed(void *ctx, uint64_t conn, const struct fault *why)
{
	peers_wire_failed(((struct daemon *)ctx)->peers, conn, why);
}

static void on_worker_exit(void *ctx, uint64_t conn, const char *migration, enum handoff_state state, bool crashed,
			   const char *text)
{
	moves_worker_exit(((struct daemon *)ctx)->moves, conn, migration, state, crashed, text);
}

/* Lets answers that are written already reach their readers. */
static void leave_soon(struct daemon *d)
{
	event_base_loopexit(d->base, &(struct timeval){ .tv_usec = 100000 });
}

static void on_warden_gone(void *ctx)
{
	struct daemon *d = ctx;
	if (d->warden_gone)
		return;
	d->warden_gone = true;
	log_err("warden", "it has ended");
	if (d->warden_io)
		event_del(d->warden_io);
	peers_deafen(d->peers);
	moves_warden_gone(d->moves);
	leave_soon(d);
}

static void on_warden_io(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd;
	(void)what;
	wa_dispatch(((struct daemon *)ctx)->wa);
}

static void stop_step(struct daemon *d)
{
	if (moves_running(d->moves) == 0 || util_monotonic_ns() > d->stop_before_ns) {
		leave_soon(d);
		return;
	}
	evtimer_add(d->stop_timer, &(struct timeval){ .tv_usec = 20000 });
}

static void on_stop_timer(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd;
	(void)what;
	stop_step(ctx);
}

static void on_signal(evutil_socket_t sig, short what, void *ctx)
{
	struct daemon *d = ctx;
	(void)what;
	if (d->stop_before_ns) { /* the second time: at once; the warden deals with what is left */
		event_base_loopbreak(d->base);
		return;
	}
	d->stop_before_ns = util_monotonic_ns() + DAEMON_STOP_SECONDS * 1000000000ull;
	listen_notify("STOPPING=1");
	log_notice("agent", "stopping: %s", strsignal((int)sig));
	peers_deafen(d->peers);
	size_t n = moves_stop(d->moves);
	if (n)
		log_notice("agent", "waiting for %zu workers", n);
	stop_step(d);
}

static int start_warden(struct daemon *d, struct fault *f)
{
	const struct conf *c = d->conf;
	char warden[PATH_MAX], worker[PATH_MAX], wire[PATH_MAX];
	int longest = snprintf(warden, sizeof(warden), "%s/cpr-warden", c->programs);
	snprintf(worker, sizeof(worker), "%s/cpr-worker", c->programs);
	snprintf(wire, sizeof(wire), "%s/cpr-wire", c->programs);
	const struct wa_paths paths = {
		.warden = warden,
		.worker = worker,
		.wire = wire,
		.run_dir = c->run_dir,
		.ca = c->ca,
		.cert = c->cert,
		.key = c->key,
		.wire_user = c->wire_user,
		.name = c->name,
		.log_level = conf_log_level(c),
	};
	static const struct wa_handlers handlers = { on_wire_up, on_wire_failed, on_worker_exit, on_warden_gone };
	if ((size_t)longest >= sizeof(warden) || access(warden, X_OK) < 0) {
		fault_errno(f, FAULT_CONFIG, "find %.300s", warden);
		return fault_hint(f, "Name the directory of cpr-warden, cpr-worker and cpr-wire with --programs.");
	}
	if (wa_start(&paths, &handlers, d, &d->wa, f) < 0)
		return fault_while(f, "starting %s", warden);
	return 0;
}

static int listen_all(struct daemon *d, struct fault *f)
{
	for (size_t i = 0; i < d->listeners->n_peers; i++)
		if (peers_listen(d->peers, d->listeners->peer[i], f) < 0)
			return -1;
	const struct api_env env = {
		.conf = d->conf,
		.migrations = d->migrations,
		.moves = d->moves,
		.trackers = d->trackers,
		.listeners = d->listeners->peer,
		.n_listeners = d->listeners->n_peers,
	};
	d->api = api_new(d->base, d->listeners->api, &env, f);
	return d->api ? 0 : -1;
}

/* Libevent's own words, such as "All nameservers have failed": faults say the same, and whom it concerns. */
static void on_library_log(int severity, const char *text)
{
	log_line(severity >= EVENT_LOG_ERR ? LOG_LEVEL_ERR : LOG_LEVEL_DEBUG, "libevent", "%s", text);
}

static struct event *watch(struct daemon *d, int fd, short what, event_callback_fn fn)
{
	struct event *e = event_new(d->base, fd, what, fn, d);
	if (!e || (fd >= 0 && event_add(e, NULL) < 0))
		abort();
	return e;
}

struct daemon *daemon_new(const struct conf *c, const struct listeners *l, json_object *trackers, struct fault *f)
{
	struct daemon *d = calloc(1, sizeof(*d));
	if (!d)
		abort();
	d->conf = c;
	d->listeners = l;
	d->trackers = trackers;
	/* Before anything else is opened or ignored: what the warden inherits, workers and vessels would, too. */
	if (start_warden(d, f) < 0) {
		daemon_free(d);
		return NULL;
	}
	event_set_log_callback(on_library_log);
	d->base = event_base_new();
	if (!d->base)
		abort();
	signal(SIGPIPE, SIG_IGN);
	d->migrations = migrations_new(MIGRATIONS_KEPT);
	d->moves = moves_new(d->base, d->wa, c, d->migrations);
	d->peers = peers_new(d->base, d->wa, c, moves_handlers(), d->moves);
	moves_use_peers(d->moves, d->peers);
	d->warden_io = watch(d, wa_fd(d->wa), EV_READ | EV_PERSIST, on_warden_io);
	d->sigterm = watch(d, SIGTERM, EV_SIGNAL | EV_PERSIST, on_signal);
	d->sigint = watch(d, SIGINT, EV_SIGNAL | EV_PERSIST, on_signal);
	d->stop_timer = watch(d, -1, 0, on_stop_timer);
	if (listen_all(d, f) < 0) {
		daemon_free(d);
		return NULL;
	}
	return d;
}

int daemon_run(struct daemon *d, struct fault *f)
{
	if (event_base_dispatch(d->base) < 0)
		return fault_set(f, FAULT_INTERNAL, "the event loop failed");
	if (d->warden_gone && !d->stop_before_ns) {
		fault_set(f, FAULT_INTERNAL, "cpr-warden has ended, and without it the agent can do nothing");
		return fault_hint(f, "See its messages above, and start cpr-agent again.");
	}
	return 0;
}

static void event_drop(struct event *e)
{
	if (e)
		event_free(e);
}

void daemon_free(struct daemon *d)
{
	if (!d)
		return;
	api_free(d->api);
	moves_free(d->moves);
	peers_free(d->peers);
	if (d->migrations)
		migrations_free(d->migrations);
	event_drop(d->warden_io);
	event_drop(d->sigterm);
	event_drop(d->sigint);
	event_drop(d->stop_timer);
	if (d->wa)
		wa_free(d->wa);
	if (d->base)
		event_base_free(d->base);
	if (d->trackers)
		json_object_put(d->trackers);
	free(d);
}
