#include "stop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/rseq.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "arch.h"
#include "task.h"

/* The kernel's own: never seen by programs (include/linux/errno.h). */
#define ERESTARTSYS	      512
#define ERESTARTNOHAND	      514
#define ERESTART_RESTARTBLOCK 516

#define SECOND		      UINT64_C(1000000000)
#define SCRATCH_AT	      (REMOTE_SCRATCH - 64) /* a timespec, at the far end of the scratch */

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

/* ---- calls that show -EINTR because of the stop itself ---- */

/* signal(7), "never restarted": with a timeout on the socket, or always. What they were asked to do is not done when
 * they say EINTR, so making them again is right. */
static const long interrupted_calls[] = {
#ifdef SYS_epoll_wait
	SYS_epoll_wait,
#endif
	SYS_epoll_pwait,    SYS_epoll_pwait2,	 SYS_read,   SYS_readv,	     SYS_write,	       SYS_writev, SYS_recvfrom,
	SYS_recvmsg,	    SYS_recvmmsg,	 SYS_sendto, SYS_sendmsg,    SYS_sendmmsg,     SYS_accept, SYS_accept4,
	SYS_connect,	    SYS_rt_sigtimedwait, SYS_semop,  SYS_semtimedop, SYS_io_getevents,
#ifdef SYS_io_pgetevents
	SYS_io_pgetevents,
#endif
#ifdef SYS_io_uring_enter
	SYS_io_uring_enter,
#endif
};

static bool shows_eintr(const struct arch_regs *regs)
{
	long nr = arch_syscall_nr(regs);
	if (arch_syscall_result(regs) != -EINTR || nr < 0)
		return false;
	for (size_t i = 0; i < ARRAY_LEN(interrupted_calls); i++)
		if (interrupted_calls[i] == nr)
			return true;
	return false;
}

static bool in_restart_block(const struct arch_regs *regs)
{
	return arch_syscall_nr(regs) >= 0 && arch_syscall_result(regs) == -ERESTART_RESTARTBLOCK;
}

bool stop_fix_regs(struct process *p, struct task *t, struct arch_regs *regs)
{
	(void)p;
	(void)t;
	if (!shows_eintr(regs))
		return false;
	/* Restarted, unless a handler runs first: then EINTR, as without us. */
	arch_set_syscall_result(regs, -ERESTARTNOHAND);
	return true;
}

void stop_rewind_regs(struct arch_regs *regs)
{
	long ret = arch_syscall_result(regs);
	if (arch_syscall_nr(regs) < 0)
		return;
	if ((ret <= -ERESTARTSYS && ret >= -ERESTART_RESTARTBLOCK) || shows_eintr(regs))
		arch_rewind_syscall(regs);
}

/* ---- what the interrupted call was ---- */

static enum restart_kind kind_of(const struct arch_regs *regs)
{
	long nr = arch_syscall_nr(regs);
	if (nr < 0)
		return RESTART_NONE;
	if (!in_restart_block(regs))
		return RESTART_KERNEL;
	switch (nr) {
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
		return RESTART_SLEEP;
#ifdef SYS_poll
	case SYS_poll:
		return RESTART_POLL;
#endif
	case SYS_ppoll:
		return RESTART_KERNEL;
	case SYS_futex:
		/* other operations take absolute timeouts: made again as they are */
		return (arch_syscall_arg(regs, 1) & FUTEX_CMD_MASK) == FUTEX_WAIT ? RESTART_FUTEX : RESTART_KERNEL;
	}
	return RESTART_NONE; /* restart_syscall: unknown */
}

/* Where in the arguments the timespec is. */
static int timeout_arg(long nr)
{
	return nr == SYS_nanosleep ? 0 : nr == SYS_clock_nanosleep ? 2 : 3;
}

static uint64_t rest_pointer(const struct arch_regs *regs)
{
	return arch_syscall_arg(regs, timeout_arg(arch_syscall_nr(regs)) + 1);
}

static bool read_timespec(struct process *p, uint64_t at, uint64_t *ns)
{
	int64_t ts[2];
	if (process_read(p, at, ts, sizeof(ts), NULL) < 0 || ts[0] < 0 || ts[1] < 0 || ts[1] >= (int64_t)SECOND)
		return false;
	*ns = (uint64_t)ts[0] > UINT64_MAX / SECOND / 2 ? UINT64_MAX / 2 : (uint64_t)ts[0] * SECOND + (uint64_t)ts[1];
	return true;
}

