/*
 * What the agent was told: command line first, then the file; the command line wins, option by option.
 *
 *	conf_args(c, argc, argv)	options; *action says what to do
 *	conf_file(c)			--config, else CONF_FILE when there is one
 *	conf_finish(c)			defaults
 *	… read the fields …
 *	conf_free(c)
 *
 * Every error names its place (file:line, or the option), what is wrong and what to do.
 */
#ifndef AGENT_CONF_H
#define AGENT_CONF_H

#include "fault.h"

#define CONF_FILE     "/etc/cpr/agent.conf"
#define CONF_API      "/run/cpr/api.sock"
#define CONF_RUN_DIR  "/run/cpr"
#define CONF_PROGRAMS "/usr/libexec/cpr"
#define CONF_VERSION  "0.1"
#define CONF_LIST_MAX 256

enum conf_action { CONF_RUN, CONF_CHECK, CONF_VERSION_ASKED, CONF_HELP };

/*
 * X(field, option and key, argument in --help, default in --help, help, validator)
 * One value each; NULL as long as nobody set it.
 */
#define CONF_STRINGS(X)                                                                                            \
	X(api, "api", "PATH", CONF_API, "unix socket of the API", path)                                            \
	X(name, "name", "HOST", "the host name", "name of this host, as its certificate says it", host)            \
	X(run_dir, "run-dir", "DIR", CONF_RUN_DIR, "journal of migrations", path)                                  \
	X(user, "user", "USER", "cpr", "user the agent runs as", user)                                             \
	X(wire_user, "wire-user", "USER", "cpr-wire", "user the TLS processes run as", user)                       \
	X(ca, "ca", "FILE", "/etc/cpr/ca.pem", "certificate of the CA that signs hosts", path)                     \
	X(cert, "cert", "FILE", "/etc/cpr/host.pem", "certificate of this host", path)                             \
	X(key, "key", "FILE", "/etc/cpr/host.key", "its private key", path)                                        \
	X(log_level, "log-level", "LEVEL", "notice", "err, notice or debug", level)                                \
	X(programs, "programs", "DIR", "beside cpr-agent, else " CONF_PROGRAMS, "where cpr-warden and others are", \
	  path)                                                                                                    \
	X(max_connections, "max-connections", "N", "64", "connections of peers at one time", number)               \
	X(max_handshakes, "max-handshakes", "N", "16", "of these not yet authenticated", number)                   \
	X(max_migrations, "max-migrations", "N", "16", "migrations running at one time", number)

/* Repeatable: a NULL-terminated list, or NULL. */
#define CONF_LISTS(X)                                                                                               \
	X(listen, "listen", "ADDR:PORT", "[::]:7077", "where peers connect to; repeatable", listen)                 \
	X(allow_peer, "allow-peer", "HOST", "nobody", "host that may push processes to this one; repeatable", host) \
	X(hosts, "hosts", "NAME=ADDR[:PORT]", "the resolver", "address of a host; repeatable", hosts)               \
	X(api_uid, "api-uid", "UID", "root and the agent's own", "further user that may use the API; repeatable", uid)

struct conf {
#define X(field, ...) char *field;
	CONF_STRINGS(X)
#undef X
#define X(field, ...) char **field;
	CONF_LISTS(X)
#undef X
	char *config; /* --config; NULL: CONF_FILE when it exists */
	struct conf_origins *origins;
};

struct conf *conf_new(void);
void conf_free(struct conf *c);
int conf_args(struct conf *c, int argc, char *const *argv, enum conf_action *action, struct fault *f) MUST_CHECK;
int conf_file(struct conf *c, struct fault *f) MUST_CHECK;
/* One file's text; name is for messages. */
int conf_text(struct conf *c, const char *name, const char *text, size_t len, struct fault *f) MUST_CHECK;
int conf_finish(struct conf *c, struct fault *f) MUST_CHECK;

void conf_help(void); /* prints to stdout */
size_t conf_list_len(char *const *list);
int conf_log_level(const struct conf *c); /* enum log_level */
unsigned conf_number(const char *value);  /* a value that was validated as a number */
/* Address that `hosts` gives to a host: text for endpoint_parse, or NULL. */
const char *conf_host_address(const struct conf *c, const char *host);

#endif
