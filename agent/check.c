#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nftables/libnftables.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "freezer.h"
#include "json.h"
#include "memory.h"

#define CHECK_TRACKERS 8

/* What is not there: NEEDED, nothing can be moved; WANTED, something can't. */
enum need { NEEDED, WANTED };

struct answer {
	bool works;
	char text[160]; /* how well, or why not */
};

static void yes(struct answer *a, const char *fmt, ...) PRINTF(2, 3);
static void no(struct answer *a, const char *fmt, ...) PRINTF(2, 3);

static void yes(struct answer *a, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	a->works = true;
	vsnprintf(a->text, sizeof(a->text), fmt, ap);
	va_end(ap);
}

static void no(struct answer *a, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	a->works = false;
	vsnprintf(a->text, sizeof(a->text), fmt, ap);
	va_end(ap);
}

/* Runs fn in a child, so that what it changes is gone with it. Its result is an errno. */
static int in_child(int (*fn)(void))
{
	fflush(NULL);
	pid_t pid = fork();
	if (pid < 0)
		return errno;
	if (pid == 0) {
		alarm(5);
		_exit(fn());
	}
	int status;
	if (waitpid(pid, &status, 0) != pid)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

static void probe_freezer(struct answer *a)
{
	struct freezer_host h;
	struct fault f;
	if (freezer_host_find(&h, &f) < 0) {
		no(a, "%s", f.what);
		return;
	}
	bool v2 = h.v2[0];
	const char *point = v2 ? h.v2 : h.v1;
	char dir[FREEZER_PATH + 32], file[FREEZER_PATH + 64];
	snprintf(dir, sizeof(dir), "%s/cpr-check-%d", point, (int)getpid());
	if (mkdir(dir, 0755) < 0) {
		no(a, "make a group in %s: %s", point, strerror(errno));
		return;
	}
	snprintf(file, sizeof(file), "%s/%s", dir, v2 ? "cgroup.freeze" : "freezer.state");
	int r = util_write_file(AT_FDCWD, file, v2 ? "1" : "FROZEN");
	int e = errno;
	rmdir(dir);
	if (r < 0)
		no(a, "freeze a group in %s: %s", point, strerror(e));
	else
		yes(a, "%s at %s", v2 ? "cgroup v2" : "cgroup v1", point);
}

/* A number that was in use a moment ago is free now. */
static int try_set_tid(void)
{
	pid_t want = fork();
	if (want == 0)
		_exit(0);
	if (want < 0 || waitpid(want, NULL, 0) != want)
		return errno;
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&want, .set_tid_size = 1 };
	long pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		_exit(0);
	if (pid < 0)
		return errno;
	waitpid((pid_t)pid, NULL, 0);
	return pid == want ? 0 : EINVAL;
}

static void result(struct answer *a, int error, const char *good)
{
	if (error)
		no(a, "%s", strerror(error));
	else
		yes(a, "%s", good);
}

static void probe_set_tid(struct answer *a)
{
	result(a, in_child(try_set_tid), "");
}

static int try_pidfd_getfd(void)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	return fd >= 0 && syscall(SYS_pidfd_getfd, fd, fd, 0) >= 0 ? 0 : errno;
}

static void probe_pidfd_getfd(struct answer *a)
{
	result(a, in_child(try_pidfd_getfd), "");
}

static int try_time_namespace(void)
{
	if (unshare(CLONE_NEWTIME) < 0)
		return errno;
	return util_write_file(AT_FDCWD, "/proc/self/timens_offsets", "monotonic 1 0\n") < 0 ? errno : 0;
}

static void probe_time_namespace(struct answer *a)
{
	result(a, in_child(try_time_namespace), "");
}

static int try_tcp_repair(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	return fd >= 0 && setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof(one)) == 0 ? 0 : errno;
}

static void probe_tcp_repair(struct answer *a)
{
	result(a, in_child(try_tcp_repair), "");
}

static int try_ptrace(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		for (;;)
			pause();
	}
	if (pid < 0)
		return errno;
	int e = ptrace(PTRACE_SEIZE, pid, NULL, (void *)(PTRACE_O_EXITKILL | PTRACE_O_SUSPEND_SECCOMP)) < 0 ? errno : 0;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return e;
}

