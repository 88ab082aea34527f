#include "migrations.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "arena.h"
#include "convert.h"
#include "json.h"

#define MIGRATIONS_ROUNDS 1000u

struct migration_watch {
	LIST_ENTRY(migration_watch) link;
	struct migration_watcher w;
};

struct migration_rest {
	TAILQ_ENTRY(migration_rest) link;
	struct migration *m;
	uint64_t started_ns, ended_ns; /* CLOCK_REALTIME */
	bool progress_last;	       /* the newest line is a PROGRESS, which the next one replaces */
	char **lines;		       /* ring */
	size_t first, n;
	uint64_t dropped;
	json_object *rounds, *report, *result, *fault;
	LIST_HEAD(, migration_watch) watches;
};

struct migrations {
	TAILQ_HEAD(rests, migration_rest) list; /* newest first */
	size_t keep, finished;
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

struct migrations *migrations_new(size_t keep)
{
	struct migrations *ms = must(calloc(1, sizeof(*ms)));
	TAILQ_INIT(&ms->list);
	ms->keep = keep;
	return ms;
}

static void put(json_object *o)
{
	if (o)
		json_object_put(o);
}

static void end_watches(struct migration_rest *r)
{
	struct migration_watch *w;
	while ((w = LIST_FIRST(&r->watches))) {
		struct migration_watcher copy = w->w;
		migrations_unwatch(w);
		copy.end(copy.ctx);
	}
}

static void migration_free(struct migrations *ms, struct migration *m)
{
	struct migration_rest *r = m->rest;
	end_watches(r);
	TAILQ_REMOVE(&ms->list, r, link);
	for (size_t i = 0; i < r->n; i++)
		free(r->lines[(r->first + i) % MIGRATIONS_EVENTS]);
	free(r->lines);
	put(r->rounds);
	put(r->report);
	put(r->result);
	put(r->fault);
	free(r);
	free(m);
}

void migrations_free(struct migrations *ms)
{
	struct migration_rest *r;
	while (ms && (r = TAILQ_FIRST(&ms->list)))
		migration_free(ms, r->m);
	free(ms);
}

static struct migration *exact(struct migrations *ms, const char *id)
{
	struct migration_rest *r;
	TAILQ_FOREACH(r, &ms->list, link)
	{
		if (r->m->id[0] && !strcmp(r->m->id, id))
			return r->m;
	}
	return NULL;
}

int migrations_name(struct migrations *ms, struct migration *m, const char *id, struct fault *f)
{
	size_t n = strlen(id);
	if (n != MIGRATION_ID - 1 || strspn(id, "0123456789abcdefABCDEF-") != n)
		return fault_set(f, FAULT_PROTOCOL, "\"%.40s\" is not the id of a migration", id);
	if (exact(ms, id))
		return fault_set(f, FAULT_BUSY, "a migration %s is known here already", id);
	memcpy(m->id, id, n + 1);
	return 0;
}

/* Only when a new one comes: whoever has just seen one end may still look at it. */
static void forget_old(struct migrations *ms)
{
	struct migration_rest *r, *prev;
	for (r = TAILQ_LAST(&ms->list, rests); r && ms->finished > ms->keep; r = prev) {
		prev = TAILQ_PREV(r, rests, link);
		if (!r->m->over)
			continue;
		migration_free(ms, r->m);
		ms->finished--;
	}
}

struct migration *migrations_add(struct migrations *ms, enum handoff_side side, const char *id, pid_t pid,
				 const char *comm, const char *peer, struct fault *f)
{
	forget_old(ms);
	struct migration *m = must(calloc(1, sizeof(*m)));
	if (id && migrations_name(ms, m, id, f) < 0) {
		free(m);
		return NULL;
	}
	m->side = side;
	m->pid = pid;
	snprintf(m->comm, sizeof(m->comm), "%s", comm ? comm : "");
	snprintf(m->peer, sizeof(m->peer), "%s", peer ? peer : "");
	snprintf(m->state, sizeof(m->state), "CONNECTING");
	m->rest = must(calloc(1, sizeof(*m->rest)));
	m->rest->m = m;
	m->rest->started_ns = util_clock_ns(CLOCK_REALTIME);
	m->rest->lines = must(calloc(MIGRATIONS_EVENTS, sizeof(char *)));
	LIST_INIT(&m->rest->watches);
	TAILQ_INSERT_HEAD(&ms->list, m->rest, link);
	return m;
}

void migrations_drop(struct migrations *ms, struct migration *m)
{
	ms->finished -= m->over;
	migration_free(ms, m);
}

struct migration *migrations_find(struct migrations *ms, const char *id)
{
	struct migration *found = exact(ms, id);
	size_t n = strlen(id);
	if (found || n < 4)
		return found;
	struct migration_rest *r;
	TAILQ_FOREACH(r, &ms->list, link)
	{
		if (strncmp(r->m->id, id, n))
			continue;
		if (found)
			return NULL;
		found = r->m;
	}
	return found;
}

struct migration *migrations_of_pid(struct migrations *ms, pid_t pid)
{
	struct migration_rest *r;
	TAILQ_FOREACH(r, &ms->list, link)
	{
		if (!r->m->over && r->m->side == HANDOFF_SOURCE && r->m->pid == pid)
			return r->m;
	}
	return NULL;
}

size_t migrations_running(const struct migrations *ms)
{
	size_t n = 0;
	struct migration_rest *r;
	TAILQ_FOREACH(r, &ms->list, link)
	{
		n += !r->m->over;
	}
	return n;
}

/* Keeps the line, and gives it to whoever watches. PROGRESS lines replace each other in the store. */
static void add_line(struct migration_rest *r, json_object *o, bool progress)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	size_t len = strlen(text);
	char *line = must(malloc(len + 2));
	memcpy(line, text, len);
	memcpy(line + len, "\n", 2);
	if (progress && r->progress_last) {
		size_t last = (r->first + r->n - 1) % MIGRATIONS_EVENTS;
		free(r->lines[last]);
		r->lines[last] = line;
	} else {
		if (r->n == MIGRATIONS_EVENTS) {
			free(r->lines[r->first]);
			r->first = (r->first + 1) % MIGRATIONS_EVENTS;
			r->n--;
			r->dropped++;
		}
		r->lines[(r->first + r->n++) % MIGRATIONS_EVENTS] = line;
	}
	r->progress_last = progress;
	struct migration_watch *w, *next;
	for (w = LIST_FIRST(&r->watches); w; w = next) {
		next = LIST_NEXT(w, link);
		w->w.line(w->w.ctx, line, len + 1);
	}
}

