#include "custody.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "address.h"
#include "lock.h"
#include "log.h"
#include "nfttable.h"
#include "procinfo.h"
#include "sock.h"

#define FREEZE_MS 2000
#define KILL_MS	  5000
#define LOCK_MS	  4000
#define KTHREAD	  0x00200000u /* PF_KTHREAD */

/* ---- the host ---- */

/* The warden before us may be ending. */
static bool lock_run(int fd)
{
	uint64_t end = util_monotonic_ns() + LOCK_MS * 1000000ull;
	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK || util_monotonic_ns() > end)
			return false;
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	return true;
}

int custody_host_open(const char *run_dir, struct custody_host *out, struct fault *f)
{
	struct custody_host h = { .run = -1, .nft = -1 };
	struct fault ignored;
	if (freezer_host_find(&h.cgroups, f) < 0)
		return -1;
	auto_free char *boot = util_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", NULL);
	if (!boot)
		return fault_errno(f, FAULT_SYSTEM, "read the boot id");
	snprintf(h.boot_id, sizeof(h.boot_id), "%.36s", boot);
	if (mkdir(run_dir, 0755) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_CONFIG, "make %s", run_dir);
	auto_fd run = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run < 0)
		return fault_errno(f, FAULT_CONFIG, "open %s", run_dir);
	if (!lock_run(run)) {
		fault_errno(f, FAULT_BUSY, "lock %s", run_dir);
		return fault_hint(f, "Another cpr-warden works there, or finishes what it began.");
	}
	h.run = take_fd(&run);
	h.nft = nfttable_open(&ignored); /* -1: there is no netfilter here, or it comes later */
	*out = h;
	return 0;
}

void custody_host_close(struct custody_host *h)
{
	util_close(&h->run);
	util_close(&h->nft);
}

/* ---- processes ---- */

static bool read_stat(pid_t pid, struct procinfo_stat *out)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	struct fault f;
	return text && procinfo_parse_stat(text, out, &f) == 0;
}

static bool dead(char state)
{
	return state == 'Z' || state == 'X' || state == 'x';
}

static bool alive(const struct custody *c)
{
	struct procinfo_stat s;
	return c->j.pid > 0 && read_stat(c->j.pid, &s) && !dead(s.state) &&
	       (!c->j.start_time || s.start_time == c->j.start_time);
}

bool custody_has(const struct custody *c, pid_t pid)
{
	return c->j.pid == pid && alive(c);
}

/* ---- the record ---- */

static bool source(const struct custody *c)
{
	return c->j.side == HANDOFF_SOURCE;
}

static const char *subject(const struct custody *c)
{
	return c->j.migration[0] ? c->j.migration : "-";
}

static bool known(const struct custody *c)
{
	return c->j.migration[0] != 0;
}

static int save(const struct custody *c, struct fault *f)
{
	return known(c) ? journal_write(c->host->run, &c->j, f) : 0;
}

struct custody *custody_new(const struct custody_host *h, enum handoff_side side, const char *migration, pid_t pid,
			    const char *peer)
{
	struct custody *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->host = h;
	c->pidfd = c->z.dir = c->z.freeze = c->z.events = -1;
	c->j.side = side;
	c->j.pid = pid;
	snprintf(c->j.migration, sizeof(c->j.migration), "%s", migration);
	snprintf(c->j.peer, sizeof(c->j.peer), "%s", peer);
	snprintf(c->j.boot_id, sizeof(c->j.boot_id), "%s", h->boot_id);
	return c;
}

struct custody *custody_load(const struct custody_host *h, const char *migration, struct fault *f)
{
	struct custody *c = custody_new(h, HANDOFF_SOURCE, "", 0, "");
	if (!c || journal_read(h->run, migration, &c->j, f) < 0) {
		custody_free(c);
		return NULL;
	}
	/* Gone with everything in it: then there is nothing to thaw either. */
	struct fault g;
	if (c->j.group[0] && freezer_open(c->j.freezer, c->j.own_group, c->j.group, c->j.origin, &c->z, &g) < 0) {
		log_notice(migration, "cgroup %s is gone", c->j.group);
		c->j.group[0] = 0;
	}
	c->frozen = c->j.group[0] && freezer_frozen(&c->z);
	return c;
}

void custody_free(struct custody *c)
{
	if (!c)
		return;
	freezer_close(&c->z);
	util_close(&c->pidfd);
	journal_done(&c->j);
	free(c);
}

