#include "process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arch.h"
#include "stop.h"
#include "task.h"

#ifndef PTRACE_GETSIGMASK
#define PTRACE_GETSIGMASK 0x420a
#endif

/* A syscall stop can be told from a SIGTRAP, and an exec from the program going on. */
#define OPTIONS_SOURCE ((unsigned long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC))
#define OPTIONS_VESSEL ((unsigned long)(OPTIONS_SOURCE | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE))

/* ---- identity ---- */

struct stat_line {
	char state;
	unsigned long flags;
	uint64_t start_time, start_stack;
	char comm[16];
};

static int stat_parse(const char *text, struct stat_line *out)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')');
	if (!open || !close || close < open)
		return -1;
	snprintf(out->comm, sizeof(out->comm), "%.*s", (int)(close - open - 1), open + 1);
	/* fields 3 (state) to 28 (startstack) */
	if (sscanf(close + 1,
		   " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lu %*u %*d %*u %*u %*u"
		   " %lu",
		   &out->state, &out->flags, &out->start_time, &out->start_stack) != 4)
		return -1;
	return 0;
}

static int stat_read(int procfd, struct stat_line *out)
{
	auto_free char *text = util_read_file(procfd, "stat", NULL);
	return text ? stat_parse(text, out) : -1;
}

static int process_gone(const struct process *p, struct fault *f)
{
	fault_set(f, FAULT_PROCESS_GONE, "process %d (%s) has exited", p->pid, p->comm);
	return -1;
}

static int open_identity(struct process *p, struct fault *f)
{
	char path[32];
	p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
	if (p->pidfd < 0) {
		/* EINVAL, ENOENT: the number of a thread */
		fault_set(f, FAULT_NO_PROCESS, errno == ESRCH ? "there is no process %d" : "%d is not a process",
			  p->pid);
		return fault_hint(f, "`ps -e` lists the processes of this host.");
	}
	snprintf(path, sizeof(path), "/proc/%d", p->pid);
	p->procfd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (p->procfd < 0)
		return fault_errno(f, FAULT_NO_PROCESS, "open %s", path);
	struct stat_line st;
	if (stat_read(p->procfd, &st) < 0)
		return fault_set(f, FAULT_NO_PROCESS, "there is no process %d", p->pid);
	if (p->pid == 1 || p->pid == getpid() || (st.flags & 0x00200000)) { /* PF_KTHREAD */
		fault_set(f, FAULT_NOT_MOVABLE, "process %d (%s) is %s", p->pid, st.comm,
			  p->pid == 1	       ? "the init of this host"
			  : p->pid == getpid() ? "this program itself"
					       : "a kernel thread");
		return fault_hint(f, "It can't be moved.");
	}
	p->start_time = st.start_time;
	p->start_stack = st.start_stack;
	memcpy(p->comm, st.comm, sizeof(p->comm));
	return 0;
}

/* Still the program that it was? /proc/PID/mem stays with the old memory over an exec, and reads as empty then. */
static int check_identity(struct process *p, struct fault *f)
{
	struct stat_line st;
	char c;
	if (stat_read(p->procfd, &st) < 0 || st.state == 'X' || st.start_time != p->start_time)
		return process_gone(p, f);
	if (p->vessel)
		return 0;
	if (st.start_stack != p->start_stack || (p->memfd >= 0 && pread(p->memfd, &c, 1, 0) == 0))
		return fault_set(f, FAULT_PROCESS_GONE, "process %d (%s) called exec", p->pid, p->comm);
	return 0;
}

bool process_alive(const struct process *p)
{
	struct stat_line st;
	if (stat_read(p->procfd, &st) < 0)
		return false;
	return st.state != 'Z' && st.state != 'X' && st.start_time == p->start_time;
}

/* ---- the list of threads ---- */

static struct task *task_add(struct process *p, pid_t tid)
{
	if (util_grow((void **)&p->tasks, &p->cap_tasks, p->n_tasks, sizeof(*p->tasks)) < 0)
		abort();
	struct task *t = &p->tasks[p->n_tasks++];
	*t = (struct task){ .tid = tid, .state = TASK_FREE };
	return t;
}

