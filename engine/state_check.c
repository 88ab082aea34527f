/*
 * What keeps a process from being moved, as far as neither memory nor descriptors are concerned. Everything is found,
 * nothing ends the walk.
 */
#include "state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"
#include "creds.h"
#include "procinfo.h"
#include "timers.h"

#define GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211 /* PTRACE_*, Linux 6.4 */
#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68
#endif
#define REGSET_GENERAL 1    /* NT_PRSTATUS */
#define PRSTATUS_64    128u /* a native register set of any 64-bit machine is longer than that, a compat one is not */

struct check {
	struct process *p;
	struct remote *r;
	struct report *report;
	char object[48]; /* "pid 4242 (redis-server)" */
};

static void block(struct check *c, const char *object, const char *remedy, const char *reason)
{
	report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object, remedy, "%s", reason);
}

static void thread_name(const struct check *c, pid_t tid, char out[48])
{
	if (tid == c->p->pid)
		snprintf(out, 48, "%s", c->object);
	else
		snprintf(out, 48, "thread %d", tid);
}

/* ---- namespaces ---- */

struct ns_rule {
	const char *name, *what;
};

static void check_namespaces(struct check *c, pid_t tid)
{
	static const struct ns_rule rules[] = {
		{ "user", "a user namespace" },
		{ "pid", "a PID namespace" },
		{ "mnt", "a mount namespace" },
		{ "net", "a network namespace" },
		{ "ipc", "an IPC namespace" },
		{ "uts", "a UTS namespace" },
		{ "pid_for_children", "a PID namespace for its children" },
	};
	char object[48];
	thread_name(c, tid, object);
	for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
		char path[64], own[64], theirs[64];
		snprintf(path, sizeof(path), "task/%d/ns/%s", tid, rules[i].name);
		char self[64];
		snprintf(self, sizeof(self), "/proc/self/ns/%s", rules[i].name);
		ssize_t m = readlink(self, own, sizeof(own));
		ssize_t n = readlinkat(c->p->procfd, path, theirs, sizeof(theirs));
		/* ENOENT: a namespace that no process is in yet, or one that this kernel does not know. */
		if (m < 0 || (n < 0 && errno != ENOENT) || (n == m && !memcmp(own, theirs, (size_t)n)))
			continue;
		report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   "move a process that is outside containers",
			   "it is in %s other than the agent's, and namespaces are not moved yet", rules[i].what);
	}
}

/* A time namespace of its own is moved; one that only its children would be in is not. */
static void check_time_namespace(struct check *c)
{
	char own[64], children[64];
	ssize_t n = readlinkat(c->p->procfd, "ns/time", own, sizeof(own));
	ssize_t m = readlinkat(c->p->procfd, "ns/time_for_children", children, sizeof(children));
	if (n > 0 && m > 0 && (n != m || memcmp(own, children, (size_t)n)))
		block(c, c->object, NULL, "it made a time namespace for its children (unshare(CLONE_NEWTIME))");
}

/* ---- other processes ---- */

static void add_child(char *list, size_t len, const char *pid)
{
	size_t used = strlen(list);
	if (used + strlen(pid) + 3 < len)
		snprintf(list + used, len - used, "%s%s", used ? ", " : "", pid);
}

/* Children by /proc/TID/children, which needs CONFIG_PROC_CHILDREN; without it, by all stat files. */
static bool children_of_thread(struct check *c, pid_t tid, char *list, size_t len)
{
	auto_free char *text = procinfo_thread_file(c->p, tid, "children");
	if (!text)
		return false;
	for (char *save = NULL, *s = strtok_r(text, " ", &save); s; s = strtok_r(NULL, " ", &save)) {
		add_child(list, len, s);
	}
	return true;
}

static void children_of_host(struct check *c, char *list, size_t len)
{
	DIR *d = opendir("/proc");
	for (struct dirent *e; d && (e = readdir(d));) {
		char path[300];
		struct procinfo_stat st;
		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		auto_free char *text = util_read_file(-1, path, NULL);
		if (!text || procinfo_parse_stat(text, &st, NULL) < 0 || st.ppid != c->p->pid)
			continue;
		add_child(list, len, e->d_name);
	}
	if (d)
		closedir(d);
}

static void check_children(struct check *c)
{
	char list[200] = "";
	for (size_t i = 0; i < c->p->n_tasks; i++)
		if (!children_of_thread(c, c->p->tasks[i].tid, list, sizeof(list))) {
			list[0] = 0;
			children_of_host(c, list, sizeof(list));
			break;
		}
	if (list[0])
		report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, c->object,
			   "let its child processes end first (zombies count, too: they have to be waited for)",
			   "it has child processes (%s), and trees of processes are not moved yet", list);
}

