/*
 * What a stop did to a syscall, and how to make it undone.
 *
 * At the stop the result register is -512..-516 (ERESTART*), or -EINTR from one of the calls that the stop
 * itself interrupted (epoll_wait, timed recv, semop, …: p4b). The kernel restarts by itself what it can, when the
 * syscall number is still there and no handler is about to run. So:
 *	source, let go:        -EINTR becomes -ERESTARTNOHAND: restarted, unless a signal handler runs first.
 *	vessel:                the same, and -ERESTART_RESTARTBLOCK (whose block stayed behind on the source) is
 *	                       re-made: the call is issued again by remote call with the time that is left, interrupted,
 *	                       and the kernel's own restart block is in place.
 */
#ifndef ENGINE_STOP_H
#define ENGINE_STOP_H

#include "arena.h"
#include "image.pb-c.h"
#include "process.h"
#include "remote.h"

enum restart_kind {
	RESTART_NONE,	/* not in a syscall, or it had finished */
	RESTART_KERNEL, /* the kernel does it from the registers alone */
	RESTART_SLEEP,	/* nanosleep, clock_nanosleep with a relative time: deadline needed */
	RESTART_POLL,	/* poll with a timeout */
	RESTART_FUTEX,	/* futex wait with a relative timeout */
};

/* Registers as the program must see them when it goes on in this same process. Changes `regs` only when needed;
 * returns true when it did. process_stop does this. */
bool stop_fix_regs(struct process *p, struct task *t, struct arch_regs *regs);
/* Steps out of an interrupted call, back onto its instruction: for a context that rt_sigreturn takes, which restarts
 * nothing. */
void stop_rewind_regs(struct arch_regs *regs);
/* A thread stopped inside a restartable sequence goes on at its abort handler, as after any preemption: the kernel would
 * do that itself, but not when a remote call has run in between, nor in a new process. */
int stop_fix_rseq(struct process *p, struct task *t, struct fault *f) MUST_CHECK;
/* Before the stop: when did each thread fall asleep (/proc/TID/sched se.exec_start)? Cheap; used for deadlines. */
struct stop_times;
/* For process_stop: what is interrupted goes into each task's `restart`, with a deadline where there is one. A thread that
 * was stopped before shows restart_syscall in place of its call: the number comes from the last stop, or from where in the
 * kernel it sleeps (it is let go for a moment to see). The number is put into task->regs. */
int stop_note(struct process *p, const struct stop_times *times, struct fault *f) MUST_CHECK;
struct stop_times *stop_times_read(pid_t pid);
void stop_times_free(struct stop_times *s);
/* For the image: kind and deadline (CLOCK_MONOTONIC as the process sees it) of an interrupted call, into core. */
int stop_save(struct process *p, struct task *t, const struct stop_times *times, struct arena *a, ThreadCoreEntry *tc,
	      struct fault *f) MUST_CHECK;
/* In a vessel, last thing before its registers are final: makes the restart block; fixes `regs`. */
int stop_restore(struct remote *r, pid_t tid, const ThreadCoreEntry *tc, struct arch_regs *regs,
		 struct fault *f) MUST_CHECK;

#endif
