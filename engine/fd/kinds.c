/*
 * What can be moved: the first kind that claims a descriptor saves it. A new kind is one file and one line here.
 */
#include "fdtab.h"
#include "sock.h"

#include <fcntl.h>
#include <sys/socket.h>

const struct fd_kind *const fd_kinds[] = {
	&fd_memfd_kind,	   &fd_chardev_kind, &fd_reg_kind,	 &fd_fifo_kind,	 &fd_pipe_kind,	 &fd_eventfd_kind,
	&fd_signalfd_kind, &fd_timerfd_kind, &fd_eventpoll_kind, &sock_tcp_kind, &sock_udp_kind,
};
const size_t fd_kind_count = ARRAY_LEN(fd_kinds);

const struct fd_kind *fd_kind_claiming(const struct fd_info *i)
{
	for (size_t k = 0; k < fd_kind_count; k++)
		if (fd_kinds[k]->claims(i))
			return fd_kinds[k];
	return NULL;
}

/* Two kinds have the type of their neighbour, as CRIU's format has no other for them. */
const struct fd_kind *fd_kind_of(const FileEntry *e)
{
	if (e->type == FD_TYPES__REG && e->reg && e->reg->has_mode && S_ISCHR(e->reg->mode) &&
	    !(e->reg->flags & O_PATH))
		return &fd_chardev_kind;
	if (e->type == FD_TYPES__REG)
		return &fd_reg_kind;
	if (e->type == FD_TYPES__INETSK && e->isk)
		return e->isk->type == SOCK_STREAM ? &sock_tcp_kind : &sock_udp_kind;
	for (size_t k = 0; k < fd_kind_count; k++)
		if (fd_kinds[k]->type == e->type)
			return fd_kinds[k];
	return NULL;
}
