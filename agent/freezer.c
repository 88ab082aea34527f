#include "freezer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RESTORED  "cpr"	 /* below the root: groups of restored processes */
#define ADOPTED	  "cpr-" /* below a process's own group: while it is migrated away */
#define NAME_MAX_ 40	 /* of the process's name in a group's name */
#define REMOVE_MS 200	 /* exiting tasks leave a group a moment after they are gone for everybody else */
#define PROC_LINE 8192

const char *freezer_kind_name(enum freezer_kind k)
{
	return k == FREEZER_V1 ? "v1" : "v2";
}

/* ---- where the hierarchies are mounted ---- */

/* Of a mount that another one hides, the path leads to the other one. */
static bool visible(const char *path, uint64_t mount_id)
{
	struct statx s;
	return statx(AT_FDCWD, path, 0, STATX_MNT_ID, &s) == 0 && s.stx_mnt_id == mount_id && access(path, W_OK) == 0;
}

/* "36 35 98:0 /root /mnt rw,relatime shared:1 - cgroup2 cgroup2 rw" */
static void take_mount(struct freezer_host *h, char *line)
{
	char root[FREEZER_PATH], path[FREEZER_PATH], type[32], options[256];
	unsigned long long id;
	const char *rest = strstr(line, " - ");
	if (!rest || sscanf(line, "%llu %*u %*s %1023s %1023s", &id, root, path) != 3 ||
	    sscanf(rest, " - %31s %*s %255s", type, options) != 2)
		return;
	/* "/..": the mount shows what lies above our own cgroup namespace's root */
	if (!strncmp(root, "/..", 3) || strchr(path, '\\') || !visible(path, id))
		return;
	if (!strcmp(type, "cgroup2")) {
		memcpy(h->v2, path, sizeof(path));
		memcpy(h->v2_root, root, sizeof(root));
	} else if (!strcmp(type, "cgroup") && strstr(options, "freezer")) {
		memcpy(h->v1, path, sizeof(path));
		memcpy(h->v1_root, root, sizeof(root));
	}
}

int freezer_host_find(struct freezer_host *h, struct fault *f)
{
	struct freezer_host r = { 0 };
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/self/mountinfo", NULL);
	if (!text)
		return fault_errno(f, FAULT_SYSTEM, "read /proc/self/mountinfo");
	char *save;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		take_mount(&r, line);
	if (!r.v2[0] && !r.v1[0]) {
		fault_set(f, FAULT_KERNEL, "no writable cgroup2 and no cgroup freezer is mounted");
		return fault_hint(f, "Mount one: mount -t cgroup2 none /sys/fs/cgroup.");
	}
	*h = r;
	return 0;
}

/* ---- where a process is ---- */

static bool join(char out[FREEZER_PATH], const char *a, const char *b)
{
	return (size_t)snprintf(out, FREEZER_PATH, "%s%s%s", a, *b && *b != '/' ? "/" : "", b) < FREEZER_PATH;
}

/* The directory of a path that /proc/PID/cgroup gave. */
static bool directory(const char *mount, const char *root, const char *path, char out[FREEZER_PATH])
{
	size_t n = strcmp(root, "/") ? strlen(root) : 0;
	if (!mount[0] || !strncmp(path, "/..", 3) || strncmp(path, root, n) != 0 || (path[n] && path[n] != '/'))
		return false;
	path += n;
	return join(out, mount, strcmp(path, "/") ? path : "");
}

/* The line of one hierarchy: "0::/path" or "6:freezer:/path". */
static bool line_of(const char *text, enum freezer_kind kind, char out[FREEZER_PATH])
{
	for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL) {
		const char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
		size_t len = path ? strcspn(path + 1, "\n") : 0;
		if (!path || len >= FREEZER_PATH)
			continue;
		char list[256];
		snprintf(list, sizeof(list), ",%.*s,", (int)(path - names - 1), names + 1);
		if (kind == FREEZER_V2 ? strncmp(line, "0::", 3) != 0 : !strstr(list, ",freezer,"))
			continue;
		snprintf(out, FREEZER_PATH, "%.*s", (int)len, path + 1);
		return true;
	}
	return false;
}

static bool group_of(const struct freezer_host *h, enum freezer_kind kind, pid_t pid, char out[FREEZER_PATH])
{
	char file[64], path[FREEZER_PATH];
	snprintf(file, sizeof(file), "/proc/%d/cgroup", (int)pid);
	auto_free char *text = util_read_file(AT_FDCWD, file, NULL);
	if (!text || !line_of(text, kind, path))
		return false;
	return kind == FREEZER_V2 ? directory(h->v2, h->v2_root, path, out) : directory(h->v1, h->v1_root, path, out);
}

