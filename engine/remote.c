/*
 * Layout of what is mapped into the process, in one piece:
 *	code	one page, r-x: the stub, and at its end how long all of it is
 *	scratch	REMOTE_SCRATCH bytes for the callers
 *	tail	source: a slot per thread, its signal frame at the top; the rest is room for a handler, should we die in
 *		the instant between registers and mask. Vessel: the table of a batch.
 * The first and last call of a source go through `syscall; ret` and rt_sigreturn in the process's own text, with a frame
 * where its stack has never been used; those bytes are put back.
 */
#include "remote.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arch.h"
#include "maps.h"
#include "stop.h"
#include "task.h"

#ifndef PTRACE_SETSIGMASK
#define PTRACE_SETSIGMASK 0x420b
#endif
#define PTRACE_SET_USER_DISPATCH 0x4210
#define PTRACE_GET_USER_DISPATCH 0x4211
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define SLOT  ((size_t)64 << 10)
#define TABLE ((size_t)64 << 10)
/* The code page's address modulo 2 MiB: with it a page is known even when its maker died before it wrote the code. */
#define PLACE_MODULUS (UINT64_C(2) << 20)
#define PLACE_AT      UINT64_C(0x19b000)
#define MAGIC_LEN     16u
#define LENGTH_AT     (PAGE_BYTES - 8) /* in the code page */
#define BOOT_ROOM     ((uint64_t)32 << 10)
#define ALL_BLOCKED   (~UINT64_C(0))
/* A single step's trap is forced: would it be blocked, the kernel would reset its handler (force_sig_info). */
#define ALL_BUT_TRAP (ALL_BLOCKED & ~(UINT64_C(1) << (SIGTRAP - 1)))

struct user_dispatch {
	uint64_t mode, selector, offset, len;
};

/* A thread that has made a call in this session. */
struct guest {
	pid_t tid;
	uint64_t call, sp; /* where its next call goes */
	struct user_dispatch dispatch;
	bool pinned;
	cpu_set_t affinity;
};

struct record {
	uint64_t nr, args[6], ret, stop_on_error;
};

struct remote {
	struct process *p;
	struct range all;
	size_t n_slots;
	struct guest *guests;
	size_t n_guests, cap_guests;
	struct arch_regs *regs; /* work space */
	/* bytes below the stack that a boot frame covers */
	uint64_t saved_at;
	size_t saved_len;
	void *saved;
	/* The program's SIGTRAP action: single steps may reset it, so it is set once more at the end. */
	bool has_trap_action;
	uint8_t trap_action[32];
};

static uint64_t code_at(const struct remote *r)
{
	return r->all.start;
}

static uint64_t tail_at(const struct remote *r)
{
	return r->all.start + PAGE_BYTES + REMOTE_SCRATCH;
}

uint64_t remote_scratch(const struct remote *r)
{
	return r->all.start + PAGE_BYTES;
}

struct range remote_stub_range(const struct remote *r)
{
	return r->all;
}

struct process *remote_process(struct remote *r)
{
	return r->p;
}

bool remote_affinity(const struct remote *r, pid_t tid, cpu_set_t *out)
{
	for (size_t i = 0; i < r->n_guests; i++)
		if (r->guests[i].tid == tid && r->guests[i].pinned) {
			*out = r->guests[i].affinity;
			return true;
		}
	return false;
}

bool remote_dispatches(const struct remote *r, pid_t tid)
{
	for (size_t i = 0; i < r->n_guests; i++)
		if (r->guests[i].tid == tid)
			return r->guests[i].dispatch.mode != 0;
	return false;
}

static int scratch_check(size_t offset, size_t len, struct fault *f)
{
	if (offset > REMOTE_SCRATCH || len > REMOTE_SCRATCH - offset)
		return fault_set(f, FAULT_INTERNAL, "%zu bytes at %zu are outside the remote scratch", len, offset);
	return 0;
}

int remote_put(struct remote *r, size_t offset, const void *buf, size_t len, struct fault *f)
{
	if (scratch_check(offset, len, f) < 0)
		return -1;
	return process_write(r->p, remote_scratch(r) + offset, buf, len, f);
}

int remote_get(struct remote *r, size_t offset, void *buf, size_t len, struct fault *f)
{
	if (scratch_check(offset, len, f) < 0)
		return -1;
	return process_read(r->p, remote_scratch(r) + offset, buf, len, f);
}

/* ---- one call of one thread ---- */

static int set_mask(pid_t tid, uint64_t mask, struct fault *f)
{
	if (ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof(mask), &mask) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "set the signal mask of thread %d", tid);
	return 0;
}

