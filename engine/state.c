/*
 * Brings together what the subjects save and restore: signals.c, timers.c, creds.c, schedule.c, rlimits.c,
 * attributes.c, threadstate.c, arch/. The order in state_restore matters:
 *
 *	1  names, signal stacks, lists, actions, timers         need nothing but a thread
 *	2  queued signals                                       after the actions that keep them
 *	3  scheduling, OOM score, limits                        from outside, while the vessel is still root
 *	4  credentials, thread by thread, then what they reset  (dumpable) or what depends on them (RLIMIT_NPROC)
 *	5  credentials read back and compared
 *
 * state_restore_regs: parent-death signals (the parent being final), MDWE, rseq, restart blocks; then registers.
 */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "arch.h"
#include "attributes.h"
#include "creds.h"
#include "identity.h"
#include "rlimits.h"
#include "schedule.h"
#include "signals.h"
#include "threadstate.h"
#include "timers.h"

#ifndef CPR_VERSION
#define CPR_VERSION "0.1"
#endif

#define IMG_VERSION	 2
#define TASK_STATE_ALIVE 1
#define FULL_ID		 1 /* one process: one of each kind of object */
#define TIME_NS_ID	 8
#define SIGSET_BYTES	 8u

/* Pinning does not nest: a caller that has pinned stays pinned. */
static bool pin(struct process *p)
{
	bool mine = process_pin_cpu(p) < 0;
	if (mine)
		process_pin(p);
	return mine;
}

static void unpin(struct process *p, bool mine)
{
	if (mine)
		process_unpin(p);
}

/* ---- source ---- */

struct thread {
	struct task *t;
	struct procinfo_status status;
	struct threadstate_asked asked;
	CoreEntry *core;
};

struct saving {
	struct process *p;
	struct remote *r;
	const struct stop_times *times;
	struct image *img;
	struct arena *a;
	struct report *losses;
	uint64_t base_ns; /* our clock at the moment to which clocks and timers refer */
	TaskCoreEntry *tc;
	size_t n;
	struct thread *threads;
};

static int read_statuses(struct saving *s, struct fault *f)
{
	for (size_t i = 0; i < s->n; i++) {
		s->threads[i].t = &s->p->tasks[i];
		if (procinfo_status(s->p, s->p->tasks[i].tid, &s->threads[i].status, f) < 0)
			return -1;
	}
	return 0;
}

/* Everything that only the process itself can tell, in as few calls as there are answers. */
static int ask(struct saving *s, struct signals_asked *signals, struct attributes_asked *attributes, struct fault *f)
{
	for (size_t i = 0; i < s->n; i++) {
		auto_calls *c = calls_new(s->r, s->threads[i].t->tid);
		threadstate_ask(c, &s->threads[i].asked);
		if (i == 0) {
			signals_ask(c, &s->threads[0].status, signals);
			attributes_ask(c, attributes);
		}
		if (calls_run(c, f) < 0)
			return -1;
	}
	return 0;
}

static int save_regs(struct saving *s, struct thread *th, struct fault *f)
{
	struct arch_regs *regs = arch_regs_new();
	arch_regs_copy(regs, th->t->regs);
	uint64_t pc = arch_pc(regs);
	int ret = threadstate_rseq_pc(s->p, th->t->tid, &pc, f);
	if (ret == 0 && pc != arch_pc(regs))
		arch_set_pc(regs, pc);
	if (ret == 0)
		ret = arch_core_save(th->t->tid, regs, s->a, th->core, f);
	arch_regs_free(regs);
	return ret;
}

