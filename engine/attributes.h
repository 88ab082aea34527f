/*
 * What a process is marked with, apart from limits and credentials: personality, OOM score, core dumps, subreaper,
 * huge pages, memory barriers, what its executable memory may become (MDWE).
 *
 *	source       attributes_ask, calls_run, attributes_save
 *	destination  attributes_restore         while the vessel is still root
 *	             attributes_restore_own     inside it, credentials being final (dumpable is reset by their change)
 *	             attributes_restore_last    nothing is mapped any more after it (MDWE)
 */
#ifndef ENGINE_ATTRIBUTES_H
#define ENGINE_ATTRIBUTES_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "procinfo.h"
#include "report.h"

struct attributes_asked {
	int32_t subreaper;
	long dumpable, mdwe, membarrier, thp_disable;
};

void attributes_ask(struct calls *c, struct attributes_asked *out);
int attributes_save(struct process *p, const struct procinfo_status *leader, const struct attributes_asked *asked,
		    struct arena *a, TaskCoreEntry *tc, struct fault *f) MUST_CHECK;
int attributes_restore(struct process *p, const TaskCoreEntry *tc, struct report *losses, struct fault *f) MUST_CHECK;
/* Adds to c, having run it. */
int attributes_restore_own(struct calls *c, const TaskCoreEntry *tc, struct fault *f) MUST_CHECK;
/* Registers what is not yet registered. With several threads the kernel takes 15 ms and more for each command (it waits for
 * an RCU grace period), with one nothing. */
int attributes_register_barriers(struct calls *c, uint32_t commands, struct fault *f) MUST_CHECK;
int attributes_barriers(struct calls *c, uint32_t *commands, struct fault *f) MUST_CHECK;
void attributes_restore_last(struct calls *c, const TaskCoreEntry *tc);

#endif
