#include "timeline.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

static const struct timeline_stage *find(const struct timeline *t, bool there, const char *name)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].there == there && !strcmp(t->v[i].name, name))
			return &t->v[i];
	return NULL;
}

static void load(struct timeline *t, const json_object *spans)
{
	size_t n = spans ? json_object_array_length(spans) : 0;
	for (size_t i = 0; i < n && t->n < TIMELINE_MAX; i++) {
		const json_object *o = json_object_array_get_idx(spans, i);
		const char *name = json_str(o, "name"), *side = json_str(o, "side");
		if (!name)
			continue;
		t->v[t->n++] = (struct timeline_stage){
			.name = name,
			.there = side && !strcmp(side, "destination"),
			.at = (double)json_u64(o, "start_ns") / 1e6,
			.ms = (double)json_u64(o, "length_ns") / 1e6,
		};
	}
}

/* Brings the destination's times to the source's clock. */
static void align(struct timeline *t)
{
	const struct timeline_stage *ready = find(t, false, "restore"), *waits = find(t, true, "commit");
	if (!ready || !waits)
		return;
	double offset = ready->at + ready->ms - waits->at;
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].there)
			t->v[i].at += offset;
}

/* "stop" is the first stage of the pause; what only the destination knows begins with the mappings. */
static double beginning(const struct timeline *t)
{
	const struct timeline_stage *first = find(t, false, "stop");
	if (!first)
		first = find(t, true, "mappings");
	return first ? first->at : t->n ? t->v[0].at : 0;
}

static int by_time(const void *a, const void *b)
{
	const struct timeline_stage *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

void timeline_read(struct timeline *t, const json_object *spans)
{
	*t = (struct timeline){ 0 };
	load(t, spans);
	align(t);
	double start = beginning(t);
	for (size_t i = 0; i < t->n; i++) {
		struct timeline_stage *s = &t->v[i];
		s->at -= start;
		s->pause = s->at >= 0;
		if (s->pause && s->at + s->ms > t->pause_ms)
			t->pause_ms = s->at + s->ms;
	}
	qsort(t->v, t->n, sizeof(t->v[0]), by_time);
}
