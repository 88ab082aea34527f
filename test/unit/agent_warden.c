/*
 * A real cpr-warden with real victims. The worker and the wire are this program again, under other names: the wire only
 * says that it is up, the worker does what the script in its options says and reports each step.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "journal.h"
#include "lock.h"
#include "ring.h"
#include "warden_agent.h"
#include "warden_client.h"
#include "wire.h"
#include "wire.pb-c.h"

#define WAIT_MS 5000

/* ---- the worker: "adopt freeze … " ---- */

struct actor {
	struct wc *wc;
	struct wc_start s;
	pid_t vessel;
	int cgroup;
};

static void report(struct actor *a, const char *what, int r, const struct fault *f)
{
	char line[900];
	int n = snprintf(line, sizeof(line), "%s %s %s", what, r == 0 ? "ok" : fault_code_name(f->code),
			 r == 0 ? "" : f->what);
	if (send(a->s.events_fd, line, (size_t)n + 1, 0) < 0)
		_exit(3);
}

static int act_state(struct actor *a, const char *arg, struct fault *f)
{
	char to[32], ev[32];
	if (sscanf(arg, "%31[^,],%31s", to, ev) != 2)
		_exit(4);
	for (int e = 0; e < HANDOFF_EVENT_COUNT; e++)
		if (!strcmp(handoff_event_name(e), ev))
			return wc_state(a->wc, handoff_state_parse(to), e, "the script says so", f);
	_exit(4);
}

static int act_adopt(struct actor *a, const char *arg, struct fault *f)
{
	return wc_adopt(a->wc, *arg ? atoi(arg) : a->s.pid, f);
}

static int act_freeze(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_freeze(a->wc, f);
}

static int act_thaw(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_thaw(a->wc, f);
}

static int act_undo(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_undo(a->wc, f);
}

static int act_remove(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_remove(a->wc, f);
}

static int act_forget(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_undo_forget(a->wc, f);
}

static int act_done(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_done(a->wc, f);
}

/* The victim's socket gets a peek offset, which is recorded before. */
static int act_peek(struct actor *a, const char *arg, struct fault *f)
{
	int offset = 3;
	struct undo u = { .kind = UNDO_PEEK_OFF, .pid = a->s.pid, .fd = atoi(arg), .value = -1 };
	struct undo_log *log = wc_undo_log(a->wc);
	if (log->push(log->ctx, &u, f) < 0)
		return -1;
	int pidfd = (int)syscall(SYS_pidfd_open, a->s.pid, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, u.fd, 0);
	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "peek offset");
	close(fd);
	close(pidfd);
	return 0;
}

static int act_table(struct actor *a, const char *arg, struct fault *f)
{
	struct undo u = { .kind = UNDO_NFT_TABLE, .pid = a->s.pid };
	struct undo_log *log = wc_undo_log(a->wc);
	snprintf(u.name, sizeof(u.name), "%s", arg);
	return log->push(log->ctx, &u, f);
}

static int act_keep(struct actor *a, const char *arg, struct fault *f)
{
	struct net_flow flow = { .family = AF_INET,
				 .protocol = IPPROTO_TCP,
				 .local = { 10, 9, 8, 7 },
				 .remote = { 10, 9, 8, 6 },
				 .local_port = 6379,
				 .remote_port = 50000 };
	(void)arg;
	return wc_keep_lock(a->wc, &flow, 1, f);
}

static int act_name(struct actor *a, const char *arg, struct fault *f)
{
	return wc_name(a->wc, arg, 3999999, f);
}

static int act_cgroup(struct actor *a, const char *arg, struct fault *f)
{
	return wc_cgroup(a->wc, arg, &a->cgroup, f);
}

static volatile uint64_t *shared_beats(int fd)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		_exit(5);
	return p;
}

static _Noreturn void beat(volatile uint64_t *beats)
{
	for (;;)
		++*beats;
}

/* A number near the top, far from those that are in use. */
static pid_t vessel_pid(pid_t worker)
{
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/sys/kernel/pid_max", NULL);
	return (text ? atoi(text) : 32768) - 2 - worker % 1000;
}

/* As a destination does it: the name is known (the offer), the pid is reserved, the process is born stopped. arg is
 * the migration's id. Traced by us with EXITKILL until "letgo". */
