/*
 * What the warden holds of one migration: its journal, its freezer, its undo records, and the acts on them. A worker
 * asks for them one by one; when it dies, custody_settle does what the handoff table says is left to do.
 *
 *	custody_host_open	once: run directory, cgroup mounts, boot id
 *	custody_new		for a worker; source: with the migration's id, else custody_name gives it
 *	custody_load		from the journal of a dead warden
 *	… the worker's requests, in any order: each refuses what the state does not allow …
 *	custody_settle		worker dead, or done: the last step, its acts, one sentence about them
 *	custody_free
 *
 * What is done to a process or host is journalled before. Arguments come from a worker, which is root's and may be
 * broken: each is checked against the migration.
 */
#ifndef AGENT_CUSTODY_H
#define AGENT_CUSTODY_H

#include "freezer.h"
#include "journal.h"

struct net_flow;

struct custody_host {
	int run; /* the run directory, locked: one warden */
	int nft; /* nfttable_open: kept, for what has to go while a process is frozen */
	struct freezer_host cgroups;
	char boot_id[JOURNAL_ID];
};

int custody_host_open(const char *run_dir, struct custody_host *out, struct fault *f) MUST_CHECK;
void custody_host_close(struct custody_host *h);

struct custody {
	const struct custody_host *host;
	struct journal j;
	struct freezer z; /* j.group tells whether there is one */
	int pidfd;	  /* source, once adopted */
	bool frozen;
};

struct custody *custody_new(const struct custody_host *h, enum handoff_side side, const char *migration, pid_t pid,
			    const char *peer);
struct custody *custody_load(const struct custody_host *h, const char *migration, struct fault *f) MUST_CHECK;
void custody_free(struct custody *c);

int custody_name(struct custody *c, const char *migration, pid_t pid, struct fault *f) MUST_CHECK;
int custody_state(struct custody *c, uint32_t to, uint32_t why, const char *reason, struct fault *f) MUST_CHECK;
int custody_adopt(struct custody *c, pid_t pid, struct fault *f) MUST_CHECK;
int custody_cgroup(struct custody *c, const char *name, int *fd, struct fault *f) MUST_CHECK;
int custody_freeze(struct custody *c, struct fault *f) MUST_CHECK;
int custody_thaw(struct custody *c, struct fault *f) MUST_CHECK;
int custody_keep_lock(struct custody *c, const struct net_flow *flows, size_t n, struct fault *f) MUST_CHECK;
int custody_run(struct custody *c, pid_t pid, struct fault *f) MUST_CHECK;
int custody_remove(struct custody *c, struct fault *f) MUST_CHECK;
int custody_undo_push(struct custody *c, const struct undo *u, struct fault *f) MUST_CHECK;
int custody_undo_drop(struct custody *c, uint32_t kind, struct fault *f) MUST_CHECK;
int custody_undo(struct custody *c, struct fault *f) MUST_CHECK;
int custody_forget(struct custody *c, struct fault *f) MUST_CHECK;

/* died: the worker did; else it said it was done, which a state that isn't the end refuses (-1; nothing was changed).
 * Otherwise 0, and text says what was done, what could not be done, and where the process runs now. */
int custody_settle(struct custody *c, bool died, const char *how, char *text, size_t len, struct fault *f) MUST_CHECK;
/* Is this the process that it has, or had when its journal was written? */
bool custody_has(const struct custody *c, pid_t pid);

#endif
