/* The freezer with real processes, on the hierarchies that this machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "freezer.h"

#define ID "0f8fad5b-d9cb-469f-a165-70867728950e"

static volatile uint64_t *beats; /* a process that runs counts here */

static _Noreturn void victim(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		++*beats;
}

static pid_t start(void)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		victim();
	return pid;
}

static void stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void pause_ms(int ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000L }, NULL);
}

static bool runs(void)
{
	uint64_t was = *beats;
	for (int i = 0; i < 500 && *beats == was; i++)
		pause_ms(2);
	return *beats != was;
}

/* It had every chance to run for 30 ms. */
static bool stands(void)
{
	uint64_t was = *beats;
	pause_ms(30);
	return *beats == was;
}

static char *cgroup_of(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	char *text = util_read_file(AT_FDCWD, path, NULL);
	assert_non_null(text);
	return text;
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

/* v2, v1, as available */
static bool host(enum freezer_kind kind, struct freezer_host *h)
{
	struct fault f;
	assert_int_equal(freezer_host_find(h, &f), 0);
	if (kind == FREEZER_V1)
		h->v2[0] = 0;
	else
		h->v1[0] = 0;
	if (!h->v1[0] && !h->v2[0]) {
		print_message("skipped: freezer %s is not mounted here\n", freezer_kind_name(kind));
		return false;
	}
	return true;
}

static void adopt(enum freezer_kind kind)
{
	struct freezer_host h;
	struct freezer z;
	struct fault f = { 0 };
	if (!host(kind, &h))
		return;
	pid_t pid = start();
	char *before = cgroup_of(pid);
	assert_int_equal(freezer_plan(&h, ID, pid, &z, &f), 0);
	assert_int_equal(z.kind, kind);
	assert_true(z.own);
	assert_false(exists(z.group)); /* planned, not done */
	assert_int_equal(freezer_enter(&z, pid, &f), 0);
	assert_true(freezer_holds(&z, pid) && !freezer_holds(&z, getpid()));
	assert_true(runs());
	uint64_t t = util_monotonic_ns();
	assert_int_equal(freezer_freeze(&z, 1000, &f), 0);
	print_message("%s: frozen after %.3f ms", freezer_kind_name(kind), (double)(util_monotonic_ns() - t) / 1e6);
	assert_true(freezer_frozen(&z) && stands());
	kill(pid, SIGCONT);
	assert_true(stands());
	/* somebody else's migration of it */
	struct freezer other;
	assert_int_equal(freezer_plan(&h, "11111111-d9cb-469f-a165-70867728950e", pid, &other, &f), -1);
	assert_int_equal(f.code, FAULT_BUSY);
	/* the same group, found again from its record */
	freezer_close(&z);
	char group[FREEZER_PATH], origin[FREEZER_PATH];
	strcpy(group, z.group);
	strcpy(origin, z.origin);
	assert_int_equal(freezer_open(freezer_kind_name(kind), true, group, origin, &z, &f), 0);
	assert_true(freezer_frozen(&z));
	uint64_t was = *beats;
	t = util_monotonic_ns();
	assert_int_equal(freezer_thaw(&z, &f), 0);
	while (*beats == was && util_monotonic_ns() - t < 1000000000u)
		continue;
	print_message(", runs %.3f ms after the thaw\n", (double)(util_monotonic_ns() - t) / 1e6);
	assert_true(runs());
	assert_int_equal(freezer_leave(&z, pid, &f), 0);
	freezer_close(&z);
	assert_false(exists(group));
	char *after = cgroup_of(pid);
	assert_string_equal(before, after);
	assert_true(runs());
	free(before);
	free(after);
	stop(pid);
}

static void adopt_v2(void **state)
{
	(void)state;
	adopt(FREEZER_V2);
}

static void adopt_v1(void **state)
{
	(void)state;
	adopt(FREEZER_V1);
}

/* Frozen, removed, and the group with it, although nobody has waited for the process yet. */
static void kill_in(enum freezer_kind kind)
{
	struct freezer_host h;
	struct freezer z;
	struct fault f = { 0 };
	if (!host(kind, &h))
		return;
	pid_t pid = start();
	assert_int_equal(freezer_plan(&h, ID, pid, &z, &f), 0);
	assert_int_equal(freezer_enter(&z, pid, &f), 0);
	assert_int_equal(freezer_freeze(&z, 1000, &f), 0);
	uint64_t was = *beats;
	assert_int_equal(freezer_kill(&z, 1000, &f), 0);
	assert_true(*beats == was);
	if (kind == FREEZER_V1) /* zombies stay listed there */
		waitpid(pid, NULL, 0);
	assert_int_equal(freezer_leave(&z, pid, &f), 0);
	assert_false(exists(z.group));
	freezer_close(&z);
	stop(pid);
}

static void kill_frozen(void **state)
{
	(void)state;
	kill_in(FREEZER_V2);
	kill_in(FREEZER_V1);
}

static pid_t born_in(int dir)
{
	struct clone_args a = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)dir };
	pid_t pid = (pid_t)syscall(SYS_clone3, &a, sizeof(a));
	if (pid == 0)
		victim();
	return pid;
}