static int act_vessel(struct actor *a, const char *arg, struct fault *f)
{
	pid_t pid = 0, want = vessel_pid(getpid());
	char path[512], *colon = strchr(arg, ':');
	snprintf(path, sizeof(path), "%s", colon + 1);
	int r = 0;
	char id[64];
	snprintf(id, sizeof(id), "%.*s", (int)(colon - arg), arg);
	r = wc_name(a->wc, id, want, f);
	if (r < 0 || wc_state(a->wc, HANDOFF_VETTING, HANDOFF_EV_START, "offer", f) < 0 ||
	    wc_cgroup(a->wc, "victim", &a->cgroup, f) < 0)
		return -1;
	struct clone_args c = { .flags = CLONE_INTO_CGROUP,
				.exit_signal = SIGCHLD,
				.cgroup = (uint64_t)a->cgroup,
				.set_tid = (uint64_t)(uintptr_t)&want,
				.set_tid_size = 1 };
	pid = (pid_t)syscall(SYS_clone3, &c, sizeof(c));
	if (pid < 0)
		return fault_errno(f, FAULT_SYSTEM, "clone3");
	if (pid == 0) {
		raise(SIGSTOP);
		int fd = open(path, O_RDWR);
		beat(shared_beats(fd));
	}
	int st;
	waitpid(pid, &st, WUNTRACED);
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_EXITKILL) < 0)
		return fault_errno(f, FAULT_SYSTEM, "seize");
	a->vessel = pid;
	return 0;
}

static int act_letgo(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	ptrace(PTRACE_SETOPTIONS, a->vessel, 0, 0);
	ptrace(PTRACE_INTERRUPT, a->vessel, 0, 0);
	if (ptrace(PTRACE_DETACH, a->vessel, 0, SIGCONT) < 0)
		return fault_errno(f, FAULT_SYSTEM, "detach");
	kill(a->vessel, SIGCONT);
	return 0;
}

static int act_run(struct actor *a, const char *arg, struct fault *f)
{
	(void)arg;
	return wc_run(a->wc, a->vessel, f);
}

