/*
 * The agent as a whole: real HTTP over a unix socket, real TCP, sandboxed as in service; only the warden is a double,
 * which plays workers by script. What a script does follows from the name of the host that is migrated to.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "convert.h"
#include "daemon.h"
#include "json.h"
#include "sandbox.h"
#include "warden_agent.h"
#include "wire.pb-c.h"

/* ---- the warden's double, in the agent's process ---- */

#define WORKERS 256

struct worker {
	char host[256]; /* who was asked for; "" on the destination */
	char migration[37];
	int events;
	bool client, up, exit, crashed, fail_wire;
	enum handoff_state state;
};

struct wa {
	struct wa_handlers h;
	void *ctx;
	int epoll, kick;
	unsigned accepted;
	struct worker w[WORKERS]; /* by connection */
};

static void kick(struct wa *w)
{
	uint64_t one = 1;
	assert_int_equal(write(w->kick, &one, sizeof(one)), sizeof(one));
}

int wa_start(const struct wa_paths *paths, const struct wa_handlers *h, void *ctx, struct wa **out, struct fault *f)
{
	(void)paths;
	(void)f;
	struct wa *w = calloc(1, sizeof(*w));
	w->h = *h;
	w->ctx = ctx;
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	w->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->kick, &(struct epoll_event){ .events = EPOLLIN, .data.u64 = 0 });
	*out = w;
	return 0;
}

int wa_fd(const struct wa *w)
{
	return w->epoll;
}

void wa_free(struct wa *w)
{
	close(w->epoll);
	close(w->kick);
	free(w);
}

int wa_wire(struct wa *w, uint64_t conn, int sock, bool client, const char *expect, struct fault *f)
{
	close(sock);
	if (conn >= WORKERS)
		return fault_set(f, FAULT_INTERNAL, "too many connections for this test");
	struct worker *x = &w->w[conn];
	x->client = client;
	x->events = -1;
	snprintf(x->host, sizeof(x->host), "%s", client ? expect : ++w->accepted % 2 ? "stranger" : "host1");
	x->up = strcmp(x->host, "mute") != 0;
	x->fail_wire = !strcmp(x->host, "badcert");
	kick(w);
	return 0;
}

int wa_close_wire(struct wa *w, uint64_t conn, const struct fault *why, struct fault *f)
{
	(void)f;
	w->w[conn].up = false;
	/* It runs in the agent's process: what a stranger is told can't be seen from the test but by a failure here. */
	if (why && (why->code != FAULT_DENIED || strcmp(w->w[conn].host, "stranger") != 0 ||
		    !strstr(why->hint, "allow-peer = stranger")))
		abort();
	if (!why && !strcmp(w->w[conn].host, "stranger"))
		abort();
	return 0;
}

static void emit(struct worker *x, Cpr__Event *e)
{
	uint8_t buf[4096];
	e->migration = x->migration;
	size_t n = cpr__event__pack(e, buf);
	if (send(x->events, buf, n, MSG_NOSIGNAL) < 0)
		return;
}

static void emit_state(struct worker *x, const char *state)
{
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__STATE;
	e.state = (char *)state;
	emit(x, &e);
}

static void emit_round(struct worker *x, unsigned n)
{
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__ROUND;
	e.has_round = e.has_pages = true;
	e.round = n;
	e.pages = 1234;
	emit(x, &e);
}

static void emit_done(struct worker *x)
{
	Cpr__Event e = CPR__EVENT__INIT;
	Cpr__Span s = CPR__SPAN__INIT, *spans[] = { &s };
	s.name = (char *)"freeze";
	s.length_ns = 1500000;
	e.kind = CPR__EVENT__KIND__DONE;
	e.has_pause_us = true;
	e.pause_us = 14200;
	e.n_spans = 1;
	e.spans = spans;
	emit(x, &e);
}

static void emit_failed(struct worker *x, enum fault_code code, const char *what)
{
	struct fault f;
	struct arena *a = arena_new();
	fault_set(&f, code, "%s", what);
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__FAILED;
	e.fault = convert_fault_out(a, &f);
	emit(x, &e);
	arena_free(a);
}

