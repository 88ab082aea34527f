#include "task.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum task_stop task_stop_kind(int status)
{
	int event = status >> 16, sig = WSTOPSIG(status);
	if (event == PTRACE_EVENT_STOP)
		return sig == SIGTRAP ? TASK_STOP_INTERRUPT : TASK_STOP_GROUP;
	if (event == PTRACE_EVENT_EXEC)
		return TASK_STOP_EXEC;
	if (event != 0)
		return TASK_STOP_EVENT;
	return sig == (SIGTRAP | 0x80) ? TASK_STOP_SYSCALL : TASK_STOP_SIGNAL;
}

static void task_take_status(struct task *t, int status)
{
	t->status = status;
	t->state = WIFSTOPPED(status) ? TASK_STOPPED : TASK_GONE;
}

/* Blocks until a child or tracee of this thread has something to tell, and takes it when it is another thread of p.
 * False when it belongs to somebody else's business and would be reported again and again. */
static bool task_wait_any(struct process *p, pid_t tid)
{
	siginfo_t si = { 0 };
	if (waitid(P_ALL, 0, &si, WEXITED | WSTOPPED | WNOWAIT | __WALL | __WNOTHREAD) < 0)
		return errno == EINTR;
	if (si.si_pid == tid)
		return true;
	struct task *other = process_task(p, si.si_pid);
	int status;
	if (!other || waitpid(si.si_pid, &status, __WALL | WNOHANG) != si.si_pid)
		return false;
	task_take_status(other, status);
	other->waiting_status = true;
	return true;
}

int task_wait(struct process *p, struct task *t, struct fault *f)
{
	if (t->waiting_status) {
		t->waiting_status = false;
		return 0;
	}
	bool alone = p->n_tasks <= 1;
	for (;;) {
		int status;
		pid_t r = waitpid(t->tid, &status, __WALL | (alone ? 0 : WNOHANG));
		if (r == t->tid) {
			task_take_status(t, status);
			return 0;
		}
		if (r < 0 && errno == ECHILD) {
			t->state = TASK_GONE;
			t->status = 0;
			return 0;
		}
		if (r < 0 && errno != EINTR)
			return fault_errno(f, FAULT_SYSTEM, "wait for thread %d", t->tid);
		if (r == 0 && !task_wait_any(p, t->tid))
			nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
	}
}

int task_resume(struct task *t, int request, int sig, struct fault *f)
{
	if (ptrace(request, t->tid, NULL, (void *)(uintptr_t)sig) < 0) {
		if (errno == ESRCH)
			return fault_set(f, FAULT_PROCESS_GONE, "thread %d was killed", t->tid);
		return fault_errno(f, FAULT_SYSTEM, "resume thread %d", t->tid);
	}
	t->state = TASK_SEIZED;
	return 0;
}

int task_options(struct task *t, unsigned long options, struct fault *f)
{
	if (t->options == options)
		return 0;
	if (ptrace(PTRACE_SETOPTIONS, t->tid, NULL, (void *)options) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "set ptrace options of thread %d", t->tid);
	t->options = options;
	return 0;
}

void task_reap(struct task *t)
{
	for (int tries = 0; tries < 500; tries++) {
		int status;
		pid_t r = waitpid(t->tid, &status, __WALL | WNOHANG);
		if (r < 0 || (r == t->tid && !WIFSTOPPED(status)))
			break;
		nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	t->state = TASK_GONE;
}

static int task_interrupt(struct task *t, struct fault *f)
{
	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0 && errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "interrupt thread %d", t->tid);
	return 0;
}

/* A stop other than the wanted one: go on to the next. A signal that it was about to take must not get lost: it is
 * delivered (its handler's frame is built, no instruction of it runs), and the interrupt, which any stop uses up, is
 * repeated. */
static int task_pass(struct task *t, struct fault *f)
{
	int sig = task_stop_kind(t->status) == TASK_STOP_SIGNAL ? WSTOPSIG(t->status) : 0;
	if (task_interrupt(t, f) < 0)
		return -1;
	if (ptrace(PTRACE_CONT, t->tid, NULL, (void *)(uintptr_t)sig) < 0 && errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "resume thread %d", t->tid);
	t->state = TASK_SEIZED;
	return 0;
}

int task_halt(struct process *p, struct task *t, struct fault *f)
{
	for (;;) {
		if (task_wait(p, t, f) < 0)
			return -1;
		if (t->state == TASK_GONE)
			return 0;
		switch (task_stop_kind(t->status)) {
		case TASK_STOP_INTERRUPT:
			return 0;
		case TASK_STOP_GROUP:
			fault_set(f, FAULT_UNSUPPORTED, "process %d is stopped by a signal (%s)", p->pid,
				  sigabbrev_np(WSTOPSIG(t->status)) ? sigabbrev_np(WSTOPSIG(t->status)) : "?");
			return fault_hint(f, "Continue it with `kill -CONT %d`, then try again.", p->pid);
		case TASK_STOP_EXEC:
			return fault_set(f, FAULT_PROCESS_GONE, "process %d called exec", p->pid);
		case TASK_STOP_SYSCALL:
		case TASK_STOP_SIGNAL:
		case TASK_STOP_EVENT:
			break;
		}
		if (task_pass(t, f) < 0)
			return -1;
	}
}

int task_settle(struct process *p, struct task *t, struct fault *f)
{
	while (task_stop_kind(t->status) != TASK_STOP_INTERRUPT) {
		/* All signals are blocked here; SIGSTOP can't be. It is sent again when the process is released. */
		if (task_stop_kind(t->status) == TASK_STOP_SIGNAL && WSTOPSIG(t->status) == SIGSTOP)
			t->stop_signal = true;
		/* The interrupt is pending before it is resumed: it does not reach user mode. */
		if (task_interrupt(t, f) < 0 || task_resume(t, PTRACE_CONT, 0, f) < 0 || task_wait(p, t, f) < 0)
			return -1;
		if (t->state == TASK_GONE)
			return fault_set(f, FAULT_PROCESS_GONE, "thread %d of process %d was killed", t->tid, p->pid);
	}
	return 0;
}
