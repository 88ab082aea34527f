#include "conf.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "endpoint.h"
#include "log.h"

#define CONF_FILE_MAX ((size_t)256 << 10)

/* Who set a key first: the command line is read first and keeps what it set. */
enum origin { ORIGIN_UNSET, ORIGIN_ARGS, ORIGIN_FILE };

enum key {
#define X(field, ...) KEY_##field,
	CONF_STRINGS(X) CONF_LISTS(X)
#undef X
		KEY_COUNT
};

struct conf_origins {
	enum origin key[KEY_COUNT];
	unsigned line[KEY_COUNT]; /* where the file set it */
};

/* Validators: the reason a value is refused, or NULL. */
static const char *valid_path(const char *v)
{
	if (v[0] != '/')
		return "must be an absolute path";
	return strlen(v) < PATH_MAX ? NULL : "is too long";
}

static const char *valid_host(const char *v)
{
	if (!strcmp(v, "*"))
		return "can't be a wildcard: name each host, one line each";
	return endpoint_host_valid(v) ? NULL : "must be a host name, of letters, digits, '-' and '.'";
}

static const char *valid_user(const char *v)
{
	return strlen(v) <= 32 && v[0] != '-' && !strpbrk(v, ":/ \t") ? NULL : "must be the name of a user";
}

static const char *valid_level(const char *v)
{
	return !strcmp(v, "err") || !strcmp(v, "notice") || !strcmp(v, "debug") ? NULL : "must be err, notice or debug";
}

static const char *valid_number(const char *v)
{
	uint64_t n;
	return util_parse_u64(v, 65536, &n) && n > 0 ? NULL : "must be a number from 1 to 65536";
}

static const char *valid_uid(const char *v)
{
	uint64_t n;
	return util_parse_u64(v, UINT32_MAX - 1, &n) ? NULL : "must be a numeric user id (see id -u)";
}

static const char *valid_listen(const char *v)
{
	struct endpoint e;
	struct fault f;
	return endpoint_parse(v, &e, &f) < 0 ? "must be ADDR:PORT with a numeric address, like [::]:7077" : NULL;
}

static const char *valid_hosts(const char *v)
{
	char name[256];
	const char *eq = strchr(v, '=');
	struct endpoint e;
	struct fault f;
	if (!eq || (size_t)(eq - v) >= sizeof(name))
		return "must be NAME=ADDR[:PORT], like host2=10.0.0.2:7077";
	snprintf(name, sizeof(name), "%.*s", (int)(eq - v), v);
	if (!endpoint_host_valid(name) || endpoint_parse(eq + 1, &e, &f) < 0)
		return "must be NAME=ADDR[:PORT] with a numeric address, like host2=10.0.0.2:7077";
	return NULL;
}

