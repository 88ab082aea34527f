/*
 * Interrupted calls: a stop that the program does not notice, on the source; and the same call going on in a new process,
 * for the time that was left.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch.h"
#include "stop.h"
#include "util.h"
#include "vessel.h"

#define MS UINT64_C(1000000)

static struct fault f;
#define OK(x)                                                                                     \
	do {                                                                                      \
		if ((x) < 0)                                                                      \
			fail_msg("%s: %s: %s, %s", #x, fault_code_name(f.code), f.what, f.trail); \
	} while (0)

/* A page at a fixed address that victim and vessel both map: a call, its result, what it works on. */
#define AT 0x500000000000ul
struct block {
	uint8_t code[256];
	uint64_t nr, args[6];
	int64_t ret;
	uint64_t done, signals;
	struct timespec timeout, rest;
	uint32_t futex;
	struct pollfd poll;
	struct epoll_event event;
	fd_set set;
	uint64_t mask;
	char buf[64];
};
static struct block *const b = (struct block *)AT;
static int block_fd, ep, pipe_r, pipe_w, pair[2], timed_listener, sem, msg, lock_fd;

/* rbx: the block. The call, its result, then wait for ever without a call. */
__asm__(".pushsection .rodata\n"
	"blob_begin:\n"
	"	mov	256(%rbx), %rax\n	mov	264(%rbx), %rdi\n	mov	272(%rbx), %rsi\n"
	"	mov	280(%rbx), %rdx\n	mov	288(%rbx), %r10\n	mov	296(%rbx), %r8\n"
	"	mov	304(%rbx), %r9\n	syscall\n		mov	%rax, 312(%rbx)\n"
	"	movq	$1, 320(%rbx)\n"
	"1:	pause\n"
	"	jmp	1b\n"
	"blob_end:\n"
	".popsection\n");
extern const char blob_begin[], blob_end[];

static void on_signal(int sig)
{
	(void)sig;
	b->signals++;
}

/* ---- calls ---- */

enum end { END_TIMEOUT, END_WRITE, END_NEVER };

struct call {
	const char *name;
	void (*set)(void);
	enum end end;	   /* what ends it */
	int64_t ret;	   /* and its result then */
	bool full_timeout; /* made again with its whole timeout: late, by design of the kernel's interface */
	bool moves;	   /* what it waits on can be had in the vessel of this test */
};

static void set(long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
	const uint64_t args[6] = { a0, a1, a2, a3, a4, a5 };
	b->nr = (uint64_t)nr;
	memcpy(b->args, args, sizeof(args));
}
#define U(x) ((uint64_t)(uintptr_t)(x))

static uint64_t in_ms(uint64_t ms)
{
	uint64_t t = util_monotonic_ns() + ms * MS;
	b->timeout = (struct timespec){ (time_t)(t / 1000000000), (long)(t % 1000000000) };
	return U(&b->timeout);
}

static uint64_t for_ms(uint64_t ms)
{
	b->timeout = (struct timespec){ 0, (long)(ms * MS) };
	return U(&b->timeout);
}
#define T      300 /* ms */
#define ASLEEP 180 /* of it, when it is moved */