static void task_clear(struct task *t)
{
	arch_regs_free(t->regs);
	t->regs = NULL;
	t->regs_valid = false;
}

struct task *process_task(struct process *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_tasks; i++)
		if (p->tasks[i].tid == tid)
			return &p->tasks[i];
	return NULL;
}

void process_drop_thread(struct process *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_tasks; i++) {
		if (p->tasks[i].tid != tid)
			continue;
		task_clear(&p->tasks[i]);
		memmove(&p->tasks[i], &p->tasks[i + 1], (p->n_tasks - i - 1) * sizeof(*p->tasks));
		p->n_tasks--;
		return;
	}
}

static void drop_gone(struct process *p)
{
	for (size_t i = p->n_tasks; i-- > 0;)
		if (p->tasks[i].state == TASK_GONE || p->tasks[i].state == TASK_FREE)
			process_drop_thread(p, p->tasks[i].tid);
}

/* ---- open, close ---- */

static struct process *process_alloc(pid_t pid)
{
	struct process *p = calloc(1, sizeof(*p));
	if (!p)
		abort();
	p->pid = pid;
	p->pidfd = p->procfd = p->memfd = -1;
	return p;
}

int process_open(struct process **out, pid_t pid, struct fault *f)
{
	if (pid <= 0)
		return fault_set(f, FAULT_USAGE, "%d is not a PID", pid);
	struct process *p = process_alloc(pid);
	p->options = OPTIONS_SOURCE;
	if (open_identity(p, f) < 0) {
		process_close(p);
		return -1;
	}
	*out = p;
	return 0;
}

void process_close(struct process *p)
{
	if (!p)
		return;
	process_unpin(p);
	if (p->stopped && process_release(p, NULL) < 0)
		p->stopped = false;
	for (size_t i = 0; i < p->n_tasks; i++)
		task_clear(&p->tasks[i]);
	free(p->tasks);
	stop_times_free(p->times);
	util_close(&p->memfd);
	util_close(&p->procfd);
	util_close(&p->pidfd);
	free(p);
}

/* ---- stop ---- */

static pid_t tracer_of(struct process *p, pid_t tid)
{
	char path[48];
	snprintf(path, sizeof(path), "task/%d/status", tid);
	auto_free char *text = util_read_file(p->procfd, path, NULL);
	const char *s = text ? strstr(text, "\nTracerPid:") : NULL;
	return s ? (pid_t)atoi(s + strlen("\nTracerPid:")) : 0;
}

static char state_of(struct process *p, pid_t tid)
{
	char path[48];
	struct stat_line st;
	snprintf(path, sizeof(path), "task/%d/stat", tid);
	auto_free char *text = util_read_file(p->procfd, path, NULL);
	return text && stat_parse(text, &st) == 0 ? st.state : 'X';
}

static int seize_refused(struct process *p, pid_t tid, int err, struct fault *f)
{
	pid_t tracer = tracer_of(p, tid);
	if (tracer > 0 && tracer != getpid()) {
		char path[32];
		snprintf(path, sizeof(path), "/proc/%d/comm", tracer);
		auto_free char *comm = util_read_file(AT_FDCWD, path, NULL);
		fault_set(f, FAULT_BUSY, "process %d (%s) is traced by process %d (%.*s)", p->pid, p->comm, tracer,
			  comm ? (int)strcspn(comm, "\n") : 1, comm ? comm : "?");
		return fault_hint(f, "End the debugger or tracer, then try again.");
	}
	errno = err;
	return fault_errno(f, err == EPERM ? FAULT_DENIED : FAULT_SYSTEM, "seize thread %d of process %d (%s)", tid,
			   p->pid, p->comm);
}

