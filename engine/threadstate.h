/*
 * What the kernel keeps for one thread at the request of its C library: alternate signal stack, robust futex list, the
 * address cleared at its exit, rseq area, name; and its parent-death signal and speculation controls.
 *
 *	source       threadstate_ask, calls_run, threadstate_save
 *	destination  threadstate_restore         early
 *	             threadstate_restore_rseq    last of all calls but restart blocks: the kernel writes into the area
 */
#ifndef ENGINE_THREADSTATE_H
#define ENGINE_THREADSTATE_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "procinfo.h"

struct threadstate_asked {
	struct {
		uint64_t sp;
		int32_t flags;
		uint64_t size;
	} altstack;
	uint64_t clear_tid;
	int32_t pdeath_sig;
	long securebits;
};

void threadstate_ask(struct calls *c, struct threadstate_asked *out);
/* core->thread_core and thread_info are there. *pc: where the thread goes on; moved to the abort handler when it was
 * stopped in an rseq critical section, as the kernel would have done at its return. */
int threadstate_save(struct process *p, pid_t tid, const struct procinfo_status *s,
		     const struct threadstate_asked *asked, struct arena *a, CoreEntry *core,
		     struct fault *f) MUST_CHECK;
/* The program counter with which a thread stopped at `pc` goes on, rseq considered. */
int threadstate_rseq_pc(struct process *p, pid_t tid, uint64_t *pc, struct fault *f) MUST_CHECK;

void threadstate_restore(struct calls *c, const CoreEntry *core, const char *comm);
/* Zeroes the area's rseq_cs (a stale pointer is as good as none) and adds the registration to c. */
int threadstate_restore_rseq(struct calls *c, struct process *p, const ThreadCoreEntry *th, struct fault *f) MUST_CHECK;

#endif
