/*
 * State of real processes: saved from a victim with much to save, restored into a vessel with the victim's PID, saved
 * again from there, and compared; what procfs shows of both is compared, too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch.h"
#include "procdiff.h"
#include "state.h"
#include "stop.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

#ifndef SYS_pause
#define SYS_pause SYS_ppoll /* what pause(3) is made of elsewhere */
#endif

#define TEST_SECONDS   30
#define NOBODY	       1000
#define HOUR	       3600
#define THREADS	       3
#define CLOCK_SLACK_NS 50000000 /* what two readings of a running clock may differ by here */

/* ---- victims ---- */

enum flavour {
	PLAIN,	       /* root, next to nothing set */
	RICH,	       /* root, everything set */
	UNPRIVILEGED,  /* uid 1000, no capabilities, everything set */
	CAPABLE,       /* uid 1000 with some capabilities, ambient ones too */
	MIXED_THREADS, /* threads with other credentials than the leader's */
};

struct shared {
	_Atomic int ready;
};

static void die(const char *what)
{
	perror(what);
	_exit(99);
}
#define MUST(call)                  \
	do {                        \
		if ((call) < 0)     \
			die(#call); \
	} while (0)

static void handler(int sig)
{
	(void)sig;
}

static void set_caps(uint64_t inh, uint64_t prm, uint64_t eff)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { { (uint32_t)eff, (uint32_t)prm, (uint32_t)inh },
					       { (uint32_t)(eff >> 32), (uint32_t)(prm >> 32),
						 (uint32_t)(inh >> 32) } };
	MUST(syscall(SYS_capset, &h, d));
}

static void set_altstack(int flags)
{
	stack_t ss = { .ss_sp = malloc(65536), .ss_size = 65536, .ss_flags = flags };
	MUST(sigaltstack(&ss, NULL));
}

static void bind_to(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	MUST(sched_setaffinity(0, sizeof(set), &set));
}

static struct shared *sh;
static enum flavour flavour;

static void *thread_main(void *arg)
{
	long i = (long)arg;
	char name[16];
	sigset_t set;
	snprintf(name, sizeof(name), "worker (%ld)", i);
	prctl(PR_SET_NAME, name);
	set_altstack(i == 1 ? (int)SS_AUTODISARM : 0);
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGRTMIN + 5);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (i == 0)
		bind_to(0);
	if (i == 1) {
		struct sched_param sp = { .sched_priority = 7 };
		MUST(sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &sp));
	}
	if (i == 2) {
		MUST(setpriority(PRIO_PROCESS, 0, 5));
		MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
		prctl(PR_SET_TIMERSLACK, 123456);
		union sigval v = { .sival_int = 77 };
		MUST(pthread_sigqueue(pthread_self(), SIGRTMIN + 5, v));
	}
	if (flavour == MIXED_THREADS && i == 2) {
		MUST(syscall(SYS_setresgid, 7, 8, 9));
		MUST(syscall(SYS_setresuid, NOBODY, NOBODY, 0));
	}
	sh->ready++;
	for (;;)
		pause();
	return NULL;
}

/* In all threads, before there are any: else one of them takes what the leader blocks. */
static void block_signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	for (int i = 0; i < 4; i++)
		sigaddset(&set, SIGRTMIN + i);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void set_signals(void)
{
	struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK };
	sigaddset(&sa.sa_mask, SIGUSR2);
	MUST(sigaction(SIGUSR1, &sa, NULL));
	sa.sa_flags = SA_SIGINFO | SA_NODEFER;
	MUST(sigaction(SIGRTMIN + 3, &sa, NULL));
	MUST(sigaction(SIGTRAP, &sa, NULL));
	signal(SIGPIPE, SIG_IGN);
	sa = (struct sigaction){ .sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT };
	MUST(sigaction(SIGCHLD, &sa, NULL));
	for (int i = 0; i < 40; i++) {
		union sigval v = { .sival_int = 1000 + i };
		MUST(sigqueue(getpid(), SIGRTMIN + i % 4, v));
	}
	MUST(kill(getpid(), SIGTERM));
	MUST(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1));
}

static timer_t add_timer(clockid_t clock, int sig, long value_sec, long interval_sec)
{
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig, .sigev_value.sival_ptr = &flavour };
	struct itimerspec its = { { interval_sec, 5 }, { value_sec, 7 } };
	int id;
	MUST(syscall(SYS_timer_create, clock, &ev, &id));
	if (value_sec)
		MUST(syscall(SYS_timer_settime, id, 0, &its, NULL));
	return (timer_t)(intptr_t)id;
}

