#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "frame.h"

static void test_layout(void **state)
{
	(void)state;
	/* The bytes are the protocol: they may not change with compiler or machine. */
	static const uint8_t expected[FRAME_HEADER] = { 0x04, 0x03, 0x02, 0x00, 0x06, 0x00, 0x00, 0x00,
							0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11 };
	struct frame_header h = { .length = 0x020304, .type = FRAME_PAGES, .arg = 0x1122334455667788 };
	uint8_t bytes[FRAME_HEADER];
	frame_encode(&h, bytes);
	assert_memory_equal(bytes, expected, sizeof(bytes));
}

static void test_round_trip(void **state)
{
	(void)state;
	struct fault f;
	uint8_t bytes[FRAME_HEADER];
	for (unsigned type = 0; type < 40; type++) {
		if (!frame_max(type))
			continue;
		struct frame_header h = { .length = frame_max(type), .type = (uint16_t)type, .arg = type * 77 }, back;
		frame_encode(&h, bytes);
		assert_int_equal(frame_decode(bytes, &back, &f), 0);
		assert_int_equal(back.length, h.length);
		assert_int_equal(back.type, h.type);
		assert_int_equal(back.flags, 0);
		assert_true(back.arg == h.arg);
		assert_string_not_equal(frame_type_name(type), "unknown");
	}
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		struct frame_header h;
		const char *why;
	} bad[] = {
		{ { .type = 0 }, "unknown type 0" },
		{ { .type = FRAME_ABORT + 1 }, "unknown type 16" },
		{ { .type = 65535 }, "unknown type 65535" },
		{ { .type = FRAME_COMMIT, .flags = 1 }, "unknown flags" },
		{ { .type = FRAME_COMMIT, .flags = 0x8000 }, "unknown flags" },
		{ { .type = FRAME_COMMIT, .length = 4097 }, "at most 4096" },
		{ { .type = FRAME_PAGES, .length = FRAME_PAGES_MAX * 4096 + FRAME_SEGMENTS_MAX * 16 + 1 }, "PAGES" },
		{ { .type = FRAME_IMAGE, .length = 0xffffffff }, "4294967295" },
	};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct fault f = { 0 };
		struct frame_header h = { .arg = 99 };
		uint8_t bytes[FRAME_HEADER];
		frame_encode(&bad[i].h, bytes);
		assert_int_equal(frame_decode(bytes, &h, &f), -1);
		assert_int_equal(f.code, FAULT_PROTOCOL);
		assert_non_null(strstr(f.what, bad[i].why));
		assert_int_equal(h.arg, 99); /* untouched */
	}
}

static void test_names(void **state)
{
	(void)state;
	assert_string_equal(frame_type_name(FRAME_HELLO), "HELLO");
	assert_string_equal(frame_type_name(FRAME_ABORT), "ABORT");
	assert_string_equal(frame_type_name(0), "unknown");
	assert_string_equal(frame_type_name(1000000), "unknown");
	assert_int_equal(frame_max(0), 0);
	assert_int_equal(frame_max(1000000), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