static int save_thread(struct saving *s, struct thread *th, struct fault *f)
{
	pid_t tid = th->t->tid;
	ThreadCoreEntry *tc = arena_msg(s->a, ThreadCoreEntry, thread_core_entry);
	th->core = arena_msg(s->a, CoreEntry, core_entry);
	th->core->mtype = arch_march();
	th->core->thread_core = tc;
	tc->has_tid = tc->has_blk_sigset = tc->has_seccomp_mode = true;
	tc->tid = (uint32_t)tid;
	tc->blk_sigset = th->t->sigmask;
	tc->seccomp_mode = SECCOMP_MODE__disabled;
	if (th->asked.securebits < 0)
		return fault_neg(f, FAULT_SYSTEM, th->asked.securebits, "ask for securebits");
	tc->creds = creds_save(&th->status, (uint32_t)th->asked.securebits, s->a);
	if (save_regs(s, th, f) < 0 || threadstate_save(s->p, tid, &th->status, &th->asked, s->a, th->core, f) < 0 ||
	    schedule_save(s->r, tid, s->a, tc, f) < 0 || signals_save_thread(th->t, &th->status, s->a, tc, f) < 0)
		return -1;
	return stop_save(s->p, th->t, s->times, s->a, tc, f);
}

static TaskKobjIdsEntry *make_ids(struct arena *a)
{
	TaskKobjIdsEntry *e = arena_msg(a, TaskKobjIdsEntry, task_kobj_ids_entry);
	e->vm_id = e->fs_id = e->sighand_id = FULL_ID;
	e->files_id = IMAGE_FILES_ID;
	e->has_pid_ns_id = e->has_net_ns_id = e->has_ipc_ns_id = e->has_uts_ns_id = true;
	e->has_mnt_ns_id = e->has_user_ns_id = e->has_cgroup_ns_id = e->has_time_ns_id = true;
	e->pid_ns_id = 1;
	e->net_ns_id = 2;
	e->ipc_ns_id = 3;
	e->uts_ns_id = 4;
	e->mnt_ns_id = 5;
	e->user_ns_id = 6;
	e->cgroup_ns_id = 7;
	e->time_ns_id = TIME_NS_ID;
	return e;
}

static int save_process(struct saving *s, const struct signals_asked *signals,
			const struct attributes_asked *attributes, const struct procinfo_stat *st, struct fault *f)
{
	struct thread *leader = &s->threads[0];
	TaskCoreEntry *tc = s->tc;
	tc->task_state = TASK_STATE_ALIVE;
	tc->flags = st->flags;
	tc->has_start_time = true;
	tc->start_time = st->start_time;
	tc->blk_sigset = leader->t->sigmask;
	tc->comm = leader->core->thread_core->comm;
	tc->has_keepcaps = true;
	tc->keepcaps = (leader->asked.securebits & (1 << 4)) != 0;
	tc->has_pdeath_sig = leader->core->thread_core->has_pdeath_sig;
	tc->pdeath_sig = leader->core->thread_core->pdeath_sig;
	if (signals_save(s->p, &leader->status, signals, s->a, tc, f) < 0 ||
	    attributes_save(s->p, &leader->status, attributes, s->a, tc, f) < 0 || rlimits_save(s->p, s->a, tc, f) < 0)
		return -1;
	leader->core->tc = tc;
	leader->core->ids = make_ids(s->a);
	return 0;
}

static int put_tree(struct saving *s, const struct procinfo_stat *st, struct fault *f)
{
	PstreeEntry *e = arena_msg(s->a, PstreeEntry, pstree_entry);
	e->pid = (uint32_t)s->p->pid;
	e->pgid = (uint32_t)st->pgid;
	e->sid = (uint32_t)st->sid;
	for (size_t i = 0; i < s->n; i++)
		arena_push(s->a, e->n_threads, e->threads, (uint32_t)s->threads[i].t->tid);
	return image_put(s->img, IMAGE_PSTREE, 0, e, NULL, 0, f);
}

static Timespec *make_timespec(struct arena *a, uint64_t ns)
{
	Timespec *t = arena_msg(a, Timespec, timespec);
	t->tv_sec = ns / 1000000000;
	t->tv_nsec = ns % 1000000000;
	return t;
}