static void set_timers(void)
{
	struct itimerval it = { { 1, 2 }, { HOUR, 3 } };
	MUST(setitimer(ITIMER_REAL, &it, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &it, NULL));
	MUST(setitimer(ITIMER_PROF, &it, NULL));
	timer_t gap = add_timer(CLOCK_MONOTONIC, SIGRTMIN, 0, 0);
	add_timer(CLOCK_MONOTONIC, SIGRTMIN + 1, HOUR, 60);
	add_timer(CLOCK_BOOTTIME, SIGRTMIN + 2, HOUR, 0);
	add_timer(CLOCK_REALTIME, SIGRTMIN + 3, HOUR, 0);
	add_timer(CLOCK_PROCESS_CPUTIME_ID, SIGRTMIN, HOUR, 0);
	add_timer(CLOCK_MONOTONIC, SIGRTMIN, 0, 0); /* disarmed */
	MUST(syscall(SYS_timer_delete, gap));
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	ev._sigev_un._tid = (int)syscall(SYS_gettid);
	int id;
	MUST(syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &ev, &id));
	/* runs out now and then, its signal blocked: waits in the queue */
	ev = (struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	struct itimerspec its = { { 10, 0 }, { 0, 1000 } };
	MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
	MUST(syscall(SYS_timer_settime, id, 0, &its, NULL));
	usleep(2000);
}

static void limit(int what, rlim_t cur, rlim_t max)
{
	struct rlimit r = { cur, max };
	MUST(setrlimit(what, &r));
}

static void write_self(const char *path, const char *text)
{
	if (util_write_file(-1, path, text) < 0)
		die(path);
}

static void set_attributes(void)
{
	umask(027);
	limit(RLIMIT_NOFILE, 100, 4000);
	limit(RLIMIT_NPROC, 500, 600);
	limit(RLIMIT_CORE, 0, 12345678);
	limit(RLIMIT_CPU, 9999, RLIM_INFINITY);
	write_self("/proc/self/oom_score_adj", "321");
	write_self("/proc/self/coredump_filter", "0x7b");
	MUST(personality(PER_LINUX | ADDR_NO_RANDOMIZE));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	MUST(prctl(PR_SET_NAME, "vic) tim"));
	MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
	MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0));
}

/* Through system calls: glibc would ask all threads. */
static void set_creds(void)
{
	gid_t groups[] = { 4, 24, NOBODY };
	const uint64_t keep = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_NET_RAW;
	MUST(setgroups(3, groups));
	if (flavour == CAPABLE) {
		MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT));
	}
	MUST(setresgid(NOBODY, NOBODY, NOBODY));
	MUST(setresuid(NOBODY, NOBODY, NOBODY));
	if (flavour == CAPABLE) {
		set_caps(keep | 1u << CAP_KILL, keep, 1u << CAP_NET_RAW);
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
		MUST(prctl(PR_SET_DUMPABLE, 1));
	} else {
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	}
}

static void victim_main(void)
{
	pthread_t t;
	MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
	setsid();
	alarm(TEST_SECONDS * 2);
	if (flavour != PLAIN) {
		alarm(0);
		block_signals();
		for (long i = 0; i < THREADS; i++)
			MUST(-pthread_create(&t, NULL, thread_main, (void *)i));
		while (sh->ready < THREADS)
			usleep(1000);
		set_signals();
		set_altstack(0);
		set_attributes();
		set_timers();
	}
	if (flavour == UNPRIVILEGED || flavour == CAPABLE)
		set_creds();
	MUST(prctl(PR_SET_PDEATHSIG, SIGKILL)); /* a change of credentials has cleared it */
	sh->ready++;
	for (;;)
		pause();
}

static pid_t victim_start(enum flavour fl)
{
	flavour = fl;
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(sh, MAP_FAILED);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		victim_main();
	int wanted = fl == PLAIN ? 1 : THREADS + 1;
	for (int i = 0; sh->ready < wanted; i++) {
		assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
		assert_true(i < TEST_SECONDS * 1000);
		usleep(1000);
	}
	munmap(sh, 4096);
	/* until every thread sleeps in pause(2) */
	for (int i = 0; i < 2000; i++) {
		char path[64];
		snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
		auto_free char *text = util_read_file(-1, path, NULL);
		if (text && atol(text) == SYS_pause)
			break;
		usleep(1000);
	}
	usleep(20000);
	return pid;
}

