/*
 * The handoff: who may run the process, as a table (DESIGN, section 5).
 *
 * One pure function gives the next state and what has to be done; warden, worker, unit tests and the model checker
 * share it. Whoever drives a side journals, logs, acts, then sends, in that order.
 */
#ifndef AGENT_HANDOFF_H
#define AGENT_HANDOFF_H

#include <stdbool.h>
#include <stddef.h>

enum handoff_side { HANDOFF_SOURCE, HANDOFF_DESTINATION };

/* X(enum name, name, side: s, d) */
#define HANDOFF_STATES(X)                                                                 \
	X(NONE, "NONE", both)                                                             \
	X(OFFERED, "OFFERED", s)       /* runs here; the destination is looking */        \
	X(PRECOPY, "PRECOPY", s)       /* runs here; rounds */                            \
	X(SEALED, "SEALED", s)	       /* frozen; last round, state; can be taken back */ \
	X(COMMITTING, "COMMITTING", s) /* frozen; commit sent: only the answer decides */ \
	X(IN_DOUBT, "IN_DOUBT", s)     /* frozen; link gone after the commit; asking */   \
	X(DONE, "DONE", s)	       /* removed here, runs there */                     \
	X(ABORTED, "ABORTED", s)       /* runs here as before */                          \
	X(VETTING, "VETTING", d)       /* can we take it? */                              \
	X(RECEIVING, "RECEIVING", d)   /* vessel being filled */                          \
	X(RESTORING, "RESTORING", d)   /* state received */                               \
	X(READY, "READY", d)	       /* complete and stopped; ready sent */             \
	X(RUNNING, "RUNNING", d)       /* runs here */                                    \
	X(DISCARDED, "DISCARDED", d)   /* vessel gone, recorded */

enum handoff_state {
#define X(name, str, side) HANDOFF_##name,
	HANDOFF_STATES(X)
#undef X
		HANDOFF_STATE_COUNT
};

/* What happens to a side: X(enum name, name) */
#define HANDOFF_EVENTS(X)                                                                 \
	X(START, "start")   /* source: asked to migrate; destination: an offer came */    \
	X(ACCEPT, "accept") /* source: received; destination: vetting went well */        \
	X(REFUSE, "refuse")                                                               \
	X(SEAL, "seal")	      /* source: frozen; destination: whole state received */     \
	X(READY, "ready")     /* source: received; destination: restored */               \
	X(COMMIT, "commit")   /* destination: received */                                 \
	X(RESUMED, "resumed") /* source: received */                                      \
	X(GONE, "gone")	      /* source: the destination discarded it, and recorded so */ \
	X(FAIL, "fail")	      /* a step failed on this side, or the user cancelled */     \
	X(ABORT, "abort")     /* the peer's abort came */                                 \
	X(LINK_LOST, "link-lost")                                                         \
	X(WORKER_DIED, "worker-died")                                                     \
	X(KEEP_HERE, "keep-here") /* a person's decision */                               \
	X(GIVEN_AWAY, "given-away")

enum handoff_event {
#define X(name, str) HANDOFF_EV_##name,
	HANDOFF_EVENTS(X)
#undef X
		HANDOFF_EVENT_COUNT
};

/* What has to be done with the step, in this order after journalling. Bits. */
enum handoff_action {
	HANDOFF_ACT_OFFER = 1 << 0,  /* send */
	HANDOFF_ACT_ACCEPT = 1 << 1, /* send */
	HANDOFF_ACT_FREEZE = 1 << 2, /* freezer on */
	HANDOFF_ACT_SEND_STATE = 1 << 3,
	HANDOFF_ACT_SEND_READY = 1 << 4,
	HANDOFF_ACT_KEEP_LOCK = 1 << 5, /* the plain table that outlives the worker */
	HANDOFF_ACT_SEND_COMMIT = 1 << 6,
	HANDOFF_ACT_UNDO = 1 << 7, /* undo records, newest first */
	HANDOFF_ACT_THAW = 1 << 8, /* source: the process goes on here */
	HANDOFF_ACT_RUN = 1 << 9,  /* destination: thaw, the only act that starts the process */
	HANDOFF_ACT_SEND_RESUMED = 1 << 10,
	HANDOFF_ACT_REMOVE = 1 << 11,  /* source: silent close, kill, clean */
	HANDOFF_ACT_DISCARD = 1 << 12, /* destination: vessels, lock, address, cgroup */
	HANDOFF_ACT_SEND_ABORT = 1 << 13,
	HANDOFF_ACT_SEND_GONE = 1 << 14,
	HANDOFF_ACT_SEND_REFUSE = 1 << 15,
	HANDOFF_ACT_ASK = 1 << 16, /* reconnect and ask the destination what became of it */
};

struct handoff_step {
	enum handoff_side side;
	enum handoff_state from;
	enum handoff_event event;
	enum handoff_state to;
	unsigned actions;
};

/* NULL: this event must not happen in this state. */
const struct handoff_step *handoff_next(enum handoff_side side, enum handoff_state from, enum handoff_event event);
const char *handoff_state_name(enum handoff_state s);
enum handoff_state handoff_state_parse(const char *name); /* HANDOFF_NONE when unknown */
const char *handoff_event_name(enum handoff_event e);
bool handoff_final(enum handoff_state s);     /* nothing more can happen */
bool handoff_undecided(enum handoff_state s); /* the worker's death is undone: source thaws, destination discards */
/* What a destination answers when it is asked what became of it. False: nothing yet (its old link is lost by the
 * ask: that event comes first), or no record. */
bool handoff_answer(enum handoff_state destination, enum handoff_event *answer);
/* The whole table, for documentation and the model checker. */
const struct handoff_step *handoff_table(size_t *n);

#endif