int custody_name(struct custody *c, const char *migration, pid_t pid, struct fault *f)
{
	if (source(c) || known(c))
		return fault_set(f, FAULT_INTERNAL, "migration %s has its name", subject(c));
	if (!journal_is_uuid(migration))
		return fault_set(f, FAULT_PROTOCOL, "'%.40s' is no migration id", migration);
	if (pid < 2)
		return fault_set(f, FAULT_PROTOCOL, "pid %d of migration %s", (int)pid, migration);
	if (journal_exists(c->host->run, migration))
		return fault_set(f, FAULT_BUSY, "migration %s is known here already", migration);
	memcpy(c->j.migration, migration, sizeof(c->j.migration));
	c->j.pid = pid;
	return save(c, f);
}

/* The one place that changes a state. Journalled, then logged. */
static int enter(struct custody *c, const struct handoff_step *step, const char *reason, struct fault *f)
{
	const enum handoff_state was = c->j.state;
	const bool was_ready = c->j.ready;
	c->j.state = step->to;
	c->j.event = step->event;
	c->j.ready |= step->to == HANDOFF_READY;
	snprintf(c->j.reason, sizeof(c->j.reason), "%s", reason);
	if (save(c, f) < 0) {
		c->j.state = was;
		c->j.ready = was_ready;
		return -1;
	}
	log_notice(subject(c), "migration %s pid %d: %s -> %s (%s)", subject(c), (int)c->j.pid, handoff_state_name(was),
		   handoff_state_name(step->to), reason[0] ? reason : "no reason given");
	return 0;
}

static int not_now(const struct custody *c, const char *what, struct fault *f)
{
	return fault_set(f, FAULT_INTERNAL, "%s is not for state %s of migration %s", what,
			 handoff_state_name(c->j.state), subject(c));
}

int custody_state(struct custody *c, uint32_t to, uint32_t why, const char *reason, struct fault *f)
{
	const struct handoff_step *step = why < HANDOFF_EVENT_COUNT ? handoff_next(c->j.side, c->j.state, why) : NULL;
	if (!known(c) || !step || step->to != to || to == HANDOFF_RUNNING)
		return fault_set(f, FAULT_INTERNAL, "event %s in state %s does not lead to %s", handoff_event_name(why),
				 handoff_state_name(c->j.state), handoff_state_name(to));
	if (why == HANDOFF_EV_KEEP_HERE || why == HANDOFF_EV_GIVEN_AWAY || why == HANDOFF_EV_WORKER_DIED)
		return fault_set(f, FAULT_INTERNAL, "event %s is not a worker's to tell", handoff_event_name(why));
	/* Nothing but this switch keeps the process from running while the other side decides. */
	if ((to == HANDOFF_COMMITTING || to == HANDOFF_READY) && !(c->frozen && freezer_frozen(&c->z)))
		return fault_set(f, FAULT_INTERNAL, "pid %d is not frozen, so it can't be %s", (int)c->j.pid,
				 handoff_state_name(to));
	return enter(c, step, reason, f);
}

/* ---- freezer ---- */

static int record_group(struct custody *c, struct fault *f)
{
	snprintf(c->j.freezer, sizeof(c->j.freezer), "%s", freezer_kind_name(c->z.kind));
	memcpy(c->j.group, c->z.group, sizeof(c->j.group));
	memcpy(c->j.origin, c->z.origin, sizeof(c->j.origin));
	c->j.own_group = c->z.own;
	return save(c, f);
}

static int movable(pid_t pid, struct procinfo_stat *s, struct fault *f)
{
	if (pid <= 1)
		return fault_set(f, FAULT_NOT_MOVABLE, "pid %d is not a process that can move", (int)pid);
	if (!read_stat(pid, s) || dead(s->state))
		return fault_set(f, FAULT_NO_PROCESS, "there is no process %d", (int)pid);
	if (s->flags & KTHREAD)
		return fault_set(f, FAULT_NOT_MOVABLE, "pid %d is a kernel thread", (int)pid);
	return 0;
}

