#include "timers.h"

#include <errno.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#ifndef PR_TIMER_CREATE_RESTORE_IDS
#define PR_TIMER_CREATE_RESTORE_IDS 77 /* Linux 6.15 */
#endif

#define NS_PER_SEC 1000000000ull
/* What procfs shows for CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID: "of the maker". */
#define CLOCK_OF_PROCESS (-6)
#define CLOCK_OF_THREAD	 (-2)
/* Before 6.15 ids are reached by making and deleting timers: bounded. */
#define CREATE_TRIES_MAX 100000

struct kernel_timespec {
	int64_t tv_sec, tv_nsec;
};

struct kernel_itimerspec {
	struct kernel_timespec interval, value;
};

struct kernel_itimerval {
	int64_t interval_sec, interval_usec, value_sec, value_usec;
};

static struct kernel_timespec to_timespec(uint64_t ns)
{
	return (struct kernel_timespec){ (int64_t)(ns / NS_PER_SEC), (int64_t)(ns % NS_PER_SEC) };
}

static uint64_t to_ns(uint64_t sec, uint64_t nsec)
{
	return sec > UINT64_MAX / NS_PER_SEC - 1 ? UINT64_MAX / 2 : sec * NS_PER_SEC + nsec;
}

/* Time goes on for these while the process is moved. */
static bool runs_on(int clock)
{
	return clock >= 0 && clock != CLOCK_PROCESS_CPUTIME_ID && clock != CLOCK_THREAD_CPUTIME_ID;
}

/* On which a time namespace keeps the process's own time. */
static bool is_virtualised(int clock)
{
	return clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME || clock == CLOCK_BOOTTIME_ALARM;
}

int timers_unknown_owner(const struct procinfo_timer *t, size_t n, size_t n_threads)
{
	for (size_t i = 0; i < n; i++)
		if (t[i].clock == CLOCK_OF_THREAD && !t[i].tid && n_threads > 1)
			return t[i].id + 1;
	return 0;
}

/* ---- save ---- */

static int call_ok(struct remote *r, pid_t tid, const char *what, long nr, uint64_t a0, uint64_t a1, struct fault *f)
{
	long ret;
	if (REMOTE(r, tid, &ret, f, nr, a0, a1) < 0)
		return -1;
	if (ret < 0)
		return fault_neg(f, FAULT_SYSTEM, ret, "%s in thread %d", what, tid);
	return (int)ret;
}

static int save_itimers(struct process *p, struct remote *r, uint64_t base_ns, struct arena *a, TaskTimersEntry *tt,
			struct fault *f)
{
	ItimerEntry **out[] = { &tt->real, &tt->virt, &tt->prof };
	struct kernel_itimerval v[3];
	uint64_t at = 0;
	for (uint64_t which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
		if (call_ok(r, p->pid, "getitimer", SYS_getitimer, which, remote_scratch(r) + which * sizeof(v[0]), f) <
		    0)
			return -1;
		if (which == ITIMER_REAL)
			at = util_monotonic_ns();
	}
	if (remote_get(r, 0, v, sizeof(v), f) < 0)
		return -1;
	for (size_t which = 0; which < ARRAY_LEN(out); which++) {
		ItimerEntry *e = arena_msg(a, ItimerEntry, itimer_entry);
		uint64_t left = (uint64_t)v[which].value_sec * 1000000 + (uint64_t)v[which].value_usec;
		if (left && which == ITIMER_REAL)
			left += (at - base_ns) / 1000;
		e->isec = (uint64_t)v[which].interval_sec;
		e->iusec = (uint64_t)v[which].interval_usec;
		e->vsec = left / 1000000;
		e->vusec = left % 1000000;
		*out[which] = e;
	}
	return 0;
}

static int save_posix(struct process *p, struct remote *r, uint64_t base_ns, const struct procinfo_timer *t,
		      PosixTimerEntry *e, struct fault *f)
{
	struct kernel_itimerspec v;
	/* A clock of "the maker" is read by anyone; owner and notified thread go by id. */
	if (call_ok(r, p->pid, "timer_gettime", SYS_timer_gettime, (uint64_t)t->id, remote_scratch(r), f) < 0)
		return -1;
	uint64_t at = util_monotonic_ns();
	int overrun = call_ok(r, p->pid, "timer_getoverrun", SYS_timer_getoverrun, (uint64_t)t->id, 0, f);
	if (overrun < 0 || remote_get(r, 0, &v, sizeof(v), f) < 0)
		return -1;
	uint64_t left = to_ns((uint64_t)v.value.tv_sec, (uint64_t)v.value.tv_nsec);
	if (left && runs_on(t->clock))
		left += at - base_ns;
	e->it_id = (uint32_t)t->id;
	e->clock_id = (uint32_t)t->clock;
	e->si_signo = (uint32_t)t->signo;
	e->it_sigev_notify = (uint32_t)(t->tid ? SIGEV_THREAD_ID : t->notify);
	e->sival_ptr = t->value;
	e->overrun = (uint32_t)overrun;
	e->isec = (uint64_t)v.interval.tv_sec;
	e->insec = (uint64_t)v.interval.tv_nsec;
	e->vsec = left / NS_PER_SEC;
	e->vnsec = left % NS_PER_SEC;
	e->has_remaining_ns = true;
	e->remaining_ns = (int64_t)left;
	e->has_notify_thread_id = t->tid != 0;
	e->notify_thread_id = t->tid;
	return 0;
}