static int call_lost(struct remote *r, struct task *t, struct fault *f)
{
	if (t->state == TASK_GONE)
		return fault_set(f, FAULT_PROCESS_GONE, "thread %d of process %d (%s) was killed", t->tid, r->p->pid,
				 r->p->comm);
	return fault_set(f, FAULT_INTERNAL, "remote call in thread %d stopped with status 0x%x", t->tid,
			 (unsigned)t->status);
}

/* Resumes the thread until the stop that ends this step: a syscall stop for PTRACE_SYSCALL, else a SIGTRAP. */
static int run_to_stop(struct remote *r, struct task *t, int request, struct fault *f)
{
	for (;;) {
		if (task_resume(t, request, 0, f) < 0 || task_wait(r->p, t, f) < 0)
			return -1;
		if (t->state == TASK_GONE)
			return call_lost(r, t, f);
		int sig = WSTOPSIG(t->status);
		switch (task_stop_kind(t->status)) {
		case TASK_STOP_SYSCALL:
			if (request == PTRACE_SYSCALL)
				return 0;
			return call_lost(r, t, f);
		case TASK_STOP_SIGNAL:
			if (sig == SIGTRAP && request != PTRACE_SYSCALL)
				return 0;
			if (sig != SIGSTOP)
				return call_lost(r, t, f);
			t->stop_signal = true; /* can't be blocked; sent again at the release */
			break;
		case TASK_STOP_INTERRUPT: /* a SIGCONT was sent */
		case TASK_STOP_EVENT:	  /* PTRACE_EVENT_CLONE of a vessel */
			break;
		case TASK_STOP_GROUP:
		case TASK_STOP_EXEC:
			return call_lost(r, t, f);
		}
	}
}

/* PTRACE_SYSCALL to the entry, and to the exit: never leaves a trap behind when we die (p3d). */
static int run_call(struct remote *r, struct task *t, bool step, long *ret, struct fault *f)
{
	if (step) {
		if (run_to_stop(r, t, PTRACE_SINGLESTEP, f) < 0)
			return -1;
	} else if (run_to_stop(r, t, PTRACE_SYSCALL, f) < 0 || run_to_stop(r, t, PTRACE_SYSCALL, f) < 0) {
		return -1;
	}
	if (arch_regs_get(t->tid, r->regs, f) < 0)
		return -1;
	*ret = arch_syscall_result(r->regs);
	return 0;
}

static int set_call(struct remote *r, struct task *t, uint64_t call, uint64_t sp, long nr, const uint64_t args[6],
		    struct fault *f)
{
	arch_regs_copy(r->regs, t->regs);
	arch_syscall_setup(r->regs, call, nr, args);
	if (sp)
		arch_set_sp(r->regs, sp);
	return arch_regs_set(t->tid, r->regs, f);
}

/* ---- seccomp, user dispatch, CPU ---- */

/* Refused when we are under a filter ourselves, which only matters when the thread has one. */
static int suspend_seccomp(struct remote *r, struct task *t, struct fault *f)
{
	if (task_options(t, r->p->options | PTRACE_O_SUSPEND_SECCOMP, NULL) == 0)
		return 0;
	char path[48];
	snprintf(path, sizeof(path), "task/%d/status", t->tid);
	auto_free char *text = util_read_file(r->p->procfd, path, NULL);
	const char *s = text ? strstr(text, "\nSeccomp:") : NULL;
	if (!s || strtol(s + strlen("\nSeccomp:"), NULL, 10) == 0)
		return 0;
	fault_set(f, FAULT_DENIED, "the seccomp filter of thread %d can't be suspended", t->tid);
	return fault_hint(f, "The worker needs CAP_SYS_ADMIN and no seccomp filter of its own.");
}

static void dispatch_off(struct guest *g)
{
	struct user_dispatch none = { 0 };
	if (ptrace(PTRACE_GET_USER_DISPATCH, g->tid, (void *)sizeof(none), &g->dispatch) < 0) /* before 6.4 */
		g->dispatch.mode = 0;
	if (g->dispatch.mode)
		ptrace(PTRACE_SET_USER_DISPATCH, g->tid, (void *)sizeof(none), &none);
}

static void dispatch_on(struct guest *g)
{
	if (g->dispatch.mode)
		ptrace(PTRACE_SET_USER_DISPATCH, g->tid, (void *)sizeof(g->dispatch), &g->dispatch);
}

static void pin(struct guest *g, int cpu)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(g->tid, sizeof(one), &one);
}

static void unpin(struct guest *g)
{
	if (g->pinned)
		sched_setaffinity(g->tid, sizeof(g->affinity), &g->affinity);
	g->pinned = false;
}

/* ---- guarded path of a source's thread ---- */

struct guard {
	uint64_t call, sigret, top;
	uint64_t unpin; /* in place of sigret when the thread is pinned; 0: don't pin */
};