int custody_adopt(struct custody *c, pid_t pid, struct fault *f)
{
	struct procinfo_stat s;
	if (!source(c) || !known(c) || c->j.group[0] || c->j.state != HANDOFF_NONE)
		return not_now(c, "adopting a process", f);
	if (pid != c->j.pid)
		return fault_set(f, FAULT_DENIED, "migration %s is about pid %d, not %d", subject(c), (int)c->j.pid,
				 (int)pid);
	if (movable(pid, &s, f) < 0)
		return -1;
	auto_fd pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return fault_errno(f, FAULT_NO_PROCESS, "open pid %d", (int)pid);
	if (freezer_plan(&c->host->cgroups, c->j.migration, pid, &c->z, f) < 0)
		return -1;
	c->j.start_time = s.start_time;
	c->pidfd = take_fd(&pidfd);
	if (!alive(c)) /* the number was reused between the two looks */
		return fault_set(f, FAULT_PROCESS_GONE, "pid %d exited", (int)pid);
	if (record_group(c, f) < 0)
		return -1;
	return freezer_enter(&c->z, pid, f);
}

int custody_cgroup(struct custody *c, const char *name, int *fd, struct fault *f)
{
	if (source(c) || !known(c) || !handoff_undecided(c->j.state) || c->j.group[0])
		return not_now(c, "making a cgroup", f);
	freezer_sweep(&c->host->cgroups);
	if (freezer_make(&c->host->cgroups, name, c->j.migration, &c->z, f) < 0 || record_group(c, f) < 0)
		return -1;
	if (c->z.kind == FREEZER_V1) { /* it can't be born in there */
		*fd = -1;
		return 0;
	}
	int dir = freezer_dup_fd(&c->z, f);
	if (dir < 0)
		return -1;
	*fd = dir;
	return 0;
}

int custody_freeze(struct custody *c, struct fault *f)
{
	if (!c->j.group[0] || !handoff_undecided(c->j.state))
		return not_now(c, "freezing", f);
	if (!source(c) && c->z.kind == FREEZER_V1 && freezer_enter(&c->z, c->j.pid, f) < 0)
		return -1;
	if (!freezer_holds(&c->z, c->j.pid))
		return fault_set(f, FAULT_PROCESS_GONE, "pid %d is not in its cgroup %s", (int)c->j.pid, c->j.group);
	c->frozen = true; /* it may be, from here on */
	return freezer_freeze(&c->z, FREEZE_MS, f);
}

static int thaw(struct custody *c, struct fault *f)
{
	if (c->j.group[0] && freezer_thaw(&c->z, f) < 0)
		return -1;
	c->frozen = false;
	return 0;
}

int custody_thaw(struct custody *c, struct fault *f)
{
	/* A vessel that is READY is held by nothing else any more. */
	if (source(c) ? !handoff_undecided(c->j.state) && c->j.state != HANDOFF_ABORTED
		      : !handoff_undecided(c->j.state) || c->j.state == HANDOFF_READY)
		return not_now(c, "thawing", f);
	return thaw(c, f);
}

/* ---- undo records ---- */

/* All of a migration's tables start with this. */
static void table_name(const struct custody *c, const char *suffix, char out[256])
{
	snprintf(out, 256, "cpr-%s%s", c->j.migration, suffix);
}

static bool is_address(const char *s)
{
	uint8_t a[16];
	return inet_pton(AF_INET, s, a) == 1 || inet_pton(AF_INET6, s, a) == 1;
}

static bool ended(const char *s, size_t size)
{
	return memchr(s, 0, size) != NULL;
}

static bool proper(const struct custody *c, const struct undo *u)
{
	char prefix[256];
	if (u->kind >= UNDO_KIND_COUNT || !ended(u->address, sizeof(u->address)) ||
	    !ended(u->device, sizeof(u->device)) || !ended(u->name, sizeof(u->name)))
		return false;
	switch (u->kind) {
	case UNDO_REPAIR:
	case UNDO_PEEK_OFF:
		return u->pid == c->j.pid && u->fd >= -1;
	case UNDO_CGROUP_MOVED:
		return u->pid == c->j.pid && u->name[0] == '/' && !strstr(u->name, "..");
	case UNDO_ADDRESS_REMOVED:
	case UNDO_ADDRESS_ADDED:
		return is_address(u->address) && u->device[0] && u->prefix >= 0 && u->prefix <= 128;
	case UNDO_NFT_TABLE:
		table_name(c, "", prefix);
		return !strncmp(u->name, prefix, strlen(prefix)) &&
		       strspn(u->name, "cpr-0123456789abcdefghijklmnopqstuvwxyz") == strlen(u->name);
	case UNDO_KIND_COUNT:
		break;
	}
	return false;
}

/* A vessel's is known when it is there: its number may be somebody else's later. */
static void know_start_time(struct custody *c)
{
	struct procinfo_stat s;
	if (!c->j.start_time && c->j.group[0] && freezer_holds(&c->z, c->j.pid) && read_stat(c->j.pid, &s))
		c->j.start_time = s.start_time;
}

