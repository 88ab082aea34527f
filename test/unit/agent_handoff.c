/*
 * The handoff table, explored: every interleaving of a source, a destination, a link that breaks, workers and wardens
 * that die, users that cancel, and asks after IN_DOUBT. Then the same with each row of the table spoilt in turn: a
 * checker that does not notice is no checker.
 *
 * The model: a side has a state (the journal), acts that are still to be done (one at a time, in the order of their
 * bits), and a worker that lives or not. A message is in one of two channels. When the link breaks, what is on the
 * way may still arrive until the receiver notices the loss itself, which the two do at different times; what is sent
 * from then on is lost. A dead worker's acts are done by its warden, which may die at any point and start again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "handoff.h"
#include "util.h"

enum { S = HANDOFF_SOURCE, D = HANDOFF_DESTINATION };
enum { SRC_RUNS, SRC_FROZEN, SRC_REMOVED };
enum { DST_NONE, DST_VESSEL, DST_RUNS };
enum message { M_NONE, M_OFFER, M_ACCEPT, M_REFUSE, M_STATE, M_READY, M_COMMIT, M_RESUMED, M_GONE, M_ABORT, M_EOF };
#define CHANNEL 5

struct world {
	uint32_t pend[2];
	uint8_t st[2];
	uint8_t alive[2];  /* the worker */
	uint8_t closed[2]; /* orderly end of the worker */
	uint8_t lost[2];   /* has noticed that the link is gone */
	uint8_t broken;
	uint8_t harmed;			  /* something broke or died: a peer may be left without a word */
	uint8_t chan[2][CHANNEL], len[2]; /* [to] */
	uint8_t src, adopted, effects, kept;
	uint8_t dst, vfrozen;
	uint8_t ask, answer; /* on a connection of their own; answer: event + 1 */
	uint8_t breaks, deaths[2], fails[2];
};

struct slot {
	struct world w;
	uint8_t used, on_stack;
};

/* One exploration. */
struct checker {
	const struct handoff_step *table;
	size_t n;
	struct slot *slots;
	size_t cap, states, transitions, quiet;
	size_t outcome[2]; /* quiet states in which it runs there, and here */
	const char *violation;
	struct world culprit;
	uint32_t *row_used;
	bool pair_seen[2][HANDOFF_STATE_COUNT][HANDOFF_EVENT_COUNT];
};

static bool bad(struct checker *c, const struct world *w, const char *what)
{
	if (!c->violation) {
		c->violation = what;
		c->culprit = *w;
	}
	return false;
}

static void send_to(struct world *w, int to, enum message m)
{
	if (w->broken || w->lost[!to] || !w->alive[!to])
		return;
	if (w->len[to] == CHANNEL)
		abort();
	w->chan[to][w->len[to]++] = (uint8_t)m;
}

/* Looks up the row and takes the step: new state, acts to be done. */
static bool event(struct checker *c, struct world *w, int side, enum handoff_event ev)
{
	c->pair_seen[side][w->st[side]][ev] = true;
	for (size_t i = 0; i < c->n; i++) {
		const struct handoff_step *r = &c->table[i];
		if ((int)r->side != side || r->from != (enum handoff_state)w->st[side] || r->event != ev)
			continue;
		c->row_used[i]++;
		if (handoff_final(r->from) && r->to != r->from)
			return bad(c, w, "a final state was left");
		w->st[side] = (uint8_t)r->to;
		/* What a final state still has to do is not forgotten because of a late cancel. */
		w->pend[side] = handoff_final(r->from) && ev != HANDOFF_EV_WORKER_DIED ? w->pend[side] | r->actions
										       : r->actions;
		return true;
	}
	return bad(c, w, "an event without a row");
}

