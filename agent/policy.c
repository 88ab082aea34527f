#include "policy.h"

#include <string.h>
#include <strings.h>

int policy_peer(const struct conf *c, const char *peer, struct fault *f)
{
	for (size_t i = 0; peer && *peer && c->allow_peer && c->allow_peer[i]; i++)
		if (!strcasecmp(c->allow_peer[i], peer))
			return 0;
	const char *config = c->config ? c->config : CONF_FILE;
	if (!peer || !*peer)
		return fault_set(f, FAULT_DENIED, "a peer without a name may not push processes to %s", c->name);
	fault_set(f, FAULT_DENIED, "%.200s may not push processes to %s: %s", peer, c->name,
		  c->allow_peer ? "no allow-peer rule names it" : "there is no allow-peer rule, so nobody may");
	return fault_hint(f, "To allow it, add \"allow-peer = %.200s\" to %.100s on %s and restart cpr-agent.", peer,
			  config, c->name);
}

int policy_api(const struct conf *c, uid_t uid, uid_t own, struct fault *f)
{
	if (uid == 0 || uid == own)
		return 0;
	for (size_t i = 0; c->api_uid && c->api_uid[i]; i++) {
		uint64_t allowed;
		if (util_parse_u64(c->api_uid[i], UINT32_MAX - 1, &allowed) && allowed == uid)
			return 0;
	}
	fault_set(f, FAULT_DENIED, "user %u may not use the API of cpr-agent: no api-uid rule names it", (unsigned)uid);
	return fault_hint(f, "Use it as root, or add \"api-uid = %u\" to %.200s and restart cpr-agent.", (unsigned)uid,
			  c->config ? c->config : CONF_FILE);
}