static bool has_children(const char *dir)
{
	DIR *d = opendir(dir);
	bool r = !d;
	for (struct dirent *e; d && !r && (e = readdir(d));)
		r = e->d_type == DT_DIR && e->d_name[0] != '.';
	if (d)
		closedir(d);
	return r;
}

static bool alone(const char *dir, pid_t pid)
{
	char path[FREEZER_PATH], want[24];
	if (!join(path, dir, "cgroup.procs"))
		return false;
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	snprintf(want, sizeof(want), "%d\n", (int)pid);
	return text && !strcmp(text, want) && !has_children(dir);
}

/* ---- one group ---- */

static const struct freezer closed = { .dir = -1, .freeze = -1, .events = -1 };

void freezer_close(struct freezer *z)
{
	util_close(&z->dir);
	util_close(&z->freeze);
	util_close(&z->events);
}

static int open_group(struct freezer *z, struct fault *f)
{
	z->dir = open(z->group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (z->dir < 0)
		return fault_errno(f, FAULT_SYSTEM, "open cgroup %s", z->group);
	z->freeze = openat(z->dir, z->kind == FREEZER_V2 ? "cgroup.freeze" : "freezer.state", O_RDWR | O_CLOEXEC);
	if (z->freeze >= 0 && z->kind == FREEZER_V2)
		z->events = openat(z->dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (z->freeze < 0 || (z->kind == FREEZER_V2 && z->events < 0))
		return fault_errno(f, FAULT_KERNEL, "open the freezer of cgroup %s", z->group);
	return 0;
}

static bool is_below(const char *mount, const char *group)
{
	char dir[FREEZER_PATH];
	return mount[0] && join(dir, mount, RESTORED "/") && !strncmp(group, dir, strlen(dir));
}

static bool being_migrated(const char *group)
{
	const char *name = strrchr(group, '/');
	return name && !strncmp(name + 1, ADOPTED, strlen(ADOPTED)) && strlen(name + 1) == strlen(ADOPTED) + 36;
}

/* Also when an ancestor is. */
static bool frozen_already(enum freezer_kind kind, const char *group)
{
	char path[FREEZER_PATH];
	if (!join(path, group, kind == FREEZER_V2 ? "cgroup.events" : "freezer.state"))
		return false;
	auto_free char *text = util_read_file(AT_FDCWD, path, NULL);
	return text && (kind == FREEZER_V2 ? strstr(text, "frozen 1") != NULL : strncmp(text, "THAWED", 6) != 0);
}

int freezer_plan(const struct freezer_host *h, const char *migration, pid_t pid, struct freezer *out, struct fault *f)
{
	struct freezer z = closed;
	z.kind = FREEZER_V2;
	if (!group_of(h, z.kind, pid, z.origin)) {
		z.kind = FREEZER_V1;
		if (!group_of(h, z.kind, pid, z.origin)) {
			fault_set(f, FAULT_UNSUPPORTED, "the cgroup of pid %d can't be seen from here", (int)pid);
			return fault_hint(f, "It is outside the part of the hierarchy that is mounted for cpr-warden.");
		}
	}
	if (being_migrated(z.origin) || frozen_already(z.kind, z.origin)) {
		fault_set(f, FAULT_BUSY, "pid %d is in cgroup %s, which %s", (int)pid, z.origin,
			  being_migrated(z.origin) ? "belongs to a migration" : "is frozen");
		return fault_hint(f, "Somebody else has it, or left it so.");
	}
	/* The v1 state is shared with whoever else uses that group; a root has no freezer. */
	const char *mount = z.kind == FREEZER_V2 ? h->v2 : h->v1;
	z.own = z.kind == FREEZER_V1 || !strcmp(z.origin, mount) || !alone(z.origin, pid);
	z.restored = !z.own && is_below(mount, z.origin);
	char name[64];
	snprintf(name, sizeof(name), ADOPTED "%s", migration);
	if (!join(z.group, z.origin, z.own ? name : ""))
		return fault_set(f, FAULT_UNSUPPORTED, "the path of pid %d's cgroup is too long", (int)pid);
	*out = z;
	return 0;
}

static int move_into(const char *group, pid_t pid)
{
	char path[FREEZER_PATH], text[24];
	if (!join(path, group, "cgroup.procs")) {
		errno = ENAMETOOLONG;
		return -1;
	}
	snprintf(text, sizeof(text), "%d", (int)pid);
	return util_write_file(AT_FDCWD, path, text);
}

int freezer_enter(struct freezer *z, pid_t pid, struct fault *f)
{
	if (z->own && mkdir(z->group, 0755) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_SYSTEM, "make cgroup %s", z->group);
	if (open_group(z, f) < 0)
		return -1;
	if (z->own && move_into(z->group, pid) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_NO_PROCESS : FAULT_SYSTEM, "move pid %d into cgroup %s",
				   (int)pid, z->group);
	return 0;
}

/* A name from outside, for a directory: letters, digits and a few more. */
static void clean_name(char *out, size_t len, const char *name)
{
	size_t n = 0;
	for (; *name && n + 1 < len; name++)
		if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", *name) &&
		    (n || *name != '.'))
			out[n++] = *name;
	out[n] = 0;
}

/* A directory that nobody else has: never an older one with somebody in it. */
static int make_group(struct freezer *z, struct fault *f)
{
	if (mkdir(z->group, 0755) < 0)
		return fault_errno(f, FAULT_SYSTEM, "make cgroup %s", z->group);
	/* Who sweeps leaves it alone from here; who swept before made open fail. */
	if (open_group(z, f) < 0)
		return -1;
	if (flock(z->dir, LOCK_SH | LOCK_NB) < 0)
		return fault_errno(f, FAULT_BUSY, "lock cgroup %s", z->group);
	return 0;
}

int freezer_make(const struct freezer_host *h, const char *name, const char *migration, struct freezer *out,
		 struct fault *f)
{
	char clean[NAME_MAX_], parent[FREEZER_PATH];
	const char *mount = h->v2[0] ? h->v2 : h->v1;
	clean_name(clean, sizeof(clean), name);
	if (!join(parent, mount, RESTORED))
		return fault_set(f, FAULT_INTERNAL, "a cgroup mount with a path that is too long");
	if (mkdir(parent, 0755) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_SYSTEM, "make cgroup %s", parent);
	/* The short name may be taken, and a sweeper may be at it: the long one then. */
	for (int digits = 8; digits <= 36; digits += 14) {
		struct freezer z = closed;
		char relative[128];
		z.kind = h->v2[0] ? FREEZER_V2 : FREEZER_V1;
		z.own = z.restored = true;
		snprintf(relative, sizeof(relative), RESTORED "/%s-%.*s", clean[0] ? clean : "process", digits,
			 migration);
		if (!join(z.group, mount, relative))
			return fault_set(f, FAULT_INTERNAL, "a cgroup mount with a path that is too long");
		if (make_group(&z, f) == 0) {
			*out = z;
			return 0;
		}
		freezer_close(&z);
	}
	return fault_while(f, "making a cgroup for the process");
}

int freezer_open(const char *kind, bool own, const char *group, const char *origin, struct freezer *out,
		 struct fault *f)
{
	struct freezer z = closed;
	z.kind = strcmp(kind, "v1") ? FREEZER_V2 : FREEZER_V1;
	z.own = own;
	z.restored = strstr(group, "/" RESTORED "/") != NULL;
	if (!join(z.group, group, "") || !join(z.origin, origin, ""))
		return fault_set(f, FAULT_IMAGE, "the path of a cgroup is too long");
	if (open_group(&z, f) < 0) {
		freezer_close(&z);
		return -1;
	}
	*out = z;
	return 0;
}

int freezer_dup_fd(const struct freezer *z, struct fault *f)
{
	/* Opened anew: a duplicate would keep the lock against sweeping for as long as anyone has it. */
	int fd = open(z->group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? fault_errno(f, FAULT_SYSTEM, "open cgroup %s", z->group) : fd;
}

/* ---- freezing ---- */

static bool file_says(int fd, const char *what)
{
	char text[256];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	if (n < 0)
		return false;
	text[n] = 0;
	return strstr(text, what) != NULL;
}

bool freezer_frozen(const struct freezer *z)
{
	return z->kind == FREEZER_V2 ? file_says(z->events, "frozen 1") : file_says(z->freeze, "FROZEN");
}

static bool empty(const struct freezer *z)
{
	if (z->kind == FREEZER_V2)
		return file_says(z->events, "populated 0");
	auto_free char *text = util_read_file(z->dir, "cgroup.procs", NULL);
	return text && !*text;
}

/* Until the condition holds: cgroup2 tells of a change, the v1 freezer does not. */
static bool wait_until(const struct freezer *z, bool (*condition)(const struct freezer *), int timeout_ms)
{
	uint64_t end = util_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
	while (!condition(z)) {
		uint64_t now = util_monotonic_ns();
		if (now >= end)
			return false;
		struct pollfd p = { .fd = z->events, .events = POLLPRI };
		if (z->kind == FREEZER_V2 && poll(&p, 1, (int)((end - now) / 1000000u) + 1) < 0 && errno != EINTR)
			return false;
		if (z->kind == FREEZER_V1)
			nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	return true;
}

static int write_state(const struct freezer *z, bool on)
{
	const char *text = z->kind == FREEZER_V2 ? (on ? "1" : "0") : (on ? "FROZEN" : "THAWED");
	ssize_t n = pwrite(z->freeze, text, strlen(text), 0);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

int freezer_freeze(struct freezer *z, int timeout_ms, struct fault *f)
{
	if (write_state(z, true) < 0)
		return fault_errno(f, FAULT_SYSTEM, "freeze cgroup %s", z->group);
	if (wait_until(z, freezer_frozen, timeout_ms))
		return 0;
	write_state(z, false);
	fault_set(f, FAULT_TIMEOUT, "cgroup %s was not frozen within %d ms", z->group, timeout_ms);
	return fault_hint(f, "A task in it may be in uninterruptible sleep (state D): try again when it is not.");
}

int freezer_thaw(struct freezer *z, struct fault *f)
{
	if (write_state(z, false) < 0 && errno != ENODEV)
		return fault_errno(f, FAULT_SYSTEM, "thaw cgroup %s", z->group);
	return 0;
}

bool freezer_holds(const struct freezer *z, pid_t pid)
{
	auto_free char *text = util_read_file(z->dir, "cgroup.procs", NULL);
	char *save, want[24];
	snprintf(want, sizeof(want), "%d", (int)pid);
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save))
		if (!strcmp(line, want))
			return true;
	return false;
}

/* ---- the end of a group ---- */

static void kill_listed(const struct freezer *z)
{
	auto_free char *text = util_read_file(z->dir, "cgroup.procs", NULL);
	char *save;
	uint64_t pid;
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save))
		if (util_parse_u64(line, INT32_MAX, &pid) && pid > 1)
			kill((pid_t)pid, SIGKILL);
}

