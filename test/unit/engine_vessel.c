/*
 * A vessel: born with the ids asked for, in its cgroup and with its clocks, empty, inheriting nothing; shaped through its
 * helper; given up or let go.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>

#include <cmocka.h>

#include "arch.h"
#include "maps.h"
#include "util.h"
#include "vessel.h"

static struct fault f;
#define OK(x)                                                                                     \
	do {                                                                                      \
		if ((x) < 0)                                                                      \
			fail_msg("%s: %s: %s, %s", #x, fault_code_name(f.code), f.what, f.trail); \
	} while (0)

static pid_t free_pids(int n)
{
	for (pid_t pid = 28000;; pid--) {
		int k = 0;
		while (k < n && kill(pid + k, 0) < 0 && errno == ESRCH)
			k++;
		if (k == n)
			return pid;
	}
}

static char *proc(pid_t pid, const char *name)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return util_read_file(AT_FDCWD, path, NULL);
}

static char *line(const char *text, const char *key, char *buf, size_t len)
{
	const char *s = strstr(text, key);
	snprintf(buf, len, "%.*s", s ? (int)strcspn(s + strlen(key), "\n") : 0, s ? s + strlen(key) : "");
	return buf;
}

static size_t entries(pid_t pid, const char *name)
{
	char path[64];
	size_t n = 0;
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static struct vessel *vessel(pid_t pid)
{
	struct vessel_spec spec = { .pid = pid, .cgroup_fd = -1 };
	struct vessel *v;
	OK(vessel_new(&spec, &v, &f));
	return v;
}

static bool gone(pid_t pid)
{
	for (int i = 0; i < 2000; i++) {
		auto_free char *stat = proc(pid, "stat");
		if (!stat || strrchr(stat, ')')[2] == 'Z') /* waiting for an init that does not reap is not ours */
			return true;
		usleep(500);
	}
	return false;
}

static void handler(int sig)
{
	(void)sig;
}

static void empty_and_inherits_nothing(void **state)
{
	(void)state;
	char buf[128];
	sigset_t block, old;
	sigemptyset(&block);
	sigaddset(&block, SIGUSR2);
	sigprocmask(SIG_BLOCK, &block, &old);
	signal(SIGUSR1, handler);
	signal(SIGPIPE, SIG_IGN);
	pid_t pid = free_pids(1);
	size_t our_fds = entries(getpid(), "fd");
	struct vessel *v = vessel(pid);
	struct process *p = vessel_process(v);
	assert_int_equal(p->pid, pid);
	assert_int_equal(p->n_tasks, 1);
	assert_true(p->tasks[0].sigmask == 0);
	assert_int_equal(entries(pid, "fd"), 0);
	auto_free char *status = proc(pid, "status");
	assert_string_equal(line(status, "SigIgn:\t", buf, sizeof(buf)), "0000000000000000");
	assert_string_equal(line(status, "SigCgt:\t", buf, sizeof(buf)), "0000000000000000");
	assert_string_equal(line(status, "SigPnd:\t", buf, sizeof(buf)), "0000000000000000");
	assert_int_equal(getsid(pid), pid);
	assert_int_equal(getpgid(pid), pid);
	/* memory: stub and vDSO, nothing else */
	struct maps maps = { 0 };
	struct range stub = remote_stub_range(vessel_remote(v));
	OK(maps_read(p, false, &maps, &f));
	for (size_t i = 0; i < maps.n; i++) {
		const struct map *m = &maps.v[i];
		bool ours = m->start >= stub.start && m->end <= stub.end;
		if (!ours && m->kind != MAP_KIND_VDSO && m->kind != MAP_KIND_VVAR && m->kind != MAP_KIND_VSYSCALL)
			fail_msg("left: 0x%lx %s", (long)m->start, m->path);
	}
	maps_free(&maps);
	/* no rseq, robust list, alternate stack, clear_child_tid, parent-death signal */
	uint64_t c[3] = { 0 };
	assert_true(ptrace(0x420f, pid, (void *)sizeof(c), c) > 0 && c[0] == 0);
	void *list = &list;
	size_t len;
	assert_int_equal(syscall(SYS_get_robust_list, pid, &list, &len), 0);
	assert_null(list);
	struct remote *r = vessel_remote(v);
	long ret;
	uint64_t at = remote_scratch(r);
	struct {
		stack_t stack;
		uint64_t tid_address;
		int signal;
	} got;
	OK(REMOTE(r, pid, &ret, &f, SYS_sigaltstack, 0, at));
	OK(REMOTE(r, pid, &ret, &f, SYS_prctl, PR_GET_TID_ADDRESS, at + offsetof(__typeof__(got), tid_address)));
	OK(REMOTE(r, pid, &ret, &f, SYS_prctl, PR_GET_PDEATHSIG, at + offsetof(__typeof__(got), signal)));
	OK(remote_get(r, 0, &got, sizeof(got), &f));
	assert_true(got.stack.ss_flags == SS_DISABLE && got.tid_address == 0 && got.signal == 0);
	vessel_discard(v);
	assert_true(gone(pid));
	assert_int_equal(entries(getpid(), "fd"), our_fds);
	sigprocmask(SIG_SETMASK, &old, NULL);
	signal(SIGPIPE, SIG_DFL);
}