/* The whole timeout, as the program gave it. */
static bool full_timeout(struct process *p, const struct arch_regs *regs, enum restart_kind kind, uint64_t *ns)
{
	if (kind == RESTART_POLL) {
		*ns = (uint64_t)(uint32_t)arch_syscall_arg(regs, 2) * 1000000;
		return true;
	}
	return read_timespec(p, arch_syscall_arg(regs, timeout_arg(arch_syscall_nr(regs))), ns);
}

/* ---- when a thread fell asleep ---- */

struct sched_line {
	uint64_t exec_start; /* ns of its CPU's scheduler clock */
	uint64_t switches;
};

struct stop_time {
	pid_t tid;
	int cpu;
	struct sched_line sched;
};

struct stop_times {
	size_t n, cap;
	struct stop_time *v;
};

static bool sched_read(int dirfd, const char *path, struct sched_line *out)
{
	auto_free char *text = util_read_file(dirfd, path, NULL);
	const char *start = text ? strstr(text, "se.exec_start") : NULL;
	const char *switches = text ? strstr(text, "nr_switches") : NULL;
	unsigned long long ms, us, n;
	if (!start || !switches || sscanf(start, "se.exec_start : %llu.%6llu", &ms, &us) != 2 ||
	    sscanf(switches, "nr_switches : %llu", &n) != 1)
		return false;
	out->exec_start = ms * 1000000 + us;
	out->switches = n;
	return true;
}

/* Field 39 of stat: the CPU it last ran on. */
static int last_cpu(int dirfd, const char *path)
{
	auto_free char *text = util_read_file(dirfd, path, NULL);
	char *s = text ? strrchr(text, ')') : NULL;
	for (int field = 2; s && field < 39; field++)
		s = strchr(s + 1, ' ');
	return s ? atoi(s + 1) : -1;
}

static void time_add(struct stop_times *s, int taskfd, const char *name)
{
	char path[64];
	struct stop_time t = { .tid = (pid_t)atoi(name) };
	snprintf(path, sizeof(path), "%d/sched", t.tid);
	if (!sched_read(taskfd, path, &t.sched))
		return;
	snprintf(path, sizeof(path), "%d/stat", t.tid);
	t.cpu = last_cpu(taskfd, path);
	if (util_grow((void **)&s->v, &s->cap, s->n, sizeof(*s->v)) < 0)
		abort();
	s->v[s->n++] = t;
}

struct stop_times *stop_times_read(pid_t pid)
{
	struct stop_times *s = calloc(1, sizeof(*s));
	char path[48];
	if (!s)
		abort();
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *d = opendir(path);
	if (!d)
		return s;
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.')
			time_add(s, dirfd(d), e->d_name);
	closedir(d);
	return s;
}

void stop_times_free(struct stop_times *s)
{
	if (!s)
		return;
	free(s->v);
	free(s);
}

/* The scheduler clock of a CPU, read there: each CPU has its own (time stolen or spent in interrupts is left out). What we
 * read is at most as new as the CLOCK_MONOTONIC value beside it, so a sleep counts as shorter than it was, not longer. */
static bool cpu_clock(int cpu, uint64_t *sched, uint64_t *monotonic)
{
	cpu_set_t old, one;
	struct sched_line own;
	if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof(old), &old) < 0)
		return false;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) < 0)
		return false;
	char path[48];
	snprintf(path, sizeof(path), "/proc/self/task/%d/sched", gettid());
	bool ok = sched_read(AT_FDCWD, path, &own);
	*monotonic = util_monotonic_ns();
	sched_setaffinity(0, sizeof(old), &old);
	*sched = own.exec_start;
	return ok;
}

/* Our CLOCK_MONOTONIC at which it fell asleep. Only when the stop was the first thing to wake it: its count of switches
 * is one more then; else it ran after the first look, and slept later than that look says. */
