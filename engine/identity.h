/*
 * Who a process is, for the offer: ids, threads, cgroup; and its clocks.
 */
#ifndef ENGINE_IDENTITY_H
#define ENGINE_IDENTITY_H

#include "process.h"
#include "wire.pb-c.h"
#include "arena.h"

/* Threads are those of the last process_stop. */
int identity_read(struct process *p, struct arena *a, Cpr__TaskInfo **out, struct fault *f) MUST_CHECK;
/* CLOCK_MONOTONIC and CLOCK_BOOTTIME as the process sees them now: its time namespace's offsets count from the initial
 * one (time_namespaces(7)), and so do ours. */
int identity_clocks(const struct process *p, uint64_t *monotonic_ns, uint64_t *boottime_ns, struct fault *f) MUST_CHECK;

#endif
