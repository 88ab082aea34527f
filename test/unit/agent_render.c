/* What people read: numbers, lines, the end of a migration, and nothing of a process that a terminal would obey. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "render.h"

struct shown {
	char *text;
	size_t len;
};

/* Feeds lines of JSON; returns all that was printed. */
static char *show(bool quiet, const char *const *lines)
{
	struct shown s = { 0 };
	FILE *out = open_memstream(&s.text, &s.len);
	struct render r = { .out = out, .err = out, .quiet = quiet, .from = "host1", .to = "host2" };
	for (; *lines; lines++) {
		struct fault f;
		json_object *o = json_parse(*lines, strlen(*lines), &f);
		assert_non_null(o);
		const char *kind = json_str(o, "kind");
		if (!strcmp(kind, "done"))
			render_done(&r, o);
		else if (!strcmp(kind, "failed"))
			json_fault_in(json_object_in(o, "fault"), &f), render_failed(&r, &f, json_array(o, "report"));
		else
			render_event(&r, o);
		json_object_put(o);
	}
	fclose(out);
	return s.text;
}

static void expect(const char *text, const char *const *parts)
{
	for (const char *at = text; *parts; parts++) {
		const char *found = strstr(at, *parts);
		if (!found)
			fail_msg("\"%s\" is not (there) in:\n%s", *parts, text);
		at = found + strlen(*parts);
	}
}

static void test_numbers(void **state)
{
	(void)state;
	static const struct {
		char *(*fn)(uint64_t, char[RENDER_NUMBER]);
		uint64_t n;
		const char *text;
	} cases[] = {
		{ render_bytes, 0, "0 B" },
		{ render_bytes, 1023, "1023 B" },
		{ render_bytes, 5033164, "4.8 MiB" },
		{ render_bytes, 536870912, "512 MiB" },
		{ render_bytes, UINT64_MAX, "16777216 TiB" },
		{ render_us, 999, "999 us" },
		{ render_us, 12100, "12.1 ms" },
		{ render_us, 1300000, "1.3 s" },
		{ render_us, 123000, "123 ms" },
		{ render_rate, 950000000, "950 MB/s" },
		{ render_rate, 1500000, "1.5 MB/s" },
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char out[RENDER_NUMBER];
		assert_string_equal(cases[i].fn(cases[i].n, out), cases[i].text);
	}
}

static void test_done(void **state)
{
	(void)state;
	static const char *const lines[] = {
		"{\"kind\":\"state\",\"state\":\"PRECOPY\"}",
		"{\"kind\":\"round\",\"round\":2,\"pages\":1234,\"bytes\":5033164,\"elapsed_us\":12100,\"bandwidth\":"
		"950000000,"
		"\"dirty_pages\":310}",
		"{\"kind\":\"done\",\"pid\":4242,\"comm\":\"redis-server\",\"pause_us\":14200,\"total_us\":1300000,"
		"\"total_bytes\":536870912,\"rounds\":4,\"stop_reason\":\"the rest fits into 30 ms\",\"spans\":["
		"{\"name\":\"pre-copy\",\"side\":\"source\",\"start_ns\":1000000000,\"length_ns\":1000000000},"
		"{\"name\":\"stop\",\"side\":\"source\",\"start_ns\":2000000000,\"length_ns\":1000000},"
		"{\"name\":\"restore\",\"side\":\"source\",\"start_ns\":2001000000,\"length_ns\":6000000},"
		"{\"name\":\"commit\",\"side\":\"source\",\"start_ns\":2007000000,\"length_ns\":3000000},"
		"{\"name\":\"receive\",\"side\":\"destination\",\"start_ns\":10000000,\"length_ns\":1001000000},"
		"{\"name\":\"mappings\",\"side\":\"destination\",\"start_ns\":1011000000,\"length_ns\":4000000},"
		"{\"name\":\"commit\",\"side\":\"destination\",\"start_ns\":1015000000,\"length_ns\":2000000}],"
		"\"report\":[{\"severity\":\"loss\",\"code\":\"none\",\"object\":\"fd 3\",\"reason\":\"atime\"},"
		"{\"severity\":\"note\",\"code\":\"none\",\"object\":\"x\",\"reason\":\"y\"}]}",
		NULL,
	};
	static const char *const parts[] = {
		"PRECOPY\n",
		"round  2:  4.8 MiB in 12.1 ms, 950 MB/s; 1234 pages; 310 are dirty again\n",
		"pre-copy stopped: the rest fits into 30 ms\n",
		"before the pause: pre-copy 1.0 s (host1), receive 1.0 s (host2)\n",
		"the pause, stage by stage:\n",
		"  host1  stop                0.0      1.0 ms  ####\n",
		"  host1  restore             1.0      6.0 ms      ########################\n",
		"  host2  mappings            3.0      4.0 ms              ================\n",
		"  host1  commit              7.0      3.0 ms                              ############\n",
		"  host2  commit              7.0      2.0 ms                              ========\n",
		"not preserved:\n  fd 3: atime\n",
		"pid 4242 (redis-server) runs on host2; pause 14.2 ms, total 1.3 s, 512 MiB in 4 rounds\n",
		"to move it back: on host2, cpr-migrate --to host1 4242\n",
		NULL,
	};
	auto_free char *text = show(false, lines);
	expect(text, parts);
	auto_free char *nothing = show(true, lines);
	assert_string_equal(nothing, "");
}

static void test_failed(void **state)
{
	(void)state;
	static const char *const lines[] = {
		"{\"kind\":\"failed\",\"fault\":{\"code\":\"unsupported\",\"what\":\"it holds what can't be "
		"moved\",\"trail\":\"while "
		"vetting\",\"hint\":\"pid 7 (\\u001b[2Jx) runs on host1 as "
		"before.\"},\"report\":[{\"severity\":\"blocker\","
		"\"code\":\"unsupported\",\"object\":\"fd 7\",\"reason\":\"io_uring\",\"remedy\":\"close "
		"it\"},{\"severity\":\"blocker\","
		"\"object\":\"fd 8\",\"reason\":\"bpf\"},7,{}]}",
		NULL,
	};
	static const char *const parts[] = { "2 things can't be moved:\n",
					     "  fd 7: io_uring (close it)\n",
					     "  fd 8: bpf\n",
					     "cpr-migrate: it holds what can't be moved (while vetting)\n",
					     "pid 7 (?[2Jx) runs on host1 as before.\n",
					     "[unsupported, ?]\n",
					     NULL };
	auto_free char *text = show(true, lines); /* quiet is not silent */
	expect(text, parts);
	assert_null(strchr(text, '\033'));
}

/* Whatever the agent answers, nothing crashes. */
static void test_odd(void **state)
{
	(void)state;
	static const char *const lines[] = {
		"{\"kind\":\"round\",\"round\":\"x\",\"pages\":-1}",
		"{\"kind\":\"state\",\"state\":7}",
		"{\"kind\":\"report\",\"report\":[1,null,{}]}",
		"{\"kind\":\"done\",\"spans\":[1,{\"length_ns\":18446744073709551615},{\"name\":7}],\"report\":{}}",
		"{\"kind\":\"failed\",\"fault\":7}",
		"{\"kind\":\"new\"}",
		NULL,
	};
	auto_free char *text = show(false, lines);
	assert_non_null(strstr(text, "runs on host2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_done),
		cmocka_unit_test(test_failed),
		cmocka_unit_test(test_odd),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