static bool asleep_since(struct process *p, struct task *t, const struct stop_times *times, uint64_t *since)
{
	char path[64];
	struct sched_line now;
	const struct stop_time *then = NULL;
	for (size_t i = 0; times && i < times->n && !then; i++)
		if (times->v[i].tid == t->tid)
			then = &times->v[i];
	snprintf(path, sizeof(path), "task/%d/sched", t->tid);
	if (!then || !sched_read(p->procfd, path, &now) || now.switches != then->sched.switches + 1)
		return false;
	uint64_t sched, monotonic;
	if (!cpu_clock(then->cpu, &sched, &monotonic))
		return false;
	uint64_t slept = sched > then->sched.exec_start ? sched - then->sched.exec_start : 0;
	*since = monotonic > slept ? monotonic - slept : 0;
	return true;
}

/* Deadline of a relative timeout, our CLOCK_MONOTONIC; 0: not known. Late is allowed, early is not. */
static uint64_t deadline_of(struct process *p, struct task *t, enum restart_kind kind, const struct stop_times *times)
{
	uint64_t ns, since;
	if (kind == RESTART_SLEEP && rest_pointer(t->regs) && read_timespec(p, rest_pointer(t->regs), &ns))
		return util_monotonic_ns() + ns; /* the kernel stored the rest at the stop */
	if (kind == RESTART_SLEEP && arch_syscall_nr(t->regs) == SYS_clock_nanosleep) {
		int clock = (int)arch_syscall_arg(t->regs, 0);
		if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME &&
		    clock != CLOCK_TAI)
			return 0; /* CPU time */
	}
	if (!full_timeout(p, t->regs, kind, &ns) || !asleep_since(p, t, times, &since))
		return 0;
	return since + ns;
}

/* ---- at the stop ---- */

static void fingerprint(const struct arch_regs *regs, struct task_restart *out)
{
	out->pc = arch_pc(regs);
	out->sp = arch_sp(regs);
	for (int i = 0; i < 4; i++)
		out->args[i] = arch_syscall_arg(regs, i);
}

static bool same_call(const struct task_restart *known, const struct arch_regs *regs)
{
	struct task_restart now = { 0 };
	fingerprint(regs, &now);
	return known->known && known->pc == now.pc && known->sp == now.sp &&
	       memcmp(known->args, now.args, sizeof(now.args)) == 0;
}

/* By the kernel functions it sleeps in. Sleeps show none: what they are in is part of the scheduler, and left out. */
static long nr_by_stack(const char *stack, const struct arch_regs *regs)
{
#ifdef SYS_poll
	if (strstr(stack, "poll"))
		return SYS_poll;
#endif
	if (strstr(stack, "futex"))
		return SYS_futex;
	/* the first argument is a clock, or a pointer */
	return (int64_t)arch_syscall_arg(regs, 0) < (int64_t)PAGE_BYTES ? SYS_clock_nanosleep : SYS_nanosleep;
}

/* -1: it is not asleep in restart_syscall, or the kernel does not say. */
static long nr_asleep(struct process *p, struct task *t)
{
	char path[64], in_restart[16];
	snprintf(in_restart, sizeof(in_restart), "%d ", (int)SYS_restart_syscall);
	snprintf(path, sizeof(path), "task/%d/syscall", t->tid);
	auto_free char *call = util_read_file(p->procfd, path, NULL);
	if (!call || strncmp(call, in_restart, strlen(in_restart)) != 0)
		return -1;
	snprintf(path, sizeof(path), "task/%d/stack", t->tid);
	auto_free char *stack = util_read_file(p->procfd, path, NULL);
	return stack && *stack ? nr_by_stack(stack, t->regs) : -1;
}

/* Stopped in restart_syscall and never seen before (a debugger or SIGSTOP was there first): where does it sleep? */
static int identify(struct process *p, struct task *t, struct fault *f)
{
	long nr = -1;
	for (int tries = 0; tries < 20 && nr < 0; tries++) {
		if (task_resume(t, PTRACE_CONT, 0, f) < 0)
			return -1;
		usleep(100);
		nr = nr_asleep(p, t);
		if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0 || task_halt(p, t, f) < 0 ||
		    t->state == TASK_GONE || arch_regs_get(t->tid, t->regs, f) < 0)
			return fault_set(f, FAULT_PROCESS_GONE, "thread %d ended", t->tid);
		if (!in_restart_block(t->regs) || arch_syscall_nr(t->regs) != SYS_restart_syscall)
			return 0;
	}
	if (nr >= 0)
		arch_set_syscall_nr(t->regs, nr);
	return 0;
}

