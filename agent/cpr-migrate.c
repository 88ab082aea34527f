/*
 * cpr-migrate(1): asks the local agent to move a process, shows how it goes, and says where the process runs.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "client.h"
#include "conf.h"
#include "endpoint.h"
#include "json.h"
#include "render.h"
#include "request.h"

enum command { COMMAND_MOVE, COMMAND_LIST, COMMAND_SHOW, COMMAND_CANCEL, COMMAND_HELP, COMMAND_VERSION };

struct args {
	enum command command;
	const char *api;
	bool json, quiet;
	const char *operand; /* PID or ID */
	json_object *body;   /* of POST /v1/migrations: what was not given is not in it */
};

/* A migration that is followed. */
struct follow {
	struct client *client;
	struct render *render;
	const struct args *args;
	const char *id;
	unsigned interrupts;
	bool over, done;
	struct fault fault; /* over and not done */
};

static const char usage[] =
	"usage: cpr-migrate --to HOST [OPTION]... PID\n"
	"       cpr-migrate list | show ID | cancel ID\n\n"
	"Moves a running process to another host.\n\n"
	"  -t, --to HOST[:PORT]           where to\n"
	"      --downtime TIME            pause to aim at, like 30ms; pre-copy goes on until it can be met\n"
	"      --max-rounds N             at most so many rounds of pre-copy\n"
	"      --verify                   compare all memory and state on both hosts before the commit\n"
	"      --tracking T               dirty tracking: wp-async, soft-dirty or none (default: what works)\n"
	"      --move-address ADDR[/LEN][@DEV]\n"
	"                                 service address that goes along; repeatable\n"
	"      --network-lock L           nftables or none (default: what works)\n"
	"      --keep-state DIR           keep the state that was sent, for debugging\n"
	"      --api PATH                 socket of the local agent (default: " CONF_API ")\n"
	"      --json                     print the events as JSON, one per line\n"
	"  -q, --quiet                    print only errors\n"
	"  -h, --help                     print this, and exit\n"
	"  -V, --version                  print the version, and exit\n\n"
	"Exit status: 0 when the process runs on HOST, else one per kind of failure. See cpr-migrate(1).\n";

static int bad_usage(struct fault *f)
{
	return fault_hint(f, "See cpr-migrate --help.");
}

enum { OPT_DOWNTIME = 256, OPT_ROUNDS, OPT_VERIFY, OPT_TRACKING, OPT_ADDRESS, OPT_LOCK, OPT_KEEP, OPT_API, OPT_JSON };

static int add_duration(json_object *body, const char *text, struct fault *f)
{
	uint64_t us;
	if (request_duration(text, &us, f) < 0)
		return fault_while(f, "reading --downtime");
	json_add_u64(body, "downtime_us", us);
	return 0;
}

static int add_rounds(json_object *body, const char *text, struct fault *f)
{
	uint64_t n;
	if (!util_parse_u64(text, 1000, &n)) {
		fault_set(f, FAULT_USAGE, "--max-rounds: \"%.60s\" is not a number up to 1000", text);
		return bad_usage(f);
	}
	json_add_u64(body, "max_rounds", n);
	return 0;
}

static int add_address(json_object *body, const char *text, struct fault *f)
{
	struct arena *a = arena_new();
	Cpr__MoveAddress *m;
	int r = request_move_address(text, a, &m, f);
	arena_free(a);
	if (r < 0)
		return fault_while(f, "reading --move-address");
	json_object *list = json_array(body, "move_address");
	if (!list)
		json_object_object_add(body, "move_address", list = json_object_new_array());
	json_object_array_add(list, json_object_new_string(text));
	return 0;
}

