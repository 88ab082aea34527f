/*
 * The bench's client: receives the writer's datagrams and writes one line per 10 ms and per gap over 2 ms:
 *	s TIME BYTES          sample: seconds (CLOCK_MONOTONIC), bytes the writer has written
 *	g TIME LENGTH         a gap that ended at TIME, in milliseconds
 * Ends when STOP_FILE appears.
 *	gap ADDRESS PORT STOP_FILE
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int s = socket(AF_INET, SOCK_DGRAM, 0), buf = 1 << 20;
	setsockopt(s, SOL_SOCKET, SO_RCVBUF, &buf, sizeof(buf));
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 0, 100000 }, sizeof(struct timeval));
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2])) };
	inet_pton(AF_INET, argv[1], &a.sin_addr);
	if (bind(s, (struct sockaddr *)&a, sizeof(a)) < 0)
		return 3;
	double last = 0, sample = 0;
	while (access(argv[3], F_OK) != 0) {
		uint64_t m[2];
		if (recv(s, m, sizeof(m), 0) != (ssize_t)sizeof(m))
			continue;
		double t = now();
		if (last != 0 && t - last > 0.002)
			printf("g %.6f %.3f\n", t, (t - last) * 1e3);
		if (t - sample > 0.01) {
			printf("s %.6f %llu\n", t, (unsigned long long)m[1]);
			sample = t;
		}
		last = t;
	}
	return 0;
}
