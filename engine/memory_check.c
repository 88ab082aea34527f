/*
 * Vetting: which mappings can't be moved, which files they need, how much memory it is.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "memory_source.h"

#define DIGEST_MAX ((uint64_t)256 << 20) /* of larger files only size and time are compared */

struct check {
	struct process *p;
	struct report *report;
	struct arena *a;
	size_t n;
	Cpr__NeededFile **files;
	char root[4096];
};

/* X(what the path begins with, reason, remedy) */
static const struct {
	const char *prefix, *reason, *remedy;
} unmovable[] = {
	{ "/SYSV", "System V shared memory can't be moved yet", "let the program use memfd_create or mmap instead" },
	{ "/anon_hugepage", "memory in huge pages (hugetlb) can't be moved yet",
	  "let the program use transparent huge pages" },
	{ "/secretmem", "secret memory (memfd_secret) can't be read from outside", NULL },
	{ "anon_inode:[io_uring]", "io_uring rings can't be moved yet", "switch io_uring off in the program" },
	{ "/[aio]", "the ring of asynchronous I/O (io_setup) can't be moved yet",
	  "switch native asynchronous I/O off in the program" },
	{ "anon_inode:", "memory of a kernel object can't be moved", NULL },
	{ "socket:", "a socket's packet ring can't be moved", NULL },
	{ "/dev/", "memory of a device can't be moved", NULL },
	{ "[uprobes]", "uprobes are set in it", "end the tracing of the program" },
};

static void blocker(struct check *c, const struct map *m, enum fault_code code, const char *remedy, const char *reason)
{
	char object[300];
	memory_map_object(m, object, sizeof(object));
	report_add(c->report, REPORT_BLOCKER, code, object, remedy, "%s", reason);
}

static void check_other(struct check *c, const struct map *m)
{
	if (m->flags & MAP_FLAG_HUGETLB) {
		blocker(c, m, FAULT_UNSUPPORTED, unmovable[1].remedy, unmovable[1].reason);
		return;
	}
	for (size_t i = 0; i < ARRAY_LEN(unmovable); i++)
		if (!strncmp(m->path, unmovable[i].prefix, strlen(unmovable[i].prefix))) {
			blocker(c, m, FAULT_UNSUPPORTED, unmovable[i].remedy, unmovable[i].reason);
			return;
		}
	if (m->deleted)
		blocker(c, m, FAULT_UNSUPPORTED,
			"restart the program: it runs with a file that was replaced or removed since it started",
			"the mapped file is deleted");
	else
		blocker(c, m, FAULT_UNSUPPORTED, NULL, "an unknown kind of mapping");
}

static void check_flags(struct check *c, const struct map *m)
{
	static const struct {
		uint32_t flag;
		const char *reason;
	} table[] = {
		{ MAP_FLAG_UFFD, "the program handles its page faults itself (userfaultfd)" },
		{ MAP_FLAG_DROPPABLE, "memory that the kernel may drop (MAP_DROPPABLE) can't be moved yet" },
		{ MAP_FLAG_SHADOWSTACK, "a shadow stack can't be moved yet" },
		{ MAP_FLAG_IO, "memory of a device can't be moved" },
		{ MAP_FLAG_SEALED, "sealed mappings (mseal) can't be moved yet" },
	};
	bool kernels_own = m->kind == MAP_KIND_VDSO || m->kind == MAP_KIND_VVAR || m->kind == MAP_KIND_VSYSCALL;
	for (size_t i = 0; !kernels_own && i < ARRAY_LEN(table); i++)
		if (m->flags & table[i].flag)
			blocker(c, m, FAULT_UNSUPPORTED, NULL, table[i].reason);
}

static Cpr__NeededFile *find_file(const struct check *c, const char *path)
{
	for (size_t i = 0; i < c->n; i++)
		if (!strcmp(c->files[i]->path, path))
			return c->files[i];
	return NULL;
}

