/* Stopping and releasing: all threads, no signal lost, and the faults that say what is in the way. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch.h"
#include "process.h"
#include "task.h"
#include "util.h"

static struct fault f;
#define OK(x)                                                                                     \
	do {                                                                                      \
		if ((x) < 0)                                                                      \
			fail_msg("%s: %s: %s, %s", #x, fault_code_name(f.code), f.what, f.trail); \
	} while (0)
#define FAILS(code_, x)                                                              \
	do {                                                                         \
		memset(&f, 0, sizeof(f));                                            \
		assert_int_equal((x), -1);                                           \
		if (f.code != (code_))                                               \
			fail_msg("%s: %s: %s", #x, fault_code_name(f.code), f.what); \
	} while (0)

static struct shared {
	_Atomic uint64_t count[8], signals, ready;
} * sh;

static void *spin(void *arg)
{
	for (_Atomic uint64_t *c = arg;; ++*c)
		;
	return NULL;
}

static void *rest(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void thread(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	if (pthread_create(&t, &attr, fn, arg) == 0)
		pthread_detach(t);
}

static void *ends(void *arg)
{
	return arg;
}

/* Threads that come and go without pause. */
static void *breed(void *arg)
{
	for (;;) {
		thread(ends, NULL);
		sh->count[3]++;
	}
	return arg;
}

static pid_t victim(void (*fn)(void))
{
	memset(sh, 0, sizeof(*sh));
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
		_exit(0);
	}
	while (!sh->ready && waitpid(pid, NULL, WNOHANG) == 0)
		usleep(200);
	assert_true(sh->ready);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void await_count(int i)
{
	uint64_t n = sh->count[i];
	for (int k = 0; k < 4000 && sh->count[i] == n; k++)
		usleep(500);
	assert_true(sh->count[i] > n);
}

static char state_of(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	return text ? strrchr(text, ')')[2] : 'X';
}

static void await_state(pid_t pid, char state)
{
	for (int k = 0; k < 4000 && state_of(pid) != state; k++)
		usleep(500);
	assert_int_equal(state_of(pid), state);
}

static void mixed(void)
{
	thread(spin, (void *)&sh->count[0]);
	thread(spin, (void *)&sh->count[1]);
	thread(rest, NULL);
	sh->ready = 1;
	rest(NULL);
}

static void breeding(void)
{
	thread(breed, NULL);
	thread(breed, NULL);
	sh->ready = 1;
	rest(NULL);
}

static void stops_and_goes_on(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(mixed);
	char word[8], got[8] = { 0 };
	OK(process_open(&p, pid, &f));
	assert_true(process_alive(p));
	for (int i = 0; i < 5; i++) {
		OK(process_stop(p, &f));
		OK(process_stop(p, &f)); /* again is nothing */
		assert_int_equal(p->n_tasks, 4);
		assert_int_equal(p->tasks[0].tid, pid);
		assert_non_null(process_task(p, pid));
		uint64_t a = sh->count[0], b = sh->count[1];
		usleep(2000);
		assert_true(a == sh->count[0] && b == sh->count[1]);
		snprintf(word, sizeof(word), "w%d", i);
		OK(process_write(p, (uint64_t)(uintptr_t)&f, word, sizeof(word), &f));
		OK(process_read(p, (uint64_t)(uintptr_t)&f, got, sizeof(got), &f));
		assert_string_equal(word, got);
		FAILS(FAULT_SYSTEM, process_read(p, 8, got, sizeof(got), &f));
		memset(&f, 0, sizeof(f));
		int fd = process_getfd(p, 2, &f);
		assert_true(fd >= 0);
		close(fd);
		process_pin(p);
		OK(process_release(p, &f));
		await_count(0);
		await_count(1);
	}
	process_close(p);
	end(pid);
}

static void threads_that_come_and_go(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(breeding);
	OK(process_open(&p, pid, &f));
	for (int i = 0; i < 30; i++) {
		OK(process_stop(p, &f));
		uint64_t n = sh->count[3];
		usleep(1000);
		assert_int_equal(n, sh->count[3]);
		OK(process_release(p, &f));
		await_count(3);
	}
	process_close(p);
	end(pid);
}

