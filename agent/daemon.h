/*
 * The agent put together: loop, warden, peers, moves, API.
 *
 *	listen_take, listen_open
 *	daemon_new(…)		starts the warden: still root
 *	sandbox_enter(…)
 *	daemon_run(d)		until SIGTERM or SIGINT
 *	daemon_free(d)
 */
#ifndef AGENT_DAEMON_H
#define AGENT_DAEMON_H

#include <json-c/json.h>

#include "conf.h"
#include "listen.h"

#define DAEMON_STOP_SECONDS 10 /* for cancelled migrations to end */

struct daemon;

/* trackers: for GET /v1/host; taken over; may be NULL. conf and listeners stay the caller's and must stay. */
struct daemon *daemon_new(const struct conf *c, const struct listeners *l, json_object *trackers,
			  struct fault *f) MUST_CHECK;
/* 0 after a signal; -1 when the warden is gone. */
int daemon_run(struct daemon *d, struct fault *f) MUST_CHECK;
void daemon_free(struct daemon *d);

#endif
