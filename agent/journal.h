/*
 * One small file per migration, /run/cpr/<uuid>.journal: what the warden needs to finish or undo it when everybody who
 * knew about it is dead. It outlives processes, not the host: /run is a tmpfs, so nothing is synced.
 *
 *	journal_write	replaces the file as a whole (a new one, renamed)
 *	journal_read	a file that is not exactly what journal_write wrote is FAULT_IMAGE
 *	journal_each	all migrations that have a file
 *
 * The file is text, a line a field, closed by a checksum; see `cat` of one.
 */
#ifndef AGENT_JOURNAL_H
#define AGENT_JOURNAL_H

#include "handoff.h"
#include "undo.h"

#define JOURNAL_ID	 37
#define JOURNAL_PATH	 1024
#define JOURNAL_UNDO_MAX 65536u

struct journal {
	char migration[JOURNAL_ID];
	enum handoff_side side;
	enum handoff_state state;
	enum handoff_event event; /* that led to it */
	char reason[256];
	pid_t pid;
	uint64_t start_time; /* field 22 of /proc/PID/stat; 0: not known yet */
	char peer[256];
	char boot_id[JOURNAL_ID];
	bool ready; /* destination: READY was reached, so that the source may ask about it */
	/* the freezer, see freezer.h; group "" when there is none yet */
	char freezer[8]; /* v2, v1 */
	bool own_group;	 /* made by us, removed by us */
	char group[JOURNAL_PATH];
	char origin[JOURNAL_PATH];
	size_t n_undo, cap_undo;
	struct undo *undo; /* oldest first */
};

bool journal_is_uuid(const char *s); /* lower case, 36 characters */
void journal_done(struct journal *j);
int journal_push(struct journal *j, const struct undo *u, struct fault *f) MUST_CHECK; /* in memory */
int journal_write(int dirfd, const struct journal *j, struct fault *f) MUST_CHECK;
/* FAULT_FILE_MISSING when there is none. journal_done(out) afterwards. */
int journal_read(int dirfd, const char *migration, struct journal *out, struct fault *f) MUST_CHECK;
int journal_remove(int dirfd, const char *migration, struct fault *f) MUST_CHECK; /* missing is fine */
bool journal_exists(int dirfd, const char *migration);
/* Ends at the first -1. Files of other names are left alone. */
int journal_each(int dirfd, int (*fn)(void *ctx, const char *migration, struct fault *f), void *ctx,
		 struct fault *f) MUST_CHECK;

#endif
