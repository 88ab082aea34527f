/*
 * Service addresses that go along: removed on the source under its lock, added on the destination under its lock
 * without DAD, announced once after the thaw (gratuitous ARP, unsolicited neighbour advertisement). libnl.
 */
#ifndef ENGINE_NET_ADDRESS_H
#define ENGINE_NET_ADDRESS_H

#include <stdint.h>

#include "undo.h"

struct net_address {
	char address[48]; /* numeric */
	int prefix;	  /* -1: not given */
	char device[16];  /* "": not given */
	uint32_t flags;	  /* IFA_F_* */
	uint8_t scope;
};

/* "ADDR[/LEN][@DEV]". FAULT_USAGE with the reason. */
int net_address_parse(const char *text, struct net_address *out, struct fault *f) MUST_CHECK;
/* Finds it on this host: fills prefix, device, flags, scope. FAULT_NO_ADDRESS. */
int net_address_find(struct net_address *a, struct fault *f) MUST_CHECK;
int net_address_device_exists(const char *device, struct fault *f) MUST_CHECK;
int net_address_remove(const struct net_address *a, struct undo_log *undo, struct fault *f) MUST_CHECK;
int net_address_add(const struct net_address *a, struct undo_log *undo, struct fault *f) MUST_CHECK; /* no DAD */
/* Once. *later: a descriptor to close when there is time, or -1; closing a packet socket waits for the kernel's readers
 * (packet_release calls synchronize_net: 10 ms and more), which has no place in a pause. NULL: closed here. */
int net_address_announce(const struct net_address *a, int *later, struct fault *f) MUST_CHECK;
/* For the warden. */
int net_address_undo(const struct undo *u, struct fault *f) MUST_CHECK;
bool net_address_is_local(int family, const void *addr); /* of this host, any device */

#endif
