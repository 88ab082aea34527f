/* Parsers of procfs texts, with what this and other kernels print. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "procinfo.h"

static const char status[] =
	"Name:\tSigBlk: x\nUmask:\t0027\nState:\tt (tracing stop)\nTgid:\t4242\nNgid:\t0\nPid:\t4243\n"
	"PPid:\t1\nTracerPid:\t7\nUid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\n"
	"FDSize:\t64\nGroups:\t4 24 27 1000 \nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\n"
	"SigPnd:\t0000000000000800\nShdPnd:\t8000000000000000\nSigBlk:\t0000000000010000\n"
	"SigIgn:\t0000000000001000\nSigCgt:\t0000000180004002\nCapInh:\t0000000000000400\n"
	"CapPrm:\t0000000000000c00\nCapEff:\t0000000000000400\nCapBnd:\t000001ffffffffff\n"
	"CapAmb:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	"Speculation_Store_Bypass:\tthread force mitigated\n"
	"SpeculationIndirectBranch:\tconditional enabled\nx86_Thread_features:\tshstk wrss\n";

static void test_status(void **state)
{
	struct procinfo_status s;
	struct fault f = { 0 };
	(void)state;
	assert_int_equal(procinfo_parse_status(status, &s, &f), 0);
	assert_int_equal(s.tgid, 4242);
	assert_int_equal(s.tid, 4243);
	assert_int_equal(s.tracer, 7);
	assert_int_equal(s.state, 't');
	assert_int_equal(s.umask, 027);
	assert_int_equal(s.uid[PROCINFO_FS], 1003);
	assert_int_equal(s.gid[PROCINFO_SAVED], 102);
	assert_int_equal(s.n_groups, 4);
	assert_int_equal(s.groups[3], 1000);
	assert_true(s.sig_pending == 0x800 && s.sig_shared == 0x8000000000000000 && s.sig_blocked == 0x10000);
	assert_true(s.sig_ignored == 0x1000 && s.sig_caught == 0x180004002);
	assert_true(s.caps[PROCINFO_CAP_PRM] == 0xc00 && s.caps[PROCINFO_CAP_BND] == 0x1ffffffffff);
	assert_true(s.no_new_privs && s.shadow_stack && s.seccomp == 2);
	assert_int_equal(s.ssb, 8);
	assert_int_equal(s.spec_ib, 0);
	assert_true(s.untag_mask == UINT64_MAX);
	procinfo_status_done(&s);
}

static void test_status_bad(void **state)
{
	static const char *const bad[] = { "", "Name:\tx\n", "State:\tR\nUid:\t1 2 3\nGid:\t1 2 3 4\nSigBlk:\t0\n",
					   "State:\tR\nUid:\t1 2 3 4\nGid:\t1 2 3 4\n" };
	struct procinfo_status s = { .tid = -5 };
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct fault f = { 0 };
		assert_int_equal(procinfo_parse_status(bad[i], &s, &f), -1);
		assert_int_equal(f.code, FAULT_SYSTEM);
		assert_int_equal(s.tid, -5);
	}
}

static void test_stat(void **state)
{
	struct procinfo_stat s;
	struct fault f = { 0 };
	(void)state;
	assert_int_equal(
		procinfo_parse_stat("42 (a) b) (c) S 1 41 40 34816 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987654321 0", &s,
				    &f),
		0);
	assert_int_equal(s.state, 'S');
	assert_int_equal(s.ppid, 1);
	assert_int_equal(s.pgid, 41);
	assert_int_equal(s.sid, 40);
	assert_int_equal(s.tty, 34816);
	assert_int_equal(s.flags, 4194560);
	assert_int_equal(s.start_time, 987654321);
	assert_int_equal(procinfo_parse_stat("42 (a S 1 2", &s, &f), -1);
	assert_int_equal(procinfo_parse_stat("42 (a) S 1", &s, &f), -1);
}

static void test_timers(void **state)
{
	struct procinfo_timer *t;
	size_t n;
	struct fault f = { 0 };
	(void)state;
	assert_int_equal(
		procinfo_parse_timers("ID: 0\nsignal: 10/0000000000000000\nnotify: signal/pid.1234\nClockID: 0\n"
				      "ID: 7\nsignal: 34/00007ffd0000beef\nnotify: signal/tid.1235\nClockID: -2\n"
				      "ID: 9\nsignal: 0/           (null)\nnotify: none/pid.1234\nClockID: 7\n",
				      &t, &n, &f),
		-1); /* a hashed pointer is not a value */
	assert_int_equal(
		procinfo_parse_timers("ID: 0\nsignal: 10/0000000000000000\nnotify: signal/pid.1234\nClockID: 0\n"
				      "ID: 7\nsignal: 34/00007ffd0000beef\nnotify: signal/tid.1235\nClockID: -2\n"
				      "ID: 9\nsignal: 0/0000000000000000\nnotify: none/pid.1234\nClockID: 7\n",
				      &t, &n, &f),
		0);
	assert_int_equal(n, 3);
	assert_true(t[0].id == 0 && t[0].signo == 10 && t[0].notify == SIGEV_SIGNAL && t[0].tid == 0);
	assert_true(t[1].id == 7 && t[1].tid == 1235 && t[1].clock == -2 && t[1].value == 0x7ffd0000beef);
	assert_true(t[2].notify == SIGEV_NONE && t[2].clock == 7);
	free(t);
	assert_int_equal(procinfo_parse_timers("", &t, &n, &f), 0);
	assert_int_equal(n, 0);
	free(t);
	assert_int_equal(procinfo_parse_timers("ID: 0\nsignal: x\n", &t, &n, &f), -1);
	assert_int_equal(procinfo_parse_timers("ID: 0\nnotify: pigeon/pid.3\n", &t, &n, &f), -1);
}

/* The label column is as wide as procfs makes it, so the values are those of getrlimit(2). */
static void test_limits(void **state)
{
	struct procinfo_limit l[PROCINFO_LIMITS];
	struct fault f = { 0 };
	(void)state;
	struct rlimit odd = { 123, 4567 };
	assert_int_equal(setrlimit(RLIMIT_MSGQUEUE, &odd), 0);
	auto_free char *text = util_read_file(-1, "/proc/self/limits", NULL);
	assert_non_null(text);
	assert_int_equal(procinfo_parse_limits(text, l, &f), 0);
	for (int i = 0; i < PROCINFO_LIMITS; i++) {
		struct rlimit r;
		assert_int_equal(getrlimit(i, &r), 0);
		assert_true(r.rlim_cur == l[i].cur && r.rlim_max == l[i].max);
	}
	assert_int_equal(l[RLIMIT_MSGQUEUE].max, 4567);
	assert_string_equal(procinfo_limit_name(RLIMIT_NOFILE), "open files (RLIMIT_NOFILE)");
	assert_int_equal(procinfo_parse_limits("Max cpu time  soon  later\n", l, &f), -1);
	assert_int_equal(procinfo_parse_limits("", l, &f), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_status), cmocka_unit_test(test_status_bad), cmocka_unit_test(test_stat),
		cmocka_unit_test(test_timers), cmocka_unit_test(test_limits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
