/* What the API takes and refuses; what is not given stays unset; garbage never crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"

static int parse(const char *text, struct arena *a, struct request *rq, struct fault *f)
{
	return request_parse(text, strlen(text), a, rq, f);
}

static void test_unset(void **state)
{
	(void)state;
	struct arena *a = arena_new();
	struct request rq;
	struct fault f;
	assert_int_equal(parse("{\"pid\":42,\"to\":\"host2\",\"verify\":null}", a, &rq, &f), 0);
	assert_int_equal(rq.pid, 42);
	assert_string_equal(rq.to, "host2");
	/* nothing was set: the packed options are empty */
	assert_int_equal(cpr__options__get_packed_size(rq.options), 0);
	arena_free(a);
}

static void test_all(void **state)
{
	(void)state;
	struct arena *a = arena_new();
	struct request rq;
	struct fault f;
	assert_int_equal(parse("{\"pid\":42,\"to\":\"host2:7078\",\"downtime_us\":0,\"max_rounds\":5,\"verify\":false,"
			       "\"tracking\":\"none\",\"move_address\":[\"10.0.0.1/32@eth0\",\"fd00::1\"],"
			       "\"network_lock\":\"nftables\",\"keep_state\":\"/tmp/x\",\"max_time_us\":9}",
			       a, &rq, &f),
			 0);
	const Cpr__Options *o = rq.options;
	assert_true(o->has_downtime_us && o->downtime_us == 0);
	assert_true(o->has_max_rounds && o->max_rounds == 5);
	assert_true(o->has_verify && !o->verify);
	assert_string_equal(o->tracking, "none");
	assert_string_equal(o->network_lock, "nftables");
	assert_string_equal(o->keep_state, "/tmp/x");
	assert_int_equal(o->n_move_address, 2);
	assert_string_equal(o->move_address[0]->address, "10.0.0.1");
	assert_true(o->move_address[0]->has_prefix && o->move_address[0]->prefix == 32);
	assert_string_equal(o->move_address[0]->device, "eth0");
	assert_false(o->move_address[1]->has_prefix);
	assert_null(o->move_address[1]->device);
	arena_free(a);
}

static const struct {
	const char *text, *says;
} wrong[] = {
	{ "", "not JSON" },
	{ "{", "not JSON" },
	{ "[]", "must be a JSON object" },
	{ "7", "must be a JSON object" },
	{ "null", "not JSON" },
	{ "{\"pid\":1,\"to\":\"h\"} x", "not JSON" },
	{ "{\"to\":\"host2\"}", "\"pid\" is missing" },
	{ "{\"pid\":1}", "\"to\" is missing" },
	{ "{\"pid\":\"1\",\"to\":\"h\"}", "\"pid\" must be a number" },
	{ "{\"pid\":0,\"to\":\"h\"}", "\"pid\" must be a number" },
	{ "{\"pid\":-1,\"to\":\"h\"}", "\"pid\" must be a number" },
	{ "{\"pid\":1.5,\"to\":\"h\"}", "\"pid\" must be a number" },
	{ "{\"pid\":99999999999999999999999,\"to\":\"h\"}", "\"pid\" must be a number" },
	{ "{\"pid\":1,\"to\":7}", "\"to\" must be a string" },
	{ "{\"pid\":1,\"to\":\"a b\"}", "is not HOST" },
	{ "{\"pid\":1,\"to\":\"h\\u0000x\"}", "\"to\" must be a string" },
	{ "{\"pid\":1,\"to\":\"h\",\"dowtime_us\":1}", "unknown field \"dowtime_us\"" },
	{ "{\"pid\":1,\"to\":\"h\",\"max_rounds\":1001}", "from 0 to 1000" },
	{ "{\"pid\":1,\"to\":\"h\",\"verify\":1}", "true or false" },
	{ "{\"pid\":1,\"to\":\"h\",\"tracking\":\"magic\"}", "unknown value \"magic\"" },
	{ "{\"pid\":1,\"to\":\"h\",\"network_lock\":\"\"}", "1 to 64" },
	{ "{\"pid\":1,\"to\":\"h\",\"keep_state\":\"rel\"}", "absolute path" },
	{ "{\"pid\":1,\"to\":\"h\",\"move_address\":\"10.0.0.1\"}", "list of at most 64" },
	{ "{\"pid\":1,\"to\":\"h\",\"move_address\":[7]}", "must be a string" },
	{ "{\"pid\":1,\"to\":\"h\",\"move_address\":[\"10.0.0.1/33\"]}", "not an address to move" },
	{ "{\"a\":[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}", "not JSON" },
};

static void test_wrong(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		struct arena *a = arena_new();
		struct request rq;
		struct fault f = { 0 };
		assert_int_equal(parse(wrong[i].text, a, &rq, &f), -1);
		assert_int_equal(f.code, FAULT_USAGE);
		if (!strstr(f.what, wrong[i].says))
			fail_msg("%s: says \"%s\"", wrong[i].text, f.what);
		arena_free(a);
	}
}

static void test_duration(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t us;
	} good[] = { { "30ms", 30000 }, { "2s", 2000000 },  { "500us", 500 },
		     { "0ms", 0 },	{ "010ms", 10000 }, { "3600s", 3600000000 } };
	static const char *const bad[] = {
		"", "30", "ms", "-1ms", "1.5s", "30 ms", "30m", "3601s", "99999999999999999999s", "0x1s"
	};
	struct fault f;
	uint64_t us;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(request_duration(good[i].text, &us, &f), 0);
		assert_int_equal(us, good[i].us);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (request_duration(bad[i], &us, &f) == 0)
			fail_msg("\"%s\" is taken", bad[i]);
}

static void test_address(void **state)
{
	(void)state;
	static const char *const bad[] = { "",
					   "10.0.0",
					   "10.0.0.1/",
					   "10.0.0.1/x",
					   "10.0.0.1@",
					   "10.0.0.1@a/b",
					   "10.0.0.1@0123456789abcdef",
					   "::1/129",
					   "host@eth0",
					   "10.0.0.1/-1" };
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct arena *a = arena_new();
		Cpr__MoveAddress *m;
		struct fault f;
		if (request_move_address(bad[i], a, &m, &f) == 0)
			fail_msg("\"%s\" is taken", bad[i]);
		arena_free(a);
	}
}

static void test_garbage(void **state)
{
	(void)state;
	static const char good[] =
		"{\"pid\":42,\"to\":\"host2\",\"downtime_us\":1,\"verify\":true,\"move_address\":[\"::1/3@e\"]}";
	srandom(11);
	for (int i = 0; i < 20000; i++) {
		char buf[sizeof(good)];
		struct arena *a = arena_new();
		struct request rq;
		struct fault f;
		memcpy(buf, good, sizeof(good));
		for (int k = (int)(random() % 4); k >= 0; k--)
			buf[(size_t)random() % (sizeof(good) - 1)] = (char)random();
		if (request_parse(buf, (size_t)random() % sizeof(buf), a, &rq, &f) < 0)
			assert_int_equal(f.code, FAULT_USAGE);
		arena_free(a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unset),	 cmocka_unit_test(test_all),	 cmocka_unit_test(test_wrong),
		cmocka_unit_test(test_duration), cmocka_unit_test(test_address), cmocka_unit_test(test_garbage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
