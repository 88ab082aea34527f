/*
 * What the destination can say before anything is frozen: is this host's CPU, kernel and memory enough for the process?
 */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "arch.h"

#define MIB    (1ull << 20)
#define MARGIN (64 * MIB) /* page tables, buffers of the worker */

static void block(struct report *report, enum fault_code code, const char *object, const char *remedy,
		  const char *reason)
{
	report_add(report, REPORT_BLOCKER, code, object, remedy, "%s", reason);
}

static void check_cpu(const Cpr__Offer *o, struct report *report)
{
	char missing[256] = "";
	struct utsname u;
	uname(&u);
	if (o->machine && strcmp(o->machine, u.machine)) {
		report_add(report, REPORT_BLOCKER, FAULT_CPU, "CPU", "choose a host of the same kind",
			   "the process is for %s, this host is %s", o->machine, u.machine);
		return;
	}
	if (o->has_xfeatures && (o->xfeatures & ~arch_xfeatures()))
		report_add(report, REPORT_BLOCKER, FAULT_CPU, "CPU", "choose a host with a CPU at least as new",
			   "this CPU lacks register state that the process may use (XCR0 bits %#llx)",
			   (unsigned long long)(o->xfeatures & ~arch_xfeatures()));
	if (o->has_xstate_size && o->xstate_size > arch_xstate_size())
		report_add(report, REPORT_BLOCKER, FAULT_CPU, "CPU", "choose a host with a CPU at least as new",
			   "the extended registers of the process take %u bytes, and %u here", o->xstate_size,
			   arch_xstate_size());
	if (o->has_cpu_features)
		arch_cpu_missing(o->cpu_features.data, o->cpu_features.len, missing, sizeof(missing));
	if (missing[0])
		report_add(report, REPORT_BLOCKER, FAULT_CPU, "CPU", "choose a host with a CPU at least as new",
			   "this CPU lacks what the process may have found on the other: %s", missing);
}

static uint64_t number_in(const char *path, uint64_t otherwise)
{
	auto_free char *text = util_read_file(-1, path, NULL);
	char *end;
	uint64_t v = text ? strtoull(text, &end, 10) : 0;
	return text && end != text ? v : otherwise;
}

static void check_kernel(const Cpr__Offer *o, struct report *report)
{
	uint64_t pid_max = number_in("/proc/sys/kernel/pid_max", 32768);
	uint64_t highest_pid = o->task ? o->task->pid : 0;
	for (size_t i = 0; o->task && i < o->task->n_tids; i++)
		if (o->task->tids[i] > highest_pid)
			highest_pid = o->task->tids[i];
	if (highest_pid >= pid_max)
		report_add(report, REPORT_BLOCKER, FAULT_KERNEL, "PID", "raise the sysctl kernel.pid_max on this host",
			   "the process has ids up to %llu, and this host gives ids below %llu only",
			   (unsigned long long)highest_pid, (unsigned long long)pid_max);
	if (access("/proc/self/ns/time", F_OK) < 0)
		block(report, FAULT_KERNEL, "clocks", "boot a kernel with CONFIG_TIME_NS (Linux 5.6)",
		      "this kernel has no time namespaces, so the process's clocks would jump");
}

/* "MemAvailable:  123 kB" */
static uint64_t available(void)
{
	auto_free char *text = util_read_file(-1, "/proc/meminfo", NULL);
	const char *line = text ? strstr(text, "MemAvailable:") : NULL;
	return line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024 : UINT64_MAX;
}

static uint64_t group_room(const char *group)
{
	char path[600];
	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.max", group);
	uint64_t max = number_in(path, UINT64_MAX); /* "max": no number */
	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.current", group);
	uint64_t used = number_in(path, 0);
	return max == UINT64_MAX ? max : max > used ? max - used : 0;
}

/* Room in the groups that hold ours. Our own limit is for the worker: the vessel gets a group of its own. */
static uint64_t cgroup_room(char *tightest, size_t len)
{
	auto_free char *text = util_read_file(-1, "/proc/self/cgroup", NULL);
	char *v2 = text ? strstr(text, "0::/") : NULL;
	uint64_t room = UINT64_MAX;
	if (!v2)
		return room;
	v2 += 3;
	v2[strcspn(v2, "\n")] = 0;
	do {
		char *slash = strrchr(v2, '/');
		*slash = 0;
		uint64_t here = group_room(v2);
		if (here < room) {
			room = here;
			snprintf(tightest, len, "%s", v2[0] ? v2 : "/");
		}
	} while (v2[0]);
	return room;
}

static void check_memory(const Cpr__Offer *o, struct report *report)
{
	char group[256] = "";
	uint64_t margin = MARGIN + o->memory_bytes / 50;
	uint64_t need = o->memory_bytes > UINT64_MAX - margin ? UINT64_MAX : o->memory_bytes + margin;
	uint64_t have = available(), room = cgroup_room(group, sizeof(group));
	if (need > have)
		report_add(report, REPORT_BLOCKER, FAULT_NO_MEMORY, "memory",
			   "free memory on this host, or choose another",
			   "the process needs %llu MiB (with a margin), and %llu MiB are available here",
			   (unsigned long long)(need / MIB), (unsigned long long)(have / MIB));
	else if (need > room)
		report_add(report, REPORT_BLOCKER, FAULT_NO_MEMORY, "memory", "raise the cgroup's memory.max",
			   "the process needs %llu MiB (with a margin), and cgroup %s has room for %llu MiB",
			   (unsigned long long)(need / MIB), group, (unsigned long long)(room / MIB));
}

int state_check_target(const Cpr__Offer *offer, struct report *report, struct fault *f)
{
	(void)f; /* whatever can't be read here counts as no objection */
	check_cpu(offer, report);
	check_kernel(offer, report);
	check_memory(offer, report);
	return 0;
}
