#include "api.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "endpoint.h"
#include "json.h"
#include "log.h"
#include "policy.h"

#define API_WATCH_BUFFER ((size_t)4 << 20) /* a watcher that reads this much too slowly is dropped */

struct api {
	struct api_env env;
	struct evhttp *http;
	LIST_HEAD(, api_watch) watches;
};

/* A client that watches a migration. */
struct api_watch {
	LIST_ENTRY(api_watch) link;
	struct evhttp_request *rq;
	struct migration_watch *watch;
	bool ended;
};

static int http_status(enum fault_code code)
{
	switch (code) {
	case FAULT_USAGE:
		return 400;
	case FAULT_DENIED:
		return 403;
	case FAULT_NO_PROCESS:
		return 404;
	case FAULT_BUSY:
	case FAULT_NOT_MOVABLE:
		return 409;
	case FAULT_HOST_UNREACHABLE:
		return 502;
	case FAULT_AGENT_DOWN:
		return 503;
	default:
		return 500;
	}
}

static void answer(struct evhttp_request *rq, int status, json_object *o)
{
	struct evbuffer *out = evbuffer_new();
	if (!out)
		abort();
	evbuffer_add_printf(out, "%s\n",
			    json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
	evhttp_add_header(evhttp_request_get_output_headers(rq), "Content-Type", "application/json");
	evhttp_send_reply(rq, status, NULL, out);
	evbuffer_free(out);
}

static void answer_fault(struct evhttp_request *rq, int status, const struct fault *f)
{
	answer(rq, status ? status : http_status(f->code), json_fault(f));
}

static void answer_migration(struct evhttp_request *rq, int status, const struct migration *m)
{
	answer(rq, status, migrations_json_one(m));
}

static void no_migration(struct evhttp_request *rq, const char *id)
{
	struct fault f;
	fault_set(&f, FAULT_USAGE, "no migration \"%.60s\" is known here", id);
	fault_hint(&f, "List them with \"cpr-migrate list\"; finished ones are kept until %u newer ones have ended.",
		   MIGRATIONS_KEPT);
	answer_fault(rq, 404, &f);
}

/* POST /v1/migrations */
static void post_migration(struct api *a, struct evhttp_request *rq, const char *id)
{
	struct evbuffer *in = evhttp_request_get_input_buffer(rq);
	size_t len = evbuffer_get_length(in);
	const char *body = len ? (const char *)evbuffer_pullup(in, -1) : "";
	struct arena *arena = arena_new();
	struct request request;
	struct migration *m;
	struct fault f;
	(void)id;
	if (!body)
		abort();
	if (request_parse(body, len, arena, &request, &f) < 0 || moves_start(a->env.moves, &request, &m, &f) < 0)
		answer_fault(rq, 0, &f);
	else
		answer_migration(rq, 202, m);
	arena_free(arena);
}

/* GET /v1/migrations */
static void get_migrations(struct api *a, struct evhttp_request *rq, const char *id)
{
	(void)id;
	answer(rq, 200, migrations_json(a->env.migrations));
}

/* GET /v1/migrations/ID */
static void get_migration(struct api *a, struct evhttp_request *rq, const char *id)
{
	struct migration *m = migrations_find(a->env.migrations, id);
	if (m)
		answer_migration(rq, 200, m);
	else
		no_migration(rq, id);
}

/* DELETE /v1/migrations/ID: asks for the cancellation; events tell what became of it */
static void delete_migration(struct api *a, struct evhttp_request *rq, const char *id)
{
	struct migration *m = migrations_find(a->env.migrations, id);
	struct fault f;
	if (!m)
		no_migration(rq, id);
	else if (moves_cancel(a->env.moves, m, &f) < 0)
		answer_fault(rq, 409, &f);
	else
		answer_migration(rq, 202, m);
}

static void watch_free(struct api_watch *w)
{
	LIST_REMOVE(w, link);
	if (w->watch)
		migrations_unwatch(w->watch);
	free(w);
}

static void watch_line(void *ctx, const char *line, size_t len)
{
	struct api_watch *w = ctx;
	struct evhttp_connection *c = evhttp_request_get_connection(w->rq);
	struct bufferevent *bev = c ? evhttp_connection_get_bufferevent(c) : NULL;
	if (!bev || evbuffer_get_length(bufferevent_get_output(bev)) > API_WATCH_BUFFER)
		return; /* it does not read: it misses lines, others don't wait for it */
	struct evbuffer *out = evbuffer_new();
	if (!out || evbuffer_add(out, line, len) < 0)
		abort();
	evhttp_send_reply_chunk(w->rq, out);
	evbuffer_free(out);
}

static void watch_end(void *ctx)
{
	struct api_watch *w = ctx;
	struct evhttp_request *rq = w->rq;
	w->watch = NULL;
	evhttp_connection_set_closecb(evhttp_request_get_connection(rq), NULL, NULL);
	watch_free(w);
	evhttp_send_reply_end(rq);
}

/* libevent takes a request whose client hung up off its connection, and leaves it to us. */
static void on_watcher_gone(struct evhttp_connection *c, void *ctx)
{
	struct api_watch *w = ctx;
	struct evhttp_request *rq = w->rq;
	(void)c;
	watch_free(w);
	if (!evhttp_request_get_connection(rq))
		evhttp_request_free(rq);
}

/* GET /v1/migrations/ID/events: one JSON object per line, from the beginning, until the migration is over */
static void get_events(struct api *a, struct evhttp_request *rq, const char *id)
{
	struct migration *m = migrations_find(a->env.migrations, id);
	if (!m) {
		no_migration(rq, id);
		return;
	}
	struct api_watch *w = calloc(1, sizeof(*w));
	if (!w)
		abort();
	w->rq = rq;
	LIST_INSERT_HEAD(&a->watches, w, link);
	evhttp_add_header(evhttp_request_get_output_headers(rq), "Content-Type", "application/x-ndjson");
	evhttp_connection_set_closecb(evhttp_request_get_connection(rq), on_watcher_gone, w);
	evhttp_send_reply_start(rq, 200, NULL);
	const struct migration_watcher watcher = { watch_line, watch_end, w };
	struct migration_watch *watch = migrations_watch(m, &watcher);
	if (watch) /* else it is over, and w is gone */
		w->watch = watch;
}

/* GET /v1/host */
static void get_host(struct api *a, struct evhttp_request *rq, const char *id)
{
	json_object *o = json_object_new_object(), *listeners = json_object_new_array();
	(void)id;
	json_add_str(o, "name", a->env.conf->name);
	json_add_str(o, "version", CONF_VERSION);
	for (size_t i = 0; i < a->env.n_listeners; i++) {
		struct sockaddr_storage sa;
		socklen_t len = sizeof(sa);
		char text[ENDPOINT_TEXT];
		if (getsockname(a->env.listeners[i], (struct sockaddr *)&sa, &len) < 0)
			continue;
		endpoint_text((struct sockaddr *)&sa, len, text);
		json_object_array_add(listeners, json_object_new_string(text));
	}
	json_object_object_add(o, "listeners", listeners);
	if (a->env.trackers)
		json_object_object_add(o, "trackers", json_object_get(a->env.trackers));
	json_add_u64(o, "migrations_running", migrations_running(a->env.migrations));
	answer(rq, 200, o);
}

/* GET /v1/health */
static void get_health(struct api *a, struct evhttp_request *rq, const char *id)
{
	json_object *o = json_object_new_object();
	(void)a;
	(void)id;
	json_add_str(o, "status", "ok");
	answer(rq, 200, o);
}

static const struct route {
	enum evhttp_cmd_type method;
	const char *before, *after; /* around the id; after NULL: no id */
	void (*handle)(struct api *a, struct evhttp_request *rq, const char *id);
} routes[] = {
	{ EVHTTP_REQ_POST, "/v1/migrations", NULL, post_migration },
	{ EVHTTP_REQ_GET, "/v1/migrations", NULL, get_migrations },
	{ EVHTTP_REQ_GET, "/v1/migrations/", "", get_migration },
	{ EVHTTP_REQ_DELETE, "/v1/migrations/", "", delete_migration },
	{ EVHTTP_REQ_GET, "/v1/migrations/", "/events", get_events },
	{ EVHTTP_REQ_GET, "/v1/host", NULL, get_host },
	{ EVHTTP_REQ_GET, "/v1/health", NULL, get_health },
};

/* Ids are letters, digits and '-' only, so nothing is ever decoded. */
static bool route_matches(const struct route *r, const char *path, char *id, size_t id_len)
{
	size_t before = strlen(r->before);
	if (!r->after)
		return !strcmp(path, r->before);
	if (strncmp(path, r->before, before))
		return false;
	const char *start = path + before;
	size_t n = strspn(start, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-");
	if (n == 0 || n >= id_len || strcmp(start + n, r->after))
		return false;
	memcpy(id, start, n);
	id[n] = 0;
	return true;
}

static int check_caller(struct api *a, struct evhttp_request *rq, struct fault *f)
{
	struct bufferevent *bev = evhttp_connection_get_bufferevent(evhttp_request_get_connection(rq));
	struct ucred cred;
	socklen_t len = sizeof(cred);
	if (getsockopt(bufferevent_getfd(bev), SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return fault_errno(f, FAULT_DENIED, "ask who the caller is");
	return policy_api(a->env.conf, cred.uid, geteuid(), f);
}

static void on_request(struct evhttp_request *rq, void *ctx)
{
	struct api *a = ctx;
	struct fault f;
	char id[64];
	const char *path = evhttp_uri_get_path(evhttp_request_get_evhttp_uri(rq));
	if (check_caller(a, rq, &f) < 0) {
		log_notice("api", "%s", f.what);
		answer_fault(rq, 403, &f);
		return;
	}
	bool known = false;
	for (size_t i = 0; path && i < ARRAY_LEN(routes); i++) {
		if (!route_matches(&routes[i], path, id, sizeof(id)))
			continue;
		known = true;
		if (evhttp_request_get_command(rq) == routes[i].method) {
			routes[i].handle(a, rq, id);
			return;
		}
	}
	fault_set(&f, FAULT_USAGE, known ? "%.100s does not know this method" : "there is no %.100s in this API",
		  path ? path : "(empty path)");
	answer_fault(rq, known ? 405 : 404, &f);
}

struct api *api_new(struct event_base *base, int fd, const struct api_env *env, struct fault *f)
{
	struct api *a = calloc(1, sizeof(*a));
	struct evhttp *http = evhttp_new(base);
	struct evconnlistener *listener = evconnlistener_new(base, NULL, NULL, LEV_OPT_CLOSE_ON_EXEC, 0, fd);
	if (!a || !http || !listener)
		abort();
	if (!evhttp_bind_listener(http, listener)) {
		fault_set(f, FAULT_SYSTEM, "the API's socket can't be served");
		evconnlistener_free(listener);
		evhttp_free(http);
		free(a);
		return NULL;
	}
	a->env = *env;
	a->http = http;
	evhttp_set_max_body_size(http, API_BODY_MAX);
	evhttp_set_max_headers_size(http, API_HEADERS_MAX);
	evhttp_set_allowed_methods(http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_DELETE);
	evhttp_set_timeout(http, 60);
	evhttp_set_gencb(http, on_request, a);
	return a;
}

void api_free(struct api *a)
{
	if (!a)
		return;
	evhttp_free(a->http); /* closes the connections, so watchers go */
	free(a);
}