static void victim_end(pid_t pid)
{
	kill(pid, SIGKILL);
	/* its threads, too: those that we trace are reported one by one, and the leader last */
	while (waitpid(-1, NULL, __WALL) > 0)
		;
}

/* ---- both sides ---- */

static void check_fault(int ret, const struct fault *f)
{
	if (ret >= 0)
		return;
	char line[1200];
	fault_line(f, line, sizeof(line));
	fail_msg("%s", line);
}

static void print_report(const struct report *r)
{
	for (size_t i = 0; i < r->n; i++)
		print_message("  %d %s: %s\n", r->findings[i].severity, r->findings[i].object, r->findings[i].reason);
}

static bool has_finding(const struct report *r, enum report_severity severity, const char *part)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->findings[i].severity == severity && strstr(r->findings[i].reason, part))
			return true;
	return false;
}

struct source {
	pid_t pid;
	struct process *p;
	struct remote *r;
	struct stop_times *times;
	struct report report;
	struct image *img;
};

static void source_stop(struct source *s, pid_t pid)
{
	struct fault f = { 0 };
	*s = (struct source){ .pid = pid };
	report_init(&s->report);
	check_fault(process_open(&s->p, pid, &f), &f);
	s->times = stop_times_read(pid);
	check_fault(process_stop(s->p, &f), &f);
	process_pin(s->p);
	check_fault(remote_open(s->p, NULL, 0, &s->r, &f), &f);
}

static void source_release(struct source *s)
{
	struct fault f = { 0 };
	check_fault(remote_close(s->r, &f), &f);
	process_unpin(s->p);
	check_fault(process_release(s->p, &f), &f);
	process_close(s->p);
	stop_times_free(s->times);
	report_done(&s->report);
	if (s->img)
		image_free(s->img);
}

static void source_save(struct source *s)
{
	struct fault f = { 0 };
	s->img = image_new();
	check_fault(state_save(s->p, s->r, s->times, "11111111-2222-3333-4444-555555555555", s->img, &s->report, &f),
		    &f);
}

static CoreEntry *core_of(const struct image *img, pid_t tid)
{
	return image_get(img, IMAGE_CORE, (uint32_t)tid);
}

/* ---- tests: source only ---- */

static uint64_t remaining(const PosixTimerEntry *e)
{
	return e->vsec * 1000000000ull + e->vnsec;
}

