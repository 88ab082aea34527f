/*
 * How the agent talks to its warden: asynchronous, over one SOCK_SEQPACKET socket that libevent watches.
 * The agent can only ask for what is here.
 *
 *	wa_start / wa_connect     at start: fork+exec cpr-warden before privileges are dropped, or its socket in /run/cpr
 *	wa_wire(…)                a TCP connection gets its wire: TLS handshake, then on_wire_up or on_wire_failed
 *	wa_worker(…)              a worker on an authenticated connection; its events come on the socket that is returned
 *	wa_close_wire(…)
 */
#ifndef AGENT_WARDEN_AGENT_H
#define AGENT_WARDEN_AGENT_H

#include "handoff.h"
#include "fault.h"

struct wa;

struct wa_handlers {
	/* peer: host name of the authenticated certificate */
	void (*wire_up)(void *ctx, uint64_t conn, const char *peer);
	void (*wire_failed)(void *ctx, uint64_t conn, const struct fault *why);
	/* state: the last one journalled; crashed: it died before wc_done (what was undone is in text) */
	void (*worker_exit)(void *ctx, uint64_t conn, const char *migration, enum handoff_state state, bool crashed,
			    const char *text);
	void (*warden_gone)(void *ctx);
};

struct wa_paths {
	const char *warden, *worker, *wire; /* programs */
	const char *run_dir;		    /* /run/cpr: journal */
	const char *ca, *cert, *key;	    /* PEM files, opened by the warden for each wire */
	const char *wire_user;		    /* user the wire runs as */
	const char *name;		    /* of this host, for the words of workers */
	int log_level;
};

/* Starts a warden of our own (still root). */
int wa_start(const struct wa_paths *paths, const struct wa_handlers *h, void *ctx, struct wa **out,
	     struct fault *f) MUST_CHECK;
int wa_fd(const struct wa *w);	/* to watch for reading */
void wa_dispatch(struct wa *w); /* when it is readable: calls handlers */
void wa_free(struct wa *w);	/* the warden ends when its last worker has, and nothing is unfinished */
/* sock: connected TCP socket, handed over (closed here). expect: host name the peer must have; NULL: accepted one. */
int wa_wire(struct wa *w, uint64_t conn, int sock, bool client, const char *expect, struct fault *f) MUST_CHECK;
/* why: told to the peer, which must be an authenticated one, in an ABORT frame; NULL: it only sees the end. */
int wa_close_wire(struct wa *w, uint64_t conn, const struct fault *why, struct fault *f) MUST_CHECK;
/* pid 0 and migration "" for a destination worker. *events_fd: SOCK_SEQPACKET, packed Cpr__Event per message; writing
 * one byte 'C' cancels. */
int wa_worker(struct wa *w, uint64_t conn, enum handoff_side side, const char *migration, pid_t pid,
	      const void *options, size_t options_len, int *events_fd, struct fault *f) MUST_CHECK;

#endif
