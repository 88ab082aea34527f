/*
 * epoll(7): what it watches, from fdinfo.
 *
 * An entry is (file, descriptor number at the time it was added). The number may be closed or reused by now while the
 * file lives on under another one: which file it is, is asked of kcmp(2). Restored in finish(), when every
 * descriptor has its final number: in the helper these are the process's own numbers, so plain epoll_ctl(2) makes the
 * same keys; for the closed ones the file is put at the old number for a moment.
 *
 * An EPOLLONESHOT entry that has fired is silent until the program arms it. epoll_ctl always adds EPOLLERR|EPOLLHUP, so
 * it is added armed and made to fire here, before the others are there (a file that is neither readable nor writable
 * does not fire: that one could still report an error or hang-up once, as after a spurious wake-up).
 * Edge-triggered entries report once what is ready now: an event that the program had not fetched is not lost.
 */
#include "fdtab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* EPOLL_PRIVATE of the kernel: what is left of a one-shot entry that has fired. */
#define PRIVATE_BITS (EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE)

struct busy_poll { /* struct epoll_params, since 6.9 */
	uint32_t usecs;
	uint16_t budget;
	uint8_t prefer, pad;
};
#define EPIOCGPARAMS_ _IOR(0x8a, 0x02, struct busy_poll)

static bool claims(const struct fd_info *i)
{
	return !strcmp(i->link, "anon_inode:[eventpoll]");
}

struct target {
	int tfd;
	uint32_t events;
	uint64_t data;
	int64_t pos;
	uint64_t ino;
	uint32_t dev;
	uint32_t nth;
};

/* The next "tfd:" line, or false. */
static bool next_target(const char **text, struct target *t)
{
	const char *line = fdinfo_value(*text, "tfd");
	unsigned long long data, ino;
	long long pos;
	unsigned dev;
	if (!line || sscanf(line, "%d events: %x data: %llx pos:%lld ino:%llx sdev:%x", &t->tfd, &t->events, &data,
			    &pos, &ino, &dev) != 6)
		return false;
	t->data = data;
	t->pos = pos;
	t->ino = ino;
	t->dev = dev;
	*text = strchr(line, '\n');
	if (*text)
		(*text)++;
	return true;
}

static bool is_target(pid_t pid, int epfd, const struct target *t, int fd)
{
	struct kcmp_epoll_slot slot = { .efd = (uint32_t)epfd, .tfd = (uint32_t)t->tfd, .toff = t->nth };
	return syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, (unsigned long)fd, &slot) == 0;
}

/* A socket has one open file description only: its inode says it all. This spares kcmp, which walks the whole epoll
 * instance for each question, for what there are thousands of. */
static bool is_that_socket(struct process *p, const struct target *t)
{
	char path[32];
	struct stat st;
	snprintf(path, sizeof(path), "fd/%d", t->tfd);
	return fstatat(p->procfd, path, &st, 0) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == t->ino &&
	       (major(st.st_dev) << 20 | minor(st.st_dev)) == t->dev;
}

/* How many entries with this number come before it: kcmp counts them in the order of fdinfo. */
static void count_same(struct target *t, const EventpollFileEntry *e)
{
	t->nth = 0;
	for (size_t k = 0; k < e->n_tfd; k++)
		t->nth += e->tfd[k]->tfd == (uint32_t)t->tfd;
}

/* Any descriptor of the process that has the file, the old number first. -1: none. */
static int find_target(struct process *p, int epfd, struct target *t, const EventpollFileEntry *before)
{
	if (is_that_socket(p, t))
		return t->tfd;
	count_same(t, before);
	if (is_target(p->pid, epfd, t, t->tfd))
		return t->tfd;
	int dirfd = openat(p->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = -1;
	DIR *d = dirfd < 0 ? NULL : fdopendir(dirfd);
	if (!d) {
		util_close(&dirfd);
		return -1;
	}
	for (struct dirent *e; found < 0 && (e = readdir(d));)
		if (e->d_name[0] >= '0' && e->d_name[0] <= '9' && is_target(p->pid, epfd, t, atoi(e->d_name)))
			found = atoi(e->d_name);
	closedir(d);
	return found;
}

static int read_targets(struct process *p, const struct fd_info *i, struct arena *a, EventpollFileEntry *e,
			const char **missing, struct fault *f)
{
	const char *text = i->fdinfo;
	struct target t;
	*missing = NULL;
	while (text && next_target(&text, &t)) {
		EventpollTfdEntry *entry = arena_msg(a, EventpollTfdEntry, eventpoll_tfd_entry);
		int at = find_target(p, i->fd, &t, e);
		entry->id = e->id;
		entry->tfd = (uint32_t)t.tfd;
		entry->events = t.events;
		entry->data = t.data;
		entry->has_dev = entry->has_inode = entry->has_pos = true;
		entry->dev = t.dev;
		entry->inode = t.ino;
		entry->pos = (uint64_t)t.pos;
		entry->has_target_fd = at != t.tfd;
		entry->target_fd = (uint32_t)at;
		arena_push(a, e->n_tfd, e->tfd, entry);
		if (at < 0)
			*missing = arena_printf(a, "what it watches as %d is closed, and open only elsewhere", t.tfd);
	}
	if (text && fdinfo_value(text, "tfd"))
		return fault_set(f, FAULT_KERNEL, "fdinfo of an epoll instance has a line that can't be read");
	return 0;
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	EventpollFileEntry e = EVENTPOLL_FILE_ENTRY__INIT;
	struct busy_poll busy = { 0 };
	char object[FD_OBJECT_LEN];
	const char *missing;
	fd_object(object, i->fd, "epoll instance");
	if (read_targets(p, i, needs->a, &e, &missing, f) < 0)
		return -1;
	if (missing)
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   "end the child process that still has it open", "%s", missing);
	if (ioctl(i->dup, EPIOCGPARAMS_, &busy) == 0 && (busy.usecs || busy.budget || busy.prefer))
		report_add(report, REPORT_LOSS, FAULT_UNSUPPORTED, object, NULL,
			   "its busy-polling parameters are not moved");
	return 0;
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	struct arena *a = filetab_arena(s->files);
	const char *missing;
	e->epfd = arena_msg(a, EventpollFileEntry, eventpoll_file_entry);
	e->epfd->id = e->id;
	e->epfd->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	e->epfd->fown = fd_fown_save(s, i);
	if (read_targets(s->p, i, a, e->epfd, &missing, f) < 0)
		return -1;
	return missing ? fault_set(f, FAULT_UNSUPPORTED, "%s", missing) : 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	(void)s;
	int fd = epoll_create1(EPOLL_CLOEXEC);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make an epoll instance");
	fd = fd_place(fd, min_fd, f);
	if (fd >= 0 && fd_set_flags(fd, e->epfd->flags, f) < 0)
		util_close(&fd);
	return fd;
}