/* Where the thread goes on by itself should it be let go: out of its interrupted call, which no rt_sigreturn restarts. */
static struct arch_regs *own_context(struct task *t)
{
	struct arch_regs *own = arch_regs_new();
	arch_regs_copy(own, t->regs);
	stop_rewind_regs(own);
	return own;
}

static int write_frame(struct remote *r, struct task *t, struct guest *g, const struct guard *to, uint64_t *sp,
		       struct fault *f)
{
	auto_free void *bytes = NULL;
	size_t len;
	struct arch_regs *own = own_context(t);
	*sp = to->top;
	int ret = arch_sigframe(t->tid, own, t->sigmask, g->pinned ? to->unpin : to->sigret, sp, &bytes, &len, f);
	arch_regs_free(own);
	if (ret < 0)
		return -1;
	size_t mask_at = sizeof(uint64_t) + arch_stub()->unpin_mask;
	if (g->pinned && mask_at + sizeof(g->affinity) <= len)
		memcpy((char *)bytes + mask_at, &g->affinity, sizeof(g->affinity));
	return process_write(r->p, *sp, bytes, len, f);
}

/* From its own context, or from another guarded path, onto this one. */
static int guard_enter(struct remote *r, struct task *t, struct guest *g, const struct guard *to, struct fault *f)
{
	static const uint64_t none[6];
	uint64_t sp;
	int cpu = to->unpin ? process_pin_cpu(r->p) : -1;
	if (cpu >= 0 && !g->pinned && sched_getaffinity(t->tid, sizeof(g->affinity), &g->affinity) == 0)
		g->pinned = true;
	else
		cpu = -1;
	if (write_frame(r, t, g, to, &sp, f) < 0 || set_call(r, t, to->call, sp, SYS_getpid, none, f) < 0 ||
	    set_mask(t->tid, ALL_BLOCKED, f) < 0)
		return -1;
	g->call = to->call;
	g->sp = sp;
	if (cpu >= 0)
		pin(g, cpu);
	return 0;
}

/* Back: the stop moves into get_signal() while the registers are still on the guarded path; then mask, then registers,
 * with which the kernel restarts the interrupted call by itself. */
static int guard_leave(struct remote *r, struct guest *g, struct fault *f)
{
	struct task *t = process_task(r->p, g->tid);
	unpin(g);
	if (!t || t->state != TASK_STOPPED)
		return 0;
	if (task_settle(r->p, t, f) < 0 || set_mask(t->tid, t->sigmask, f) < 0 ||
	    arch_regs_set(t->tid, t->regs, f) < 0 || task_options(t, r->p->options, f) < 0)
		return -1;
	dispatch_on(g);
	return 0;
}

static struct guest *guest_find(struct remote *r, pid_t tid)
{
	for (size_t i = 0; i < r->n_guests; i++)
		if (r->guests[i].tid == tid)
			return &r->guests[i];
	return NULL;
}

static struct guest *guest_add(struct remote *r, struct task *t, struct fault *f)
{
	if (suspend_seccomp(r, t, f) < 0)
		return NULL;
	if (util_grow((void **)&r->guests, &r->cap_guests, r->n_guests, sizeof(*r->guests)) < 0)
		abort();
	struct guest *g = &r->guests[r->n_guests++];
	*g = (struct guest){ .tid = t->tid };
	dispatch_off(g);
	return g;
}

static struct guard slot_guard(struct remote *r, size_t slot)
{
	const struct arch_code *code = arch_stub();
	return (struct guard){ .call = code_at(r) + code->call,
			       .sigret = code_at(r) + code->sigret,
			       .top = tail_at(r) + (slot + 1) * SLOT,
			       .unpin = code->unpin ? code_at(r) + code->unpin : 0 };
}

/* The thread, ready to be given a call. */
static struct guest *guest_ready(struct remote *r, struct task *t, struct fault *f)
{
	struct guest *g = guest_find(r, t->tid);
	if (g)
		return g;
	size_t slot = r->n_guests;
	if (!r->p->vessel && slot >= r->n_slots) {
		fault_set(f, FAULT_INTERNAL, "more threads than slots in the stub");
		return NULL;
	}
	g = guest_add(r, t, f);
	if (!g)
		return NULL;
	if (r->p->vessel) {
		g->call = code_at(r) + arch_stub()->call;
		return set_mask(t->tid, ALL_BUT_TRAP, f) < 0 ? NULL : g;
	}
	struct guard to = slot_guard(r, slot);
	return guard_enter(r, t, g, &to, f) < 0 ? NULL : g;
}

static struct task *task_ready(struct remote *r, pid_t tid, struct fault *f)
{
	struct task *t = process_task(r->p, tid);
	if (!t || t->state != TASK_STOPPED || !t->regs) {
		fault_set(f, FAULT_INTERNAL, "thread %d of process %d is not stopped", tid, r->p->pid);
		return NULL;
	}
	return t;
}

