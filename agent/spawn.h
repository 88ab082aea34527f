/*
 * Starting the warden and workers: fork, a clean state, exec.
 *
 * What a worker is, a vessel inherits (DESIGN, section 1). So the program starts with default signals and an empty
 * mask, umask 022, / as its directory, /dev/null as its input and output, our stderr, one descriptor of its own (3)
 * and no other; with nice 0, oom_score_adj 0, the default timer slack, scheduler and personality. Limits, capabilities, namespaces
 * and security contexts are those of the caller, which must not have changed its own.
 */
#ifndef AGENT_SPAWN_H
#define AGENT_SPAWN_H

#include <sys/types.h>

#include "fault.h"

#define SPAWN_FD 3

enum spawn_flags {
	SPAWN_SESSION = 1, /* clear of our terminal's Ctrl-C */
	SPAWN_WITH_US = 2, /* killed when the calling thread ends */
};

/* *pidfd: CLOEXEC, readable when it has exited. */
int spawn(char *const argv[], int fd, unsigned flags, pid_t *pid, int *pidfd, struct fault *f) MUST_CHECK;

#endif
