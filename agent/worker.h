/*
 * What both sides of a migration have in common: the worker's connections and its bookkeeping.
 */
#ifndef AGENT_WORKER_H
#define AGENT_WORKER_H

#include "events.h"
#include "link.h"
#include "report.h"
#include "spans.h"
#include "warden_client.h"

struct worker {
	struct wc *wc;
	struct wc_start start;
	struct link *link;
	struct events events;
	struct arena *arena;
	struct spans spans;
	struct report report; /* losses and notes so far */
	enum handoff_state state;
	bool may_cancel;  /* before the commit */
	const char *host; /* this one's name */
};

/* A side is a table of stages, run in order; the first that fails ends it. */
struct stage {
	const char *name;
	int (*run)(void *side, struct fault *f);
};
int worker_stages(struct worker *w, const struct stage *stages, size_t n, void *side, struct fault *f) MUST_CHECK;
extern const struct stage worker_source_stages[], worker_target_stages[];
extern const size_t worker_source_stage_count, worker_target_stage_count;

/* Journals and tells the step that `event` leads to; FAULT_INTERNAL when the table has none. */
int worker_step(struct worker *w, enum handoff_event event, const char *reason, struct fault *f) MUST_CHECK;
/* Next frame of a type, within timeout_ms. Notices cancelling (FAULT_CANCELLED), the peer's ABORT (its fault), the
 * link's end. fr->payload is valid until the next call. */
int worker_expect(struct worker *w, enum frame_type type, struct frame *fr, int timeout_ms, struct fault *f) MUST_CHECK;
/* Any frame, same rules. */
int worker_receive(struct worker *w, struct frame *fr, int timeout_ms, struct fault *f) MUST_CHECK;
int worker_check_cancel(struct worker *w, struct fault *f) MUST_CHECK;
int worker_hello(struct worker *w, struct arena *a, Cpr__Hello **peer, struct fault *f) MUST_CHECK;
/* Tells the peer, when it can still be told. */
void worker_send_abort(struct worker *w, const struct fault *why);
void worker_send_failed(struct worker *w, const struct fault *why);
uint64_t worker_peak_rss(void);

/* A migration's two sides: 0 done, -1 failed (everything undone and told). */
int worker_source_run(struct worker *w, struct fault *f) MUST_CHECK;
int worker_target_run(struct worker *w, struct fault *f) MUST_CHECK;

#endif