static int put_inventory(struct saving *s, const char *migration, struct fault *f)
{
	InventoryEntry *e = arena_msg(s->a, InventoryEntry, inventory_entry);
	TimensEntry *t = arena_msg(s->a, TimensEntry, timens_entry);
	struct utsname u;
	uname(&u);
	e->img_version = IMG_VERSION;
	e->has_fdinfo_per_id = e->fdinfo_per_id = true;
	e->has_ns_per_id = e->ns_per_id = true;
	e->root_ids = make_ids(s->a);
	e->has_lsmtype = true;
	e->lsmtype = LSMTYPE__NO_LSM;
	e->has_dump_uptime = true;
	e->dump_uptime = s->tc->boottime_ns / 1000;
	e->cpr_version = arena_strdup(s->a, CPR_VERSION);
	e->migration = arena_strdup(s->a, migration ? migration : "");
	e->machine = arena_strdup(s->a, u.machine);
	e->kernel = arena_strdup(s->a, u.release);
	e->has_page_size = e->has_root_pid = true;
	e->page_size = (uint32_t)sysconf(_SC_PAGESIZE);
	e->root_pid = (uint32_t)s->p->pid;
	t->monotonic = make_timespec(s->a, s->tc->monotonic_ns);
	t->boottime = make_timespec(s->a, s->tc->boottime_ns);
	return image_put(s->img, IMAGE_INVENTORY, 0, e, NULL, 0, f) < 0
		       ? -1
		       : image_put(s->img, IMAGE_TIMENS, TIME_NS_ID, t, NULL, 0, f);
}

static int put_all(struct saving *s, const struct procinfo_stat *st, const char *migration, struct fault *f)
{
	if (put_inventory(s, migration, f) < 0 || put_tree(s, st, f) < 0 ||
	    image_put(s->img, IMAGE_IDS, (uint32_t)s->p->pid, s->threads[0].core->ids, NULL, 0, f) < 0)
		return -1;
	for (size_t i = 0; i < s->n; i++)
		if (image_put(s->img, IMAGE_CORE, (uint32_t)s->threads[i].t->tid, s->threads[i].core, NULL, 0, f) < 0)
			return -1;
	return 0;
}

static int save(struct saving *s, const char *migration, struct fault *f)
{
	struct signals_asked signals;
	struct attributes_asked attributes;
	struct procinfo_stat st;
	CoreEntry **cores = arena_alloc(s->a, s->n * sizeof(*cores));
	if (procinfo_stat(s->p, &st, f) < 0 || read_statuses(s, f) < 0 || ask(s, &signals, &attributes, f) < 0 ||
	    timers_save(s->p, s->r, s->base_ns, s->a, s->tc, s->losses, f) < 0)
		return -1;
	for (size_t i = 0; i < s->n; i++) {
		if (save_thread(s, &s->threads[i], f) < 0)
			return fault_while(f, "saving thread %d", s->threads[i].t->tid);
		cores[i] = s->threads[i].core;
	}
	if (save_process(s, &signals, &attributes, &st, f) < 0)
		return -1;
	timers_mark_pending(s->tc, cores, s->n);
	return put_all(s, &st, migration, f);
}

int state_save(struct process *p, struct remote *r, const struct stop_times *times, const char *migration,
	       struct image *img, struct report *losses, struct fault *f)
{
	struct saving s = {
		.p = p, .r = r, .times = times, .img = img, .a = image_arena(img), .losses = losses, .n = p->n_tasks
	};
	s.threads = arena_alloc(s.a, s.n * sizeof(*s.threads));
	s.tc = arena_msg(s.a, TaskCoreEntry, task_core_entry);
	s.tc->has_monotonic_ns = s.tc->has_boottime_ns = true;
	s.base_ns = util_monotonic_ns();
	if (identity_clocks(p, &s.tc->monotonic_ns, &s.tc->boottime_ns, f) < 0)
		return -1;
	bool pinned = pin(p);
	int ret = save(&s, migration, f);
	unpin(p, pinned);
	for (size_t i = 0; i < s.n; i++)
		procinfo_status_done(&s.threads[i].status);
	return ret < 0 ? fault_while(f, "saving the state of pid %d (%s)", p->pid, p->comm) : 0;
}

/* ---- both ---- */

/* The image's only process. */
static const PstreeEntry *tree_of(const struct image *img)
{
	return image_get(img, IMAGE_PSTREE, 0);
}