/* What a vessel would inherit. */
static int act_self(struct actor *a, const char *arg, struct fault *f)
{
	(void)a;
	(void)arg;
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/self/status", NULL);
	auto_free char *oom = util_read_file(AT_FDCWD, "/proc/self/oom_score_adj", NULL);
	const char *const want[] = { "\nSigBlk:\t0000000000000000",
				     "\nSigIgn:\t0000000000000000",
				     "\nSigCgt:\t0000000000000000",
				     "\nUmask:\t0022",
				     "\nNoNewPrivs:\t0",
				     "\nSeccomp:\t0",
				     "\nThreads:\t1" };
	for (size_t i = 0; i < ARRAY_LEN(want); i++)
#ifdef __SANITIZE_ADDRESS__ /* has handlers of its own */
		if (!strstr(want[i], "SigCgt") && !strstr(text, want[i]))
#else
		if (!strstr(text, want[i]))
#endif
			return fault_set(f, FAULT_VERIFY, "not '%s'", want[i] + 1);
	if (strcmp(oom, "0\n") != 0)
		return fault_set(f, FAULT_VERIFY, "oom_score_adj %s", oom);
	char cwd[64] = "";
	if (!getcwd(cwd, sizeof(cwd)) || strcmp(cwd, "/") != 0)
		return fault_set(f, FAULT_VERIFY, "directory %s", cwd);
	/* 0 to 3, and what came with the start message */
	for (int fd = 4 + LINK_FD_COUNT + 1; fd < 256; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			return fault_set(f, FAULT_VERIFY, "descriptor %d", fd);
	return 0;
}

/* Mean time of a request that journals. */
static int act_time(struct actor *a, const char *arg, struct fault *f)
{
	struct undo_log *log = wc_undo_log(a->wc);
	uint64_t from = util_monotonic_ns();
	int n = 2000;
	(void)arg;
	for (int i = 0; i < n; i++)
		if (log->drop(log->ctx, UNDO_ADDRESS_ADDED, f) < 0)
			return -1;
	char line[64];
	int len = snprintf(line, sizeof(line), "%.1f", (double)(util_monotonic_ns() - from) / 1e3 / n);
	return send(a->s.events_fd, line, (size_t)len + 1, 0) < 0 ? -1 : 0;
}

static int act_wait(struct actor *a, const char *arg, struct fault *f)
{
	char c;
	(void)f;
	(void)arg;
	(void)!recv(a->s.events_fd, &c, 1, 0);
	return 0;
}

static int act_exit(struct actor *a, const char *arg, struct fault *f)
{
	(void)a;
	(void)f;
	_exit(atoi(arg));
}

static const struct {
	const char *name;
	int (*fn)(struct actor *a, const char *arg, struct fault *f);
} acts[] = {
	{ "state", act_state },	  { "adopt", act_adopt },   { "freeze", act_freeze }, { "thaw", act_thaw },
	{ "undo", act_undo },	  { "remove", act_remove }, { "forget", act_forget }, { "done", act_done },
	{ "peek", act_peek },	  { "table", act_table },   { "keep", act_keep },     { "name", act_name },
	{ "cgroup", act_cgroup }, { "vessel", act_vessel }, { "letgo", act_letgo },   { "run", act_run },
	{ "self", act_self },	  { "time", act_time },	    { "wait", act_wait },     { "exit", act_exit },
};

static int worker_main(void)
{
	struct actor a = { .cgroup = -1 };
	struct fault f = { 0 };
	char script[4096], *save;
	if (wc_open(&a.wc, &a.s, &f) < 0)
		return 9;
	snprintf(script, sizeof(script), "%.*s", (int)a.s.options_len, (const char *)a.s.options);
	char hello[32];
	send(a.s.events_fd, hello, (size_t)snprintf(hello, sizeof(hello), "pid %d", (int)getpid()) + 1, 0);
	for (char *word = strtok_r(script, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		char *arg = strchr(word, '=');
		if (arg)
			*arg++ = 0;
		int r = 1;
		for (size_t i = 0; i < ARRAY_LEN(acts); i++)
			if (!strcmp(acts[i].name, word))
				r = acts[i].fn(&a, arg ? arg : "", &f);
		if (r > 0)
			return 8;
		report(&a, word, r, &f);
	}
	wc_close(a.wc);
	return 0;
}

/* ---- the wire ---- */

/* What lies in the ring goes out as it is. */
static int wire_send(void)
{
	struct ring up;
	struct fault f;
	const uint8_t *at;
	size_t n;
	if (ring_map(&up, WIRE_FD_UP_MEM, LINK_RING_BYTES, RING_CONSUMER, WIRE_FD_UP_DATA, WIRE_FD_UP_SPACE, &f) < 0 ||
	    ring_data(&up, &at, &n, &f) < 0)
		return 1;
	return n && write(WIRE_FD_SOCKET, at, n) != (ssize_t)n;
}

/* One that is told to expect "brief" ends as soon as it is up. */
static int wire_main(int argc, char **argv)
{
	struct wire_hello h = { .size = sizeof(h), .up = 1, .peer = "host2" };
	char c;
	send(WIRE_FD_CONTROL, &h, sizeof(h), 0);
	close(WIRE_FD_CONTROL);
	if (!strcmp(argv[argc - 1], "brief"))
		return 0;
	(void)!recv(WIRE_FD_LINK, &c, 1, 0); /* until the worker is gone */
	return wire_send();
}

/* ---- the agent: this test ---- */

static struct {
	char dir[64], run[96], beats_path[96];
	char warden[128], worker[128], wire[128], key[128];
	struct wa *wa;
	uint64_t conn;
	volatile uint64_t *beats;
	int beats_fd;
	/* what handlers heard */
	bool up, exited, crashed, gone;
	enum handoff_state state;
	char text[1024], migration[64];
	struct fault failed;
} t;

static void on_up(void *ctx, uint64_t conn, const char *peer)
{
	(void)ctx;
	assert_string_equal(peer, "host2");
	t.up = conn == t.conn;
}

static void on_failed(void *ctx, uint64_t conn, const struct fault *why)
{
	(void)ctx;
	(void)conn;
	t.failed = *why;
}

static void on_exit_(void *ctx, uint64_t conn, const char *migration, enum handoff_state state, bool crashed,
		     const char *text)
{
	(void)ctx;
	(void)conn;
	t.exited = true;
	t.crashed = crashed;
	t.state = state;
	snprintf(t.text, sizeof(t.text), "%s", text);
	snprintf(t.migration, sizeof(t.migration), "%s", migration);
}

static void on_gone(void *ctx)
{
	(void)ctx;
	t.gone = true;
}

static bool wait_for(const bool *what)
{
	uint64_t end = util_monotonic_ns() + WAIT_MS * 1000000ull;
	while (!*what && util_monotonic_ns() < end && wa_fd(t.wa) >= 0) {
		struct pollfd p = { .fd = wa_fd(t.wa), .events = POLLIN };
		poll(&p, 1, 100);
		wa_dispatch(t.wa);
	}
	return *what;
}

static void stop_warden(void)
{
	wa_free(t.wa);
	t.wa = NULL;
}

static int start_warden(void)
{
	const struct wa_handlers h = { on_up, on_failed, on_exit_, on_gone };
	const struct wa_paths p = { .warden = t.warden,
				    .worker = t.worker,
				    .wire = t.wire,
				    .run_dir = t.run,
				    .ca = t.key,
				    .cert = t.key,
				    .key = t.key,
				    .wire_user = "nobody",
				    .name = "host1",
				    .log_level = 3 };
	struct fault f = { 0 };
	int r = wa_start(&p, &h, NULL, &t.wa, &f);
	if (r < 0)
		print_message("%s (%s)\n", f.what, f.trail);
	t.gone = false;
	return r;
}

static void new_uuid(char id[37])
{
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/sys/kernel/random/uuid", NULL);
	assert_non_null(text);
	snprintf(id, 37, "%.36s", text);
}

/* A worker with a script; *events is the test's. Returns its pid. */
static pid_t run_script(enum handoff_side side, const char *id, pid_t pid, const char *script, int *events)
{
	struct fault f = { 0 };
	int ends[2];
	char line[64];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	t.conn++;
	t.up = t.exited = t.crashed = false;
	assert_int_equal(wa_wire(t.wa, t.conn, ends[0], true, "host2", &f), 0);
	close(ends[1]);
	assert_true(wait_for(&t.up));
	assert_int_equal(wa_worker(t.wa, t.conn, side, id, pid, script, strlen(script), events, &f), 0);
	struct timeval limit = { WAIT_MS / 1000, 0 };
	setsockopt(*events, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (recv(*events, line, sizeof(line), 0) <= 0 || strncmp(line, "pid ", 4) != 0)
		return -1;
	return atoi(line + 4);
}

/* The next steps that the worker reports are these: "adopt ok", "freeze busy" … */
static void expect(int events, const char *steps)
{
	char copy[1024], *save;
	snprintf(copy, sizeof(copy), "%s", steps);
	for (char *want = strtok_r(copy, ";", &save); want; want = strtok_r(NULL, ";", &save)) {
		char line[1024] = "";
		ssize_t n = recv(events, line, sizeof(line) - 1, 0);
		if (n <= 0 || strncmp(line, want, strlen(want)) != 0)
			print_message("expected '%s', came '%s'\n", want, n > 0 ? line : strerror(errno));
		assert_true(n > 0 && !strncmp(line, want, strlen(want)));
	}
}

/* ---- victims ---- */

struct victim {
	pid_t pid;
	char *cgroup;
};

static struct victim victim_start(void)
{
	struct victim v = { .pid = fork() };
	char path[64];
	assert_true(v.pid >= 0);
	if (v.pid == 0) {
		int pair[2];
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_range(3, ~0U, 0); /* the agent's end of the warden's socket, too */
		if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 && dup2(pair[0], 99) == 99)
			beat(t.beats);
		_exit(1);
	}
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)v.pid);
	v.cgroup = util_read_file(AT_FDCWD, path, NULL);
	uint64_t was = *t.beats, end = util_monotonic_ns() + WAIT_MS * 1000000ull;
	while (*t.beats == was && util_monotonic_ns() < end)
		continue;
	return v;
}