static void emit_options(struct worker *x, const void *options, size_t len)
{
	char text[128];
	Cpr__Options *o = cpr__options__unpack(NULL, len, options);
	assert_non_null(o);
	snprintf(text, sizeof(text), "downtime %d %llu verify %d addresses %zu", o->has_downtime_us,
		 (unsigned long long)o->downtime_us, o->has_verify, o->n_move_address);
	cpr__options__free_unpacked(o, NULL);
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__LOG;
	e.text = text;
	emit(x, &e);
}

static void play(struct worker *x)
{
	const char *s = x->host;
	if (!strcmp(s, "shy")) {
		x->exit = true;
		emit_failed(x, FAULT_PEER_LOST, "shy closed the connection");
		return;
	}
	if (!strcmp(s, "garbage"))
		assert_int_equal(send(x->events, "\xff\xff\xff\xff\x7f", 5, 0), 5);
	emit_state(x, "OFFERED");
	emit_state(x, "PRECOPY");
	emit_round(x, 1);
	emit_round(x, 2);
	if (!strcmp(s, "hang"))
		return;
	x->exit = true;
	if (!strcmp(s, "crash") || !strcmp(s, "doubt")) {
		x->crashed = true;
		x->state = *s == 'c' ? HANDOFF_ABORTED : HANDOFF_COMMITTING;
		return;
	}
	if (!strcmp(s, "blocked")) {
		emit_failed(x, FAULT_UNSUPPORTED, "2 things can't be moved");
		return;
	}
	x->state = x->client ? HANDOFF_DONE : HANDOFF_RUNNING;
	emit_done(x);
}

int wa_worker(struct wa *w, uint64_t conn, enum handoff_side side, const char *migration, pid_t pid,
	      const void *options, size_t options_len, int *events_fd, struct fault *f)
{
	struct worker *x = &w->w[conn];
	int pair[2];
	if (!strcmp(x->host, "noworker"))
		return fault_set(f, FAULT_SYSTEM, "no worker today");
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	x->events = pair[0];
	*events_fd = pair[1];
	snprintf(x->migration, sizeof(x->migration), "%s", migration);
	assert_int_equal(side == HANDOFF_SOURCE, pid > 0);
	if (side == HANDOFF_DESTINATION)
		snprintf(x->migration, sizeof(x->migration), "11111111-0000-4000-8000-%012u", (unsigned)conn);
	else
		emit_options(x, options, options_len);
	epoll_ctl(w->epoll, EPOLL_CTL_ADD, x->events, &(struct epoll_event){ .events = EPOLLIN, .data.u64 = conn });
	play(x);
	kick(w);
	return 0;
}

static void cancelled(struct worker *x)
{
	char c;
	if (x->exit || x->events < 0 || recv(x->events, &c, 1, MSG_DONTWAIT) != 1 || c != 'C')
		return;
	emit_failed(x, FAULT_CANCELLED, "cancelled by the user");
	x->state = HANDOFF_ABORTED;
	x->exit = true;
}

void wa_dispatch(struct wa *w)
{
	uint64_t n;
	if (read(w->kick, &n, sizeof(n)) < 0)
		n = 0;
	for (uint64_t conn = 1; conn < WORKERS; conn++) {
		struct worker *x = &w->w[conn];
		cancelled(x);
		if (x->exit) {
			x->exit = false;
			close(x->events);
			x->events = -1;
			w->h.worker_exit(w->ctx, conn, x->migration, x->state, x->crashed, x->crashed ? "thawed" : "");
		}
		if (!x->up)
			continue;
		x->up = false;
		struct fault f;
		fault_set(&f, FAULT_CERTIFICATE, "the certificate is for another host");
		if (x->fail_wire)
			w->h.wire_failed(w->ctx, conn, &f);
		else
			w->h.wire_up(w->ctx, conn, x->host);
	}
}

/* ---- the agent under test ---- */

static struct {
	char dir[64], api[96];
	pid_t agent;
	int target; /* where migrations connect to */
	unsigned target_port;
	struct client *c;
} t;

static void agent_child(const char *config)
{
	struct fault f = { 0 };
	struct conf *c = conf_new();
	struct listeners l;
	struct sandbox_user u;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	listen_init(&l);
	struct daemon *d = NULL;
	int r = -1;
	if (conf_text(c, "test", config, strlen(config), &f) == 0 && conf_finish(c, &f) == 0 &&
	    sandbox_user("nobody", "--user", &u, &f) == 0 && listen_open(&l, c, u.uid, &f) == 0 &&
	    (d = daemon_new(c, &l, NULL, &f)) && sandbox_enter(&u, &f) == 0)
		r = daemon_run(d, &f);
	if (r < 0)
		fprintf(stderr, "agent: %s\n", f.what);
	daemon_free(d);
	listen_close(&l);
	conf_free(c);
	exit(r < 0);
}

