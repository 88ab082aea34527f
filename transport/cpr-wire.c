/*
 * cpr-wire: the unprivileged process that speaks TLS for one connection. Started by cpr-warden only; see wire.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "wire.h"

static int usage(void)
{
	fprintf(stderr, "usage: cpr-wire --role client|server [--expect HOST]\n"
			"cpr-wire is a part of cpr-agent, which starts it with its descriptors in place.\n");
	return 64;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "role", required_argument, NULL, 'r' },
						 { "expect", required_argument, NULL, 'e' },
						 { 0 } };
	const char *role = "", *expect = NULL;
	int c;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'r')
			role = optarg;
		else if (c == 'e')
			expect = optarg;
		else
			return usage();
	}
	bool client = !strcmp(role, "client");
	if (optind != argc || (!client && strcmp(role, "server") != 0))
		return usage();
	for (int fd = 0; fd < WIRE_FD_END; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			return usage();
	/* Not exit(3): what libraries do at the end is not on the sandbox's list, and nothing is buffered. */
	_exit(wire_run(client, expect));
}
