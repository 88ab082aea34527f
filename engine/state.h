/*
 * Everything of a process that is neither memory nor a descriptor: registers, signals, timers, identity, limits,
 * scheduling, names; per process and per thread. The image side is core_entry (leader: with tc and ids), one per thread.
 *
 *	source       state_check (vetting, stopped), state_save (stopped, r open, not frozen by cgroup)
 *	destination  state_check_target (vetting), state_restore (after memory and descriptors), vessel_orphan (a parent-death
 *	             signal must find the final parent), state_restore_regs last: it removes the stub
 */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include "image.h"
#include "report.h"
#include "stop.h"
#include "vessel.h"
#include "wire.pb-c.h"

int state_check(struct process *p, struct remote *r, struct report *report, struct fault *f) MUST_CHECK;
/* Optional, both: what is slow to restore in the pause goes along with the offer (vetting, stopped), and is done when the
 * vessel is new and has one thread. Memory barrier registrations: 15 ms and more each with several threads. */
int state_offer(struct process *p, struct remote *r, Cpr__Offer *offer, struct fault *f) MUST_CHECK;
int state_prepare(struct vessel *v, const Cpr__Offer *offer, struct fault *f) MUST_CHECK;
/* IMAGE_CORE per thread, IMAGE_IDS, IMAGE_PSTREE, IMAGE_TIMENS, IMAGE_INVENTORY. */
int state_save(struct process *p, struct remote *r, const struct stop_times *times, const char *migration,
	       struct image *img, struct report *losses, struct fault *f) MUST_CHECK;
/* Areas the kernel writes by itself (rseq of each thread): masked in digests. */
size_t state_masked(const struct image *img, struct range *out, size_t max);
/* All but registers, rseq and restart blocks. The vessel has its threads. Limits that can't be set are losses. */
int state_restore(struct vessel *v, const struct image *img, struct report *losses, struct fault *f) MUST_CHECK;
/* Restart blocks, rseq, seccomp; then the stub goes (remote_close), then registers, xstate and masks of all threads
 * by ptrace: nothing may run in the vessel after it. */
int state_restore_regs(struct vessel *v, const struct image *img, struct fault *f) MUST_CHECK;
/* What the destination can check before the freeze, from the offer. */
int state_check_target(const Cpr__Offer *offer, struct report *report, struct fault *f) MUST_CHECK;

#endif
