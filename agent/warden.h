/*
 * The root part of an agent (DESIGN, section 1): starts wires and workers, does what they may ask for (custody.h), and
 * finishes or undoes what a dead worker left. One thread, one poll(2) loop, plain structures from outside.
 *
 * It is not sandboxed and changes nothing about itself that a vessel would inherit.
 */
#ifndef AGENT_WARDEN_H
#define AGENT_WARDEN_H

#include "fault.h"

struct warden_conf {
	const char *worker, *wire, *run_dir, *ca, *cert, *key, *wire_user;
	const char *name; /* of this host, for messages */
	int agent;	  /* SOCK_SEQPACKET, connected: the agent that started us */
};

/* Until the agent is gone, or SIGTERM came, and no worker is left. */
int warden_run(const struct warden_conf *conf, struct fault *f) MUST_CHECK;

#endif
