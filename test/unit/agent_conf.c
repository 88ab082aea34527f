/* Configuration: what is taken, what is refused with its place and remedy, who wins; garbage never crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conf.h"
#include "endpoint.h"
#include "listen.h"
#include "log.h"

static struct conf *text(const char *t, struct fault *f)
{
	struct conf *c = conf_new();
	if (conf_text(c, "agent.conf", t, strlen(t), f) == 0)
		return c;
	conf_free(c);
	return NULL;
}

static void test_good(void **state)
{
	(void)state;
	struct fault f;
	struct conf *c = text("# comment\n\n  name = host1 \r\nlisten=10.0.0.1:7077\nlisten = [::1]:0\n"
			      "allow-peer = host2\nhosts = host2=10.77.0.2:7078\napi-uid = 1000\nlog-level=debug",
			      &f);
	assert_non_null(c);
	assert_string_equal(c->name, "host1");
	assert_int_equal(conf_list_len(c->listen), 2);
	assert_string_equal(c->listen[1], "[::1]:0");
	assert_string_equal(conf_host_address(c, "HOST2"), "10.77.0.2:7078");
	assert_null(conf_host_address(c, "host"));
	assert_int_equal(conf_log_level(c), LOG_LEVEL_DEBUG);
	assert_null(c->user); /* unset stays unset */
	assert_null(c->ca);
	assert_int_equal(conf_finish(c, &f), 0);
	assert_string_equal(c->user, "cpr");
	assert_int_equal(conf_list_len(c->listen), 2);
	conf_free(c);
}

static const struct {
	const char *text, *says;
} wrong[] = {
	{ "name\n", "agent.conf:1: \"name\" is not \"key = value\"" },
	{ "\n\nnmae = x\n", "agent.conf:3: unknown key \"nmae\"" },
	{ "name =\n", "agent.conf:1: name: \"\" must not be empty" },
	{ "name = a\nname = b\n", "agent.conf:2: name: set a second time, first on line 1" },
	{ "name = ../x y\n", "must be a host name" },
	{ "listen = 7077\n", "must be ADDR:PORT" },
	{ "listen = host:7077\n", "must be ADDR:PORT" },
	{ "listen = 1.2.3.4:70777\n", "must be ADDR:PORT" },
	{ "listen = [::1:7077\n", "must be ADDR:PORT" },
	{ "allow-peer = *\n", "can't be a wildcard" },
	{ "allow-peer = a b\n", "must be a host name" },
	{ "hosts = host2\n", "must be NAME=ADDR[:PORT]" },
	{ "hosts = host2=other\n", "with a numeric address" },
	{ "api = relative\n", "absolute path" },
	{ "api-uid = root\n", "numeric user id" },
	{ "api-uid = -1\n", "numeric user id" },
	{ "max-handshakes = 0\n", "1 to 65536" },
	{ "log-level = loud\n", "err, notice or debug" },
	{ "user = -x\n", "name of a user" },
	{ "config = /x\n", "unknown key" },
};

static void test_wrong(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		struct fault f = { 0 };
		assert_null(text(wrong[i].text, &f));
		assert_int_equal(f.code, FAULT_CONFIG);
		if (!strstr(f.what, wrong[i].says))
			fail_msg("%s: says \"%s\"", wrong[i].text, f.what);
		assert_true(f.hint[0]);
		assert_non_null(strstr(f.what, "agent.conf:"));
	}
}

static int args(struct conf *c, enum conf_action *a, struct fault *f, const char *first, ...)
{
	char *argv[16] = { (char *)"cpr-agent", (char *)first };
	int n = 1;
	va_list ap;
	va_start(ap, first);
	while (argv[n])
		argv[++n] = va_arg(ap, char *);
	va_end(ap);
	return conf_args(c, n, argv, a, f);
}

static void test_args(void **state)
{
	(void)state;
	static const char file[] = "name = fromfile\nuser = fromfile\nlisten = 127.0.0.1:1\nlisten = 127.0.0.1:2\n";
	struct fault f;
	enum conf_action a;
	struct conf *c = conf_new();
	assert_int_equal(args(c, &a, &f, "--name", "fromargs", "--listen", "127.0.0.1:3", "--listen=127.0.0.1:4", NULL),
			 0);
	assert_int_equal(a, CONF_RUN);
	assert_int_equal(conf_text(c, "f", file, strlen(file), &f), 0);
	assert_string_equal(c->name, "fromargs");
	assert_string_equal(c->user, "fromfile");
	assert_int_equal(conf_list_len(c->listen), 2);
	assert_string_equal(c->listen[0], "127.0.0.1:3");
	conf_free(c);

	c = conf_new();
	assert_int_equal(args(c, &a, &f, "--check", "-c", "/x", NULL), 0);
	assert_int_equal(a, CONF_CHECK);
	assert_string_equal(c->config, "/x");
	assert_int_equal(args(c, &a, &f, "--version", NULL), 0);
	assert_int_equal(a, CONF_VERSION_ASKED);
	assert_int_equal(args(c, &a, &f, "-h", NULL), 0);
	assert_int_equal(a, CONF_HELP);
	assert_int_equal(args(c, &a, &f, "--lisen", "x", NULL), -1);
	assert_int_equal(f.code, FAULT_USAGE);
	assert_non_null(strstr(f.what, "--lisen"));
	assert_int_equal(args(c, &a, &f, "--listen", NULL), -1);
	assert_non_null(strstr(f.what, "needs a value"));
	assert_int_equal(args(c, &a, &f, "stray", NULL), -1);
	assert_non_null(strstr(f.what, "stray"));
	assert_int_equal(args(c, &a, &f, "--name", "a b", NULL), -1);
	assert_non_null(strstr(f.what, "--name"));
	conf_free(c);
}