static bool act_source(struct checker *c, struct world *w, unsigned act)
{
	switch (act) {
	case HANDOFF_ACT_OFFER:
		send_to(w, D, M_OFFER);
		return true;
	case HANDOFF_ACT_FREEZE:
		if (w->src == SRC_RUNS)
			w->src = SRC_FROZEN;
		return true;
	case HANDOFF_ACT_SEND_STATE:
		if (w->src != SRC_FROZEN)
			return bad(c, w, "state was taken of a process that runs");
		w->effects = 1;
		send_to(w, D, M_STATE);
		return true;
	case HANDOFF_ACT_KEEP_LOCK:
		w->kept = 1;
		return true;
	case HANDOFF_ACT_SEND_COMMIT:
		if (w->src != SRC_FROZEN || !w->kept)
			return bad(c, w, "commit was sent without freezer or lock");
		send_to(w, D, M_COMMIT);
		return true;
	case HANDOFF_ACT_UNDO:
		w->adopted = w->effects = w->kept = 0;
		return true;
	case HANDOFF_ACT_THAW:
		if (w->src == SRC_REMOVED)
			return bad(c, w, "the source thaws what it has removed");
		if (w->effects || w->kept)
			return bad(c, w, "thawed with effects in place");
		w->src = SRC_RUNS;
		return true;
	case HANDOFF_ACT_REMOVE:
		if (w->src == SRC_RUNS)
			return bad(c, w, "a running process was removed");
		w->src = SRC_REMOVED;
		w->adopted = w->effects = w->kept = 0;
		return true;
	case HANDOFF_ACT_SEND_ABORT:
		send_to(w, D, M_ABORT);
		return true;
	case HANDOFF_ACT_ASK: /* reconnects: the old link is over, and a dead worker has a successor */
		w->alive[S] = 1;
		w->lost[S] = w->broken = w->harmed = 1;
		w->len[S] = 0;
		w->ask = 1;
		w->answer = 0;
		return true;
	default:
		return bad(c, w, "an act that the source does not have");
	}
}

static bool act_destination(struct checker *c, struct world *w, unsigned act)
{
	switch (act) {
	case HANDOFF_ACT_ACCEPT:
		send_to(w, S, M_ACCEPT);
		return true;
	case HANDOFF_ACT_FREEZE:
		w->vfrozen = 1;
		return true;
	case HANDOFF_ACT_SEND_READY:
		if (!w->vfrozen)
			return bad(c, w, "ready without the freezer");
		send_to(w, S, M_READY);
		return true;
	case HANDOFF_ACT_RUN:
		if (w->dst == DST_NONE)
			return bad(c, w, "the destination runs what it does not have");
		w->dst = DST_RUNS;
		return true;
	case HANDOFF_ACT_SEND_RESUMED:
		if (w->dst != DST_RUNS)
			return bad(c, w, "resumed, but it does not run");
		send_to(w, S, M_RESUMED);
		return true;
	case HANDOFF_ACT_DISCARD:
		if (w->dst == DST_RUNS)
			return bad(c, w, "the destination discards what runs");
		w->dst = DST_NONE;
		w->vfrozen = 0;
		return true;
	case HANDOFF_ACT_SEND_ABORT:
		send_to(w, S, M_ABORT);
		return true;
	case HANDOFF_ACT_SEND_GONE:
		if (w->dst != DST_NONE)
			return bad(c, w, "gone was said of what is there");
		send_to(w, S, M_GONE);
		return true;
	case HANDOFF_ACT_SEND_REFUSE:
		send_to(w, S, M_REFUSE);
		return true;
	default:
		return bad(c, w, "an act that the destination does not have");
	}
}

