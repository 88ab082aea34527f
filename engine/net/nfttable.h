/*
 * Taking one nft table away, by netlink itself.
 *
 * libnftables needs 7 to 33 ms for it: it sets up a context and lists everything there is first. Whoever waits for it is
 * a frozen process (the warden undoing what a dead worker left), so this is one message and its answer: 0.1 ms.
 */
#ifndef ENGINE_NET_NFTTABLE_H
#define ENGINE_NET_NFTTABLE_H

#include "fault.h"

/* "inet <name>" with all that is in it. One that isn't there is fine: a table with an owner went with it. */
int nfttable_delete(const char *name, struct fault *f) MUST_CHECK;

#endif