/* The worker's directory is not ours: it gets an absolute path. */
static int add_keep(json_object *body, const char *text, struct fault *f)
{
	char path[PATH_MAX], cwd[PATH_MAX / 2];
	if (!getcwd(cwd, sizeof(cwd)))
		return fault_errno(f, FAULT_USAGE, "--keep-state: the working directory is not known");
	if ((size_t)snprintf(path, sizeof(path), "%s%s%s", text[0] == '/' ? "" : cwd, text[0] == '/' ? "" : "/",
			     text) >= sizeof(path))
		return fault_set(f, FAULT_USAGE, "--keep-state: the path is too long");
	json_add_str(body, "keep_state", path);
	return 0;
}

static int take_option(struct args *a, int o, const char *value, struct fault *f)
{
	switch (o) {
	case 't':
		json_add_str(a->body, "to", value);
		return 0;
	case OPT_DOWNTIME:
		return add_duration(a->body, value, f);
	case OPT_ROUNDS:
		return add_rounds(a->body, value, f);
	case OPT_VERIFY:
		json_object_object_add(a->body, "verify", json_object_new_boolean(true));
		return 0;
	case OPT_TRACKING:
		json_add_str(a->body, "tracking", value);
		return 0;
	case OPT_ADDRESS:
		return add_address(a->body, value, f);
	case OPT_LOCK:
		json_add_str(a->body, "network_lock", value);
		return 0;
	case OPT_KEEP:
		return add_keep(a->body, value, f);
	case OPT_API:
		a->api = value;
		return 0;
	case OPT_JSON:
		a->json = true;
		return 0;
	case 'q':
		a->quiet = true;
		return 0;
	case 'h':
		a->command = COMMAND_HELP;
		return 0;
	case 'V':
		a->command = COMMAND_VERSION;
		return 0;
	}
	return bad_usage(f);
}

static int parse_options(struct args *a, int argc, char **argv, struct fault *f)
{
	static const struct option options[] = {
		{ "to", required_argument, NULL, 't' },
		{ "downtime", required_argument, NULL, OPT_DOWNTIME },
		{ "max-rounds", required_argument, NULL, OPT_ROUNDS },
		{ "verify", no_argument, NULL, OPT_VERIFY },
		{ "tracking", required_argument, NULL, OPT_TRACKING },
		{ "move-address", required_argument, NULL, OPT_ADDRESS },
		{ "network-lock", required_argument, NULL, OPT_LOCK },
		{ "keep-state", required_argument, NULL, OPT_KEEP },
		{ "api", required_argument, NULL, OPT_API },
		{ "json", no_argument, NULL, OPT_JSON },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":t:qhV", options, NULL)) != -1;) {
		if (o == ':' || o == '?') {
			fault_set(f, FAULT_USAGE,
				  o == ':' ? "option %.100s needs a value" : "unknown or ambiguous option %.100s",
				  argv[optind - 1]);
			return bad_usage(f);
		}
		if (take_option(a, o, optarg, f) < 0)
			return -1;
	}
	return 0;
}

static int take_pid(struct args *a, const char *text, struct fault *f)
{
	uint64_t pid;
	/* decimal, as ps shows it: no 010 that is 8 */
	if (text[0] == '0' || !util_parse_u64(text, 4194304, &pid)) {
		fault_set(f, FAULT_USAGE, "\"%.60s\" is not a process id", text);
		return fault_hint(f, "Give the number that ps or \"pgrep NAME\" shows.");
	}
	if (!json_has(a->body, "to")) {
		fault_set(f, FAULT_USAGE, "where to? --to is missing");
		return fault_hint(f, "Write cpr-migrate --to HOST %s.", text);
	}
	a->operand = text;
	json_add_u64(a->body, "pid", pid);
	return 0;
}

static int too_many(const char *what, struct fault *f)
{
	fault_set(f, FAULT_USAGE, "unexpected argument \"%.100s\"", what);
	return bad_usage(f);
}