static void check_rich(const TaskCoreEntry *tc)
{
	assert_string_equal(tc->comm, "vic) tim");
	assert_int_equal(tc->personality, ADDR_NO_RANDOMIZE);
	assert_int_equal(tc->oom_score_adj, 321);
	assert_int_equal(tc->coredump_filter, 0x7b);
	assert_true(tc->child_subreaper && tc->thp_disabled);
	assert_int_equal(tc->umask, 027);
	assert_int_equal(tc->membarrier,
			 MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
	assert_int_equal(tc->n_sigactions, 62);
	assert_true(tc->sigactions[SIGUSR1 - 2]->sigaction == (uintptr_t)handler); /* SIGKILL left out */
	assert_true((tc->sigactions[SIGUSR1 - 2]->flags & 0x18000000) == 0x18000000);
	assert_true(tc->sigactions[SIGPIPE - 2]->sigaction == 1);
	assert_true(tc->sigactions[SIGCHLD - 2]->flags & SA_NOCLDWAIT);
	assert_int_equal(tc->rlimits->n_rlimits, 16);
	assert_true(tc->rlimits->rlimits[RLIMIT_NOFILE]->cur == 100 &&
		    tc->rlimits->rlimits[RLIMIT_NOFILE]->max == 4000);
	assert_true(tc->rlimits->rlimits[RLIMIT_CPU]->max == UINT64_MAX);
	assert_int_equal(tc->signals_s->n_signals, 42); /* 40 queued, SIGTERM, a timer's */
	const TaskTimersEntry *tt = tc->timers;
	assert_true(tt->real->vsec == HOUR - 1 || tt->real->vsec == HOUR);
	assert_true(tt->prof->isec == 1 && tt->prof->iusec == 2);
	assert_int_equal(tt->n_posix, 7);
	assert_int_equal(tt->posix[0]->it_id, 1);
	assert_true(remaining(tt->posix[0]) > (HOUR - 60) * 1000000000ull && tt->posix[0]->isec == 60);
	assert_true(tt->posix[0]->sival_ptr == (uintptr_t)&flavour);
	assert_true(remaining(tt->posix[4]) == 0);
	assert_int_equal(tt->posix[5]->it_sigev_notify, SIGEV_THREAD_ID);
	assert_true(tt->posix[6]->remaining_ns < 0 && tt->posix[6]->isec == 10);
}

static void test_save(void **state)
{
	struct source s;
	struct procdiff *before, *after;
	char text[4096];
	(void)state;
	pid_t pid = victim_start(RICH);
	before = procdiff_read(pid);
	source_stop(&s, pid);
	source_save(&s);
	const CoreEntry *core = core_of(s.img, pid);
	assert_non_null(core);
	check_rich(core->tc);
	assert_int_equal(core->thread_core->creds->n_cap_bnd, 2);
	const PstreeEntry *tree = image_get(s.img, IMAGE_PSTREE, 0);
	assert_int_equal(tree->n_threads, 1 + THREADS);
	assert_int_equal(tree->sid, pid);
	for (size_t i = 1; i < tree->n_threads; i++) {
		const ThreadCoreEntry *th = core_of(s.img, (pid_t)tree->threads[i])->thread_core;
		assert_true(th->futex_rla != 0 && th->futex_rla_len == 24);
		assert_true(arch_core_clear_tid(core_of(s.img, (pid_t)tree->threads[i])) != 0);
		assert_int_equal(th->sas->ss_size, 65536);
		assert_true(th->blk_sigset & (1u << (SIGHUP - 1)));
		assert_int_equal(th->has_affinity, !strcmp(th->comm, "worker (0)"));
		if (!strcmp(th->comm, "worker (1)"))
			assert_true(th->sched_policy == SCHED_RR && th->sched_prio == 7 && (th->sas->ss_flags >> 31));
		if (!strcmp(th->comm, "worker (2)")) {
			assert_int_equal(th->sched_nice, 5);
			assert_int_equal(th->timerslack_ns, 123456);
			assert_int_equal(th->ioprio, 2 << 13 | 6);
			assert_int_equal(th->signals_p->n_signals, 1);
		}
	}
	assert_false(core->thread_core->has_affinity); /* though it is pinned at this moment */
	struct range masked[8];
	assert_int_equal(state_masked(s.img, masked, 8), 1 + THREADS);
	source_release(&s);
	after = procdiff_read(pid);
	if (procdiff_compare(before, after, text, sizeof(text)))
		fail_msg("saving changed the process:\n%s", text);
	procdiff_free(before);
	procdiff_free(after);
	victim_end(pid);
}

/* Values of monotonic timers refer to the moment that monotonic_ns names. */
static void test_timer_values(void **state)
{
	struct source s;
	struct timespec now;
	(void)state;
	pid_t pid = victim_start(RICH);
	source_stop(&s, pid);
	source_save(&s);
	clock_gettime(CLOCK_MONOTONIC, &now);
	const TaskCoreEntry *tc = core_of(s.img, pid)->tc;
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	assert_true(now_ns >= tc->monotonic_ns && now_ns - tc->monotonic_ns < 5000000000u);
	struct itimerspec its;
	long ret;
	struct fault f = { 0 };
	check_fault(REMOTE(s.r, pid, &ret, &f, SYS_timer_gettime, 1, remote_scratch(s.r)), &f);
	clock_gettime(CLOCK_MONOTONIC, &now);
	check_fault(remote_get(s.r, 0, &its, sizeof(its), &f), &f);
	int64_t due = (int64_t)(its.it_value.tv_sec + now.tv_sec) * 1000000000 + its.it_value.tv_nsec + now.tv_nsec;
	int64_t saved = (int64_t)(tc->monotonic_ns + remaining(tc->timers->posix[0]));
	assert_true(llabs(due - saved) < 5000000);
	source_release(&s);
	victim_end(pid);
}

/* ---- tests: check ---- */

static void check_victim(pid_t pid, struct report *report)
{
	struct source s;
	struct fault f = { 0 };
	source_stop(&s, pid);
	check_fault(state_check(s.p, s.r, report, &f), &f);
	source_release(&s);
}

static void test_check_clean(void **state)
{
	static const enum flavour all[] = { PLAIN, RICH, UNPRIVILEGED, CAPABLE, MIXED_THREADS };
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		struct report r;
		report_init(&r);
		pid_t pid = victim_start(all[i]);
		check_victim(pid, &r);
		if (report_count(&r, REPORT_BLOCKER) || report_count(&r, REPORT_LOSS)) {
			print_report(&r);
			fail_msg("flavour %zu can't be moved", i);
		}
		report_done(&r);
		victim_end(pid);
	}
}

