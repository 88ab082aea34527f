/*
 * Worker and helper take turns by one futex word. The kernel clears it, and wakes us, also when the helper dies
 * (CLONE_CHILD_CLEARTID), so that the wait needs no timeout: a timeout would write errno, which both share, as they
 * share all thread-local storage. For the same reason signals are blocked while we wait.
 */
#include "vessel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "maps.h"
#include "task.h"

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define RSEQ_UNREGISTER 1

#define HELPER_STACK	((size_t)1 << 20)
#define SECOND		INT64_C(1000000000)

enum turn { TURN_WORKER, TURN_HELPER }; /* TURN_WORKER is what the kernel writes when the helper dies */

struct vessel {
	struct process *p;
	struct vessel_spec spec;
	pid_t worker;
	pid_t helper; /* 0: gone */
	char *stack;  /* its mapping, guard page first */
	uint32_t turn;
	bool done; /* the helper has given the turn back itself */
	int (*fn)(void *arg, struct fault *f);
	void *arg;
	int ret;
	struct fault *f;
#ifdef __SANITIZE_ADDRESS__
	const void *worker_stack;
	size_t worker_stack_len;
#endif
};

struct process *vessel_process(struct vessel *v)
{
	return v->p;
}

struct remote *vessel_remote(struct vessel *v)
{
	return v->p->remote;
}

/* ---- turns ---- */

