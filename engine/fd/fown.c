/*
 * Owner and signal of a descriptor: F_SETOWN, F_SETSIG, O_ASYNC.
 *
 * The kernel checks later, when it sends, with the uids that the caller of F_SETOWN had: so they are put on in the
 * helper for the call, by raw syscalls (libc's would change every thread of the worker, whose memory we share).
 */
#include "fdtab.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

static bool moves(struct process *p, int type, pid_t owner)
{
	if (type == F_OWNER_TID)
		return process_task(p, owner) != NULL;
	return owner == p->pid; /* a group only when the process leads it */
}

static int read_owner(const struct fd_info *i, struct f_owner_ex *o, int *signum)
{
	*o = (struct f_owner_ex){ 0 };
	*signum = 0;
	if (i->flags & O_PATH)
		return -1;
	if (fcntl(i->dup, F_GETOWN_EX, o) < 0)
		return -1;
	*signum = fcntl(i->dup, F_GETSIG);
	if (*signum < 0)
		*signum = 0;
	return 0;
}

void fown_check(struct process *p, const struct fd_info *i, struct report *report)
{
	struct f_owner_ex o;
	int signum;
	if (read_owner(i, &o, &signum) < 0 || o.pid == 0 || moves(p, (int)o.type, o.pid))
		return;
	char object[FD_OBJECT_LEN];
	report_add(report, REPORT_LOSS, FAULT_UNSUPPORTED, fd_object(object, i->fd, "SIGIO"), NULL,
		   "its signals go to %d, which stays here: nobody gets them after the move", (int)o.pid);
}

FownEntry *fd_fown_save(const struct fd_save *s, const struct fd_info *i)
{
	FownEntry *e = arena_msg(filetab_arena(s->files), FownEntry, fown_entry);
	struct f_owner_ex o;
	int signum;
	uid_t uids[2];
	if (read_owner(i, &o, &signum) < 0)
		return e;
	e->signum = (uint32_t)signum;
	if (o.pid == 0)
		return e;
	if (!moves(s->p, (int)o.type, o.pid)) {
		if (s->report)
			fown_check(s->p, i, s->report);
		return e;
	}
	e->pid_type = (uint32_t)o.type;
	e->pid = (uint32_t)o.pid;
	if (fcntl(i->dup, F_GETOWNER_UIDS, uids) == 0) {
		e->uid = uids[0];
		e->euid = uids[1];
	}
	return e;
}

static const FownEntry *entry_fown(const FileEntry *e, const struct filetab *files, uint32_t *flags)
{
	if (e->type == FD_TYPES__FIFO && e->fifo) {
		const FileEntry *named = filetab_find(files, e->fifo->regf_id);
		e = named ? named : e;
	}
#define HAS(type_, member)                               \
	if (e->type == FD_TYPES__##type_ && e->member) { \
		*flags = e->member->flags;               \
		return e->member->fown;                  \
	}
	HAS(REG, reg)
	HAS(PIPE, pipe)
	HAS(INETSK, isk)
	HAS(EVENTFD, efd)
	HAS(EVENTPOLL, epfd)
	HAS(SIGNALFD, sgfd)
	HAS(TIMERFD, tfd)
	HAS(MEMFD, memfd)
#undef HAS
	return NULL;
}

static int set_owner_as(const FownEntry *e, int fd, struct fault *f)
{
	struct f_owner_ex o = { .type = (int)e->pid_type, .pid = (pid_t)e->pid };
	int dumpable = prctl(PR_GET_DUMPABLE); /* cleared by a change of uid, for the memory we share */
	bool other = e->uid != 0 || e->euid != 0;
	if (other && syscall(SYS_setresuid, e->uid, e->euid, -1) < 0)
		return fault_errno(f, FAULT_SYSTEM, "take uid %u for F_SETOWN", e->uid);
	int r = fcntl(fd, F_SETOWN_EX, &o), saved = errno;
	if (other && syscall(SYS_setresuid, 0, 0, -1) < 0)
		return fault_errno(f, FAULT_SYSTEM, "become root again");
	if (other && dumpable == 1)
		prctl(PR_SET_DUMPABLE, 1);
	errno = saved;
	return r < 0 ? fault_errno(f, FAULT_SYSTEM, "F_SETOWN of %u", e->pid) : 0;
}

int fown_restore(const FileEntry *e, const struct filetab *files, int fd, struct fault *f)
{
	uint32_t flags = 0;
	const FownEntry *own = entry_fown(e, files, &flags);
	if (!own || (flags & O_PATH))
		return 0;
	if (own->pid && set_owner_as(own, fd, f) < 0)
		return -1;
	if (own->signum && fcntl(fd, F_SETSIG, (int)own->signum) < 0)
		return fault_errno(f, FAULT_SYSTEM, "F_SETSIG %u", own->signum);
	if ((flags & O_ASYNC) && fd_set_flags(fd, flags, f) < 0)
		return -1;
	return 0;
}