static const CoreEntry *core_of(const struct image *img, uint32_t tid)
{
	const CoreEntry *core = image_get(img, IMAGE_CORE, tid);
	return core && core->thread_core ? core : NULL;
}

size_t state_masked(const struct image *img, struct range *out, size_t max)
{
	const PstreeEntry *tree = tree_of(img);
	size_t n = 0;
	for (size_t i = 0; tree && i < tree->n_threads && n < max; i++) {
		const CoreEntry *core = core_of(img, tree->threads[i]);
		const RseqEntry *e = core ? core->thread_core->rseq_entry : NULL;
		if (e)
			out[n++] = (struct range){ e->rseq_abi_pointer, e->rseq_abi_pointer + e->rseq_abi_size };
	}
	return n;
}

/* ---- before the freeze ---- */

int state_offer(struct process *p, struct remote *r, Cpr__Offer *offer, struct fault *f)
{
	auto_calls *c = calls_new(r, p->pid);
	uint32_t commands;
	if (attributes_barriers(c, &commands, f) < 0)
		return -1;
	offer->has_membarrier = commands != 0;
	offer->membarrier = commands;
	return 0;
}

int state_prepare(struct vessel *v, const Cpr__Offer *offer, struct fault *f)
{
	auto_calls *c = calls_new(vessel_remote(v), vessel_process(v)->pid);
	return attributes_register_barriers(c, offer->membarrier, f);
}

/* ---- destination ---- */

struct restoring {
	struct process *p;
	struct remote *r;
	const struct image *img;
	const PstreeEntry *tree;
	const TaskCoreEntry *tc; /* of the leader */
	size_t n;
	const CoreEntry **cores;     /* as tree->threads */
	struct procinfo_status *had; /* the vessel's threads before their credentials changed */
	struct report *losses;
};

static int begin(struct vessel *v, const struct image *img, struct report *losses, struct restoring *s, struct fault *f)
{
	*s = (struct restoring){ .p = vessel_process(v), .r = vessel_remote(v), .img = img, .losses = losses };
	s->tree = tree_of(img);
	if (!s->tree || !s->tree->n_threads || s->tree->pid != (uint32_t)s->p->pid ||
	    s->tree->threads[0] != s->tree->pid)
		return fault_set(f, FAULT_IMAGE, "a state without a process tree for pid %d", s->p->pid);
	s->n = s->tree->n_threads;
	s->cores = calloc(s->n, sizeof(*s->cores));
	s->had = calloc(s->n, sizeof(*s->had));
	if (!s->cores || !s->had)
		return fault_errno(f, FAULT_NO_MEMORY, "a list of threads");
	for (size_t i = 0; i < s->n; i++) {
		s->cores[i] = core_of(img, s->tree->threads[i]);
		if (!s->cores[i] || !process_task(s->p, (pid_t)s->tree->threads[i]))
			return fault_set(f, FAULT_IMAGE, "thread %u is in the tree, but not in %s", s->tree->threads[i],
					 s->cores[i] ? "the vessel" : "the state");
	}
	s->tc = s->cores[0]->tc;
	if (!s->tc || !s->cores[0]->thread_core->creds)
		return fault_set(f, FAULT_IMAGE, "a state whose leader lacks its process part");
	return 0;
}

static void finish(struct restoring *s)
{
	for (size_t i = 0; s->had && i < s->n; i++)
		procinfo_status_done(&s->had[i]);
	free(s->had);
	free(s->cores);
}

static pid_t tid_at(const struct restoring *s, size_t i)
{
	return (pid_t)s->tree->threads[i];
}

static int restore_basics(struct restoring *s, size_t i, struct fault *f)
{
	const CoreEntry *core = s->cores[i];
	auto_calls *c = calls_new(s->r, tid_at(s, i));
	const char *comm = core->thread_core->comm ? core->thread_core->comm : s->tc->comm;
	threadstate_restore(c, core, comm);
	if (i == 0)
		signals_restore_actions(c, s->tc);
	return calls_run(c, f);
}