static const struct key_def {
	const char *name, *arg, *standard, *help;
	size_t offset;
	bool list;
	const char *(*valid)(const char *v);
} keys[KEY_COUNT] = {
#define X(field, name, arg, standard, help, v) \
	{ name, arg, standard, help, offsetof(struct conf, field), false, valid_##v },
	CONF_STRINGS(X)
#undef X
#define X(field, name, arg, standard, help, v) \
	{ name, arg, standard, help, offsetof(struct conf, field), true, valid_##v },
		CONF_LISTS(X)
#undef X
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

struct conf *conf_new(void)
{
	struct conf *c = must(calloc(1, sizeof(*c)));
	c->origins = must(calloc(1, sizeof(*c->origins)));
	return c;
}

static char **string_of(struct conf *c, const struct key_def *k)
{
	return (char **)((char *)c + k->offset);
}

static char ***list_of(struct conf *c, const struct key_def *k)
{
	return (char ***)((char *)c + k->offset);
}

static void list_free(char ***list)
{
	for (size_t i = 0; *list && (*list)[i]; i++)
		free((*list)[i]);
	free(*list);
	*list = NULL;
}

void conf_free(struct conf *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (keys[i].list)
			list_free(list_of(c, &keys[i]));
		else
			free(*string_of(c, &keys[i]));
	}
	free(c->config);
	free(c->origins);
	free(c);
}

size_t conf_list_len(char *const *list)
{
	size_t n = 0;
	while (list && list[n])
		n++;
	return n;
}

/* place: "--listen" or "FILE:12: listen" */
static int store(struct conf *c, enum key key, enum origin origin, const char *place, const char *value,
		 struct fault *f)
{
	const struct key_def *k = &keys[key];
	const char *wrong = value[0] ? k->valid(value) : "must not be empty";
	if (wrong) {
		fault_set(f, FAULT_CONFIG, "%s: \"%.120s\" %s", place, value, wrong);
		return fault_hint(f, "Expected: %s (%s). See cpr-agent(8).", k->arg, k->help);
	}
	enum origin before = c->origins->key[key];
	if (before == ORIGIN_ARGS && origin == ORIGIN_FILE)
		return 0; /* the command line wins; the value was checked all the same */
	if (k->list) {
		char ***list = list_of(c, k);
		size_t n = conf_list_len(*list);
		if (n >= CONF_LIST_MAX)
			return fault_set(f, FAULT_CONFIG, "%s: more than %u values", place, CONF_LIST_MAX);
		*list = must(reallocarray(*list, n + 2, sizeof(**list)));
		(*list)[n] = must(strdup(value));
		(*list)[n + 1] = NULL;
	} else if (before == ORIGIN_FILE) {
		fault_set(f, FAULT_CONFIG, "%s: set a second time, first on line %u", place, c->origins->line[key]);
		return fault_hint(f, "Remove one of the two lines.");
	} else {
		free(*string_of(c, k));
		*string_of(c, k) = must(strdup(value));
	}
	c->origins->key[key] = origin;
	return 0;
}

enum { OPT_CONFIG = 'c', OPT_HELP = 'h', OPT_VERSION = 'V', OPT_CHECK = 256, OPT_KEY };

int conf_args(struct conf *c, int argc, char *const *argv, enum conf_action *action, struct fault *f)
{
	struct option options[KEY_COUNT + 5] = {
		{ "config", required_argument, NULL, OPT_CONFIG },
		{ "check", no_argument, NULL, OPT_CHECK },
		{ "version", no_argument, NULL, OPT_VERSION },
		{ "help", no_argument, NULL, OPT_HELP },
	};
	for (size_t i = 0; i < KEY_COUNT; i++)
		options[4 + i] = (struct option){ keys[i].name, required_argument, NULL, OPT_KEY + (int)i };
	*action = CONF_RUN;
	optind = 0; /* glibc: start anew, also in a second call */
	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":hVc:", options, NULL)) != -1;) {
		if (o == OPT_HELP || o == OPT_VERSION || o == OPT_CHECK) {
			*action = o == OPT_HELP ? CONF_HELP : o == OPT_VERSION ? CONF_VERSION_ASKED : CONF_CHECK;
		} else if (o == OPT_CONFIG) {
			free(c->config);
			c->config = must(strdup(optarg));
		} else if (o >= OPT_KEY) {
			char place[64];
			snprintf(place, sizeof(place), "--%s", keys[o - OPT_KEY].name);
			if (store(c, (enum key)(o - OPT_KEY), ORIGIN_ARGS, place, optarg, f) < 0)
				return -1;
		} else {
			fault_set(f, FAULT_USAGE,
				  o == ':' ? "option %s needs a value" : "unknown or ambiguous option %s",
				  argv[optind - 1]);
			return fault_hint(f, "See cpr-agent --help.");
		}
	}
	if (optind < argc) {
		fault_set(f, FAULT_USAGE, "unexpected argument \"%.100s\"", argv[optind]);
		return fault_hint(f, "cpr-agent takes options only; see cpr-agent --help.");
	}
	return 0;
}

static char *trim(char *s)
{
	s += strspn(s, " \t\r");
	size_t n = strlen(s);
	while (n && strchr(" \t\r", s[n - 1]))
		s[--n] = 0;
	return s;
}

static int parse_line(struct conf *c, const char *name, unsigned number, char *line, struct fault *f)
{
	line = trim(line);
	if (!*line || *line == '#')
		return 0;
	char *eq = strchr(line, '=');
	if (!eq) {
		fault_set(f, FAULT_CONFIG, "%s:%u: \"%.100s\" is not \"key = value\"", name, number, line);
		return fault_hint(f, "Put # before comments. The keys are the long options of cpr-agent(8).");
	}
	*eq = 0;
	char *key = trim(line), *value = trim(eq + 1);
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (strcmp(keys[i].name, key))
			continue;
		char place[PATH_MAX + 64];
		snprintf(place, sizeof(place), "%s:%u: %s", name, number, key);
		enum origin before = c->origins->key[i];
		if (store(c, (enum key)i, ORIGIN_FILE, place, value, f) < 0)
			return -1;
		if (before == ORIGIN_UNSET)
			c->origins->line[i] = number;
		return 0;
	}
	fault_set(f, FAULT_CONFIG, "%s:%u: unknown key \"%.60s\"", name, number, key);
	return fault_hint(f, "The keys are the long options of cpr-agent(8), without the dashes.");
}

int conf_text(struct conf *c, const char *name, const char *text, size_t len, struct fault *f)
{
	if (memchr(text, 0, len))
		return fault_set(f, FAULT_CONFIG, "%s: not a text file: it has NUL bytes", name);
	auto_free char *copy = must(strndup(text, len));
	char *rest = copy;
	unsigned number = 0;
	for (char *line; (line = strsep(&rest, "\n"));)
		if (parse_line(c, name, ++number, line, f) < 0)
			return -1;
	return 0;
}

