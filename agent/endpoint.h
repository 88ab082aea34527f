/*
 * "ADDRESS:PORT" and "HOST[:PORT]" as people write them: 10.0.0.2:7077, [fd00::2]:7077, host2, host2:7078.
 */
#ifndef AGENT_ENDPOINT_H
#define AGENT_ENDPOINT_H

#include <stdint.h>
#include <sys/socket.h>

#include "fault.h"

#define ENDPOINT_PORT 7077u
#define ENDPOINT_TEXT 64

struct endpoint {
	struct sockaddr_storage addr;
	socklen_t len;
};

/* Splits text into host (without brackets) and port; port is ENDPOINT_PORT when none is given. FAULT_USAGE. */
int endpoint_split(const char *text, char *host, size_t host_len, uint16_t *port, struct fault *f) MUST_CHECK;
/* A numeric address only. */
int endpoint_parse(const char *text, struct endpoint *out, struct fault *f) MUST_CHECK;
bool endpoint_numeric(const char *host, uint16_t port, struct endpoint *out) MUST_CHECK;
void endpoint_text(const struct sockaddr *sa, socklen_t len, char out[ENDPOINT_TEXT]);
/* A host name as certificates carry it: letters, digits, '-', '.', '_', ':' (IPv6), not empty, at most 253. */
bool endpoint_host_valid(const char *host);

#endif