static void turn_give(struct vessel *v, enum turn to)
{
	__atomic_store_n(&v->turn, to, __ATOMIC_RELEASE);
	syscall(SYS_futex, &v->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Not FUTEX_PRIVATE: the kernel's own wake at the helper's end is not. */
static void turn_await(struct vessel *v, enum turn mine)
{
	uint32_t now;
	while ((now = __atomic_load_n(&v->turn, __ATOMIC_ACQUIRE)) != (uint32_t)mine)
		syscall(SYS_futex, &v->turn, FUTEX_WAIT, now, NULL, NULL, 0);
}

/* AddressSanitizer keeps one set of stack bounds for both: tell it of every change of hands. */
static void to_helper_stack(struct vessel *v)
{
#ifdef __SANITIZE_ADDRESS__
	void *fake;
	__sanitizer_start_switch_fiber(&fake, v->stack + PAGE_BYTES, HELPER_STACK - PAGE_BYTES);
	__sanitizer_finish_switch_fiber(fake, &v->worker_stack, &v->worker_stack_len);
#else
	(void)v;
#endif
}

static void to_worker_stack(struct vessel *v)
{
#ifdef __SANITIZE_ADDRESS__
	void *fake;
	const void *old;
	size_t len;
	__sanitizer_start_switch_fiber(&fake, v->worker_stack, v->worker_stack_len);
	__sanitizer_finish_switch_fiber(fake, &old, &len);
#else
	(void)v;
#endif
}

/* ---- the helper's side ---- */

/* Descriptors of the worker must not be kept open here: not even for a moment longer than it takes, a lock's netlink
 * socket among them. */
static void close_all_but(int keep)
{
	if (keep > 0)
		syscall(SYS_close_range, 0, keep - 1, 0);
	syscall(SYS_close_range, keep + 1, ~0U, 0);
}

/* The vessel inherits them; CLONE_CLEAR_SIGHAND would keep what is ignored. Raw: libc refuses its own two signals. */
static void default_signals(void)
{
	static const uint64_t none[4]; /* the kernel's struct sigaction */
	for (int sig = 1; sig <= 64; sig++)
		syscall(SYS_rt_sigaction, sig, none, NULL, sizeof(uint64_t));
}

/* With our parent, also when it is dead already and nobody would tell us. Raw calls: the vessel does this, too. */
static void die_with(pid_t parent)
{
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (syscall(SYS_getppid) != parent)
		syscall(SYS_exit_group, 1);
}

static int helper_main(void *arg)
{
	struct vessel *v = arg;
	die_with(v->worker);
	close_all_but(v->spec.cgroup_fd);
	default_signals();
	prctl(PR_SET_NAME, "cpr-helper");
	for (;;) {
		turn_await(v, TURN_HELPER);
		if (!v->fn) {
			syscall(SYS_exit_group, 0);
			__builtin_unreachable();
		}
		v->ret = v->fn(v->arg, v->f);
		v->done = true;
		turn_give(v, TURN_WORKER);
	}
}

int helper_fetch_fd(int fd, int min, struct fault *f)
{
	auto_fd worker = (int)syscall(SYS_pidfd_open, getppid(), 0);
	if (worker < 0)
		return fault_errno(f, FAULT_SYSTEM, "open the worker from the helper");
	auto_fd got = (int)syscall(SYS_pidfd_getfd, worker, fd, 0);
	if (got < 0)
		return fault_errno(f, FAULT_SYSTEM, "fetch descriptor %d of the worker", fd);
	int at = fcntl(got, F_DUPFD_CLOEXEC, min);
	return at >= 0 ? at : fault_errno(f, FAULT_LIMIT, "duplicate a descriptor to %d or above", min);
}

/* ---- birth, in the helper ---- */

static int own_offset(const char *clock, int64_t *ns)
{
	long long s, n;
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/self/timens_offsets", NULL);
	const char *line = text ? strstr(text, clock) : NULL;
	if (!line || sscanf(line + strlen(clock), " %lld %lld", &s, &n) != 2)
		return -1;
	*ns = s * SECOND + n;
	return 0;
}

/* Offsets count from the host's clocks; ours may be shifted already. `wanted` was right when our monotonic clock said
 * at_ns (0: now), which may be a while ago: an offset that is too late would let the process's clock go back. */
static int clock_offset(const char *name, int clockid, uint64_t wanted, uint64_t at_ns, int64_t *s, int64_t *ns)
{
	int64_t own, off;
	if (own_offset(name, &own) < 0)
		return -1;
	uint64_t now = util_clock_ns(clockid), passed = 0;
	if (at_ns)
		passed = (clockid == CLOCK_MONOTONIC ? now : util_monotonic_ns()) - at_ns;
	off = (int64_t)(wanted + passed) - ((int64_t)now - own);
	*s = off / SECOND - (off % SECOND < 0);
	*ns = off - *s * SECOND;
	return 0;
}

static int set_clocks(const struct vessel_spec *spec, struct fault *f)
{
	char text[160];
	int64_t ms, mns, bs, bns;
	if (!spec->monotonic_ns && !spec->boottime_ns)
		return 0;
	if (unshare(CLONE_NEWTIME) < 0) {
		fault_errno(f, FAULT_KERNEL, "make a time namespace");
		return fault_hint(f, "The destination's kernel needs CONFIG_TIME_NS.");
	}
	/* what is shifted is the children's namespace: ours still has the worker's clocks */
	if (clock_offset("monotonic", CLOCK_MONOTONIC, spec->monotonic_ns, spec->at_ns, &ms, &mns) < 0 ||
	    clock_offset("boottime", CLOCK_BOOTTIME, spec->boottime_ns, spec->at_ns, &bs, &bns) < 0)
		return fault_set(f, FAULT_KERNEL, "read /proc/self/timens_offsets");
	snprintf(text, sizeof(text), "monotonic %lld %lld\nboottime %lld %lld\n", (long long)ms, (long long)mns,
		 (long long)bs, (long long)bns);
	if (util_write_file(AT_FDCWD, "/proc/self/timens_offsets", text) < 0)
		return fault_errno(
			f, FAULT_KERNEL,
			"set the clocks of the new process: monotonic %lld s, boottime %lld s from the host's",
			(long long)ms, (long long)bs);
	return 0;
}

/* The vessel until the worker stops it; never goes on from here. Raw calls: this is a copy of a process with other
 * ideas about its stack and threads. */
static _Noreturn void vessel_main(pid_t helper)
{
	die_with(helper); /* until it is traced */
	for (;;)
		syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
}

static pid_t vessel_clone(const struct vessel_spec *spec)
{
	pid_t pid = spec->pid, helper = (pid_t)syscall(SYS_getpid);
	struct clone_args args = {
		.flags = CLONE_FILES | CLONE_FS,
		.exit_signal = SIGCHLD,
		.set_tid = (uint64_t)(uintptr_t)&pid,
		.set_tid_size = 1,
	};
	if (spec->cgroup_fd >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)spec->cgroup_fd;
	}
	long r = syscall(SYS_clone3, &args, sizeof(args));
	if (r == 0)
		vessel_main(helper);
	return (pid_t)r;
}

static int in_group_or_session(const char *name, pid_t id)
{
	char path[64];
	int pgrp, session;
	snprintf(path, sizeof(path), "/proc/%.20s/stat", name);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	const char *s = text ? strrchr(text, ')') : NULL;
	return s && sscanf(s + 1, " %*c %*d %d %d", &pgrp, &session) == 2 && (pgrp == id || session == id);
}

/* The process whose group or session has this number. */
static pid_t member_of(pid_t id)
{
	pid_t found = 0;
	DIR *d = opendir("/proc");
	for (struct dirent *e; d && !found && (e = readdir(d));)
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && in_group_or_session(e->d_name, id))
			found = (pid_t)atoi(e->d_name);
	if (d)
		closedir(d);
	return found;
}