static int restore_queues(struct restoring *s, size_t i, struct fault *f)
{
	auto_calls *c = calls_new(s->r, tid_at(s, i));
	if (signals_restore_queue(c, s->p->pid, tid_at(s, i), s->cores[i]->thread_core->signals_p, false,
				  timers_refires, s->tc, f) < 0)
		return -1;
	if (i == 0 &&
	    signals_restore_queue(c, s->p->pid, s->p->pid, s->tc->signals_s, true, timers_refires, s->tc, f) < 0)
		return -1;
	return calls_run(c, f);
}

static int restore_creds(struct restoring *s, size_t i, struct fault *f)
{
	const CredsEntry *creds = s->cores[i]->thread_core->creds;
	auto_calls *c = calls_new(s->r, tid_at(s, i));
	if (!creds)
		creds = s->cores[0]->thread_core->creds;
	if (procinfo_status(s->p, tid_at(s, i), &s->had[i], f) < 0)
		return -1;
	return creds_restore(c, creds, &s->had[i], s->losses, f);
}

static int verify_creds(struct restoring *s, size_t i, struct fault *f)
{
	const CredsEntry *creds = s->cores[i]->thread_core->creds;
	struct procinfo_status is;
	if (procinfo_status(s->p, tid_at(s, i), &is, f) < 0)
		return -1;
	int ret = creds_verify(creds ? creds : s->cores[0]->thread_core->creds, &s->had[i], &is, f);
	procinfo_status_done(&is);
	return ret;
}

static int for_each_thread(struct restoring *s, int (*fn)(struct restoring *, size_t, struct fault *), struct fault *f)
{
	for (size_t i = 0; i < s->n; i++)
		if (fn(s, i, f) < 0)
			return fault_while(f, "restoring thread %d", tid_at(s, i));
	return 0;
}

static int restore_schedule(struct restoring *s, size_t i, struct fault *f)
{
	schedule_check_affinity(tid_at(s, i), s->cores[i]->thread_core, s->losses);
	return schedule_restore(tid_at(s, i), s->cores[i]->thread_core, s->losses, f);
}

static int restore(struct restoring *s, struct fault *f)
{
	auto_calls *c = calls_new(s->r, s->p->pid);
	if (for_each_thread(s, restore_basics, f) < 0 || timers_restore(s->r, s->p->pid, s->tc, f) < 0 ||
	    for_each_thread(s, restore_queues, f) < 0 || for_each_thread(s, restore_schedule, f) < 0 ||
	    attributes_restore(s->p, s->tc, s->losses, f) < 0 || rlimits_restore(s->p, s->tc, s->losses, f) < 0 ||
	    for_each_thread(s, restore_creds, f) < 0)
		return -1;
	if (attributes_restore_own(c, s->tc, f) < 0 || rlimits_restore_last(c, s->p, s->tc, f) < 0 ||
	    calls_run(c, f) < 0)
		return -1;
	return for_each_thread(s, verify_creds, f);
}

int state_restore(struct vessel *v, const struct image *img, struct report *losses, struct fault *f)
{
	struct restoring s;
	int ret = begin(v, img, losses, &s, f);
	if (ret == 0) {
		bool pinned = pin(s.p);
		ret = restore(&s, f);
		unpin(s.p, pinned);
	}
	finish(&s);
	return ret < 0 ? fault_while(f, "restoring the state of pid %d", s.p->pid) : 0;
}

