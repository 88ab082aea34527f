/*
 * What procfs tells about a thread or a process without running anything in it: status, stat, limits, timers.
 * The parsers take text, so that they can be tested with what other kernels print.
 */
#ifndef ENGINE_PROCINFO_H
#define ENGINE_PROCINFO_H

#include "process.h"

enum procinfo_id { PROCINFO_REAL, PROCINFO_EFFECTIVE, PROCINFO_SAVED, PROCINFO_FS, PROCINFO_IDS };
enum procinfo_cap {
	PROCINFO_CAP_INH,
	PROCINFO_CAP_PRM,
	PROCINFO_CAP_EFF,
	PROCINFO_CAP_BND,
	PROCINFO_CAP_AMB,
	PROCINFO_CAPS
};

/* /proc/PID/task/TID/status */
struct procinfo_status {
	pid_t tgid, tid, ppid, tracer;
	char state;
	uint32_t umask;
	uint32_t uid[PROCINFO_IDS], gid[PROCINFO_IDS];
	uint32_t *groups; /* malloc'ed */
	size_t n_groups;
	uint64_t sig_pending, sig_shared, sig_blocked, sig_ignored, sig_caught;
	uint64_t caps[PROCINFO_CAPS];
	bool no_new_privs, kernel_thread, shadow_stack;
	unsigned seccomp;
	uint64_t untag_mask;	 /* all ones: the program uses no pointer tags (x86 LAM) */
	uint32_t ssb, spec_ib;	 /* PR_SPEC_* asked for by prctl(2); 0: nothing was */
	char speculation[2][48]; /* the words themselves, for comparing */
};

/* /proc/PID/stat */
struct procinfo_stat {
	char state;
	pid_t ppid, pgid, sid;
	uint32_t tty, flags; /* flags: PF_* */
	uint64_t start_time;
};

struct procinfo_limit {
	uint64_t cur, max; /* RLIM_INFINITY is UINT64_MAX */
};
#define PROCINFO_LIMITS 16

/* /proc/PID/timers: what a timer is, not its value */
struct procinfo_timer {
	int id, signo, notify; /* SIGEV_* without SIGEV_THREAD_ID */
	int tid;	       /* SIGEV_THREAD_ID: the thread; else 0 */
	int clock;
	uint64_t value; /* sigev_value */
};

int procinfo_parse_status(const char *text, struct procinfo_status *out, struct fault *f) MUST_CHECK;
int procinfo_parse_stat(const char *text, struct procinfo_stat *out, struct fault *f) MUST_CHECK;
int procinfo_parse_limits(const char *text, struct procinfo_limit out[PROCINFO_LIMITS], struct fault *f) MUST_CHECK;
/* malloc'ed array, by id */
int procinfo_parse_timers(const char *text, struct procinfo_timer **out, size_t *n, struct fault *f) MUST_CHECK;

/* The same, read: of one thread, or of the process. procinfo_status_done() frees the groups. */
int procinfo_status(struct process *p, pid_t tid, struct procinfo_status *out, struct fault *f) MUST_CHECK;
void procinfo_status_done(struct procinfo_status *s);
int procinfo_stat(struct process *p, struct procinfo_stat *out, struct fault *f) MUST_CHECK;
int procinfo_limits(struct process *p, struct procinfo_limit out[PROCINFO_LIMITS], struct fault *f) MUST_CHECK;
int procinfo_timers(struct process *p, struct procinfo_timer **out, size_t *n, struct fault *f) MUST_CHECK;
/* A file of a thread as a string, without its final newline; NULL when it is not there. Freed by the caller. */
char *procinfo_thread_file(struct process *p, pid_t tid, const char *name) MUST_CHECK;
/* A file that holds one number, decimal or with `base`; false when it is not there. */
bool procinfo_number(struct process *p, const char *name, int base, int64_t *out) MUST_CHECK;
/* Of a limit: "open files (RLIMIT_NOFILE)". */
const char *procinfo_limit_name(size_t resource);

#endif