static void clocks_as_asked(void **state)
{
	(void)state;
	pid_t pid = free_pids(1);
	struct vessel_spec spec = { .pid = pid, .cgroup_fd = -1 };
	struct vessel *v;
	struct timespec mono, boot;
	long ret;
	spec.monotonic_ns = util_monotonic_ns() + 3600ull * 1000000000;
	spec.boottime_ns = util_clock_ns(CLOCK_BOOTTIME) / 2; /* and one that goes back, with a borrow */
	uint64_t t = util_monotonic_ns();
	OK(vessel_new(&spec, &v, &f));
	struct remote *r = vessel_remote(v);
	OK(REMOTE(r, pid, &ret, &f, SYS_clock_gettime, CLOCK_MONOTONIC, remote_scratch(r)));
	OK(REMOTE(r, pid, &ret, &f, SYS_clock_gettime, CLOCK_BOOTTIME, remote_scratch(r) + sizeof(mono)));
	uint64_t took = util_monotonic_ns() - t;
	OK(remote_get(r, 0, &mono, sizeof(mono), &f));
	OK(remote_get(r, sizeof(mono), &boot, sizeof(boot), &f));
	int64_t dm = mono.tv_sec * 1000000000 + mono.tv_nsec - (int64_t)spec.monotonic_ns;
	int64_t db = boot.tv_sec * 1000000000 + boot.tv_nsec - (int64_t)spec.boottime_ns;
	print_message("clocks are %ld and %ld us ahead, of the %ld us it took\n", (long)dm / 1000, (long)db / 1000,
		      (long)took / 1000);
	assert_true(dm >= 0 && dm <= (int64_t)took && db >= 0 && db <= (int64_t)took);
	vessel_discard(v);
}