/* ---- calls ---- */

static int remember_trap_action(struct remote *r, long nr, const uint64_t args[6], struct fault *f)
{
	if (nr != SYS_rt_sigaction || args[0] != SIGTRAP || !args[1])
		return 0;
	if (process_read(r->p, args[1], r->trap_action, sizeof(r->trap_action), f) < 0)
		return -1;
	r->has_trap_action = true;
	return 0;
}

static int call_how(struct remote *r, pid_t tid, bool step, long nr, const uint64_t args[6], long *ret, struct fault *f)
{
	struct task *t = task_ready(r, tid, f);
	struct guest *g = t ? guest_ready(r, t, f) : NULL;
	if (!g || set_call(r, t, g->call, g->sp, nr, args, f) < 0)
		return -1;
	return run_call(r, t, step, ret, f);
}

int remote_call(struct remote *r, pid_t tid, long nr, const uint64_t args[6], long *ret, struct fault *f)
{
	if (r->p->vessel && remember_trap_action(r, nr, args, f) < 0)
		return -1;
	return call_how(r, tid, r->p->vessel, nr, args, ret, f);
}

int remote_interrupted_call(struct remote *r, pid_t tid, long nr, const uint64_t args[6], long *ret, struct fault *f)
{
	struct task *t = task_ready(r, tid, f);
	struct guest *g = t ? guest_ready(r, t, f) : NULL;
	if (!g || set_call(r, t, g->call, g->sp, nr, args, f) < 0)
		return -1;
	/* At the entry stop the interrupt becomes pending; the call sees it where it would sleep. */
	if (run_to_stop(r, t, PTRACE_SYSCALL, f) < 0 || task_settle(r->p, t, f) < 0 ||
	    arch_regs_get(t->tid, r->regs, f) < 0)
		return -1;
	*ret = arch_syscall_result(r->regs);
	return 0;
}

int remote_exit(struct remote *r, pid_t tid, struct fault *f)
{
	static const uint64_t zero[6];
	struct task *t = task_ready(r, tid, f);
	struct guest *g = t ? guest_ready(r, t, f) : NULL;
	if (!g || set_call(r, t, g->call, g->sp, SYS_exit, zero, f) < 0)
		return -1;
	while (t->state != TASK_GONE)
		if (task_resume(t, PTRACE_CONT, 0, f) < 0 || task_wait(r->p, t, f) < 0)
			return -1;
	*g = r->guests[--r->n_guests];
	process_drop_thread(r->p, tid);
	return 0;
}

static int batch_one_by_one(struct remote *r, pid_t tid, struct remote_entry *calls, size_t n, size_t *done,
			    struct fault *f)
{
	for (size_t i = 0; i < n; i++) {
		if (remote_call(r, tid, calls[i].nr, calls[i].args, &calls[i].ret, f) < 0)
			return -1;
		++*done;
		if (calls[i].stop_on_error && (unsigned long)calls[i].ret >= (unsigned long)-4095L)
			return 0;
	}
	return 0;
}

/* One run of the stub's loop over at most a table's worth. */
static int batch_run(struct remote *r, struct task *t, struct remote_entry *calls, size_t n, size_t *done,
		     struct fault *f)
{
	auto_free struct record *rec = calloc(n + 1, sizeof(*rec));
	if (!rec)
		abort();
	for (size_t i = 0; i < n; i++) {
		if (remember_trap_action(r, calls[i].nr, calls[i].args, f) < 0)
			return -1;
		rec[i].nr = (uint64_t)calls[i].nr;
		memcpy(rec[i].args, calls[i].args, sizeof(rec[i].args));
		rec[i].stop_on_error = calls[i].stop_on_error;
	}
	rec[n].nr = ~UINT64_C(0);
	if (process_write(r->p, tail_at(r), rec, (n + 1) * sizeof(*rec), f) < 0)
		return -1;
	arch_regs_copy(r->regs, t->regs);
	arch_table_setup(r->regs, code_at(r) + arch_stub()->table, tail_at(r));
	if (arch_regs_set(t->tid, r->regs, f) < 0 || run_to_stop(r, t, PTRACE_CONT, f) < 0 ||
	    arch_regs_get(t->tid, r->regs, f) < 0)
		return -1;
	size_t at = (arch_table_at(r->regs) - tail_at(r)) / sizeof(*rec);
	size_t made = at < n ? at + 1 : n;
	if (process_read(r->p, tail_at(r), rec, made * sizeof(*rec), f) < 0)
		return -1;
	for (size_t i = 0; i < made; i++)
		calls[i].ret = (long)rec[i].ret;
	*done += made;
	return at < n ? 1 : 0;
}

