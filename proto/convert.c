#include "convert.h"

#include <stdio.h>
#include <string.h>

Cpr__Fault *convert_fault_out(struct arena *a, const struct fault *f)
{
	Cpr__Fault *m = arena_msg(a, Cpr__Fault, cpr__fault);
	m->code = arena_strdup(a, fault_code_name(f->code));
	m->has_errnum = f->errnum != 0;
	m->errnum = f->errnum;
	m->what = arena_strdup(a, f->what);
	m->where = arena_strdup(a, f->where);
	m->trail = f->trail[0] ? arena_strdup(a, f->trail) : NULL;
	m->hint = f->hint[0] ? arena_strdup(a, f->hint) : NULL;
	return m;
}

static void copy(char *to, size_t len, const char *from)
{
	if (from)
		snprintf(to, len, "%s", from);
}

void convert_fault_in(const Cpr__Fault *m, struct fault *f)
{
	memset(f, 0, sizeof(*f));
	f->code = m->code ? fault_code_parse(m->code) : FAULT_INTERNAL;
	f->errnum = m->errnum;
	copy(f->what, sizeof(f->what), m->what);
	copy(f->where, sizeof(f->where), m->where);
	copy(f->trail, sizeof(f->trail), m->trail);
	copy(f->hint, sizeof(f->hint), m->hint);
}

Cpr__Report *convert_report_out(struct arena *a, const struct report *r)
{
	Cpr__Report *m = arena_msg(a, Cpr__Report, cpr__report);
	for (size_t i = 0; i < r->n; i++) {
		const struct finding *f = &r->findings[i];
		Cpr__Finding *o = arena_msg(a, Cpr__Finding, cpr__finding);
		o->severity = (Cpr__Finding__Severity)f->severity;
		o->code = arena_strdup(a, fault_code_name(f->code));
		o->object = arena_strdup(a, f->object);
		o->reason = arena_strdup(a, f->reason);
		o->remedy = f->remedy ? arena_strdup(a, f->remedy) : NULL;
		arena_push(a, m->n_findings, m->findings, o);
	}
	return m;
}

void convert_report_in(const Cpr__Report *m, struct report *r)
{
	for (size_t i = 0; i < m->n_findings; i++) {
		const Cpr__Finding *f = m->findings[i];
		report_add(r,
			   f->severity > CPR__FINDING__SEVERITY__BLOCKER ? REPORT_BLOCKER
									 : (enum report_severity)f->severity,
			   fault_code_parse(f->code), f->object, f->remedy, "%s", f->reason);
	}
}