static pid_t blocked_start(void (*what)(void))
{
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid = fork();
	if (pid == 0) {
		alarm(TEST_SECONDS);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		what();
		sh->ready = 1;
		for (;;)
			pause();
	}
	for (int i = 0; !sh->ready && i < TEST_SECONDS * 1000; i++)
		usleep(1000);
	assert_true(sh->ready);
	munmap(sh, 4096);
	return pid;
}

static void with_child(void)
{
	setsid();
	pid_t self = getpid();
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(TEST_SECONDS);
		while (getppid() == self)
			pause();
		_exit(0);
	}
}

static void with_seccomp(void)
{
	/* return ALLOW */
	struct {
		uint16_t code;
		uint8_t jt, jf;
		uint32_t k;
	} ret = { 6, 0, 0, 0x7fff0000 };
	struct {
		unsigned short len;
		void *filter;
	} prog = { 1, &ret };
	setsid();
	MUST(prctl(PR_SET_SECCOMP, 2, &prog, 0, 0));
}

static void with_namespaces(void)
{
	setsid();
	MUST(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID));
}

static void *own_files(void *arg)
{
	(void)arg;
	MUST(unshare(CLONE_FILES));
	sh->ready = 1;
	for (;;)
		pause();
	return NULL;
}

static void with_thread_files(void)
{
	pthread_t t;
	setsid();
	pthread_create(&t, NULL, own_files, NULL);
	while (!sh->ready)
		usleep(100);
}

static void with_dispatch(void)
{
	static char selector;
	setsid();
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, (unsigned long)-1 >> 1, &selector));
}

static void in_session(void)
{
}

static void test_check_blockers(void **state)
{
	static const struct {
		void (*what)(void);
		enum report_severity severity;
		const char *part;
	} cases[] = {
		{ with_child, REPORT_BLOCKER, "child processes" },
		{ with_seccomp, REPORT_BLOCKER, "seccomp" },
		{ with_namespaces, REPORT_BLOCKER, "a UTS namespace" },
		{ with_namespaces, REPORT_BLOCKER, "an IPC namespace" },
		{ with_namespaces, REPORT_BLOCKER, "a PID namespace for its children" },
		{ with_thread_files, REPORT_BLOCKER, "its own descriptors" },
		{ with_dispatch, REPORT_BLOCKER, "user dispatch" },
		{ in_session, REPORT_LOSS, "its own session leader" },
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct report r;
		report_init(&r);
		pid_t pid = blocked_start(cases[i].what);
		check_victim(pid, &r);
		if (!has_finding(&r, cases[i].severity, cases[i].part)) {
			print_report(&r);
			fail_msg("not found: %s", cases[i].part);
		}
		report_done(&r);
		victim_end(pid);
	}
}

/* ---- tests: target ---- */

static void offer_init(Cpr__Offer *o, Cpr__TaskInfo *t)
{
	cpr__offer__init(o);
	cpr__task_info__init(t);
	o->task = t;
	o->machine = (char *)"x86_64";
#ifdef __aarch64__
	o->machine = (char *)"aarch64";
#endif
	o->has_xfeatures = o->has_xstate_size = true;
	o->xfeatures = arch_xfeatures();
	o->xstate_size = arch_xstate_size();
	t->pid = 4242;
	o->memory_bytes = 1 << 20;
}

static void test_target(void **state)
{
	Cpr__Offer o;
	Cpr__TaskInfo t;
	struct report r;
	struct fault f = { 0 };
	uint32_t tid = 4194304;
	(void)state;
	static const struct {
		enum fault_code code;
		const char *part;
	} cases[] = { { FAULT_NONE, NULL },
		      { FAULT_CPU, "sparc" },
		      { FAULT_CPU, "register state" },
		      { FAULT_NO_MEMORY, "available here" },
		      { FAULT_KERNEL, "ids up to" } };
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		offer_init(&o, &t);
		report_init(&r);
		if (i == 1)
			o.machine = (char *)"sparc";
		if (i == 2)
			o.xfeatures |= 1ull << 62;
		if (i == 3)
			o.memory_bytes = UINT64_MAX - 5;
		if (i == 4) {
			t.n_tids = 1;
			t.tids = &tid;
		}
		check_fault(state_check_target(&o, &r, &f), &f);
		assert_int_equal(r.n, cases[i].part ? 1 : 0);
		if (cases[i].part) {
			assert_int_equal(r.findings[0].code, cases[i].code);
			assert_int_equal(r.findings[0].severity, REPORT_BLOCKER);
			assert_non_null(strstr(r.findings[0].reason, cases[i].part));
			assert_non_null(r.findings[0].remedy);
		}
		report_done(&r);
	}
}