static void nanosleep_rest(void)
{
	set(SYS_nanosleep, for_ms(T), U(&b->rest), 0, 0, 0, 0);
}
static void nanosleep_null(void)
{
	set(SYS_nanosleep, for_ms(T), 0, 0, 0, 0, 0);
}
static void clock_relative(void)
{
	set(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, for_ms(T), 0, 0, 0);
}
static void clock_absolute(void)
{
	set(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, in_ms(T), 0, 0, 0);
}
static void futex_timeout(void)
{
	set(SYS_futex, U(&b->futex), FUTEX_WAIT, 0, for_ms(T), 0, 0);
}
static void futex_bitset(void)
{
	set(SYS_futex, U(&b->futex), FUTEX_WAIT_BITSET, 0, in_ms(T), 0, ~0u);
}
static void futex_forever(void)
{
	set(SYS_futex, U(&b->futex), FUTEX_WAIT, 0, 0, 0, 0);
}
static void poll_none(void)
{
	set(SYS_poll, 0, 0, T, 0, 0, 0);
}
static void poll_one(int ms)
{
	b->poll = (struct pollfd){ pipe_r, POLLIN, 0 };
	set(SYS_poll, U(&b->poll), 1, (uint64_t)ms, 0, 0, 0);
}
static void poll_timeout(void)
{
	poll_one(T);
}
static void poll_forever(void)
{
	poll_one(-1);
}
static void ppoll_mask(void)
{
	b->poll = (struct pollfd){ pipe_r, POLLIN, 0 };
	set(SYS_ppoll, U(&b->poll), 1, 0, U(&b->mask), 8, 0);
}
static void select_forever(void)
{
	FD_ZERO(&b->set);
	FD_SET(pipe_r, &b->set);
	set(SYS_select, (uint64_t)pipe_r + 1, U(&b->set), 0, 0, 0, 0);
}
static void epoll_forever(void)
{
	set(SYS_epoll_wait, (uint64_t)ep, U(&b->event), 1, ~UINT64_C(0), 0, 0);
}
static void epoll_timeout(void)
{
	set(SYS_epoll_wait, (uint64_t)ep, U(&b->event), 1, T, 0, 0);
}
static void epoll_pwait2_(void)
{
	set(441, (uint64_t)ep, U(&b->event), 1, for_ms(T), 0, 8);
}
static void read_pipe(void)
{
	set(SYS_read, (uint64_t)pipe_r, U(b->buf), 1, 0, 0, 0);
}
static void recv_plain(void)
{
	set(SYS_recvfrom, (uint64_t)pair[0], U(b->buf), 1, 0, 0, 0);
}
static void recv_timed(void)
{
	set(SYS_recvfrom, (uint64_t)pair[1], U(b->buf), 1, 0, 0, 0);
}
static void accept_timed(void)
{
	set(SYS_accept, (uint64_t)timed_listener, 0, 0, 0, 0, 0);
}
static void call_pause(void)
{
	set(SYS_pause, 0, 0, 0, 0, 0, 0);
}
static void sigsuspend_(void)
{
	set(SYS_rt_sigsuspend, U(&b->mask), 8, 0, 0, 0, 0);
}
static void sigtimedwait_(void)
{
	b->mask = 1u << (SIGUSR2 - 1);
	set(SYS_rt_sigtimedwait, U(&b->mask), 0, for_ms(T), 8, 0, 0);
}
static void semop_(void)
{
	struct sembuf s = { 0, -1, 0 };
	memcpy(b->buf, &s, sizeof(s));
	set(SYS_semop, (uint64_t)sem, U(b->buf), 1, 0, 0, 0);
}
static void semtimedop_(void)
{
	semop_();
	b->nr = SYS_semtimedop;
	b->args[3] = for_ms(T);
}
static void msgrcv_(void)
{
	set(SYS_msgrcv, (uint64_t)msg, U(b->buf), 8, 0, 0, 0);
}
static void flock_(void)
{
	set(SYS_flock, (uint64_t)lock_fd, LOCK_EX, 0, 0, 0, 0);
}