static void in_its_cgroup(void **state)
{
	(void)state;
	static const char *const roots[] = { "/sys/fs/cgroup/unified", "/sys/fs/cgroup" };
	char dir[128], want[64];
	int fd = -1;
	for (size_t i = 0; i < ARRAY_LEN(roots) && fd < 0; i++) {
		snprintf(dir, sizeof(dir), "%s/cgroup.procs", roots[i]);
		if (access(dir, F_OK) < 0)
			continue;
		snprintf(want, sizeof(want), "/cpr-unit.%d", getpid());
		snprintf(dir, sizeof(dir), "%s%s", roots[i], want);
		if (mkdir(dir, 0755) == 0)
			fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (fd < 0) {
		print_message("skipped: no cgroup2 that can be written\n");
		skip();
	}
	pid_t pid = free_pids(1);
	struct vessel_spec spec = { .pid = pid, .cgroup_fd = fd };
	struct vessel *v;
	OK(vessel_new(&spec, &v, &f));
	auto_free char *cgroup = proc(pid, "cgroup");
	assert_non_null(strstr(cgroup, want));
	assert_int_equal(entries(pid, "fd"), 0);
	vessel_discard(v);
	close(fd);
	for (int i = 0; i < 2000 && rmdir(dir) < 0; i++)
		usleep(500);
}

static void threads_as_asked(void **state)
{
	(void)state;
	pid_t pid = free_pids(12);
	struct vessel *v = vessel(pid);
	struct remote *r = vessel_remote(v);
	long ret;
	for (int round = 0; round < 3; round++) {
		uint32_t tids[6] = { (uint32_t)pid };
		for (uint32_t i = 1; i < 6; i++)
			tids[i] = (uint32_t)pid + i * (uint32_t)(round % 2 + 1);
		size_t n = round == 2 ? 1 : 6;
		OK(vessel_threads(v, tids, n, &f));
		assert_int_equal(entries(pid, "task"), n);
		for (size_t i = 0; i < n; i++) {
			OK(REMOTE(r, (pid_t)tids[i], &ret, &f, SYS_gettid));
			assert_int_equal(ret, tids[i]);
		}
	}
	uint32_t taken[2] = { (uint32_t)pid, (uint32_t)getpid() };
	assert_int_equal(vessel_threads(v, taken, 2, &f), -1);
	assert_int_equal(f.code, FAULT_PID_TAKEN);
	auto_free char *comm = proc(getpid(), "comm");
	comm[strcspn(comm, "\n")] = '\0';
	assert_non_null(strstr(f.what, comm));
	vessel_discard(v);
	assert_true(gone(pid));
}

/* Also as the group of a process whose leader has gone. */
static void a_taken_number(void **state)
{
	(void)state;
	struct vessel *v;
	int go[2];
	assert_int_equal(pipe(go), 0);
	pid_t leader = fork();
	if (leader == 0) {
		setsid();
		pid_t member = fork();
		if (member == 0) {
			prctl(PR_SET_NAME, "left-behind");
			char c;
			close(go[1]);
			_exit(read(go[0], &c, 1) != 0);
		}
		usleep(20000);
		_exit(0);
	}
	waitpid(leader, NULL, 0);
	struct vessel_spec spec = { .pid = leader, .cgroup_fd = -1 };
	assert_int_equal(vessel_new(&spec, &v, &f), -1);
	assert_int_equal(f.code, FAULT_PID_TAKEN);
	assert_non_null(strstr(f.what, "left-behind"));
	close(go[1]);
	close(go[0]);
	spec.pid = 4194304 + 5;
	assert_int_equal(vessel_new(&spec, &v, &f), -1);
	assert_int_equal(f.code, FAULT_LIMIT);
}

/* ---- helper ---- */

static int helper_fd;

static int in_helper(void *arg, struct fault *hf)
{
	pid_t *who = arg;
	*who = (pid_t)syscall(SYS_gettid);
	int fd = helper_fetch_fd(helper_fd, 40, hf);
	if (fd < 0 || dup2(fd, 7) != 7)
		return -1;
	close(fd);
	umask(027);
	if (chdir("/usr") < 0)
		return fault_errno(hf, FAULT_SYSTEM, "chdir");
	free(malloc(1000));
	return 0;
}

static int fails(void *arg, struct fault *hf)
{
	(void)arg;
	errno = ENOENT;
	return fault_errno(hf, FAULT_FILE_MISSING, "open something");
}

static int dies(void *arg, struct fault *hf)
{
	(void)arg;
	(void)hf;
	syscall(SYS_exit_group, 3);
	return 0;
}

static void the_helper_works(void **state)
{
	(void)state;
	char path[64], link[128] = "", buf[32];
	pid_t pid = free_pids(1), who = 0;
	struct vessel *v = vessel(pid);
	mode_t mask = umask(022);
	helper_fd = memfd_create("seven", 0);
	OK(vessel_run(v, in_helper, &who, &f));
	assert_true(who > 0 && who != getpid() && who != pid);
	assert_int_equal(entries(pid, "fd"), 1);
	snprintf(path, sizeof(path), "/proc/%d/fd/7", pid);
	assert_true(readlink(path, link, sizeof(link) - 1) > 0);
	assert_non_null(strstr(link, "seven"));
	snprintf(path, sizeof(path), "/proc/%d/cwd", pid);
	memset(link, 0, sizeof(link));
	assert_true(readlink(path, link, sizeof(link) - 1) > 0);
	assert_string_equal(link, "/usr");
	auto_free char *status = proc(pid, "status");
	assert_string_equal(line(status, "Umask:\t", buf, sizeof(buf)), "0027");
	assert_int_equal(umask(mask), 022);
	assert_int_equal(vessel_run(v, fails, NULL, &f), -1);
	assert_int_equal(f.code, FAULT_FILE_MISSING);
	assert_int_equal(f.errnum, ENOENT);
	OK(vessel_run(v, in_helper, &who, &f));
	OK(vessel_orphan(v, &f));
	assert_int_equal(kill(who, 0), -1);
	status[0] = 0;
	auto_free char *after = proc(pid, "status");
	assert_int_not_equal(atoi(line(after, "PPid:\t", buf, sizeof(buf))), who);
	assert_int_equal(vessel_run(v, in_helper, &who, &f), -1);
	vessel_discard(v);
	close(helper_fd);
}

static void a_dying_helper_is_noticed(void **state)
{
	(void)state;
	pid_t pid = free_pids(1);
	struct vessel *v = vessel(pid);
	assert_int_equal(vessel_run(v, dies, NULL, &f), -1);
	assert_int_equal(f.code, FAULT_INTERNAL);
	vessel_discard(v);
	assert_true(gone(pid));
}

/* ---- calls ---- */

static void batches(void **state)
{
	(void)state;
	enum { N = 2500 };
	pid_t pid = free_pids(1);
	struct vessel *v = vessel(pid);
	struct remote *r = vessel_remote(v);
	auto_free struct remote_entry *e = calloc(N, sizeof(*e));
	size_t done;
	for (int i = 0; i < N; i++)
		e[i] = (struct remote_entry){ .nr = i % 2 ? SYS_close : SYS_getpid, .args = { 12345 } };
	process_pin(vessel_process(v));
	uint64_t t = util_monotonic_ns();
	OK(remote_batch(r, pid, e, N, &done, &f));
	t = util_monotonic_ns() - t;
	assert_int_equal(done, N);
	for (int i = 0; i < N; i++)
		assert_int_equal(e[i].ret, i % 2 ? -EBADF : pid);
	print_message("%d calls in a table: %lu us\n", N, (unsigned long)t / 1000);
	long ret;
	t = util_monotonic_ns();
	for (int i = 0; i < 500; i++)
		OK(REMOTE(r, pid, &ret, &f, SYS_getpid));
	print_message("a call, pinned: %lu ns\n", (unsigned long)(util_monotonic_ns() - t) / 500);
	process_unpin(vessel_process(v));
	e[1901].stop_on_error = true;
	OK(remote_batch(r, pid, e, N, &done, &f));
	assert_int_equal(done, 1902);
	assert_int_equal(e[1901].ret, -EBADF);
	vessel_discard(v);
}

static void the_stub_moves(void **state)
{
	(void)state;
	pid_t pid = free_pids(1);
	struct vessel *v = vessel(pid);
	struct remote *r = vessel_remote(v);
	struct range old = remote_stub_range(r), keep = { old.start + 0x3000, old.start + 0x4000 };
	long ret;
	OK(remote_relocate(r, &keep, 1, &f));
	struct range now = remote_stub_range(r);
	assert_true(now.end <= keep.start || now.start >= keep.end);
	OK(REMOTE(r, pid, &ret, &f, SYS_mmap, old.start, old.end - old.start, PROT_READ, 0x100022, ~0ull, 0));
	assert_int_equal(ret, old.start);
	keep = (struct range){ 1ull << 20, 1ull << 30 };
	OK(remote_relocate(r, &keep, 1, &f));
	assert_int_equal(now.start, remote_stub_range(r).start);
	vessel_discard(v);
}

/* Single steps force SIGTRAP, which would reset its handler. */
static void sigtrap_keeps_its_action(void **state)
{
	(void)state;
	pid_t pid = free_pids(1);
	struct vessel *v = vessel(pid);
	struct remote *r = vessel_remote(v);
	char buf[32];
	long ret;
	const uint64_t ignore[4] = { 1, 0, 0, 0 };
	OK(remote_put(r, 0, ignore, sizeof(ignore), &f));
	OK(REMOTE(r, pid, &ret, &f, SYS_rt_sigaction, SIGTRAP, remote_scratch(r), 0, 8));
	OK(REMOTE(r, pid, &ret, &f, SYS_getpid));
	OK(remote_close(r, &f));
	assert_null(vessel_remote(v));
	auto_free char *status = proc(pid, "status");
	assert_string_equal(line(status, "SigIgn:\t", buf, sizeof(buf)), "0000000000000010");
	vessel_discard(v);
}

/* ---- a whole move in small: registers, vector state, TLS base ---- */

struct block {
	uint8_t code[512];
	volatile uint64_t ready, go, result, pid;
};
#define AT 0x510000000000ul
static struct block *const b = (struct block *)AT;

/* rbx: the block. Loads what is to survive, waits without calls, checks, says 1 and its pid. */
__asm__(".pushsection .rodata\n"
	"mover_begin:\n"
	"	mov	$0x1122334455667788, %r12\n	movq	%r12, %xmm7\n	fldpi\n"
	"	movq	$1, 512(%rbx)\n"
	"1:	pause\n	cmpq	$0, 520(%rbx)\n	je	1b\n"
	"	mov	$2, %r14\n	mov	$0x1122334455667788, %rax\n	cmp	%rax, %r12\n	jne	2f\n"
	"	mov	$3, %r14\n	movq	%xmm7, %rcx\n	cmp	%rax, %rcx\n	jne	2f\n"
	"	mov	$4, %r14\n	fldpi\n	fcomip	%st(1), %st\n	jne	2f\n"
	"	mov	$5, %r14\n	cmp	%fs:0, %rbx\n	jne	2f\n	mov	$1, %r14\n"
	"2:	mov	$39, %eax\n	syscall\n	mov	%rax, 536(%rbx)\n	mov	%r14, 528(%rbx)\n"
	"3:	pause\n	jmp	3b\n"
	"mover_end:\n"
	".popsection\n");
extern const char mover_begin[], mover_end[];
static int block_fd;

static int fetch_block(void *arg, struct fault *hf)
{
	(void)arg;
	int fd = helper_fetch_fd(block_fd, 3, hf);
	return fd < 0 ? -1 : dup2(fd, 100) < 0 ? -1 : close(fd);
}

static void moves_registers(bool raw)
{
	memset(b, 0, sizeof(*b));
	memcpy(b->code, mover_begin, (size_t)(mover_end - mover_begin));
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		static uint64_t tls;
		tls = AT;
		syscall(SYS_arch_prctl, 0x1002, &tls); /* ARCH_SET_FS; its page moves below */
		__asm__ volatile("mov %0, %%rbx\n\tjmp *%1" ::"r"(b), "r"(b->code) : "memory");
	}
	while (!b->ready)
		usleep(200);
	struct process *p;
	struct arena *a = arena_new();
	CoreEntry *core = arena_msg(a, CoreEntry, core_entry);
	core->thread_core = arena_msg(a, ThreadCoreEntry, thread_core_entry);
	OK(process_open(&p, pid, &f));
	OK(process_stop(p, &f));
	OK(arch_core_save(pid, p->tasks[0].regs, a, core, &f));
	uint64_t fs = core->thread_info->gpregs->fs_base & ~(PAGE_BYTES - 1);
	uint8_t page[PAGE_BYTES];
	OK(process_read(p, fs, page, sizeof(page), &f));
	kill(pid, SIGKILL);
	process_close(p);
	waitpid(pid, NULL, 0);
	/* what goes over the wire */
	size_t len = core_entry__get_packed_size(core);
	auto_free uint8_t *packed = malloc(len);
	core_entry__pack(core, packed);
	CoreEntry *in = core_entry__unpack(arena_pb(a), len, packed);
	assert_non_null(in);
	if (!raw)
		in->thread_core->has_xstate = 0;

	struct vessel *v = vessel(pid);
	struct remote *r = vessel_remote(v);
	long ret;
	OK(vessel_run(v, fetch_block, NULL, &f));
	OK(REMOTE(r, pid, &ret, &f, SYS_mmap, AT, PAGE_BYTES, 7, MAP_SHARED | MAP_FIXED, 100, 0));
	assert_int_equal(ret, AT);
	OK(REMOTE(r, pid, &ret, &f, SYS_mmap, fs, PAGE_BYTES, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ull, 0));
	assert_int_equal(ret, fs);
	OK(process_write(vessel_process(v), fs, page, sizeof(page), &f));
	OK(remote_close(r, &f));
	struct arch_regs *regs = arch_regs_new();
	OK(arch_core_restore(pid, in, regs, &f));
	OK(arch_regs_set(pid, regs, &f));
	arch_regs_free(regs);
	OK(vessel_let_go(v, &f));
	b->go = 1;
	for (int i = 0; i < 4000 && !b->result; i++)
		usleep(500);
	assert_int_equal(b->result, 1);
	assert_int_equal(b->pid, pid);
	kill(pid, SIGKILL);
	arena_free(a);
	assert_true(gone(pid));
}