int custody_undo_push(struct custody *c, const struct undo *u, struct fault *f)
{
	if (!known(c) || handoff_final(c->j.state))
		return not_now(c, "an undo record", f);
	if (!proper(c, u))
		return fault_set(f, FAULT_INTERNAL, "an undo record that does not belong to migration %s", subject(c));
	know_start_time(c);
	if (journal_push(&c->j, u, f) < 0)
		return -1;
	if (save(c, f) < 0) {
		c->j.n_undo--;
		return -1;
	}
	return 0;
}

static void drop_kind(struct custody *c, enum undo_kind kind)
{
	size_t n = 0;
	for (size_t i = 0; i < c->j.n_undo; i++)
		if (c->j.undo[i].kind != kind)
			c->j.undo[n++] = c->j.undo[i];
	c->j.n_undo = n;
}

int custody_undo_drop(struct custody *c, uint32_t kind, struct fault *f)
{
	if (kind >= UNDO_KIND_COUNT)
		return fault_set(f, FAULT_INTERNAL, "no such undo record: %u", kind);
	drop_kind(c, kind);
	return save(c, f);
}

static int undo_repair(const struct custody *c, const struct undo *u, struct fault *f)
{
	return alive(c) ? sock_repair_all(u->pid, false, f) : 0;
}

static int undo_peek_off(const struct custody *c, const struct undo *u, struct fault *f)
{
	if (!alive(c))
		return 0;
	auto_fd pidfd = (int)syscall(SYS_pidfd_open, u->pid, 0);
	auto_fd fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, u->fd, 0);
	int value = (int)u->value;
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof(value)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "put back the peek offset of fd %d of pid %d", u->fd, (int)u->pid);
	return 0;
}

static int undo_cgroup(const struct custody *c, const struct undo *u, struct fault *f)
{
	struct freezer z = { .own = true, .kind = c->z.kind, .dir = -1, .freeze = -1, .events = -1 };
	if (!alive(c))
		return 0;
	snprintf(z.group, sizeof(z.group), "%s", u->name);
	int r = freezer_enter(&z, u->pid, f);
	freezer_close(&z);
	return r;
}

static int undo_address(const struct custody *c, const struct undo *u, struct fault *f)
{
	(void)c;
	return net_address_undo(u, f);
}

static int undo_table(const struct custody *c, const struct undo *u, struct fault *f)
{
	return net_lock_remove(c->host->nft, u->name, f);
}

static int (*const undoers[])(const struct custody *c, const struct undo *u, struct fault *f) = {
	[UNDO_REPAIR] = undo_repair,	     [UNDO_PEEK_OFF] = undo_peek_off, [UNDO_ADDRESS_REMOVED] = undo_address,
	[UNDO_ADDRESS_ADDED] = undo_address, [UNDO_NFT_TABLE] = undo_table,   [UNDO_CGROUP_MOVED] = undo_cgroup,
};
_Static_assert(ARRAY_LEN(undoers) == UNDO_KIND_COUNT, "every kind can be undone");

/* Newest first; what fails stays on record and is reported, and the rest is undone all the same. */
static int undo_all(struct custody *c, struct fault *f)
{
	struct fault one;
	size_t kept = 0, n = c->j.n_undo;
	for (size_t i = n; i-- > 0;) {
		struct undo u = c->j.undo[i];
		if (undoers[u.kind](c, &u, &one) == 0)
			continue;
		log_err(subject(c), "undoing: %s", one.what);
		c->j.undo[n - ++kept] = u; /* at the end: what lies there was looked at */
		*f = one;
	}
	if (kept)
		memmove(c->j.undo, c->j.undo + (n - kept), kept * sizeof(struct undo));
	c->j.n_undo = kept;
	if (n && save(c, kept ? &one : f) < 0)
		return -1;
	return kept ? -1 : 0;
}

int custody_undo(struct custody *c, struct fault *f)
{
	if (!handoff_undecided(c->j.state) && c->j.state != HANDOFF_ABORTED && c->j.state != HANDOFF_DISCARDED)
		return not_now(c, "undoing", f);
	return undo_all(c, f);
}

/* It runs over there, or here for good: tables go, the rest is as it should be now. */
static int forget(struct custody *c, struct fault *f)
{
	for (size_t i = 0; i < c->j.n_undo; i++)
		if (c->j.undo[i].kind == UNDO_NFT_TABLE && net_lock_remove(c->host->nft, c->j.undo[i].name, f) < 0)
			return -1;
	size_t n = c->j.n_undo;
	c->j.n_undo = 0;
	return n ? save(c, f) : 0;
}