static const struct call calls[] = {
	{ "nanosleep, rest", nanosleep_rest, END_TIMEOUT, 0, false, true },
	{ "nanosleep", nanosleep_null, END_TIMEOUT, 0, false, true },
	{ "clock_nanosleep, relative", clock_relative, END_TIMEOUT, 0, false, true },
	{ "clock_nanosleep, absolute", clock_absolute, END_TIMEOUT, 0, false, true },
	{ "futex, timeout", futex_timeout, END_TIMEOUT, -ETIMEDOUT, false, true },
	{ "futex bitset, absolute", futex_bitset, END_TIMEOUT, -ETIMEDOUT, false, true },
	{ "futex", futex_forever, END_NEVER, 0, false, true },
	{ "poll of nothing", poll_none, END_TIMEOUT, 0, false, true },
	{ "poll, timeout", poll_timeout, END_TIMEOUT, 0, false, true },
	{ "poll, timeout, ready", poll_timeout, END_WRITE, 1, false, true },
	{ "poll", poll_forever, END_WRITE, 1, false, true },
	{ "ppoll with a mask", ppoll_mask, END_WRITE, 1, false, true },
	{ "select", select_forever, END_WRITE, 1, false, true },
	{ "epoll_wait", epoll_forever, END_WRITE, 1, false, true },
	{ "epoll_wait, timeout", epoll_timeout, END_TIMEOUT, 0, true, true },
	{ "epoll_pwait2", epoll_pwait2_, END_TIMEOUT, 0, true, true },
	{ "read", read_pipe, END_WRITE, 1, false, true },
	{ "recv", recv_plain, END_NEVER, 0, false, true },
	{ "recv, SO_RCVTIMEO", recv_timed, END_TIMEOUT, -EAGAIN, true, true },
	{ "accept, SO_RCVTIMEO", accept_timed, END_TIMEOUT, -EAGAIN, true, true },
	{ "pause", call_pause, END_NEVER, 0, false, true },
	{ "rt_sigsuspend", sigsuspend_, END_NEVER, 0, false, true },
	{ "rt_sigtimedwait", sigtimedwait_, END_TIMEOUT, -EAGAIN, true, true },
	{ "semop", semop_, END_NEVER, 0, false, true },
	{ "semtimedop", semtimedop_, END_TIMEOUT, -EAGAIN, true, true },
	{ "msgrcv", msgrcv_, END_NEVER, 0, false, true },
	{ "flock", flock_, END_NEVER, 0, false, false },
};

/* ---- victims ---- */

static void reset(const struct call *c)
{
	char junk[16];
	struct pollfd p = { pipe_r, POLLIN, 0 };
	while (poll(&p, 1, 0) > 0 && read(pipe_r, junk, sizeof(junk)) > 0)
		;
	memset((char *)b + sizeof(b->code), 0, sizeof(*b) - sizeof(b->code));
	memcpy(b->code, blob_begin, (size_t)(blob_end - blob_begin));
	c->set();
}

static char state_of(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	return text ? strrchr(text, ')')[2] : 'X';
}

static void await_sleep(pid_t pid)
{
	for (int i = 0; i < 4000 && state_of(pid) != 'S'; i++)
		usleep(250);
	assert_int_equal(state_of(pid), 'S');
}

/* *since: its call began then or later. */
static pid_t start(const struct call *c, uint64_t *since)
{
	reset(c);
	*since = util_monotonic_ns();
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_TIMERSLACK, 1);
		signal(SIGUSR1, on_signal);
		__asm__ volatile("mov %0, %%rbx\n\tjmp *%1" ::"r"(b), "r"(b->code) : "memory");
	}
	await_sleep(pid);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
}

static void await_done(const struct call *c, uint64_t until)
{
	while (!*(volatile uint64_t *)&b->done && util_monotonic_ns() < until)
		usleep(200);
	if (!b->done)
		fail_msg("%s: still waits", c->name);
}

/* It ends as it would have: not early, with the right result. `again`: it was let go then. */
static void ends_well(const struct call *c, pid_t pid, uint64_t since, uint64_t again)
{
	const uint64_t slack = 120 * MS; /* a busy machine; less than ASLEEP */
	if (c->end == END_NEVER) {
		usleep(5000);
		await_sleep(pid);
		assert_int_equal(b->done, 0);
		return;
	}
	if (c->end == END_WRITE) {
		assert_int_equal(b->done, 0);
		assert_int_equal(write(pipe_w, "x", 1), 1);
	}
	uint64_t whole = since + T * MS, late = (c->full_timeout ? again : since) + T * MS;
	late = (late > again ? late : again) + slack;
	await_done(c, util_monotonic_ns() + 2000 * MS);
	uint64_t now = util_monotonic_ns();
	if (b->ret != c->ret)
		fail_msg("%s: returned %ld, not %ld", c->name, (long)b->ret, (long)c->ret);
	if (c->end == END_TIMEOUT && now < whole)
		fail_msg("%s: ended %lu us early", c->name, (unsigned long)(whole - now) / 1000);
	if (c->end == END_TIMEOUT && now > late)
		fail_msg("%s: ended %lu ms late", c->name, (unsigned long)((now - late + slack) / MS));
}

