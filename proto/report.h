/*
 * What vetting finds: blockers (can't be moved), losses (knowingly not preserved), notes.
 * All of them are collected, none stops the walk.
 */
#ifndef PROTO_REPORT_H
#define PROTO_REPORT_H

#include "fault.h"

enum report_severity { REPORT_NOTE, REPORT_LOSS, REPORT_BLOCKER };

struct finding {
	enum report_severity severity;
	enum fault_code code;
	char *object; /* "fd 7: io_uring instance" */
	char *reason; /* a sentence, without the final full stop */
	char *remedy; /* what the user can do; may be NULL */
};

struct report {
	size_t n, cap;
	struct finding *findings;
};

void report_init(struct report *r);
void report_done(struct report *r);
/* object and remedy are plain strings, the reason is formatted. The same finding is added once. */
void report_add(struct report *r, enum report_severity severity, enum fault_code code, const char *object,
		const char *remedy, const char *fmt, ...) PRINTF(6, 7);
size_t report_count(const struct report *r, enum report_severity severity);
void report_append(struct report *to, const struct report *from);

#endif
