/*
 * Regular files and directories, and whatever is open with O_PATH: by path, with flags and position.
 *
 * The file itself does not move. It has to be at its path when the descriptor is saved, and at the same path on the
 * destination. What has no such path (deleted, O_TMPFILE, hidden under a mount), and what is not a file but a view of
 * this host (procfs, sysfs, control groups), is a blocker.
 */
#include "fdtab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MQUEUE_MAGIC 0x19800202
#define DELETED	     " (deleted)"
/* Of larger files that are only read the size is compared, not the content. */
#define DIGEST_MAX ((uint64_t)64 << 20)

static bool claims(const struct fd_info *i)
{
	if (i->link[0] != '/')
		return false;
	if (i->flags & O_PATH)
		return true;
	if (!S_ISREG(i->st.st_mode) && !S_ISDIR(i->st.st_mode))
		return false;
	return strncmp(i->link, "/secretmem", 10) && strncmp(i->link, "/anon_hugepage", 14) &&
	       strncmp(i->link, "/memfd:", 7) && strncmp(i->link, "/dmabuf:", 8);
}

static const char *what(const struct fd_info *i)
{
	return i->flags & O_PATH ? "path" : S_ISDIR(i->st.st_mode) ? "directory" : "file";
}

static void block(const struct fd_info *i, struct report *report, const char *remedy, const char *reason)
{
	char object[FD_OBJECT_LEN];
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, what(i)), remedy, "%.300s %s",
		   i->link, reason);
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t len = strlen(s), tail = strlen(suffix);
	return len > tail && !strcmp(s + len - tail, suffix);
}

bool reg_reachable(const struct fd_info *i, const char *name, struct report *report)
{
	struct stat st;
	char object[FD_OBJECT_LEN];
	int nofollow = i->flags & (O_PATH | O_NOFOLLOW) ? AT_SYMLINK_NOFOLLOW : 0;
	bool found = fstatat(AT_FDCWD, i->link, &st, nofollow) == 0;
	if (found && st.st_dev == i->st.st_dev && st.st_ino == i->st.st_ino)
		return true;
	fd_object(object, i->fd, name);
	if (!found && has_suffix(i->link, DELETED)) {
		char *was = strndupa(i->link, strlen(i->link) - strlen(DELETED));
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   "let the program close or reopen it (log rotation: send it its reload signal)",
			   "%.300s: the file has no name any more%s, its content exists on this host only", was,
			   access(was, F_OK) == 0 ? " (another file is at this path now)" : "");
		return false;
	}
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
		   "move what is at that path out of the way, or let the program reopen the file", "%.300s: %s",
		   i->link, found ? "another file is at this path now" : "the file can't be reached by this path");
	return false;
}

bool reg_unlocked(const struct fd_info *i, struct report *report)
{
	const char *lock = fdinfo_value(i->fdinfo, "lock");
	if (!lock)
		return true;
	char object[FD_OBJECT_LEN], kind[16] = "";
	sscanf(lock, "%*s %15s", kind);
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, what(i)),
		   "let the program release it, or run it without the lock (a PID file, for instance)",
		   "%.300s: a %s lock is held on it, and locks can't be moved yet", i->link, kind);
	return false;
}

/* Files of procfs and sysfs that say the same kind of thing on every host, or about the process itself. */
static bool host_view_allowed(const struct fd_info *i, pid_t pid)
{
	static const char *const same[] = {
		"/proc/meminfo",    "/proc/stat",      "/proc/loadavg",	    "/proc/uptime",
		"/proc/cpuinfo",    "/proc/version",   "/proc/vmstat",	    "/proc/swaps",
		"/proc/partitions", "/proc/diskstats", "/proc/filesystems",
	};
	static const char *const own[] = { "stat", "statm", "status", "io", "schedstat", "limits", "comm" };
	static const char *const below[] = { "/sys/devices/system/cpu/", "/sys/devices/system/node/",
					     "/sys/kernel/mm/transparent_hugepage/", "/proc/sys/" };
	if ((i->flags & O_ACCMODE) != O_RDONLY || !S_ISREG(i->st.st_mode))
		return false;
	for (size_t k = 0; k < ARRAY_LEN(same); k++)
		if (!strcmp(i->link, same[k]))
			return true;
	for (size_t k = 0; k < ARRAY_LEN(below); k++)
		if (!strncmp(i->link, below[k], strlen(below[k])))
			return true;
	for (size_t k = 0; k < ARRAY_LEN(own); k++) {
		char path[64];
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, own[k]);
		if (!strcmp(i->link, path))
			return true;
	}
	return false;
}

/* NULL: an ordinary file system. */
static const char *view_of_host(long magic)
{
	switch ((unsigned long)magic) {
	case PROC_SUPER_MAGIC:
		return "names a process or a state of this host's kernel";
	case SYSFS_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
	case SELINUX_MAGIC:
	case EFIVARFS_MAGIC:
	case PSTOREFS_MAGIC:
	case BINFMTFS_MAGIC:
		return "is a view of this host's kernel or devices";
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
		return "names a control group of this host";
	case BPF_FS_MAGIC:
		return "is a BPF object of this host's kernel";
	case NSFS_MAGIC:
		return "names a namespace of this host";
	case MQUEUE_MAGIC:
		return "is a POSIX message queue, whose messages can't be moved yet";
	case HUGETLBFS_MAGIC:
		return "is on hugetlbfs, which can't be moved yet";
	case DEVPTS_SUPER_MAGIC:
		return "is a terminal of this host";
	default:
		return NULL;
	}
}