/* A bounded read: whoever names /dev/zero as configuration gets a sentence, not a full memory. */
static int read_file(const char *path, char **text, size_t *len, struct fault *f)
{
	auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s", path);
	auto_free char *buf = must(malloc(CONF_FILE_MAX + 1));
	size_t used = 0;
	for (ssize_t n; used <= CONF_FILE_MAX; used += (size_t)n) {
		n = read(fd, buf + used, CONF_FILE_MAX + 1 - used);
		if (n < 0)
			return fault_errno(f, FAULT_CONFIG, "read %s", path);
		if (n == 0)
			break;
	}
	if (used > CONF_FILE_MAX)
		return fault_set(f, FAULT_CONFIG, "%s is larger than %zu KiB", path, CONF_FILE_MAX >> 10);
	*len = used;
	*text = take_ptr(buf);
	return 0;
}

int conf_file(struct conf *c, struct fault *f)
{
	const char *path = c->config ? c->config : CONF_FILE;
	if (!c->config && access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	auto_free char *text = NULL;
	size_t len = 0;
	if (read_file(path, &text, &len, f) < 0)
		return fault_hint(f, "Give an existing, readable file with --config, or none at all.");
	return conf_text(c, path, text, len, f);
}

static void standard(char **field, const char *value)
{
	if (!*field)
		*field = must(strdup(value));
}

/* The programs of a build tree lie beside cpr-agent, those of an installation in CONF_PROGRAMS. */
static void find_programs(struct conf *c)
{
	char self[PATH_MAX], probe[PATH_MAX + 16];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n > 0) {
		self[n] = 0;
		*strrchr(self, '/') = 0;
		snprintf(probe, sizeof(probe), "%s/cpr-warden", self);
		if (access(probe, X_OK) == 0) {
			standard(&c->programs, self[0] ? self : "/");
			return;
		}
	}
	standard(&c->programs, CONF_PROGRAMS);
}

int conf_finish(struct conf *c, struct fault *f)
{
	char host[HOST_NAME_MAX + 1] = "";
	if (!c->name) {
		if (gethostname(host, sizeof(host) - 1) < 0 || !endpoint_host_valid(host)) {
			fault_set(f, FAULT_CONFIG, "the host name \"%s\" can't be used", host);
			return fault_hint(f, "Give the name that the host's certificate carries with --name.");
		}
		standard(&c->name, host);
	}
	standard(&c->api, CONF_API);
	standard(&c->run_dir, CONF_RUN_DIR);
	standard(&c->user, "cpr");
	standard(&c->wire_user, "cpr-wire");
	standard(&c->ca, "/etc/cpr/ca.pem");
	standard(&c->cert, "/etc/cpr/host.pem");
	standard(&c->key, "/etc/cpr/host.key");
	standard(&c->log_level, "notice");
	standard(&c->max_connections, "64");
	standard(&c->max_handshakes, "16");
	standard(&c->max_migrations, "16");
	if (!c->programs)
		find_programs(c);
	if (!c->listen) {
		c->listen = must(calloc(2, sizeof(*c->listen)));
		c->listen[0] = must(strdup("[::]:7077"));
	}
	return 0;
}

void conf_help(void)
{
	printf("usage: cpr-agent [OPTION]...\n\n"
	       "Moves running processes to other hosts and takes them in. Started as root; it starts cpr-warden and\n"
	       "then gives up its privileges.\n\n"
	       "      --check                    print what this host can do, and exit\n"
	       "  -c, --config FILE              file of \"key = value\" lines; keys are the options below\n"
	       "                                 (default: " CONF_FILE ", when there is one)\n");
	for (size_t i = 0; i < KEY_COUNT; i++) {
		char left[64];
		snprintf(left, sizeof(left), "--%s %s", keys[i].name, keys[i].arg);
		printf("      %-26s %s\n%33s(default: %s)\n", left, keys[i].help, "", keys[i].standard);
	}
	printf("  -h, --help                     print this, and exit\n"
	       "  -V, --version                  print the version, and exit\n\n"
	       "An option on the command line replaces what the file says for that key. See cpr-agent(8).\n");
}

int conf_log_level(const struct conf *c)
{
	if (!c->log_level || !strcmp(c->log_level, "notice"))
		return LOG_LEVEL_NOTICE;
	return !strcmp(c->log_level, "err") ? LOG_LEVEL_ERR : LOG_LEVEL_DEBUG;
}

unsigned conf_number(const char *value)
{
	uint64_t n;
	return value && util_parse_u64(value, 65536, &n) ? (unsigned)n : 0;
}

const char *conf_host_address(const struct conf *c, const char *host)
{
	size_t n = strlen(host);
	for (size_t i = 0; c->hosts && c->hosts[i]; i++)
		if (!strncasecmp(c->hosts[i], host, n) && c->hosts[i][n] == '=')
			return c->hosts[i] + n + 1;
	return NULL;
}