static void destination(void **state)
{
	(void)state;
	struct freezer_host h;
	struct freezer z, own;
	struct fault f = { 0 };
	if (!host(FREEZER_V2, &h))
		return;
	assert_int_equal(freezer_make(&h, "../re dis/-server", ID, &z, &f), 0);
	print_message("made %s\n", z.group);
	assert_non_null(strstr(z.group, "/cpr/redis-server-0f8fad5b"));
	freezer_sweep(&h); /* empty, but somebody is about to use it */
	assert_true(exists(z.group));
	int dir = freezer_dup_fd(&z, &f);
	assert_true(dir >= 0);
	pid_t pid = born_in(dir);
	assert_true(pid > 0);
	close(dir);
	assert_true(freezer_holds(&z, pid));
	assert_int_equal(freezer_freeze(&z, 1000, &f), 0);
	assert_true(stands());
	assert_int_equal(freezer_thaw(&z, &f), 0);
	assert_true(runs());
	freezer_close(&z);
	freezer_sweep(&h);
	assert_true(exists(z.group)); /* something lives in it */
	/* It moves on: its group holds nothing else, so it is used as it is. */
	assert_int_equal(freezer_plan(&h, "11111111-d9cb-469f-a165-70867728950e", pid, &own, &f), 0);
	assert_false(own.own);
	assert_string_equal(own.group, z.group);
	assert_int_equal(freezer_enter(&own, pid, &f), 0);
	assert_int_equal(freezer_freeze(&own, 1000, &f), 0);
	assert_true(stands());
	assert_int_equal(freezer_thaw(&own, &f), 0);
	assert_int_equal(freezer_leave(&own, pid, &f), 0);
	assert_true(freezer_holds(&own, pid) && runs());
	freezer_close(&own);
	/* Two of a short name */
	struct freezer second;
	assert_int_equal(freezer_make(&h, "redis-server", ID, &second, &f), 0);
	assert_string_not_equal(second.group, z.group);
	assert_int_equal(freezer_remove(&second, &f), 0);
	freezer_close(&second);
	stop(pid);
	freezer_sweep(&h);
	assert_false(exists(z.group));
}

static void gone(void **state)
{
	(void)state;
	struct freezer_host h;
	struct freezer z;
	struct fault f = { 0 };
	if (!host(FREEZER_V2, &h))
		return;
	pid_t pid = start();
	assert_int_equal(freezer_plan(&h, ID, pid, &z, &f), 0);
	stop(pid);
	assert_int_equal(freezer_enter(&z, pid, &f), -1);
	assert_int_equal(f.code, FAULT_NO_PROCESS);
	assert_int_equal(freezer_leave(&z, pid, &f), 0);
	assert_false(exists(z.group));
	freezer_close(&z);
}

static int group_setup(void **state)
{
	(void)state;
	beats = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return beats == MAP_FAILED ? -1 : 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(adopt_v2),    cmocka_unit_test(adopt_v1), cmocka_unit_test(kill_frozen),
		cmocka_unit_test(destination), cmocka_unit_test(gone),
	};
	alarm(60);
	return cmocka_run_group_tests(tests, group_setup, NULL);
}