/* `link` is a magic link of the process: the very file that is mapped, whatever its name says now. */
static int need_file(struct check *c, const char *link, const char *path, const char *object, bool written,
		     struct fault *f)
{
	size_t k = strlen(c->root);
	const char *own = k > 1 && !strncmp(path, c->root, k) && path[k] == '/' ? path + k : path;
	Cpr__NeededFile *e = find_file(c, own);
	if (e) {
		e->has_digest &= !written;
		return 0;
	}
	struct stat st;
	if (fstatat(c->p->procfd, link, &st, 0) < 0)
		return fault_errno(f, FAULT_SYSTEM, "look at %s of pid %d", path, c->p->pid);
	e = arena_msg(c->a, Cpr__NeededFile, cpr__needed_file);
	e->path = arena_strdup(c->a, own);
	e->size = (uint64_t)st.st_size;
	e->has_mode = true;
	e->mode = st.st_mode;
	e->object = arena_strdup(c->a, object);
	arena_push(c->a, c->n, c->files, e);
	if (!S_ISREG(st.st_mode)) {
		e->has_rdev = true;
		e->rdev = st.st_rdev;
		return 0;
	}
	if (written || e->size > DIGEST_MAX)
		return 0;
	e->has_digest = true; /* files_add_digests reads the file, when the process is not stopped */
	return 0;
}

static int check_file(struct check *c, const struct map *m, struct fault *f)
{
	char link[80];
	struct stat st;
	snprintf(link, sizeof(link), "map_files/%llx-%llx", (unsigned long long)m->start, (unsigned long long)m->end);
	if (fstatat(c->p->procfd, link, &st, 0) < 0)
		return fault_errno(f, FAULT_SYSTEM, "look at the file %s of pid %d", m->path, c->p->pid);
	bool zero = S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 5);
	if (!S_ISREG(st.st_mode) && !zero) {
		blocker(c, m, FAULT_UNSUPPORTED, NULL, "memory of a device can't be moved");
		return 0;
	}
	bool written = m->kind == MAP_KIND_FILE_SHARED && (m->flags & MAP_FLAG_MAYWRITE);
	return need_file(c, link, m->path, "mapping", written, f);
}

static int check_map(struct check *c, const struct map *m, struct fault *f)
{
	if (m->kind == MAP_KIND_OTHER) {
		check_other(c, m);
		return 0;
	}
	check_flags(c, m);
	if (m->kind == MAP_KIND_FILE || m->kind == MAP_KIND_FILE_SHARED)
		return check_file(c, m, f);
	return 0;
}

static int check_exe(struct check *c, struct fault *f)
{
	static const char suffix[] = " (deleted)";
	char path[4096];
	ssize_t n = readlinkat(c->p->procfd, "exe", path, sizeof(path) - 1);
	if (n <= 0)
		return fault_errno(f, FAULT_PROCESS_GONE, "read the link /proc/%d/exe", c->p->pid);
	path[n] = 0;
	if ((size_t)n > sizeof(suffix) && !strcmp(path + n - (sizeof(suffix) - 1), suffix)) {
		report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, path, "restart the program",
			   "the executable was replaced or removed since the program started");
		return 0;
	}
	return need_file(c, "exe", path, "executable", false, f);
}

/* Does text, a maps file, name this object? */
static bool maps_name(const char *text, const struct stat *st)
{
	char key[64];
	snprintf(key, sizeof(key), " %02x:%02x %llu ", major(st->st_dev), minor(st->st_dev),
		 (unsigned long long)st->st_ino);
	return strstr(text, key) != NULL;
}

