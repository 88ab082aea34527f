/* The table of migrations: events kept and passed on, the end, what is forgotten; events of any shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "json.h"
#include "migrations.h"

#define ID "00000000-0000-4000-8000-00000000000"

struct seen {
	int lines, ends;
	char last[4096];
};

static void on_line(void *ctx, const char *line, size_t len)
{
	struct seen *s = ctx;
	assert_int_equal(line[len - 1], '\n');
	assert_null(memchr(line, '\n', len - 1));
	snprintf(s->last, sizeof(s->last), "%s", line);
	s->lines++;
}

static void on_end(void *ctx)
{
	((struct seen *)ctx)->ends++;
}

static struct migration_watcher watcher(struct seen *s)
{
	return (struct migration_watcher){ on_line, on_end, s };
}

static void event(struct migrations *ms, struct migration *m, Cpr__Event__Kind kind, const char *state)
{
	Cpr__Event e = CPR__EVENT__INIT;
	e.kind = kind;
	e.migration = m->id;
	e.state = (char *)state;
	migrations_event(ms, m, &e);
}

static void test_life(void **state)
{
	(void)state;
	struct fault f;
	struct seen early = { 0 }, late = { 0 }, after = { 0 };
	struct migrations *ms = migrations_new(8);
	struct migration *m = migrations_add(ms, HANDOFF_SOURCE, ID "1", 42, "redis", "host2", &f);
	assert_non_null(m);
	assert_null(migrations_add(ms, HANDOFF_SOURCE, ID "1", 43, "x", "host2", &f));
	assert_int_equal(f.code, FAULT_BUSY);
	assert_null(migrations_add(ms, HANDOFF_DESTINATION, "../../etc/passwd", 43, "x", "host2", &f));
	assert_int_equal(f.code, FAULT_PROTOCOL);
	assert_ptr_equal(migrations_of_pid(ms, 42), m);

	struct migration_watcher w = watcher(&early);
	assert_non_null(migrations_watch(m, &w));
	event(ms, m, CPR__EVENT__KIND__STATE, "OFFERED");
	event(ms, m, CPR__EVENT__KIND__PROGRESS, NULL);
	event(ms, m, CPR__EVENT__KIND__PROGRESS, NULL);
	event(ms, m, CPR__EVENT__KIND__STATE, "PRECOPY");
	assert_int_equal(early.lines, 4);
	assert_string_equal(m->state, "PRECOPY");
	/* from the beginning, with the newest progress only */
	w = watcher(&late);
	struct migration_watch *gone = migrations_watch(m, &w);
	assert_int_equal(late.lines, 3);
	migrations_unwatch(gone);

	event(ms, m, CPR__EVENT__KIND__DONE, NULL);
	assert_true(m->over);
	assert_string_equal(m->state, "DONE");
	assert_int_equal(early.ends, 1);
	assert_int_equal(late.ends, 0);
	assert_non_null(strstr(early.last, "\"kind\":\"done\""));
	assert_null(migrations_of_pid(ms, 42));
	event(ms, m, CPR__EVENT__KIND__FAILED, NULL); /* too late */
	assert_int_equal(early.lines, 5);
	w = watcher(&after);
	assert_null(migrations_watch(m, &w));
	assert_int_equal(after.lines, 4);
	assert_int_equal(after.ends, 1);
	migrations_free(ms);
}

static void test_fail(void **state)
{
	(void)state;
	struct fault f, why;
	struct migrations *ms = migrations_new(8);
	struct migration *m = migrations_add(ms, HANDOFF_SOURCE, ID "1", 42, "a\xff\x1b[2J\xc3\xa9", "host2", &f);
	fault_set(&why, FAULT_DENIED, "no \"%s\"", "quote");
	fault_hint(&why, "pid 42 runs on host1 as before.");
	migrations_fail(ms, m, &why);
	json_object *o = migrations_json_one(m), *fault = json_object_in(o, "fault");
	assert_string_equal(json_str(fault, "code"), "denied");
	assert_string_equal(json_str(fault, "what"), "no \"quote\"");
	assert_string_equal(json_str(o, "comm"), "a?\x1b[2J\xc3\xa9"); /* UTF-8 only; escapes are JSON's matter */
	json_object_put(o);
	migrations_free(ms);
}

