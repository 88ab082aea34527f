/*
 * The process-to-be on the destination.
 *
 *	vessel_new(&spec, &v)        reserves the PID, in its cgroup and time namespace; stopped, empty but for its vDSO
 *	vessel_threads(v, tids, n)   threads with these ids, no others; again when the source's have changed
 *	vessel_remote(v)             for memory and state (singlestepped calls, tables)
 *	vessel_run(v, fn, arg)       fn runs in the helper: ordinary C, root, in the vessel's own descriptor table
 *	vessel_orphan(v)             the helper exits: the vessel has its final parent
 *	vessel_discard(v)            kills and reaps everything
 *
 * The helper is a process that shares the worker's memory (CLONE_VM, its own stack) but not its descriptors; the
 * vessel is cloned from it with CLONE_FILES. It runs only while the worker waits in vessel_run, so that they never
 * use libc at the same time. Its descriptor table starts out empty: what fn opens is what the vessel has.
 * A pointer to worker memory is as good in fn as outside; a descriptor number is not (helper_fetch_fd).
 * Working directory, root and umask are shared by helper and vessel (CLONE_FS) and nobody else: chdir(2), chroot(2) and
 * umask(2) in fn are the vessel's. Signals are blocked in the helper.
 * A vessel starts with default dispositions, no alternate stack, no pending signals, no rseq, no robust list, in a session
 * of its own; scheduling, limits, credentials, names are still the worker's. vessel_new and vessel_threads use the scratch.
 */
#ifndef ENGINE_VESSEL_H
#define ENGINE_VESSEL_H

#include "remote.h"

struct vessel_spec {
	pid_t pid;
	bool new_session; /* pid is its own session leader (else a new session, too: see TaskInfo) */
	bool new_group;
	int cgroup_fd;	       /* cgroup2 directory for CLONE_INTO_CGROUP; -1: the worker's own */
	uint64_t monotonic_ns; /* the process's clocks at at_ns; 0, 0: no time namespace */
	uint64_t boottime_ns;
	uint64_t at_ns; /* our CLOCK_MONOTONIC when they were that; 0: now */
};

struct vessel;

/* FAULT_PID_TAKEN when the number is in use, also as that of a group or session. */
int vessel_new(const struct vessel_spec *spec, struct vessel **out, struct fault *f) MUST_CHECK;
struct process *vessel_process(struct vessel *v);
struct remote *vessel_remote(struct vessel *v); /* NULL after its remote_close */
/* n tids, the first being the pid. Creates what is missing (FAULT_PID_TAKEN), ends what is too many. */
int vessel_threads(struct vessel *v, const uint32_t *tids, size_t n, struct fault *f) MUST_CHECK;
int vessel_run(struct vessel *v, int (*fn)(void *arg, struct fault *f), void *arg, struct fault *f) MUST_CHECK;
/* In fn: a duplicate, in the helper's table at a number >= min, of descriptor `fd` of the worker. */
int helper_fetch_fd(int fd, int min, struct fault *f);
int vessel_orphan(struct vessel *v, struct fault *f) MUST_CHECK;
/* Before the commit's thaw: PTRACE_O_EXITKILL off, all threads detached (into the frozen cgroup). v is freed.
 * Its remote is closed. */
int vessel_let_go(struct vessel *v, struct fault *f) MUST_CHECK;
void vessel_discard(struct vessel *v);

#endif
