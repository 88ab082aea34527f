/*
 * From a worker to its agent: what happens, for whoever watches. Never waits: an agent that does not read, or is gone,
 * loses events, not the migration.
 */
#ifndef AGENT_EVENTS_H
#define AGENT_EVENTS_H

#include "arena.h"
#include "fault.h"
#include "handoff.h"
#include "wire.pb-c.h"

struct events {
	int fd; /* SOCK_SEQPACKET */
	const char *side;
	char migration[37];
	uint32_t pid;
	char comm[16];
};

/* An event with the fields that every event has; the caller fills the rest and sends it. */
Cpr__Event *events_new(const struct events *e, struct arena *a, Cpr__Event__Kind kind);
void events_send(const struct events *e, const Cpr__Event *m);
void events_state(const struct events *e, enum handoff_state s, const char *reason);
/* The agent asked to cancel (it wrote a byte), or is gone for good. */
bool events_cancelled(const struct events *e);

#endif