int custody_forget(struct custody *c, struct fault *f)
{
	if (c->j.state != HANDOFF_DONE && c->j.state != HANDOFF_RUNNING)
		return not_now(c, "forgetting undo records", f);
	return forget(c, f);
}

/* ---- the commit ---- */

int custody_keep_lock(struct custody *c, const struct net_flow *flows, size_t n, struct fault *f)
{
	struct undo u = { .kind = UNDO_NFT_TABLE, .pid = c->j.pid };
	if (!source(c) || (c->j.state != HANDOFF_SEALED && c->j.state != HANDOFF_COMMITTING))
		return not_now(c, "the kept lock", f);
	table_name(c, "-kept", u.name);
	if (custody_undo_push(c, &u, f) < 0)
		return -1;
	return net_lock_keep(c->j.migration, flows, n, f);
}

static int check_runnable(struct custody *c, struct fault *f)
{
	char path[64];
	struct procinfo_status s;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)c->j.pid);
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	if (!text || procinfo_parse_status(text, &s, f) < 0)
		return fault_set(f, FAULT_PROCESS_GONE, "pid %d is gone before it was started", (int)c->j.pid);
	procinfo_status_done(&s);
	if (dead(s.state))
		return fault_set(f, FAULT_PROCESS_GONE, "pid %d died before it was started", (int)c->j.pid);
	if (s.tracer)
		return fault_set(f, FAULT_INTERNAL, "pid %d is still traced by %d", (int)c->j.pid, (int)s.tracer);
	if (!freezer_holds(&c->z, c->j.pid))
		return fault_set(f, FAULT_INTERNAL, "pid %d is not in its cgroup", (int)c->j.pid);
	return 0;
}

/* Off the record, too: thawed again after a restart, it might be frozen for its next migration by then. */
static int let_go(struct custody *c, struct fault *f)
{
	c->j.group[0] = 0;
	return save(c, f);
}

int custody_run(struct custody *c, pid_t pid, struct fault *f)
{
	const struct handoff_step *step = handoff_next(c->j.side, c->j.state, HANDOFF_EV_COMMIT);
	if (!step || step->to != HANDOFF_RUNNING || pid != c->j.pid)
		return not_now(c, "running it", f);
	if (check_runnable(c, f) < 0)
		return -1;
	if (enter(c, step, "commit received", f) < 0 || thaw(c, f) < 0)
		return -1;
	return let_go(c, f);
}

