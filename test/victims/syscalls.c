/* Threads that are blocked in a system call nearly all the time: none returns early, nor an errno that it can't have. */
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "victim.h"

static int quiet[2]; /* a pipe that nothing is ever written to */
static int ep;
static atomic_bool stop;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

#define MS 300 /* long enough that most stops fall into one */

static int do_nanosleep(void)
{
	return nanosleep(&(struct timespec){ 0, MS * 1000000l }, NULL);
}

static int do_nanosleep_rem(void)
{
	struct timespec rest = { 99, 0 };
	return nanosleep(&(struct timespec){ 0, MS * 1000000l }, &rest);
}

static int do_clock_nanosleep(void)
{
	return clock_nanosleep(CLOCK_BOOTTIME, 0, &(struct timespec){ 0, MS * 1000000l }, NULL);
}

static int do_abs_nanosleep(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	int64_t end = t.tv_sec * 1000000000ll + t.tv_nsec + MS * 1000000ll;
	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &(struct timespec){ end / 1000000000, end % 1000000000 },
			       NULL);
}

static int do_poll(void)
{
	return poll(&(struct pollfd){ .fd = quiet[0], .events = POLLIN }, 1, MS);
}

static int do_ppoll(void)
{
	sigset_t m;
	sigemptyset(&m);
	return ppoll(&(struct pollfd){ .fd = quiet[0], .events = POLLIN }, 1, &(struct timespec){ 0, MS * 1000000l },
		     &m);
}

static int do_select(void)
{
	fd_set s;
	FD_ZERO(&s);
	FD_SET(quiet[0], &s);
	return select(quiet[0] + 1, &s, NULL, NULL, &(struct timeval){ 0, MS * 1000 });
}

static int do_epoll(void)
{
	struct epoll_event e;
	return epoll_wait(ep, &e, 1, MS);
}

static int do_futex(void)
{
	static int word;
	long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &(struct timespec){ 0, MS * 1000000l }, NULL, 0);
	return r == -1 && errno == ETIMEDOUT ? 0 : -1;
}

static int do_futex_abs(void)
{
	static int word;
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	int64_t end = t.tv_sec * 1000000000ll + t.tv_nsec + MS * 1000000ll;
	long r = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0,
			 &(struct timespec){ end / 1000000000, end % 1000000000 }, NULL, ~0u);
	return r == -1 && errno == ETIMEDOUT ? 0 : -1;
}

static int do_sigtimedwait(void)
{
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 9);
	int r = sigtimedwait(&s, NULL, &(struct timespec){ 0, MS * 1000000l });
	return r == -1 && errno == EAGAIN ? 0 : -1;
}

static const struct {
	const char *name;
	int (*call)(void);
} calls[] = {
	{ "nanosleep", do_nanosleep },
	{ "nanosleep with remainder", do_nanosleep_rem },
	{ "clock_nanosleep", do_clock_nanosleep },
	{ "clock_nanosleep, absolute", do_abs_nanosleep },
	{ "poll", do_poll },
	{ "ppoll", do_ppoll },
	{ "select", do_select },
	{ "epoll_wait", do_epoll },
	{ "futex", do_futex },
	{ "futex, absolute", do_futex_abs },
	{ "sigtimedwait", do_sigtimedwait },
};
#define N ((int)(sizeof(calls) / sizeof(calls[0])))

static void *blocked(void *arg)
{
	int i = (int)(intptr_t)arg;
	while (!stop && !victim_failed) {
		int64_t t = now();
		errno = 0;
		int r = calls[i].call();
		int e = errno;
		int64_t ms = (now() - t) / 1000000;
		victim_check(r == 0, "%s returned %d, errno %d (%s)", calls[i].name, r, e, strerror(e));
		victim_check(ms >= MS - 2, "%s returned after %lld ms, not %d", calls[i].name, (long long)ms, MS);
		victim_check(ms < MS * 20, "%s returned after %lld ms, not %d", calls[i].name, (long long)ms, MS);
	}
	return NULL;
}

static void *in_read(void *arg)
{
	char c;
	ssize_t n = read(*(int *)arg, &c, 1);
	victim_check(n == 1 && c == 'e', "a read that waited all the time: %zd, errno %d", n, errno);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[N], r;
	int wake[2];
	victim_init(argc, argv);
	if (pipe(quiet) < 0 || pipe(wake) < 0)
		return 3;
	ep = epoll_create1(0);
	epoll_ctl(ep, EPOLL_CTL_ADD, quiet[0], &(struct epoll_event){ .events = EPOLLIN });
	for (int i = 0; i < N; i++)
		pthread_create(&t[i], NULL, blocked, (void *)(intptr_t)i);
	pthread_create(&r, NULL, in_read, &wake[0]);
	victim_ready();
	while (victim_running())
		usleep(2000);
	stop = true;
	if (write(wake[1], "e", 1) != 1)
		return 3;
	pthread_join(r, NULL);
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	victim_done();
}
