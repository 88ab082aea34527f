#include "identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* "monotonic  SEC NSEC" and "boottime  SEC NSEC"; both 0 where there are no time namespaces. */
static int read_offsets(int dirfd, const char *path, int64_t *monotonic, int64_t *boottime)
{
	*monotonic = *boottime = 0;
	auto_free char *text = util_read_file(dirfd, path, NULL);
	if (!text)
		return errno == ENOENT && access("/proc/self/timens_offsets", F_OK) < 0 ? 0 : -1;
	char *save = NULL;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char name[16];
		long long sec, nsec;
		if (sscanf(line, "%15s %lld %lld", name, &sec, &nsec) != 3)
			continue;
		if (!strcmp(name, "monotonic"))
			*monotonic = sec * 1000000000 + nsec;
		else if (!strcmp(name, "boottime"))
			*boottime = sec * 1000000000 + nsec;
	}
	return 0;
}

int identity_clocks(const struct process *p, uint64_t *monotonic_ns, uint64_t *boottime_ns, struct fault *f)
{
	int64_t pm, pb, om, ob;
	if (read_offsets(p->procfd, "timens_offsets", &pm, &pb) < 0 ||
	    read_offsets(-1, "/proc/self/timens_offsets", &om, &ob) < 0)
		return fault_errno(f, FAULT_PROCESS_GONE, "read the clocks of pid %d", p->pid);
	*monotonic_ns = (uint64_t)((int64_t)util_clock_ns(CLOCK_MONOTONIC) + pm - om);
	*boottime_ns = (uint64_t)((int64_t)util_clock_ns(CLOCK_BOOTTIME) + pb - ob);
	return 0;
}

static const char *field(const char *status, const char *key)
{
	const char *p = strstr(status, key);
	return p ? p + strlen(key) : "0";
}

int identity_read(struct process *p, struct arena *a, Cpr__TaskInfo **out, struct fault *f)
{
	auto_free char *stat = util_read_file(p->procfd, "stat", NULL);
	auto_free char *status = util_read_file(p->procfd, "status", NULL);
	auto_free char *cgroup = util_read_file(p->procfd, "cgroup", NULL);
	char *end = stat ? strrchr(stat, ')') : NULL;
	unsigned ppid, pgid, sid;
	if (!status || !end || sscanf(end + 1, " %*c %u %u %u", &ppid, &pgid, &sid) != 3)
		return fault_set(f, FAULT_PROCESS_GONE, "pid %d has gone", p->pid);
	Cpr__TaskInfo *t = arena_msg(a, Cpr__TaskInfo, cpr__task_info);
	t->pid = (uint32_t)p->pid;
	t->sid = sid;
	t->pgid = pgid;
	for (size_t i = 0; i < p->n_tasks; i++)
		arena_push(a, t->n_tids, t->tids, (uint32_t)p->tasks[i].tid);
	t->comm = arena_strdup(a, p->comm);
	t->has_uid = t->has_gid = true;
	t->uid = (uint32_t)strtoul(field(status, "\nUid:"), NULL, 10);
	t->gid = (uint32_t)strtoul(field(status, "\nGid:"), NULL, 10);
	char *v2 = cgroup ? strstr(cgroup, "0::") : NULL;
	if (v2) {
		v2[strcspn(v2, "\n")] = 0;
		t->cgroup = arena_strdup(a, v2 + 3);
	}
	*out = t;
	return 0;
}
