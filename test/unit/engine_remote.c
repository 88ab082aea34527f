/*
 * Guarded remote calls: what they return, what they leave behind, and that the program is unharmed when the worker is
 * killed at any instant of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch.h"
#include "maps.h"
#include "remote.h"
#include "util.h"

#define KILLS 250

enum role { COMPUTE, READ, EPOLL, SLEEP, FUTEX, POLL, N_ROLES };
static const char *const role_name[] = { "computing", "read", "epoll_wait", "nanosleep", "futex", "poll" };

/* What victim and test share. */
static struct shared {
	_Atomic uint64_t count[N_ROLES], signals;
	_Atomic int bad, eintr_ok, eintr;
	char why[128];
	int pipe[2];
	uint32_t futex;
} * sh;

static struct fault f;
#define OK(x)                                                                                     \
	do {                                                                                      \
		if ((x) < 0)                                                                      \
			fail_msg("%s: %s: %s, %s", #x, fault_code_name(f.code), f.what, f.trail); \
	} while (0)

static void bad(const char *why)
{
	if (!sh->bad)
		snprintf(sh->why, sizeof(sh->why), "%s: %s", why, strerror(errno));
	sh->bad = 1;
}

/* ---- the victim ---- */

static void on_alarm(int sig)
{
	(void)sig;
	sh->signals++;
}

/* Registers, red zone and flags over an endless loop without a call. */
static void *compute(void *arg)
{
	sigset_t none;
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	(void)arg;
	__asm__ volatile("pcmpeqd %%xmm9, %%xmm9\n\tmovq $0x1234567, -64(%%rsp)" ::: "xmm9", "memory");
	for (;;) {
		unsigned m;
		uint64_t z;
		__asm__ volatile("pmovmskb %%xmm9, %0\n\tmovq -64(%%rsp), %1" : "=r"(m), "=r"(z));
		if (m != 0xffff)
			bad("xmm9 changed");
		if (z != 0x1234567)
			bad("the red zone changed");
		sh->count[COMPUTE]++;
	}
	return NULL;
}

static void *reader(void *arg)
{
	(void)arg;
	for (char c;; sh->count[READ]++)
		if (read(sh->pipe[0], &c, 1) != 1)
			bad("read");
	return NULL;
}

static void *epoller(void *arg)
{
	(void)arg;
	int ep = epoll_create1(0);
	struct epoll_event e;
	for (;; sh->count[EPOLL]++)
		if (epoll_wait(ep, &e, 1, 1) != 0) {
			/* killed between the interrupt and the look at the registers: as after SIGSTOP, signal(7) */
			if (errno != EINTR || !sh->eintr_ok)
				bad("epoll_wait");
			sh->eintr++;
		}
	return NULL;
}

static void *sleeper(void *arg)
{
	(void)arg;
	const struct timespec ms = { 0, 1000000 };
	for (;; sh->count[SLEEP]++) {
		uint64_t t = util_monotonic_ns();
		if (syscall(SYS_nanosleep, &ms, NULL) != 0)
			bad("nanosleep");
		if (util_monotonic_ns() - t < 1000000)
			bad("nanosleep came back early");
	}
	return NULL;
}

static void *futexer(void *arg)
{
	(void)arg;
	const struct timespec ms = { 0, 1000000 };
	for (;; sh->count[FUTEX]++)
		if (syscall(SYS_futex, &sh->futex, FUTEX_WAIT, 0, &ms, NULL, 0) == 0 || errno != ETIMEDOUT)
			bad("futex");
	return NULL;
}

static void *poller(void *arg)
{
	(void)arg;
	for (;; sh->count[POLL]++)
		if (syscall(SYS_poll, NULL, 0, 1) != 0)
			bad("poll");
	return NULL;
}

static void victim_all(void)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	signal(SIGALRM, on_alarm);
	static void *(*const roles[])(void *) = { compute, reader, epoller, sleeper, futexer, poller };
	for (size_t i = 0; i < N_ROLES; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, roles[i], NULL) != 0)
			bad("pthread_create");
	}
	setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 700 }, { 0, 700 } }, NULL);
	for (;;)
		pause();
}

static pid_t victim(void (*fn)(void))
{
	memset(sh, 0, sizeof(*sh));
	assert_int_equal(pipe(sh->pipe), 0);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
		_exit(0);
	}
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(sh->pipe[0]);
	close(sh->pipe[1]);
}

/* All roles get on, within two seconds. */
static void gets_on(const char *when)
{
	uint64_t before[N_ROLES];
	for (int i = 0; i < N_ROLES; i++)
		before[i] = sh->count[i];
	for (int i = 0; i < N_ROLES; i++) {
		uint64_t until = util_monotonic_ns() + 2000000000;
		while (sh->count[i] < before[i] + 2 && util_monotonic_ns() < until) {
			if (i == READ && write(sh->pipe[1], "x", 1) != 1)
				fail();
			usleep(200);
		}
		if (sh->count[i] < before[i] + 2)
			fail_msg("%s: %s hangs", when, role_name[i]);
	}
	if (sh->bad)
		fail_msg("%s: %s", when, sh->why);
}