int remote_batch(struct remote *r, pid_t tid, struct remote_entry *calls, size_t n, size_t *done, struct fault *f)
{
	const size_t most = TABLE / sizeof(struct record) - 1;
	*done = 0;
	if (!r->p->vessel || !arch_stub()->table)
		return batch_one_by_one(r, tid, calls, n, done, f);
	struct task *t = task_ready(r, tid, f);
	if (!t || !guest_ready(r, t, f))
		return -1;
	while (*done < n) {
		size_t some = n - *done < most ? n - *done : most;
		int stopped = batch_run(r, t, calls + *done, some, done, f);
		if (stopped < 0)
			return -1;
		if (stopped)
			break;
	}
	return 0;
}

/* ---- finding code in the process ---- */

/* Address of the pattern in one mapping, 0: not there. */
static uint64_t find_in(struct process *p, const struct map *m, const unsigned char *pattern, size_t n)
{
	const size_t chunk = (size_t)1 << 20;
	auto_free unsigned char *buf = malloc(chunk);
	if (!buf)
		abort();
	for (uint64_t at = m->start; at < m->end; at += chunk - n) {
		size_t len = m->end - at < chunk ? m->end - at : chunk;
		if (process_read(p, at, buf, len, NULL) < 0)
			return 0;
		const unsigned char *hit = memmem(buf, len, pattern, n);
		if (hit)
			return at + (uint64_t)(hit - buf);
		if (len < chunk)
			return 0;
	}
	return 0;
}

static bool still_there(struct process *p, uint64_t at, const unsigned char *pattern, size_t n)
{
	unsigned char now[32];
	return at && n <= sizeof(now) && process_read(p, at, now, n, NULL) == 0 && memcmp(now, pattern, n) == 0;
}

/* One executable page of ours, with the code or still empty. */
static bool is_stub(struct process *p, const struct map *m)
{
	char page[PAGE_BYTES];
	if ((m->prot & (PROT_EXEC | PROT_WRITE)) != PROT_EXEC || m->ino || m->end - m->start != PAGE_BYTES ||
	    m->start % PLACE_MODULUS != PLACE_AT || process_read(p, m->start, page, sizeof(page), NULL) < 0)
		return false;
	if (memcmp(page, arch_stub()->bytes, MAGIC_LEN) == 0)
		return true;
	return page[0] == 0 && memcmp(page, page + 1, sizeof(page) - 1) == 0;
}

static uint64_t find_code(struct process *p, const struct maps *maps, const unsigned char *pattern, size_t n)
{
	/* The C library first: it has both, and the rest may be large. */
	for (int libc = 1; libc >= 0; libc--) {
		for (size_t i = 0; i < maps->n; i++) {
			const struct map *m = &maps->v[i];
			bool is_libc = strstr(m->path, "/libc") || strstr(m->path, "/ld-musl");
			if (!(m->prot & PROT_EXEC) || !(m->prot & PROT_READ) || is_libc != libc ||
			    m->kind == MAP_KIND_VSYSCALL || is_stub(p, m))
				continue;
			uint64_t at = find_in(p, m, pattern, n);
			if (at)
				return at;
		}
	}
	return 0;
}

static int find_boot_code(struct process *p, const struct maps *maps, struct fault *f)
{
	const unsigned char *call, *sigret;
	size_t n_call = arch_pattern_syscall_ret(&call), n_sigret = arch_pattern_sigreturn(&sigret);
	if (!still_there(p, p->call_at, call, n_call))
		p->call_at = find_code(p, maps, call, n_call);
	if (!still_there(p, p->sigret_at, sigret, n_sigret))
		p->sigret_at = find_code(p, maps, sigret, n_sigret);
	if (p->call_at && p->sigret_at)
		return 0;
	fault_set(f, FAULT_UNSUPPORTED, "process %d (%s) has no %s in its code", p->pid, p->comm,
		  p->call_at ? "return from signal handlers" : "system call that returns");
	return fault_hint(f, "A program built without a C library can't be moved; it runs on where it is.");
}

/* ---- the boot path of a source ---- */

