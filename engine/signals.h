/*
 * Signals: what each does (sigaction), and which are waiting with what siginfo. Masks go with the registers.
 *
 *	source       signals_ask, calls_run, signals_save      process-wide
 *	             signals_save_thread                       per thread: its own queue
 *	destination  signals_restore_actions, then timers, then signals_restore_thread for each thread: a signal in a
 *	             queue must find its final action (one that is ignored by default is dropped when it is set)
 */
#ifndef ENGINE_SIGNALS_H
#define ENGINE_SIGNALS_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "procinfo.h"

#define SIGNALS_MAX	 64
#define SIGNALS_BIT(sig) (1ull << ((sig)-1))

/* struct sigaction as rt_sigaction(2) takes it, not libc's */
struct signals_action {
	uint64_t handler, flags, restorer, mask;
};

struct signals_asked {
	struct signals_action actions[SIGNALS_MAX + 1]; /* by number; not asked: the default */
};

void signals_ask(struct calls *c, const struct procinfo_status *leader, struct signals_asked *out);
/* Actions and the shared queue into tc. */
int signals_save(struct process *p, const struct procinfo_status *leader, const struct signals_asked *asked,
		 struct arena *a, TaskCoreEntry *tc, struct fault *f) MUST_CHECK;
int signals_save_thread(const struct task *t, const struct procinfo_status *s, struct arena *a, ThreadCoreEntry *th,
			struct fault *f) MUST_CHECK;
/* Does a queue hold the signal of POSIX timer `id`? */
bool signals_of_timer(const SignalQueueEntry *q, uint32_t id);

void signals_restore_actions(struct calls *c, const TaskCoreEntry *tc);
/* Into the queue of the thread that c is of; `shared`: of the process, c being the leader's. Signals for which `skip`
 * says so are left out. May run c. */
int signals_restore_queue(struct calls *c, pid_t pid, pid_t tid, const SignalQueueEntry *q, bool shared,
			  bool (*skip)(const siginfo_t *info, const void *arg), const void *arg,
			  struct fault *f) MUST_CHECK;
/* SIGSTOP and SIGTRAP in a queue can't be put there while the vessel is still to run calls: signals_restore_queue leaves
 * them out, the caller sends them last. */
uint64_t signals_late(const SignalQueueEntry *q);

#endif