/* What must be true at any time. */
static bool check(struct checker *c, const struct world *w)
{
	enum handoff_state s = w->st[S], d = w->st[D];
	if (w->src == SRC_RUNS && w->dst == DST_RUNS)
		return bad(c, w, "it runs in two places");
	if (w->src == SRC_REMOVED && w->dst != DST_RUNS)
		return bad(c, w, "it is in no place");
	if (w->dst == DST_RUNS && w->src != SRC_REMOVED && !w->kept)
		return bad(c, w, "it runs there, and the source's sockets answer");
	if (w->src == SRC_RUNS && (w->effects || w->kept))
		return bad(c, w, "the source runs with effects in place");
	if (w->src == SRC_RUNS && (s == HANDOFF_COMMITTING || s == HANDOFF_IN_DOUBT || s == HANDOFF_DONE ||
				   (s == HANDOFF_SEALED && !w->pend[S])))
		return bad(c, w, "the source runs in a state in which it must not");
	if (w->src == SRC_FROZEN && s == HANDOFF_ABORTED && !w->pend[S])
		return bad(c, w, "left frozen");
	if (s == HANDOFF_COMMITTING && w->lost[S] && !w->pend[S])
		return bad(c, w, "waits for an answer on a link that is gone");
	if (s == HANDOFF_IN_DOUBT && !w->lost[S] && !w->pend[S])
		return bad(c, w, "in doubt while the link is there");
	if (w->src == SRC_REMOVED && s != HANDOFF_DONE)
		return bad(c, w, "removed before DONE was journalled");
	if (w->dst == DST_RUNS && d != HANDOFF_RUNNING)
		return bad(c, w, "runs there before RUNNING was journalled");
	if (w->dst == DST_VESSEL && d == HANDOFF_DISCARDED && !w->pend[D])
		return bad(c, w, "a vessel is left");
	if ((d == HANDOFF_READY || d == HANDOFF_RUNNING) && w->dst == DST_NONE)
		return bad(c, w, "ready with nothing there");
	return true;
}

/* Nothing goes on by itself, and the link works or is not needed. */
static bool check_quiet(struct checker *c, const struct world *w)
{
	c->quiet++;
	if (w->st[S] == HANDOFF_DONE && w->st[D] == HANDOFF_RUNNING && w->src == SRC_REMOVED && w->dst == DST_RUNS) {
		c->outcome[0]++;
		return true;
	}
	if (w->st[S] == HANDOFF_ABORTED && w->st[D] == HANDOFF_DISCARDED && w->src == SRC_RUNS && w->dst == DST_NONE) {
		c->outcome[1]++;
		return w->adopted || w->effects || w->kept ? bad(c, w, "something is left on the source") : true;
	}
	return bad(c, w, "all is quiet, and it is not settled");
}

static bool explore(struct checker *c, const struct world *w);

static bool try(struct checker *c, const struct world *w)
{
	c->transitions++;
	return check(c, w) && explore(c, w);
}

static bool act(struct checker *c, const struct world *w, int side, bool *moved)
{
	if (!w->pend[side])
		return true;
	struct world n = *w;
	unsigned a = n.pend[side] & -n.pend[side];
	n.pend[side] &= ~a;
	*moved = true;
	return (side == S ? act_source(c, &n, a) : act_destination(c, &n, a)) && try(c, &n);
}

static const struct {
	enum message m;
	int to;
	enum handoff_event ev;
} meaning[] = {
	{ M_OFFER, D, HANDOFF_EV_START },     { M_ACCEPT, S, HANDOFF_EV_ACCEPT }, { M_REFUSE, S, HANDOFF_EV_REFUSE },
	{ M_STATE, D, HANDOFF_EV_SEAL },      { M_READY, S, HANDOFF_EV_READY },	  { M_COMMIT, D, HANDOFF_EV_COMMIT },
	{ M_RESUMED, S, HANDOFF_EV_RESUMED }, { M_GONE, S, HANDOFF_EV_GONE },	  { M_ABORT, S, HANDOFF_EV_ABORT },
	{ M_ABORT, D, HANDOFF_EV_ABORT },     { M_EOF, S, HANDOFF_EV_LINK_LOST }, { M_EOF, D, HANDOFF_EV_LINK_LOST },
};