static bool all_zero(struct process *p, uint64_t at, size_t len)
{
	auto_free char *buf = malloc(len);
	if (!buf)
		abort();
	if (process_read(p, at, buf, len, NULL) < 0)
		return false;
	return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

/* Where a frame may go: at the low end of the main stack when that was never used, else below the leader's red zone. */
static int boot_top(struct process *p, const struct maps *maps, uint64_t *top, struct fault *f)
{
	uint64_t sp = arch_sp(p->tasks[0].regs);
	for (size_t i = 0; i < maps->n; i++) {
		const struct map *m = &maps->v[i];
		if (strcmp(m->path, "[stack]") != 0 || m->end - m->start < 2 * BOOT_ROOM || !(m->prot & PROT_WRITE))
			continue;
		bool clear = sp < m->start || sp > m->start + 2 * BOOT_ROOM;
		if (clear && all_zero(p, m->start, BOOT_ROOM)) {
			*top = m->start + BOOT_ROOM;
			return 0;
		}
	}
	*top = sp - arch_redzone();
	const struct map *m = maps_find(maps, *top - 1);
	if (m && (m->prot & PROT_WRITE) && *top - m->start >= BOOT_ROOM)
		return 0;
	fault_set(f, FAULT_UNSUPPORTED, "no room on a stack of process %d (%s) for a signal frame", p->pid, p->comm);
	return fault_hint(f, "Try again at another moment; the process runs on where it is.");
}

static int boot_put_back(struct remote *r, struct fault *f)
{
	int ret = 0;
	if (r->saved)
		ret = process_write(r->p, r->saved_at, r->saved, r->saved_len, f);
	free(take_ptr(r->saved));
	return ret;
}

/* The leader onto the path through its own program's code. */
static int boot_enter(struct remote *r, const struct maps *maps, struct fault *f)
{
	struct task *t = &r->p->tasks[0];
	struct guard to = { .call = r->p->call_at, .sigret = r->p->sigret_at };
	if (find_boot_code(r->p, maps, f) < 0 || boot_top(r->p, maps, &to.top, f) < 0)
		return -1;
	to.call = r->p->call_at;
	to.sigret = r->p->sigret_at;
	struct guest *g = guest_find(r, t->tid);
	if (!g)
		g = guest_add(r, t, f);
	if (!g)
		return -1;
	/* more than a frame takes: at most BOOT_ROOM, which boot_top has checked */
	r->saved_len = BOOT_ROOM;
	r->saved_at = to.top - BOOT_ROOM;
	r->saved = malloc(r->saved_len);
	if (!r->saved)
		abort();
	if (process_read(r->p, r->saved_at, r->saved, r->saved_len, f) < 0) {
		free(take_ptr(r->saved));
		return -1;
	}
	return guard_enter(r, t, g, &to, f);
}

/* ---- mapping and unmapping ---- */

static int map_refused(struct remote *r, long ret, struct fault *f)
{
	fault_neg(f, ret == -ENOMEM ? FAULT_LIMIT : FAULT_SYSTEM, ret, "map the stub into process %d (%s)", r->p->pid,
		  r->p->comm);
	if (ret == -ENOMEM)
		fault_hint(f,
			   "Its limit on address space (ulimit -v), on locked memory or on mappings leaves no room.");
	return -1;
}

static int write_code(struct remote *r, struct fault *f)
{
	const struct arch_code *code = arch_stub();
	uint64_t len = r->all.end - r->all.start;
	if (process_write(r->p, code_at(r) + LENGTH_AT, &len, sizeof(len), f) < 0)
		return -1;
	return process_write(r->p, code_at(r), code->bytes, code->len, f);
}

/* Two mappings, as a program under PR_SET_MDWE may have them: executable ones are never writable. */
static int map_stub(struct remote *r, struct range at, bool step, struct fault *f)
{
	const uint64_t flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE;
	const uint64_t code[6] = { at.start, PAGE_BYTES, PROT_READ | PROT_EXEC, flags, ~UINT64_C(0), 0 };
	const uint64_t data[6] = { at.start + PAGE_BYTES,  at.end - at.start - PAGE_BYTES,
				   PROT_READ | PROT_WRITE, flags,
				   ~UINT64_C(0),	   0 };
	pid_t tid = r->p->tasks[0].tid;
	long ret;
	if (call_how(r, tid, step, SYS_mmap, code, &ret, f) < 0)
		return -1;
	if (ret != (long)at.start)
		return map_refused(r, ret, f);
	r->all = at;
	if (write_code(r, f) < 0 || call_how(r, tid, step, SYS_mmap, data, &ret, f) < 0)
		return -1;
	if (ret != (long)(at.start + PAGE_BYTES)) {
		long ignored;
		if (call_how(r, tid, step, SYS_munmap, (const uint64_t[6]){ at.start, PAGE_BYTES }, &ignored, f) < 0)
			return -1;
		return map_refused(r, ret, f);
	}
	return 0;
}

static int unmap(struct remote *r, struct range what, bool step, struct fault *f)
{
	long ret;
	const uint64_t args[6] = { what.start, what.end - what.start };
	if (call_how(r, r->p->tasks[0].tid, step, SYS_munmap, args, &ret, f) < 0)
		return -1;
	return ret < 0 ? fault_neg(f, FAULT_SYSTEM, ret, "unmap the stub of process %d", r->p->pid) : 0;
}

static int choose_place(const struct maps *maps, const struct range *keep, size_t n, size_t len, struct range *out,
			struct fault *f)
{
	uint64_t hole = maps_hole(maps, keep, n, len + PLACE_MODULUS);
	out->start = hole + (PLACE_AT + PLACE_MODULUS - hole % PLACE_MODULUS) % PLACE_MODULUS;
	out->end = out->start + len;
	return hole ? 0 : fault_set(f, FAULT_UNSUPPORTED, "no hole of %zu bytes in the address space", len);
}

/* ---- what a dead worker left ---- */

/* A thread that is still on the old stub's path comes off it by itself within microseconds. */
static int run_out(struct remote *r, struct task *t, struct range old, struct fault *f)
{
	for (int tries = 0; tries < 1000; tries++) {
		uint64_t pc = arch_pc(t->regs);
		if (pc < old.start || pc >= old.end)
			return 0;
		if (task_resume(t, PTRACE_CONT, 0, f) < 0)
			return -1;
		usleep(20);
		if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0 || task_halt(r->p, t, f) < 0 ||
		    t->state == TASK_GONE || arch_regs_get(t->tid, t->regs, f) < 0)
			return fault_set(f, FAULT_PROCESS_GONE, "thread %d ended", t->tid);
		if (ptrace(PTRACE_GETSIGMASK, t->tid, (void *)sizeof(t->sigmask), &t->sigmask) < 0)
			return fault_errno(f, FAULT_SYSTEM, "read the signal mask of thread %d", t->tid);
	}
	return fault_set(f, FAULT_BUSY, "thread %d does not leave the stub of an earlier worker", t->tid);
}

