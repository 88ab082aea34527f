/*
 * The table of the handoff. It is all there is: who drives a side looks up what an event means, journals the new
 * state, and does the actions in the order of their bits. test/unit/agent_handoff.c explores what two sides, a link
 * that breaks and workers that die make of it.
 *
 * Three rules shape the rows:
 *  - Until COMMITTING the source may take everything back, on its own. From there only RESUMED or GONE decides
 *    (or a person). So what fails after it never leads to ABORTED, but to IN_DOUBT, which asks.
 *  - A destination that was READY tells that it is gone (GONE, not ABORT), because the commit may be on its way. An
 *    ask on a new connection is the end of the old one: LINK_LOST first, then the answer.
 *  - A state is journalled before the acts that belong to it. So a worker's death in a final state means that the
 *    acts may not have been done, and they are done again: each is harmless when it was.
 */
#include "handoff.h"

#include <string.h>

#define SRC(from, event, to, actions)                                                     \
	{                                                                                 \
		HANDOFF_SOURCE, HANDOFF_##from, HANDOFF_EV_##event, HANDOFF_##to, actions \
	}
#define DST(from, event, to, actions)                                                          \
	{                                                                                      \
		HANDOFF_DESTINATION, HANDOFF_##from, HANDOFF_EV_##event, HANDOFF_##to, actions \
	}
#define ACT(a)	  HANDOFF_ACT_##a

#define TAKE_BACK (ACT(UNDO) | ACT(THAW))
/* Undecided: each of these ends it, and the process runs here as before. */
#define SRC_TAKES_BACK(from)                                                                         \
	SRC(from, FAIL, ABORTED, TAKE_BACK | ACT(SEND_ABORT)), SRC(from, ABORT, ABORTED, TAKE_BACK), \
		SRC(from, LINK_LOST, ABORTED, TAKE_BACK), SRC(from, WORKER_DIED, ABORTED, TAKE_BACK)
#define DST_DISCARDS(from, tell)                                                                      \
	DST(from, FAIL, DISCARDED, ACT(DISCARD) | (tell)), DST(from, ABORT, DISCARDED, ACT(DISCARD)), \
		DST(from, LINK_LOST, DISCARDED, ACT(DISCARD)), DST(from, WORKER_DIED, DISCARDED, ACT(DISCARD))