static int take_operands(struct args *a, int n, char **v, struct fault *f)
{
	static const struct {
		const char *name;
		enum command command;
		int operands;
	} commands[] = { { "list", COMMAND_LIST, 0 }, { "show", COMMAND_SHOW, 1 }, { "cancel", COMMAND_CANCEL, 1 } };
	if (n == 0) {
		fault_set(f, FAULT_USAGE, "which process? PID is missing");
		return fault_hint(f, "Write cpr-migrate --to HOST PID, or see cpr-migrate --help.");
	}
	for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
		if (strcmp(v[0], commands[i].name))
			continue;
		if (n - 1 > commands[i].operands)
			return too_many(v[1 + commands[i].operands], f);
		if (n - 1 < commands[i].operands) {
			fault_set(f, FAULT_USAGE, "which migration? cpr-migrate %s needs an ID", v[0]);
			return fault_hint(f, "List them with \"cpr-migrate list\".");
		}
		a->command = commands[i].command;
		a->operand = v[1];
		return 0;
	}
	return n > 1 ? too_many(v[1], f) : take_pid(a, v[0], f);
}

static void on_event(void *ctx, const json_object *e, const char *line)
{
	struct follow *fo = ctx;
	const char *kind = json_str(e, "kind");
	bool done = kind && !strcmp(kind, "done"), failed = kind && !strcmp(kind, "failed");
	if (fo->args->json) {
		puts(line);
		fflush(stdout);
	} else if (done) {
		render_done(fo->render, e);
	} else {
		render_event(fo->render, e);
	}
	if (done || failed) {
		fo->over = true;
		fo->done = done;
	}
	if (failed) {
		json_fault_in(json_object_in(e, "fault"), &fo->fault);
	}
}

static void note(const struct follow *fo, const char *text)
{
	if (!fo->args->json)
		fprintf(stderr, "%scpr-migrate: %s\n", fo->render->progress ? "\n" : "", text);
	fo->render->progress = false;
}

/* Once: cancel, and wait for what becomes of it. Twice: wait no longer. */
static bool on_interrupt(void *ctx)
{
	struct follow *fo = ctx;
	char path[128];
	json_object *answer = NULL;
	struct fault f;
	if (fo->interrupts++)
		return false;
	note(fo, "cancelling; interrupt again to wait no longer");
	snprintf(path, sizeof(path), "/v1/migrations/%s", fo->id);
	if (client_call(fo->client, "DELETE", path, NULL, &answer, &f) < 0)
		note(fo, f.what);
	else
		json_object_put(answer);
	return true;
}

static int outcome(struct follow *fo, struct fault *f)
{
	if (fo->done)
		return 0;
	if (fo->over) {
		*f = fo->fault;
		return -1;
	}
	if (fo->interrupts > 1)
		fault_set(f, FAULT_CANCELLED, "not waiting for the outcome of the cancelled migration");
	else
		fault_set(f, FAULT_AGENT_DOWN, "cpr-agent ended before the migration did");
	return fault_hint(f, "See where the process runs with \"cpr-migrate show %s\".", fo->id);
}