/* What the code page at maps->v[i] says belongs to it, as far as that is there. */
static struct range leftover(struct remote *r, const struct maps *maps, size_t i)
{
	struct range all = { maps->v[i].start, maps->v[i].end };
	const struct map *next = i + 1 < maps->n ? &maps->v[i + 1] : NULL;
	uint64_t len;
	if (next && next->start == all.end && next->kind == MAP_KIND_ANON &&
	    process_read(r->p, all.start + LENGTH_AT, &len, sizeof(len), NULL) == 0 && next->end == all.start + len)
		all.end = next->end;
	return all;
}

static int remove_leftovers(struct remote *r, const struct maps *maps, struct fault *f)
{
	for (size_t i = 0; i < maps->n; i++) {
		if (!is_stub(r->p, &maps->v[i]))
			continue;
		struct range old = leftover(r, maps, i);
		for (size_t k = 0; k < r->p->n_tasks; k++)
			if (run_out(r, &r->p->tasks[k], old, f) < 0)
				return -1;
		if (boot_enter(r, maps, f) < 0 || unmap(r, old, false, f) < 0)
			return -1;
		struct guest *g = guest_find(r, r->p->tasks[0].tid);
		if (guard_leave(r, g, f) < 0 || boot_put_back(r, f) < 0)
			return -1;
		r->n_guests = 0;
	}
	return 0;
}

/* ---- open and close ---- */

static int open_source(struct remote *r, const struct maps *maps, const struct range *keep, size_t n, struct fault *f)
{
	struct range at;
	r->n_slots = r->p->n_tasks;
	if (remove_leftovers(r, maps, f) < 0 ||
	    choose_place(maps, keep, n, PAGE_BYTES + REMOTE_SCRATCH + r->n_slots * SLOT, &at, f) < 0 ||
	    boot_enter(r, maps, f) < 0 || map_stub(r, at, false, f) < 0)
		return -1;
	/* from here through the stub: the bytes on the stack are free again */
	struct task *t = &r->p->tasks[0];
	struct guard to = slot_guard(r, 0);
	if (guard_enter(r, t, guest_find(r, t->tid), &to, f) < 0)
		return -1;
	return boot_put_back(r, f);
}

static int open_vessel(struct remote *r, const struct maps *maps, const struct range *keep, size_t n, struct fault *f)
{
	const unsigned char *pattern;
	size_t len = arch_pattern_syscall(&pattern);
	struct task *t = &r->p->tasks[0];
	struct range at;
	uint64_t insn = 0;
	for (size_t i = 0; i < maps->n && !insn; i++)
		if (maps->v[i].kind == MAP_KIND_VDSO)
			insn = find_in(r->p, &maps->v[i], pattern, len);
	if (!insn)
		return fault_set(f, FAULT_KERNEL, "no system call in the vDSO");
	struct guest *g = guest_ready(r, t, f);
	if (!g || choose_place(maps, keep, n, PAGE_BYTES + REMOTE_SCRATCH + TABLE, &at, f) < 0)
		return -1;
	g->call = insn;
	if (map_stub(r, at, true, f) < 0)
		return -1;
	g->call = code_at(r) + arch_stub()->call;
	return 0;
}