/* All threads are dead: exited, or zombies that somebody has yet to collect. Their descriptors are closed then. */
static bool all_dead(pid_t pid)
{
	char path[64];
	struct procinfo_stat s;
	struct fault f;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	bool r = true;
	for (struct dirent *e; d && r && (e = readdir(d));) {
		char name[300];
		if (e->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/stat", e->d_name);
		auto_free char *text = util_read_file(dirfd(d), name, NULL);
		r = !text || procinfo_parse_stat(text, &s, &f) < 0 || dead(s.state);
	}
	if (d)
		closedir(d);
	return r;
}

/* pidfd: -1 when it is not our process any more. A pidfd becomes readable when nobody traces a thread of it. */
static int kill_frozen(struct custody *c, struct fault *f)
{
	uint64_t end = util_monotonic_ns() + KILL_MS * 1000000ull;
	auto_fd opened = c->pidfd < 0 && alive(c) ? (int)syscall(SYS_pidfd_open, c->j.pid, 0) : -1;
	struct pollfd p = { .fd = c->pidfd >= 0 ? c->pidfd : opened, .events = POLLIN };
	if (p.fd < 0 || !alive(c))
		return 0;
	if (syscall(SYS_pidfd_send_signal, p.fd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "kill pid %d", (int)c->j.pid);
	if (c->z.kind == FREEZER_V1 && thaw(c, f) < 0) /* there it dies at the thaw, before it runs anything */
		return -1;
	while (poll(&p, 1, 5) == 0 && !all_dead(c->j.pid))
		if (util_monotonic_ns() > end)
			return fault_set(f, FAULT_TIMEOUT, "pid %d did not die within %d ms", (int)c->j.pid, KILL_MS);
	return 0;
}

static int remove_process(struct custody *c, struct fault *f)
{
	/* Without repair mode the dying sockets would say goodbye to peers that now talk to the other host: the kept
	 * lock holds that back, and stays. */
	if (alive(c) && sock_repair_all(c->j.pid, true, f) < 0) {
		struct fault g;
		if (kill_frozen(c, &g) < 0 || thaw(c, &g) < 0)
			log_err(subject(c), "%s", g.what);
		return fault_while(f, "closing its connections silently (table cpr-%s-kept stays)", c->j.migration);
	}
	if (kill_frozen(c, f) < 0 || thaw(c, f) < 0)
		return -1;
	if (forget(c, f) < 0)
		return -1;
	return c->j.group[0] ? freezer_remove(&c->z, f) : 0;
}

int custody_remove(struct custody *c, struct fault *f)
{
	if (!source(c) || c->j.state != HANDOFF_DONE)
		return not_now(c, "removing the process", f);
	return remove_process(c, f);
}

/* ---- the end ---- */

static int discard(struct custody *c, struct fault *f)
{
	struct fault g;
	int r = undo_all(c, f);
	if (!c->j.group[0])
		return r;
	if (freezer_kill(&c->z, KILL_MS, &g) < 0 || freezer_thaw(&c->z, &g) < 0 || freezer_remove(&c->z, &g) < 0) {
		*f = g;
		return -1;
	}
	return r;
}

static int take_back(struct custody *c, struct fault *f)
{
	struct fault g;
	int r = undo_all(c, f);
	/* Whatever could not be undone: frozen it would be no better off. */
	if (thaw(c, &g) < 0 || (c->j.group[0] && freezer_leave(&c->z, c->j.pid, &g) < 0)) {
		*f = g;
		return -1;
	}
	return r;
}

static int run_again(struct custody *c, struct fault *f)
{
	if (c->j.group[0] && (thaw(c, f) < 0 || let_go(c, f) < 0))
		return -1;
	return forget(c, f);
}

static int act(struct custody *c, unsigned actions, struct fault *f)
{
	if (actions & (HANDOFF_ACT_UNDO | HANDOFF_ACT_THAW))
		return take_back(c, f);
	if (actions & HANDOFF_ACT_RUN)
		return run_again(c, f);
	if (actions & HANDOFF_ACT_REMOVE)
		return remove_process(c, f);
	if (actions & HANDOFF_ACT_DISCARD)
		return discard(c, f);
	return 0; /* IN_DOUBT: it stays frozen, and the agent asks */
}

/* A record is kept as long as the other side may ask about it. */
static bool may_be_asked(const struct custody *c)
{
	return !handoff_final(c->j.state) || (!source(c) && c->j.ready);
}

/* Nothing is left to do, and nothing to hold. */
static int finish(struct custody *c, struct fault *f)
{
	if (!known(c))
		return 0;
	if (!may_be_asked(c)) {
		c->j.group[0] = 0;
		return journal_remove(c->host->run, c->j.migration, f);
	}
	return c->j.group[0] ? let_go(c, f) : 0;
}

static const char *where_now(const struct custody *c)
{
	switch (c->j.state) {
	case HANDOFF_ABORTED:
		return alive(c) ? "it runs on here as before" : "it exited meanwhile";
	case HANDOFF_DONE:
		return "it runs on the other host";
	case HANDOFF_RUNNING:
		return "it runs here";
	case HANDOFF_DISCARDED:
		return "nothing of it is left here";
	default:
		return "it stays frozen here until the other host or a person decides";
	}
}

int custody_settle(struct custody *c, bool died, const char *how, char *text, size_t len, struct fault *f)
{
	const struct handoff_step *step = handoff_next(c->j.side, c->j.state, HANDOFF_EV_WORKER_DIED);
	const enum handoff_state was = c->j.state;
	struct fault g = { 0 };
	if (!step || (!died && step->to != was && was != HANDOFF_NONE))
		return not_now(c, "the end", f);
	/* Journalled first, as always; when that fails it is done all the same. */
	if (step->to != was && enter(c, step, how, &g) < 0) {
		log_err(subject(c), "%s", g.what);
		c->j.state = step->to;
	}
	int r = act(c, step->actions, &g);
	if (r < 0)
		log_err(subject(c), "%s", g.what);
	snprintf(text, len, "%s in state %s; %s%s%s", how, handoff_state_name(was), where_now(c),
		 r < 0 ? ", but: " : "", r < 0 ? g.what : "");
	if (r == 0 && handoff_final(c->j.state) && finish(c, &g) < 0)
		log_err(subject(c), "%s", g.what);
	return 0;
}