int timers_save(struct process *p, struct remote *r, uint64_t base_ns, struct arena *a, TaskCoreEntry *tc,
		struct report *losses, struct fault *f)
{
	auto_free struct procinfo_timer *list = NULL;
	size_t n;
	tc->timers = arena_msg(a, TaskTimersEntry, task_timers_entry);
	if (save_itimers(p, r, base_ns, a, tc->timers, f) < 0 || procinfo_timers(p, &list, &n, f) < 0)
		return fault_while(f, "saving timers");
	for (size_t i = 0; i < n; i++) {
		PosixTimerEntry *e = arena_msg(a, PosixTimerEntry, posix_timer_entry);
		if (save_posix(p, r, base_ns, &list[i], e, f) < 0)
			return fault_while(f, "saving timer %d", list[i].id);
		arena_push(a, tc->timers->n_posix, tc->timers->posix, e);
		if (!e->overrun)
			continue;
		char object[48];
		snprintf(object, sizeof(object), "timer %d", list[i].id);
		report_add(losses, REPORT_NOTE, FAULT_UNSUPPORTED, object, NULL,
			   "timer_getoverrun(2) gives 0 until its next signal");
	}
	return 0;
}

static bool signal_waits(const TaskCoreEntry *tc, CoreEntry *const *cores, size_t n, uint32_t id)
{
	if (signals_of_timer(tc->signals_s, id))
		return true;
	for (size_t i = 0; i < n; i++)
		if (signals_of_timer(cores[i]->thread_core->signals_p, id))
			return true;
	return false;
}

void timers_mark_pending(TaskCoreEntry *tc, CoreEntry *const *cores, size_t n)
{
	for (size_t i = 0; i < tc->timers->n_posix; i++) {
		PosixTimerEntry *e = tc->timers->posix[i];
		uint64_t interval = to_ns(e->isec, e->insec);
		if (interval && e->remaining_ns && is_virtualised((int)e->clock_id) &&
		    signal_waits(tc, cores, n, e->it_id))
			e->remaining_ns -= (int64_t)interval;
	}
}

/* ---- restore ---- */

static bool refires(const PosixTimerEntry *e)
{
	return e->has_remaining_ns && e->remaining_ns != (int64_t)to_ns(e->vsec, e->vnsec);
}

bool timers_refires(const siginfo_t *info, const void *arg)
{
	const TaskTimersEntry *tt = ((const TaskCoreEntry *)arg)->timers;
	if (info->si_code != SI_TIMER)
		return false;
	for (size_t i = 0; tt && i < tt->n_posix; i++)
		if (tt->posix[i]->it_id == (uint32_t)info->si_timerid)
			return refires(tt->posix[i]);
	return false;
}

/* The process's clocks now, read inside its time namespace. */
static int clock_in(struct remote *r, pid_t pid, int clock, uint64_t *ns, struct fault *f)
{
	struct kernel_timespec ts;
	if (call_ok(r, pid, "clock_gettime", SYS_clock_gettime, (uint64_t)clock, remote_scratch(r), f) < 0 ||
	    remote_get(r, 0, &ts, sizeof(ts), f) < 0)
		return -1;
	*ns = to_ns((uint64_t)ts.tv_sec, (uint64_t)ts.tv_nsec);
	return 0;
}

static void restore_itimer(struct calls *c, uint64_t which, const ItimerEntry *e, uint64_t passed_ns)
{
	uint64_t left = e ? e->vsec * 1000000 + e->vusec : 0;
	if (!left)
		return;
	if (which == ITIMER_REAL)
		left = left > passed_ns / 1000 ? left - passed_ns / 1000 : 1;
	struct kernel_itimerval v = { (int64_t)e->isec, (int64_t)e->iusec, (int64_t)(left / 1000000),
				      (int64_t)(left % 1000000) };
	CALL(c, "setitimer", NULL, SYS_setitimer, which, calls_in(c, &v, sizeof(v)), 0);
}