static void on_signal(int sig)
{
	(void)sig;
	sh->signals++;
}

static void counts_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	for (int sig = SIGRTMIN; sig <= SIGRTMIN + 1; sig++)
		sigaction(sig, &sa, NULL);
	sh->ready = 1;
	for (;;)
		sh->count[0]++;
}

/* Queued signals are counted: each is taken exactly once, wherever in their stream the stops fall. */
static void no_signal_is_lost(void **state)
{
	(void)state;
	enum { N = 5000 };
	struct process *p;
	int status, stops = 0;
	pid_t pid = victim(counts_signals);
	OK(process_open(&p, pid, &f));
	pid_t sender = fork();
	if (sender == 0) {
		for (int i = 0; i < N;)
			if (sigqueue(pid, SIGRTMIN + i % 2, (union sigval){ .sival_int = i }) == 0)
				i++;
			else
				usleep(100); /* the queue is full */
		_exit(0);
	}
	while (waitpid(sender, &status, WNOHANG) == 0) {
		OK(process_stop(p, &f));
		OK(process_release(p, &f));
		stops++;
	}
	print_message("%d stops among %d signals\n", stops, N);
	for (int k = 0; k < 8000 && sh->signals < N; k++)
		usleep(500);
	assert_int_equal(sh->signals, N);
	process_close(p);
	end(pid);
}

/* The rare case made certain: seized, it comes to take a signal before the interrupt reaches it. */
static void a_signal_on_its_way(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(counts_signals);
	OK(process_open(&p, pid, &f));
	assert_int_equal(ptrace(PTRACE_SEIZE, pid, NULL, NULL), 0);
	kill(pid, SIGRTMIN);
	await_state(pid, 't');
	p->tasks = calloc(1, sizeof(*p->tasks));
	p->n_tasks = p->cap_tasks = 1;
	p->tasks[0] = (struct task){ .tid = pid, .state = TASK_SEIZED };
	OK(task_halt(p, &p->tasks[0], &f));
	assert_int_equal(task_stop_kind(p->tasks[0].status), TASK_STOP_INTERRUPT);
	assert_int_equal(sh->signals, 0); /* its handler is next, but has not begun */
	assert_int_equal(ptrace(PTRACE_DETACH, pid, NULL, NULL), 0);
	await_count(0);
	assert_int_equal(sh->signals, 1);
	process_close(p);
	end(pid);
}

static void *execs(void *arg)
{
	while (sh->ready != 2)
		usleep(100);
	execl("/bin/sleep", "sleep", "1000", NULL);
	return arg;
}

static void will_exec(void)
{
	thread(execs, NULL);
	sh->ready = 1;
	rest(NULL);
}

static void exec_and_exit_are_noticed(void **state)
{
	(void)state;
	for (int stopped_before = 0; stopped_before < 2; stopped_before++) {
		struct process *p;
		char path[64], comm[16] = "";
		pid_t pid = victim(will_exec);
		OK(process_open(&p, pid, &f));
		if (stopped_before) {
			OK(process_stop(p, &f));
			OK(process_release(p, &f));
		}
		sh->ready = 2;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		for (int k = 0; k < 4000 && strcmp(comm, "sleep\n") != 0; k++) {
			usleep(500);
			auto_free char *now = util_read_file(AT_FDCWD, path, NULL);
			snprintf(comm, sizeof(comm), "%s", now ? now : "");
		}
		FAILS(FAULT_PROCESS_GONE, process_stop(p, &f));
		assert_true(process_alive(p));
		end(pid);
		assert_false(process_alive(p));
		FAILS(FAULT_PROCESS_GONE, process_stop(p, &f));
		process_close(p);
	}
}

