/*
 * Character devices that are the same everywhere: null, zero, full, random, urandom. All others are blockers, first of
 * them terminals. A descriptor of /dev/null that is called otherwise here (a jail's dev/null that is gone by now) is
 * restored from the usual name.
 */
#include "fdtab.h"

#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static const struct {
	unsigned minor;
	const char *path;
} simple[] = {
	{ 3, "/dev/null" }, { 5, "/dev/zero" }, { 7, "/dev/full" }, { 8, "/dev/random" }, { 9, "/dev/urandom" },
};

static bool claims(const struct fd_info *i)
{
	return S_ISCHR(i->st.st_mode) && !(i->flags & O_PATH);
}

static const char *usual_name(dev_t rdev)
{
	for (size_t k = 0; k < ARRAY_LEN(simple); k++)
		if (rdev == makedev(1, simple[k].minor))
			return simple[k].path;
	return NULL;
}

static const char *name_of(const struct fd_info *i)
{
	struct stat st;
	if (stat(i->link, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == i->st.st_rdev)
		return i->link;
	return usual_name(i->st.st_rdev);
}

static const struct {
	unsigned major, minor_from, minor_to;
	const char *what, *reason, *remedy;
} refused[] = {
	{ 10, 229, 229, "FUSE device", "the file system behind it is mounted on this host", NULL },
	{ 10, 200, 200, "TUN/TAP device", "network devices of this host can't be moved yet", NULL },
	{ 10, 232, 232, "KVM device", "a virtual machine can't be moved this way",
	  "use the migration of the virtual machine monitor" },
	{ 10, 0, 1023, "device", "devices of this host can't be moved", NULL },
	{ 226, 0, 255, "graphics device", "devices of this host can't be moved", NULL },
	{ 116, 0, 255, "sound device", "devices of this host can't be moved", NULL },
	{ 13, 0, 1023, "input device", "devices of this host can't be moved", NULL },
};

static bool is_terminal(dev_t rdev)
{
	unsigned m = major(rdev);
	return m == 4 || m == 5 || (m >= 136 && m <= 143) || m == 2 || m == 3;
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	char object[FD_OBJECT_LEN];
	(void)p;
	(void)f;
	if (usual_name(i->st.st_rdev)) {
		Cpr__NeededFile file = CPR__NEEDED_FILE__INIT;
		file.path = (char *)name_of(i);
		file.has_mode = file.has_rdev = true;
		file.mode = i->st.st_mode;
		file.rdev = i->st.st_rdev;
		file.object = (char *)fd_object(object, i->fd, "device");
		fd_need_file(needs, &file);
		return 0;
	}
	if (is_terminal(i->st.st_rdev)) {
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, "terminal"),
			   "start the program with setsid and its input and output redirected to files",
			   "%.300s stays with whoever sits at it", i->link);
		return 0;
	}
	for (size_t k = 0; k < ARRAY_LEN(refused); k++)
		if (major(i->st.st_rdev) == refused[k].major && minor(i->st.st_rdev) >= refused[k].minor_from &&
		    minor(i->st.st_rdev) <= refused[k].minor_to) {
			report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, refused[k].what),
				   refused[k].remedy, "%.300s: %s", i->link, refused[k].reason);
			return 0;
		}
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, "device"), NULL,
		   "%.300s (%u:%u): devices of this host can't be moved", i->link, major(i->st.st_rdev),
		   minor(i->st.st_rdev));
	return 0;
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	(void)f;
	e->reg = reg_entry(s, i, e->id);
	e->reg->name = arena_strdup(filetab_arena(s->files), name_of(i));
	e->reg->has_rdev = true;
	e->reg->rdev = i->st.st_rdev;
	return 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	if (!e->reg->has_rdev || !usual_name(e->reg->rdev))
		return fault_set(f, FAULT_IMAGE, "%s is not a device that can be restored", e->reg->name);
	int fd = filetab_open(e->reg, s->rootfd, f);
	return fd < 0 ? -1 : fd_place(fd, min_fd, f);
}

const struct fd_kind fd_chardev_kind = {
	.name = "device",
	.type = FD_TYPES__REG,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
};