int freezer_kill(struct freezer *z, int timeout_ms, struct fault *f)
{
	/* Linux 5.14 has cgroup.kill, which reaches into a frozen group and races with no fork. */
	if (z->kind == FREEZER_V1 || util_write_file(z->dir, "cgroup.kill", "1") < 0) {
		kill_listed(z);
		if (freezer_thaw(z, f) < 0)
			return -1;
	}
	if (!wait_until(z, empty, timeout_ms))
		return fault_set(f, FAULT_TIMEOUT, "cgroup %s was not empty %d ms after the kill", z->group,
				 timeout_ms);
	return 0;
}

int freezer_remove(struct freezer *z, struct fault *f)
{
	uint64_t end = util_monotonic_ns() + REMOVE_MS * 1000000u;
	if (!z->own && !z->restored)
		return 0;
	while (rmdir(z->group) < 0 && errno != ENOENT) {
		if (errno != EBUSY || util_monotonic_ns() >= end)
			return fault_errno(f, FAULT_SYSTEM, "remove cgroup %s", z->group);
		nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	char *slash = z->restored ? strrchr(z->group, '/') : NULL;
	if (slash) { /* what restored groups lie in, when this was the last */
		*slash = 0;
		rmdir(z->group);
		*slash = '/';
	}
	return 0;
}

int freezer_leave(struct freezer *z, pid_t pid, struct fault *f)
{
	if (!z->own)
		return 0;
	if (freezer_holds(z, pid) && move_into(z->origin, pid) < 0 && errno != ESRCH)
		return fault_errno(f, FAULT_SYSTEM, "move pid %d back into cgroup %s", (int)pid, z->origin);
	return freezer_remove(z, f);
}

static void sweep(const char *mount)
{
	char path[FREEZER_PATH];
	if (!mount[0] || !join(path, mount, RESTORED))
		return;
	DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		auto_fd fd = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR); /* EBUSY: something lives in it */
	}
	if (d)
		closedir(d);
	rmdir(path); /* only when it is empty */
}

void freezer_sweep(const struct freezer_host *h)
{
	sweep(h->v2);
	sweep(h->v1);
}