static bool fds_name(int procdir, const struct stat *want)
{
	int fd = openat(procdir, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	bool found = false;
	if (!d) {
		util_close(&fd);
		return false;
	}
	for (struct dirent *e; !found && (e = readdir(d));) {
		struct stat st;
		found = e->d_name[0] != '.' && fstatat(dirfd(d), e->d_name, &st, 0) == 0 && st.st_dev == want->st_dev &&
			st.st_ino == want->st_ino;
	}
	closedir(d);
	return found;
}

static void check_sharer(struct check *c, const struct shobj_list *objects, pid_t pid)
{
	char dir[32];
	snprintf(dir, sizeof(dir), "/proc/%d", pid);
	auto_fd procdir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	auto_free char *text = procdir >= 0 ? util_read_file(procdir, "maps", NULL) : NULL;
	if (!text || !*text)
		return;
	for (size_t i = 0; i < objects->n; i++) {
		const struct shobj *o = &objects->v[i];
		if (!maps_name(text, &o->st) && !(o->memfd && fds_name(procdir, &o->st)))
			continue;
		char object[300];
		snprintf(object, sizeof(object), "shared memory %s", o->name ? o->name : "(anonymous)");
		report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   "move a process that shares its memory with no other, or end the other one",
			   "process %d uses it, too, and would stay behind", pid);
	}
}

/* Others that have the same shared memory: what they store would be lost. */
static int check_sharers(struct check *c, const struct maps *maps, uint64_t *bytes, struct fault *f)
{
	struct shobj_list objects = { 0 };
	int r = 0;
	for (size_t i = 0; r == 0 && i < maps->n; i++) {
		size_t index;
		if (memory_kind_object(maps->v[i].kind) || maps->v[i].kind == MAP_KIND_MEMFD_PRIVATE)
			r = shobj_of_map(&objects, c->p, &maps->v[i], &index, f);
	}
	if (r == 0)
		r = shobj_scan_fds(&objects, c->p, f);
	for (size_t i = 0; i < objects.n; i++) {
		*bytes += shobj_bytes(&objects.v[i]);
		if (objects.v[i].st.st_blksize > (blksize_t)PAGE_BYTES)
			report_add(c->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, "memfd in huge pages",
				   unmovable[1].remedy, "%s", unmovable[1].reason);
	}
	DIR *d = r == 0 && objects.n ? opendir("/proc") : NULL;
	for (struct dirent *e; d && (e = readdir(d));) {
		uint64_t pid;
		if (util_parse_u64(e->d_name, INT32_MAX, &pid) && (pid_t)pid != c->p->pid && (pid_t)pid != getpid())
			check_sharer(c, &objects, (pid_t)pid);
	}
	if (d)
		closedir(d);
	shobj_list_free(&objects);
	return r;
}

static uint64_t status_bytes(const char *text, const char *key)
{
	const char *line = text ? strstr(text, key) : NULL;
	return line ? strtoull(line + strlen(key), NULL, 10) * 1024 : 0;
}

int memory_check(struct process *p, struct report *report, struct arena *a, Cpr__NeededFile ***files, size_t *n_files,
		 uint64_t *resident_bytes, struct fault *f)
{
	struct check c = { .p = p, .report = report, .a = a };
	struct maps maps;
	uint64_t shared = 0;
	ssize_t n = readlinkat(p->procfd, "root", c.root, sizeof(c.root) - 1);
	c.root[n > 1 ? n : 0] = 0;
	if (maps_read(p, true, &maps, f) < 0)
		return -1;
	int r = 0;
	for (size_t i = 0; r == 0 && i < maps.n; i++)
		r = check_map(&c, &maps.v[i], f);
	if (r == 0)
		r = check_exe(&c, f);
	if (r == 0)
		r = check_sharers(&c, &maps, &shared, f);
	maps_free(&maps);
	if (r < 0)
		return fault_while(f, "checking the memory of pid %d (%s)", p->pid, p->comm);
	auto_free char *status = util_read_file(p->procfd, "status", NULL);
	*resident_bytes = status_bytes(status, "RssAnon:") + status_bytes(status, "VmSwap:") + shared;
	*files = c.files;
	*n_files = c.n;
	return 0;
}