/* 1: seized, 0: it is ending and need not be, -1. */
static int seize(struct process *p, pid_t tid, struct fault *f)
{
	if (ptrace(PTRACE_SEIZE, tid, NULL, (void *)p->options) == 0)
		return 1;
	int err = errno;
	char state = state_of(p, tid);
	if (state != 'Z' && state != 'X')
		return err == ESRCH ? 0 : seize_refused(p, tid, err, f);
	if (tid != p->pid)
		return 0;
	if (!process_alive(p) && p->n_tasks == 0) {
		/* a dead leader of living threads is a zombie, too */
		fault_set(f, FAULT_UNSUPPORTED, "the main thread of process %d (%s) has ended, or all of it", p->pid,
			  p->comm);
		return fault_hint(f, "A process without its main thread can't be moved.");
	}
	return process_gone(p, f);
}

static int seize_thread(struct process *p, pid_t tid, size_t *found, struct fault *f)
{
	struct task *t = process_task(p, tid);
	if (t && t->state != TASK_FREE)
		return 0;
	int r = seize(p, tid, f);
	if (r <= 0)
		return r;
	if (!t)
		t = task_add(p, tid);
	t->state = TASK_SEIZED;
	t->options = p->options;
	t->waiting_status = t->stop_signal = false;
	(*found)++;
	if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 && errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "interrupt thread %d", tid);
	return 0;
}

