/*
 * UDP: name, peer, options. Datagrams that wait to be read are counted and named as a loss (they are carried by a
 * later version, put back by raw packets on the loopback device); corked ones can't be read and are a fault.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <linux/udp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>

#include "inet.h"
#include "sock.h"

static bool udp_claims(const struct fd_info *i)
{
	struct inet_kind k;

	return S_ISSOCK(i->st.st_mode) && inet_kind_of(i->dup, &k) && k.type == SOCK_DGRAM && k.protocol == IPPROTO_UDP;
}

/* What is in SIOCOUTQ has been sent and waits in the device, for microseconds, or is held back by UDP_CORK or MSG_MORE,
 * for as long as the program likes. */
static bool is_corked(int fd)
{
	const struct timespec moment = { 0, 100000 };
	int queued = 0;

	for (int i = 0; i < 20; i++) {
		if (ioctl(fd, SIOCOUTQ, &queued) < 0 || queued == 0)
			return false;
		nanosleep(&moment, NULL);
	}
	return true;
}

static int udp_check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		     struct fault *f)
{
	return inet_check(i, p, report, needs, f);
}

/* Walks the queue without taking from it: SO_PEEK_OFF counts bytes through datagrams, but stands still at empty
 * ones, which therefore hide what is behind them. Returns what can be counted. */
static int count_datagrams(struct fd_save *s, const struct fd_info *i, unsigned *count, struct fault *f)
{
	int was, zero = 0, off = -1;
	struct undo u = { .kind = UNDO_PEEK_OFF, .pid = s->p ? s->p->pid : 0, .fd = i->fd, .value = -1 };
	struct pollfd p = { i->dup, POLLIN, 0 };

	*count = 0;
	if (poll(&p, 1, 0) <= 0 || !(p.revents & POLLIN))
		return 0;
	if (inet_peek_begin(s, i, &was, f) < 0)
		return -1;
	if (was < 0 && s->undo && s->undo->push(s->undo->ctx, &u, f) < 0)
		return -1;
	if (setsockopt(i->dup, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero)) == 0)
		while (*count < 100000) {
			char buf[65536];
			ssize_t n = recv(i->dup, buf, sizeof(buf), MSG_PEEK | MSG_DONTWAIT);

			if (n < 0)
				break;
			++*count;
			if (n == 0)
				break;
		}
	if (setsockopt(i->dup, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "put SO_PEEK_OFF of fd %d back", i->fd);
	if (was < 0)
		return s->undo ? s->undo->drop(s->undo->ctx, UNDO_PEEK_OFF, f) : 0;
	return inet_peek_end(s, i, was, f);
}

static int udp_save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	char object[200];
	unsigned unread;

	inet_object(i, object, sizeof(object));
	if (is_corked(i->dup))
		return fault_set(f, FAULT_UNSUPPORTED,
				 "%s holds a datagram back (UDP_CORK, MSG_MORE), and it can't be read", object),
		       fault_hint(f, "try again: it is gone when the program has sent it");
	if (count_datagrams(s, i, &unread, f) < 0 || inet_save(s, i, e, f) < 0)
		return fault_while(f, "saving %s", object);
	if (unread)
		report_add(s->report, REPORT_LOSS, FAULT_UNSUPPORTED, object, NULL,
			   "%u unread datagrams are not carried", unread);
	return 0;
}

static int build(struct fd_restore *s, int fd, const InetSkEntry *isk, const char *object, struct fault *f)
{
	int reuse = isk->opts->reuseaddr;
	union inet_addr peer;

	if (inet_options_early(fd, isk, s->report, object, f) < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set SO_REUSEADDR");
	if (inet_options_late(fd, isk, s->report, object, f) < 0 || inet_buffers_final(fd, isk, f) < 0 ||
	    inet_bind(fd, isk, f) < 0)
		return -1;
	if (inet_remote(isk, &peer) && connect(fd, &peer.any, inet_addr_len(&peer)) < 0)
		return fault_errno(f, FAULT_NETWORK, "connect %s", object),
		       fault_hint(f, "has the destination a route to the peer?");
	return inet_settle(fd, isk, f);
}

static int udp_restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	auto_fd fd = -1;
	char object[200];

	inet_object_of_entry(e->isk, object, sizeof(object));
	fd = inet_socket(e->isk, min_fd, f);
	if (fd < 0 || build(s, fd, e->isk, object, f) < 0)
		return fault_while(f, "restoring %s", object);
	return take_fd(&fd);
}

const struct fd_kind sock_udp_kind = {
	.name = "UDP socket",
	.type = FD_TYPES__INETSK,
	.phase = FD_PHASE_NETWORK,
	.claims = udp_claims,
	.check = udp_check,
	.save = udp_save,
	.restore = udp_restore,
};
