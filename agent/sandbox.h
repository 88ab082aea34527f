/*
 * How the agent gives up what it doesn't need. Irrevocable, so it comes after the warden was started.
 *
 *	sandbox_user(name, &u)	looked up while files can still be read
 *	sandbox_enter(&u)	uid and gid, no groups, no capabilities, no_new_privs, not dumpable, seccomp filter
 */
#ifndef AGENT_SANDBOX_H
#define AGENT_SANDBOX_H

#include "fault.h"

struct sandbox_user {
	uid_t uid;
	gid_t gid;
};

/* FAULT_CONFIG tells how to make the user. Root is refused. */
int sandbox_user(const char *name, const char *option, struct sandbox_user *u, struct fault *f) MUST_CHECK;
int sandbox_enter(const struct sandbox_user *u, struct fault *f) MUST_CHECK;

#endif
