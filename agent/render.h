/*
 * What cpr-migrate shows of a migration, from the API's JSON: for people, on a terminal or in a file.
 *
 *	render_event	one line per state and round; DONE and FAILED end with render_done, render_failed
 *
 * Text that came from a process or a peer is shown without control characters.
 */
#ifndef AGENT_RENDER_H
#define AGENT_RENDER_H

#include <json-c/json.h>
#include <stdio.h>

#include "fault.h"

struct render {
	FILE *out, *err;
	bool terminal; /* lines may be rewritten */
	bool color;
	bool quiet;	/* only what failed */
	char from[256]; /* this host; "" when not known */
	char to[256];
	bool progress; /* the line on the screen is to be rewritten */
};

void render_event(struct render *r, const json_object *event);
void render_done(struct render *r, const json_object *done);
/* fault with its report (may be NULL) */
void render_failed(struct render *r, const struct fault *f, const json_object *report);
void render_list(struct render *r, const json_object *list);
void render_one(struct render *r, const json_object *migration);

/* "4.8 MiB", "12.1 ms", "950 MB/s": rounded for people; out is returned. */
#define RENDER_NUMBER 32
char *render_bytes(uint64_t n, char out[RENDER_NUMBER]);
char *render_us(uint64_t us, char out[RENDER_NUMBER]);
char *render_rate(uint64_t bytes_per_second, char out[RENDER_NUMBER]);

#endif
