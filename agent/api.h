/*
 * The API: HTTP/1.1 and JSON on a unix socket, by libevent. Routes and their answers are listed in api.c.
 * An error is {"code","what","hint","trail","where"}, with the codes of cpr-faults(7).
 */
#ifndef AGENT_API_H
#define AGENT_API_H

#include <event2/event.h>

#include "conf.h"
#include "migrations.h"
#include "moves.h"

#define API_BODY_MAX	(64 << 10)
#define API_HEADERS_MAX (8 << 10)

struct api_env {
	const struct conf *conf;
	struct migrations *migrations;
	struct moves *moves;
	json_object *trackers; /* dirty trackers and whether they work, as found at start; may be NULL */
	const int *listeners;  /* of peers, for GET /v1/host */
	size_t n_listeners;
};

struct api;

struct api *api_new(struct event_base *base, int fd, const struct api_env *env, struct fault *f) MUST_CHECK;
void api_free(struct api *a); /* fd stays the caller's */

#endif
