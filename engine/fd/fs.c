/*
 * Working directory, root and umask. In the helper, whose they are shared with the vessel (CLONE_FS), and last: paths
 * of descriptors are those of this host, outside of the process's own root.
 */
#include "fdtab.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* NULL with errno. */
static char *where(struct process *p, struct arena *a, const char *link, struct stat *st)
{
	char path[PATH_MAX];
	ssize_t n = readlinkat(p->procfd, link, path, sizeof(path) - 1);
	if (n < 0 || fstatat(p->procfd, link, st, 0) < 0)
		return NULL;
	path[n] = 0;
	return arena_strdup(a, path);
}

static int check_dir(struct process *p, const char *link, const char *object, struct report *report,
		     struct fd_needs *needs, struct fault *f)
{
	struct stat st, here;
	char *path = where(p, needs->a, link, &st);
	if (!path)
		return fault_errno(f, process_alive(p) ? FAULT_SYSTEM : FAULT_PROCESS_GONE, "read /proc/%d/%s",
				   (int)p->pid, link);
	if (stat(path, &here) < 0 || here.st_dev != st.st_dev || here.st_ino != st.st_ino) {
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object, "start the program in another directory",
			   "%.300s: it is not, or no longer, at this path", path);
		return 0;
	}
	Cpr__NeededFile file = CPR__NEEDED_FILE__INIT;
	file.path = path;
	file.has_mode = true;
	file.mode = st.st_mode;
	file.object = (char *)object;
	fd_need_file(needs, &file);
	return 0;
}

int fs_check(struct process *p, struct report *report, struct fd_needs *needs, struct fault *f)
{
	if (check_dir(p, "root", "root directory", report, needs, f) < 0)
		return -1;
	return check_dir(p, "cwd", "working directory", report, needs, f);
}

static int save_dir(struct fd_save *s, const char *link, uint32_t *id, struct fault *f)
{
	struct stat st, here;
	char *path = where(s->p, filetab_arena(s->files), link, &st);
	if (!path)
		return fault_errno(f, FAULT_SYSTEM, "read /proc/%d/%s", (int)s->p->pid, link);
	if (stat(path, &here) < 0 || here.st_dev != st.st_dev || here.st_ino != st.st_ino)
		return fault_set(f, FAULT_UNSUPPORTED, "%s of the process is not at %s any more", link, path);
	*id = filetab_path(s->files, path, O_RDONLY | O_DIRECTORY, &st);
	return 0;
}

int fs_save(struct fd_save *s, struct fault *f)
{
	FsEntry *e = arena_msg(image_arena(s->img), FsEntry, fs_entry);
	auto_free char *status = util_read_file(s->p->procfd, "status", NULL);
	const char *mask = status ? fdinfo_value(status, "Umask") : NULL;
	if (!mask)
		return fault_set(f, FAULT_KERNEL, "/proc/%d/status has no umask", (int)s->p->pid);
	e->has_umask = true;
	e->umask = (uint32_t)strtoul(mask, NULL, 8);
	if (save_dir(s, "root", &e->root_id, f) < 0 || save_dir(s, "cwd", &e->cwd_id, f) < 0)
		return -1;
	return image_put(s->img, IMAGE_FS, (uint32_t)s->p->pid, e, NULL, 0, f);
}

static const char *path_of(const struct fd_restore *s, uint32_t id, const char *what, struct fault *f)
{
	const FileEntry *e = filetab_find(s->files, id);
	if (e && e->type == FD_TYPES__REG && e->reg)
		return e->reg->name;
	fault_set(f, FAULT_IMAGE, "the %s is file %u, which is not in the state", what, id);
	return NULL;
}

/* Both by descriptor: after chroot the working directory's path may mean another. */
int fs_restore(struct fd_restore *s, struct fault *f)
{
	const FsEntry *e = image_get(s->img, IMAGE_FS, (uint32_t)s->pid);
	if (!e)
		return fault_set(f, FAULT_IMAGE, "the state has no working directory");
	const char *root = path_of(s, e->root_id, "root directory", f);
	const char *cwd = path_of(s, e->cwd_id, "working directory", f);
	if (!root || !cwd)
		return -1;
	auto_fd dir = open(cwd, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return fault_errno(f, FAULT_FILE_MISSING, "working directory %s", cwd);
	if (strcmp(root, "/") && chroot(root) < 0)
		return fault_errno(f, FAULT_FILE_MISSING, "change the root to %s", root);
	if (fchdir(dir) < 0)
		return fault_errno(f, FAULT_FILE_MISSING, "change to %s", cwd);
	if (e->has_umask)
		umask((mode_t)e->umask);
	return 0;
}
