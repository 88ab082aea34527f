/*
 * The network lock: nothing of the moving sockets goes in or out while they are in two places.
 *
 * Undecided it is an nft table with `flags owner`, which vanishes with this process (nfto.c); without that flag the
 * table is plain and the warden has an undo record for it. It is named after the migration: "cpr-<uuid>".
 * No fork while it is held: a child would inherit the netlink socket and keep the table (the library's fd is made
 * CLOEXEC, but a CLONE_VM helper without exec has it too, unless it closes its table first, as vessel.c does).
 */
#ifndef ENGINE_NET_LOCK_H
#define ENGINE_NET_LOCK_H

#include <netinet/in.h>

#include "undo.h"

struct net_flow {
	int family;   /* AF_INET, AF_INET6 (mapped addresses are given as AF_INET) */
	int protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	uint8_t local[16], remote[16];
	uint16_t local_port, remote_port; /* host order; remote_port 0: a listener or unconnected socket */
};

struct net_lock;

/* backend NULL: by probing, *why says how it was chosen. Known: "nftables", "none". Prepares the context only. */
int net_lock_open(const char *backend, const char *migration, struct net_lock **out, char *why, size_t why_len,
		  struct fault *f) MUST_CHECK;
const char *net_lock_backend(const struct net_lock *l);
/* Flows that are likely to be locked, before the pause: what net_lock_engage finds here already costs it nothing. Nothing
 * is dropped yet. May be called again; without an owned table it does nothing. */
int net_lock_prepare(struct net_lock *l, const struct net_flow *flows, size_t n, struct fault *f) MUST_CHECK;
/* One transaction: what is not prepared, and the rules. From here packets of these flows are dropped both ways; of
 * listening TCP sockets, the packets that open connections. */
int net_lock_engage(struct net_lock *l, const struct net_flow *flows, size_t n, struct undo_log *undo,
		    struct fault *f) MUST_CHECK;
int net_lock_release(struct net_lock *l, struct fault *f) MUST_CHECK;
void net_lock_close(struct net_lock *l); /* releases, too */
/* For the warden: a plain table of the same rules, "cpr-<uuid>-kept", that outlives the worker; and its removal. */
int net_lock_keep(const char *migration, const struct net_flow *flows, size_t n, struct fault *f) MUST_CHECK;
/* "inet <table>"; missing is fine. nft: of nfttable_open, or -1 for one of its own, which takes longer. */
int net_lock_remove(int nft, const char *table, struct fault *f) MUST_CHECK;
/* Flows of the inet sockets that an image describes, and of a stopped process. */
struct image;
int net_lock_flows(const struct image *img, struct net_flow **flows, size_t *n, struct fault *f) MUST_CHECK;
struct process;
int net_lock_flows_of(struct process *p, struct net_flow **flows, size_t *n, struct fault *f) MUST_CHECK;

#endif
