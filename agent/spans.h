/*
 * Measured stages of a migration, for the timeline of the pause.
 *
 *	size_t s = spans_begin(&sp, "last round"); … spans_end(&sp, s);
 */
#ifndef AGENT_SPANS_H
#define AGENT_SPANS_H

#include "arena.h"
#include "wire.pb-c.h"

#define SPANS_MAX 48

struct spans {
	const char *side;
	size_t n;
	struct {
		const char *name; /* a literal */
		uint64_t start, end;
	} v[SPANS_MAX];
};

void spans_init(struct spans *s, const char *side);
size_t spans_begin(struct spans *s, const char *name);
void spans_end(struct spans *s, size_t index);
/* Appends them as messages that live in the arena. */
void spans_out(const struct spans *s, struct arena *a, size_t *n, Cpr__Span ***out);

#endif
