/*
 * The root part of cpr-agent, which starts it: see warden.h.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "spawn.h"
#include "warden.h"

static int usage(void)
{
	fprintf(stderr,
		"usage: cpr-warden --worker PROGRAM --wire PROGRAM --run-dir DIR --ca FILE --cert FILE --key FILE "
		"--wire-user USER --name HOST [--log-level N]\n"
		"cpr-warden is a part of cpr-agent, which starts it with a socket on descriptor 3.\n");
	return 64;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "worker", required_argument, NULL, 'w' },    { "wire", required_argument, NULL, 'x' },
		{ "run-dir", required_argument, NULL, 'r' },   { "ca", required_argument, NULL, 'a' },
		{ "cert", required_argument, NULL, 'c' },      { "key", required_argument, NULL, 'k' },
		{ "wire-user", required_argument, NULL, 'u' }, { "name", required_argument, NULL, 'n' },
		{ "log-level", required_argument, NULL, 'l' }, { 0 },
	};
	struct warden_conf conf = { .agent = SPAWN_FD };
	const struct {
		int c;
		const char **to;
	} values[] = {
		{ 'w', &conf.worker }, { 'x', &conf.wire }, { 'r', &conf.run_dir },   { 'a', &conf.ca },
		{ 'c', &conf.cert },   { 'k', &conf.key },  { 'u', &conf.wire_user }, { 'n', &conf.name },
	};
	int level = LOG_LEVEL_NOTICE;
	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		bool known = c == 'l';
		if (known)
			level = atoi(optarg);
		for (size_t i = 0; i < ARRAY_LEN(values); i++)
			if (values[i].c == c) {
				*values[i].to = optarg;
				known = true;
			}
		if (!known)
			return usage();
	}
	for (size_t i = 0; i < ARRAY_LEN(values); i++)
		if (!*values[i].to)
			return usage();
	if (optind != argc || fcntl(SPAWN_FD, F_SETFD, FD_CLOEXEC) < 0)
		return usage();
	log_open("cpr-warden", level);
	char text[16];
	snprintf(text, sizeof(text), "%d", level);
	setenv("CPR_LOG_LEVEL", text, 1); /* for workers */
	struct fault f = { 0 };
	if (warden_run(&conf, &f) == 0)
		return 0;
	char line[1200];
	fault_line(&f, line, sizeof(line));
	log_err("warden", "%s", line);
	return 1;
}