static void name_of(pid_t pid, char *buf, size_t len)
{
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	auto_free char *comm = util_read_file(AT_FDCWD, path, NULL);
	snprintf(buf, len, "%.*s", comm ? (int)strcspn(comm, "\n") : 1, comm ? comm : "?");
}

static int pid_taken(pid_t pid, struct fault *f)
{
	char name[32];
	pid_t member;
	if (kill(pid, 0) == 0 || errno == EPERM) {
		name_of(pid, name, sizeof(name));
		fault_set(f, FAULT_PID_TAKEN, "the number %d is in use here, by process or thread %d (%s)", pid, pid,
			  name);
	} else if ((member = member_of(pid)) > 0) {
		name_of(member, name, sizeof(name));
		fault_set(f, FAULT_PID_TAKEN,
			  "the number %d is in use here, as the group or session of process %d (%s)", pid, member,
			  name);
	} else {
		fault_set(f, FAULT_PID_TAKEN, "the number %d is in use here", pid);
	}
	return fault_hint(f, "End that process, or move to a host where the number is free.");
}

static int clone_refused(const struct vessel_spec *spec, pid_t tid, int err, struct fault *f)
{
	errno = err;
	switch (err) {
	case EEXIST:
		return pid_taken(tid, f);
	case EINVAL:
		fault_set(f, FAULT_LIMIT, "the number %d can't be had on this host", tid);
		return fault_hint(f, "Raise kernel.pid_max there: `sysctl kernel.pid_max=4194304`.");
	case EAGAIN:
	case ENOMEM:
		fault_errno(f, err == EAGAIN ? FAULT_LIMIT : FAULT_NO_MEMORY, "create process or thread %d", tid);
		return fault_hint(f, "The limit of processes, of the host or of the control group, is reached.");
	case EBUSY:
	case EOPNOTSUPP:
		if (spec->cgroup_fd >= 0)
			return fault_errno(f, FAULT_SYSTEM, "create process %d in its control group", tid);
	}
	return fault_errno(f, FAULT_SYSTEM, "create process or thread %d", tid);
}

static int birth(void *arg, struct fault *f)
{
	struct vessel *v = arg;
	if (set_clocks(&v->spec, f) < 0)
		return -1;
	int r = vessel_clone(&v->spec), err = errno;
	close_all_but(-1);
	signal(SIGCHLD, SIG_IGN); /* a vessel that dies is no zombie of ours */
	return r < 0 ? clone_refused(&v->spec, v->spec.pid, err, f) : 0;
}

/* ---- the worker's side ---- */

