#include "signals.h"

#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#define KERNEL_SIGSET_BYTES 8u
#define PEEK_CHUNK	    32
#ifndef PTRACE_PEEKSIGINFO_SHARED
#define PTRACE_PEEKSIGINFO_SHARED 1
#endif

_Static_assert(sizeof(siginfo_t) == 128, "siginfo_t as the kernel has it");

static bool has_action(int sig)
{
	return sig != SIGKILL && sig != SIGSTOP;
}

static bool is_late(int sig)
{
	return sig == SIGSTOP || sig == SIGTRAP;
}

void signals_ask(struct calls *c, const struct procinfo_status *leader, struct signals_asked *out)
{
	/* SIGCHLD is asked for always: SA_NOCLDWAIT and SA_NOCLDSTOP mean something with SIG_DFL, too. */
	uint64_t wanted = leader->sig_caught | leader->sig_ignored | SIGNALS_BIT(SIGCHLD);
	memset(out, 0, sizeof(*out));
	for (int sig = 1; sig <= SIGNALS_MAX; sig++)
		if (has_action(sig) && (wanted & SIGNALS_BIT(sig)))
			CALL(c, "ask for a signal's action", NULL, SYS_rt_sigaction, (uint64_t)sig, 0,
			     calls_out(c, &out->actions[sig], sizeof(out->actions[sig])), KERNEL_SIGSET_BYTES);
}

static void push_info(struct arena *a, SignalQueueEntry *q, const siginfo_t *info)
{
	SiginfoEntry *e = arena_msg(a, SiginfoEntry, siginfo_entry);
	e->siginfo.data = arena_memdup(a, info, sizeof(*info));
	e->siginfo.len = sizeof(*info);
	arena_push(a, q->n_signals, q->signals, e);
}

static const siginfo_t *info_of(const SiginfoEntry *e, siginfo_t *buf)
{
	memset(buf, 0, sizeof(*buf));
	memcpy(buf, e->siginfo.data, e->siginfo.len < sizeof(*buf) ? e->siginfo.len : sizeof(*buf));
	return buf;
}

/* Signals whose siginfo the kernel had no memory or no quota for are pending all the same. */
static void push_bare(struct arena *a, SignalQueueEntry *q, uint64_t pending)
{
	siginfo_t info;
	for (size_t i = 0; i < q->n_signals; i++)
		pending &= ~SIGNALS_BIT(info_of(q->signals[i], &info)->si_signo);
	for (int sig = 1; sig <= SIGNALS_MAX; sig++) {
		if (!(pending & SIGNALS_BIT(sig)))
			continue;
		info = (siginfo_t){ .si_signo = sig, .si_code = SI_USER };
		push_info(a, q, &info);
	}
}

static int save_queue(pid_t tid, uint64_t pending, bool shared, struct arena *a, SignalQueueEntry **out,
		      struct fault *f)
{
	if (!pending)
		return 0;
	SignalQueueEntry *q = arena_msg(a, SignalQueueEntry, signal_queue_entry);
	siginfo_t infos[PEEK_CHUNK];
	struct __ptrace_peeksiginfo_args args = { .flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0, .nr = PEEK_CHUNK };
	for (;;) {
		long n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, infos);
		if (n < 0)
			return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
					   "read the pending signals of thread %d", tid);
		for (long i = 0; i < n; i++)
			push_info(a, q, &infos[i]);
		if (n < PEEK_CHUNK)
			break;
		args.off += (uint64_t)n;
	}
	push_bare(a, q, pending);
	*out = q;
	return 0;
}

