/*
 * Resource limits.
 *
 *	source       rlimits_save          from /proc/PID/limits: prlimit(2) on another user's process may be refused
 *	destination  rlimits_restore       while the vessel is still root
 *	             rlimits_restore_last  inside the vessel, when it is what it will be
 */
#ifndef ENGINE_RLIMITS_H
#define ENGINE_RLIMITS_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "process.h"
#include "report.h"

int rlimits_save(struct process *p, struct arena *a, TaskCoreEntry *tc, struct fault *f) MUST_CHECK;
/* A hard limit that can't be raised as high as it was is a loss, named. */
int rlimits_restore(struct process *p, const TaskCoreEntry *tc, struct report *losses, struct fault *f) MUST_CHECK;
/* Adds to c. */
int rlimits_restore_last(struct calls *c, struct process *p, const TaskCoreEntry *tc, struct fault *f) MUST_CHECK;

#endif