void remote_forget(struct remote *r)
{
	if (!r)
		return;
	if (r->p->remote == r)
		r->p->remote = NULL;
	arch_regs_free(r->regs);
	free(r->guests);
	free(r->saved);
	free(r);
}

/* After a failure: no thread stays on the guarded path. What is mapped stays, and is found by the next. */
static void abandon(struct remote *r)
{
	if (!r->p->vessel)
		for (size_t i = 0; i < r->n_guests; i++)
			if (guard_leave(r, &r->guests[i], NULL) < 0)
				continue;
	boot_put_back(r, NULL);
	remote_forget(r);
}

int remote_open(struct process *p, const struct range *keep_clear, size_t n, struct remote **out, struct fault *f)
{
	struct maps maps = { 0 };
	if (!p->stopped || p->n_tasks == 0 || p->remote)
		return fault_set(f, FAULT_INTERNAL, "process %d is not stopped, or calls are open already", p->pid);
	if (maps_read(p, false, &maps, f) < 0)
		return fault_while(f, "preparing calls in process %d (%s)", p->pid, p->comm);
	struct remote *r = calloc(1, sizeof(*r));
	if (!r)
		abort();
	r->p = p;
	r->regs = arch_regs_new();
	int ret = p->vessel ? open_vessel(r, &maps, keep_clear, n, f) : open_source(r, &maps, keep_clear, n, f);
	maps_free(&maps);
	if (ret < 0) {
		abandon(r);
		return fault_while(f, "preparing calls in process %d (%s)", p->pid, p->comm);
	}
	p->remote = r;
	*out = r;
	return 0;
}

/* All others first: the leader's last call removes the ground under the stub's path. */
static int close_source(struct remote *r, struct fault *f)
{
	pid_t leader = r->p->tasks[0].tid;
	struct maps maps = { 0 };
	for (size_t i = 0; i < r->n_guests; i++)
		if (r->guests[i].tid != leader && guard_leave(r, &r->guests[i], f) < 0)
			return -1;
	if (maps_read(r->p, false, &maps, f) < 0)
		return -1;
	struct guest *g = guest_find(r, leader);
	unpin(g);
	int ret = boot_enter(r, &maps, f);
	maps_free(&maps);
	if (ret < 0 || unmap(r, r->all, false, f) < 0 || guard_leave(r, g, f) < 0)
		return -1;
	return boot_put_back(r, f);
}

static int put_trap_action(struct remote *r, struct fault *f)
{
	long ret;
	if (!r->has_trap_action)
		return 0;
	const uint64_t args[6] = { SIGTRAP, remote_scratch(r), 0, 8 };
	if (remote_put(r, 0, r->trap_action, sizeof(r->trap_action), f) < 0 ||
	    call_how(r, r->p->tasks[0].tid, false, SYS_rt_sigaction, args, &ret, f) < 0)
		return -1;
	return ret < 0 ? fault_neg(f, FAULT_SYSTEM, ret, "set the SIGTRAP action") : 0;
}

/* The last calls are not single steps, and every thread ends in a stop where its registers decide about a restart. */
static int close_vessel(struct remote *r, struct fault *f)
{
	if (put_trap_action(r, f) < 0 || unmap(r, r->all, false, f) < 0)
		return -1;
	for (size_t i = 0; i < r->p->n_tasks; i++) {
		struct task *t = &r->p->tasks[i];
		if (t->state == TASK_STOPPED && (task_settle(r->p, t, f) < 0 || task_options(t, r->p->options, f) < 0))
			return -1;
	}
	return 0;
}

int remote_close(struct remote *r, struct fault *f)
{
	int ret = r->p->vessel ? close_vessel(r, f) : close_source(r, f);
	if (ret < 0) {
		fault_while(f, "ending calls in process %d (%s)", r->p->pid, r->p->comm);
		abandon(r);
		return -1;
	}
	remote_forget(r);
	return 0;
}

int remote_relocate(struct remote *r, const struct range *keep_clear, size_t n, struct fault *f)
{
	bool hit = false;
	for (size_t i = 0; i < n; i++)
		hit |= keep_clear[i].start < r->all.end && keep_clear[i].end > r->all.start;
	if (!hit)
		return 0;
	struct maps maps = { 0 };
	struct range at, old = r->all;
	if (maps_read(r->p, false, &maps, f) < 0)
		return -1;
	int ret = choose_place(&maps, keep_clear, n, old.end - old.start, &at, f);
	maps_free(&maps);
	if (ret < 0 || map_stub(r, at, true, f) < 0)
		return -1;
	for (size_t i = 0; i < r->n_guests; i++)
		r->guests[i].call = code_at(r) + arch_stub()->call;
	return unmap(r, old, true, f);
}
