/*
 * Mutual TLS 1.3 on a connected socket, for the wire process: both sides show a certificate of the same authority.
 *
 *	tls_new			certificates, keys: everything that needs files
 *	tls_handshake		the socket is made non-blocking; certificates and the peer's name are checked
 *	tls_read, tls_write	never block; tls_events says what to poll the socket for
 *	tls_flush		sends what tls_write has encrypted and kept together
 *	tls_close_notify	"that was all", before the socket is shut
 *	tls_free
 */
#ifndef TRANSPORT_TLS_H
#define TRANSPORT_TLS_H

#include "fault.h"

#define TLS_NAME_MAX 256

struct tls;

struct tls_conf {
	bool client;
	const char *expect;	    /* host name or address that the peer's certificate must be for; NULL: any */
	int ca_fd, cert_fd, key_fd; /* PEM files, read from their start */
};

struct tls *tls_new(const struct tls_conf *conf, struct fault *f) MUST_CHECK;
void tls_free(struct tls *t);
/* watch_fd: gives up when it hangs up; -1: none. FAULT_CERTIFICATE, FAULT_TIMEOUT, FAULT_PEER_LOST, FAULT_PROTOCOL,
 * FAULT_CANCELLED (watch_fd). When it returns 0, the peer, too, has accepted our certificate. */
int tls_handshake(struct tls *t, int sock, int timeout_ms, int watch_fd, struct fault *f) MUST_CHECK;
/* Name in the peer's certificate: the first dNSName, else the common name; what was expected, when that is a name. */
const char *tls_peer(const struct tls *t);

enum tls_status { TLS_FAILED = -1, TLS_DONE, TLS_BLOCKED, TLS_END };
/* TLS_DONE: *n > 0 bytes were moved. TLS_BLOCKED: poll first. TLS_END (reading): the peer has said that this was all. */
enum tls_status tls_read(struct tls *t, void *buf, size_t len, size_t *n, struct fault *f) MUST_CHECK;
enum tls_status tls_write(struct tls *t, const void *buf, size_t len, size_t *n, struct fault *f) MUST_CHECK;
enum tls_status tls_flush(struct tls *t, struct fault *f) MUST_CHECK;
enum tls_status tls_close_notify(struct tls *t, struct fault *f) MUST_CHECK;
bool tls_unsent(const struct tls *t); /* something waits for the socket: poll for POLLOUT, then tls_flush */

#endif
