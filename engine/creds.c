#include "creds.h"

#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

/* Of capabilities newer than the headers we are built with, the number is the name. */
static const char *const cap_names[] = {
	"chown",
	"dac_override",
	"dac_read_search",
	"fowner",
	"fsetid",
	"kill",
	"setgid",
	"setuid",
	"setpcap",
	"linux_immutable",
	"net_bind_service",
	"net_broadcast",
	"net_admin",
	"net_raw",
	"ipc_lock",
	"ipc_owner",
	"sys_module",
	"sys_rawio",
	"sys_chroot",
	"sys_ptrace",
	"sys_pacct",
	"sys_admin",
	"sys_boot",
	"sys_nice",
	"sys_resource",
	"sys_time",
	"sys_tty_config",
	"mknod",
	"lease",
	"audit_write",
	"audit_control",
	"setfcap",
	"mac_override",
	"mac_admin",
	"syslog",
	"wake_alarm",
	"block_suspend",
	"audit_read",
	"perfmon",
	"bpf",
	"checkpoint_restore",
};
#define CAPS_MAX 64

static void put_caps(struct arena *a, uint64_t caps, size_t *n, uint32_t **out)
{
	arena_push(a, *n, *out, (uint32_t)caps);
	arena_push(a, *n, *out, (uint32_t)(caps >> 32));
}

static uint64_t get_caps(size_t n, const uint32_t *v)
{
	return (n > 0 ? v[0] : 0) | (n > 1 ? (uint64_t)v[1] << 32 : 0);
}

CredsEntry *creds_save(const struct procinfo_status *s, uint32_t securebits, struct arena *a)
{
	CredsEntry *e = arena_msg(a, CredsEntry, creds_entry);
	e->uid = s->uid[PROCINFO_REAL];
	e->euid = s->uid[PROCINFO_EFFECTIVE];
	e->suid = s->uid[PROCINFO_SAVED];
	e->fsuid = s->uid[PROCINFO_FS];
	e->gid = s->gid[PROCINFO_REAL];
	e->egid = s->gid[PROCINFO_EFFECTIVE];
	e->sgid = s->gid[PROCINFO_SAVED];
	e->fsgid = s->gid[PROCINFO_FS];
	put_caps(a, s->caps[PROCINFO_CAP_INH], &e->n_cap_inh, &e->cap_inh);
	put_caps(a, s->caps[PROCINFO_CAP_PRM], &e->n_cap_prm, &e->cap_prm);
	put_caps(a, s->caps[PROCINFO_CAP_EFF], &e->n_cap_eff, &e->cap_eff);
	put_caps(a, s->caps[PROCINFO_CAP_BND], &e->n_cap_bnd, &e->cap_bnd);
	put_caps(a, s->caps[PROCINFO_CAP_AMB], &e->n_cap_amb, &e->cap_amb);
	e->secbits = securebits;
	e->n_groups = s->n_groups;
	e->groups = s->n_groups ? arena_memdup(a, s->groups, s->n_groups * sizeof(*s->groups)) : NULL;
	e->has_no_new_privs = true;
	e->no_new_privs = s->no_new_privs;
	return e;
}

/* What the image asks for and this host can give. */
struct wanted {
	uint64_t caps[PROCINFO_CAPS];
	uint64_t missing;
};

static struct wanted wanted_caps(const CredsEntry *e, const struct procinfo_status *had)
{
	struct wanted w;
	uint64_t have = had->caps[PROCINFO_CAP_PRM];
	w.caps[PROCINFO_CAP_PRM] = get_caps(e->n_cap_prm, e->cap_prm);
	w.caps[PROCINFO_CAP_EFF] = get_caps(e->n_cap_eff, e->cap_eff);
	w.caps[PROCINFO_CAP_INH] = get_caps(e->n_cap_inh, e->cap_inh);
	w.caps[PROCINFO_CAP_BND] = get_caps(e->n_cap_bnd, e->cap_bnd);
	w.caps[PROCINFO_CAP_AMB] = get_caps(e->n_cap_amb, e->cap_amb);
	w.missing = (w.caps[PROCINFO_CAP_PRM] & ~have) | (w.caps[PROCINFO_CAP_BND] & ~had->caps[PROCINFO_CAP_BND]);
	w.caps[PROCINFO_CAP_BND] &= had->caps[PROCINFO_CAP_BND];
	w.caps[PROCINFO_CAP_PRM] &= have;
	w.caps[PROCINFO_CAP_EFF] &= w.caps[PROCINFO_CAP_PRM];
	w.caps[PROCINFO_CAP_INH] &= had->caps[PROCINFO_CAP_BND] | had->caps[PROCINFO_CAP_INH];
	w.caps[PROCINFO_CAP_AMB] &= w.caps[PROCINFO_CAP_PRM] & w.caps[PROCINFO_CAP_INH];
	return w;
}

static void report_missing(uint64_t missing, struct report *losses)
{
	for (size_t cap = 0; cap < CAPS_MAX; cap++) {
		char object[48];
		if (!(missing & (1ull << cap)))
			continue;
		if (cap < ARRAY_LEN(cap_names))
			snprintf(object, sizeof(object), "capability %s", cap_names[cap]);
		else
			snprintf(object, sizeof(object), "capability %zu", cap);
		report_add(losses, REPORT_LOSS, FAULT_DENIED, object, "give it to cpr-warden on this host",
			   "the worker on this host does not have it, so it can't give it to the process");
	}
}