static bool receive(struct checker *c, const struct world *w, int side, bool *moved)
{
	if (!w->len[side] || w->pend[side] || !w->alive[side] || w->lost[side])
		return true;
	enum message m = w->chan[side][0];
	if (handoff_final(w->st[side]) && m != M_EOF)
		return true; /* reads no more, closes */
	struct world n = *w;
	memmove(n.chan[side], n.chan[side] + 1, CHANNEL - 1);
	n.chan[side][CHANNEL - 1] = 0;
	n.len[side]--;
	*moved = true;
	if (m == M_EOF) {
		n.lost[side] = 1;
		if (!n.harmed && !handoff_final(n.st[side]))
			return bad(c, w, "the peer closed without a word");
	}
	for (size_t i = 0; i < ARRAY_LEN(meaning); i++)
		if (meaning[i].m == m && meaning[i].to == side)
			return event(c, &n, side, meaning[i].ev) && try(c, &n);
	return bad(c, w, "a message for the wrong side");
}

/* What a living worker does by itself next. */
static bool drive(struct checker *c, const struct world *w, int side, enum handoff_state st, enum handoff_event ev,
		  bool *moved)
{
	if (w->st[side] != st || w->pend[side] || !w->alive[side])
		return true;
	struct world n = *w;
	*moved = true;
	if (side == S && st == HANDOFF_NONE && !n.adopted) {
		n.adopted = 1;
		return try(c, &n);
	}
	if (side == D && st == HANDOFF_VETTING && n.dst == DST_NONE) {
		n.dst = DST_VESSEL;
		return try(c, &n);
	}
	return event(c, &n, side, ev) && try(c, &n);
}

static bool notice_loss(struct checker *c, const struct world *w, int side, bool *moved)
{
	if (!w->broken || w->lost[side] || w->pend[side] || !w->alive[side])
		return true;
	struct world n = *w;
	n.lost[side] = 1;
	n.len[side] = 0;
	memset(n.chan[side], 0, CHANNEL);
	*moved = true;
	return event(c, &n, side, HANDOFF_EV_LINK_LOST) && try(c, &n);
}

static bool finish(struct checker *c, const struct world *w, int side, bool *moved)
{
	if (!handoff_final(w->st[side]) || w->pend[side] || !w->alive[side])
		return true;
	struct world n = *w;
	send_to(&n, !side, M_EOF);
	n.alive[side] = 0;
	n.closed[side] = 1;
	n.len[side] = 0;
	memset(n.chan[side], 0, CHANNEL);
	*moved = true;
	return try(c, &n);
}

static bool asked(struct checker *c, const struct world *w, bool *moved)
{
	struct world n = *w;
	if (w->ask && !w->pend[D]) {
		*moved = true;
		enum handoff_event a;
		if (handoff_answer(n.st[D], &a)) {
			n.ask = 0;
			n.answer = (uint8_t)(a + 1);
			return try(c, &n);
		}
		n.lost[D] = 1;
		n.len[D] = 0;
		memset(n.chan[D], 0, CHANNEL);
		return event(c, &n, D, HANDOFF_EV_LINK_LOST) && try(c, &n);
	}
	if (w->answer && !w->pend[S]) {
		*moved = true;
		n.answer = 0;
		return event(c, &n, S, w->answer - 1) && try(c, &n);
	}
	return true;
}

/* A person knows the truth, and says so. */
static bool person(struct checker *c, const struct world *w)
{
	if (w->st[S] != HANDOFF_IN_DOUBT || w->pend[S] || w->pend[D])
		return true;
	struct world n = *w;
	n.ask = n.answer = 0;
	if (w->dst == DST_RUNS)
		return event(c, &n, S, HANDOFF_EV_GIVEN_AWAY) && try(c, &n);
	if (w->st[D] == HANDOFF_DISCARDED)
		return event(c, &n, S, HANDOFF_EV_KEEP_HERE) && try(c, &n);
	return true;
}