static int tcp_listener(unsigned *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 128), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	*port = ntohs(sa.sin_port);
	return fd;
}

static const char *const hosts[] = { "ok",	 "hang",    "crash", "doubt", "blocked", "badcert",
				     "noworker", "garbage", "mute",  "shy",   "host2" };

static int setup(void **state)
{
	(void)state;
	char config[4096], program[128];
	snprintf(t.dir, sizeof(t.dir), "/tmp/cpr-test-XXXXXX");
	assert_non_null(mkdtemp(t.dir));
	assert_int_equal(chmod(t.dir, 0755), 0);
	snprintf(t.api, sizeof(t.api), "%s/api.sock", t.dir);
	snprintf(program, sizeof(program), "%s/cpr-warden", t.dir);
	close(open(program, O_CREAT | O_WRONLY, 0755)); /* is looked for, never run */
	t.target = tcp_listener(&t.target_port);
	int n = snprintf(
		config, sizeof(config),
		"name = host1\napi = %s\nprograms = %s\nlisten = 127.0.0.1:0\nallow-peer = host1\napi-uid = 65533\n"
		"log-level = err\nhosts = refused=127.0.0.1:1\n",
		t.api, t.dir);
	for (size_t i = 0; i < ARRAY_LEN(hosts); i++)
		n += snprintf(config + n, sizeof(config) - (size_t)n, "hosts = %s=127.0.0.1:%u\n", hosts[i],
			      t.target_port);
	fflush(NULL);
	t.agent = fork();
	if (t.agent == 0)
		agent_child(config);
	struct fault f;
	assert_int_equal(client_open(t.api, &t.c, &f), 0);
	for (int i = 0;; i++) { /* until it answers */
		json_object *o;
		if (client_call(t.c, "GET", "/v1/health", NULL, &o, &f) == 0) {
			assert_string_equal(json_str(o, "status"), "ok");
			json_object_put(o);
			return 0;
		}
		assert_true(i < 500);
		poll(NULL, 0, 10);
	}
}

static int teardown(void **state)
{
	(void)state;
	int status;
	char program[128];
	client_close(t.c);
	kill(t.agent, SIGTERM);
	assert_int_equal(waitpid(t.agent, &status, 0), t.agent);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	close(t.target);
	snprintf(program, sizeof(program), "%s/cpr-warden", t.dir);
	unlink(program);
	unlink(t.api);
	return rmdir(t.dir);
}

/* ---- helpers ---- */

static json_object *get(const char *path)
{
	struct fault f;
	json_object *o;
	if (client_call(t.c, "GET", path, NULL, &o, &f) < 0)
		fail_msg("GET %s: %s", path, f.what);
	return o;
}

static int post(const char *to, pid_t pid, char id[64], struct fault *f)
{
	json_object *o, *body = json_object_new_object();
	json_add_u64(body, "pid", (uint64_t)pid);
	json_add_str(body, "to", to);
	json_add_u64(body, "downtime_us", 30000);
	int r = client_call(t.c, "POST", "/v1/migrations", body, &o, f);
	json_object_put(body);
	if (r == 0) {
		snprintf(id, 64, "%s", json_str(o, "id"));
		json_object_put(o);
	}
	return r;
}

struct events {
	int n, rounds;
	bool done, failed;
	char states[256], text[256];
	struct fault fault;
	const char *cancel_at, *id;
};

static void cancel(const char *id)
{
	char path[128];
	struct fault f;
	json_object *o;
	snprintf(path, sizeof(path), "/v1/migrations/%s", id);
	if (client_call(t.c, "DELETE", path, NULL, &o, &f) < 0)
		fail_msg("%s", f.what);
	json_object_put(o);
}

