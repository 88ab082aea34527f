/* When pre-copy stops: tables of rounds, and what is said after the last of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "rounds.h"

struct turn {
	uint64_t pages, ms, dirty;
};

/* Rounds until it stops, or all of them; how many were made. */
static uint32_t play(struct rounds *r, const Cpr__Options *o, const struct turn *v, size_t n)
{
	rounds_init(r, o);
	for (size_t i = 0; i < n && !rounds_done(r); i++) {
		struct round round = { .start_ns = 1000,
				       .end_ns = 1000 + v[i].ms * 1000000u,
				       .pages = v[i].pages,
				       .bytes = v[i].pages * PAGE_BYTES,
				       .dirty_pages = v[i].dirty };
		rounds_add(r, &round);
	}
	return r->n;
}

static void says(const struct rounds *r, const char *what)
{
	if (!strstr(r->reason, what))
		fail_msg("\"%s\" is not in \"%s\"", what, r->reason);
}

static void by_estimate(void **state)
{
	(void)state;
	Cpr__Options o = CPR__OPTIONS__INIT;
	struct rounds r;
	/* 1 GiB in 1 s; 16 MiB are left: within the target of 20 ms, but another round makes it 1 ms */
	const struct turn fast[] = { { 262144, 1000, 4096 }, { 4096, 16, 256 }, { 256, 1, 9 } };
	assert_int_equal(play(&r, &o, fast, 3), 2);
	says(&r, "256 pages are left: 1.0 ms");
	/* next to nothing is left: no further round */
	const struct turn idle[] = { { 262144, 1000, 100 }, { 100, 1, 1 } };
	assert_int_equal(play(&r, &o, idle, 2), 1);
	/* within the target, and a round does not make it much less */
	const struct turn busy[] = { { 4096, 16, 3000 }, { 3000, 12, 2900 } };
	assert_int_equal(play(&r, &o, busy, 2), 1);
	says(&r, "target 20.0 ms");
	/* a looser target is enough for a process that writes a lot */
	o.has_downtime_us = true;
	o.downtime_us = 500000;
	const struct turn heavy[] = { { 262144, 1000, 100000 }, { 100000, 400, 90000 } };
	assert_int_equal(play(&r, &o, heavy, 2), 1);
	assert_int_equal(r.total_pages, 262144);
}

/* What comes before the first page is not the link's fault. */
static void slow_start(void **state)
{
	(void)state;
	Cpr__Options o = CPR__OPTIONS__INIT;
	struct rounds r;
	struct round round = {
		.start_ns = 0, .send_ns = 80000000, .end_ns = 90000000, .pages = 1000, .dirty_pages = 999
	};
	round.bytes = round.pages * PAGE_BYTES;
	rounds_init(&r, &o);
	rounds_add(&r, &round);
	assert_int_equal(r.bandwidth, round.bytes * 100);
	assert_true(rounds_done(&r));
}

static void by_bounds(void **state)
{
	(void)state;
	Cpr__Options o = CPR__OPTIONS__INIT;
	struct rounds r;
	const struct turn heavy[] = { { 100000, 1000, 90000 }, { 90000, 900, 90000 }, { 90000, 900, 90001 },
				      { 90001, 900, 90000 },   { 90000, 900, 90000 }, { 90000, 900, 90000 } };
	assert_int_equal(play(&r, &o, heavy, 6), 4);
	says(&r, "as fast as the link takes");
	o.has_max_rounds = true;
	o.max_rounds = 2;
	assert_int_equal(play(&r, &o, heavy, 6), 2);
	says(&r, "2 rounds are the limit");
	/* the limit stands above the wish for a shorter pause */
	o.max_rounds = 1;
	const struct turn fast[] = { { 262144, 1000, 4096 }, { 4096, 16, 256 } };
	assert_int_equal(play(&r, &o, fast, 2), 1);
	says(&r, "are left: 15.6 ms");
	o.max_rounds = 0;
	assert_int_equal(play(&r, &o, heavy, 6), 0);
	says(&r, "no rounds");
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(by_estimate), cmocka_unit_test(by_bounds),
					    cmocka_unit_test(slow_start) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