static void replace(json_object **slot, json_object *event, const char *key)
{
	json_object *v;
	if (!json_object_object_get_ex(event, key, &v))
		return;
	put(*slot);
	*slot = json_object_get(v);
}

static void keep_round(struct migration_rest *r, json_object *o)
{
	if (!r->rounds)
		r->rounds = json_object_new_array();
	if (json_object_array_length(r->rounds) < MIGRATIONS_ROUNDS)
		json_object_array_add(r->rounds, json_object_get(o));
}

static void finish(struct migrations *ms, struct migration *m)
{
	m->over = true;
	m->rest->ended_ns = util_clock_ns(CLOCK_REALTIME);
	end_watches(m->rest);
	ms->finished++;
}

static void learn(struct migration *m, const Cpr__Event *e)
{
	if (e->has_pid && e->pid <= INT32_MAX)
		m->pid = (pid_t)e->pid;
	if (e->comm && *e->comm && e->comm != m->comm)
		snprintf(m->comm, sizeof(m->comm), "%s", e->comm);
	if (e->kind == CPR__EVENT__KIND__STATE && e->state && *e->state)
		snprintf(m->state, sizeof(m->state), "%s", e->state);
}

/* A last event may come without its state. What failed after the commit keeps the state it was in. */
static void end_state(struct migration *m, bool done)
{
	bool source = m->side == HANDOFF_SOURCE;
	enum handoff_state s = handoff_state_parse(m->state);
	if (done && !handoff_final(s))
		snprintf(m->state, sizeof(m->state), "%s", source ? "DONE" : "RUNNING");
	else if (!done && (s == HANDOFF_NONE || handoff_undecided(s)))
		snprintf(m->state, sizeof(m->state), "%s", source ? "ABORTED" : "DISCARDED");
}