static void pause_ms(int ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000L }, NULL);
}

static bool stands(void)
{
	uint64_t was = *t.beats;
	pause_ms(30);
	return *t.beats == was;
}

/* Milliseconds until it runs; < 0: it does not. */
static double runs_after(uint64_t from_ns, uint64_t was)
{
	while (*t.beats == was)
		if (util_monotonic_ns() - from_ns > WAIT_MS * 1000000ull)
			return -1;
	return (double)(util_monotonic_ns() - from_ns) / 1e6;
}

static bool is_dead(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	return !text || strchr("ZX", strrchr(text, ')')[2]);
}

static int peek_offset(pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, 99, 0), value = 77;
	socklen_t len = sizeof(value);
	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &value, &len), 0);
	close(fd);
	close(pidfd);
	return value;
}

static bool group_left(const char *id)
{
	char command[256];
	snprintf(command, sizeof(command), "test -n \"$(find /sys/fs/cgroup -type d -name 'cpr-%s' 2>/dev/null)\"", id);
	return system(command) == 0;
}

static bool journal_left(const char *id)
{
	int fd = open(t.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool r = journal_exists(fd, id);
	close(fd);
	return r;
}

static enum handoff_state journalled(const char *id)
{
	struct journal j;
	struct fault f = { 0 };
	int fd = open(t.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = journal_read(fd, id, &j, &f);
	close(fd);
	if (r < 0)
		return HANDOFF_NONE;
	journal_done(&j);
	return j.state;
}

static bool table_there(const char *id, const char *suffix)
{
	char command[256];
	snprintf(command, sizeof(command), "nft list table inet cpr-%s%s >/dev/null 2>&1", id, suffix);
	return system(command) == 0;
}

/* It runs, where it was, and nothing is left. */
static void unharmed(struct victim *v, const char *id)
{
	char path[64];
	uint64_t was = *t.beats;
	assert_true(runs_after(util_monotonic_ns(), was) >= 0);
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)v->pid);
	auto_free char *now = util_read_file(AT_FDCWD, path, NULL);
	assert_string_equal(now, v->cgroup);
	assert_int_equal(peek_offset(v->pid), -1);
	assert_false(group_left(id));
	assert_false(journal_left(id));
	assert_false(table_there(id, "-kept"));
	assert_false(table_there(id, ""));
}