/* TIMER_ABSTIME where the clock is the process's own, else what is left. */
static bool due(const PosixTimerEntry *e, const TaskCoreEntry *tc, uint64_t passed_ns, struct kernel_itimerspec *v)
{
	int clock = (int)e->clock_id;
	int64_t left = e->has_remaining_ns ? e->remaining_ns : (int64_t)to_ns(e->vsec, e->vnsec);
	*v = (struct kernel_itimerspec){ { (int64_t)e->isec, (int64_t)e->insec }, { 0, 0 } };
	if (!left && !refires(e)) {
		v->interval = (struct kernel_timespec){ 0, 0 };
		return false;
	}
	if (is_virtualised(clock)) {
		int64_t at = (int64_t)(clock == CLOCK_MONOTONIC ? tc->monotonic_ns : tc->boottime_ns) + left;
		v->value = to_timespec(at > 0 ? (uint64_t)at : 1);
		return true;
	}
	if (runs_on(clock))
		left = left > (int64_t)passed_ns ? left - (int64_t)passed_ns : 1;
	v->value = to_timespec((uint64_t)left);
	return false;
}

static pid_t owner_of(const PosixTimerEntry *e, pid_t pid)
{
	return (int)e->clock_id == CLOCK_OF_THREAD && e->has_notify_thread_id ? e->notify_thread_id : pid;
}

/* Since 6.15 timer_create(2) takes the id that is wanted, when asked to. */
static int create_as(struct remote *r, pid_t owner, const PosixTimerEntry *e, bool wanted_ids, int *id, struct fault *f)
{
	struct sigevent ev = { 0 };
	int clock = (int)e->clock_id;
	ev.sigev_value.sival_ptr = (void *)(uintptr_t)e->sival_ptr;
	ev.sigev_signo = (int)e->si_signo;
	ev.sigev_notify = (int)e->it_sigev_notify;
	if (e->has_notify_thread_id)
		ev._sigev_un._tid = e->notify_thread_id;
	if (clock == CLOCK_OF_PROCESS)
		clock = CLOCK_PROCESS_CPUTIME_ID;
	else if (clock == CLOCK_OF_THREAD)
		clock = CLOCK_THREAD_CPUTIME_ID;
	*id = wanted_ids ? (int)e->it_id : 0;
	auto_calls *c = calls_new(r, owner);
	CALL(c, "timer_create", NULL, SYS_timer_create, (uint64_t)(int64_t)clock, calls_in(c, &ev, sizeof(ev)),
	     calls_inout(c, id, sizeof(*id)));
	return calls_run(c, f);
}

static int create(struct remote *r, pid_t pid, const PosixTimerEntry *e, bool wanted_ids, struct fault *f)
{
	pid_t owner = owner_of(e, pid);
	for (int tries = 0; tries < CREATE_TRIES_MAX; tries++) {
		int id;
		if (create_as(r, owner, e, wanted_ids, &id, f) < 0)
			return fault_while(f, "creating timer %u", e->it_id);
		if (id == (int)e->it_id)
			return 0;
		if (call_ok(r, pid, "timer_delete", SYS_timer_delete, (uint64_t)id, 0, f) < 0)
			return -1;
		if (id > (int)e->it_id || wanted_ids)
			break;
	}
	return fault_set(f, FAULT_KERNEL, "timer id %u can't be had again", e->it_id);
}

static int restore_posix(struct remote *r, pid_t pid, const TaskCoreEntry *tc, uint64_t passed_ns, struct fault *f)
{
	auto_calls *c = calls_new(r, pid);
	long wanted = -1;
	CALL(c, NULL, &wanted, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, 1);
	if (calls_run(c, f) < 0)
		return -1;
	for (size_t i = 0; i < tc->timers->n_posix; i++) {
		const PosixTimerEntry *e = tc->timers->posix[i];
		struct kernel_itimerspec v;
		bool absolute = due(e, tc, passed_ns, &v);
		if (create(r, pid, e, wanted == 0, f) < 0)
			return -1;
		if (v.value.tv_sec || v.value.tv_nsec)
			CALL(c, "timer_settime", NULL, SYS_timer_settime, e->it_id, absolute ? TIMER_ABSTIME : 0,
			     calls_in(c, &v, sizeof(v)), 0);
		if (calls_run(c, f) < 0)
			return fault_while(f, "setting timer %u", e->it_id);
	}
	if (wanted == 0)
		CALL(c, "end the restoring of timer ids", NULL, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, 0);
	return calls_run(c, f);
}

int timers_restore(struct remote *r, pid_t pid, const TaskCoreEntry *tc, struct fault *f)
{
	const TaskTimersEntry *tt = tc->timers;
	uint64_t now;
	if (!tt)
		return 0;
	if (clock_in(r, pid, CLOCK_MONOTONIC, &now, f) < 0)
		return -1;
	uint64_t passed = now > tc->monotonic_ns ? now - tc->monotonic_ns : 0;
	auto_calls *c = calls_new(r, pid);
	restore_itimer(c, ITIMER_REAL, tt->real, passed);
	restore_itimer(c, ITIMER_VIRTUAL, tt->virt, passed);
	restore_itimer(c, ITIMER_PROF, tt->prof, passed);
	if (calls_run(c, f) < 0)
		return fault_while(f, "restoring timers");
	if (tt->n_posix && restore_posix(r, pid, tc, passed, f) < 0)
		return fault_while(f, "restoring timers");
	return 0;
}