static int helper_start(struct vessel *v, struct fault *f)
{
	sigset_t all, old;
	v->stack = mmap(NULL, HELPER_STACK, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	if (v->stack == MAP_FAILED) {
		v->stack = NULL;
		return fault_errno(f, FAULT_NO_MEMORY, "allocate the helper's stack");
	}
	if (mprotect(v->stack, PAGE_BYTES, PROT_NONE) < 0)
		return fault_errno(f, FAULT_SYSTEM, "guard the helper's stack");
	/* it inherits the mask: handlers of ours must not run there */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	v->worker = getpid();
	int pid = clone(helper_main, v->stack + HELPER_STACK, CLONE_VM | CLONE_CHILD_CLEARTID, v, NULL, NULL, &v->turn);
	int err = errno;
	sigprocmask(SIG_SETMASK, &old, NULL);
	errno = err;
	if (pid < 0)
		return fault_errno(f, FAULT_SYSTEM, "start the helper");
	v->helper = pid;
	return 0;
}

static void helper_reap(struct vessel *v)
{
	while (v->helper > 0 && waitpid(v->helper, NULL, __WALL) < 0 && errno == EINTR)
		;
	v->helper = 0;
	if (v->stack)
		munmap(v->stack, HELPER_STACK);
	v->stack = NULL;
}

int vessel_run(struct vessel *v, int (*fn)(void *arg, struct fault *f), void *arg, struct fault *f)
{
	struct fault own = { 0 };
	sigset_t all, old;
	if (v->helper <= 0)
		return fault_set(f, FAULT_INTERNAL, "the helper of process %d has gone", v->spec.pid);
	v->fn = fn;
	v->arg = arg;
	v->f = &own;
	v->done = false;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	to_helper_stack(v);
	turn_give(v, TURN_HELPER);
	turn_await(v, TURN_WORKER);
	to_worker_stack(v);
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (!v->done) {
		helper_reap(v);
		return fault_set(f, FAULT_INTERNAL, "the helper of process %d died", v->spec.pid);
	}
	if (v->ret < 0 && f)
		*f = own;
	return v->ret < 0 ? -1 : 0;
}

static void helper_end(struct vessel *v)
{
	if (v->helper <= 0)
		return;
	v->fn = NULL;
	turn_give(v, TURN_HELPER);
	helper_reap(v);
}

int vessel_orphan(struct vessel *v, struct fault *f)
{
	helper_end(v);
	if (!process_alive(v->p))
		return fault_set(f, FAULT_PROCESS_GONE, "the new process %d was killed", v->spec.pid);
	return 0;
}

/* ---- emptying ---- */

static int call_ok(struct vessel *v, const char *what, long nr, const uint64_t args[6], struct fault *f)
{
	long ret;
	if (remote_call(v->p->remote, v->spec.pid, nr, args, &ret, f) < 0)
		return -1;
	return ret < 0 ? fault_neg(f, FAULT_SYSTEM, ret, "%s of the new process %d", what, v->spec.pid) : 0;
}

/* A child of a CLONE_VM process has none; but if it had, the kernel would kill it once the area is unmapped. */
static int drop_rseq(struct vessel *v, struct fault *f)
{
	struct {
		uint64_t pointer;
		uint32_t size, signature, flags, pad;
	} c = { 0 };
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, v->spec.pid, (void *)sizeof(c), &c) < 0 || !c.pointer)
		return 0;
	const uint64_t args[6] = { c.pointer, c.size, RSEQ_UNREGISTER, c.signature };
	return call_ok(v, "unregister rseq", SYS_rseq, args, f);
}

static bool stays(const struct map *m, struct range stub)
{
	return m->kind == MAP_KIND_VDSO || m->kind == MAP_KIND_VVAR || m->kind == MAP_KIND_VSYSCALL ||
	       (m->start >= stub.start && m->end <= stub.end);
}

/* All but stub and vDSO: neighbouring mappings go in one call. */
static int empty(struct vessel *v, struct fault *f)
{
	struct maps maps = { 0 };
	struct range stub = remote_stub_range(v->p->remote);
	if (maps_read(v->p, false, &maps, f) < 0)
		return -1;
	int ret = 0;
	for (size_t i = 0; ret == 0 && i < maps.n;) {
		if (stays(&maps.v[i], stub)) {
			i++;
			continue;
		}
		uint64_t start = maps.v[i].start, end = start;
		for (; i < maps.n && !stays(&maps.v[i], stub); i++)
			end = maps.v[i].end;
		ret = call_ok(v, "empty the memory", SYS_munmap, (const uint64_t[6]){ start, end - start }, f);
	}
	maps_free(&maps);
	return ret;
}

static int shape(struct vessel *v, struct fault *f)
{
	static const uint64_t none[6];
	const uint64_t pdeath[6] = { PR_SET_PDEATHSIG };
	if (process_adopt(&v->p, v->spec.pid, f) < 0)
		return -1;
	v->p->tasks[0].sigmask = 0;
	struct remote *r;
	if (remote_open(v->p, NULL, 0, &r, f) < 0 || drop_rseq(v, f) < 0 || empty(v, f) < 0 ||
	    call_ok(v, "clear the parent-death signal", SYS_prctl, pdeath, f) < 0)
		return -1;
	/* Without a session of its own it would be in the worker's. */
	return call_ok(v, "make a session", SYS_setsid, none, f);
}