static const struct handoff_step table[] = {
	/* clang-format off */
	SRC(NONE, START, OFFERED, ACT(OFFER)),
	SRC_TAKES_BACK(NONE),

	SRC(OFFERED, ACCEPT, PRECOPY, 0),
	SRC(OFFERED, REFUSE, ABORTED, TAKE_BACK),
	SRC_TAKES_BACK(OFFERED),

	SRC(PRECOPY, SEAL, SEALED, ACT(FREEZE) | ACT(SEND_STATE)),
	SRC_TAKES_BACK(PRECOPY),

	SRC(SEALED, READY, COMMITTING, ACT(KEEP_LOCK) | ACT(SEND_COMMIT)),
	SRC(SEALED, GONE, ABORTED, TAKE_BACK), /* READY was journalled there and failed before it was sent */
	SRC_TAKES_BACK(SEALED),

	SRC(COMMITTING, RESUMED, DONE, ACT(REMOVE)),
	SRC(COMMITTING, GONE, ABORTED, TAKE_BACK),
	/* The commit may or may not have been sent: who failed can't know, and the journal doesn't either. */
	SRC(COMMITTING, FAIL, IN_DOUBT, ACT(ASK)),
	SRC(COMMITTING, LINK_LOST, IN_DOUBT, ACT(ASK)),
	SRC(COMMITTING, WORKER_DIED, IN_DOUBT, ACT(ASK)),

	SRC(IN_DOUBT, RESUMED, DONE, ACT(REMOVE)),
	SRC(IN_DOUBT, GONE, ABORTED, TAKE_BACK),
	SRC(IN_DOUBT, KEEP_HERE, ABORTED, TAKE_BACK),
	SRC(IN_DOUBT, GIVEN_AWAY, DONE, ACT(REMOVE)),
	SRC(IN_DOUBT, FAIL, IN_DOUBT, ACT(ASK)),
	SRC(IN_DOUBT, LINK_LOST, IN_DOUBT, ACT(ASK)),
	SRC(IN_DOUBT, WORKER_DIED, IN_DOUBT, ACT(ASK)),

	SRC(DONE, FAIL, DONE, 0),
	SRC(DONE, LINK_LOST, DONE, 0),
	SRC(DONE, WORKER_DIED, DONE, ACT(REMOVE)),

	SRC(ABORTED, FAIL, ABORTED, 0),
	SRC(ABORTED, LINK_LOST, ABORTED, 0),
	SRC(ABORTED, WORKER_DIED, ABORTED, TAKE_BACK),

	DST(NONE, START, VETTING, 0),
	DST_DISCARDS(NONE, ACT(SEND_ABORT)),

	DST(VETTING, ACCEPT, RECEIVING, ACT(ACCEPT)),
	DST(VETTING, REFUSE, DISCARDED, ACT(DISCARD) | ACT(SEND_REFUSE)),
	DST_DISCARDS(VETTING, ACT(SEND_ABORT)),

	DST(RECEIVING, SEAL, RESTORING, 0),
	DST_DISCARDS(RECEIVING, ACT(SEND_ABORT)),

	/* Frozen before it says so: nothing that can fail is left for the time after the commit but the thaw. */
	DST(RESTORING, READY, READY, ACT(FREEZE) | ACT(SEND_READY)),
	DST_DISCARDS(RESTORING, ACT(SEND_ABORT)),

	DST(READY, COMMIT, RUNNING, ACT(RUN) | ACT(SEND_RESUMED)),
	DST_DISCARDS(READY, ACT(SEND_GONE)),

	DST(RUNNING, FAIL, RUNNING, 0),
	DST(RUNNING, LINK_LOST, RUNNING, 0),
	DST(RUNNING, WORKER_DIED, RUNNING, ACT(RUN)),

	DST(DISCARDED, FAIL, DISCARDED, 0),
	DST(DISCARDED, LINK_LOST, DISCARDED, 0),
	DST(DISCARDED, WORKER_DIED, DISCARDED, ACT(DISCARD)),
	/* clang-format on */
};

const struct handoff_step *handoff_table(size_t *n)
{
	*n = sizeof(table) / sizeof(table[0]);
	return table;
}

const struct handoff_step *handoff_next(enum handoff_side side, enum handoff_state from, enum handoff_event event)
{
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (table[i].side == side && table[i].from == from && table[i].event == event)
			return &table[i];
	return NULL;
}

static const char *const state_names[] = {
#define X(name, str, side) str,
	HANDOFF_STATES(X)
#undef X
};

static const char *const event_names[] = {
#define X(name, str) str,
	HANDOFF_EVENTS(X)
#undef X
};

const char *handoff_state_name(enum handoff_state s)
{
	return (unsigned)s < HANDOFF_STATE_COUNT ? state_names[s] : "?";
}

enum handoff_state handoff_state_parse(const char *name)
{
	for (unsigned i = 0; i < HANDOFF_STATE_COUNT; i++)
		if (!strcmp(state_names[i], name))
			return (enum handoff_state)i;
	return HANDOFF_NONE;
}

const char *handoff_event_name(enum handoff_event e)
{
	return (unsigned)e < HANDOFF_EVENT_COUNT ? event_names[e] : "?";
}

bool handoff_final(enum handoff_state s)
{
	return s == HANDOFF_DONE || s == HANDOFF_ABORTED || s == HANDOFF_RUNNING || s == HANDOFF_DISCARDED;
}

bool handoff_undecided(enum handoff_state s)
{
	return !handoff_final(s) && s != HANDOFF_COMMITTING && s != HANDOFF_IN_DOUBT;
}

bool handoff_answer(enum handoff_state destination, enum handoff_event *answer)
{
	if (destination != HANDOFF_RUNNING && destination != HANDOFF_DISCARDED)
		return false;
	*answer = destination == HANDOFF_RUNNING ? HANDOFF_EV_RESUMED : HANDOFF_EV_GONE;
	return true;
}