/* Seizes and interrupts every thread not yet seen. */
static int seize_pass(struct process *p, size_t *found, struct fault *f)
{
	int fd = openat(p->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	if (!d) {
		util_close(&fd);
		return process_gone(p, f);
	}
	int ret = 0;
	for (struct dirent *e; ret == 0 && (e = readdir(d));)
		if (e->d_name[0] != '.')
			ret = seize_thread(p, (pid_t)atoi(e->d_name), found, f);
	closedir(d);
	return ret;
}

/* The registers, and at once what the stop did to them: until then our death would let the program see it. */
static int read_task(struct process *p, struct task *t, struct fault *f)
{
	if (!t->regs)
		t->regs = arch_regs_new();
	if (arch_regs_get(t->tid, t->regs, f) < 0)
		return -1;
	if (stop_fix_regs(p, t, t->regs) && arch_regs_set(t->tid, t->regs, f) < 0)
		return -1;
	t->regs_valid = true;
	if (ptrace(PTRACE_GETSIGMASK, t->tid, (void *)sizeof(t->sigmask), &t->sigmask) < 0)
		return fault_errno(f, FAULT_SYSTEM, "read the signal mask of thread %d", t->tid);
	return 0;
}

static int halt_all(struct process *p, size_t *ended, struct fault *f)
{
	for (size_t i = 0; i < p->n_tasks; i++) {
		struct task *t = &p->tasks[i];
		if (t->state != TASK_SEIZED && !t->waiting_status)
			continue;
		if (task_halt(p, t, f) < 0)
			return -1;
		if (t->state == TASK_GONE)
			(*ended)++;
		else if (read_task(p, t, f) < 0)
			return -1;
	}
	return 0;
}

/* New threads come from threads that still run: when a pass finds none, and none has ended behind its back, all are
 * stopped. */
static int stop_threads(struct process *p, struct fault *f)
{
	for (;;) {
		size_t found = 0, ended = 0;
		if (seize_pass(p, &found, f) < 0 || halt_all(p, &ended, f) < 0)
			return -1;
		if (found == 0 && ended == 0)
			return 0;
	}
}

static int leader_first(struct process *p, struct fault *f)
{
	struct task *t = process_task(p, p->pid);
	if (!t)
		return process_gone(p, f);
	struct task leader = *t;
	memmove(&p->tasks[1], &p->tasks[0], (size_t)(t - p->tasks) * sizeof(*t));
	p->tasks[0] = leader;
	return 0;
}

static int open_mem(struct process *p, struct fault *f)
{
	if (p->memfd >= 0)
		return 0;
	p->memfd = openat(p->procfd, "mem", O_RDWR | O_CLOEXEC);
	if (p->memfd < 0)
		return fault_errno(f, FAULT_SYSTEM, "open the memory of process %d", p->pid);
	return 0;
}

/* Taken back after a failure: as if it had never been touched. */
static void let_go(struct process *p)
{
	for (size_t i = 0; i < p->n_tasks; i++) {
		struct task *t = &p->tasks[i];
		if (t->state == TASK_SEIZED) {
			/* a group stop shows up as a fault of task_halt, and is fine here */
			if (task_halt(p, t, NULL) < 0 && t->state != TASK_STOPPED)
				continue;
		}
		if (t->state == TASK_STOPPED)
			ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
		t->state = TASK_GONE;
	}
	drop_gone(p);
}

static int stop_all(struct process *p, const struct stop_times *times, struct fault *f)
{
	if (check_identity(p, f) < 0 || stop_threads(p, f) < 0)
		return -1;
	drop_gone(p);
	/* again: what is stopped now can't exec any more */
	if (leader_first(p, f) < 0 || check_identity(p, f) < 0 || open_mem(p, f) < 0)
		return -1;
	return stop_note(p, times, f);
}

void process_prepare(struct process *p)
{
	if (p->stopped)
		return;
	stop_times_free(p->times);
	p->times = stop_times_read(p->pid);
}

int process_stop(struct process *p, struct fault *f)
{
	if (p->stopped)
		return 0;
	if (!p->times)
		process_prepare(p);
	int ret = stop_all(p, p->times, f);
	stop_times_free(take_ptr(p->times));
	if (ret < 0) {
		let_go(p);
		return fault_while(f, "stopping process %d (%s)", p->pid, p->comm);
	}
	p->stopped = true;
	return 0;
}

/* ---- release ---- */

static int detach_task(struct process *p, struct task *t, struct fault *f)
{
	if (t->state != TASK_STOPPED || ptrace(PTRACE_DETACH, t->tid, NULL, NULL) == 0)
		return 0;
	if (errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "let go of thread %d of process %d", t->tid, p->pid);
	task_reap(t);
	return fault_set(f, FAULT_PROCESS_GONE, "process %d (%s) was killed", p->pid, p->comm);
}

/* The leader last: when all were killed, its end is reported after theirs. */
static int detach_all(struct process *p, struct fault *f)
{
	int ret = 0;
	for (size_t i = p->n_tasks; i-- > 0;) {
		struct task *t = &p->tasks[i];
		if (detach_task(p, t, ret < 0 ? NULL : f) < 0)
			ret = -1;
		t->state = TASK_FREE; /* stays in the list: what is known of an interrupted call is needed again */
		task_clear(t);
	}
	p->stopped = false;
	return ret;
}

int process_release(struct process *p, struct fault *f)
{
	if (!p->stopped)
		return 0;
	process_unpin(p);
	for (size_t i = 0; i < p->n_tasks; i++)
		if (p->tasks[i].stop_signal)
			syscall(SYS_tgkill, p->pid, p->tasks[i].tid, SIGSTOP);
	return detach_all(p, f);
}

int process_detach(struct process *p, struct fault *f)
{
	process_unpin(p);
	return detach_all(p, f);
}

int process_set_options(struct process *p, unsigned long options, struct fault *f)
{
	for (size_t i = 0; i < p->n_tasks; i++)
		if (p->tasks[i].state == TASK_STOPPED && task_options(&p->tasks[i], options, f) < 0)
			return -1;
	p->options = options;
	return 0;
}

/* ---- memory, descriptors ---- */

int process_read(struct process *p, uint64_t addr, void *buf, size_t len, struct fault *f)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(p->memfd, (char *)buf + done, len - done, (off_t)(addr + done));
		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			return process_gone(p, f);
		return fault_errno(f, FAULT_SYSTEM, "read %zu bytes at 0x%llx of process %d", len - done,
				   (unsigned long long)(addr + done), p->pid);
	}
	return 0;
}

int process_write(struct process *p, uint64_t addr, const void *buf, size_t len, struct fault *f)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(p->memfd, (const char *)buf + done, len - done, (off_t)(addr + done));
		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			return process_gone(p, f);
		return fault_errno(f, FAULT_SYSTEM, "write %zu bytes at 0x%llx of process %d", len - done,
				   (unsigned long long)(addr + done), p->pid);
	}
	return 0;
}

