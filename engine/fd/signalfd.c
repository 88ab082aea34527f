/*
 * signalfd(2): its mask. The signals themselves are the process's own (signals.c).
 */
#include "fdtab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool claims(const struct fd_info *i)
{
	return !strcmp(i->link, "anon_inode:[signalfd]");
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	const char *mask = fdinfo_value(i->fdinfo, "sigmask");
	if (!mask)
		return fault_set(f, FAULT_KERNEL, "fdinfo of a signalfd has no sigmask");
	e->sgfd = arena_msg(filetab_arena(s->files), SignalfdEntry, signalfd_entry);
	e->sgfd->id = e->id;
	e->sgfd->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	e->sgfd->fown = fd_fown_save(s, i);
	e->sgfd->sigmask = strtoull(mask, NULL, 16);
	return 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	(void)s;
	uint64_t mask = e->sgfd->sigmask; /* the kernel's, not libc's larger one */
	int flags = SFD_CLOEXEC | (e->sgfd->flags & O_NONBLOCK ? SFD_NONBLOCK : 0);
	int fd = (int)syscall(SYS_signalfd4, -1, &mask, sizeof(mask), flags);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a signalfd");
	return fd_place(fd, min_fd, f);
}

const struct fd_kind fd_signalfd_kind = {
	.name = "signalfd",
	.type = FD_TYPES__SIGNALFD,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.save = save,
	.restore = restore,
};
