#include "tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* The application protocol, so that a certificate of the cluster used elsewhere can't be made to talk to us. */
static const unsigned char alpn[] = "\x05"
				    "cpr/1";
/* A TLS 1.3 client is done before the server has looked at its certificate. The server therefore says hello when it
 * has accepted it; the client waits for that. */
static const char greeting[] = "cpr-tls\n";
#define GREETING_BYTES (sizeof(greeting) - 1)

#define PEM_BYTES_MAX  ((size_t)1 << 20)

/* A full record as it is on the wire: header, data, type, tag. Four of them are moved in one system call; with more,
 * data falls out of the cache between copying and deciphering, which costs more than the calls do. OpenSSL aligns its
 * buffer, hence the 8 bytes; a read of them, too, would end in the midst of a record, and the rest be read by itself. */
#define RECORD_BYTES ((size_t)(5 + 16384 + 1 + 16))
#define GROUP_BYTES  (4 * RECORD_BYTES)
#define OUT_BYTES    GROUP_BYTES
#define READ_AHEAD   (GROUP_BYTES + 8)

struct tls {
	SSL_CTX *ctx;
	SSL *ssl;
	BIO_METHOD *method;
	bool client, expect_is_address;
	char expect[TLS_NAME_MAX], peer[TLS_NAME_MAX];
	char presented[TLS_NAME_MAX]; /* names of the certificate that failed, for the message */
	int sock;
	int sock_errno; /* why the socket failed last; 0: it did not */
	bool sock_eof;
	uint8_t *out; /* encrypted, not yet sent: out_at … out_used */
	size_t out_at, out_used;
};

/* ---- the socket below OpenSSL ----
 *
 * OpenSSL writes each record of 16 KiB by itself; here several are put together for one send(2). */

static void out_send(struct tls *t)
{
	while (t->out_at < t->out_used) {
		ssize_t n = send(t->sock, t->out + t->out_at, t->out_used - t->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			if (errno != EAGAIN)
				t->sock_errno = errno;
			return;
		}
		t->out_at += (size_t)n;
	}
	t->out_at = t->out_used = 0;
}

static int bio_write(BIO *b, const char *buf, int len)
{
	struct tls *t = BIO_get_data(b);
	BIO_clear_retry_flags(b);
	if (OUT_BYTES - t->out_used < (size_t)len)
		out_send(t);
	if (t->sock_errno)
		return -1;
	size_t room = OUT_BYTES - t->out_used;
	if (room == 0) {
		BIO_set_retry_write(b);
		return -1;
	}
	size_t n = (size_t)len < room ? (size_t)len : room;
	memcpy(t->out + t->out_used, buf, n);
	t->out_used += n;
	return (int)n;
}

static int bio_read(BIO *b, char *buf, int len)
{
	struct tls *t = BIO_get_data(b);
	size_t want = (size_t)len < GROUP_BYTES ? (size_t)len : GROUP_BYTES;
	ssize_t n;
	BIO_clear_retry_flags(b);
	do
		n = recv(t->sock, buf, want, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		BIO_set_retry_read(b);
	else if (n < 0)
		t->sock_errno = errno;
	else if (n == 0)
		t->sock_eof = true;
	return (int)n;
}

static long bio_ctrl(BIO *b, int cmd, long arg, void *ptr)
{
	(void)arg;
	(void)ptr;
	struct tls *t = BIO_get_data(b);
	/* Flushed when OpenSSL has a flight of the handshake ready. What can't be sent now is sent after a poll. */
	if (cmd == BIO_CTRL_FLUSH)
		out_send(t);
	if (cmd == BIO_CTRL_EOF)
		return t->sock_eof;
	return cmd == BIO_CTRL_FLUSH;
}

static BIO *bio_for(struct tls *t)
{
	t->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "cpr socket");
	if (!t->method || !BIO_meth_set_write(t->method, bio_write) || !BIO_meth_set_read(t->method, bio_read) ||
	    !BIO_meth_set_ctrl(t->method, bio_ctrl))
		return NULL;
	BIO *b = BIO_new(t->method);
	if (b) {
		BIO_set_data(b, t);
		BIO_set_init(b, 1);
	}
	return b;
}

/* ---- certificates and keys ---- */

static const char *openssl_reason(void)
{
	const char *s = ERR_reason_error_string(ERR_peek_last_error());
	return s ? s : "no reason given";
}

