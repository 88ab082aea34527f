/*
 * The bench's process: MIB of incompressible memory, of which it rewrites random pages in a working set at a steady
 * rate; each millisecond it sends a datagram with a sequence number and the bytes written so far.
 *
 *	writer MIB WORKING_SET_MIB BYTES_PER_SECOND ADDRESS PORT THREADS READY_FILE
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

static uint64_t seed = 88172645463325252u;

static uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void fill(uint64_t *p)
{
	for (size_t i = 0; i < PAGE / 8; i++)
		p[i] = next();
}

static void *sleeper(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 8) {
		fprintf(stderr, "usage: writer MIB WORKING_SET_MIB BYTES_PER_SECOND ADDRESS PORT THREADS READY_FILE\n");
		return 2;
	}
	size_t len = strtoull(argv[1], NULL, 10) << 20, set = strtoull(argv[2], NULL, 10) << 20;
	uint64_t per_tick = strtoull(argv[3], NULL, 10) / 1000 / PAGE;
	char *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED)
		return 3;
	/* 4 KiB pages: what a heap that has lived for a while looks like, and the harder case. */
	madvise(m, len, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < len; i += PAGE)
		fill((uint64_t *)(m + i));
	for (int i = 1; i < atoi(argv[6]); i++) {
		pthread_t t;
		pthread_create(&t, NULL, sleeper, NULL);
	}
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[5])) };
	inet_pton(AF_INET, argv[4], &a.sin_addr);
	int fd = open(argv[7], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	close(fd);
	uint64_t message[2] = { 0, 0 };
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	for (;;) {
		for (uint64_t i = 0; i < per_tick; i++)
			fill((uint64_t *)(m + next() % (set / PAGE) * PAGE));
		message[0]++;
		message[1] += per_tick * PAGE;
		if (sendto(s, message, sizeof(message), MSG_DONTWAIT, (struct sockaddr *)&a, sizeof(a)) < 0)
			continue;
		t.tv_nsec += 1000000;
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		/* Behind by more than a tick: it was stopped, or starved; it does not make up for that. */
		if (now.tv_sec > t.tv_sec || (now.tv_sec == t.tv_sec && now.tv_nsec > t.tv_nsec + 1000000))
			t = now;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
	}
}
