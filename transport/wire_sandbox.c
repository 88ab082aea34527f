/*
 * The cage of the wire process. Who takes it over has: a TCP socket, two rings, a socketpair and the host's key. No
 * files, no new descriptors, no other process, no new code.
 *
 * Two answers to what is not allowed. What only an intruder would call kills the process at once. Everything else gets
 * EPERM: it does not happen either, but a C library or OpenSSL that was updated, and tries something new that it can do
 * without, doesn't take a migration down with it.
 */
#include "wire_sandbox.h"

#include <errno.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POLLED_MAX 8

static const int allowed[] = {
	/* bytes */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(recvfrom), SCMP_SYS(sendto),
	SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(shutdown), SCMP_SYS(close),
	/* memory, without code: mmap and mprotect are below */
	SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise),
	/* libraries */
	SCMP_SYS(futex), SCMP_SYS(getrandom), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
	SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(fstat), SCMP_SYS(sched_yield), SCMP_SYS(sigaltstack),
	/* the end, orderly or by abort(3) */
	SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigreturn),
	SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigaction)
};

static const int deadly[] = { SCMP_SYS(execve),
			      SCMP_SYS(execveat),
			      SCMP_SYS(fork),
			      SCMP_SYS(vfork),
			      SCMP_SYS(clone3),
			      SCMP_SYS(ptrace),
			      SCMP_SYS(process_vm_readv),
			      SCMP_SYS(process_vm_writev),
			      SCMP_SYS(pidfd_open),
			      SCMP_SYS(pidfd_getfd),
			      SCMP_SYS(kill),
			      SCMP_SYS(tkill),
			      SCMP_SYS(socket),
			      SCMP_SYS(connect),
			      SCMP_SYS(bind),
			      SCMP_SYS(listen),
			      SCMP_SYS(accept),
			      SCMP_SYS(accept4),
			      SCMP_SYS(setuid),
			      SCMP_SYS(setresuid),
			      SCMP_SYS(setns),
			      SCMP_SYS(unshare),
			      SCMP_SYS(mount),
			      SCMP_SYS(umount2),
			      SCMP_SYS(chroot),
			      SCMP_SYS(pivot_root),
			      SCMP_SYS(bpf),
			      SCMP_SYS(perf_event_open),
			      SCMP_SYS(userfaultfd),
			      SCMP_SYS(io_uring_setup),
			      SCMP_SYS(io_uring_enter),
			      SCMP_SYS(keyctl),
			      SCMP_SYS(add_key),
			      SCMP_SYS(request_key),
			      SCMP_SYS(memfd_create),
			      SCMP_SYS(init_module),
			      SCMP_SYS(finit_module),
			      SCMP_SYS(kexec_load),
			      SCMP_SYS(personality),
			      SCMP_SYS(modify_ldt),
			      SCMP_SYS(open_by_handle_at),
			      SCMP_SYS(unlink),
			      SCMP_SYS(unlinkat),
			      SCMP_SYS(rename),
			      SCMP_SYS(renameat2) };

static int add_rules(scmp_filter_ctx ctx)
{
	int r = 0;
	for (size_t i = 0; !r && i < ARRAY_LEN(allowed); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	for (size_t i = 0; !r && i < ARRAY_LEN(deadly); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
	const struct scmp_arg_cmp no_code = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
	const struct scmp_arg_cmp myself = SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid());
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, no_code);
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, no_code);
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, myself);
	return r;
}

static int filter(struct fault *f)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	if (!ctx)
		return fault_set(f, FAULT_NO_MEMORY, "make the system call filter");
	/* A call of another architecture (32 bits) is answered by death. */
	int r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* A binary tree instead of a list of comparisons: a few dozen ns per call. */
	if (!r)
		seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!r)
		r = add_rules(ctx);
	if (!r)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r ? fault_neg(f, FAULT_KERNEL, r, "load the system call filter") : 0;
}

static int check_caps(struct fault *f)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };
	if (syscall(SYS_capset, &h, d) < 0 || syscall(SYS_capget, &h, d) < 0)
		return fault_errno(f, FAULT_SYSTEM, "drop capabilities");
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (geteuid() == 0 || getuid() == 0 || d[0].permitted || d[1].permitted)
		return fault_set(f, FAULT_CONFIG, "the wire process must not run as root or with capabilities");
	return 0;
}

int wire_sandbox_enter(struct fault *f)
{
	const struct rlimit none = { 0, 0 }, few = { POLLED_MAX, POLLED_MAX };
	if (check_caps(f) < 0)
		return -1;
	/* Its memory holds the key: no core, no ptrace by processes of the same user. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || setrlimit(RLIMIT_CORE, &none) < 0)
		return fault_errno(f, FAULT_SYSTEM, "keep memory from being dumped");
	/* Descriptors that are open stay; poll(2) refuses to look at more of them than this. */
	if (setrlimit(RLIMIT_NOFILE, &few) < 0 || setrlimit(RLIMIT_NPROC, &none) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set limits");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fault_errno(f, FAULT_KERNEL, "no_new_privs");
	return filter(f);
}