void migrations_event(struct migrations *ms, struct migration *m, const Cpr__Event *e)
{
	struct migration_rest *r = m->rest;
	learn(m, e);
	if (m->over)
		return; /* a last state after the end is worth knowing, but nobody waits for it */
	json_object *o = json_event(e);
	json_object_object_add(o, "migration", json_object_new_string(m->id));
	if (m->pid && !json_has(o, "pid"))
		json_add_u64(o, "pid", (uint64_t)m->pid);
	if (m->comm[0] && !json_has(o, "comm"))
		json_add_str(o, "comm", m->comm);
	if (!json_has(o, "side"))
		json_add_str(o, "side", m->side == HANDOFF_SOURCE ? "source" : "destination");
	json_add_u64(o, "time_us", util_clock_ns(CLOCK_REALTIME) / 1000);
	replace(&r->report, o, "report");
	replace(&r->fault, o, "fault");
	if (e->kind == CPR__EVENT__KIND__ROUND)
		keep_round(r, o);
	if (e->kind == CPR__EVENT__KIND__DONE)
		r->result = json_object_get(o);
	if (e->kind == CPR__EVENT__KIND__DONE || e->kind == CPR__EVENT__KIND__FAILED)
		end_state(m, e->kind == CPR__EVENT__KIND__DONE);
	add_line(r, o, e->kind == CPR__EVENT__KIND__PROGRESS);
	json_object_put(o);
	if (e->kind == CPR__EVENT__KIND__DONE || e->kind == CPR__EVENT__KIND__FAILED)
		finish(ms, m);
}

void migrations_fail(struct migrations *ms, struct migration *m, const struct fault *why)
{
	struct arena *a = arena_new();
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = CPR__EVENT__KIND__FAILED;
	e.migration = m->id;
	e.has_pid = m->pid > 0;
	e.pid = (uint32_t)m->pid;
	e.comm = m->comm;
	e.fault = convert_fault_out(a, why);
	migrations_event(ms, m, &e);
	arena_free(a);
}

static json_object *brief(const struct migration *m)
{
	json_object *o = json_object_new_object();
	json_add_str(o, "id", m->id);
	json_add_str(o, "side", m->side == HANDOFF_SOURCE ? "source" : "destination");
	if (m->pid)
		json_add_u64(o, "pid", (uint64_t)m->pid);
	if (m->comm[0])
		json_add_str(o, "comm", m->comm);
	json_add_str(o, m->side == HANDOFF_SOURCE ? "to" : "from", m->peer);
	json_add_str(o, "state", m->state);
	json_object_object_add(o, "over", json_object_new_boolean(m->over));
	json_add_u64(o, "started_us", m->rest->started_ns / 1000);
	if (m->over)
		json_add_u64(o, "ended_us", m->rest->ended_ns / 1000);
	return o;
}

json_object *migrations_json(const struct migrations *ms)
{
	json_object *o = json_object_new_object(), *list = json_object_new_array();
	struct migration_rest *r;
	TAILQ_FOREACH(r, &ms->list, link)
	{
		if (r->m->id[0])
			json_object_array_add(list, brief(r->m));
	}
	json_object_object_add(o, "migrations", list);
	return o;
}

json_object *migrations_json_one(const struct migration *m)
{
	json_object *o = brief(m);
	const struct migration_rest *r = m->rest;
	if (r->rounds)
		json_object_object_add(o, "rounds", json_object_get(r->rounds));
	if (r->report)
		json_object_object_add(o, "report", json_object_get(r->report));
	if (r->result)
		json_object_object_add(o, "result", json_object_get(r->result));
	if (r->fault)
		json_object_object_add(o, "fault", json_object_get(r->fault));
	if (r->dropped)
		json_add_u64(o, "events_dropped", r->dropped);
	return o;
}

struct migration_watch *migrations_watch(struct migration *m, const struct migration_watcher *w)
{
	struct migration_rest *r = m->rest;
	for (size_t i = 0; i < r->n; i++) {
		const char *line = r->lines[(r->first + i) % MIGRATIONS_EVENTS];
		w->line(w->ctx, line, strlen(line));
	}
	if (m->over) {
		w->end(w->ctx);
		return NULL;
	}
	struct migration_watch *watch = must(calloc(1, sizeof(*watch)));
	watch->w = *w;
	LIST_INSERT_HEAD(&r->watches, watch, link);
	return watch;
}

void migrations_unwatch(struct migration_watch *w)
{
	LIST_REMOVE(w, link);
	free(w);
}
