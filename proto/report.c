#include "report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void report_init(struct report *r)
{
	*r = (struct report){ 0 };
}

void report_done(struct report *r)
{
	for (size_t i = 0; i < r->n; i++) {
		free(r->findings[i].object);
		free(r->findings[i].reason);
		free(r->findings[i].remedy);
	}
	free(r->findings);
	report_init(r);
}

static char *dup_or_abort(const char *s)
{
	char *p = strdup(s);
	if (!p)
		abort();
	return p;
}

static void add(struct report *r, enum report_severity severity, enum fault_code code, const char *object,
		const char *remedy, const char *reason)
{
	for (size_t i = 0; i < r->n; i++)
		if (!strcmp(r->findings[i].object, object) && !strcmp(r->findings[i].reason, reason))
			return;
	if (util_grow((void **)&r->findings, &r->cap, r->n, sizeof(*r->findings)) < 0)
		abort();
	r->findings[r->n++] = (struct finding){
		.severity = severity,
		.code = code,
		.object = dup_or_abort(object),
		.reason = dup_or_abort(reason),
		.remedy = remedy ? dup_or_abort(remedy) : NULL,
	};
}

void report_add(struct report *r, enum report_severity severity, enum fault_code code, const char *object,
		const char *remedy, const char *fmt, ...)
{
	char reason[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	add(r, severity, code, object, remedy, reason);
}

void report_append(struct report *to, const struct report *from)
{
	for (size_t i = 0; i < from->n; i++) {
		const struct finding *f = &from->findings[i];
		add(to, f->severity, f->code, f->object, f->remedy, f->reason);
	}
}

size_t report_count(const struct report *r, enum report_severity severity)
{
	size_t n = 0;
	for (size_t i = 0; i < r->n; i++)
		n += r->findings[i].severity == severity;
	return n;
}
