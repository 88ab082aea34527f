/*
 * One thread under ptrace: seized, waited for, resumed. What process.c, remote.c and vessel.c share.
 *
 * Waiting for one thread of several never blocks for good when the process is killed: a leader's end is reported
 * only after the ends of all other traced threads have been taken, so task_wait takes those, too.
 */
#ifndef ENGINE_TASK_H
#define ENGINE_TASK_H

#include "process.h"

/* What a stop means. */
enum task_stop {
	TASK_STOP_INTERRUPT, /* PTRACE_INTERRUPT, or the first stop of a new thread: inside get_signal() */
	TASK_STOP_GROUP,     /* SIGSTOP and its kin */
	TASK_STOP_SYSCALL,   /* entry or exit, with PTRACE_O_TRACESYSGOOD */
	TASK_STOP_SIGNAL,    /* about to take the signal WSTOPSIG(status): inside get_signal() */
	TASK_STOP_EXEC,
	TASK_STOP_EVENT, /* another PTRACE_EVENT_* */
};
enum task_stop task_stop_kind(int status);

/* Waits for the next stop: t->status, and state TASK_STOPPED or TASK_GONE. */
int task_wait(struct process *p, struct task *t, struct fault *f) MUST_CHECK;
/* PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SINGLESTEP: state TASK_SEIZED. */
int task_resume(struct task *t, int request, int sig, struct fault *f) MUST_CHECK;
/* From any other stop into one inside get_signal(), where the kernel restarts syscalls by the registers, without an
 * instruction of the thread in between. */
int task_settle(struct process *p, struct task *t, struct fault *f) MUST_CHECK;
/* Seized and running -> stopped there. A signal it was about to take is delivered first. TASK_GONE is no fault. */
int task_halt(struct process *p, struct task *t, struct fault *f) MUST_CHECK;
/* A killed thread stays a zombie until its tracer has looked: so do its process and, unaware, the parent. */
void task_reap(struct task *t);
int task_options(struct task *t, unsigned long options, struct fault *f) MUST_CHECK;

#endif