int signals_save(struct process *p, const struct procinfo_status *leader, const struct signals_asked *asked,
		 struct arena *a, TaskCoreEntry *tc, struct fault *f)
{
	for (int sig = 1; sig <= SIGNALS_MAX; sig++) {
		if (!has_action(sig))
			continue;
		const struct signals_action *from = &asked->actions[sig];
		SaEntry *e = arena_msg(a, SaEntry, sa_entry);
		e->sigaction = from->handler;
		e->flags = from->flags;
		e->restorer = from->restorer;
		e->mask = from->mask;
		arena_push(a, tc->n_sigactions, tc->sigactions, e);
	}
	return save_queue(p->pid, leader->sig_shared, true, a, &tc->signals_s, f);
}

int signals_save_thread(const struct task *t, const struct procinfo_status *s, struct arena *a, ThreadCoreEntry *th,
			struct fault *f)
{
	if (save_queue(t->tid, s->sig_pending, false, a, &th->signals_p, f) < 0)
		return -1;
	if (!t->stop_signal)
		return 0;
	/* It came while a remote call was made, and is to be sent again at the release. */
	if (!th->signals_p)
		th->signals_p = arena_msg(a, SignalQueueEntry, signal_queue_entry);
	push_bare(a, th->signals_p, SIGNALS_BIT(SIGSTOP));
	return 0;
}

bool signals_of_timer(const SignalQueueEntry *q, uint32_t id)
{
	siginfo_t info;
	for (size_t i = 0; q && i < q->n_signals; i++) {
		info_of(q->signals[i], &info);
		if (info.si_code == SI_TIMER && (uint32_t)info.si_timerid == id)
			return true;
	}
	return false;
}

static bool is_default(const SaEntry *e)
{
	return !e->sigaction && !e->flags && !e->restorer && !e->mask;
}

void signals_restore_actions(struct calls *c, const TaskCoreEntry *tc)
{
	size_t i = 0;
	for (int sig = 1; sig <= SIGNALS_MAX; sig++) {
		if (!has_action(sig))
			continue;
		/* Those that are default are set, too: a vessel starts out with what its maker ignored. */
		const SaEntry *e = i < tc->n_sigactions ? tc->sigactions[i++] : NULL;
		struct signals_action act = { 0 };
		if (e && !is_default(e))
			act = (struct signals_action){ e->sigaction, e->flags, e->restorer, e->mask };
		CALL(c, "set a signal's action", NULL, SYS_rt_sigaction, (uint64_t)sig, calls_in(c, &act, sizeof(act)),
		     0, KERNEL_SIGSET_BYTES);
	}
}

int signals_restore_queue(struct calls *c, pid_t pid, pid_t tid, const SignalQueueEntry *q, bool shared,
			  bool (*skip)(const siginfo_t *info, const void *arg), const void *arg, struct fault *f)
{
	siginfo_t info;
	for (size_t i = 0; q && i < q->n_signals; i++) {
		info_of(q->signals[i], &info);
		int sig = info.si_signo;
		if (sig < 1 || sig > SIGNALS_MAX)
			return fault_set(f, FAULT_IMAGE, "a pending signal with number %d", sig);
		if (sig == SIGKILL || is_late(sig) || skip(&info, arg))
			continue;
		if (calls_full(c) && calls_run(c, f) < 0)
			return -1;
		uint64_t at = calls_in(c, &info, sizeof(info));
		/* Only a thread itself may queue a siginfo that says it is from the kernel or from kill(2). */
		if (shared)
			CALL(c, "queue a signal", NULL, SYS_rt_sigqueueinfo, (uint64_t)pid, (uint64_t)sig, at);
		else
			CALL(c, "queue a signal", NULL, SYS_rt_tgsigqueueinfo, (uint64_t)pid, (uint64_t)tid,
			     (uint64_t)sig, at);
	}
	return 0;
}

uint64_t signals_late(const SignalQueueEntry *q)
{
	siginfo_t info;
	uint64_t found = 0;
	for (size_t i = 0; q && i < q->n_signals; i++) {
		int sig = info_of(q->signals[i], &info)->si_signo;
		if (is_late(sig))
			found |= SIGNALS_BIT(sig);
	}
	return found;
}