static bool shares(pid_t a, pid_t b, int type)
{
	return syscall(SYS_kcmp, a, b, type, 0, 0) == 0;
}

static void check_sharing(struct check *c, pid_t parent)
{
	static const struct {
		int type;
		const char *what;
	} kinds[] = { { KCMP_VM, "memory" }, { KCMP_FILES, "descriptors" }, { KCMP_FS, "working directory" } };
	char reason[128], object[48];
	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		snprintf(reason, sizeof(reason), "it shares its %s with process %d (vfork(2), clone(2))", kinds[k].what,
			 parent);
		if (parent > 0 && shares(c->p->pid, parent, kinds[k].type))
			block(c, c->object, NULL, reason);
		for (size_t i = 1; i < c->p->n_tasks; i++) {
			/* kcmp(2) fails where it is not built in: what can't be asked is not known to differ. */
			if (syscall(SYS_kcmp, c->p->pid, c->p->tasks[i].tid, kinds[k].type, 0, 0) <= 0)
				continue;
			thread_name(c, c->p->tasks[i].tid, object);
			snprintf(reason, sizeof(reason), "it has its own %s (unshare(2) in a thread)", kinds[k].what);
			block(c, object, NULL, reason);
		}
	}
}

static void check_session(struct check *c, const struct procinfo_stat *st)
{
	if (st->tty)
		block(c, c->object, "start it with setsid(1) and its output in a file, as a service",
		      "it has a controlling terminal");
	else if (st->sid != c->p->pid)
		report_add(c->report, REPORT_LOSS, FAULT_UNSUPPORTED, c->object, "start it with setsid(1)",
			   "its session is %d, which stays behind: it becomes its own session leader", st->sid);
	else if (st->pgid != c->p->pid)
		report_add(c->report, REPORT_LOSS, FAULT_UNSUPPORTED, c->object, NULL,
			   "its process group is %d, which stays behind: it gets its own", st->pgid);
}

/* ---- threads ---- */

struct dispatch_config { /* struct ptrace_sud_config */
	uint64_t mode, selector, offset, len;
};

static void check_regs(struct check *c, pid_t tid, const char *object)
{
	char regs[1024];
	struct iovec iov = { regs, sizeof(regs) };
	if (ptrace(PTRACE_GETREGSET, tid, REGSET_GENERAL, &iov) == 0 && iov.iov_len < PRSTATUS_64)
		block(c, object, NULL, "it runs 32-bit code");
}

static int check_thread(struct check *c, pid_t tid, struct fault *f)
{
	struct procinfo_status s;
	struct dispatch_config sud = { 0 };
	char object[48];
	thread_name(c, tid, object);
	if (procinfo_status(c->p, tid, &s, f) < 0)
		return -1;
	if (s.seccomp)
		block(c, object, "start it without a filter (SystemCallFilter= of its unit)",
		      "it is under seccomp, which is not moved yet");
	if ((ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof(sud), &sud) == 0 && sud.mode) ||
	    remote_dispatches(c->r, tid))
		block(c, object, NULL, "it uses syscall user dispatch (prctl(PR_SET_SYSCALL_USER_DISPATCH))");
	if (s.tracer && s.tracer != getpid() && s.tracer != (pid_t)syscall(SYS_gettid))
		block(c, object, "end the debugger or tracer", "it is traced by another process");
	if (s.shadow_stack)
		block(c, object, "start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK",
		      "it has a shadow stack, which is not moved yet");
	if (s.untag_mask != UINT64_MAX)
		block(c, object, NULL, "it uses pointer tags (linear address masking)");
	if (s.kernel_thread)
		report_add(c->report, REPORT_BLOCKER, FAULT_NOT_MOVABLE, object, NULL, "it is a kernel thread");
	if (s.state == 'Z' || s.state == 'X')
		block(c, object, NULL, "it has ended");
	if (s.n_groups > CREDS_GROUPS_MAX)
		block(c, object, NULL, "it is in too many groups");
	procinfo_status_done(&s);
	check_regs(c, tid, object);
	check_namespaces(c, tid);
	return 0;
}

/* ---- what only the process can tell ---- */

struct asked {
	long session_key, process_key, thread_key, user_session_key;
	long tsc, memory_merge, policy;
	int32_t tsc_mode, policy_mode;
};

