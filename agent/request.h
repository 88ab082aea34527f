/*
 * What POST /v1/migrations carries, as JSON text and as Cpr__Options. A field that is not there stays unset.
 */
#ifndef AGENT_REQUEST_H
#define AGENT_REQUEST_H

#include "arena.h"
#include "fault.h"
#include "wire.pb-c.h"

struct request {
	pid_t pid;
	const char *to; /* HOST[:PORT] */
	Cpr__Options *options;
};

/* Everything in `out` lives in the arena. FAULT_USAGE names the field. */
int request_parse(const char *text, size_t len, struct arena *a, struct request *out, struct fault *f) MUST_CHECK;
/* "10.0.0.1", "10.0.0.1/32", "fd00::1/64@eth0" */
int request_move_address(const char *text, struct arena *a, Cpr__MoveAddress **out, struct fault *f) MUST_CHECK;
/* "30ms", "2s", "500us" as microseconds. */
int request_duration(const char *text, uint64_t *us, struct fault *f) MUST_CHECK;

#endif
