/*
 * The migrations that this agent knows: running ones, and the last finished ones. A store and nothing else: it starts
 * nothing and knows no event loop.
 *
 *	m = migrations_add(…)		a new one (a destination's without id until its worker tells it)
 *	migrations_event(ms, m, e)	what its worker said; watchers get it; DONE and FAILED end it
 *	migrations_fail(ms, m, fault)	the same for what the agent itself found
 *
 * A watcher gets every event from the first that is still kept, then `end`, once. It must be removed with
 * migrations_unwatch when it goes away earlier; in `end` it is removed already.
 */
#ifndef AGENT_MIGRATIONS_H
#define AGENT_MIGRATIONS_H

#include <json-c/json.h>

#include "fault.h"
#include "handoff.h"
#include "wire.pb-c.h"

#define MIGRATION_ID	  37
#define MIGRATIONS_KEPT	  128u /* finished ones */
#define MIGRATIONS_EVENTS 512u /* of one migration */

struct migrations;

struct migration {
	char id[MIGRATION_ID]; /* uuid; "" until the destination's worker has told it */
	enum handoff_side side;
	pid_t pid; /* 0: not known yet */
	char comm[64];
	char peer[256];
	char state[24]; /* name of a handoff state; "CONNECTING" before the first */
	bool over;
	struct migration_rest *rest;
};

struct migrations *migrations_new(size_t keep);
void migrations_free(struct migrations *ms);

/* id NULL: not known yet. FAULT_BUSY when it is known. */
struct migration *migrations_add(struct migrations *ms, enum handoff_side side, const char *id, pid_t pid,
				 const char *comm, const char *peer, struct fault *f) MUST_CHECK;
/* Forgets one that never got an id. */
void migrations_drop(struct migrations *ms, struct migration *m);
int migrations_name(struct migrations *ms, struct migration *m, const char *id, struct fault *f) MUST_CHECK;
/* By id, or by the beginning of one (four characters or more) when that is unique. */
struct migration *migrations_find(struct migrations *ms, const char *id);
struct migration *migrations_of_pid(struct migrations *ms, pid_t pid); /* running, from here */
size_t migrations_running(const struct migrations *ms);

void migrations_event(struct migrations *ms, struct migration *m, const Cpr__Event *e);
void migrations_fail(struct migrations *ms, struct migration *m, const struct fault *why);

json_object *migrations_json(const struct migrations *ms);   /* {"migrations":[…]}, newest first, brief */
json_object *migrations_json_one(const struct migration *m); /* all of it */

struct migration_watcher {
	void (*line)(void *ctx, const char *line, size_t len); /* JSON, with its newline */
	void (*end)(void *ctx);
	void *ctx;
};
struct migration_watch;

/* Replays; NULL when the migration is over (`end` was called). */
struct migration_watch *migrations_watch(struct migration *m, const struct migration_watcher *w);
void migrations_unwatch(struct migration_watch *w);

#endif