static void test_file(void **state)
{
	(void)state;
	static const char *const refused[] = { "/nonexistent/agent.conf", "/dev/zero", "/", "/proc/self/exe" };
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		struct fault f = { 0 };
		struct conf *c = conf_new();
		c->config = strdup(refused[i]);
		assert_int_equal(conf_file(c, &f), -1);
		assert_int_equal(f.code, FAULT_CONFIG);
		assert_non_null(strstr(f.what, refused[i]));
		conf_free(c);
	}
}

/* Bytes at random, and good lines with bytes changed. */
static void test_garbage(void **state)
{
	(void)state;
	static const char good[] =
		"name = host1\nlisten = [::]:7077\nallow-peer = host2\nhosts = h=1.2.3.4:5\napi-uid=7\n";
	srandom(7);
	for (int i = 0; i < 20000; i++) {
		char buf[sizeof(good)];
		struct fault f;
		struct conf *c = conf_new();
		memcpy(buf, good, sizeof(good));
		for (int k = (int)(random() % 6); k >= 0; k--)
			buf[(size_t)random() % (sizeof(good) - 1)] = (char)random();
		if (i % 3 == 0)
			for (size_t k = 0; k < sizeof(buf); k++)
				buf[k] = (char)random();
		if (conf_text(c, "f", buf, (size_t)random() % sizeof(buf), &f) < 0)
			assert_int_equal(f.code, FAULT_CONFIG);
		conf_free(c);
	}
}

static void test_endpoint(void **state)
{
	(void)state;
	static const struct {
		const char *text, *host;
		unsigned port;
	} good[] = {
		{ "host2", "host2", 7077 },	 { "host2:1", "host2", 1 },	 { "10.0.0.2:7078", "10.0.0.2", 7078 },
		{ "[fd00::2]:9", "fd00::2", 9 }, { "fd00::2", "fd00::2", 7077 }, { "[::1]", "::1", 7077 }
	};
	static const char *const bad[] = { "",	   ":1", "a b",	   "host:", "host:x", "host:65536",
					   "[::1", "[]", "[::1]x", "-x",    "a/b" };
	char host[256];
	uint16_t port;
	struct fault f;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(endpoint_split(good[i].text, host, sizeof(host), &port, &f), 0);
		assert_string_equal(host, good[i].host);
		assert_int_equal(port, good[i].port);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (endpoint_split(bad[i], host, sizeof(host), &port, &f) == 0)
			fail_msg("\"%s\" is taken", bad[i]);
}

/* Socket activation: names and families are checked, and somebody else's LISTEN_PID is not ours. */
static void activation(const char *fds, const char *names, const char *pid)
{
	char own[16];
	snprintf(own, sizeof(own), "%d", (int)getpid());
	setenv("LISTEN_PID", pid ? pid : own, 1);
	setenv("LISTEN_FDS", fds, 1);
	setenv("LISTEN_FDNAMES", names, 1);
}

static void test_activation(void **state)
{
	(void)state;
	struct fault f;
	struct listeners l, taken;
	struct conf *c = text("listen = 127.0.0.1:0\n", &f);
	char api[64];
	snprintf(api, sizeof(api), "/tmp/cpr-test-%d.sock", (int)getpid());
	c->api = strdup(api);
	assert_int_equal(conf_finish(c, &f), 0);
	listen_init(&l);
	assert_int_equal(listen_open(&l, c, (uid_t)-1, &f), 0);
	assert_int_equal(l.n_peers, 1);
	/* a second agent on the same socket is told so */
	listen_init(&taken);
	assert_int_equal(listen_open(&taken, c, (uid_t)-1, &f), -1);
	assert_int_equal(f.code, FAULT_BUSY);
	listen_close(&taken);

	int first = 100;
	assert_int_equal(dup2(l.api, first), first);
	assert_int_equal(dup2(l.peer[0], first + 1), first + 1);
	activation("2", "api:peer", "1");
	listen_init(&taken);
	assert_int_equal(listen_take(&taken, first, &f), 0);
	assert_int_equal(taken.api, -1);
	activation("2", "peer:api", NULL);
	assert_int_equal(listen_take(&taken, first, &f), -1);
	assert_non_null(strstr(f.what, "is named \"peer\" but is a unix socket"));
	assert_null(getenv("LISTEN_FDS"));
	activation("2", "api:peer", NULL);
	listen_init(&taken);
	assert_int_equal(listen_take(&taken, first, &f), 0);
	assert_int_equal(taken.api, first);
	assert_int_equal(taken.n_peers, 1);
	assert_int_equal(listen_open(&taken, c, (uid_t)-1, &f), 0); /* nothing is missing */
	assert_int_equal(taken.n_peers, 1);
	listen_close(&taken);
	activation("1", "api", NULL);
	listen_init(&taken);
	assert_int_equal(listen_take(&taken, STDERR_FILENO, &f), -1);
	assert_int_equal(f.code, FAULT_CONFIG);
	listen_close(&l);
	/* its file is left over now, and replaced */
	listen_init(&l);
	assert_int_equal(listen_open(&l, c, (uid_t)-1, &f), 0);
	listen_close(&l);
	unlink(api);
	conf_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),	   cmocka_unit_test(test_wrong),   cmocka_unit_test(test_args),
		cmocka_unit_test(test_file),	   cmocka_unit_test(test_garbage), cmocka_unit_test(test_endpoint),
		cmocka_unit_test(test_activation),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