static void on_event(void *ctx, const json_object *e, const char *line)
{
	struct events *v = ctx;
	const char *kind = json_str(e, "kind"), *state = json_str(e, "state");
	(void)line;
	v->n++;
	v->rounds += !strcmp(kind, "round");
	v->done |= !strcmp(kind, "done");
	if (!strcmp(kind, "log"))
		snprintf(v->text, sizeof(v->text), "%s", json_str(e, "text"));
	if (!strcmp(kind, "failed")) {
		v->failed = true;
		json_fault_in(json_object_in(e, "fault"), &v->fault);
	}
	if (!strcmp(kind, "state")) {
		size_t n = strlen(v->states);
		snprintf(v->states + n, sizeof(v->states) - n, "%s ", state);
		if (v->cancel_at && !strcmp(v->cancel_at, state))
			cancel(v->id);
	}
}

static struct events follow(const char *id, const char *cancel_at)
{
	struct events v = { .cancel_at = cancel_at, .id = id };
	const struct client_handlers h = { on_event, NULL, &v, -1 };
	struct fault f;
	if (client_follow(t.c, id, &h, &f) < 0)
		fail_msg("%s", f.what);
	return v;
}

static pid_t sleeper(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static struct events migrate(const char *to, const char *cancel_at)
{
	struct fault f;
	char id[64];
	pid_t pid = sleeper();
	if (post(to, pid, id, &f) < 0)
		fail_msg("%s: %s", to, f.what);
	struct events v = follow(id, cancel_at);
	v.id = NULL;
	end(pid);
	return v;
}

/* ---- tests ---- */

static void test_done(void **state)
{
	(void)state;
	struct fault f;
	char id[64], path[128];
	pid_t pid = sleeper();
	assert_int_equal(post("ok", pid, id, &f), 0);
	struct events v = follow(id, NULL);
	assert_true(v.done && !v.failed);
	assert_int_equal(v.rounds, 2);
	assert_string_equal(v.states, "CONNECTING OFFERED PRECOPY ");
	assert_string_equal(v.text, "downtime 1 30000 verify 0 addresses 0");
	snprintf(path, sizeof(path), "/v1/migrations/%s", id);
	json_object *o = get(path);
	assert_string_equal(json_str(o, "state"), "DONE");
	assert_string_equal(json_str(o, "to"), "ok");
	assert_int_equal(json_u64(o, "pid"), pid);
	assert_int_equal(json_u64(json_object_in(o, "result"), "pause_us"), 14200);
	assert_int_equal(json_object_array_length(json_array(o, "rounds")), 2);
	json_object_put(o);
	/* whoever comes late sees the same, and cancelling is too late */
	struct events again = follow(id, NULL);
	assert_int_equal(again.n, v.n);
	assert_int_equal(client_call(t.c, "DELETE", path, NULL, &o, &f), -1);
	assert_int_equal(f.code, FAULT_USAGE);
	end(pid);
}

static void test_failures(void **state)
{
	(void)state;
	static const struct {
		const char *to;
		enum fault_code code;
		const char *what, *hint;
	} cases[] = {
		{ "blocked", FAULT_UNSUPPORTED, "2 things can't be moved", "" },
		{ "crash", FAULT_WORKER_DIED, "died in state ABORTED: thawed", "runs on host1 as before" },
		{ "doubt", FAULT_IN_DOUBT, "died in state COMMITTING", "stays frozen on host1" },
		{ "shy", FAULT_PEER_LOST, "closed the connection", "" },
		{ "badcert", FAULT_CERTIFICATE, "is for another host", "runs on host1 as before" },
		{ "noworker", FAULT_SYSTEM, "no worker today", "runs on host1 as before" },
		{ "refused", FAULT_HOST_UNREACHABLE, "connect to refused at 127.0.0.1:1", "Is cpr-agent running" },
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct events v = migrate(cases[i].to, NULL);
		assert_true(v.failed && !v.done);
		assert_string_equal(fault_code_name(v.fault.code), fault_code_name(cases[i].code));
		if (!strstr(v.fault.what, cases[i].what) || !strstr(v.fault.hint, cases[i].hint))
			fail_msg("%s: \"%s\", \"%s\"", cases[i].to, v.fault.what, v.fault.hint);
	}
}

/* By name, through the resolver, under the seccomp filter. */
static void test_resolve(void **state)
{
	(void)state;
	char to[64];
	snprintf(to, sizeof(to), "localhost:%u", t.target_port);
	struct events v = migrate(to, NULL);
	assert_true(v.done);
}

static void test_refused(void **state)
{
	(void)state;
	struct fault f;
	char id[64];
	pid_t gone = sleeper(), pid = sleeper();
	end(gone);
	assert_int_equal(post("ok", gone, id, &f), -1);
	assert_int_equal(f.code, FAULT_NO_PROCESS);
	assert_int_equal(post("ok", 1, id, &f), -1);
	assert_int_equal(f.code, FAULT_NOT_MOVABLE);
	assert_int_equal(post("ok", t.agent, id, &f), -1);
	assert_int_equal(f.code, FAULT_NOT_MOVABLE);
	assert_int_equal(post("HOST1", pid, id, &f), -1);
	assert_int_equal(f.code, FAULT_USAGE);
	assert_int_equal(post("hang", pid, id, &f), 0);
	char other[64];
	assert_int_equal(post("ok", pid, other, &f), -1);
	assert_int_equal(f.code, FAULT_BUSY);
	assert_non_null(strstr(f.what, id));
	cancel(id);
	struct events v = follow(id, NULL);
	assert_int_equal(v.fault.code, FAULT_CANCELLED);
	end(pid);
}

static void test_cancel(void **state)
{
	(void)state;
	struct events v = migrate("hang", "PRECOPY");
	assert_true(v.failed);
	assert_string_equal(v.fault.what, "cancelled by the user");
	v = migrate("mute", "CONNECTING"); /* no worker yet */
	assert_true(v.failed);
	assert_int_equal(v.fault.code, FAULT_CANCELLED);
	assert_non_null(strstr(v.fault.hint, "runs on host1 as before"));
}

/* Undecodable events of a worker are dropped; those after them still count. */
static void test_garbage_events(void **state)
{
	(void)state;
	assert_true(migrate("garbage", NULL).done);
}

static int connect_to(unsigned port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				  .sin_port = htons((uint16_t)port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static size_t arrived(void)
{
	json_object *o = get("/v1/migrations"), *list = json_array(o, "migrations");
	size_t n = 0;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		const json_object *m = json_object_array_get_idx(list, i);
		if (strcmp(json_str(m, "side"), "destination"))
			continue;
		assert_string_equal(json_str(m, "from"), "host1");
		n += !strcmp(json_str(m, "state"), "RUNNING");
	}
	json_object_put(o);
	return n;
}

/* The double names every second peer "stranger", whom no rule allows. */
static void test_incoming(void **state)
{
	(void)state;
	json_object *o = get("/v1/host");
	assert_string_equal(json_str(o, "name"), "host1");
	const char *text = json_object_get_string(json_object_array_get_idx(json_array(o, "listeners"), 0));
	unsigned port = (unsigned)atoi(strrchr(text, ':') + 1);
	json_object_put(o);
	size_t before = arrived();
	for (int i = 0; i < 6; i++)
		close(connect_to(port));
	for (int i = 0; arrived() < before + 3; i++) {
		assert_true(i < 500);
		poll(NULL, 0, 10);
	}
	assert_int_equal(arrived(), before + 3);
}

static void test_http(void **state)
{
	(void)state;
	static const struct {
		const char *method, *path;
	} wrong[] = { { "GET", "/" },
		      { "GET", "/v1/migrations/../host" },
		      { "GET", "/v1/migrations/zz" },
		      { "GET", "/v1/migrations/a%00b" },
		      { "DELETE", "/v1/host" },
		      { "POST", "/v1/health" },
		      { "GET", "/v1/migrations/11111111-0000-4000-8000-ffffffffffff/events" } };
	struct fault f;
	json_object *o;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		assert_int_equal(client_call(t.c, wrong[i].method, wrong[i].path, NULL, &o, &f), -1);
		assert_int_equal(f.code, FAULT_USAGE);
	}
	/* a body that is too large is refused, and the agent lives on */
	json_object *body = json_object_new_object();
	char *large = calloc(1, 200000);
	memset(large, 'x', 199999);
	json_add_str(body, "to", large);
	assert_int_equal(client_call(t.c, "POST", "/v1/migrations", body, &o, &f), -1);
	json_object_put(body);
	free(large);
	json_object_put(get("/v1/health"));
}

static int raw(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	memcpy(sa.sun_path, t.api, strlen(t.api));
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static void test_raw_garbage(void **state)
{
	(void)state;
	static const char *const start[] = { "", "GET /v1/host HTTP/1.1\r\n",
					     "POST /v1/migrations HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
					     "GET /v1/migrations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" };
	srandom(5);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < 300; i++) {
		char buf[200];
		int fd = raw();
		const char *s = start[i % 4];
		for (size_t k = 0; k < sizeof(buf); k++)
			buf[k] = (char)random();
		if (write(fd, s, strlen(s)) < 0 || write(fd, buf, sizeof(buf)) < 0)
			assert_int_equal(errno, EPIPE);
		close(fd);
	}
	/* watchers that go away while their migration runs */
	struct fault f;
	char id[64], rq[256];
	pid_t pid = sleeper();
	assert_int_equal(post("hang", pid, id, &f), 0);
	for (int i = 0; i < 20; i++) {
		int fd = raw();
		int n = snprintf(rq, sizeof(rq), "GET /v1/migrations/%s/events HTTP/1.1\r\nHost: x\r\n\r\n", id);
		assert_int_equal(write(fd, rq, (size_t)n), n);
		if (i % 2)
			assert_true(read(fd, rq, sizeof(rq)) > 0);
		close(fd);
	}
	cancel(id);
	assert_true(follow(id, NULL).failed);
	end(pid);
	json_object_put(get("/v1/health"));
}

/* Other users: refused with the rule that is missing, or let in by api-uid. */
static void as_user(uid_t uid, int expect)
{
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		struct fault f = { 0 };
		struct client *c;
		json_object *o;
		if (setresuid(uid, uid, uid) < 0 || client_open(t.api, &c, &f) < 0)
			_exit(99);
		_exit(client_call(c, "GET", "/v1/host", NULL, &o, &f) < 0 ? (int)f.code : 0);
	}
	int status;
	waitpid(pid, &status, 0);
	assert_int_equal(WEXITSTATUS(status), expect);
}

