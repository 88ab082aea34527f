/*
 * Taking one nft table away, by netlink itself.
 *
 *	nfttable_open	a socket, kept for as long as tables may have to go
 *	nfttable_delete	any number of times
 *
 * Whoever waits for it is a frozen process: the warden undoes what a dead worker left. libnftables lists everything there
 * is first. And three things wait for an RCU grace period, 6 to 20 ms each: the close of any nf_tables socket after a
 * deletion, a transaction that fails, and so the deletion of what isn't there. Hence a socket that stays open, and a
 * look before: 0.1 ms.
 */
#ifndef ENGINE_NET_NFTTABLE_H
#define ENGINE_NET_NFTTABLE_H

#include "fault.h"

int nfttable_open(struct fault *f) MUST_CHECK; /* the caller's; CLOEXEC */
/* "inet <name>" with all that is in it. One that isn't there is fine: a table with an owner went with it. */
int nfttable_delete(int sock, const char *name, struct fault *f) MUST_CHECK;

#endif
