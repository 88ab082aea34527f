#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Raw: libc refuses its own two signals, which whoever started us may ignore. */
static void default_signals(void)
{
	static const uint64_t none_set[4]; /* the kernel's struct sigaction */
	for (int s = 1; s < NSIG; s++)
		syscall(SYS_rt_sigaction, s, none_set, NULL, sizeof(uint64_t));
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int descriptors(int fd, int report)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		return -1;
	/* report lies above: it was made after everything that is open now, or is moved there */
	if (fd == SPAWN_FD ? fcntl(fd, F_SETFD, 0) < 0 : dup2(fd, SPAWN_FD) < 0)
		return -1;
	return (int)syscall(SYS_close_range, SPAWN_FD + 1, report - 1, 0) |
	       (int)syscall(SYS_close_range, report + 1, ~0U, 0);
}

static int attributes(unsigned flags, pid_t parent)
{
	const struct sched_param plain = { 0 };
	if ((flags & SPAWN_SESSION) && setsid() < 0)
		return -1;
	umask(022);
	personality(PER_LINUX);
	prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, flags & SPAWN_WITH_US ? SIGKILL : 0, 0, 0, 0);
	if (getppid() != parent && (flags & SPAWN_WITH_US))
		_exit(127);
	if (sched_getscheduler(0) != SCHED_OTHER && sched_setscheduler(0, SCHED_OTHER, &plain) < 0)
		return -1;
	if (getpriority(PRIO_PROCESS, 0) != 0 && setpriority(PRIO_PROCESS, 0, 0) < 0)
		return -1;
	/* Ours may be lower under a service manager; raising it is always allowed. */
	if (util_write_file(AT_FDCWD, "/proc/self/oom_score_adj", "0") < 0 && errno != EACCES)
		return -1;
	return chdir("/");
}

_Noreturn static void child(char *const argv[], int fd, unsigned flags, pid_t parent, int report)
{
	default_signals();
	int moved = fcntl(report, F_DUPFD_CLOEXEC, 64);
	if (moved >= 0 && descriptors(fd, moved) == 0 && attributes(flags, parent) == 0)
		execv(argv[0], argv);
	int e = errno;
	if (write(moved >= 0 ? moved : report, &e, sizeof(e)) < 0)
		_exit(126);
	_exit(127);
}

int spawn(char *const argv[], int fd, unsigned flags, pid_t *pid, int *pidfd, struct fault *f)
{
	int pipefd[2], e = 0;
	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return fault_errno(f, FAULT_SYSTEM, "start %s", argv[0]);
	auto_fd report_read = pipefd[0];
	auto_fd report_write = pipefd[1];
	pid_t parent = getpid(), p = fork();
	if (p < 0)
		return fault_errno(f, FAULT_SYSTEM, "start %s", argv[0]);
	if (p == 0)
		child(argv, fd, flags, parent, report_write);
	util_close(&report_write);
	auto_fd pfd = (int)syscall(SYS_pidfd_open, p, 0);
	/* At the exec the pipe closes by itself. */
	if (pfd < 0 || util_read_all(report_read, &e, sizeof(e)) == 0) {
		errno = pfd < 0 ? errno : e;
		fault_errno(f, FAULT_SYSTEM, "start %s", argv[0]);
		kill(p, SIGKILL);
		waitpid(p, NULL, 0);
		return -1;
	}
	*pid = p;
	*pidfd = take_fd(&pfd);
	return 0;
}