static void victim_end(struct victim *v)
{
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	free(v->cgroup);
}

#define TO_SEALED "adopt state=OFFERED,start state=PRECOPY,accept freeze state=SEALED,seal peek=99 "
#define SEALED_OK "adopt ok;state ok;state ok;freeze ok;state ok;peek ok;"

/* ---- tests ---- */

static void worker_killed(void **state)
{
	(void)state;
	char id[37], script[512];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	snprintf(script, sizeof(script), TO_SEALED "table=cpr-%s self time keep wait", id);
	pid_t worker = run_script(HANDOFF_SOURCE, id, v.pid, script, &events);
	expect(events, SEALED_OK "table ok;self ok");
	char us[64] = "";
	assert_true(recv(events, us, sizeof(us), 0) > 0);
	print_message("a request that journals takes %s us\n", us);
	expect(events, "time ok;keep ok");
	assert_true(stands());
	assert_int_equal(journalled(id), HANDOFF_SEALED);
	assert_int_equal(peek_offset(v.pid), 3);
	assert_true(table_there(id, "-kept"));
	assert_true(group_left(id));
	uint64_t was = *t.beats, from = util_monotonic_ns();
	kill(worker, SIGKILL);
	double ms = runs_after(from, was);
	print_message("it runs %.2f ms after the worker was killed\n", ms);
	assert_true(ms >= 0 && ms < 1000);
	assert_true(wait_for(&t.exited));
	print_message("%s\n", t.text);
	assert_true(t.crashed);
	assert_int_equal(t.state, HANDOFF_ABORTED);
	assert_string_equal(t.migration, id);
	unharmed(&v, id);
	victim_end(&v);
	close(events);
}

static void aborted(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	run_script(HANDOFF_SOURCE, id, v.pid, TO_SEALED "keep undo thaw state=ABORTED,fail done", &events);
	expect(events, SEALED_OK "keep ok;undo ok;thaw ok;state ok;done ok");
	assert_true(wait_for(&t.exited));
	assert_false(t.crashed);
	assert_int_equal(t.state, HANDOFF_ABORTED);
	unharmed(&v, id);
	victim_end(&v);
	close(events);
}

/* It only says that it is done: the warden does what is left. */
static void lazy(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	run_script(HANDOFF_SOURCE, id, v.pid, TO_SEALED "done state=ABORTED,link-lost done", &events);
	expect(events, SEALED_OK "done internal;state ok;done ok");
	assert_true(wait_for(&t.exited));
	assert_false(t.crashed);
	unharmed(&v, id);
	victim_end(&v);
	close(events);
}

static void moved(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	run_script(HANDOFF_SOURCE, id, v.pid,
		   TO_SEALED "keep remove state=COMMITTING,ready thaw undo state=DONE,resumed remove forget done",
		   &events);
	expect(events, SEALED_OK "keep ok;remove internal;state ok;thaw internal;undo internal;state ok;remove ok;"
				 "forget ok;done ok");
	assert_true(wait_for(&t.exited));
	assert_false(t.crashed);
	assert_int_equal(t.state, HANDOFF_DONE);
	int st;
	assert_int_equal(waitpid(v.pid, &st, WNOHANG), v.pid);
	assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
	assert_false(group_left(id) || journal_left(id) || table_there(id, "-kept"));
	free(v.cgroup);
	close(events);
}

/* After the commit was journalled nobody but the other side decides, whoever dies. */
static void in_doubt(void **state)
{
	(void)state;
	char id[37], other[37];
	int events;
	new_uuid(id);
	new_uuid(other);
	struct victim v = victim_start();
	pid_t worker = run_script(HANDOFF_SOURCE, id, v.pid, TO_SEALED "keep state=COMMITTING,ready wait", &events);
	expect(events, SEALED_OK "keep ok;state ok");
	kill(worker, SIGKILL);
	assert_true(wait_for(&t.exited));
	print_message("%s\n", t.text);
	assert_int_equal(t.state, HANDOFF_IN_DOUBT);
	assert_true(stands());
	close(events);
	run_script(HANDOFF_SOURCE, other, v.pid, "adopt", &events); /* is taken */
	expect(events, "adopt busy");
	assert_true(wait_for(&t.exited));
	close(events);
	stop_warden();
	assert_int_equal(start_warden(), 0);
	assert_int_equal(journalled(id), HANDOFF_IN_DOUBT);
	assert_true(stands() && table_there(id, "-kept") && group_left(id));
	victim_end(&v);
	char command[400];
	snprintf(command, sizeof(command),
		 "nft delete table inet cpr-%s-kept; rm %s/%s.journal; find /sys/fs/cgroup "
		 "-type d -name 'cpr-%s' -exec rmdir {} +",
		 id, t.run, id, id);
	assert_int_equal(system(command), 0);
}

