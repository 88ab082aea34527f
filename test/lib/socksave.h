/*
 * One socket taken apart and put together again by its kind, without a process around it: what fd/fdsave.c and
 * fd/fdrestore.c do, for a descriptor of this or another process.
 */
#ifndef TEST_SOCKSAVE_H
#define TEST_SOCKSAVE_H

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "image.h"
#include "sock.h"

struct socksave {
	struct image *img;
	struct filetab *files;
	struct report report;
	struct undo_log *undo;
	bool repair_noted;
};

static inline void socksave_init(struct socksave *m, struct undo_log *undo)
{
	*m = (struct socksave){ .img = image_new(), .files = filetab_new(), .undo = undo };
	report_init(&m->report);
}

static inline void socksave_done(struct socksave *m)
{
	image_free(m->img);
	filetab_free(m->files);
	report_done(&m->report);
}

static inline const struct fd_kind *socksave_kind(int type)
{
	return type == SOCK_STREAM ? &sock_tcp_kind : &sock_udp_kind;
}

static inline void socksave_info(int fd, struct fd_info *i)
{
	memset(i, 0, sizeof(*i));
	i->fd = i->dup = fd;
	fstat(fd, &i->st);
	i->flags = (uint32_t)fcntl(fd, F_GETFL);
	i->link = "socket";
}

/* The entry as the destination has it: packed and unpacked. NULL: fault. */
static inline const FileEntry *socksave_save(struct socksave *m, int fd, struct fault *f)
{
	struct fd_info i;
	struct fd_save s = {
		.files = m->files, .img = m->img, .undo = m->undo, .report = &m->report, .repair_noted = m->repair_noted
	};
	int type = 0;
	socklen_t len = sizeof(type);
	uint32_t id;
	FileEntry *e = filetab_new_entry(m->files, FD_TYPES__INETSK, &id);
	uint8_t *packed;

	socksave_info(fd, &i);
	getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len);
	if (!socksave_kind(type)->claims(&i) || socksave_kind(type)->save(&s, &i, e, f) < 0)
		return NULL;
	m->repair_noted = s.repair_noted;
	packed = arena_alloc(image_arena(m->img), file_entry__get_packed_size(e));
	return file_entry__unpack(arena_pb(image_arena(m->img)), file_entry__pack(e, packed), packed);
}

static inline int socksave_restore(struct socksave *m, const FileEntry *e, int min_fd, struct fault *f)
{
	struct fd_restore s = { .img = m->img, .files = m->files, .rootfd = -1, .report = &m->report };

	return socksave_kind((int)e->isk->type)->restore(&s, e, min_fd, f);
}

static inline int socksave_commit(struct socksave *m, const FileEntry *e, int fd, struct fault *f)
{
	const struct fd_kind *k = socksave_kind((int)e->isk->type);

	return k->commit ? k->commit(e, m->img, fd, f) : 0;
}

#endif