static bool misfortune(struct checker *c, const struct world *w, int side)
{
	struct world n = *w;
	if (w->fails[side] && w->alive[side]) { /* an act or a step fails, or the user cancels */
		n.fails[side]--;
		if (side == S)
			n.ask = n.answer = 0;
		if (!event(c, &n, side, HANDOFF_EV_FAIL) || !try(c, &n))
			return false;
	}
	n = *w;
	if (w->deaths[side] && (w->alive[side] || w->pend[side])) { /* the worker, or the warden that recovers */
		n.deaths[side]--;
		n.alive[side] = 0;
		n.broken = n.lost[side] = n.harmed = 1;
		n.len[side] = 0;
		memset(n.chan[side], 0, CHANNEL);
		if (side == S)
			n.ask = n.answer = 0;
		if (!event(c, &n, side, HANDOFF_EV_WORKER_DIED) || !try(c, &n))
			return false;
	}
	n = *w;
	if (side == S && w->src == SRC_RUNS && w->adopted && w->alive[S] && !w->pend[S] &&
	    handoff_undecided(w->st[S])) {
		n.src = SRC_FROZEN; /* no misfortune: frozen a moment before the state says so */
		if (!try(c, &n))
			return false;
	}
	n = *w;
	if (side == D && w->dst == DST_NONE && w->alive[D] && !w->pend[D] && w->st[D] == HANDOFF_NONE) {
		n.dst = DST_VESSEL; /* nor is this: its cgroup is made before the state says so */
		if (!try(c, &n))
			return false;
	}
	n = *w;
	if (side == S && w->breaks && (w->ask || w->answer)) {
		n.breaks--;
		n.ask = n.answer = 0;
		return event(c, &n, S, HANDOFF_EV_LINK_LOST) && try(c, &n);
	}
	if (side == S && w->breaks && !w->broken) {
		n.breaks--;
		n.broken = n.harmed = 1;
		return try(c, &n);
	}
	return true;
}

static uint64_t hash(const struct world *w)
{
	uint64_t h = 1469598103934665603u;
	for (size_t i = 0; i < sizeof(*w); i++)
		h = (h ^ ((const uint8_t *)w)[i]) * 1099511628211u;
	return h ^ h >> 29;
}

static struct slot *visit(struct checker *c, const struct world *w)
{
	for (size_t i = hash(w) & (c->cap - 1);; i = (i + 1) & (c->cap - 1)) {
		struct slot *s = &c->slots[i];
		if (s->used && memcmp(&s->w, w, sizeof(*w)) != 0)
			continue;
		return s;
	}
}

static bool explore(struct checker *c, const struct world *w)
{
	struct slot *slot = visit(c, w);
	if (slot->used)
		return slot->on_stack ? bad(c, w, "it goes round in circles") : true;
	if (++c->states > c->cap / 4 * 3)
		return bad(c, w, "more states than there is room for");
	*slot = (struct slot){ .w = *w, .used = 1, .on_stack = 1 };
	bool moved = false, ok = true;
	for (int side = S; side <= D && ok; side++)
		ok = act(c, w, side, &moved) && receive(c, w, side, &moved) && notice_loss(c, w, side, &moved) &&
		     finish(c, w, side, &moved);
	ok = ok && drive(c, w, S, HANDOFF_NONE, HANDOFF_EV_START, &moved) &&
	     drive(c, w, S, HANDOFF_PRECOPY, HANDOFF_EV_SEAL, &moved) &&
	     drive(c, w, D, HANDOFF_VETTING, HANDOFF_EV_ACCEPT, &moved) &&
	     drive(c, w, D, HANDOFF_VETTING, HANDOFF_EV_REFUSE, &moved) &&
	     drive(c, w, D, HANDOFF_RESTORING, HANDOFF_EV_READY, &moved) && asked(c, w, &moved);
	if (ok && !moved)
		ok = check_quiet(c, w);
	ok = ok && person(c, w) && misfortune(c, w, S) && misfortune(c, w, D);
	slot->on_stack = 0;
	return ok;
}

