/*
 * The floor for everything that goes through TLS: one plain TLS 1.3 stream over one TCP connection, two processes.
 *
 *	tlsraw server ADDR PORT CERT KEY CA		one connection, then prints what it received and how fast
 *	tlsraw client ADDR PORT CERT KEY CA BYTES	sends BYTES from memory (64 MiB of random bytes, over and over)
 *
 * Both print "tlsraw: BYTES bytes, SECONDS s, N bytes/s, SECONDS s cpu". The client's time ends with the server's answer that it has
 * everything. It is written as one writes a fast plain stream: blocking sockets, large buffers, AES-128-GCM first.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOURCE_BYTES ((size_t)64 << 20)
#define CHUNK	     ((size_t)256 << 10)

static void tls_die(const char *what)
{
	ERR_print_errors_fp(stderr);
	errx(1, "%s", what);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void result(uint64_t bytes, double seconds)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	double cpu = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
		     (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
	printf("tlsraw: %llu bytes, %.3f s, %.0f bytes/s, %.3f s cpu\n", (unsigned long long)bytes, seconds,
	       (double)bytes / seconds, cpu);
	fflush(stdout);
}

static SSL_CTX *context(int server, char **pem)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	if (!ctx || !SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256") ||
	    SSL_CTX_use_certificate_chain_file(ctx, pem[0]) != 1 ||
	    SSL_CTX_use_PrivateKey_file(ctx, pem[1], SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_load_verify_locations(ctx, pem[2], NULL) != 1)
		tls_die("certificates");
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, 128 << 10);
	return ctx;
}

static int tcp(int server, const char *addr, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	if (inet_pton(AF_INET, addr, &a.sin_addr) != 1)
		errx(2, "not an IPv4 address: %s", addr);
	int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!server) {
		for (int i = 0; connect(s, (void *)&a, sizeof(a)) < 0; i++) {
			if (i == 100)
				err(1, "connect %s:%s", addr, port);
			usleep(20000); /* the server may still be starting */
		}
	} else {
		if (bind(s, (void *)&a, sizeof(a)) < 0 || listen(s, 1) < 0)
			err(1, "listen on %s:%s", addr, port);
		int c = accept(s, NULL, NULL);
		if (c < 0)
			err(1, "accept");
		close(s);
		s = c;
	}
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return s;
}

static void serve(SSL *ssl)
{
	uint8_t *buf = malloc(CHUNK);
	uint64_t total = 0, got = 0;
	if (SSL_accept(ssl) != 1 || SSL_read(ssl, &total, sizeof(total)) != sizeof(total))
		tls_die("accept");
	double start = now();
	while (got < total) {
		int n = SSL_read(ssl, buf, CHUNK);
		if (n <= 0)
			tls_die("read");
		got += (uint64_t)n;
	}
	result(got, now() - start);
	if (SSL_write(ssl, "k", 1) != 1)
		tls_die("answer");
	SSL_shutdown(ssl);
	free(buf);
}

static void send_bytes(SSL *ssl, uint64_t total)
{
	uint8_t *data = malloc(SOURCE_BYTES), answer;
	for (size_t i = 0; i < SOURCE_BYTES; i += 256)
		if (getrandom(data + i, 256, 0) != 256)
			err(1, "getrandom");
	if (SSL_connect(ssl) != 1)
		tls_die("connect");
	double start = now();
	if (SSL_write(ssl, &total, sizeof(total)) != sizeof(total))
		tls_die("write");
	for (uint64_t done = 0; done < total;) {
		size_t at = done % SOURCE_BYTES, n = SOURCE_BYTES - at < CHUNK ? SOURCE_BYTES - at : CHUNK;
		if (n > total - done)
			n = total - done;
		if (SSL_write(ssl, data + at, (int)n) != (int)n)
			tls_die("write");
		done += n;
	}
	if (SSL_read(ssl, &answer, 1) != 1)
		tls_die("no answer");
	result(total, now() - start);
	SSL_shutdown(ssl);
	free(data);
}

int main(int argc, char **argv)
{
	int server = argc == 7 && !strcmp(argv[1], "server"), client = argc == 8 && !strcmp(argv[1], "client");
	if (!server && !client)
		errx(2, "usage: tlsraw server ADDR PORT CERT KEY CA | tlsraw client ADDR PORT CERT KEY CA BYTES");
	signal(SIGPIPE, SIG_IGN);
	SSL_CTX *ctx = context(server, argv + 4);
	SSL *ssl = SSL_new(ctx);
	SSL_set_fd(ssl, tcp(server, argv[2], argv[3]));
	if (server)
		serve(ssl);
	else
		send_bytes(ssl, strtoull(argv[7], NULL, 0));
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	return 0;
}
