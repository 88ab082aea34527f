/*
 * Who may do what here. Whoever may push a process to a host can run code on it, so nothing is allowed that no rule
 * names: a peer by allow-peer, a user of the API by being root, the agent's own user, or in api-uid.
 */
#ifndef AGENT_POLICY_H
#define AGENT_POLICY_H

#include "conf.h"

/* peer: host name of the authenticated certificate. FAULT_DENIED names the rule that is missing. */
int policy_peer(const struct conf *c, const char *peer, struct fault *f) MUST_CHECK;
int policy_api(const struct conf *c, uid_t uid, uid_t own, struct fault *f) MUST_CHECK;

#endif