/* Where in its directory a descriptor is. The position is a number that only this file system understands: its
 * beginning and its end can be said otherwise. Read through a descriptor of our own. */
enum dir_place { DIR_START, DIR_MIDDLE, DIR_END };

static bool dir_exhausted(int fd)
{
	char buf[1024];
	return getdents64(fd, buf, sizeof(buf)) == 0;
}

static enum dir_place dir_place(const struct fd_info *i)
{
	char self[40];
	if (i->pos == 0)
		return DIR_START;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", i->dup);
	auto_fd own = open(self, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (own < 0 || lseek(own, (off_t)i->pos, SEEK_SET) < 0)
		return DIR_MIDDLE;
	return dir_exhausted(own) ? DIR_END : DIR_MIDDLE;
}

void fd_need_file(struct fd_needs *needs, const Cpr__NeededFile *file)
{
	for (size_t k = 0; k < needs->n_files; k++) {
		Cpr__NeededFile *had = needs->files[k];
		if (strcmp(had->path, file->path))
			continue;
		had->has_digest |= file->has_digest;
		had->has_size_may_grow = had->size_may_grow = had->size_may_grow || file->size_may_grow;
		had->has_append_only = had->append_only = had->append_only && file->append_only;
		if (had->size_may_grow)
			had->has_digest = false;
		return;
	}
	Cpr__NeededFile *copy = arena_memdup(needs->a, file, sizeof(*file));
	copy->path = arena_strdup(needs->a, file->path);
	copy->object = arena_strdup(needs->a, file->object);
	arena_push(needs->a, needs->n_files, needs->files, copy);
}

static void need(const struct fd_info *i, struct fd_needs *needs)
{
	char object[FD_OBJECT_LEN];
	Cpr__NeededFile file = CPR__NEEDED_FILE__INIT;
	bool regular = S_ISREG(i->st.st_mode) && !(i->flags & O_PATH);
	bool writes = (i->flags & O_ACCMODE) != O_RDONLY;
	file.path = i->link;
	file.size = regular ? (uint64_t)i->st.st_size : 0;
	file.has_mode = true;
	file.mode = i->st.st_mode;
	file.object = (char *)fd_object(object, i->fd, what(i));
	/* The program goes on between vetting and the freeze: what it writes to makes its file longer. */
	file.has_size_may_grow = file.size_may_grow = !regular || writes;
	file.has_append_only = file.append_only =
		regular && (i->flags & O_APPEND) && (i->flags & O_ACCMODE) == O_WRONLY;
	/* Wanted, but not computed while the process waits: files_add_digests() */
	file.has_digest = regular && !writes && i->st.st_size > 0 && (uint64_t)i->st.st_size <= DIGEST_MAX;
	fd_need_file(needs, &file);
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	struct statfs fs;
	if (fstatfs(i->dup, &fs) < 0)
		return fault_errno(f, FAULT_SYSTEM, "statfs of fd %d (%s)", i->fd, i->link);
	const char *view = view_of_host(fs.f_type);
	if (view && host_view_allowed(i, p->pid))
		return 0;
	if (view) {
		block(i, report, NULL, view);
		return 0;
	}
	if (!reg_reachable(i, what(i), report) || !reg_unlocked(i, report))
		return 0;
	if (S_ISDIR(i->st.st_mode) && !(i->flags & O_PATH) && dir_place(i) == DIR_MIDDLE)
		block(i, report, "try again in a moment", "is being read and only half-way through");
	need(i, needs);
	return 0;
}

RegFileEntry *reg_entry(const struct fd_save *s, const struct fd_info *i, uint32_t id)
{
	struct arena *a = filetab_arena(s->files);
	RegFileEntry *reg = arena_msg(a, RegFileEntry, reg_file_entry);
	reg->id = id;
	reg->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	reg->pos = i->pos;
	reg->fown = fd_fown_save(s, i);
	reg->name = arena_strdup(a, i->link);
	reg->has_mode = true;
	reg->mode = i->st.st_mode;
	return reg;
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	struct statfs fs;
	RegFileEntry *reg = e->reg = reg_entry(s, i, e->id);
	if (fstatfs(i->dup, &fs) < 0)
		return fault_errno(f, FAULT_SYSTEM, "statfs");
	if (S_ISREG(i->st.st_mode) && !view_of_host(fs.f_type)) {
		reg->has_size = reg->has_mtime_ns = true;
		reg->size = (uint64_t)i->st.st_size;
		reg->mtime_ns = (uint64_t)i->st.st_mtim.tv_sec * 1000000000u + (uint64_t)i->st.st_mtim.tv_nsec;
	}
	if (S_ISDIR(i->st.st_mode) && !(i->flags & O_PATH))
		reg->has_at_end = reg->at_end = dir_place(i) == DIR_END;
	return 0;
}

static int seek(const RegFileEntry *reg, int fd, struct fault *f)
{
	if (reg->flags & O_PATH)
		return 0;
	if (S_ISDIR(reg->mode)) {
		while (reg->at_end && !dir_exhausted(fd))
			;
		return 0;
	}
	if (reg->pos && lseek(fd, (off_t)reg->pos, SEEK_SET) != (off_t)reg->pos)
		return fault_errno(f, FAULT_FILE_DIFFERS, "go to position %llu of %s", (unsigned long long)reg->pos,
				   reg->name);
	return 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	auto_fd fd = filetab_open(e->reg, s->rootfd, f);
	if (fd < 0 || seek(e->reg, fd, f) < 0)
		return -1;
	return fd_place(take_fd(&fd), min_fd, f);
}

const struct fd_kind fd_reg_kind = {
	.name = "file",
	.type = FD_TYPES__REG,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
};