/* ---- on the source ---- */

static void unnoticed_on_the_source(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		const struct call *c = &calls[i];
		struct process *p;
		struct remote *r;
		uint64_t since, again = 0;
		long ret;
		pid_t pid = start(c, &since);
		OK(process_open(&p, pid, &f));
		for (int round = 0; round < 4; round++) {
			again = util_monotonic_ns();
			OK(process_stop(p, &f));
			assert_int_equal(arch_syscall_nr(p->tasks[0].regs), b->nr); /* also the second time */
			if (round & 1) {
				OK(remote_open(p, NULL, 0, &r, &f));
				OK(REMOTE(r, pid, &ret, &f, SYS_getpid));
				assert_int_equal(ret, pid);
				OK(remote_close(r, &f));
			}
			OK(process_release(p, &f));
			usleep(3000);
			if (b->done)
				fail_msg("%s: returned %ld after stop %d", c->name, (long)b->ret, round);
			await_sleep(pid);
		}
		process_close(p);
		ends_well(c, pid, since, again);
		end(pid);
	}
}

/* A handler that is due runs, and the call then shows what it shows without us. */
static void handlers_come_first(void **state)
{
	(void)state;
	static const struct call with[] = { { "epoll_wait", epoll_forever, END_WRITE, -EINTR, false, false },
					    { "nanosleep", nanosleep_null, END_WRITE, -EINTR, false, false },
					    { "pause", call_pause, END_WRITE, -EINTR, false, false } };
	for (size_t i = 0; i < ARRAY_LEN(with); i++) {
		struct process *p;
		uint64_t since;
		pid_t pid = start(&with[i], &since);
		OK(process_open(&p, pid, &f));
		OK(process_stop(p, &f));
		kill(pid, SIGUSR1);
		OK(process_release(p, &f));
		await_done(&with[i], util_monotonic_ns() + 1000 * MS);
		assert_int_equal(b->ret, -EINTR);
		assert_int_equal(b->signals, 1);
		process_close(p);
		end(pid);
	}
}

/* Stopped by somebody else before we came: the registers say restart_syscall only. */
static void after_another_stop(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		const struct call *c = &calls[i];
		struct process *p;
		uint64_t since;
		if (c->end != END_TIMEOUT)
			continue;
		pid_t pid = start(c, &since);
		kill(pid, SIGSTOP);
		while (state_of(pid) != 'T')
			usleep(100);
		kill(pid, SIGCONT);
		for (int k = 0; k < 1000 && !*(volatile uint64_t *)&b->done && state_of(pid) != 'S'; k++)
			usleep(200);
		if (b->done) { /* those that SIGSTOP interrupts */
			assert_int_equal(b->ret, -EINTR);
			end(pid);
			continue;
		}
		OK(process_open(&p, pid, &f));
		OK(process_stop(p, &f));
		if (arch_syscall_nr(p->tasks[0].regs) != (long)b->nr)
			fail_msg("%s: taken for call %ld", c->name, arch_syscall_nr(p->tasks[0].regs));
		process_close(p);
		if (!c->full_timeout)
			ends_well(c, pid, since, since);
		end(pid);
	}
}

/* ---- in a new process ---- */

static int fetch_all(void *arg, struct fault *ff)
{
	(void)arg;
	const int fds[] = { block_fd, ep, pipe_r, pipe_w, pair[0], pair[1], timed_listener, lock_fd };
	for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
		int at = helper_fetch_fd(fds[i], 100, ff);
		if (at < 0 || dup2(at, fds[i]) < 0)
			return -1;
		close(at);
	}
	return 0;
}

static pid_t free_pid(void)
{
	for (pid_t pid = 29000; pid > 20000; pid--)
		if (kill(pid, 0) < 0 && errno == ESRCH)
			return pid;
	return 0;
}

/* Registers and restart of thread pid as the image has them. */
static CoreEntry *save(struct process *p, const struct stop_times *times, struct arena *a)
{
	CoreEntry *core = arena_msg(a, CoreEntry, core_entry);
	core->thread_core = arena_msg(a, ThreadCoreEntry, thread_core_entry);
	OK(stop_save(p, &p->tasks[0], times, a, core->thread_core, &f));
	OK(arch_core_save(p->pid, p->tasks[0].regs, a, core, &f));
	return core;
}