/* A process whose parent ends gets its parent-death signal: the helper that made the vessel must be gone by now. */
static int check_parent(struct restoring *s, struct fault *f)
{
	struct procinfo_stat st;
	char path[32];
	if (procinfo_stat(s->p, &st, f) < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/stat", st.ppid);
	auto_free char *text = util_read_file(-1, path, NULL);
	struct procinfo_stat parent = { 0 };
	if (text && procinfo_parse_stat(text, &parent, f) < 0)
		return -1;
	if (st.ppid == getpid() || parent.ppid == getpid())
		return fault_set(f, FAULT_INTERNAL, "pid %d has a parent-death signal, and not yet its final parent",
				 s->p->pid);
	return 0;
}

static int last_calls(struct restoring *s, size_t i, struct fault *f)
{
	const ThreadCoreEntry *th = s->cores[i]->thread_core;
	auto_calls *c = calls_new(s->r, tid_at(s, i));
	if (th->pdeath_sig) {
		if (check_parent(s, f) < 0)
			return -1;
		CALL(c, "set the parent-death signal", NULL, SYS_prctl, PR_SET_PDEATHSIG, th->pdeath_sig);
	}
	if (i == 0)
		attributes_restore_last(c, s->tc);
	if (threadstate_restore_rseq(c, s->p, th, f) < 0)
		return -1;
	return calls_run(c, f);
}

static int final_regs(struct restoring *s, size_t i, struct arch_regs *regs, struct fault *f)
{
	struct task *t = process_task(s->p, tid_at(s, i));
	const ThreadCoreEntry *th = s->cores[i]->thread_core;
	uint64_t mask = i == 0 ? s->tc->blk_sigset : th->blk_sigset;
	if (arch_regs_set(t->tid, regs, f) < 0)
		return -1;
	if (ptrace(PTRACE_SETSIGMASK, t->tid, SIGSET_BYTES, &mask) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the signal mask of thread %d", t->tid);
	t->sigmask = mask;
	if (t->regs)
		arch_regs_copy(t->regs, regs);
	return schedule_restore_affinity(t->tid, th, f);
}

/* Sent from outside when nothing is run in the vessel any more, and taken at the thaw. */
static int send_late_signals(struct restoring *s, struct fault *f)
{
	uint64_t late = signals_late(s->tc->signals_s);
	for (int sig = 1; sig <= SIGNALS_MAX; sig++)
		if (late & SIGNALS_BIT(sig) && kill(s->p->pid, sig) < 0)
			return fault_errno(f, FAULT_SYSTEM, "send signal %d to pid %d", sig, s->p->pid);
	for (size_t i = 0; i < s->n; i++) {
		late = signals_late(s->cores[i]->thread_core->signals_p);
		for (int sig = 1; sig <= SIGNALS_MAX; sig++)
			if (late & SIGNALS_BIT(sig) && syscall(SYS_tgkill, s->p->pid, tid_at(s, i), sig) < 0)
				return fault_errno(f, FAULT_SYSTEM, "send signal %d to thread %d", sig, tid_at(s, i));
	}
	return 0;
}

static int restore_regs(struct restoring *s, struct arch_regs **regs, struct fault *f)
{
	if (for_each_thread(s, last_calls, f) < 0)
		return -1;
	for (size_t i = 0; i < s->n; i++) {
		regs[i] = arch_regs_new();
		if (arch_core_restore(tid_at(s, i), s->cores[i], regs[i], f) < 0 ||
		    stop_restore(s->r, tid_at(s, i), s->cores[i]->thread_core, regs[i], f) < 0)
			return fault_while(f, "restoring thread %d", tid_at(s, i));
	}
	process_unpin(s->p);
	if (remote_close(s->r, f) < 0)
		return -1;
	for (size_t i = 0; i < s->n; i++)
		if (final_regs(s, i, regs[i], f) < 0)
			return fault_while(f, "restoring thread %d", tid_at(s, i));
	return send_late_signals(s, f);
}

int state_restore_regs(struct vessel *v, const struct image *img, struct fault *f)
{
	struct restoring s;
	struct arch_regs **regs = NULL;
	int ret = begin(v, img, NULL, &s, f);
	if (ret == 0) {
		regs = calloc(s.n, sizeof(struct arch_regs *));
		if (!regs)
			abort();
		process_pin(s.p);
		ret = restore_regs(&s, regs, f);
		process_unpin(s.p);
	}
	for (size_t i = 0; regs && i < s.n; i++)
		if (regs[i])
			arch_regs_free(regs[i]);
	free(regs);
	finish(&s);
	return ret < 0 ? fault_while(f, "restoring the registers of pid %d", s.p->pid) : 0;
}
