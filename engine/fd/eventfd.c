/*
 * eventfd(2): counter and EFD_SEMAPHORE from fdinfo (the latter since 6.5).
 */
#include "fdtab.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static bool claims(const struct fd_info *i)
{
	return !strcmp(i->link, "anon_inode:[eventfd]");
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	char object[FD_OBJECT_LEN];
	(void)p;
	(void)needs;
	(void)f;
	if (!fdinfo_value(i->fdinfo, "eventfd-semaphore"))
		report_add(report, REPORT_LOSS, FAULT_KERNEL, fd_object(object, i->fd, "eventfd"),
			   "a kernel from 6.5 on tells it",
			   "this kernel does not tell whether it is a semaphore: "
			   "it is taken for an ordinary one");
	return 0;
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	const char *count = fdinfo_value(i->fdinfo, "eventfd-count");
	const char *semaphore = fdinfo_value(i->fdinfo, "eventfd-semaphore");
	if (!count)
		return fault_set(f, FAULT_KERNEL, "fdinfo of an eventfd has no eventfd-count");
	e->efd = arena_msg(filetab_arena(s->files), EventfdFileEntry, eventfd_file_entry);
	e->efd->id = e->id;
	e->efd->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	e->efd->fown = fd_fown_save(s, i);
	e->efd->counter = strtoull(count, NULL, 16);
	e->efd->has_semaphore = semaphore != NULL;
	e->efd->semaphore = semaphore && *semaphore == '1';
	return 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	(void)s;
	const EventfdFileEntry *v = e->efd;
	int flags = EFD_CLOEXEC | (v->flags & O_NONBLOCK ? EFD_NONBLOCK : 0) | (v->semaphore ? EFD_SEMAPHORE : 0);
	auto_fd fd = eventfd(0, flags);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make an eventfd");
	if (v->counter == UINT64_MAX)
		return fault_set(f, FAULT_IMAGE, "an eventfd can't count so far");
	if (v->counter && write(fd, &v->counter, sizeof(v->counter)) != sizeof(v->counter))
		return fault_errno(f, FAULT_SYSTEM, "set an eventfd to %llu", (unsigned long long)v->counter);
	return fd_place(take_fd(&fd), min_fd, f);
}

const struct fd_kind fd_eventfd_kind = {
	.name = "eventfd",
	.type = FD_TYPES__EVENTFD,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
};