static struct vessel *move_to_vessel(const CoreEntry *core, pid_t pid)
{
	struct vessel_spec spec = { .pid = pid, .cgroup_fd = -1 };
	struct vessel *v;
	long ret;
	uint64_t none = 0;
	spec.monotonic_ns = util_monotonic_ns();
	spec.boottime_ns = util_clock_ns(CLOCK_BOOTTIME);
	OK(vessel_new(&spec, &v, &f));
	OK(vessel_run(v, fetch_all, NULL, &f));
	struct remote *r = vessel_remote(v);
	OK(REMOTE(r, pid, &ret, &f, SYS_mmap, AT, PAGE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC,
		  MAP_SHARED | MAP_FIXED, (uint64_t)block_fd, 0));
	assert_int_equal(ret, AT);
	struct arch_regs *regs = arch_regs_new();
	OK(arch_core_restore(pid, core, regs, &f));
	OK(stop_restore(r, pid, core->thread_core, regs, &f));
	OK(remote_close(r, &f));
	OK(arch_regs_set(pid, regs, &f));
	assert_int_equal(ptrace(PTRACE_SETSIGMASK, pid, (void *)8, &none), 0);
	arch_regs_free(regs);
	return v;
}

static void goes_on_in_a_vessel(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		const struct call *c = &calls[i];
		struct process *p;
		uint64_t since;
		if (!c->moves)
			continue;
		struct arena *a = arena_new();
		pid_t pid = start(c, &since), to = free_pid();
		/* as in a migration: a stop for vetting, then the one that counts */
		OK(process_open(&p, pid, &f));
		usleep(ASLEEP / 2 * 1000);
		OK(process_stop(p, &f));
		OK(process_release(p, &f));
		await_sleep(pid);
		usleep(ASLEEP / 2 * 1000);
		struct stop_times *times = stop_times_read(pid);
		OK(process_stop(p, &f));
		CoreEntry *core = save(p, times, a);
		stop_times_free(times);
		struct timespec rest = b->rest;
		bool was_done = b->done;
		kill(pid, SIGKILL);
		process_close(p);
		waitpid(pid, NULL, 0);
		assert_false(was_done);
		struct vessel *v = move_to_vessel(core, to);
		assert_memory_equal(&rest, &b->rest, sizeof(rest));
		OK(vessel_let_go(v, &f));
		ends_well(c, to, since, util_monotonic_ns());
		kill(to, SIGKILL);
		arena_free(a);
	}
}

static int setup(void **state)
{
	(void)state;
	alarm(120);
	struct timeval tv = { 0, T * 1000 };
	int fds[2], listener = socket(AF_UNIX, SOCK_STREAM, 0);
	sa_family_t family = AF_UNIX;
	block_fd = memfd_create("block", 0);
	if (ftruncate(block_fd, PAGE_BYTES) < 0 || pipe(fds) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		return -1;
	if (mmap((void *)AT, PAGE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED, block_fd, 0) ==
	    MAP_FAILED)
		return -1;
	pipe_r = fds[0];
	pipe_w = fds[1];
	ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	epoll_ctl(ep, EPOLL_CTL_ADD, pipe_r, &e);
	setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (bind(listener, (struct sockaddr *)&family, sizeof(family)) < 0 || listen(listener, 1) < 0)
		return -1;
	setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	timed_listener = listener;
	sem = semget(IPC_PRIVATE, 1, 0600);
	msg = msgget(IPC_PRIVATE, 0600);
	int held = open("/proc/self/exe", O_RDONLY);
	lock_fd = open("/proc/self/exe", O_RDONLY);
	return flock(held, LOCK_EX);
}

static int teardown(void **state)
{
	(void)state;
	semctl(sem, 0, IPC_RMID);
	msgctl(msg, IPC_RMID, NULL);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unnoticed_on_the_source),
		cmocka_unit_test(handlers_come_first),
		cmocka_unit_test(after_another_stop),
		cmocka_unit_test(goes_on_in_a_vessel),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