static void committing_needs_freezer(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	run_script(HANDOFF_SOURCE, id, v.pid,
		   "adopt state=OFFERED,start state=PRECOPY,accept state=SEALED,seal state=COMMITTING,ready "
		   "state=DONE,resumed state=ABORTED,worker-died freeze thaw state=COMMITTING,ready exit=3",
		   &events);
	expect(events, "adopt ok;state ok;state ok;state ok;state internal;state internal;state internal;freeze ok;"
		       "thaw ok;state internal");
	assert_true(wait_for(&t.exited));
	assert_true(t.crashed);
	unharmed(&v, id);
	victim_end(&v);
	close(events);
}

static void refusals(void **state)
{
	(void)state;
	char id[37], script[512];
	int events;
	struct victim v = victim_start();
	const struct {
		pid_t pid;
		const char *code;
	} cases[] = { { 1, "adopt not-movable" }, { getpid(), "adopt not-movable" }, { 4000000, "adopt no-process" } };
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		new_uuid(id);
		run_script(HANDOFF_SOURCE, id, cases[i].pid, "adopt", &events);
		expect(events, cases[i].code);
		assert_true(wait_for(&t.exited));
		close(events);
		assert_false(journal_left(id));
	}
	new_uuid(id);
	snprintf(script, sizeof(script),
		 "cgroup=x name="
		 "0f8fad5b-d9cb-469f-a165-70867728950e run adopt=%d adopt adopt table=filter "
		 "table=cpr-0f8fad5b-d9cb-469f-a165-70867728950e keep remove forget exit=0",
		 (int)getpid());
	run_script(HANDOFF_SOURCE, id, v.pid, script, &events);
	expect(events, "cgroup internal;name internal;run internal;adopt not-movable;adopt ok;adopt internal;"
		       "table internal;table internal;keep internal;remove internal;forget internal");
	assert_true(wait_for(&t.exited));
	unharmed(&v, id);
	close(events);
	victim_end(&v);
	/* of another process than it was started for */
	v = victim_start();
	struct victim other = victim_start();
	new_uuid(id);
	snprintf(script, sizeof(script), "adopt=%d", (int)other.pid);
	run_script(HANDOFF_SOURCE, id, v.pid, script, &events);
	expect(events, "adopt denied");
	assert_true(wait_for(&t.exited));
	close(events);
	victim_end(&other);
	victim_end(&v);
}

/* Worker and warden die at one time; the next warden has only the journal. */
static void warden_killed(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	pid_t worker = run_script(HANDOFF_SOURCE, id, v.pid, TO_SEALED "keep wait", &events);
	expect(events, SEALED_OK "keep ok");
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)worker);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	int warden;
	assert_non_null(text);
	assert_int_equal(sscanf(strrchr(text, ')'), ") %*c %d", &warden), 1);
	kill(warden, SIGKILL);
	assert_true(wait_for(&t.gone));
	while (recv(events, line, sizeof(line), 0) > 0) /* the worker is gone, too */
		continue;
	close(events);
	stop_warden();
	waitpid(warden, NULL, 0);
	assert_true(stands());
	uint64_t was = *t.beats, from = util_monotonic_ns();
	assert_int_equal(start_warden(), 0);
	print_message("a new warden thawed it within %.2f ms\n", runs_after(from, was));
	unharmed(&v, id);
	victim_end(&v);
}

