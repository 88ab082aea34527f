/* POSIX timers and timerfd: they fire when they must, neither early nor twice, with the same ids. */
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include "victim.h"

static atomic_int fired, once;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void on_timer(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)u;
	if (i->si_value.sival_int == 7)
		fired += 1 + i->si_overrun;
	else if (i->si_value.sival_int == 8)
		once++;
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	struct sigaction a = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGRTMIN, &a, NULL);
	timer_t unused, periodic, shot;
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	timer_create(CLOCK_MONOTONIC, &e, &unused);
	e.sigev_value.sival_int = 7;
	timer_create(CLOCK_MONOTONIC, &e, &periodic);
	e.sigev_value.sival_int = 8;
	timer_create(CLOCK_BOOTTIME, &e, &shot);
	timer_delete(unused); /* a hole in the ids */
	int64_t t0 = now();
	timer_settime(periodic, 0, &(struct itimerspec){ { 0, 10000000 }, { 0, 10000000 } }, NULL);
	timer_settime(shot, 0, &(struct itimerspec){ { 0, 0 }, { 3600, 0 } }, NULL);
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	timerfd_settime(fd, 0, &(struct itimerspec){ { 0, 5000000 }, { 0, 5000000 } }, NULL);
	int far = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
	struct timespec b;
	clock_gettime(CLOCK_BOOTTIME, &b);
	b.tv_sec += 1000;
	timerfd_settime(far, TFD_TIMER_ABSTIME, &(struct itimerspec){ { 0, 0 }, b }, NULL);
	int idle = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
	uint64_t expirations = 0, v;
	victim_ready();
	while (victim_running()) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int r = poll(&p, 1, 1000);
		victim_check(r >= 0 || errno == EINTR, "poll: %s", strerror(errno));
		if (r == 1 && read(fd, &v, sizeof(v)) == sizeof(v))
			expirations += v;
		int64_t t = now() - t0;
		victim_check((int64_t)expirations <= t / 5000000 + 1, "timerfd: %llu expirations after %lld ms",
			     (unsigned long long)expirations, (long long)t / 1000000);
		victim_check(fired <= t / 10000000 + 1, "timer: %d expirations after %lld ms", fired,
			     (long long)t / 1000000);
		struct itimerspec i;
		timer_gettime(shot, &i);
		int64_t left = i.it_value.tv_sec * 1000000000ll + i.it_value.tv_nsec, want = 3600000000000ll - t;
		victim_check(left - want < 200000000 && want - left < 200000000, "one shot: %lld ms left, not %lld",
			     (long long)left / 1000000, (long long)want / 1000000);
		timerfd_gettime(far, &i);
		left = i.it_value.tv_sec * 1000000000ll + i.it_value.tv_nsec;
		want = 1000000000000ll - t;
		victim_check(left - want < 200000000 && want - left < 200000000, "timerfd: %lld ms left, not %lld",
			     (long long)left / 1000000, (long long)want / 1000000);
		timerfd_gettime(idle, &i);
		victim_check(!i.it_value.tv_sec && !i.it_value.tv_nsec, "an idle timerfd is armed");
	}
	int64_t t = now() - t0;
	/* What was due while it was frozen has fired since. */
	victim_check((int64_t)expirations >= t / 5000000 - 20, "timerfd: only %llu expirations after %lld ms",
		     (unsigned long long)expirations, (long long)t / 1000000);
	victim_check(fired >= t / 10000000 - 20, "timer: only %d expirations after %lld ms", fired,
		     (long long)t / 1000000);
	victim_check(once == 0, "the one-shot timer has fired");
	victim_done();
}