static void test_forget(void **state)
{
	(void)state;
	struct fault f;
	struct migrations *ms = migrations_new(3);
	struct migration *first = NULL;
	for (unsigned i = 0; i < 10; i++) {
		char id[40];
		snprintf(id, sizeof(id), ID "%u", i);
		struct migration *m = migrations_add(ms, HANDOFF_SOURCE, id, 100 + (pid_t)i, "x", "host2", &f);
		assert_non_null(m);
		if (i == 0)
			first = m; /* runs on, and is not forgotten */
		else
			event(ms, m, CPR__EVENT__KIND__FAILED, NULL);
	}
	assert_ptr_equal(migrations_find(ms, ID "0"), first);
	assert_null(migrations_find(ms, ID "1"));
	assert_null(migrations_find(ms, ID "5"));
	assert_non_null(migrations_find(ms, ID "9"));
	assert_null(migrations_find(ms, "0000")); /* ambiguous */
	assert_null(migrations_find(ms, ""));
	assert_int_equal(migrations_running(ms), 1);
	/* a destination without an id is not shown */
	struct migration *d = migrations_add(ms, HANDOFF_DESTINATION, NULL, 0, NULL, "host1", &f);
	json_object *o = migrations_json(ms);
	size_t n = json_object_array_length(json_array(o, "migrations"));
	json_object_put(o);
	assert_int_equal(migrations_name(ms, d, ID "9", &f), -1);
	assert_int_equal(migrations_name(ms, d, "abcdef00-0000-4000-8000-000000000000", &f), 0);
	o = migrations_json(ms);
	assert_int_equal(json_object_array_length(json_array(o, "migrations")), n + 1);
	json_object_put(o);
	assert_ptr_equal(migrations_find(ms, "abcd"), d);
	migrations_free(ms);
}

static void test_bound(void **state)
{
	(void)state;
	struct fault f;
	struct seen s = { 0 };
	struct migrations *ms = migrations_new(3);
	struct migration *m = migrations_add(ms, HANDOFF_SOURCE, ID "1", 42, "x", "host2", &f);
	for (int i = 0; i < 5000; i++)
		event(ms, m, i % 2 ? CPR__EVENT__KIND__LOG : CPR__EVENT__KIND__ROUND, NULL);
	struct migration_watcher w = watcher(&s);
	struct migration_watch *watch = migrations_watch(m, &w);
	assert_int_equal(s.lines, MIGRATIONS_EVENTS);
	migrations_unwatch(watch);
	json_object *o = migrations_json_one(m);
	assert_int_equal(json_u64(o, "events_dropped"), 5000 - MIGRATIONS_EVENTS);
	json_object_put(o);
	migrations_free(ms);
}

/* Whatever protobuf lets through, the table takes. */
static void test_garbage(void **state)
{
	(void)state;
	struct fault f;
	struct migrations *ms = migrations_new(4);
	srandom(3);
	Cpr__Finding finding = CPR__FINDING__INIT, *findings[] = { &finding };
	Cpr__Report report = CPR__REPORT__INIT;
	Cpr__Span span = CPR__SPAN__INIT, *spans[] = { &span };
	Cpr__Fault fault = CPR__FAULT__INIT;
	finding.code = finding.object = finding.reason = (char *)"x";
	span.name = (char *)"freeze";
	report.n_findings = 1;
	report.findings = findings;
	Cpr__Event e = CPR__EVENT__INIT;
	e.migration = (char *)"m";
	e.report = &report;
	e.fault = &fault;
	e.n_spans = 1;
	e.spans = spans;
	uint8_t good[256], buf[256];
	size_t len = cpr__event__pack(&e, good);
	for (int i = 0; i < 20000; i++) {
		struct arena *a = arena_new();
		struct migration *m = migrations_add(ms, HANDOFF_DESTINATION, NULL, 0, NULL, "host1", &f);
		memcpy(buf, good, len);
		for (int k = (int)(random() % 4); k >= 0; k--)
			buf[(size_t)random() % len] = (uint8_t)random();
		Cpr__Event *got = cpr__event__unpack(arena_pb(a), len, buf);
		if (got)
			migrations_event(ms, m, got);
		json_object_put(migrations_json_one(m));
		migrations_drop(ms, m);
		arena_free(a);
	}
	migrations_free(ms);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_life),  cmocka_unit_test(test_fail),    cmocka_unit_test(test_forget),
		cmocka_unit_test(test_bound), cmocka_unit_test(test_garbage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
