/*
 * Migrations that run: from a request, or from a peer that arrived, to a worker and its last event.
 *
 *	source		moves_start ─ peers_connect ─ connected ─ wa_worker ─ events … DONE or FAILED ─ worker_exit
 *	destination	arrived ─ wa_worker ─ first event (tells the id) … ─ worker_exit
 *
 * All that is learnt goes into `migrations`; a worker that dies before its last event gets a FAILED made here, which
 * says where the process runs now.
 */
#ifndef AGENT_MOVES_H
#define AGENT_MOVES_H

#include <event2/event.h>

#include "conf.h"
#include "migrations.h"
#include "peers.h"
#include "request.h"
#include "warden_agent.h"

struct moves;

struct moves *moves_new(struct event_base *base, struct wa *wa, const struct conf *c, struct migrations *ms);
void moves_free(struct moves *mv);
/* The connections are made with these handlers, so peers come after: peers_new(…, moves_handlers(), mv). */
const struct peers_handlers *moves_handlers(void);
void moves_use_peers(struct moves *mv, struct peers *p);

int moves_start(struct moves *mv, const struct request *rq, struct migration **out, struct fault *f) MUST_CHECK;
/* Asks; the outcome comes as an event. FAULT_USAGE when it is over, FAULT_BUSY when it is decided already. */
int moves_cancel(struct moves *mv, struct migration *m, struct fault *f) MUST_CHECK;
/* Cancels all that can be; returns how many workers are still at it. */
size_t moves_stop(struct moves *mv);
size_t moves_running(const struct moves *mv);

/* What the warden says. */
void moves_worker_exit(struct moves *mv, uint64_t conn, const char *migration, enum handoff_state state, bool crashed,
		       const char *text);
void moves_warden_gone(struct moves *mv);

#endif