static int note_task(struct process *p, struct task *t, const struct stop_times *times, struct fault *f)
{
	bool again = in_restart_block(t->regs) && arch_syscall_nr(t->regs) == SYS_restart_syscall;
	if (again && same_call(&t->restart, t->regs)) {
		arch_set_syscall_nr(t->regs, t->restart.nr);
		return 0;
	}
	if (again && identify(p, t, f) < 0)
		return -1;
	t->restart.known = false;
	if (!in_restart_block(t->regs))
		return 0;
	fingerprint(t->regs, &t->restart);
	t->restart.nr = arch_syscall_nr(t->regs);
	t->restart.known = t->restart.nr != SYS_restart_syscall;
	t->restart.deadline_ns = 0;
	enum restart_kind kind = kind_of(t->regs);
	/* Restarted before, by others: the timeout began before this sleep did. Only a stored rest is exact. */
	if (kind == RESTART_SLEEP || kind == RESTART_POLL || kind == RESTART_FUTEX)
		t->restart.deadline_ns = deadline_of(p, t, kind, times);
	return 0;
}

int stop_note(struct process *p, const struct stop_times *times, struct fault *f)
{
	for (size_t i = 0; i < p->n_tasks; i++)
		if (note_task(p, &p->tasks[i], times, f) < 0 || stop_fix_rseq(p, &p->tasks[i], f) < 0)
			return -1;
	return 0;
}

struct rseq_configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, pad;
};

int stop_fix_rseq(struct process *p, struct task *t, struct fault *f)
{
	struct rseq_configuration c = { 0 };
	struct rseq_cs cs;
	uint64_t at = 0;
	if (arch_syscall_nr(t->regs) >= 0) /* no calls inside a sequence */
		return 0;
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, (void *)sizeof(c), &c) < 0 || !c.pointer)
		return 0;
	if (process_read(p, c.pointer + offsetof(struct rseq, rseq_cs), &at, sizeof(at), f) < 0)
		return fault_while(f, "reading the rseq area of thread %d", t->tid);
	if (!at || process_read(p, at, &cs, sizeof(cs), NULL) < 0)
		return 0;
	if (arch_pc(t->regs) - cs.start_ip < cs.post_commit_offset)
		arch_set_pc(t->regs, cs.abort_ip);
	return 0;
}

/* ---- image ---- */

/* How far a process's CLOCK_MONOTONIC is ahead of the host's: of its time namespace. */
static int64_t monotonic_offset(int dirfd, const char *path)
{
	long long s, ns;
	auto_free char *text = util_read_file(dirfd, path, NULL);
	const char *line = text ? strstr(text, "monotonic") : NULL;
	if (!line || sscanf(line, "monotonic %lld %lld", &s, &ns) != 2)
		return 0;
	return s * (int64_t)SECOND + ns;
}

int stop_save(struct process *p, struct task *t, const struct stop_times *times, struct arena *a, ThreadCoreEntry *tc,
	      struct fault *f)
{
	(void)f;
	enum restart_kind kind = kind_of(t->regs);
	RestartEntry *e = arena_msg(a, RestartEntry, restart_entry);
	e->kind = kind;
	tc->restart = e;
	if (kind != RESTART_SLEEP && kind != RESTART_POLL && kind != RESTART_FUTEX)
		return 0;
	uint64_t deadline = t->restart.deadline_ns;
	if (!deadline && times)
		deadline = deadline_of(p, t, kind, times);
	if (!deadline)
		return 0;
	e->has_deadline_ns = 1;
	e->deadline_ns = deadline + (uint64_t)(monotonic_offset(p->procfd, "timens_offsets") -
					       monotonic_offset(AT_FDCWD, "/proc/self/timens_offsets"));
	return 0;
}

/* ---- in the vessel ---- */

static int vessel_clock(struct remote *r, pid_t tid, uint64_t *ns, struct fault *f)
{
	long ret;
	if (REMOTE(r, tid, &ret, f, SYS_clock_gettime, CLOCK_MONOTONIC, remote_scratch(r) + SCRATCH_AT) < 0)
		return -1;
	if (ret < 0 || !read_timespec(remote_process(r), remote_scratch(r) + SCRATCH_AT, ns))
		return fault_neg(f, FAULT_SYSTEM, ret, "read the clock of the new process");
	return 0;
}