/* ---- tests: crit ---- */

static void test_crit(void **state)
{
	struct source s;
	struct fault f = { 0 };
	char dir[] = "/tmp/cpr-state-XXXXXX", cmd[300];
	(void)state;
	if (system("command -v crit >/dev/null") != 0) {
		print_message("skipped: crit is not installed\n");
		skip();
	}
	assert_non_null(mkdtemp(dir));
	pid_t pid = victim_start(CAPABLE);
	source_stop(&s, pid);
	source_save(&s);
	check_fault(image_write_dir(s.img, dir, &f), &f);
	source_release(&s);
	victim_end(pid);
	snprintf(cmd, sizeof(cmd), "cd %s && for i in *.img; do crit decode -i $i >/dev/null || exit 1; done", dir);
	assert_int_equal(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "crit x %s ps | grep -q 'vic) tim'", dir);
	assert_int_equal(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	assert_int_equal(system(cmd), 0);
}

/* ---- tests: there and back ---- */
#ifndef NO_VESSEL

/* What other modules restore: umask, and of memory what the kernel itself touches. */
static void restore_rest(struct vessel *v, const struct image *img)
{
	struct range m[16];
	size_t n = state_masked(img, m, ARRAY_LEN(m));
	struct fault f = { 0 };
	long old;
	pid_t pid = vessel_process(v)->pid;
	check_fault(REMOTE(vessel_remote(v), pid, &old, &f, SYS_umask, core_of(img, pid)->tc->umask), &f);
	for (size_t i = 0; i < n; i++) {
		uint64_t page = m[i].start & ~(uint64_t)4095;
		long ret;
		check_fault(REMOTE(vessel_remote(v), vessel_process(v)->pid, &ret, &f, SYS_mmap, page, 8192,
				   PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, (uint64_t)-1, 0),
			    &f);
		assert_true(ret == (long)page);
	}
}

struct packed {
	size_t len;
	uint8_t *data;
};

/* All of a thread but what is restored later or tells of the moment. */
static struct packed pack_core(const CoreEntry *core)
{
	CoreEntry c = *core;
	TaskCoreEntry tc;
	ThreadCoreEntry th = *core->thread_core;
	c.thread_core = &th;
	if (core->tc) {
		tc = *core->tc;
		tc.blk_sigset = tc.flags = 0;
		tc.has_start_time = tc.has_monotonic_ns = tc.has_boottime_ns = tc.has_pdeath_sig = tc.has_mdwe = 0;
		tc.timers = NULL;
		tc.signals_s = NULL;
		tc.cgroup = NULL;
		c.tc = &tc;
	}
	c.thread_info = NULL;
	th.rseq_entry = NULL;
	th.has_rseq_flags = th.has_blk_sigset = th.has_pdeath_sig = th.has_affinity = th.has_xstate = 0;
	th.restart = NULL;
	struct packed p = { core_entry__get_packed_size(&c), NULL };
	p.data = malloc(p.len);
	core_entry__pack(&c, p.data);
	return p;
}

static void compare_queue(const SignalQueueEntry *a, const SignalQueueEntry *b)
{
	size_t n = a ? a->n_signals : 0;
	assert_int_equal(n, b ? b->n_signals : 0);
	/* as sets: those of different numbers keep no order among each other */
	for (size_t i = 0; i < n; i++) {
		const siginfo_t *x = (const siginfo_t *)a->signals[i]->siginfo.data;
		bool found = false;
		for (size_t k = 0; k < n && !found; k++) {
			const siginfo_t *y = (const siginfo_t *)b->signals[k]->siginfo.data;
			found = x->si_signo == y->si_signo && x->si_code == y->si_code &&
				(x->si_code == SI_TIMER
					 ? x->si_timerid == y->si_timerid
					 : x->si_pid == y->si_pid && x->si_value.sival_ptr == y->si_value.sival_ptr);
		}
		if (!found)
			fail_msg("signal %d, code %d is not there any more", x->si_signo, x->si_code);
	}
}

static void compare_timers(const TaskCoreEntry *a, const TaskCoreEntry *b)
{
	assert_int_equal(a->timers->n_posix, b->timers->n_posix);
	for (size_t i = 0; i < a->timers->n_posix; i++) {
		const PosixTimerEntry *x = a->timers->posix[i], *y = b->timers->posix[i];
		assert_int_equal(x->it_id, y->it_id);
		assert_int_equal(x->clock_id, y->clock_id);
		assert_int_equal(x->si_signo, y->si_signo);
		assert_int_equal(x->it_sigev_notify, y->it_sigev_notify);
		assert_true(x->sival_ptr == y->sival_ptr && x->isec == y->isec && x->insec == y->insec);
		assert_int_equal(x->notify_thread_id, y->notify_thread_id);
		assert_int_equal(remaining(x) == 0, remaining(y) == 0);
		/* due at the same time of the process's clock; CPU time: the same is left */
		bool cpu = (int)x->clock_id < 0;
		int64_t due_x = (int64_t)(cpu ? 0 : a->monotonic_ns) + (int64_t)remaining(x);
		int64_t due_y = (int64_t)(cpu ? 0 : b->monotonic_ns) + (int64_t)remaining(y);
		if (remaining(x) && llabs(due_x - due_y) > CLOCK_SLACK_NS)
			fail_msg("timer %u is due %lld ns later", x->it_id, (long long)(due_y - due_x));
	}
	int64_t real_x =
		(int64_t)a->monotonic_ns + (int64_t)(a->timers->real->vsec * 1000000 + a->timers->real->vusec) * 1000;
	int64_t real_y =
		(int64_t)b->monotonic_ns + (int64_t)(b->timers->real->vsec * 1000000 + b->timers->real->vusec) * 1000;
	if (a->timers->real->vsec)
		assert_true(llabs(real_x - real_y) < CLOCK_SLACK_NS);
	assert_true(a->timers->virt->vsec == b->timers->virt->vsec && a->timers->prof->isec == b->timers->prof->isec);
}

static void compare_states(const struct image *a, const struct image *b)
{
	const PstreeEntry *tree = image_get(a, IMAGE_PSTREE, 0);
	struct fault f = { 0 };
	for (size_t i = 0; i < tree->n_threads; i++) {
		const CoreEntry *x = core_of(a, (pid_t)tree->threads[i]), *y = core_of(b, (pid_t)tree->threads[i]);
		assert_non_null(y);
		compare_queue(x->thread_core->signals_p, y->thread_core->signals_p);
		if (x->tc) {
			compare_queue(x->tc->signals_s, y->tc->signals_s);
			compare_timers(x->tc, y->tc);
		}
		struct packed p = pack_core(x), q = pack_core(y);
		if (p.len != q.len || memcmp(p.data, q.data, p.len) != 0) {
			check_fault(image_write_dir(a, "/tmp/cpr-state-a", &f), &f);
			check_fault(image_write_dir(b, "/tmp/cpr-state-b", &f), &f);
			fail_msg("thread %u differs: see /tmp/cpr-state-a and -b", tree->threads[i]);
		}
		free(p.data);
		free(q.data);
	}
}

static void compare_registers(const struct image *a, struct process *p)
{
	const PstreeEntry *tree = image_get(a, IMAGE_PSTREE, 0);
	struct fault f = { 0 };
	for (size_t i = 0; i < tree->n_threads; i++) {
		pid_t tid = (pid_t)tree->threads[i];
		const CoreEntry *x = core_of(a, tid);
		struct arena *arena = arena_new();
		struct arch_regs *regs = arch_regs_new();
		CoreEntry *y = arena_msg(arena, CoreEntry, core_entry);
		uint64_t mask = 0, want = i == 0 ? x->tc->blk_sigset : x->thread_core->blk_sigset;
		y->thread_core = arena_msg(arena, ThreadCoreEntry, thread_core_entry);
		check_fault(arch_regs_get(tid, regs, &f), &f);
		check_fault(arch_core_save(tid, regs, arena, y, &f), &f);
		assert_true(arch_pc(regs) != 0);
		assert_int_equal(ptrace(PTRACE_GETSIGMASK, tid, sizeof(mask), &mask), 0);
		assert_true(mask == want);
		assert_int_equal(x->thread_core->xstate.len, y->thread_core->xstate.len);
		assert_memory_equal(x->thread_core->xstate.data, y->thread_core->xstate.data,
				    x->thread_core->xstate.len);
#ifdef __x86_64__
		arch_core_set_clear_tid(y, arch_core_clear_tid(x));
		uint8_t one[2048], two[2048];
		size_t n = user_x86_regs_entry__pack(x->thread_info->gpregs, one);
		assert_int_equal(user_x86_regs_entry__pack(y->thread_info->gpregs, two), n);
		assert_memory_equal(one, two, n);
#endif
		arch_regs_free(regs);
		arena_free(arena);
	}
	(void)p;
}

static struct vessel *vessel_for(pid_t pid, const struct image *img, const Cpr__Offer *offer)
{
	struct vessel *v;
	struct fault f = { 0 };
	const PstreeEntry *tree = image_get(img, IMAGE_PSTREE, 0);
	const TaskCoreEntry *tc = core_of(img, pid)->tc;
	struct vessel_spec spec = { .pid = pid,
				    .new_session = true,
				    .new_group = true,
				    .cgroup_fd = -1,
				    .monotonic_ns = tc->monotonic_ns,
				    .boottime_ns = tc->boottime_ns };
	check_fault(vessel_new(&spec, &v, &f), &f);
	check_fault(state_prepare(v, offer, &f), &f);
	check_fault(vessel_threads(v, tree->threads, tree->n_threads, &f), &f);
	return v;
}

/* As it goes over the wire: packed, unpacked. */
static struct image *copy_image(const struct image *img)
{
	struct image *out = image_new();
	struct fault f = { 0 };
	for (size_t i = 0; i < image_count(img); i++) {
		const struct image_entry *e = image_at(img, i);
		check_fault(image_load(out, e->type, e->id, e->packed, e->packed_len, e->extra, e->extra_len, &f), &f);
	}
	return out;
}

static void round_trip(enum flavour fl)
{
	struct source s;
	struct fault f = { 0 };
	char text[8192];
	struct report losses;
	report_init(&losses);
	pid_t pid = victim_start(fl);
	struct procdiff *before = procdiff_read(pid);
	source_stop(&s, pid);
	Cpr__Offer offer = CPR__OFFER__INIT;
	check_fault(state_offer(s.p, s.r, &offer, &f), &f);
	uint64_t start = util_monotonic_ns();
	source_save(&s);
	uint64_t saved = util_monotonic_ns() - start;
	struct image *img = copy_image(s.img), *again = image_new();
	victim_end(pid);
	remote_forget(s.r);
	process_unpin(s.p);
	process_close(s.p);

	struct vessel *v = vessel_for(pid, img, &offer);
	restore_rest(v, img);
	uint64_t t0 = util_monotonic_ns();
	check_fault(state_restore(v, img, &losses, &f), &f);
	uint64_t t1 = util_monotonic_ns();
	print_report(&losses);
	assert_int_equal(report_count(&losses, REPORT_LOSS), 0);
	check_fault(state_save(vessel_process(v), vessel_remote(v), NULL, "x", again, &losses, &f), &f);
	compare_states(img, again);
	check_fault(vessel_orphan(v, &f), &f);
	uint64_t t2 = util_monotonic_ns();
	check_fault(state_restore_regs(v, img, &f), &f);
	print_message("  flavour %d: saved in %.2f ms, restored in %.2f ms, registers in %.2f ms\n", fl,
		      (double)saved / 1e6, (double)(t1 - t0) / 1e6, (double)(util_monotonic_ns() - t2) / 1e6);
	compare_registers(img, vessel_process(v));
	struct procdiff *after = procdiff_read(pid);
	if (procdiff_compare(before, after, text, sizeof(text)))
		fail_msg("procfs shows a difference:\n%s", text);
	procdiff_free(before);
	procdiff_free(after);
	vessel_discard(v);
	image_free(img);
	image_free(again);
	image_free(s.img);
	stop_times_free(s.times);
	report_done(&s.report);
	report_done(&losses);
}

static void test_round_trips(void **state)
{
	static const enum flavour all[] = { PLAIN, RICH, UNPRIVILEGED, CAPABLE, MIXED_THREADS };
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		round_trip(all[i]);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_target),	       cmocka_unit_test(test_save),
		cmocka_unit_test(test_timer_values),   cmocka_unit_test(test_check_clean),
		cmocka_unit_test(test_check_blockers), cmocka_unit_test(test_crit),
#ifndef NO_VESSEL
		cmocka_unit_test(test_round_trips),
#endif
	};
	if (geteuid() != 0) {
		printf("1..0 # SKIP needs root\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