/* A PEM file that is open already, and maybe shared with other readers: its offset is left alone. */
static BIO *pem_open(int fd, const char *what, struct fault *f)
{
	char *buf = malloc(PEM_BYTES_MAX);
	size_t used = 0;
	ssize_t n = -1;
	while (buf && used < PEM_BYTES_MAX && (n = pread(fd, buf + used, PEM_BYTES_MAX - used, (off_t)used)) > 0)
		used += (size_t)n;
	BIO *b = NULL;
	if (n < 0)
		fault_errno(f, FAULT_CONFIG, "read %s", what);
	else if (used == PEM_BYTES_MAX)
		fault_set(f, FAULT_CONFIG, "%s is no PEM file: it is larger than %zu bytes", what, PEM_BYTES_MAX);
	else if ((b = BIO_new(BIO_s_mem())) && BIO_write(b, buf, (int)used) != (int)used) {
		BIO_free(b);
		b = NULL;
	}
	if (!b && n == 0 && used < PEM_BYTES_MAX)
		fault_set(f, FAULT_NO_MEMORY, "read %s", what);
	if (buf)
		OPENSSL_cleanse(buf, used);
	free(buf);
	return b;
}

/* Nobody is there to type a passphrase. */
static int no_passphrase(char *buf, int size, int rw, void *arg)
{
	(void)buf;
	(void)size;
	(void)rw;
	(void)arg;
	return -1;
}

static int load_ca(struct tls *t, int fd, struct fault *f)
{
	BIO *b = pem_open(fd, "the authority's certificate", f);
	if (!b)
		return -1;
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	X509 *x;
	int n = 0;
	while ((x = PEM_read_bio_X509(b, NULL, no_passphrase, NULL))) {
		n += X509_STORE_add_cert(store, x);
		X509_free(x);
	}
	BIO_free(b);
	ERR_clear_error(); /* the end of the file is an error to OpenSSL */
	return n ? 0 : fault_set(f, FAULT_CONFIG, "the authority's file holds no certificate");
}

static int load_cert(struct tls *t, int fd, struct fault *f)
{
	BIO *b = pem_open(fd, "this host's certificate", f);
	if (!b)
		return -1;
	X509 *x = PEM_read_bio_X509(b, NULL, no_passphrase, NULL);
	int ok = x && SSL_CTX_use_certificate(t->ctx, x) == 1;
	X509_free(x);
	while (ok && (x = PEM_read_bio_X509(b, NULL, no_passphrase, NULL)))
		if (!SSL_CTX_add0_chain_cert(t->ctx, x)) {
			X509_free(x);
			ok = 0;
		}
	BIO_free(b);
	if (!ok)
		fault_set(f, FAULT_CONFIG, "this host's certificate can't be used: %s", openssl_reason());
	ERR_clear_error();
	return ok ? 0 : -1;
}

static int load_key(struct tls *t, int fd, struct fault *f)
{
	BIO *b = pem_open(fd, "this host's key", f);
	if (!b)
		return -1;
	EVP_PKEY *key = PEM_read_bio_PrivateKey(b, NULL, no_passphrase, NULL);
	BIO_free(b);
	int ok = key && SSL_CTX_use_PrivateKey(t->ctx, key) == 1 && SSL_CTX_check_private_key(t->ctx) == 1;
	EVP_PKEY_free(key);
	if (!ok)
		fault_set(f, FAULT_CONFIG, "this host's key can't be used with its certificate: %s", openssl_reason());
	ERR_clear_error();
	return ok ? 0 : -1;
}

/* ---- names ---- */

