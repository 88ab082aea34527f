/*
 * When pre-copy has done what it can: by estimate (what is left / measured bandwidth <= downtime target), by a bound
 * on rounds, or because rounds no longer help. Within the target it goes on only while rounds shrink fast and what is
 * left would still be felt. Pure bookkeeping.
 */
#ifndef AGENT_ROUNDS_H
#define AGENT_ROUNDS_H

#include "util.h"
#include "wire.pb-c.h"

#define ROUNDS_DOWNTIME_US 20000u /* default target */
#define ROUNDS_MAX	   20u
#define ROUNDS_WORTH_NS	   2000000u /* less than this in the pause is not worth another round */

struct round {
	uint64_t start_ns, send_ns, end_ns; /* send_ns: when the first page could go; 0: start_ns */
	uint64_t pages, bytes, zero_pages;
	uint64_t dirty_pages; /* at its end */
};

struct rounds {
	uint64_t downtime_ns;
	uint32_t max;
	uint32_t n;
	uint64_t bandwidth; /* bytes a second, of the rounds that were long enough to tell */
	uint64_t best_dirty;
	uint32_t no_better; /* rounds in a row that ended with no fewer dirty pages */
	uint64_t total_pages, total_bytes;
	bool done;
	char reason[160];
};

void rounds_init(struct rounds *r, const Cpr__Options *o);
void rounds_add(struct rounds *r, const struct round *round);
void rounds_last(struct rounds *r, const struct round *round); /* only counted */
void rounds_stop(struct rounds *r, const char *reason);
bool rounds_done(const struct rounds *r);

#endif