static void stopped_by_a_signal(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(mixed);
	OK(process_open(&p, pid, &f));
	kill(pid, SIGSTOP);
	await_state(pid, 'T');
	FAILS(FAULT_UNSUPPORTED, process_stop(p, &f));
	await_state(pid, 'T'); /* still as we found it */
	kill(pid, SIGCONT);
	OK(process_stop(p, &f));
	OK(process_release(p, &f));
	await_count(0);
	process_close(p);
	end(pid);
}

/* A SIGSTOP that arrives while it is stopped takes effect afterwards. */
static void sigstop_meanwhile(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(mixed);
	OK(process_open(&p, pid, &f));
	OK(process_stop(p, &f));
	kill(pid, SIGSTOP);
	OK(process_release(p, &f));
	await_state(pid, 'T');
	kill(pid, SIGCONT);
	await_count(0);
	process_close(p);
	end(pid);
}

static void traced_by_another(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(mixed);
	int ready[2];
	assert_int_equal(pipe(ready), 0);
	pid_t tracer = fork();
	if (tracer == 0) {
		prctl(PR_SET_NAME, "some-debugger");
		char c = ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0;
		if (write(ready[1], &c, 1) == 1)
			for (;;)
				pause();
		_exit(0);
	}
	char c = 0;
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(c, 1);
	OK(process_open(&p, pid, &f));
	FAILS(FAULT_BUSY, process_stop(p, &f));
	assert_non_null(strstr(f.what, "some-debugger"));
	await_count(0); /* the threads seized before the refusal run, too */
	await_count(1);
	process_close(p);
	end(tracer);
	end(pid);
	close(ready[0]);
	close(ready[1]);
}

static void leader_ends(void)
{
	thread(spin, (void *)&sh->count[0]);
	sh->ready = 1;
	pthread_exit(NULL);
}

static void not_movable(void **state)
{
	(void)state;
	struct process *p;
	FAILS(FAULT_NOT_MOVABLE, process_open(&p, 1, &f));
	FAILS(FAULT_NOT_MOVABLE, process_open(&p, getpid(), &f));
	FAILS(FAULT_NO_PROCESS, process_open(&p, 4194303, &f));
	FAILS(FAULT_USAGE, process_open(&p, 0, &f));
	pid_t pid = victim(leader_ends);
	await_state(pid, 'Z');
	OK(process_open(&p, pid, &f));
	FAILS(FAULT_UNSUPPORTED, process_stop(p, &f));
	await_count(0);
	process_close(p);
	end(pid);
}

static void many(void)
{
	for (int i = 0; i < 255; i++)
		thread(rest, NULL);
	sh->ready = 1;
	rest(NULL);
}

static void many_threads(void **state)
{
	(void)state;
	struct process *p;
	pid_t pid = victim(many);
	OK(process_open(&p, pid, &f));
	for (int i = 0; i < 3; i++) {
		process_prepare(p);
		uint64_t t = util_monotonic_ns();
		OK(process_stop(p, &f));
		print_message("256 threads stopped in %lu us\n", (unsigned long)(util_monotonic_ns() - t) / 1000);
		assert_int_equal(p->n_tasks, 256);
		if (i < 2)
			OK(process_release(p, &f));
	}
	/* killed while stopped: nobody hangs, and no zombie stays behind */
	kill(pid, SIGKILL);
	process_close(p);
	assert_true(waitpid(pid, NULL, 0) == pid || errno == ECHILD);
}

static int setup(void **state)
{
	(void)state;
	alarm(60);
	sh = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sh == MAP_FAILED;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stops_and_goes_on),
		cmocka_unit_test(threads_that_come_and_go),
		cmocka_unit_test(no_signal_is_lost),
		cmocka_unit_test(a_signal_on_its_way),
		cmocka_unit_test(exec_and_exit_are_noticed),
		cmocka_unit_test(stopped_by_a_signal),
		cmocka_unit_test(sigstop_meanwhile),
		cmocka_unit_test(traced_by_another),
		cmocka_unit_test(not_movable),
		cmocka_unit_test(many_threads),
	};
	return cmocka_run_group_tests(tests, setup, NULL);
}
