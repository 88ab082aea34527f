#include "schedule.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CPUS_MAX	   8192
#define MASK_BYTES	   (CPUS_MAX / 8)
#define IOPRIO_WHO_PROCESS 1
#define FLAG_UTIL_CLAMP	   0x60u /* SCHED_FLAG_UTIL_CLAMP_MIN | _MAX */

/* struct sched_attr, version 1 (Linux 5.3); glibc 2.36 has none. */
struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};
_Static_assert(sizeof(struct attr) == 56, "sched_attr version 1");

static int attr_get(pid_t tid, struct attr *a)
{
	memset(a, 0, sizeof(*a));
	return (int)syscall(SYS_sched_getattr, tid, a, sizeof(*a), 0);
}

static bool is_fair(uint32_t policy)
{
	return policy == SCHED_OTHER || policy == SCHED_BATCH || policy == SCHED_IDLE;
}

/* The online CPUs of this host as a mask like sched_getaffinity(2)'s. Returns its length, 0 when unknown. */
static size_t online_mask(uint8_t mask[MASK_BYTES])
{
	memset(mask, 0, MASK_BYTES);
	auto_free char *text = util_read_file(-1, "/sys/devices/system/cpu/online", NULL);
	size_t len = 0;
	for (char *s = text; s && *s && *s != '\n';) {
		unsigned long first = strtoul(s, &s, 10), last = first;
		if (*s == '-')
			last = strtoul(s + 1, &s, 10);
		for (unsigned long cpu = first; cpu <= last && cpu < CPUS_MAX; cpu++) {
			mask[cpu / 8] |= (uint8_t)(1u << (cpu % 8));
			len = cpu / 8 + 1;
		}
		if (*s == ',')
			s++;
		else
			break;
	}
	return len;
}

/* A thread that may run everywhere has no mask in the image: everywhere is another set on another host. */
static void save_affinity(struct remote *r, pid_t tid, struct arena *a, ThreadCoreEntry *th)
{
	uint8_t mask[MASK_BYTES] = { 0 }, online[MASK_BYTES];
	long n = syscall(SYS_sched_getaffinity, tid, sizeof(mask), mask);
	cpu_set_t own;
	if (remote_affinity(r, tid, &own)) {
		n = sizeof(own);
		memcpy(mask, &own, sizeof(own));
	}
	size_t n_online = online_mask(online);
	if (n <= 0)
		return;
	bool restricted = false;
	for (size_t i = 0; i < n_online; i++)
		restricted |= (online[i] & ~mask[i]) != 0;
	if (!restricted && n_online)
		return;
	size_t len = (size_t)n;
	while (len > 1 && !mask[len - 1])
		len--;
	th->has_affinity = true;
	th->affinity.data = arena_memdup(a, mask, len);
	th->affinity.len = len;
}

int schedule_save(struct remote *r, pid_t tid, struct arena *a, ThreadCoreEntry *th, struct fault *f)
{
	struct attr at, ours;
	if (attr_get(tid, &at) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "read the scheduling attributes of thread %d", tid);
	/* Since 6.12 the slice of an ordinary thread shows as its runtime: given back, the default would become a wish. */
	if (is_fair(at.policy) && attr_get(0, &ours) == 0 && at.runtime == ours.runtime)
		at.runtime = 0;
	th->has_sched_attr = true;
	th->sched_attr.data = arena_memdup(a, &at, sizeof(at));
	th->sched_attr.len = sizeof(at);
	th->has_sched_nice = th->has_sched_policy = th->has_sched_prio = true;
	th->sched_nice = at.nice;
	th->sched_policy = at.policy;
	th->sched_prio = at.priority;
	long io = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
	th->has_ioprio = io >= 0;
	th->ioprio = io >= 0 ? (uint32_t)io : 0;
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/timerslack_ns", tid);
	auto_free char *slack = util_read_file(-1, path, NULL);
	th->has_timerslack_ns = slack != NULL;
	th->timerslack_ns = slack ? strtoull(slack, NULL, 10) : 0;
	save_affinity(r, tid, a, th);
	return 0;
}

static void loss(struct report *losses, pid_t tid, const char *remedy, const char *what)
{
	char object[48];
	snprintf(object, sizeof(object), "thread %d", tid);
	report_add(losses, REPORT_LOSS, FAULT_LIMIT, object, remedy, "%s", what);
}

