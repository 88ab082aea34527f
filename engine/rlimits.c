#include "rlimits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "procinfo.h"

int rlimits_save(struct process *p, struct arena *a, TaskCoreEntry *tc, struct fault *f)
{
	struct procinfo_limit l[PROCINFO_LIMITS];
	if (procinfo_limits(p, l, f) < 0)
		return -1;
	tc->rlimits = arena_msg(a, TaskRlimitsEntry, task_rlimits_entry);
	for (size_t i = 0; i < PROCINFO_LIMITS; i++) {
		RlimitEntry *e = arena_msg(a, RlimitEntry, rlimit_entry);
		e->cur = l[i].cur;
		e->max = l[i].max;
		arena_push(a, tc->rlimits->n_rlimits, tc->rlimits->rlimits, e);
	}
	return 0;
}

static void lose(struct report *losses, size_t resource, uint64_t wanted, uint64_t got)
{
	char was[24] = "unlimited";
	if (wanted != UINT64_MAX)
		snprintf(was, sizeof(was), "%llu", (unsigned long long)wanted);
	report_add(losses, REPORT_LOSS, FAULT_LIMIT, procinfo_limit_name(resource),
		   "give cpr-warden CAP_SYS_RESOURCE on this host, or start it with a higher hard limit",
		   "the hard limit was %s and can't be higher than %llu here", was, (unsigned long long)got);
}

static int restore_one(struct process *p, size_t resource, const RlimitEntry *e, struct report *losses, struct fault *f)
{
	struct rlimit now, want = { e->cur, e->max };
	if (prlimit(p->pid, resource, NULL, &now) < 0)
		return fault_errno(f, FAULT_SYSTEM, "read the limit on %s", procinfo_limit_name(resource));
	/* setresuid(2) over the limit on processes makes the next execve(2) fail: it comes after it, from inside. */
	if (resource == RLIMIT_NPROC && want.rlim_max < now.rlim_max)
		return 0;
	if (resource == RLIMIT_NPROC)
		want.rlim_cur = want.rlim_max;
	if (now.rlim_cur == want.rlim_cur && now.rlim_max == want.rlim_max)
		return 0;
	if (prlimit(p->pid, resource, &want, NULL) == 0)
		return 0;
	if (errno != EPERM || want.rlim_max <= now.rlim_max)
		return fault_errno(f, FAULT_SYSTEM, "set the limit on %s", procinfo_limit_name(resource));
	lose(losses, resource, want.rlim_max, now.rlim_max);
	want.rlim_max = now.rlim_max;
	if (want.rlim_cur > want.rlim_max)
		want.rlim_cur = want.rlim_max;
	if (prlimit(p->pid, resource, &want, NULL) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the limit on %s", procinfo_limit_name(resource));
	return 0;
}

int rlimits_restore(struct process *p, const TaskCoreEntry *tc, struct report *losses, struct fault *f)
{
	for (size_t i = 0; tc->rlimits && i < tc->rlimits->n_rlimits && i < PROCINFO_LIMITS; i++)
		if (restore_one(p, i, tc->rlimits->rlimits[i], losses, f) < 0)
			return fault_while(f, "restoring limits");
	return 0;
}

int rlimits_restore_last(struct calls *c, struct process *p, const TaskCoreEntry *tc, struct fault *f)
{
	struct procinfo_limit now[PROCINFO_LIMITS];
	if (!tc->rlimits || tc->rlimits->n_rlimits <= RLIMIT_NPROC)
		return 0;
	/* Not by prlimit(2), which is refused now that the vessel is another user's. */
	if (procinfo_limits(p, now, f) < 0)
		return -1;
	const RlimitEntry *e = tc->rlimits->rlimits[RLIMIT_NPROC];
	uint64_t max = e->max < now[RLIMIT_NPROC].max ? e->max : now[RLIMIT_NPROC].max;
	struct rlimit want = { e->cur < max ? e->cur : max, max };
	CALL(c, "limit processes", NULL, SYS_prlimit64, 0, RLIMIT_NPROC, calls_in(c, &want, sizeof(want)), 0);
	return 0;
}
