#include "spans.h"

#include <string.h>

void spans_init(struct spans *s, const char *side)
{
	*s = (struct spans){ .side = side };
}

size_t spans_begin(struct spans *s, const char *name)
{
	size_t i = s->n < SPANS_MAX ? s->n++ : SPANS_MAX - 1;
	s->v[i].name = name;
	s->v[i].start = s->v[i].end = util_monotonic_ns();
	return i;
}

void spans_end(struct spans *s, size_t index)
{
	s->v[index].end = util_monotonic_ns();
}

void spans_out(const struct spans *s, struct arena *a, size_t *n, Cpr__Span ***out)
{
	for (size_t i = 0; i < s->n; i++) {
		Cpr__Span *m = arena_msg(a, Cpr__Span, cpr__span);
		m->name = arena_strdup(a, s->v[i].name);
		m->start_ns = s->v[i].start;
		m->length_ns = s->v[i].end - s->v[i].start;
		m->side = arena_strdup(a, s->side);
		arena_push(a, *n, *out, m);
	}
}