static int signals_open(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* The report stands in the migration, also when it came with another event than the last one. */
static void show_failure(struct follow *fo, const struct fault *f)
{
	char path[128];
	json_object *m = NULL;
	struct fault ignored;
	snprintf(path, sizeof(path), "/v1/migrations/%s", fo->id);
	if (client_call(fo->client, "GET", path, NULL, &m, &ignored) < 0)
		m = NULL;
	render_failed(fo->render, f, json_array(m, "report"));
	if (m)
		json_object_put(m);
}

static void fill_hosts(struct client *c, struct render *r, const json_object *body)
{
	json_object *host = NULL;
	struct fault ignored;
	if (client_call(c, "GET", "/v1/host", NULL, &host, &ignored) == 0) {
		const char *name = json_str(host, "name");
		snprintf(r->from, sizeof(r->from), "%s", name ? name : "");
		json_object_put(host);
	}
	uint16_t port;
	if (endpoint_split(json_str(body, "to"), r->to, sizeof(r->to), &port, &ignored) < 0)
		r->to[0] = 0;
}

/* 0; 1: failed, and said so; -1: failed, to be said */
static int move(struct client *c, const struct args *a, struct render *r, struct fault *f)
{
	auto_fd sig = signals_open();
	json_object *m = NULL;
	if (sig < 0)
		return fault_errno(f, FAULT_SYSTEM, "watch for signals");
	if (client_call(c, "POST", "/v1/migrations", a->body, &m, f) < 0)
		return -1;
	fill_hosts(c, r, a->body);
	auto_free char *id = strdup(json_str(m, "id") ? json_str(m, "id") : "");
	json_object_put(m);
	struct follow fo = { .client = c, .render = r, .args = a, .id = id };
	const struct client_handlers h = { on_event, on_interrupt, &fo, sig };
	int followed = client_follow(c, id, &h, f);
	if (fo.over || followed == 0)
		followed = outcome(&fo, f);
	if (followed == 0)
		return 0;
	if (a->json) /* with the last line, the fault was printed */
		return fo.over ? 1 : -1;
	show_failure(&fo, f);
	return 1;
}

static int ask(struct client *c, const struct args *a, struct render *r, struct fault *f)
{
	char path[160] = "/v1/migrations";
	json_object *o = NULL;
	if (a->operand) {
		size_t n = strspn(a->operand, "0123456789abcdefABCDEF-");
		if (!n || a->operand[n] || n > 36) {
			fault_set(f, FAULT_USAGE, "\"%.60s\" is not the id of a migration", a->operand);
			return fault_hint(f, "List them with \"cpr-migrate list\".");
		}
		snprintf(path, sizeof(path), "/v1/migrations/%s", a->operand);
	}
	if (client_call(c, a->command == COMMAND_CANCEL ? "DELETE" : "GET", path, NULL, &o, f) < 0)
		return -1;
	if (a->json)
		puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	else if (a->command == COMMAND_LIST)
		render_list(r, o);
	else if (a->command == COMMAND_SHOW)
		render_one(r, o);
	json_object_put(o);
	return 0;
}

static int run(struct args *a, struct render *r, struct fault *f)
{
	struct client *c;
	if (client_open(a->api, &c, f) < 0)
		return -1;
	int result = a->command == COMMAND_MOVE ? move(c, a, r, f) : ask(c, a, r, f);
	client_close(c);
	return result;
}

static void complain(const struct args *a, struct render *r, const struct fault *f)
{
	if (!a->json) {
		render_failed(r, f, NULL);
		return;
	}
	json_object *o = json_object_new_object();
	json_add_str(o, "kind", "failed");
	json_object_object_add(o, "fault", json_fault(f));
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

static void render_setup(struct render *r, const struct args *a)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
	r->terminal = isatty(STDOUT_FILENO) && term && strcmp(term, "dumb");
	r->color = r->terminal && isatty(STDERR_FILENO) && !(no_color && *no_color);
	r->quiet = a->quiet;
}

int main(int argc, char **argv)
{
	struct args a = { .api = CONF_API, .body = json_object_new_object() };
	struct render r = { .out = stdout, .err = stderr };
	struct fault f;
	int result = parse_options(&a, argc, argv, &f);
	if (result == 0 && (a.command == COMMAND_HELP || a.command == COMMAND_VERSION)) {
		fputs(a.command == COMMAND_HELP ? usage : "cpr-migrate " CONF_VERSION "\n", stdout);
		json_object_put(a.body);
		return 0;
	}
	if (result == 0)
		result = take_operands(&a, argc - optind, argv + optind, &f);
	render_setup(&r, &a);
	if (result == 0)
		result = run(&a, &r, &f);
	json_object_put(a.body);
	if (result < 0)
		complain(&a, &r, &f);
	return result ? fault_exit_status(f.code) : 0;
}
