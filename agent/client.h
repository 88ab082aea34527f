/*
 * A client of the local agent's API (libcurl over its unix socket).
 *
 *	client_open(api, &c)
 *	client_call(c, "POST", "/v1/migrations", body, &answer)	one request
 *	client_follow(c, id, &handlers)				events of a migration until it is over
 *	client_close(c)
 *
 * An error that the agent answers with becomes the fault as it was there; no answer is FAULT_AGENT_DOWN.
 */
#ifndef AGENT_CLIENT_H
#define AGENT_CLIENT_H

#include <json-c/json.h>

#include "fault.h"

#define CLIENT_ANSWER_MAX ((size_t)16 << 20)

struct client;

int client_open(const char *api, struct client **out, struct fault *f) MUST_CHECK;
void client_close(struct client *c);
/* body NULL: none. *out is the caller's (json_object_put). */
int client_call(struct client *c, const char *method, const char *path, json_object *body, json_object **out,
		struct fault *f) MUST_CHECK;

struct client_handlers {
	void (*event)(void *ctx, const json_object *event, const char *line);
	/* SIGINT or SIGTERM came while signal_fd (a signalfd, or -1) was watched. false: follow no longer. */
	bool (*interrupted)(void *ctx);
	void *ctx;
	int signal_fd;
};
int client_follow(struct client *c, const char *id, const struct client_handlers *h, struct fault *f) MUST_CHECK;

#endif