static void test_callers(void **state)
{
	(void)state;
	as_user(65533, 0);
	as_user(65532, FAULT_DENIED);
}

static void test_no_agent(void **state)
{
	(void)state;
	struct client *c;
	struct fault f;
	json_object *o;
	assert_int_equal(client_open("/nonexistent/api.sock", &c, &f), 0);
	assert_int_equal(client_call(c, "GET", "/v1/host", NULL, &o, &f), -1);
	assert_int_equal(f.code, FAULT_AGENT_DOWN);
	assert_non_null(strstr(f.hint, "systemctl start cpr-agent"));
	client_close(c);
}

/* Nothing of root is left to the agent. */
static void test_privileges(void **state)
{
	(void)state;
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/status", (int)t.agent);
	auto_free char *s = util_read_file(AT_FDCWD, path, NULL);
	assert_non_null(s);
	static const char *const lines[] = { "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1",
					     "Uid:\t65534\t65534\t65534\t65534" };
	for (size_t i = 0; i < ARRAY_LEN(lines); i++)
		if (!strstr(s, lines[i]))
			fail_msg("not there: %s", lines[i]);
#if !defined(__SANITIZE_ADDRESS__)
	assert_non_null(strstr(s, "Seccomp:\t2"));
#endif
}

/* A stopping agent cancels what can be cancelled, tells the watcher, and ends. Last: it takes the agent down. */
static void test_stop(void **state)
{
	(void)state;
	struct fault f;
	char id[64];
	pid_t pid = sleeper();
	assert_int_equal(post("hang", pid, id, &f), 0);
	kill(t.agent, SIGTERM);
	struct events v = { 0 };
	const struct client_handlers h = { on_event, NULL, &v, -1 };
	/* it may be gone before the connection is made; a watcher that was in time sees the end */
	if (client_follow(t.c, id, &h, &f) == 0)
		assert_true(v.failed && v.fault.code == FAULT_CANCELLED);
	else
		assert_int_equal(f.code, FAULT_AGENT_DOWN);
	end(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_done),	 cmocka_unit_test(test_failures), cmocka_unit_test(test_resolve),
		cmocka_unit_test(test_refused),	 cmocka_unit_test(test_cancel),	  cmocka_unit_test(test_garbage_events),
		cmocka_unit_test(test_incoming), cmocka_unit_test(test_http),	  cmocka_unit_test(test_raw_garbage),
		cmocka_unit_test(test_callers),	 cmocka_unit_test(test_no_agent), cmocka_unit_test(test_privileges),
		cmocka_unit_test(test_stop),
	};
	if (geteuid() != 0) {
		fprintf(stderr, "skipped: needs root, to give it up\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, setup, teardown);
}