int process_getfd(struct process *p, int fd, struct fault *f)
{
	int dup = (int)syscall(SYS_pidfd_getfd, p->pidfd, fd, 0);
	if (dup < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "duplicate fd %d of process %d (%s)", fd, p->pid, p->comm);
	return dup; /* close-on-exec by itself */
}

/* ---- pinning ---- */

struct process_pin {
	int cpu;
	cpu_set_t own;
	size_t n;
	struct {
		pid_t tid;
		cpu_set_t mask;
	} threads[]; /* a vessel's */
};

/* A CPU that both may use, the present one if possible. -1: none. */
static int common_cpu(const cpu_set_t *a, const cpu_set_t *b)
{
	int here = sched_getcpu();
	if (here >= 0 && here < CPU_SETSIZE && CPU_ISSET(here, a) && CPU_ISSET(here, b))
		return here;
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, a) && CPU_ISSET(i, b))
			return i;
	return -1;
}

static void pin_vessel(struct process *p, struct process_pin *pin, const cpu_set_t *one)
{
	for (size_t i = 0; i < p->n_tasks; i++) {
		pid_t tid = p->tasks[i].tid;
		if (sched_getaffinity(tid, sizeof(cpu_set_t), &pin->threads[pin->n].mask) < 0)
			continue;
		if (sched_setaffinity(tid, sizeof(*one), one) == 0)
			pin->threads[pin->n++].tid = tid;
	}
}

void process_pin(struct process *p)
{
	if (p->pin)
		return;
	struct process_pin *pin = calloc(1, sizeof(*pin) + p->n_tasks * sizeof(pin->threads[0]));
	cpu_set_t theirs, one;
	if (!pin)
		abort();
	if (sched_getaffinity(0, sizeof(pin->own), &pin->own) < 0 ||
	    sched_getaffinity(p->pid, sizeof(theirs), &theirs) < 0 || (pin->cpu = common_cpu(&pin->own, &theirs)) < 0) {
		free(pin);
		return;
	}
	CPU_ZERO(&one);
	CPU_SET(pin->cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) < 0) {
		free(pin);
		return;
	}
	if (p->vessel)
		pin_vessel(p, pin, &one);
	p->pin = pin;
}

void process_unpin(struct process *p)
{
	struct process_pin *pin = p->pin;
	if (!pin)
		return;
	for (size_t i = 0; i < pin->n; i++)
		sched_setaffinity(pin->threads[i].tid, sizeof(cpu_set_t), &pin->threads[i].mask);
	sched_setaffinity(0, sizeof(pin->own), &pin->own);
	free(pin);
	p->pin = NULL;
}

int process_pin_cpu(const struct process *p)
{
	return p->pin ? p->pin->cpu : -1;
}

/* ---- vessels ---- */

static int adopt(struct process *p, struct fault *f)
{
	size_t found = 0;
	if (open_identity(p, f) < 0 || seize_thread(p, p->pid, &found, f) < 0)
		return -1;
	if (p->n_tasks == 0 || task_halt(p, &p->tasks[0], f) < 0 || p->tasks[0].state == TASK_GONE)
		return process_gone(p, f);
	p->stopped = true;
	if (open_mem(p, f) < 0)
		return -1;
	return read_task(p, &p->tasks[0], f);
}

int process_adopt(struct process **out, pid_t pid, struct fault *f)
{
	struct process *p = process_alloc(pid);
	p->vessel = true;
	p->options = OPTIONS_VESSEL;
	if (adopt(p, f) < 0) {
		fault_while(f, "taking over the new process %d", pid);
		process_close(p);
		return -1;
	}
	*out = p;
	return 0;
}

int process_add_thread(struct process *p, pid_t tid, struct fault *f)
{
	struct task *t = task_add(p, tid);
	t->state = TASK_SEIZED;
	t->options = p->options;
	if (task_halt(p, t, f) < 0)
		return -1;
	if (t->state == TASK_GONE)
		return fault_set(f, FAULT_PROCESS_GONE, "the new thread %d ended", tid);
	return read_task(p, t, f);
}
