#include "rounds.h"

#include <stdio.h>

void rounds_init(struct rounds *r, const Cpr__Options *o)
{
	*r = (struct rounds){
		.downtime_ns = (o->has_downtime_us ? o->downtime_us : ROUNDS_DOWNTIME_US) * 1000u,
		.max = o->has_max_rounds ? o->max_rounds : ROUNDS_MAX,
		.best_dirty = UINT64_MAX,
	};
	if (r->max == 0)
		rounds_stop(r, "no rounds were asked for");
}

void rounds_stop(struct rounds *r, const char *reason)
{
	r->done = true;
	snprintf(r->reason, sizeof(r->reason), "%s", reason);
}

bool rounds_done(const struct rounds *r)
{
	return r->done;
}

void rounds_last(struct rounds *r, const struct round *round)
{
	r->n++;
	r->total_pages += round->pages;
	r->total_bytes += round->bytes;
}

void rounds_add(struct rounds *r, const struct round *round)
{
	/* Looking at mappings comes before, takes 20 ms a GiB, and has nothing to do with the link. */
	uint64_t ns = round->end_ns - (round->send_ns ? round->send_ns : round->start_ns);
	rounds_last(r, round);
	/* A small round is all latency: it says nothing about bandwidth, but is a lower bound of it. */
	uint64_t bw = ns ? (uint64_t)((double)round->bytes * 1e9 / (double)ns) : 0;
	if (round->bytes >= (1u << 20) || bw > r->bandwidth)
		r->bandwidth = bw;
	uint64_t left = round->dirty_pages * PAGE_BYTES;
	uint64_t need_ns = r->bandwidth ? (uint64_t)((double)left * 1e9 / (double)r->bandwidth) : UINT64_MAX;
	if (round->dirty_pages < r->best_dirty) {
		r->best_dirty = round->dirty_pages;
		r->no_better = 0;
	} else {
		r->no_better++;
	}
	double ms = (double)need_ns / 1e6, target = (double)r->downtime_ns / 1e6;
	/* Good enough; but while rounds shrink fast, a short one more makes the pause shorter by nearly all of that. */
	bool enough = need_ns <= r->downtime_ns;
	bool shrinks = need_ns > ROUNDS_WORTH_NS && round->dirty_pages < round->pages / 4;
	r->done = true;
	if (enough && !(shrinks && r->n < r->max))
		snprintf(r->reason, sizeof(r->reason), "%llu pages are left: %.1f ms at %llu MB/s, target %.1f ms",
			 (unsigned long long)round->dirty_pages, ms, (unsigned long long)(r->bandwidth / 1000000u),
			 target);
	else if (r->n >= r->max)
		snprintf(r->reason, sizeof(r->reason), "%u rounds are the limit; %llu pages are left (%.1f ms)", r->n,
			 (unsigned long long)round->dirty_pages, ms);
	else if (r->no_better >= 3)
		snprintf(r->reason, sizeof(r->reason),
			 "the process writes as fast as the link takes: no fewer dirty pages for %u rounds; %llu are "
			 "left (%.1f ms)",
			 r->no_better, (unsigned long long)round->dirty_pages, ms);
	else
		r->done = false;
}