/* ---- helpers ---- */

static char *status_lines(pid_t pid)
{
	static const char *const keys[] = { "SigBlk", "Cpus_allowed:", "TracerPid", "ShdPnd" };
	static char out[16384];
	size_t n = 0;
	char path[64];
	for (pid_t tid = pid; tid < pid + 20; tid++) {
		snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
		auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
		for (size_t i = 0; text && i < ARRAY_LEN(keys) - 1; i++) {
			char *s = strstr(text, keys[i]);
			n += (size_t)snprintf(out + n, sizeof(out) - n, "%d %.*s\n", tid, (int)strcspn(s, "\n"), s);
		}
	}
	return strdup(out);
}

static char *maps_text(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	return util_read_file(AT_FDCWD, path, NULL);
}

/* Lines of `now` that `before` has not, and the other way round. */
static void same_lines(const char *before, const char *now, const char *what)
{
	bool same = true;
	for (int way = 0; way < 2; way++) {
		const char *in = way ? before : now, *other = way ? now : before;
		for (const char *s = in; *s; s += strcspn(s, "\n") + 1) {
			char line[512];
			snprintf(line, sizeof(line), "%.*s\n", (int)strcspn(s, "\n"), s);
			if (strstr(other, line))
				continue;
			print_message("%s: %s %s", what, way ? "gone" : "new", line);
			same = false;
		}
	}
	assert_true(same);
}

/* ---- tests ---- */

static void results_and_no_trace(void **state)
{
	(void)state;
	pid_t pid = victim(victim_all);
	gets_on("at the start");
	auto_free char *maps = maps_text(pid), *status = status_lines(pid);
	struct process *p;
	OK(process_open(&p, pid, &f));
	for (int pinned = 0; pinned < 2; pinned++) {
		struct remote *r;
		long ret;
		OK(process_stop(p, &f));
		assert_int_equal(p->n_tasks, N_ROLES + 1);
		if (pinned)
			process_pin(p);
		OK(remote_open(p, NULL, 0, &r, &f));
		for (size_t i = 0; i < p->n_tasks; i++) {
			OK(REMOTE(r, p->tasks[i].tid, &ret, &f, SYS_gettid));
			assert_int_equal(ret, p->tasks[i].tid);
		}
		OK(REMOTE(r, pid, &ret, &f, SYS_close, 12345));
		assert_int_equal(ret, -EBADF);
		uint64_t mark = 0x1122334455667788, back = 0;
		OK(remote_put(r, 100, &mark, sizeof(mark), &f));
		OK(remote_get(r, 100, &back, sizeof(back), &f));
		assert_int_equal(mark, back);
		assert_int_equal(remote_put(r, REMOTE_SCRATCH - 4, &mark, 8, &f), -1);
		struct remote_entry e[] = { { SYS_getpid, { 0 }, 0, true },
					    { SYS_close, { 12345 }, 0, true },
					    { SYS_getpid, { 0 }, 0, true } };
		size_t done;
		OK(remote_batch(r, pid, e, 3, &done, &f));
		assert_int_equal(done, 2);
		assert_int_equal(e[0].ret, pid);
		OK(remote_close(r, &f));
		OK(process_release(p, &f));
		gets_on("after remote calls");
		auto_free char *now = maps_text(pid), *status_now = status_lines(pid);
		same_lines(maps, now, "maps");
		same_lines(status, status_now, "status");
	}
	process_close(p);
	end(pid);
}

/* The kernel writes CPU numbers there, whenever a thread changes CPUs. */
static void mask_rseq(struct process *p, const struct map *m, uint8_t *content)
{
	struct {
		uint64_t pointer;
		uint32_t size, signature, flags, pad;
	} c = { 0 };
	for (size_t i = 0; i < p->n_tasks; i++)
		if (ptrace(0x420f, p->tasks[i].tid, (void *)sizeof(c), &c) > 0 && c.pointer >= m->start &&
		    c.pointer < m->end)
			memset(content + (c.pointer - m->start), 0, 32);
}

/* Memory is the same to the last bit, below the stacks too, at the moment after remote_close. */
static void memory_is_exact(void **state)
{
	(void)state;
	pid_t pid = victim(victim_all);
	gets_on("at the start");
	struct process *p;
	struct remote *r;
	struct maps maps = { 0 };
	long ret;
	OK(process_open(&p, pid, &f));
	OK(process_stop(p, &f));
	OK(maps_read(p, false, &maps, &f));
	auto_free uint8_t *before = malloc(64 << 20), *after = malloc(64 << 20);
	for (int pass = 0; pass < 2; pass++) {
		uint8_t *at = pass ? after : before, *limit = at + (64 << 20);
		for (size_t i = 0; i < maps.n; i++) {
			size_t len = maps.v[i].end - maps.v[i].start;
			if (!(maps.v[i].prot & PROT_WRITE) || maps.v[i].shared || at + len > limit)
				continue;
			OK(process_read(p, maps.v[i].start, at, len, &f));
			mask_rseq(p, &maps.v[i], at);
			at += len;
		}
		if (pass == 0) {
			OK(remote_open(p, NULL, 0, &r, &f));
			for (size_t i = 0; i < p->n_tasks; i++)
				OK(REMOTE(r, p->tasks[i].tid, &ret, &f, SYS_gettid));
			OK(remote_close(r, &f));
		} else {
			assert_memory_equal(before, after, (size_t)(at - after));
		}
	}
	maps_free(&maps);
	process_close(p);
	gets_on("after the comparison");
	end(pid);
}