static int ask(struct check *c, struct asked *a, struct fault *f)
{
	memset(a, 0, sizeof(*a));
	auto_calls *calls = calls_new(c->r, c->p->pid);
	const struct {
		int32_t which;
		long *to;
	} keys[] = {
		{ KEY_SPEC_SESSION_KEYRING, &a->session_key },
		{ KEY_SPEC_PROCESS_KEYRING, &a->process_key },
		{ KEY_SPEC_THREAD_KEYRING, &a->thread_key },
		{ KEY_SPEC_USER_SESSION_KEYRING, &a->user_session_key },
	};
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		CALL(calls, NULL, keys[i].to, SYS_keyctl, KEYCTL_GET_KEYRING_ID, (uint64_t)(int64_t)keys[i].which, 0);
	CALL(calls, NULL, &a->tsc, SYS_prctl, PR_GET_TSC, calls_out(calls, &a->tsc_mode, sizeof(a->tsc_mode)));
	CALL(calls, NULL, &a->memory_merge, SYS_prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
	CALL(calls, NULL, &a->policy, SYS_get_mempolicy, calls_out(calls, &a->policy_mode, sizeof(a->policy_mode)), 0,
	     0, 0, 0);
	return calls_run(calls, f);
}

static void lose(struct check *c, enum report_severity severity, const char *reason)
{
	report_add(c->report, severity, FAULT_UNSUPPORTED, c->object, NULL, "%s", reason);
}

static void check_asked(struct check *c, const struct asked *a)
{
	if (a->process_key > 0 || a->thread_key > 0)
		lose(c, REPORT_LOSS, "it has keys of its own (process or thread keyring), which stay behind");
	if (a->session_key > 0 && a->session_key != a->user_session_key)
		lose(c, REPORT_NOTE, "its session keyring stays behind: it has that of the other host's worker");
	if (a->tsc == 0 && a->tsc_mode == PR_TSC_SIGSEGV)
		block(c, c->object, NULL, "it may not read the time stamp counter (prctl(PR_SET_TSC))");
	if (a->memory_merge > 0)
		lose(c, REPORT_LOSS,
		     "it lets the kernel merge equal pages (prctl(PR_SET_MEMORY_MERGE)): no more there");
	if (a->policy == 0 && a->policy_mode)
		lose(c, REPORT_LOSS, "its NUMA memory policy is not carried over");
}

/* ---- the rest ---- */

static void check_label(struct check *c)
{
	auto_free char *theirs = util_read_file(c->p->procfd, "attr/current", NULL);
	auto_free char *ours = util_read_file(-1, "/proc/self/attr/current", NULL);
	if (theirs && ours && theirs[0] && strcmp(theirs, ours))
		report_add(c->report, REPORT_LOSS, FAULT_UNSUPPORTED, c->object, NULL,
			   "its security label (%.*s) is not carried over", (int)strcspn(theirs, "\n"), theirs);
}

static int check_timers(struct check *c, struct fault *f)
{
	auto_free struct procinfo_timer *list = NULL;
	size_t n;
	char object[48];
	if (procinfo_timers(c->p, &list, &n, f) < 0)
		return -1;
	int id = timers_unknown_owner(list, n, c->p->n_tasks);
	if (!id)
		return 0;
	snprintf(object, sizeof(object), "timer %d", id - 1);
	block(c, object, NULL, "it counts the CPU time of one thread, and the kernel does not tell which");
	return 0;
}

static int check_all(struct check *c, struct fault *f)
{
	struct procinfo_stat st;
	struct asked asked;
	if (procinfo_stat(c->p, &st, f) < 0)
		return -1;
	if (c->p->pid == 1)
		report_add(c->report, REPORT_BLOCKER, FAULT_NOT_MOVABLE, c->object, NULL,
			   "it is the init of this host");
	for (size_t i = 0; i < c->p->n_tasks; i++)
		if (check_thread(c, c->p->tasks[i].tid, f) < 0)
			return -1;
	check_time_namespace(c);
	check_children(c);
	check_sharing(c, st.ppid);
	check_session(c, &st);
	check_label(c);
	lose(c, REPORT_NOTE, "the CPU time that it has used is counted from zero on the other host");
	if (check_timers(c, f) < 0 || ask(c, &asked, f) < 0)
		return -1;
	check_asked(c, &asked);
	return 0;
}

int state_check(struct process *p, struct remote *r, struct report *report, struct fault *f)
{
	struct check c = { .p = p, .r = r, .report = report };
	snprintf(c.object, sizeof(c.object), "pid %d (%.16s)", p->pid, p->comm);
	int ret = check_all(&c, f);
	return ret < 0 ? fault_while(f, "looking at the state of pid %d (%s)", p->pid, p->comm) : 0;
}