static void probe_ptrace(struct answer *a)
{
	int e = in_child(try_ptrace);
	if (e == EPERM)
		no(a, "refused: a seccomp filter, a capability missing, or kernel.yama.ptrace_scope");
	else
		result(a, e, "with seccomp suspended");
}

static void probe_userfaultfd(struct answer *a)
{
	auto_fd fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API };
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		no(a, "%s", strerror(errno));
	else
		yes(a, "features 0x%llx", (unsigned long long)api.features);
}

/* An owned table is gone with its socket: a dead worker leaves no lock. */
static void probe_nft_owner(struct answer *a)
{
	struct nft_ctx *ctx = nft_ctx_new(NFT_CTX_DEFAULT);
	char cmd[96];
	if (!ctx) {
		no(a, "libnftables can't be used");
		return;
	}
	nft_ctx_buffer_error(ctx);
	nft_ctx_buffer_output(ctx);
	snprintf(cmd, sizeof(cmd), "add table inet cpr_check_%d { flags owner; }", (int)getpid());
	if (nft_run_cmd_from_buffer(ctx, cmd)) {
		const char *why = nft_ctx_get_error_buffer(ctx);
		no(a, "%.*s", why ? (int)strcspn(why, "\n") : 0, why ? why : "");
	} else {
		yes(a, "tables with an owner");
	}
	nft_ctx_free(ctx);
}

static void probe_capabilities(struct answer *a)
{
	static const struct {
		cap_value_t cap;
		const char *name;
	} wanted[] = {
		{ CAP_SYS_ADMIN, "SYS_ADMIN" }, { CAP_SYS_PTRACE, "SYS_PTRACE" },
		{ CAP_NET_ADMIN, "NET_ADMIN" }, { CAP_DAC_OVERRIDE, "DAC_OVERRIDE" },
		{ CAP_SETUID, "SETUID" },	{ CAP_SETGID, "SETGID" },
		{ CAP_SETPCAP, "SETPCAP" },	{ CAP_KILL, "KILL" },
		{ CAP_CHOWN, "CHOWN" },
	};
	char missing[120] = "";
	cap_t caps = cap_get_proc();
	for (size_t i = 0; caps && i < ARRAY_LEN(wanted); i++) {
		cap_flag_value_t on = CAP_CLEAR;
		if (cap_get_flag(caps, wanted[i].cap, CAP_EFFECTIVE, &on) == 0 && on == CAP_SET)
			continue;
		size_t n = strlen(missing);
		snprintf(missing + n, sizeof(missing) - n, " %s", wanted[i].name);
	}
	cap_free(caps);
	if (missing[0])
		no(a, "missing:%s", missing);
	else
		yes(a, "all that are needed");
}

static void probe_sys_resource(struct answer *a)
{
	cap_t caps = cap_get_proc();
	cap_flag_value_t on = CAP_CLEAR;
	if (caps && cap_get_flag(caps, CAP_SYS_RESOURCE, CAP_EFFECTIVE, &on) == 0 && on == CAP_SET)
		yes(a, "limits of any process can be set");
	else
		no(a, "hard limits can't be raised; a process above this host's is refused");
	cap_free(caps);
}

static void probe_ipv6(struct answer *a)
{
	auto_fd fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		no(a, "%s", strerror(errno));
	else
		yes(a, "%s", "");
}

static const struct {
	const char *name;
	enum need need;
	void (*probe)(struct answer *a);
	const char *without; /* what can't be done then */
} probes[] = {
	{ "capabilities", NEEDED, probe_capabilities, "start cpr-agent as root, outside of a container" },
	{ "ptrace", NEEDED, probe_ptrace, "processes can't be stopped and read" },
	{ "freezer", NEEDED, probe_freezer, "mount cgroup2 at /sys/fs/cgroup" },
	{ "clone3 set_tid", NEEDED, probe_set_tid, "a process can't keep its PID (Linux 5.5)" },
	{ "pidfd_getfd", NEEDED, probe_pidfd_getfd, "descriptors can't be read (Linux 5.6)" },
	{ "time namespaces", NEEDED, probe_time_namespace, "clocks would jump (CONFIG_TIME_NS)" },
	{ "userfaultfd", WANTED, probe_userfaultfd, "no wp-async tracking" },
	{ "TCP_REPAIR", WANTED, probe_tcp_repair, "TCP connections can't be moved" },
	{ "nftables", WANTED, probe_nft_owner, "connections can't be locked" },
	{ "IPv6", WANTED, probe_ipv6, "programs with IPv6 sockets can't be taken in" },
	{ "CAP_SYS_RESOURCE", WANTED, probe_sys_resource, "" },
};

