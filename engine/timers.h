/*
 * Interval timers (setitimer) and POSIX timers.
 *
 * The process's CLOCK_MONOTONIC and CLOCK_BOOTTIME go on through the move, so a timer on them is put back with the
 * absolute time at which it is due: it is neither late by the pause nor early. Values in the image are what was left at
 * the freeze (task_core_entry.monotonic_ns). Timers that count CPU time have what was left.
 *
 * A periodic timer whose signal is waiting in a queue is not running: the kernel starts it again when the signal is
 * taken, and counts what was missed. It is put back as due at its last expiry, so that the kernel itself queues the
 * signal; the saved one is then left out (timers_refires).
 */
#ifndef ENGINE_TIMERS_H
#define ENGINE_TIMERS_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "procinfo.h"
#include "report.h"
#include "signals.h"

/* base_ns: our CLOCK_MONOTONIC at the moment to which values are normalised. */
int timers_save(struct process *p, struct remote *r, uint64_t base_ns, struct arena *a, TaskCoreEntry *tc,
		struct report *losses, struct fault *f) MUST_CHECK;
/* After the queues of all threads are saved: which timers have their signal waiting. */
void timers_mark_pending(TaskCoreEntry *tc, CoreEntry *const *cores, size_t n);

int timers_restore(struct remote *r, pid_t pid, const TaskCoreEntry *tc, struct fault *f) MUST_CHECK;
/* Is this the signal of a timer that queues it anew? (For signals_restore_queue.) arg: const TaskCoreEntry * */
bool timers_refires(const siginfo_t *info, const void *tc);
/* Which thread's CPU time the kernel does not tell: 0, or the id + 1 of a timer that can't be put back. */
int timers_unknown_owner(const struct procinfo_timer *t, size_t n, size_t n_threads);

#endif
