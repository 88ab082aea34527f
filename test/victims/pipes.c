/* Pipes and a fifo with contents, in both directions between threads, sizes and flags kept; eventfd, semaphores; epoll
 * with all of them inside, level and edge triggered; signalfd. */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include "victim.h"

static int work[2], half[2], packets[2];
static atomic_bool stop;

static void *writer(void *arg)
{
	(void)arg;
	for (uint32_t n = 0; !stop && !victim_failed; n++) {
		ssize_t k = write(work[1], &n, sizeof(n));
		victim_check(k == sizeof(n), "write into a pipe: %zd %s", k, strerror(errno));
	}
	uint32_t end = UINT32_MAX;
	if (write(work[1], &end, sizeof(end)) < 0)
		victim_check(false, "last write");
	return NULL;
}

int main(int argc, char **argv)
{
	char path[300], buf[8192];
	pthread_t t;
	victim_init(argc, argv);
	if (pipe2(work, O_CLOEXEC) < 0 || pipe(half) < 0 || pipe2(packets, O_NONBLOCK) < 0)
		return 3;
	fcntl(work[1], F_SETPIPE_SZ, 65536);
	fcntl(half[1], F_SETPIPE_SZ, 131072);
	for (int i = 0; i < 8192; i++)
		buf[i] = (char)(i * 7);
	if (write(half[1], buf, 8192) != 8192 || read(half[0], path, 100) != 100)
		return 3;
	/* Not in the shared directory: on hosts that share a kernel a shared fifo is one fifo. */
	snprintf(path, sizeof(path), "/tmp/victim.fifo");
	int fifo = open(path, O_RDWR | O_NONBLOCK);
	if (write(fifo, "in the fifo", 11) != 11)
		return 3;
	int counter = eventfd(5, EFD_CLOEXEC), sem = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK),
	    tick = eventfd(0, EFD_NONBLOCK);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int sfd = signalfd(-1, &set, SFD_NONBLOCK);
	int tfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	timerfd_settime(tfd, 0, &(struct itimerspec){ { 0, 10000000 }, { 0, 10000000 } }, NULL);
	int ep = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
	epoll_ctl(ep, EPOLL_CTL_ADD, tick, &e);
	e.data.u64 = 2;
	e.events = EPOLLIN | EPOLLET;
	epoll_ctl(ep, EPOLL_CTL_ADD, half[0], &e);
	e.data.u64 = 3;
	e.events = EPOLLIN;
	epoll_ctl(ep, EPOLL_CTL_ADD, sfd, &e);
	e.data.u64 = 4;
	epoll_ctl(ep, EPOLL_CTL_ADD, tfd, &e);
	e.data.u64 = 5;
	epoll_ctl(outer, EPOLL_CTL_ADD, ep, &e);
	struct epoll_event got[8];
	epoll_wait(ep, got, 8, 0); /* takes the edge of half[0] */
	pthread_create(&t, NULL, writer, NULL);
	victim_ready();
	uint32_t n, expect = 0;
	uint64_t one = 1, v;
	int usr1 = 0, seen_usr1 = 0, ticks = 0, timer = 0;
	while (victim_running()) {
		for (int i = 0; i < 1000; i++) {
			size_t have = 0;
			while (have < sizeof(n)) {
				ssize_t k = read(work[0], (char *)&n + have, sizeof(n) - have);
				if (!victim_check(k > 0, "read from a pipe: %zd %s", k, strerror(errno)))
					break;
				have += (size_t)k;
			}
			if (!victim_check(n == expect, "the pipe gave %u, not %u", n, expect))
				break;
			expect++;
		}
		if (usr1 == seen_usr1) {
			raise(SIGUSR1);
			usr1++;
		}
		victim_check(write(tick, &one, 8) == 8, "eventfd");
		int k = epoll_wait(ep, got, 8, 100);
		victim_check(k > 0, "epoll_wait: %d %s", k, strerror(errno));
		for (int i = 0; i < k; i++) {
			struct signalfd_siginfo si;
			switch (got[i].data.u64) {
			case 0x1122334455667788:
				victim_check(read(tick, &v, 8) == 8, "eventfd is readable, but is not");
				ticks++;
				break;
			case 3:
				victim_check(read(sfd, &si, sizeof(si)) == sizeof(si) && si.ssi_signo == SIGUSR1,
					     "signalfd");
				seen_usr1++;
				break;
			case 4:
				if (read(tfd, &v, 8) == 8)
					timer++;
				break;
			case 2:
				break; /* an edge may come again when the set is made anew */
			default:
				victim_check(false, "epoll data %llx", (unsigned long long)got[i].data.u64);
			}
		}
	}
	stop = true;
	for (; read(work[0], &n, sizeof(n)) == sizeof(n) && n != UINT32_MAX; expect++)
		victim_check(n == expect, "the pipe gave %u, not %u", n, expect);
	pthread_join(t, NULL);
	victim_check(fcntl(half[0], F_GETPIPE_SZ) == 131072, "pipe size %d", fcntl(half[0], F_GETPIPE_SZ));
	victim_check(read(half[0], buf, 8092) == 8092, "what was left in a pipe");
	for (int i = 0; i < 8092; i++)
		victim_check(buf[i] == (char)((i + 100) * 7), "byte %d in a pipe", i);
	victim_check(read(packets[0], buf, 1) < 0 && errno == EAGAIN, "an empty non-blocking pipe");
	victim_check(read(fifo, buf, 100) == 11 && !memcmp(buf, "in the fifo", 11), "the fifo's content");
	victim_check(read(counter, &v, 8) == 8 && v == 5, "an eventfd's value");
	for (int i = 0; i < 3; i++)
		victim_check(read(sem, &v, 8) == 8 && v == 1, "a semaphore eventfd gives 1");
	victim_check(read(sem, &v, 8) < 0 && errno == EAGAIN, "a semaphore eventfd gave more than 3");
	victim_check(epoll_wait(outer, got, 8, 1000) >= 0, "an epoll in an epoll");
	victim_check(ticks > 0 && timer > 0 && seen_usr1 > 0, "ticks %d timer %d signals %d", ticks, timer, seen_usr1);
	victim_done();
}
