/*
 * How a worker talks to the warden: synchronous requests over a SOCK_SEQPACKET socket, answers are faults or ok.
 *
 * The worker is started by the warden with descriptors 3.. as agent/warden_proto.h says:
 *	wc_open(&wc, &start)	who we are, what to do, the link's descriptors, the events socket
 * Everything the warden is asked to do is on its closed list; it checks each argument against the migration it
 * started this worker for.
 */
#ifndef AGENT_WARDEN_CLIENT_H
#define AGENT_WARDEN_CLIENT_H

#include "handoff.h"
#include "link.h"
#include "undo.h"

struct wc;

struct wc_start {
	enum handoff_side side;
	char migration[37]; /* uuid; the destination's worker learns it from the offer: "" until then */
	pid_t pid;	    /* source */
	char peer[256];	    /* authenticated name of the peer host */
	char host[256];	    /* name of this one */
	struct link_fds link;
	int events_fd;	  /* to the agent: packed Cpr__Event messages, SOCK_SEQPACKET; readable: cancel */
	uint8_t *options; /* packed Cpr__Options as the API took them; malloc */
	size_t options_len;
};

/* Reads the start message from fd 3. */
int wc_open(struct wc **out, struct wc_start *start, struct fault *f) MUST_CHECK;
void wc_close(struct wc *w);

/* Destination: the uuid of the offer. FAULT_BUSY when a migration of that id is known here. */
int wc_name(struct wc *w, const char *migration, pid_t pid, struct fault *f) MUST_CHECK;
/* Journals the step (and the reason), then logs "A -> B". Must come before the act. */
int wc_state(struct wc *w, enum handoff_state to, enum handoff_event why, const char *reason,
	     struct fault *f) MUST_CHECK;
/* Source: puts the process into a freezer cgroup of its own (or takes the one it has to itself). FAULT_BUSY when that
 * process is being migrated already. */
int wc_adopt(struct wc *w, pid_t pid, struct fault *f) MUST_CHECK;
/* Destination: makes the cgroup the vessel is born in; *cgroup_fd is the caller's (-1 when there is no cgroup2). */
int wc_cgroup(struct wc *w, const char *name_hint, int *cgroup_fd, struct fault *f) MUST_CHECK;
int wc_freeze(struct wc *w, struct fault *f) MUST_CHECK; /* returns when the group is frozen */
int wc_thaw(struct wc *w, struct fault *f) MUST_CHECK;
/* Source, while SEALED (so that a failure is still taken back): the plain table "cpr-<uuid>-kept" of these flows, that
 * outlives the worker. Recorded for undoing; wc_remove takes it away. */
struct net_flow;
int wc_keep_lock(struct wc *w, const struct net_flow *flows, size_t n, struct fault *f) MUST_CHECK;
/* Destination, after the commit: checks that the vessel lives, journals RUNNING, thaws: the only act that starts it. */
int wc_run(struct wc *w, pid_t pid, struct fault *f) MUST_CHECK;
/* Source, after DONE: enters repair mode on its sockets, kills the frozen process, waits until it is gone, removes the
 * kept lock and the cgroup. */
int wc_remove(struct wc *w, struct fault *f) MUST_CHECK;
/* Undo records. */
struct undo_log *wc_undo_log(struct wc *w);
/* Runs and forgets all undo records, newest first (abort without a death). */
int wc_undo(struct wc *w, struct fault *f) MUST_CHECK;
int wc_undo_forget(struct wc *w, struct fault *f) MUST_CHECK;
/* The end: after it, the worker's exit is no death. */
int wc_done(struct wc *w, struct fault *f) MUST_CHECK;

#endif