/* What is left of the timeout; the whole when the deadline is not known. */
static int time_left(struct remote *r, pid_t tid, const RestartEntry *e, const struct arch_regs *regs, uint64_t *ns,
		     struct fault *f)
{
	uint64_t now;
	if (!e->has_deadline_ns) {
		if (!full_timeout(remote_process(r), regs, e->kind, ns))
			return fault_set(f, FAULT_IMAGE, "thread %d sleeps without a timeout that can be read", tid);
		return 0;
	}
	if (vessel_clock(r, tid, &now, f) < 0)
		return -1;
	*ns = e->deadline_ns > now ? e->deadline_ns - now : 0;
	return 0;
}

/* The call again, with the time that is left in place of its timeout. */
static int shortened_call(struct remote *r, const struct arch_regs *regs, enum restart_kind kind, uint64_t left,
			  uint64_t args[6], struct fault *f)
{
	for (int i = 0; i < 6; i++)
		args[i] = arch_syscall_arg(regs, i);
	if (kind == RESTART_POLL) {
		uint64_t ms = (left + 999999) / 1000000;
		args[2] = ms < INT32_MAX ? ms : INT32_MAX;
		return 0;
	}
	const int64_t ts[2] = { (int64_t)(left / SECOND), (int64_t)(left % SECOND) };
	args[timeout_arg(arch_syscall_nr(regs))] = remote_scratch(r) + SCRATCH_AT;
	return remote_put(r, SCRATCH_AT, ts, sizeof(ts), f);
}

/* The kernel stores the rest of a sleep at an interruption: that is ours, not the program's. */
static int keeping_rest(struct remote *r, pid_t tid, const struct arch_regs *regs, const uint64_t args[6], long *ret,
			struct fault *f)
{
	uint8_t rest[16];
	uint64_t at = kind_of(regs) == RESTART_SLEEP ? rest_pointer(regs) : 0;
	bool kept = at && process_read(remote_process(r), at, rest, sizeof(rest), NULL) == 0;
	if (remote_interrupted_call(r, tid, arch_syscall_nr(regs), args, ret, f) < 0)
		return -1;
	return kept ? process_write(remote_process(r), at, rest, sizeof(rest), f) : 0;
}

static int remake(struct remote *r, pid_t tid, const RestartEntry *e, struct arch_regs *regs, struct fault *f)
{
	uint64_t left, args[6];
	long ret;
	if (time_left(r, tid, e, regs, &left, f) < 0 || shortened_call(r, regs, e->kind, left, args, f) < 0 ||
	    keeping_rest(r, tid, regs, args, &ret, f) < 0)
		return -1;
	arch_set_syscall_result(regs, ret);
	if (ret > -ERESTARTSYS || ret < -ERESTART_RESTARTBLOCK)
		arch_forget_syscall(regs); /* it has a result: its time was up, or what it waits for is there */
	return 0;
}

int stop_restore(struct remote *r, pid_t tid, const ThreadCoreEntry *tc, struct arch_regs *regs, struct fault *f)
{
	if (shows_eintr(regs)) {
		arch_set_syscall_result(regs, -ERESTARTNOHAND);
		return 0;
	}
	if (!in_restart_block(regs))
		return 0;
	enum restart_kind kind = kind_of(regs);
	if (kind == RESTART_KERNEL) {
		arch_set_syscall_result(regs, -ERESTARTNOHAND);
		return 0;
	}
	if (kind != RESTART_NONE) {
		RestartEntry whole = RESTART_ENTRY__INIT;
		const RestartEntry *e = tc && tc->restart ? tc->restart : &whole;
		whole.kind = kind;
		if (e->kind != kind)
			e = &whole;
		if (remake(r, tid, e, regs, f) < 0)
			return fault_while(f, "putting thread %d back to sleep", tid);
		return 0;
	}
	/* Stopped before by others, and nobody could tell in which call: it sees an interruption. */
	arch_set_syscall_result(regs, -EINTR);
	arch_forget_syscall(regs);
	return 0;
}
