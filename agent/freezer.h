/*
 * The one switch of a side (DESIGN, section 5): a cgroup whose freezer holds the process, whoever dies.
 *
 * source		freezer_plan	which group: the process's own one when it holds nothing else, else a child
 *					"cpr-<uuid>" of it. Nothing is done yet, so that it can be journalled
 *			freezer_enter	the process goes in
 *			freezer_freeze … freezer_thaw
 *			freezer_leave	back to where it came from; our group is removed
 * destination		freezer_make	"cpr/<name>-<8 digits of the uuid>" below the root of what is visible, empty
 *			freezer_dup_fd	for CLONE_INTO_CGROUP (v2)
 *			freezer_kill	all that is in it
 *			freezer_remove
 * after a restart	freezer_open	from the journal
 *
 * The group that a restored process lives in stays until it has exited; freezer_sweep removes such ones. A group that
 * somebody is just about to fill is safe from it: the maker holds a flock(2) on its directory.
 *
 * cgroup2 freezes within a fraction of a millisecond and tells by cgroup.events. The v1 freezer is the fallback: no
 * CLONE_INTO_CGROUP (the vessel is moved in before it is frozen), no events, and a SIGKILL works after the thaw only;
 * no instruction of the program runs in between.
 */
#ifndef AGENT_FREEZER_H
#define AGENT_FREEZER_H

#include "fault.h"

enum freezer_kind { FREEZER_V2, FREEZER_V1 };
#define FREEZER_PATH 1024

struct freezer_host { /* "" when there is none */
	char v2[FREEZER_PATH], v2_root[FREEZER_PATH];
	char v1[FREEZER_PATH], v1_root[FREEZER_PATH];
};

/* Finds the mounts that are visible and writable. FAULT_KERNEL when there is no freezer at all. */
int freezer_host_find(struct freezer_host *h, struct fault *f) MUST_CHECK;

struct freezer {
	enum freezer_kind kind;
	bool own;		   /* made and removed by us */
	bool restored;		   /* below cpr/: for a vessel, or what lives in one */
	char group[FREEZER_PATH];  /* directories */
	char origin[FREEZER_PATH]; /* where the process came from: source only */
	int dir, freeze, events;   /* -1: not open yet */
};

const char *freezer_kind_name(enum freezer_kind k);
/* FAULT_BUSY when it is frozen already, or in the group of another migration. */
int freezer_plan(const struct freezer_host *h, const char *migration, pid_t pid, struct freezer *out,
		 struct fault *f) MUST_CHECK;
int freezer_enter(struct freezer *z, pid_t pid, struct fault *f) MUST_CHECK;
int freezer_make(const struct freezer_host *h, const char *name, const char *migration, struct freezer *out,
		 struct fault *f) MUST_CHECK;
int freezer_open(const char *kind, bool own, const char *group, const char *origin, struct freezer *out,
		 struct fault *f) MUST_CHECK;
void freezer_close(struct freezer *z);
int freezer_dup_fd(const struct freezer *z, struct fault *f) MUST_CHECK; /* O_DIRECTORY, the caller's */

/* Returns when all of it is frozen; at the timeout it is thawed again, FAULT_TIMEOUT. */
int freezer_freeze(struct freezer *z, int timeout_ms, struct fault *f) MUST_CHECK;
bool freezer_frozen(const struct freezer *z);
int freezer_thaw(struct freezer *z, struct fault *f) MUST_CHECK;
bool freezer_holds(const struct freezer *z, pid_t pid);
int freezer_kill(struct freezer *z, int timeout_ms, struct fault *f) MUST_CHECK; /* and waits until it is empty */
/* pid may have exited. */
int freezer_leave(struct freezer *z, pid_t pid, struct fault *f) MUST_CHECK;
int freezer_remove(struct freezer *z, struct fault *f) MUST_CHECK; /* what is ours of it; must be empty */
void freezer_sweep(const struct freezer_host *h);

#endif