int vessel_new(const struct vessel_spec *spec, struct vessel **out, struct fault *f)
{
	struct vessel *v = calloc(1, sizeof(*v));
	if (!v)
		abort();
	v->spec = *spec;
	if (helper_start(v, f) < 0 || vessel_run(v, birth, v, f) < 0) {
		vessel_discard(v);
		return fault_while(f, "creating process %d", spec->pid);
	}
	if (shape(v, f) < 0) {
		if (!v->p)
			kill(spec->pid, SIGKILL); /* born by us, not yet ours by ptrace */
		vessel_discard(v);
		return fault_while(f, "creating process %d", spec->pid);
	}
	*out = v;
	return 0;
}

/* ---- threads ---- */

static int thread_new(struct vessel *v, pid_t tid, struct fault *f)
{
	struct {
		struct clone_args args;
		uint64_t tid;
	} c = { .tid = (uint64_t)tid };
	uint64_t at = remote_scratch(v->p->remote);
	/* the stack is never used: its registers are set before it runs */
	c.args.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	c.args.stack = at;
	c.args.stack_size = PAGE_BYTES;
	c.args.set_tid = at + offsetof(__typeof__(c), tid);
	c.args.set_tid_size = 1;
	long ret;
	if (remote_put(v->p->remote, 0, &c, sizeof(c), f) < 0 ||
	    REMOTE(v->p->remote, v->spec.pid, &ret, f, SYS_clone3, at, sizeof(c.args)) < 0)
		return -1;
	if (ret < 0)
		return clone_refused(&v->spec, tid, (int)-ret, f);
	if (process_add_thread(v->p, tid, f) < 0)
		return -1;
	process_task(v->p, tid)->sigmask = 0;
	return 0;
}

static bool wanted(pid_t tid, const uint32_t *tids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (tids[i] == (uint32_t)tid)
			return true;
	return false;
}

int vessel_threads(struct vessel *v, const uint32_t *tids, size_t n, struct fault *f)
{
	if (n == 0 || tids[0] != (uint32_t)v->spec.pid)
		return fault_set(f, FAULT_INTERNAL, "the first thread of process %d is not its leader", v->spec.pid);
	for (size_t i = v->p->n_tasks; i-- > 1;)
		if (!wanted(v->p->tasks[i].tid, tids, n) && remote_exit(v->p->remote, v->p->tasks[i].tid, f) < 0)
			return fault_while(f, "ending a thread of process %d", v->spec.pid);
	for (size_t i = 1; i < n; i++)
		if (!process_task(v->p, (pid_t)tids[i]) && thread_new(v, (pid_t)tids[i], f) < 0)
			return fault_while(f, "creating thread %u of process %d", tids[i], v->spec.pid);
	return 0;
}

/* ---- the end ---- */

static void vessel_free(struct vessel *v)
{
	helper_end(v);
	helper_reap(v);
	if (v->p)
		remote_forget(v->p->remote);
	process_close(v->p);
	free(v);
}

int vessel_let_go(struct vessel *v, struct fault *f)
{
	helper_end(v);
	if (v->p->remote) {
		fault_set(f, FAULT_INTERNAL, "the stub is still in the new process %d", v->spec.pid);
		vessel_discard(v);
		return -1;
	}
	if (process_set_options(v->p, 0, f) < 0 || process_detach(v->p, f) < 0) {
		fault_while(f, "letting go of the new process %d", v->spec.pid);
		vessel_discard(v);
		return -1;
	}
	v->p->vessel = false;
	vessel_free(v);
	return 0;
}

/* The leader's end is reported after those of all other threads that we trace. */
static void reap(struct process *p)
{
	for (int tries = 0; tries < 50000; tries++) {
		for (size_t i = 1; i < p->n_tasks; i++)
			waitpid(p->tasks[i].tid, NULL, __WALL | WNOHANG);
		int status;
		pid_t r = waitpid(p->pid, &status, __WALL | WNOHANG);
		if ((r < 0 && errno == ECHILD) || (r == p->pid && !WIFSTOPPED(status)))
			return;
		if (r == 0)
			nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
}

void vessel_discard(struct vessel *v)
{
	if (!v)
		return;
	if (v->p) {
		syscall(SYS_pidfd_send_signal, v->p->pidfd, SIGKILL, NULL, 0);
		reap(v->p);
		v->p->stopped = false;
	}
	vessel_free(v);
}
