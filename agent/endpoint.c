#include "endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

static int bad(const char *text, struct fault *f)
{
	fault_set(f, FAULT_USAGE, "\"%.100s\" is not HOST, HOST:PORT or [IPV6]:PORT", text);
	return fault_hint(f, "Write it like 10.0.0.2:%u, [fd00::2]:%u or host2.", ENDPOINT_PORT, ENDPOINT_PORT);
}

bool endpoint_host_valid(const char *host)
{
	size_t n = strlen(host);
	return n > 0 && n <= 253 && host[0] != '-' &&
	       strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:") == n;
}

int endpoint_split(const char *text, char *host, size_t host_len, uint16_t *port, struct fault *f)
{
	const char *start = text, *end, *rest;
	if (*text == '[') {
		start = text + 1;
		end = strchr(start, ']');
		if (!end)
			return bad(text, f);
		rest = end + 1;
	} else {
		const char *colon = strchr(text, ':');
		/* two colons without brackets: an IPv6 address without a port */
		end = colon && !strchr(colon + 1, ':') ? colon : text + strlen(text);
		rest = end;
	}
	size_t n = (size_t)(end - start);
	if (n >= host_len)
		return bad(text, f);
	uint64_t p = ENDPOINT_PORT;
	if (*rest && (*rest != ':' || !util_parse_u64(rest + 1, 65535, &p)))
		return bad(text, f);
	memcpy(host, start, n);
	host[n] = 0;
	if (!endpoint_host_valid(host))
		return bad(text, f);
	*port = (uint16_t)p;
	return 0;
}

/* By inet_pton, not getaddrinfo, which takes "7077" for the address 0.0.27.165. */
bool endpoint_numeric(const char *host, uint16_t port, struct endpoint *out)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	bool v4 = inet_pton(AF_INET, host, &in.sin_addr) == 1;
	if (!v4 && inet_pton(AF_INET6, host, &in6.sin6_addr) != 1)
		return false;
	*out = (struct endpoint){ .len = v4 ? sizeof(in) : sizeof(in6) };
	memcpy(&out->addr, v4 ? (const void *)&in : &in6, out->len);
	return true;
}

int endpoint_parse(const char *text, struct endpoint *out, struct fault *f)
{
	char host[256];
	uint16_t port;
	if (endpoint_split(text, host, sizeof(host), &port, f) < 0)
		return -1;
	if (!endpoint_numeric(host, port, out)) {
		fault_set(f, FAULT_USAGE, "\"%.100s\" is not a numeric address", host);
		return fault_hint(f, "Write it like 0.0.0.0:%u or [::]:%u.", ENDPOINT_PORT, ENDPOINT_PORT);
	}
	return 0;
}

void endpoint_text(const struct sockaddr *sa, socklen_t len, char out[ENDPOINT_TEXT])
{
	char host[48], port[8];
	if (getnameinfo(sa, len, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(out, ENDPOINT_TEXT, "(unknown)");
	else if (sa->sa_family == AF_INET6)
		snprintf(out, ENDPOINT_TEXT, "[%s]:%s", host, port);
	else
		snprintf(out, ENDPOINT_TEXT, "%s:%s", host, port);
}