/* Lower case letters, digits, dots, hyphens, underscores: nothing that could mean something to a policy or a shell. */
static bool copy_name(char to[TLS_NAME_MAX], const unsigned char *s, int len)
{
	if (len <= 0 || len >= TLS_NAME_MAX)
		return false;
	for (int i = 0; i < len; i++) {
		int c = s[i];
		bool upper = c >= 'A' && c <= 'Z';
		if (!upper && !(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && !strchr(".-_", c))
			return false;
		to[i] = (char)(upper ? c + 'a' - 'A' : c);
	}
	to[len] = '\0';
	return true;
}

static bool dns_name(X509 *x, char name[TLS_NAME_MAX])
{
	GENERAL_NAMES *all = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
	bool found = false;
	for (int i = 0; !found && i < sk_GENERAL_NAME_num(all); i++) {
		const GENERAL_NAME *g = sk_GENERAL_NAME_value(all, i);
		if (g->type == GEN_DNS)
			found = copy_name(name, ASN1_STRING_get0_data(g->d.dNSName), ASN1_STRING_length(g->d.dNSName));
	}
	GENERAL_NAMES_free(all);
	return found;
}

static bool common_name(X509 *x, char name[TLS_NAME_MAX])
{
	X509_NAME *subject = X509_get_subject_name(x);
	int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
	if (at < 0)
		return false;
	const ASN1_STRING *s = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
	return copy_name(name, ASN1_STRING_get0_data(s), ASN1_STRING_length(s));
}

static bool cert_name(X509 *x, char name[TLS_NAME_MAX])
{
	return x && (dns_name(x, name) || common_name(x, name));
}

/* ---- set-up ---- */

static int tls_index(void)
{
	static int index = -1;
	if (index < 0)
		index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
	return index;
}

/* Only remembers whose certificate it was, for the message. */
static int on_verify(int ok, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *t = SSL_get_ex_data(ssl, tls_index());
	if (!ok && !cert_name(X509_STORE_CTX_get0_cert(store), t->presented))
		t->presented[0] = '\0';
	return ok;
}

static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen, const unsigned char *in,
		   unsigned int inlen, void *arg)
{
	(void)ssl;
	(void)arg;
	unsigned char *chosen;
	if (SSL_select_next_proto(&chosen, outlen, alpn, sizeof(alpn) - 1, in, inlen) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

static int set_up_context(struct tls *t)
{
	t->ctx = SSL_CTX_new(t->client ? TLS_client_method() : TLS_server_method());
	if (!t->ctx || !SSL_CTX_set_min_proto_version(t->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_max_proto_version(t->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(t->ctx,
				      "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"))
		return -1;
	/* A ticket would let a peer in later, when its certificate may have expired. */
	SSL_CTX_set_options(t->ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_num_tickets(t->ctx, 0);
	SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
	SSL_CTX_set_mode(t->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_read_ahead(t->ctx, 1);
	SSL_CTX_set_default_read_buffer_len(t->ctx, READ_AHEAD);
	if (t->client)
		return SSL_CTX_set_alpn_protos(t->ctx, alpn, sizeof(alpn) - 1) == 0 ? 0 : -1;
	SSL_CTX_set_alpn_select_cb(t->ctx, on_alpn, NULL);
	return 0;
}

static int set_up_peer_name(struct tls *t, const char *expect)
{
	unsigned char address[16];
	if (!expect)
		return 0;
	if (strlen(expect) >= sizeof(t->expect))
		return -1;
	snprintf(t->expect, sizeof(t->expect), "%s", expect);
	X509_VERIFY_PARAM *p = SSL_get0_param(t->ssl);
	t->expect_is_address = inet_pton(AF_INET, expect, address) == 1 || inet_pton(AF_INET6, expect, address) == 1;
	if (t->expect_is_address)
		return X509_VERIFY_PARAM_set1_ip_asc(p, expect) ? 0 : -1;
	X509_VERIFY_PARAM_set_hostflags(p, X509_CHECK_FLAG_NO_WILDCARDS);
	if (t->client && !SSL_set_tlsext_host_name(t->ssl, expect))
		return -1;
	return X509_VERIFY_PARAM_set1_host(p, expect, 0) ? 0 : -1;
}

static int set_up_connection(struct tls *t, const char *expect)
{
	t->ssl = SSL_new(t->ctx);
	BIO *b = bio_for(t);
	if (!t->ssl || !b) {
		BIO_free(b);
		return -1;
	}
	SSL_set_bio(t->ssl, b, b);
	if (!SSL_set_ex_data(t->ssl, tls_index(), t))
		return -1;
	if (t->client)
		SSL_set_connect_state(t->ssl);
	else
		SSL_set_accept_state(t->ssl);
	return set_up_peer_name(t, expect);
}

struct tls *tls_new(const struct tls_conf *conf, struct fault *f)
{
	struct tls *t = calloc(1, sizeof(*t));
	if (!t || !(t->out = malloc(OUT_BYTES))) {
		free(t);
		fault_errno(f, FAULT_NO_MEMORY, "set up TLS");
		return NULL;
	}
	t->client = conf->client;
	t->sock = -1;
	int r = set_up_context(t);
	if (r < 0)
		fault_set(f, FAULT_SYSTEM, "OpenSSL can't do TLS 1.3 as we need it: %s", openssl_reason());
	else if ((r = load_ca(t, conf->ca_fd, f)) == 0 && (r = load_cert(t, conf->cert_fd, f)) == 0 &&
		 (r = load_key(t, conf->key_fd, f)) == 0 && (r = set_up_connection(t, conf->expect)) < 0)
		fault_set(f, FAULT_SYSTEM, "OpenSSL can't set up a connection to %s: %s",
			  conf->expect ? conf->expect : "a peer", openssl_reason());
	if (r < 0) {
		tls_free(t);
		return NULL;
	}
	return t;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	SSL_free(t->ssl);
	SSL_CTX_free(t->ctx);
	BIO_meth_free(t->method);
	free(t->out);
	free(t);
}

/* ---- what went wrong ---- */

static const char *peer_text(const struct tls *t)
{
	return t->expect[0] ? t->expect : t->peer[0] ? t->peer : "the other host";
}

static int clock_hint(struct fault *f)
{
	return fault_hint(f, "Make a new certificate (cpr-pki host), or set the clocks of both hosts right.");
}

/* We refused the peer's certificate. */
static int verify_fault(const struct tls *t, long why, struct fault *f)
{
	const char *who = t->presented[0] ? t->presented : peer_text(t);
	switch (why) {
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		fault_set(f, FAULT_CERTIFICATE, "the certificate is for %s, not %s",
			  t->presented[0] ? t->presented : "nobody in particular", t->expect);
		return fault_hint(
			f, "Use the name that stands in the certificate, or see that %s leads to the host you mean.",
			t->expect);
	case X509_V_ERR_CERT_HAS_EXPIRED:
		fault_set(f, FAULT_CERTIFICATE, "the certificate of %s has expired", who);
		return clock_hint(f);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		fault_set(f, FAULT_CERTIFICATE, "the certificate of %s is not valid yet", who);
		return clock_hint(f);
	case X509_V_ERR_INVALID_PURPOSE:
		fault_set(f, FAULT_CERTIFICATE, "the certificate of %s is not made for a %s", who,
			  t->client ? "server" : "client");
		return fault_hint(f, "Make a host certificate that is for both (cpr-pki host).");
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		fault_set(f, FAULT_CERTIFICATE, "the certificate of %s is of an authority that is unknown here", who);
		return fault_hint(f, "Give both hosts the same ca.pem and certificates made with it.");
	}
	return fault_set(f, FAULT_CERTIFICATE, "the certificate of %s is refused: %s", who,
			 X509_verify_cert_error_string(why));
}

/* The peer sent an alert: NULL when it is not about our certificate. */
static const char *alert_text(int reason)
{
	switch (reason) {
	case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
		return "it does not know the authority";
	case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
		return "it has expired, by the other host's clock";
	case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
		return "it is revoked";
	case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
		return "it is not made for this use";
	case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
		return "none was shown";
	case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
	case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
	case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
		return "it is not for the name by which this host was called, not valid yet, or damaged";
	}
	return NULL;
}

static int lost_fault(const struct tls *t, struct fault *f)
{
	if (t->sock_errno == ETIMEDOUT)
		return fault_raise(f, FAULT_WHERE, FAULT_PEER_LOST, ETIMEDOUT, "%s has not answered for too long",
				   peer_text(t));
	if (t->sock_errno)
		return fault_raise(f, FAULT_WHERE, FAULT_PEER_LOST, t->sock_errno, "the connection to %s broke",
				   peer_text(t));
	return fault_set(f, FAULT_PEER_LOST, "%s closed the connection without a word", peer_text(t));
}

/* After a call of OpenSSL failed for good. */
static int failed(struct tls *t, int ssl_error, struct fault *f)
{
	unsigned long e = ERR_peek_error();
	int reason = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0;
	long verify = SSL_get_verify_result(t->ssl);
	const char *alert = alert_text(reason);
	if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
		verify_fault(t, verify, f);
	else if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
		fault_set(f, FAULT_CERTIFICATE, "%s showed no certificate", peer_text(t));
	else if (alert) {
		fault_set(f, FAULT_CERTIFICATE, "%s refused this host's certificate: %s", peer_text(t), alert);
		fault_hint(f, "Compare ca.pem on both hosts, and look at this host's certificate (cpr-pki show).");
	} else if (t->sock_errno || t->sock_eof || ssl_error == SSL_ERROR_SYSCALL || ssl_error == SSL_ERROR_ZERO_RETURN)
		lost_fault(t, f);
	else
		fault_set(f, FAULT_PROTOCOL, "TLS with %s failed: %s", peer_text(t), openssl_reason());
	ERR_clear_error();
	return -1;
}

/* ---- handshake ---- */

/* One step. 1: done; 0: poll. */
static int step(struct tls *t, size_t *greeted, struct fault *f)
{
	char buf[GREETING_BYTES];
	size_t n;
	ERR_clear_error();
	if (!SSL_is_init_finished(t->ssl)) {
		int r = SSL_do_handshake(t->ssl), e = SSL_get_error(t->ssl, r);
		if (r != 1)
			return e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE ? 0 : failed(t, e, f);
		if (!t->client) {
			if (tls_write(t, greeting, GREETING_BYTES, &n, f) != TLS_DONE || n != GREETING_BYTES)
				return fault_set(f, FAULT_INTERNAL, "could not greet the peer");
			*greeted = GREETING_BYTES;
		}
	}
	while (*greeted < GREETING_BYTES) {
		enum tls_status s = tls_read(t, buf, GREETING_BYTES - *greeted, &n, f);
		if (s == TLS_BLOCKED)
			return 0;
		if (s == TLS_END)
			return failed(t, SSL_ERROR_ZERO_RETURN, f);
		if (s != TLS_DONE)
			return -1;
		if (memcmp(buf, greeting + *greeted, n) != 0)
			return fault_set(f, FAULT_PROTOCOL, "%s does not speak our protocol", peer_text(t));
		*greeted += n;
	}
	enum tls_status s = tls_flush(t, f);
	return s == TLS_DONE ? 1 : s == TLS_BLOCKED ? 0 : -1;
}

static int wait_socket(struct tls *t, uint64_t deadline, int watch_fd, struct fault *f)
{
	struct pollfd p[2] = { { .fd = t->sock, .events = (short)(POLLIN | (tls_unsent(t) ? POLLOUT : 0)) },
			       { .fd = watch_fd, .events = 0 } };
	uint64_t now = util_monotonic_ns();
	int n = now < deadline ? poll(p, 2, (int)((deadline - now) / 1000000 + 1)) : 0;
	if (n < 0 && errno != EINTR)
		return fault_errno(f, FAULT_SYSTEM, "wait for the peer");
	if (n == 0)
		return fault_set(f, FAULT_TIMEOUT, "%s did not finish the TLS handshake in time", peer_text(t));
	if (n > 0 && p[1].revents)
		return fault_set(f, FAULT_CANCELLED, "the TLS handshake was given up");
	return 0;
}

static int name_peer(struct tls *t, struct fault *f)
{
	if (t->expect[0] && !t->expect_is_address)
		return copy_name(t->peer, (const unsigned char *)t->expect, (int)strlen(t->expect))
			       ? 0
			       : fault_set(f, FAULT_USAGE, "%s is no host name", t->expect);
	X509 *x = SSL_get0_peer_certificate(t->ssl);
	return cert_name(x, t->peer) ? 0 : fault_set(f, FAULT_CERTIFICATE, "the peer's certificate names no host");
}

int tls_handshake(struct tls *t, int sock, int timeout_ms, int watch_fd, struct fault *f)
{
	uint64_t deadline = util_monotonic_ns() + (uint64_t)timeout_ms * 1000000;
	size_t greeted = 0;
	int r;
	t->sock = sock;
	while ((r = step(t, &greeted, f)) == 0)
		if (wait_socket(t, deadline, watch_fd, f) < 0)
			return -1;
	if (r < 0) {
		out_send(t); /* the alert that tells the peer why */
		return -1;
	}
	return name_peer(t, f);
}

const char *tls_peer(const struct tls *t)
{
	return t->peer;
}

/* ---- data ---- */

enum tls_status tls_read(struct tls *t, void *buf, size_t len, size_t *n, struct fault *f)
{
	if (SSL_read_ex(t->ssl, buf, len, n) == 1)
		return TLS_DONE;
	int e = SSL_get_error(t->ssl, 0);
	if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
		return TLS_BLOCKED;
	if (e == SSL_ERROR_ZERO_RETURN)
		return TLS_END;
	failed(t, e, f);
	return TLS_FAILED;
}

enum tls_status tls_write(struct tls *t, const void *buf, size_t len, size_t *n, struct fault *f)
{
	if (SSL_write_ex(t->ssl, buf, len, n) == 1)
		return TLS_DONE;
	int e = SSL_get_error(t->ssl, 0);
	if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
		return TLS_BLOCKED;
	failed(t, e, f);
	return TLS_FAILED;
}

enum tls_status tls_flush(struct tls *t, struct fault *f)
{
	out_send(t);
	if (t->sock_errno) {
		lost_fault(t, f);
		return TLS_FAILED;
	}
	return tls_unsent(t) ? TLS_BLOCKED : TLS_DONE;
}

enum tls_status tls_close_notify(struct tls *t, struct fault *f)
{
	if (SSL_shutdown(t->ssl) < 0) {
		int e = SSL_get_error(t->ssl, -1);
		if (e == SSL_ERROR_WANT_WRITE || e == SSL_ERROR_WANT_READ)
			return TLS_BLOCKED;
		failed(t, e, f);
		return TLS_FAILED;
	}
	return tls_flush(t, f);
}

bool tls_unsent(const struct tls *t)
{
	return t->out_at < t->out_used;
}