static void victim_sandboxed(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { ARRAY_LEN(code), code };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	sh->count[READ] = 1;
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		sh->bad = 1;
	for (;; sh->count[READ]++) {
		char c;
		syscall(SYS_read, sh->pipe[0], &c, 1);
	}
}

static void in_a_sandbox(void **state)
{
	(void)state;
	pid_t pid = victim(victim_sandboxed);
	struct process *p;
	struct remote *r;
	long ret;
	while (sh->count[READ] < 3) {
		if (write(sh->pipe[1], "x", 1) != 1)
			fail();
		usleep(100);
	}
	OK(process_open(&p, pid, &f));
	OK(process_stop(p, &f));
	OK(remote_open(p, NULL, 0, &r, &f));
	OK(REMOTE(r, pid, &ret, &f, SYS_getpid));
	assert_int_equal(ret, pid);
	OK(remote_close(r, &f));
	process_close(p);
	uint64_t n = sh->count[READ];
	while (sh->count[READ] < n + 2) {
		if (write(sh->pipe[1], "x", 1) != 1)
			fail();
		assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
		usleep(100);
	}
	end(pid);
}

/* A worker like any other, for ever: to be killed. */
static _Noreturn void worker(pid_t pid, int pinned)
{
	struct process *p;
	struct remote *r;
	long ret;
	if (process_open(&p, pid, &f) < 0)
		_exit(1);
	for (int round = 0;; round++) {
		if (process_stop(p, &f) < 0)
			break;
		if (pinned)
			process_pin(p);
		if (remote_open(p, NULL, 0, &r, &f) < 0)
			break;
		for (size_t i = 0; i < p->n_tasks; i++)
			if (REMOTE(r, p->tasks[i].tid, &ret, &f, SYS_gettid) < 0 || ret != p->tasks[i].tid)
				break;
		if (remote_close(r, &f) < 0 || process_release(p, &f) < 0)
			break;
	}
	dprintf(2, "worker: %s: %s, %s\n", fault_code_name(f.code), f.what, f.trail);
	_exit(1);
}

static void killed_at_any_instant(void **state)
{
	(void)state;
	pid_t pid = victim(victim_all);
	gets_on("at the start");
	auto_free char *maps = maps_text(pid), *status = status_lines(pid);
	sh->eintr_ok = 1;
	unsigned seed = (unsigned)util_monotonic_ns();
	int most = 4000;
	print_message("seed %u\n", seed);
	for (int i = 0; i < KILLS; i++) {
		char when[64];
		int us = (int)(rand_r(&seed) % (unsigned)most);
		pid_t w = fork();
		if (w == 0)
			worker(pid, i & 1);
		usleep((useconds_t)us);
		kill(w, SIGKILL);
		int st;
		waitpid(w, &st, 0);
		if (!WIFSIGNALED(st))
			fail_msg("the worker ended by itself");
		snprintf(when, sizeof(when), "kill %d after %d us", i, us);
		gets_on(when);
		assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
		/* a thread that was let go in the middle needs the CPU once to come out of it */
		auto_free char *now = status_lines(pid);
		for (int k = 0; k < 1000 && strcmp(status, now) != 0; k++) {
			usleep(1000);
			free(now);
			now = status_lines(pid);
		}
		if (strcmp(status, now) != 0)
			fail_msg("%s: masks or affinities differ:\n%s---\n%s", when, status, now);
	}
	/* the next one clears away what is left */
	struct process *p;
	struct remote *r;
	OK(process_open(&p, pid, &f));
	OK(process_stop(p, &f));
	OK(remote_open(p, NULL, 0, &r, &f));
	OK(remote_close(r, &f));
	process_close(p);
	auto_free char *now = maps_text(pid);
	same_lines(maps, now, "maps");
	assert_true(sh->signals > 100);
	print_message("epoll_wait saw EINTR after %d of %d kills\n", sh->eintr, KILLS);
	end(pid);
}

static int setup(void **state)
{
	(void)state;
	alarm(120);
	sh = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sh == MAP_FAILED;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(results_and_no_trace),
		cmocka_unit_test(memory_is_exact),
		cmocka_unit_test(in_a_sandbox),
		cmocka_unit_test(killed_at_any_instant),
	};
	return cmocka_run_group_tests(tests, setup, NULL);
}
