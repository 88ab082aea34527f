/*
 * cpr-agent(8): the daemon of a host. Started as root: takes its sockets, starts the warden, then drops everything.
 */
#include <stdio.h>
#include <unistd.h>

#include "check.h"
#include "conf.h"
#include "daemon.h"
#include "endpoint.h"
#include "listen.h"
#include "log.h"
#include "sandbox.h"

static int need_root(struct fault *f)
{
	if (geteuid() == 0)
		return 0;
	fault_set(f, FAULT_CONFIG, "cpr-agent must be started as root");
	return fault_hint(f,
			  "It starts cpr-warden, which moves processes, and then runs as the user given with --user.");
}

static void say_listeners(const struct conf *c, const struct listeners *l)
{
	for (size_t i = 0; i < l->n_peers; i++) {
		struct sockaddr_storage sa;
		socklen_t len = sizeof(sa);
		char text[ENDPOINT_TEXT] = "?";
		if (getsockname(l->peer[i], (struct sockaddr *)&sa, &len) == 0)
			endpoint_text((struct sockaddr *)&sa, len, text);
		log_notice(c->name, "peers connect to %s", text);
	}
	if (!c->allow_peer)
		log_notice(c->name, "no allow-peer rule: no host may push processes here");
}

static int serve(const struct conf *c, struct listeners *l, struct fault *f)
{
	struct sandbox_user user, wire_user;
	if (need_root(f) < 0 || listen_take(l, 3, f) < 0)
		return -1;
	listen_close_others(l, 3);
	if (sandbox_user(c->user, "--user", &user, f) < 0 ||
	    sandbox_user(c->wire_user, "--wire-user", &wire_user, f) < 0 || listen_open(l, c, user.uid, f) < 0)
		return -1;
	struct daemon *d = daemon_new(c, l, check_trackers(), f);
	if (!d)
		return -1;
	int r = sandbox_enter(&user, f);
	if (r == 0) {
		say_listeners(c, l);
		log_notice(c->name, "ready, API at %s", c->api);
		listen_notify("READY=1");
		r = daemon_run(d, f);
	}
	daemon_free(d);
	/* Mostly not allowed any more; the next agent removes what is left. */
	if (l->api_ours && unlink(c->api) < 0)
		log_debug(c->name, "%s stays", c->api);
	return r;
}

static int run(struct conf *c, int argc, char **argv, int *status, struct fault *f)
{
	enum conf_action action;
	if (conf_args(c, argc, argv, &action, f) < 0)
		return -1;
	if (action == CONF_HELP) {
		conf_help();
		return 0;
	}
	if (action == CONF_VERSION_ASKED) {
		printf("cpr-agent %s\n", CONF_VERSION);
		return 0;
	}
	if (conf_file(c, f) < 0 || conf_finish(c, f) < 0)
		return -1;
	log_open("cpr-agent", (enum log_level)conf_log_level(c));
	if (action == CONF_CHECK) {
		*status = check_run(c, stdout) ? 0 : 1;
		return 0;
	}
	struct listeners l;
	listen_init(&l);
	int r = serve(c, &l, f);
	listen_close(&l);
	return r;
}

int main(int argc, char **argv)
{
	struct conf *c = conf_new();
	struct fault f;
	int status = 0;
	log_open("cpr-agent", LOG_LEVEL_NOTICE);
	if (run(c, argc, argv, &status, &f) < 0) {
		char line[1024];
		fault_line(&f, line, sizeof(line));
		log_err("agent", "%s", line);
		if (f.hint[0])
			log_err("agent", "%s", f.hint);
		status = fault_exit_status(f.code);
	}
	conf_free(c);
	return status;
}
