/*
 * How fast the transport is by itself: as tlsraw, but through link, ring and wire, with a worker on each side that
 * copies pages out of one process and into another one.
 *
 *	linkraw server ADDR PORT CERT KEY CA
 *	linkraw client ADDR PORT CERT KEY CA BYTES
 *
 * Compare with tlsraw on the same machine: what is lost is what rings, wires and page copies cost.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "wirepair.h"

#define REGION_MAX  ((size_t)1 << 30)
#define CHUNK_PAGES 256u
#define CHUNK_BYTES (CHUNK_PAGES * PAGE_BYTES)

static _Noreturn void die(const struct fault *f)
{
	char line[1024];
	fault_line(f, line, sizeof(line));
	errx(1, "%s", line);
}

/* A process with a region of memory, filled or never touched. */
static pid_t victim(size_t size, bool fill, uint8_t **at)
{
	int ready[2];
	char c;
	*at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (*at == MAP_FAILED || pipe(ready) < 0)
		err(1, "victim");
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (size_t i = 0; fill && i < size; i += 256)
			if (getrandom(*at + i, 256, 0) != 256)
				_exit(1);
		if (write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		errx(1, "victim failed");
	close(ready[0]);
	return pid;
}

static int tcp(bool server, const char *addr, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	if (inet_pton(AF_INET, addr, &a.sin_addr) != 1)
		errx(2, "not an IPv4 address: %s", addr);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!server) {
		for (int i = 0; connect(s, (void *)&a, sizeof(a)) < 0; i++) {
			if (i == 100)
				err(1, "connect %s:%s", addr, port);
			poll(NULL, 0, 20); /* the server may still be starting */
		}
		return s;
	}
	if (bind(s, (void *)&a, sizeof(a)) < 0 || listen(s, 1) < 0)
		err(1, "listen on %s:%s", addr, port);
	int c = accept4(s, NULL, NULL, SOCK_CLOEXEC);
	if (c < 0)
		err(1, "accept");
	close(s);
	return c;
}

static double cpu_seconds(int who)
{
	struct rusage u;
	getrusage(who, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void result(uint64_t bytes, uint64_t start)
{
	double s = (double)(util_monotonic_ns() - start) / 1e9;
	printf("linkraw: %llu bytes, %.3f s, %.0f bytes/s, worker %.3f s cpu\n", (unsigned long long)bytes, s,
	       (double)bytes / s, cpu_seconds(RUSAGE_SELF));
	fflush(stdout);
}

static void serve(struct link *l)
{
	struct fault f = { .what = "no answer in time" };
	struct frame fr;
	uint8_t *at;
	if (link_expect(l, FRAME_HELLO, &fr, 60000, &f) != 1)
		die(&f);
	uint64_t total = fr.h.arg, got = 0, start = util_monotonic_ns();
	size_t region = total < REGION_MAX ? total : REGION_MAX;
	pid_t vessel = victim(region, false, &at);
	while (got < total) {
		if (link_expect(l, FRAME_PAGES, &fr, 60000, &f) != 1)
			die(&f);
		struct iovec from = { (void *)fr.payload, fr.h.length };
		struct iovec to = { at + got % region, fr.h.length };
		if (process_vm_writev(vessel, &from, 1, &to, 1, 0) != (ssize_t)fr.h.length)
			err(1, "process_vm_writev");
		got += fr.h.length;
	}
	if (link_send(l, FRAME_RESUMED, 0, NULL, 0, &f) < 0)
		die(&f);
	result(got, start);
	kill(vessel, SIGKILL);
}

static void send_bytes(struct link *l, uint64_t total)
{
	struct fault f = { .what = "no answer in time" };
	struct frame fr;
	uint8_t *at;
	total = total / CHUNK_BYTES * CHUNK_BYTES;
	size_t region = total < 64 << 20 ? total : 64 << 20;
	pid_t source = victim(region, true, &at);
	uint64_t start = util_monotonic_ns();
	if (link_send(l, FRAME_HELLO, total, NULL, 0, &f) < 0)
		die(&f);
	for (uint64_t done = 0; done < total; done += CHUNK_BYTES) {
		void *p = link_begin(l, FRAME_PAGES, CHUNK_BYTES, &f);
		if (!p)
			die(&f);
		struct iovec to = { p, CHUNK_BYTES }, from = { at + done % region, CHUNK_BYTES };
		if (process_vm_readv(source, &to, 1, &from, 1, 0) != (ssize_t)CHUNK_BYTES)
			err(1, "process_vm_readv");
		if (link_commit(l, CHUNK_PAGES, CHUNK_BYTES, &f) < 0)
			die(&f);
	}
	if (link_expect(l, FRAME_RESUMED, &fr, 60000, &f) != 1)
		die(&f);
	result(total, start);
	kill(source, SIGKILL);
}

int main(int argc, char **argv)
{
	bool server = argc == 7 && !strcmp(argv[1], "server"), client = argc == 8 && !strcmp(argv[1], "client");
	struct fault f = { .what = "no answer in time" };
	if (!server && !client)
		errx(2, "usage: linkraw server ADDR PORT CERT KEY CA | linkraw client ADDR PORT CERT KEY CA BYTES");
	struct wire_side s = { .cert = argv[4], .key = argv[5], .ca = argv[6], .client = client };
	s.sock = tcp(server, argv[2], argv[3]);
	if (wire_side_start(&s, &f) < 0 || wire_side_hello(&s, 15000, &f) < 0)
		die(&f);
	struct link *l = link_open(&s.fds, &f);
	if (!l)
		die(&f);
	if (server)
		serve(l);
	else
		send_bytes(l, strtoull(argv[7], NULL, 0));
	link_close(l);
	wire_side_reap(&s, 10000);
	printf("linkraw: wire and victim %.3f s cpu\n", cpu_seconds(RUSAGE_CHILDREN));
	return 0;
}