static void row(FILE *out, const char *name, const char *verdict, const char *text, const char *without)
{
	fprintf(out, "  %-18s %-8s %s%s%s%s\n", name, verdict, text, without[0] ? (text[0] ? "; " : "") : "", without,
		"");
}

static bool print_probes(FILE *out)
{
	bool good = true;
	for (size_t i = 0; i < ARRAY_LEN(probes); i++) {
		struct answer a = { 0 };
		probes[i].probe(&a);
		bool bad = !a.works && probes[i].need == NEEDED;
		row(out, probes[i].name,
		    a.works ? "yes"
		    : bad   ? "MISSING"
			    : "no",
		    a.text, a.works ? "" : probes[i].without);
		good = good && !bad;
	}
	return good;
}

static void print_trackers(FILE *out)
{
	struct memory_tracker_info info[CHECK_TRACKERS];
	size_t n = memory_trackers(info, CHECK_TRACKERS);
	for (size_t i = 0; i < n && i < CHECK_TRACKERS; i++)
		row(out, info[i].name, info[i].works ? "yes" : "no", info[i].works ? "" : info[i].why, "");
}

static void file_row(FILE *out, const char *name, const char *path, const char *remedy)
{
	if (access(path, R_OK) == 0)
		row(out, name, "yes", path, "");
	else
		fprintf(out, "  %-18s %-8s %s: %s; %s\n", name, "no", path, strerror(errno), remedy);
}

static void user_row(FILE *out, const char *name, const char *user)
{
	row(out, name, getpwnam(user) ? "yes" : "no", user,
	    getpwnam(user) ? "" : "make it: systemd-sysusers systemd/cpr.sysusers, or useradd --system");
}

static void print_setup(const struct conf *c, FILE *out)
{
	static const char *const programs[] = { "cpr-warden", "cpr-worker", "cpr-wire" };
	for (size_t i = 0; i < ARRAY_LEN(programs); i++) {
		char path[4200];
		snprintf(path, sizeof(path), "%s/%s", c->programs, programs[i]);
		file_row(out, programs[i], path, "see --programs");
	}
	user_row(out, "user", c->user);
	user_row(out, "wire user", c->wire_user);
	file_row(out, "CA", c->ca, "see --ca");
	file_row(out, "certificate", c->cert, "see --cert");
	file_row(out, "private key", c->key, "see --key");
	row(out, "may push here", c->allow_peer ? "yes" : "nobody", "", c->allow_peer ? "" : "see --allow-peer");
	for (size_t i = 0; c->allow_peer && c->allow_peer[i]; i++)
		row(out, "", "", c->allow_peer[i], "");
}

bool check_run(const struct conf *c, FILE *out)
{
	struct utsname u = { 0 };
	uname(&u);
	fprintf(out, "%s: Linux %s %s\n\nkernel\n", c->name, u.release, u.machine);
	bool good = print_probes(out);
	fprintf(out, "\ndirty memory trackers (without any: one stop and copy)\n");
	print_trackers(out);
	fprintf(out, "\nset-up\n");
	print_setup(c, out);
	fprintf(out, "\n%s\n",
		good ? "Processes can be moved from and to this host."
		     : "Processes can't be moved from or to this host: see MISSING above.");
	return good;
}

json_object *check_trackers(void)
{
	struct memory_tracker_info info[CHECK_TRACKERS];
	size_t n = memory_trackers(info, CHECK_TRACKERS);
	json_object *list = json_object_new_array();
	for (size_t i = 0; i < n && i < CHECK_TRACKERS; i++) {
		json_object *o = json_object_new_object();
		json_add_str(o, "name", info[i].name);
		json_object_object_add(o, "works", json_object_new_boolean(info[i].works));
		if (!info[i].works)
			json_add_str(o, "why", info[i].why);
		json_object_array_add(list, o);
	}
	return list;
}
