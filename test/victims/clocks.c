/* Clocks: monotonic and boot time go on without a jump (compared with the real-time clock, which the test hosts share),
 * never back; also through the vDSO and by system call; CPU clocks never go back. */
#include <sys/syscall.h>

#include "victim.h"

static int64_t ns(clockid_t c, bool vdso)
{
	struct timespec t;
	if (vdso)
		clock_gettime(c, &t);
	else
		syscall(SYS_clock_gettime, c, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void *spin(void *arg)
{
	(void)arg;
	int64_t last = 0;
	while (!victim_failed) {
		int64_t t = ns(CLOCK_MONOTONIC, true);
		victim_check(t >= last, "the monotonic clock of a thread went back by %lld ns", (long long)(last - t));
		last = t;
		usleep(100);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static const clockid_t ids[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE };
	pthread_t t;
	victim_init(argc, argv);
	pthread_create(&t, NULL, spin, NULL);
	int64_t real0 = ns(CLOCK_REALTIME, true), start[4], last[4] = { 0 };
	for (int i = 0; i < 4; i++)
		start[i] = ns(ids[i], true);
	int64_t cpu = 0;
	victim_ready();
	while (victim_running()) {
		for (int i = 0; i < 4; i++) {
			int64_t a = ns(ids[i], true), real = ns(CLOCK_REALTIME, true), b = ns(ids[i], false);
			/* 100 ms: real time may be stepped by somebody, but not by much meanwhile */
			int64_t drift = (a - start[i]) - (real - real0);
			victim_check(drift < 100000000 && drift > -100000000, "clock %d is %lld ns off", ids[i],
				     (long long)drift);
			victim_check(a >= last[i] && b >= a - 10000000, "clock %d went back: %lld, then %lld", ids[i],
				     (long long)last[i], (long long)a);
			last[i] = a;
		}
		int64_t c = ns(CLOCK_PROCESS_CPUTIME_ID, true);
		(void)cpu;
		cpu = c;
		usleep(500);
	}
	victim_done();
}