/* The agent goes, then the worker: the warden still does its work, then ends. */
static void agent_gone(void **state)
{
	(void)state;
	char id[37];
	int events;
	new_uuid(id);
	struct victim v = victim_start();
	pid_t worker = run_script(HANDOFF_SOURCE, id, v.pid, TO_SEALED "keep wait", &events);
	expect(events, SEALED_OK "keep ok");
	stop_warden();
	pause_ms(20);
	assert_true(stands());
	kill(worker, SIGKILL);
	/* locked as long as the old one works */
	int r = -1;
	for (int i = 0; i < 50 && r < 0; i++, pause_ms(20)) {
		int fd = open(t.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = flock(fd, LOCK_EX | LOCK_NB);
		close(fd);
	}
	assert_int_equal(r, 0);
	unharmed(&v, id);
	victim_end(&v);
	close(events);
	assert_int_equal(start_warden(), 0);
}

static void destination(void **state)
{
	(void)state;
	char id[37], script[512];
	int events;
	new_uuid(id);
	snprintf(script, sizeof(script),
		 "vessel=%s:%s state=RECEIVING,accept state=RESTORING,seal state=READY,ready freeze state=READY,ready "
		 "thaw run letgo state=RUNNING,commit wait run done wait",
		 id, t.beats_path);
	pid_t worker = run_script(HANDOFF_DESTINATION, "", 0, script, &events);
	expect(events, "vessel ok;state ok;state ok;state internal;freeze ok;state ok;thaw internal;run internal;"
		       "letgo ok;state internal");
	uint64_t was = *t.beats;
	assert_true(stands());
	assert_int_equal(send(events, "x", 1, 0), 1);
	expect(events, "wait ok;run ok;done ok");
	assert_true(runs_after(util_monotonic_ns(), was) >= 0);
	assert_int_equal(journalled(id), HANDOFF_RUNNING);
	kill(worker, SIGKILL); /* now it is on its own */
	assert_true(wait_for(&t.exited));
	assert_false(t.crashed);
	was = *t.beats;
	assert_true(runs_after(util_monotonic_ns(), was) >= 0);
	close(events);
	/* the same offer again */
	snprintf(script, sizeof(script), "name=%s exit=0", id);
	run_script(HANDOFF_DESTINATION, "", 0, script, &events);
	expect(events, "name busy");
	assert_true(wait_for(&t.exited));
	close(events);
	/* and after a restart of the warden it still runs */
	stop_warden();
	assert_int_equal(start_warden(), 0);
	was = *t.beats;
	assert_true(runs_after(util_monotonic_ns(), was) >= 0);
	assert_int_equal(journalled(id), HANDOFF_RUNNING);
	kill(vessel_pid(worker), SIGKILL);
}

static void destination_killed(void **state)
{
	(void)state;
	char id[37], script[512], short_id[16], command[400];
	int events;
	new_uuid(id);
	snprintf(short_id, sizeof(short_id), "%.8s", id);
	snprintf(script, sizeof(script),
		 "vessel=%s:%s state=RECEIVING,accept state=RESTORING,seal table=cpr-%s freeze state=READY,ready letgo "
		 "wait",
		 id, t.beats_path, id);
	pid_t worker = run_script(HANDOFF_DESTINATION, "", 0, script, &events);
	expect(events, "vessel ok;state ok;state ok;table ok;freeze ok;state ok;letgo ok");
	pid_t vessel = vessel_pid(worker);
	assert_int_equal(kill(vessel, 0), 0);
	kill(worker, SIGKILL);
	assert_true(wait_for(&t.exited));
	print_message("%s\n", t.text);
	assert_true(t.crashed);
	assert_int_equal(t.state, HANDOFF_DISCARDED);
	assert_int_equal(journalled(id), HANDOFF_DISCARDED); /* the source may ask */
	assert_true(is_dead(vessel));			     /* init may not have collected it yet */
	snprintf(command, sizeof(command), "test -z \"$(find /sys/fs/cgroup -path '*/cpr/victim-%s*')\"", short_id);
	assert_int_equal(system(command), 0);
	close(events);
}

static void one_warden(void **state)
{
	(void)state;
	struct wa *first = t.wa;
	assert_int_equal(start_warden(), -1);
	t.wa = first;
}

/* ---- set-up ---- */

static void copy_self(const char *to)
{
	char command[256];
	snprintf(command, sizeof(command), "cp -L /proc/%d/exe %s && chmod 755 %s", (int)getpid(), to, to);
	assert_int_equal(system(command), 0);
}

/* A peer that policy does not let in gets the reason as an ABORT frame before the end. */
static void refused_peer_is_told(void **state)
{
	(void)state;
	struct fault f = { 0 }, why = { 0 };
	int ends[2];
	uint8_t buf[8192];
	size_t n = 0;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	t.conn++;
	t.up = false;
	assert_int_equal(wa_wire(t.wa, t.conn, ends[0], false, NULL, &f), 0);
	assert_true(wait_for(&t.up));
	fault_set(&why, FAULT_DENIED, "host2 may not push processes to host1");
	fault_hint(&why, "Add a rule.");
	assert_int_equal(wa_close_wire(t.wa, t.conn, &why, &f), 0);
	struct timeval limit = { WAIT_MS / 1000, 0 };
	setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	for (ssize_t r; n < sizeof(buf) && (r = recv(ends[1], buf + n, sizeof(buf) - n, 0)) != 0; n += (size_t)r)
		assert_true(r > 0);
	struct frame fr = { .payload = buf + FRAME_HEADER };
	assert_true(n > FRAME_HEADER && frame_decode(buf, &fr.h, &f) == 0);
	assert_int_equal(fr.h.type, FRAME_ABORT);
	assert_int_equal(fr.h.length, n - FRAME_HEADER);
	struct arena *a = arena_new();
	Cpr__Abort *m = link_unpack(&fr, &cpr__abort__descriptor, a, &f);
	assert_non_null(m);
	assert_string_equal(m->fault->code, "denied");
	assert_string_equal(m->fault->what, why.what);
	assert_string_equal(m->fault->hint, why.hint);
	arena_free(a);
	close(ends[1]);
}

/* A wire that has ended still gets its worker: what the peer said last lies in the ring. */
static void peer_that_hung_up(void **state)
{
	(void)state;
	struct fault f = { 0 };
	int ends[2], events;
	char id[37];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	t.conn++;
	t.up = t.exited = false;
	t.failed.code = FAULT_NONE;
	assert_int_equal(wa_wire(t.wa, t.conn, ends[0], true, "brief", &f), 0);
	assert_true(wait_for(&t.up));
	char c;
	assert_int_equal(recv(ends[1], &c, 1, 0), 0); /* nobody holds the connection any more */
	close(ends[1]);
	pause_ms(50);
	new_uuid(id);
	struct victim v = victim_start();
	assert_int_equal(wa_worker(t.wa, t.conn, HANDOFF_SOURCE, id, v.pid, "done", 4, &events, &f), 0);
	assert_true(wait_for(&t.exited));
	assert_false(t.crashed);
	assert_int_equal(t.failed.code, FAULT_NONE);
	close(events);
	victim_end(&v);
}

static int group_setup(void **state)
{
	(void)state;
	/* nft tables of our own */
	if (unshare(CLONE_NEWNET) < 0)
		return -1;
	strcpy(t.dir, "/tmp/cpr-warden-XXXXXX");
	if (!mkdtemp(t.dir) || chmod(t.dir, 0755) < 0)
		return -1;
	/* as /run: a tmpfs */
	snprintf(t.run, sizeof(t.run), "/dev/shm/%s", strrchr(t.dir, '/') + 1);
	snprintf(t.worker, sizeof(t.worker), "%s/fake-worker", t.dir);
	snprintf(t.wire, sizeof(t.wire), "%s/fake-wire", t.dir);
	snprintf(t.key, sizeof(t.key), "/dev/null");
	snprintf(t.beats_path, sizeof(t.beats_path), "%s/beats", t.dir);
	copy_self(t.worker);
	copy_self(t.wire);
	t.beats_fd = open(t.beats_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (t.beats_fd < 0 || ftruncate(t.beats_fd, 4096) < 0)
		return -1;
	t.beats = shared_beats(t.beats_fd);
	/* an agent ignores and blocks signals; nothing of it may reach a worker */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	umask(077);
	return start_warden();
}

static int group_teardown(void **state)
{
	(void)state;
	char command[400];
	wa_free(t.wa);
	snprintf(command, sizeof(command), "rm -r %s %s", t.dir, t.run);
	return system(command);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	if (!strcmp(name, "fake-worker"))
		return worker_main();
	if (!strcmp(name, "cpr-wire"))
		return wire_main(argc, argv);
	/* cpr-warden lies beside the folder of the unit tests */
	char self[96];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	self[n > 0 ? n : 0] = 0;
	for (int i = 0; i < 2 && strrchr(self, '/'); i++)
		*strrchr(self, '/') = 0;
	snprintf(t.warden, sizeof(t.warden), "%s/cpr-warden", self);
	if (access(t.warden, X_OK) < 0) {
		printf("skipped: %s is not built\n", t.warden);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(worker_killed),
		cmocka_unit_test(aborted),
		cmocka_unit_test(lazy),
		cmocka_unit_test(moved),
		cmocka_unit_test(in_doubt),
		cmocka_unit_test(committing_needs_freezer),
		cmocka_unit_test(refusals),
		cmocka_unit_test(warden_killed),
		cmocka_unit_test(agent_gone),
		cmocka_unit_test(destination),
		cmocka_unit_test(destination_killed),
		cmocka_unit_test(refused_peer_is_told),
		cmocka_unit_test(peer_that_hung_up),
		cmocka_unit_test(one_warden),
	};
	alarm(120);
	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