static bool fired(const EventpollTfdEntry *t)
{
	return (t->events & EPOLLONESHOT) && !(t->events & ~(uint32_t)PRIVATE_BITS);
}

static int control(int epfd, int op, const EventpollTfdEntry *t, uint32_t events, struct fault *f)
{
	struct epoll_event ev = { .events = events, .data.u64 = t->data };
	if (epoll_ctl(epfd, op, (int)t->tfd, &ev) < 0)
		return fault_errno(f, FAULT_SYSTEM, "watch descriptor %u with events 0x%x", t->tfd, events);
	return 0;
}

/* The file of target_fd at number tfd for the call; what is at that number now keeps its open file description
 * meanwhile, so nothing that watches it forgets it. */
static int control_at_old_number(int epfd, int op, const EventpollTfdEntry *t, uint32_t events, struct fault *f)
{
	int tfd = (int)t->tfd, flags = fcntl(tfd, F_GETFD);
	auto_fd aside = flags >= 0 ? fcntl(tfd, F_DUPFD_CLOEXEC, 0) : -1;
	if (flags >= 0 && aside < 0)
		return fault_errno(f, FAULT_LIMIT, "duplicate descriptor %d", tfd);
	if (dup2((int)t->target_fd, tfd) < 0)
		return fault_errno(f, FAULT_IMAGE, "put descriptor %u at %d", t->target_fd, tfd);
	int r = control(epfd, op, t, events, f);
	if (flags < 0)
		close(tfd);
	else if (dup3(aside, tfd, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
		return fault_errno(f, FAULT_SYSTEM, "put descriptor %d back", tfd);
	return r;
}

static int watch(int epfd, int op, const EventpollTfdEntry *t, uint32_t events, struct fault *f)
{
	return t->has_target_fd ? control_at_old_number(epfd, op, t, events, f) : control(epfd, op, t, events, f);
}

#define ANY_EVENT (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI)

/* Of those added with ANY_EVENT: the rest that did not fire gets what the program had kept. */
static int calm_the_rest(int epfd, const EventpollFileEntry *e, struct fault *f)
{
	char path[48];
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", epfd);
	auto_free char *info = util_read_file(AT_FDCWD, path, NULL);
	const char *text = info;
	struct target t;
	while (text && next_target(&text, &t)) {
		if (!(t.events & EPOLLIN))
			continue;
		for (size_t k = 0; k < e->n_tfd; k++)
			if (fired(e->tfd[k]) && e->tfd[k]->tfd == (uint32_t)t.tfd &&
			    watch(epfd, EPOLL_CTL_MOD, e->tfd[k], e->tfd[k]->events, f) < 0)
				return -1;
	}
	return info ? 0 : fault_errno(f, FAULT_SYSTEM, "read %s", path);
}

static int add_fired(int epfd, const EventpollFileEntry *e, struct fault *f)
{
	struct epoll_event got[64];
	size_t n = 0;
	for (size_t k = 0; k < e->n_tfd; k++) {
		if (!fired(e->tfd[k]))
			continue;
		n++;
		if (watch(epfd, EPOLL_CTL_ADD, e->tfd[k], e->tfd[k]->events | ANY_EVENT, f) < 0)
			return -1;
	}
	if (n == 0)
		return 0;
	while (epoll_wait(epfd, got, ARRAY_LEN(got), 0) > 0)
		; /* each fires once: they are one-shot */
	return calm_the_rest(epfd, e, f);
}

static int finish(struct fd_restore *s, const FileEntry *e, int fd, struct fault *f)
{
	(void)s;
	if (add_fired(fd, e->epfd, f) < 0)
		return -1;
	for (size_t k = 0; k < e->epfd->n_tfd; k++) {
		const EventpollTfdEntry *t = e->epfd->tfd[k];
		if (!fired(t) && watch(fd, EPOLL_CTL_ADD, t, t->events, f) < 0)
			return -1;
	}
	return 0;
}

const struct fd_kind fd_eventpoll_kind = {
	.name = "eventpoll",
	.type = FD_TYPES__EVENTPOLL,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
	.finish = finish,
};