static void a_process_moves(void **state)
{
	(void)state;
	moves_registers(true);
	moves_registers(false);
}

static void cpu_features(void **state)
{
	(void)state;
	uint8_t own[128];
	char text[256];
	size_t n = arch_cpu_features(own, sizeof(own));
	assert_true(n > 0);
	arch_cpu_missing(own, n, text, sizeof(text));
	assert_string_equal(text, "");
	memset(own, 0xff, n);
	arch_cpu_missing(own, n, text, sizeof(text));
	assert_true(strlen(text) > 0); /* no CPU has all of them */
	arch_cpu_missing(own, n, text, 8);
	assert_true(strlen(text) < 8);
}

static int setup(void **state)
{
	(void)state;
	alarm(60);
	block_fd = memfd_create("block", 0);
	if (ftruncate(block_fd, PAGE_BYTES) < 0)
		return -1;
	return mmap((void *)AT, PAGE_BYTES, 7, MAP_SHARED | MAP_FIXED, block_fd, 0) == MAP_FAILED;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_and_inherits_nothing),
		cmocka_unit_test(clocks_as_asked),
		cmocka_unit_test(in_its_cgroup),
		cmocka_unit_test(threads_as_asked),
		cmocka_unit_test(a_taken_number),
		cmocka_unit_test(the_helper_works),
		cmocka_unit_test(a_dying_helper_is_noticed),
		cmocka_unit_test(batches),
		cmocka_unit_test(the_stub_moves),
		cmocka_unit_test(sigtrap_keeps_its_action),
		cmocka_unit_test(a_process_moves),
		cmocka_unit_test(cpu_features),
	};
	return cmocka_run_group_tests(tests, setup, NULL);
}
