/*
 * Connections to and from other hosts, up to the moment a worker takes over.
 *
 *	outgoing	peers_connect: resolve ─ connect ─ wire ─▶ connected(conn)
 *	incoming	accept ─ wire ─ policy ─▶ arrived(conn, peer)
 *	then		a worker is started on it: peers_handed_over(conn), peers_close(conn) when the worker has gone
 *
 * Nothing of a peer is read here: a connected socket goes to the warden, which gives it a wire (TLS).
 */
#ifndef AGENT_PEERS_H
#define AGENT_PEERS_H

#include <event2/event.h>

#include "conf.h"
#include "warden_agent.h"

#define PEERS_CONNECT_SECONDS	10 /* resolve and connect */
#define PEERS_HANDSHAKE_SECONDS 10

struct peers;

struct peers_handlers {
	void (*connected)(void *ctx, uint64_t conn, const char *peer);
	void (*failed)(void *ctx, uint64_t conn, const struct fault *why); /* outgoing; conn is gone */
	void (*arrived)(void *ctx, uint64_t conn, const char *peer);
};

struct peers *peers_new(struct event_base *base, struct wa *wa, const struct conf *c, const struct peers_handlers *h,
			void *ctx);
void peers_free(struct peers *p);
int peers_listen(struct peers *p, int fd, struct fault *f) MUST_CHECK; /* fd stays the caller's */
void peers_deafen(struct peers *p);				       /* accept nothing from now on */
/* to: HOST[:PORT]. The handlers are called later, never from here. */
int peers_connect(struct peers *p, const char *to, uint64_t *conn, struct fault *f) MUST_CHECK;
void peers_handed_over(struct peers *p, uint64_t conn);
void peers_close(struct peers *p, uint64_t conn); /* in any state; one that is gone already is fine */
/* The same, and an authenticated peer is told why. */
void peers_refuse(struct peers *p, uint64_t conn, const struct fault *why);

/* What the warden says. */
void peers_wire_up(struct peers *p, uint64_t conn, const char *peer);
void peers_wire_failed(struct peers *p, uint64_t conn, const struct fault *why);

#endif