static void set_caps(struct calls *c, const char *what, uint64_t inh, uint64_t prm, uint64_t eff)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ (uint32_t)eff, (uint32_t)prm, (uint32_t)inh },
		{ (uint32_t)(eff >> 32), (uint32_t)(prm >> 32), (uint32_t)(inh >> 32) },
	};
	CALL(c, what, NULL, SYS_capset, calls_in(c, &head, sizeof(head)), calls_in(c, data, sizeof(data)));
}

static void set_ids(struct calls *c, const CredsEntry *e)
{
	CALL(c, "setgroups", NULL, SYS_setgroups, e->n_groups,
	     e->n_groups ? calls_in(c, e->groups, e->n_groups * sizeof(*e->groups)) : 0);
	CALL(c, "setresgid", NULL, SYS_setresgid, e->gid, e->egid, e->sgid);
	CALL(c, "setresuid", NULL, SYS_setresuid, e->uid, e->euid, e->suid);
	/* After setres?id(2), which sets them, too. */
	CALL(c, "setfsgid", NULL, SYS_setfsgid, e->fsgid);
	CALL(c, "setfsuid", NULL, SYS_setfsuid, e->fsuid);
}

/*
 * The order: SECBIT_NO_SETUID_FIXUP first, so that leaving uid 0 costs no capability; the inheritable set while the
 * bounding set is still whole (it may hold what the latter lacks); ambient ones and securebits while CAP_SETPCAP is
 * still there, and before a securebit can forbid ambient ones; permitted and effective last, which only shrink.
 */
int creds_restore(struct calls *c, const CredsEntry *e, const struct procinfo_status *now, struct report *losses,
		  struct fault *f)
{
	struct wanted w = wanted_caps(e, now);
	if (e->n_groups > CREDS_GROUPS_MAX)
		return fault_set(f, FAULT_IMAGE, "a thread in %zu groups", e->n_groups);
	report_missing(w.missing, losses);
	CALL(c, "set securebits", NULL, SYS_prctl, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
	set_caps(c, "set inheritable capabilities", w.caps[PROCINFO_CAP_INH], now->caps[PROCINFO_CAP_PRM],
		 now->caps[PROCINFO_CAP_PRM]);
	for (uint64_t cap = 0; cap < CAPS_MAX; cap++)
		if (now->caps[PROCINFO_CAP_BND] & ~w.caps[PROCINFO_CAP_BND] & (1ull << cap))
			CALL(c, "drop a capability from the bounding set", NULL, SYS_prctl, PR_CAPBSET_DROP, cap);
	set_ids(c, e);
	for (uint64_t cap = 0; cap < CAPS_MAX; cap++)
		if (w.caps[PROCINFO_CAP_AMB] & (1ull << cap))
			CALL(c, "raise an ambient capability", NULL, SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE,
			     cap, 0, 0);
	CALL(c, "set the final securebits", NULL, SYS_prctl, PR_SET_SECUREBITS, e->secbits);
	set_caps(c, "set permitted and effective capabilities", w.caps[PROCINFO_CAP_INH], w.caps[PROCINFO_CAP_PRM],
		 w.caps[PROCINFO_CAP_EFF]);
	if (e->no_new_privs)
		CALL(c, "set no_new_privs", NULL, SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return calls_run(c, f) < 0 ? fault_while(f, "restoring credentials") : 0;
}

static bool same_ids(const CredsEntry *e, const struct procinfo_status *is)
{
	const uint32_t uid[] = { e->uid, e->euid, e->suid, e->fsuid };
	const uint32_t gid[] = { e->gid, e->egid, e->sgid, e->fsgid };
	return !memcmp(uid, is->uid, sizeof(uid)) && !memcmp(gid, is->gid, sizeof(gid)) &&
	       e->n_groups == is->n_groups &&
	       (!e->n_groups || !memcmp(e->groups, is->groups, e->n_groups * sizeof(*e->groups)));
}

int creds_verify(const CredsEntry *e, const struct procinfo_status *had, const struct procinfo_status *is,
		 struct fault *f)
{
	static const char *const sets[PROCINFO_CAPS] = { "inheritable", "permitted", "effective", "bounding",
							 "ambient" };
	struct wanted w = wanted_caps(e, had);
	if (!same_ids(e, is))
		return fault_set(f, FAULT_VERIFY, "thread %d: its ids are uid %u gid %u, not uid %u gid %u as before",
				 is->tid, is->uid[0], is->gid[0], e->uid, e->gid);
	for (size_t i = 0; i < PROCINFO_CAPS; i++)
		if (w.caps[i] != is->caps[i])
			return fault_set(f, FAULT_VERIFY, "thread %d: its %s capabilities are %llx, not %llx", is->tid,
					 sets[i], (unsigned long long)is->caps[i], (unsigned long long)w.caps[i]);
	if (e->has_no_new_privs && e->no_new_privs != is->no_new_privs)
		return fault_set(f, FAULT_VERIFY, "thread %d: no_new_privs differs", is->tid);
	return 0;
}