static bool run(struct checker *c, const struct handoff_step *table, size_t n, int budget, size_t cap)
{
	struct slot *slots = c->slots;
	uint32_t *used = c->row_used;
	memset(c, 0, sizeof(*c));
	memset(slots, 0, cap * sizeof(*slots));
	memset(used, 0, (n + 1) * sizeof(*used));
	*c = (struct checker){ .table = table, .n = n, .slots = slots, .cap = cap, .row_used = used };
	struct world w;
	memset(&w, 0, sizeof(w));
	w.alive[S] = w.alive[D] = 1;
	w.breaks = (uint8_t)budget;
	w.deaths[S] = w.deaths[D] = (uint8_t)budget;
	w.fails[S] = w.fails[D] = 1;
	return explore(c, &w);
}

#define CAP_FULL  ((size_t)1 << 22)
#define CAP_SMALL ((size_t)1 << 16)

static struct checker *checker_new(size_t cap)
{
	struct checker *c = calloc(1, sizeof(*c));
	c->slots = calloc(cap, sizeof(*c->slots));
	c->row_used = calloc(HANDOFF_STATE_COUNT * HANDOFF_EVENT_COUNT * 2, sizeof(*c->row_used));
	return c;
}

static void checker_free(struct checker *c)
{
	free(c->slots);
	free(c->row_used);
	free(c);
}

static void say(const struct checker *c)
{
	const struct world *w = &c->culprit;
	print_message("%s: source %s (pending %x, process %d, effects %d, kept %d), destination %s (pending %x, "
		      "process %d), broken %d\n",
		      c->violation, handoff_state_name(w->st[S]), w->pend[S], w->src, w->effects, w->kept,
		      handoff_state_name(w->st[D]), w->pend[D], w->dst, w->broken);
}

static void every_interleaving(void **unused)
{
	(void)unused;
	struct checker *c = checker_new(CAP_FULL);
	size_t n;
	const struct handoff_step *t = handoff_table(&n);
	bool ok = run(c, t, n, 2, CAP_FULL);
	if (!ok)
		say(c);
	print_message("explored %zu states, %zu transitions; %zu quiet: %zu run there, %zu here\n", c->states,
		      c->transitions, c->quiet, c->outcome[0], c->outcome[1]);
	assert_true(ok);
	assert_true(c->outcome[0] > 0 && c->outcome[1] > 0);
	/* No row is there for nothing, and no event happens without one. */
	for (size_t i = 0; i < n; i++) {
		if (!c->row_used[i])
			print_message("never used: %d %s + %s\n", t[i].side, handoff_state_name(t[i].from),
				      handoff_event_name(t[i].event));
		assert_true(c->row_used[i] > 0);
	}
	for (int s = S; s <= D; s++)
		for (int f = 0; f < HANDOFF_STATE_COUNT; f++)
			for (int e = 0; e < HANDOFF_EVENT_COUNT; e++)
				assert_int_equal(c->pair_seen[s][f][e], handoff_next(s, f, e) != NULL);
	checker_free(c);
}

static bool state_of(int side, enum handoff_state s)
{
	if (s == HANDOFF_NONE)
		return true;
	return (s < HANDOFF_VETTING) == (side == S);
}

static void mutant(struct checker *c, const struct handoff_step *t, size_t n, const struct handoff_step *was,
		   enum handoff_state to, unsigned dropped, const char *how, unsigned *killed, unsigned *survived)
{
	if (!run(c, t, n, 1, CAP_SMALL)) {
		++*killed;
		return;
	}
	print_message("survived: %s row %s + %s -> %s (%x): %s %s %x\n",
		      was->side == HANDOFF_SOURCE ? "source" : "dest", handoff_state_name(was->from),
		      handoff_event_name(was->event), handoff_state_name(was->to), was->actions, how,
		      handoff_state_name(to), dropped);
	++*survived;
}

