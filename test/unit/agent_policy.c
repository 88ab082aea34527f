/* Default deny, and the sentence that tells how to change it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "policy.h"

static struct conf *conf(const char *text)
{
	struct fault f;
	struct conf *c = conf_new();
	assert_int_equal(conf_text(c, "f", text, strlen(text), &f), 0);
	assert_int_equal(conf_finish(c, &f), 0);
	return c;
}

static void test_peer(void **state)
{
	(void)state;
	struct fault f;
	struct conf *nobody = conf("name = host2\n"),
		    *some = conf("name = host2\nallow-peer = host1\nallow-peer = host3\n");
	assert_int_equal(policy_peer(nobody, "host1", &f), -1);
	assert_int_equal(f.code, FAULT_DENIED);
	assert_non_null(strstr(f.what, "nobody may"));
	assert_non_null(strstr(f.hint, "allow-peer = host1"));
	assert_int_equal(policy_peer(some, "host1", &f), 0);
	assert_int_equal(policy_peer(some, "HOST3", &f), 0);
	static const char *const denied[] = { "host", "host11", "host1.example", "", " host1", "*" };
	for (size_t i = 0; i < ARRAY_LEN(denied); i++) {
		assert_int_equal(policy_peer(some, denied[i], &f), -1);
		assert_int_equal(f.code, FAULT_DENIED);
	}
	assert_int_equal(policy_peer(some, NULL, &f), -1);
	conf_free(nobody);
	conf_free(some);
}

static void test_api(void **state)
{
	(void)state;
	struct fault f;
	struct conf *c = conf("api-uid = 1000\n");
	assert_int_equal(policy_api(c, 0, 500, &f), 0);
	assert_int_equal(policy_api(c, 500, 500, &f), 0);
	assert_int_equal(policy_api(c, 1000, 500, &f), 0);
	assert_int_equal(policy_api(c, 1001, 500, &f), -1);
	assert_int_equal(f.code, FAULT_DENIED);
	assert_non_null(strstr(f.hint, "api-uid = 1001"));
	conf_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_peer), cmocka_unit_test(test_api) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
