#include "attributes.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* Newer than the headers we may be built with. */
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#define MEMBARRIER_GET_REGISTRATIONS (1 << 9)

void attributes_ask(struct calls *c, struct attributes_asked *out)
{
	memset(out, 0, sizeof(*out));
	CALL(c, "ask whether it is a subreaper", NULL, SYS_prctl, PR_GET_CHILD_SUBREAPER,
	     calls_out(c, &out->subreaper, sizeof(out->subreaper)));
	CALL(c, NULL, &out->dumpable, SYS_prctl, PR_GET_DUMPABLE);
	CALL(c, NULL, &out->mdwe, SYS_prctl, PR_GET_MDWE, 0, 0, 0, 0);
	CALL(c, NULL, &out->membarrier, SYS_membarrier, MEMBARRIER_GET_REGISTRATIONS, 0, 0);
	CALL(c, NULL, &out->thp_disable, SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0);
}

/* cgroup v2's path, for people to read. */
static void save_cgroup(struct process *p, struct arena *a, TaskCoreEntry *tc)
{
	auto_free char *text = util_read_file(p->procfd, "cgroup", NULL);
	char *v2 = text ? strstr(text, "0::") : NULL;
	if (!v2)
		return;
	v2[strcspn(v2, "\n")] = 0;
	tc->cgroup = arena_strdup(a, v2 + 3);
}

int attributes_save(struct process *p, const struct procinfo_status *leader, const struct attributes_asked *asked,
		    struct arena *a, TaskCoreEntry *tc, struct fault *f)
{
	int64_t v;
	if (asked->dumpable < 0)
		return fault_neg(f, FAULT_SYSTEM, asked->dumpable, "ask whether pid %d is dumpable", p->pid);
	tc->has_child_subreaper = tc->has_dumpable = tc->has_no_new_privs = tc->has_umask = true;
	tc->child_subreaper = asked->subreaper != 0;
	tc->dumpable = (int32_t)asked->dumpable;
	tc->no_new_privs = leader->no_new_privs;
	tc->umask = leader->umask;
	/* Where the kernel has not heard of these, the process can't have used them. */
	if ((tc->has_mdwe = asked->mdwe >= 0))
		tc->mdwe = (uint32_t)asked->mdwe;
	if ((tc->has_membarrier = asked->membarrier >= 0))
		tc->membarrier = (uint32_t)asked->membarrier;
	if ((tc->has_thp_disabled = tc->has_thp_disable = asked->thp_disable >= 0)) {
		tc->thp_disable = (uint32_t)asked->thp_disable;
		tc->thp_disabled = asked->thp_disable != 0;
	}
	tc->personality = procinfo_number(p, "personality", 16, &v) ? (uint32_t)v : 0;
	if ((tc->has_oom_score_adj = procinfo_number(p, "oom_score_adj", 10, &v)))
		tc->oom_score_adj = (int32_t)v;
	if ((tc->has_coredump_filter = procinfo_number(p, "coredump_filter", 16, &v)))
		tc->coredump_filter = (uint32_t)v;
	if ((tc->has_loginuid = procinfo_number(p, "loginuid", 10, &v)))
		tc->loginuid = (uint32_t)v;
	save_cgroup(p, a, tc);
	return 0;
}

static int restore_oom(struct process *p, const TaskCoreEntry *tc, struct report *losses, struct fault *f)
{
	char value[16];
	int64_t now;
	if (!tc->has_oom_score_adj || !procinfo_number(p, "oom_score_adj", 10, &now) || now == tc->oom_score_adj)
		return 0;
	snprintf(value, sizeof(value), "%d", tc->oom_score_adj);
	if (util_write_file(p->procfd, "oom_score_adj", value) == 0)
		return 0;
	if (errno != EACCES && errno != EPERM)
		return fault_errno(f, FAULT_SYSTEM, "set oom_score_adj of pid %d", p->pid);
	report_add(losses, REPORT_LOSS, FAULT_LIMIT, "oom_score_adj", "give cpr-warden CAP_SYS_RESOURCE on this host",
		   "it was %d and can't be lower than %d here", tc->oom_score_adj, (int)now);
	return 0;
}

int attributes_restore(struct process *p, const TaskCoreEntry *tc, struct report *losses, struct fault *f)
{
	char value[16];
	int64_t now;
	if (restore_oom(p, tc, losses, f) < 0)
		return -1;
	snprintf(value, sizeof(value), "%#x", tc->coredump_filter);
	if (tc->has_coredump_filter && procinfo_number(p, "coredump_filter", 16, &now) && now != tc->coredump_filter &&
	    util_write_file(p->procfd, "coredump_filter", value) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set coredump_filter of pid %d", p->pid);
	if (tc->has_loginuid && procinfo_number(p, "loginuid", 10, &now) && (uint32_t)now != tc->loginuid)
		report_add(losses, REPORT_LOSS, FAULT_UNSUPPORTED, "login uid", NULL,
			   "it was %u and is %u here (audit records show it)", tc->loginuid, (uint32_t)now);
	return 0;
}

int attributes_barriers(struct calls *c, uint32_t *commands, struct fault *f)
{
	long ret = 0;
	CALL(c, NULL, &ret, SYS_membarrier, MEMBARRIER_GET_REGISTRATIONS, 0, 0);
	if (calls_run(c, f) < 0)
		return -1;
	*commands = ret > 0 ? (uint32_t)ret : 0; /* a kernel before 6.3 can't tell */
	return 0;
}

int attributes_register_barriers(struct calls *c, uint32_t commands, struct fault *f)
{
	uint32_t have;
	if (!commands)
		return 0;
	if (attributes_barriers(c, &have, f) < 0)
		return -1;
	for (uint32_t bit = 1; bit && bit <= commands; bit <<= 1)
		if (commands & ~have & bit)
			CALL(c, "register for memory barriers", NULL, SYS_membarrier, bit, 0, 0);
	return calls_run(c, f);
}

int attributes_restore_own(struct calls *c, const TaskCoreEntry *tc, struct fault *f)
{
	if (attributes_register_barriers(c, tc->membarrier, f) < 0)
		return -1;
	CALL(c, "become a subreaper", NULL, SYS_prctl, PR_SET_CHILD_SUBREAPER, tc->child_subreaper, 0, 0, 0);
	if (tc->thp_disable)
		CALL(c, "switch huge pages off", NULL, SYS_prctl, PR_SET_THP_DISABLE, 1, tc->thp_disable & ~1u, 0, 0);
	/* 2 can't be set; it is what a change of credentials makes of it where fs.suid_dumpable says so. */
	if (tc->has_dumpable && tc->dumpable >= 0 && tc->dumpable <= 1)
		CALL(c, "set dumpable", NULL, SYS_prctl, PR_SET_DUMPABLE, (uint64_t)tc->dumpable);
	return 0;
}

void attributes_restore_last(struct calls *c, const TaskCoreEntry *tc)
{
	if (tc->mdwe)
		CALL(c, "set MDWE", NULL, SYS_prctl, PR_SET_MDWE, tc->mdwe, 0, 0, 0);
}
