/* Signals: handlers with masks and data, blocked ones that stay pending with their values, an alternate stack, itimers. */
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include "victim.h"

static atomic_int ticks, usr1, on_alt;
static char alt[65536];

static void on_tick(int s)
{
	(void)s;
	ticks++;
}

static void on_usr1(int s, siginfo_t *i, void *u)
{
	char here;
	sigset_t mask;
	(void)s;
	(void)u;
	usr1++;
	if (&here >= alt && &here < alt + sizeof(alt))
		on_alt++;
	sigprocmask(SIG_BLOCK, NULL, &mask);
	victim_check(sigismember(&mask, SIGUSR2) == 1, "the handler's mask is not applied");
	victim_check(i->si_value.sival_int == 77, "the handler's siginfo has %d", i->si_value.sival_int);
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	struct sigaction a = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	sigaction(SIGALRM, &a, NULL);
	struct sigaction b = { .sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigaddset(&b.sa_mask, SIGUSR2);
	sigaction(SIGUSR1, &b, NULL);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigaltstack(&(stack_t){ .ss_sp = alt, .ss_size = sizeof(alt) }, NULL);
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	for (int i = 0; i < 3; i++)
		sigaddset(&blocked, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 100 + i });
	sigqueue(getpid(), SIGUSR2, (union sigval){ .sival_int = 42 });
	setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 20000 }, { 0, 20000 } }, NULL);
	struct timespec t0, t1;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	victim_ready();
	int sent = 0;
	while (victim_running()) {
		sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 77 });
		sent++;
		victim_check(usr1 == sent, "%d signals sent, %d handled", sent, usr1);
		victim_check(on_alt == usr1, "a handler ran on the wrong stack");
		struct sigaction now;
		sigaction(SIGHUP, NULL, &now);
		victim_check(now.sa_handler == SIG_IGN, "SIGHUP is no longer ignored");
		sigaction(SIGTERM, NULL, &now);
		victim_check(now.sa_handler == SIG_DFL, "SIGTERM has a handler");
		usleep(1000);
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	long ms = (t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000;
	victim_check(ticks > 0 && ticks <= ms / 20 + 2, "%d ticks of 20 ms in %ld ms", ticks, ms);
	sigset_t pending;
	sigpending(&pending);
	victim_check(sigismember(&pending, SIGUSR2) == 1, "SIGUSR2 is no longer pending");
	siginfo_t i;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 3);
	for (int k = 0; k < 3; k++) {
		int r = sigtimedwait(&one, &i, &(struct timespec){ 0 });
		victim_check(r == SIGRTMIN + 3 && i.si_value.sival_int == 100 + k && i.si_pid == getpid(),
			     "queued signal %d: %d with value %d from pid %d", k, r, i.si_value.sival_int, i.si_pid);
	}
	sigemptyset(&one);
	sigaddset(&one, SIGUSR2);
	victim_check(sigtimedwait(&one, &i, &(struct timespec){ 0 }) == SIGUSR2 && i.si_value.sival_int == 42,
		     "SIGUSR2's value");
	victim_done();
}
