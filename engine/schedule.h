/*
 * When and where a thread runs: policy, priority, nice, deadline, clamps, CPUs, I/O priority, timer slack. All of it is
 * read and set from outside.
 *
 *	source       schedule_save
 *	destination  schedule_restore; schedule_restore_affinity last, after any process_unpin()
 */
#ifndef ENGINE_SCHEDULE_H
#define ENGINE_SCHEDULE_H

#include "arena.h"
#include "image.pb-c.h"
#include "remote.h"
#include "report.h"

int schedule_save(struct remote *r, pid_t tid, struct arena *a, ThreadCoreEntry *th, struct fault *f) MUST_CHECK;
int schedule_restore(pid_t tid, const ThreadCoreEntry *th, struct report *losses, struct fault *f) MUST_CHECK;
/* A set of CPUs that this host has not is narrowed to those it has, or given up: see schedule_check_affinity. */
int schedule_restore_affinity(pid_t tid, const ThreadCoreEntry *th, struct fault *f) MUST_CHECK;
void schedule_check_affinity(pid_t tid, const ThreadCoreEntry *th, struct report *losses);

#endif