static void every_mutant(void **unused)
{
	(void)unused;
	size_t n;
	const struct handoff_step *t = handoff_table(&n);
	struct handoff_step *m = calloc(n, sizeof(*m));
	struct checker *c = checker_new(CAP_SMALL);
	unsigned killed = 0, survived = 0;
	assert_true(run(c, t, n, 1, CAP_SMALL));
	print_message("each mutant is searched in up to %zu states\n", c->states);
	for (size_t i = 0; i < n; i++) {
		for (int to = 0; to < HANDOFF_STATE_COUNT; to++) {
			memcpy(m, t, n * sizeof(*m));
			if (to == (int)t[i].to || !state_of(t[i].side, to))
				continue;
			m[i].to = to;
			mutant(c, m, n, &t[i], to, 0, "to", &killed, &survived);
		}
		for (unsigned bit = 1; bit <= HANDOFF_ACT_ASK; bit <<= 1) {
			memcpy(m, t, n * sizeof(*m));
			m[i].actions ^= bit;
			if (t[i].actions & bit)
				mutant(c, m, n, &t[i], t[i].to, bit, "without", &killed, &survived);
		}
		memcpy(m, t, n * sizeof(*m));
		memmove(m + i, m + i + 1, (n - i - 1) * sizeof(*m));
		mutant(c, m, n - 1, &t[i], t[i].to, 0, "row removed", &killed, &survived);
	}
	print_message("%zu rows: %u mutants killed, %u survived\n", n, killed, survived);
	assert_int_equal(survived, 0);
	assert_true(killed > 4 * n);
	checker_free(c);
	free(m);
}

/* What the model takes for granted. */
static void shape(void **unused)
{
	(void)unused;
	const unsigned sends = HANDOFF_ACT_OFFER | HANDOFF_ACT_ACCEPT | HANDOFF_ACT_SEND_STATE |
			       HANDOFF_ACT_SEND_READY | HANDOFF_ACT_SEND_COMMIT | HANDOFF_ACT_SEND_RESUMED |
			       HANDOFF_ACT_SEND_ABORT | HANDOFF_ACT_SEND_GONE | HANDOFF_ACT_SEND_REFUSE;
	size_t n;
	const struct handoff_step *t = handoff_table(&n);
	for (size_t i = 0; i < n; i++) {
		const struct handoff_step *r = &t[i];
		assert_ptr_equal(handoff_next(r->side, r->from, r->event), r); /* no two rows for one event */
		assert_true(state_of(r->side, r->from) && state_of(r->side, r->to));
		if (r->event == HANDOFF_EV_WORKER_DIED)
			assert_int_equal(r->actions & sends, 0); /* nobody is left to send */
		if (handoff_undecided(r->from) && r->event == HANDOFF_EV_WORKER_DIED)
			assert_true(r->to == (r->side == HANDOFF_SOURCE ? HANDOFF_ABORTED : HANDOFF_DISCARDED));
		if (handoff_final(r->from))
			assert_int_equal(r->to, r->from);
	}
	for (int s = 0; s < HANDOFF_STATE_COUNT; s++) {
		assert_int_equal(handoff_state_parse(handoff_state_name(s)), s);
		assert_false(handoff_final(s) && handoff_undecided(s));
		for (int side = S; side <= D; side++) /* a death is never unexpected */
			assert_int_equal(handoff_next(side, s, HANDOFF_EV_WORKER_DIED) != NULL, state_of(side, s));
	}
	assert_int_equal(handoff_state_parse("no such state"), HANDOFF_NONE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shape),
		cmocka_unit_test(every_interleaving),
		cmocka_unit_test(every_mutant),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
