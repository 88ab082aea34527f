/*
 * The measured stages of a migration, put into one order.
 *
 *	timeline_read(&t, spans)	t.v[]: by time; t.v[i].pause says whether the process was stopped
 *
 * The clocks of two hosts have nothing in common. What ties them: the source waits ("restore") until the destination is
 * ready, and the destination then waits for the commit.
 */
#ifndef AGENT_TIMELINE_H
#define AGENT_TIMELINE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#define TIMELINE_MAX 64

struct timeline {
	size_t n;
	struct timeline_stage {
		const char *name; /* the JSON's */
		bool there;	  /* on the destination */
		bool pause;
		double at, ms; /* at: since the beginning of the pause; negative before it */
	} v[TIMELINE_MAX];
	double pause_ms; /* to the end of the last stage */
};

void timeline_read(struct timeline *t, const json_object *spans);

#endif