static int restore_attr(pid_t tid, const ThreadCoreEntry *th, struct report *losses, struct fault *f)
{
	struct attr at, now;
	if (!th->has_sched_attr || th->sched_attr.len < offsetof(struct attr, util_min) || attr_get(tid, &now) < 0)
		return 0;
	memset(&at, 0, sizeof(at));
	memcpy(&at, th->sched_attr.data, th->sched_attr.len < sizeof(at) ? th->sched_attr.len : sizeof(at));
	at.size = sizeof(at);
	bool clamp = at.util_max && (at.util_min != now.util_min || at.util_max != now.util_max);
	at.flags = (at.flags & ~(uint64_t)FLAG_UTIL_CLAMP) | (clamp ? FLAG_UTIL_CLAMP : 0);
	if (is_fair(at.policy) && is_fair(now.policy) && !at.runtime)
		now.runtime = 0;
	now.size = at.size;
	if (!memcmp(&at, &now, sizeof(at)))
		return 0;
	if (syscall(SYS_sched_setattr, tid, &at, 0) == 0)
		return 0;
	if (clamp && errno == EOPNOTSUPP) {
		at.flags &= ~(uint64_t)FLAG_UTIL_CLAMP;
		loss(losses, tid, NULL, "the kernel here has no utilisation clamps (CONFIG_UCLAMP_TASK)");
		if (syscall(SYS_sched_setattr, tid, &at, 0) == 0)
			return 0;
	}
	if (errno == EPERM || errno == EBUSY) {
		loss(losses, tid, "give cpr-warden CAP_SYS_NICE, or make room for its scheduling policy",
		     "its scheduling policy or priority can't be set on this host");
		return 0;
	}
	return fault_errno(f, FAULT_SYSTEM, "set the scheduling attributes of thread %d (policy %u)", tid, at.policy);
}

static void restore_slack(pid_t tid, const ThreadCoreEntry *th, struct report *losses)
{
	char path[64], value[32];
	snprintf(path, sizeof(path), "/proc/%d/timerslack_ns", tid);
	auto_free char *now = util_read_file(-1, path, NULL);
	if (!th->has_timerslack_ns || !now || strtoull(now, NULL, 10) == th->timerslack_ns)
		return;
	snprintf(value, sizeof(value), "%llu", (unsigned long long)th->timerslack_ns);
	if (util_write_file(-1, path, value) < 0)
		loss(losses, tid, NULL, "its timer slack can't be set on this host");
}

int schedule_restore(pid_t tid, const ThreadCoreEntry *th, struct report *losses, struct fault *f)
{
	restore_slack(tid, th, losses); /* before the policy: real-time threads have none */
	if (th->has_ioprio) {
		long now = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
		if (now >= 0 && (uint32_t)now != th->ioprio &&
		    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, th->ioprio) < 0)
			loss(losses, tid, "give cpr-warden CAP_SYS_NICE", "its I/O priority can't be set on this host");
	}
	return restore_attr(tid, th, losses, f);
}

/* The wanted mask on this host: what is wanted and online. Empty: nothing of it is. */
static bool local_mask(const ThreadCoreEntry *th, uint8_t out[MASK_BYTES], bool *narrowed)
{
	uint8_t online[MASK_BYTES];
	size_t n = online_mask(online);
	bool any = false;
	memset(out, 0, MASK_BYTES);
	*narrowed = false;
	for (size_t i = 0; i < th->affinity.len && i < MASK_BYTES; i++) {
		out[i] = th->affinity.data[i] & (i < n ? online[i] : 0);
		any |= out[i] != 0;
		*narrowed |= out[i] != th->affinity.data[i];
	}
	return any;
}

void schedule_check_affinity(pid_t tid, const ThreadCoreEntry *th, struct report *losses)
{
	uint8_t mask[MASK_BYTES];
	bool narrowed;
	if (!th->has_affinity)
		return;
	if (!local_mask(th, mask, &narrowed))
		loss(losses, tid, NULL, "none of the CPUs it was bound to is on this host: it may run on all");
	else if (narrowed)
		loss(losses, tid, NULL, "some of the CPUs it was bound to are not on this host");
}

int schedule_restore_affinity(pid_t tid, const ThreadCoreEntry *th, struct fault *f)
{
	uint8_t mask[MASK_BYTES];
	bool narrowed;
	if (!th->has_affinity || !local_mask(th, mask, &narrowed))
		memset(mask, 0xff, sizeof(mask));
	if (syscall(SYS_sched_setaffinity, tid, sizeof(mask), mask) < 0)
		return fault_errno(f, FAULT_SYSTEM, "bind thread %d to its CPUs", tid);
	return 0;
}
