/*
 * Remote syscalls: a stopped thread is made to run one syscall, by ptrace.
 *
 *	remote_open(p, keep_clear…, &r)   finds or maps what is needed
 *	remote_call(r, tid, …)            as often as needed
 *	remote_close(r)                   unmaps it; registers and mask are the program's own again
 *
 * On a source process calls are guarded: PTRACE_SYSCALL, through `syscall; ret` into rt_sigreturn on a
 * frame that holds the thread's own context, so that a thread let go at any moment by our death goes on
 * by itself (p3d). On a vessel they are PTRACE_SINGLESTEP, and remote_batch runs a table in one go.
 * A call never sees the target's signals (all are blocked meanwhile), seccomp filter (suspended) or
 * user dispatch (off meanwhile).
 * Nobody may touch the registers or the signal mask of a thread between its first call and remote_close.
 *
 * Our death, at any instant of a guarded session (test/unit/engine_remote.c): a thread is in one of two states. Either its
 * registers and mask are its own; or its registers are on the path call -> rt_sigreturn, whose frame has both. Hence
 * the order: frame written, registers set, mask changed; and back: mask, then registers. Only user dispatch stays off,
 * and the scratch mapped (no thread looks at it; the next remote_open finds and removes it).
 */
#ifndef ENGINE_REMOTE_H
#define ENGINE_REMOTE_H

#include <sched.h>

#include "process.h"

/* Ranges that the stub must not lie in: the other host's mappings. */
struct range {
	uint64_t start, end;
};

struct remote;

/* The stub and its scratch (REMOTE_SCRATCH bytes, read-write) are placed clear of the process's own mappings and
 * of keep_clear[0..n). A stub that a dead worker left is found and used. */
#define REMOTE_SCRATCH ((size_t)64 << 10)
int remote_open(struct process *p, const struct range *keep_clear, size_t n, struct remote **out,
		struct fault *f) MUST_CHECK;
/* Every thread back in its own context, stub unmapped, r freed. On a vessel `keep_context` false: registers are
 * not touched (the caller has set, or will set, the final ones). */
int remote_close(struct remote *r, struct fault *f) MUST_CHECK;
void remote_forget(struct remote *r); /* frees r only: the process is gone or is being discarded */

/* *ret is what the kernel returned, -errno included. -1 only when the call could not be made. */
int remote_call(struct remote *r, pid_t tid, long nr, const uint64_t args[6], long *ret, struct fault *f) MUST_CHECK;
/* REMOTE(r, tid, &ret, f, SYS_munmap, addr, len) */
#define REMOTE(r, tid, ret, f, nr, ...) remote_call((r), (tid), (nr), (const uint64_t[6]){ __VA_ARGS__ }, (ret), (f))

/* A table of calls, run at one stop where that is possible (vessels), else one by one. ret is filled in. A call with
 * stop_on_error whose result is -4095..-1 ends the batch; *done = calls made. */
struct remote_entry {
	long nr;
	uint64_t args[6];
	long ret;
	bool stop_on_error;
};
int remote_batch(struct remote *r, pid_t tid, struct remote_entry *calls, size_t n, size_t *done,
		 struct fault *f) MUST_CHECK;

uint64_t remote_scratch(const struct remote *r);	/* address of the scratch in the process */
struct range remote_stub_range(const struct remote *r); /* stub and scratch: not part of the image */
int remote_put(struct remote *r, size_t offset, const void *buf, size_t len, struct fault *f) MUST_CHECK;
int remote_get(struct remote *r, size_t offset, void *buf, size_t len, struct fault *f) MUST_CHECK;
/* Moves the stub of a vessel when new mappings are about to cover it. What is in the scratch is lost. */
int remote_relocate(struct remote *r, const struct range *keep_clear, size_t n, struct fault *f) MUST_CHECK;
struct process *remote_process(struct remote *r);
/* What a source's thread was bound to before it was pinned for its calls (process_pin). False: it is not pinned. */
bool remote_affinity(const struct remote *r, pid_t tid, cpu_set_t *out);
/* Did it have syscall user dispatch on, before that was switched off for its calls? */
bool remote_dispatches(const struct remote *r, pid_t tid);
/* Vessels: a call that would wait is made and interrupted at once. *ret is -512..-516 then, the kernel's restart block is
 * that of this call, and the thread is where the program's registers can be set to restart it; else what it returned. */
int remote_interrupted_call(struct remote *r, pid_t tid, long nr, const uint64_t args[6], long *ret,
			    struct fault *f) MUST_CHECK;

/* Vessels: a thread other than the leader ends itself and leaves the process's list. */
int remote_exit(struct remote *r, pid_t tid, struct fault *f) MUST_CHECK;

#endif
