#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <seccomp.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* LeakSanitizer attaches with ptrace to its own process at exit, from a clone: with the filter, or when not dumpable,
 * it reports itself instead of leaks. */
#if defined(__SANITIZE_ADDRESS__)
#define SANDBOX_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANDBOX_SANITIZED 1
#endif
#endif
#ifndef SANDBOX_SANITIZED
#define SANDBOX_SANITIZED 0
#endif

int sandbox_user(const char *name, const char *option, struct sandbox_user *u, struct fault *f)
{
	errno = 0;
	const struct passwd *pw = getpwnam(name);
	if (!pw) {
		fault_set(f, FAULT_CONFIG, "there is no user \"%s\" (%s)", name, option);
		return fault_hint(
			f,
			"Make it with \"systemd-sysusers systemd/cpr.sysusers\" or \"useradd --system --no-create-home "
			"--shell /usr/sbin/nologin %s\", or name another one with %s.",
			name, option);
	}
	if (pw->pw_uid == 0) {
		fault_set(f, FAULT_CONFIG, "user \"%s\" is root: cpr-agent must give up its privileges", name);
		return fault_hint(f, "Name an unprivileged user with %s.", option);
	}
	*u = (struct sandbox_user){ pw->pw_uid, pw->pw_gid };
	return 0;
}

/* What libevent, its resolver, glibc's allocator and stdio need. All else fails with EPERM: a library that tries
 * something new is not worth a dead agent. */
static const int allowed[] = {
	SCMP_SYS(accept),
	SCMP_SYS(accept4),
	SCMP_SYS(access),
	SCMP_SYS(bind),
	SCMP_SYS(brk),
	SCMP_SYS(clock_getres),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(close),
	SCMP_SYS(connect),
	SCMP_SYS(dup),
	SCMP_SYS(dup2),
	SCMP_SYS(dup3),
	SCMP_SYS(epoll_create),
	SCMP_SYS(epoll_create1),
	SCMP_SYS(epoll_ctl),
	SCMP_SYS(epoll_pwait),
	SCMP_SYS(epoll_pwait2),
	SCMP_SYS(epoll_wait),
	SCMP_SYS(eventfd2),
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
	SCMP_SYS(faccessat),
	SCMP_SYS(faccessat2),
	SCMP_SYS(fcntl),
	SCMP_SYS(fstat),
	SCMP_SYS(futex),
	SCMP_SYS(getcwd),
	SCMP_SYS(getdents64),
	SCMP_SYS(getegid),
	SCMP_SYS(geteuid),
	SCMP_SYS(getgid),
	SCMP_SYS(getpeername),
	SCMP_SYS(getpid),
	SCMP_SYS(getppid),
	SCMP_SYS(getrandom),
	SCMP_SYS(getrlimit),
	SCMP_SYS(getsockname),
	SCMP_SYS(getsockopt),
	SCMP_SYS(gettid),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(getuid),
	SCMP_SYS(ioctl),
	SCMP_SYS(lseek),
	SCMP_SYS(lstat),
	SCMP_SYS(madvise),
	SCMP_SYS(membarrier),
	SCMP_SYS(mmap),
	SCMP_SYS(mprotect),
	SCMP_SYS(mremap),
	SCMP_SYS(munmap),
	SCMP_SYS(nanosleep),
	SCMP_SYS(newfstatat),
	SCMP_SYS(open),
	SCMP_SYS(openat),
	SCMP_SYS(pipe),
	SCMP_SYS(pipe2),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(prlimit64),
	SCMP_SYS(pselect6),
	SCMP_SYS(read),
	SCMP_SYS(readlink),
	SCMP_SYS(readlinkat),
	SCMP_SYS(readv),
	SCMP_SYS(recvfrom),
	SCMP_SYS(recvmmsg),
	SCMP_SYS(recvmsg),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(rseq),
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(rt_sigpending),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sched_getaffinity),
	SCMP_SYS(sched_yield),
	SCMP_SYS(select),
	SCMP_SYS(sendfile),
	SCMP_SYS(sendmmsg),
	SCMP_SYS(sendmsg),
	SCMP_SYS(sendto),
	SCMP_SYS(set_robust_list),
	SCMP_SYS(setsockopt),
	SCMP_SYS(shutdown),
	SCMP_SYS(sigaltstack),
	SCMP_SYS(socketpair),
	SCMP_SYS(stat),
	SCMP_SYS(statx),
	SCMP_SYS(sysinfo),
	SCMP_SYS(tgkill),
	SCMP_SYS(time),
	SCMP_SYS(timerfd_create),
	SCMP_SYS(timerfd_settime),
	SCMP_SYS(uname),
	SCMP_SYS(unlink),
	SCMP_SYS(unlinkat),
	SCMP_SYS(wait4),
	SCMP_SYS(waitid),
	SCMP_SYS(write),
	SCMP_SYS(writev),
};

static int add_rules(scmp_filter_ctx ctx)
{
	static const int families[] = { AF_UNIX, AF_INET, AF_INET6, AF_NETLINK };
	for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
		/* EDOM: a call that this architecture does not have */
		int r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
		if (r < 0 && r != -EDOM)
			return r;
	}
	for (size_t i = 0; i < ARRAY_LEN(families); i++) {
		int r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
					 SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]));
		if (r < 0)
			return r;
	}
	/* "is there such a process?" */
	return seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, SCMP_A1(SCMP_CMP_EQ, 0));
}

static int filter(struct fault *f)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	if (!ctx)
		return fault_set(f, FAULT_SYSTEM, "make a seccomp filter");
	int r = add_rules(ctx);
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r < 0 ? fault_neg(f, FAULT_KERNEL, r, "load the seccomp filter") : 0;
}

static int drop_capabilities(struct fault *f)
{
	cap_t none = cap_init();
	int r = none ? cap_set_proc(none) : -1;
	int e = errno;
	cap_free(none);
	errno = e;
	return r < 0 ? fault_errno(f, FAULT_SYSTEM, "drop all capabilities") : 0;
}

int sandbox_enter(const struct sandbox_user *u, struct fault *f)
{
	if (setgroups(0, NULL) < 0 || setresgid(u->gid, u->gid, u->gid) < 0 || setresuid(u->uid, u->uid, u->uid) < 0)
		return fault_errno(f, FAULT_SYSTEM, "become user %u, group %u", (unsigned)u->uid, (unsigned)u->gid);
	if (drop_capabilities(f) < 0)
		return -1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, SANDBOX_SANITIZED, 0, 0, 0) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set no_new_privs, and undumpable");
	return SANDBOX_SANITIZED ? 0 : filter(f);
}
