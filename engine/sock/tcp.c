/*
 * TCP.
 *
 *	save     (frozen, locked) names, options, TCP_INFO; then TCP_REPAIR for as long as reading queues, sequence
 *	         numbers and window takes, and off again without a probe: an abort finds the socket as it was
 *	restore  (helper) a connection is built silently in repair mode: sequence numbers, connect, options, timestamp,
 *	         queues, window. What was sent goes back as sent; what was never sent waits for the commit
 *	commit   (lock released, not yet thawed) repair mode ends, unsent bytes go out, half-closed states are reached
 *
 * Repair mode ends with a window probe: the peer answers it at once with what it has, which empties the out-queue
 * of bytes whose acknowledgement fell into the lock, and opens the congestion window of a connection that has more
 * unacknowledged than a fresh one may have in flight. Without the probe both would wait for our first timeout, 1 s.
 *
 * Because a repaired connection knows no round-trip time its first timeout would be 3 s (tcp_init_metrics). So one byte
 * that the peer has acknowledged already is put back as sent, before the others: the peer's answer to the probe then
 * is an acknowledgement, and gives a first sample by its timestamp. Should the byte ever go out, the peer skips it.
 *
 * Half-closed states are not set but reached again, by the same events: our FIN is sent once more with its old number
 * (the peer takes it for a retransmission), the peer's is put on the loopback of this host with the peer's address.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inet.h"
#include "process.h"
#include "sock.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

/* Option numbers of RFC 793 and its extensions, as TCP_REPAIR_OPTIONS wants them. */
enum { KIND_MSS = 2, KIND_WINDOW = 3, KIND_SACK = 4, KIND_TIMESTAMP = 8 };
/* TCP_REPAIR_QUEUE */
enum { QUEUE_RECV = 1, QUEUE_SEND = 2 };

#define CHUNK (32u << 10) /* refill: a piece must fit into pages of low order */

static bool tcp_claims(const struct fd_info *i)
{
	struct inet_kind k;

	return S_ISSOCK(i->st.st_mode) && inet_kind_of(i->dup, &k) && k.type == SOCK_STREAM &&
	       (k.protocol == IPPROTO_TCP || k.protocol == IPPROTO_MPTCP);
}

static int set_int(int fd, int name, int value)
{
	return setsockopt(fd, IPPROTO_TCP, name, &value, sizeof(value));
}

static int get_u32(int fd, int name, uint32_t *value)
{
	socklen_t len = sizeof(*value);

	return getsockopt(fd, IPPROTO_TCP, name, value, &len);
}

static int get_info(int fd, struct tcp_info *info)
{
	socklen_t len = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len);
}

static short poll_now(int fd)
{
	struct pollfd p = { fd, POLLIN | POLLPRI | POLLRDHUP, 0 };

	return poll(&p, 1, 0) < 0 ? 0 : p.revents;
}

/* The peer's FIN is in the sequence space of the in-queue; ours in that of the out-queue. */
static bool fin_received(unsigned state)
{
	return state == INET_CLOSE_WAIT || state == INET_LAST_ACK || state == INET_CLOSING;
}

static bool fin_sent(unsigned state)
{
	return state == INET_FIN_WAIT1 || state == INET_FIN_WAIT2 || state == INET_LAST_ACK || state == INET_CLOSING;
}

static bool is_connection(unsigned state)
{
	return state == INET_ESTABLISHED || fin_received(state) || fin_sent(state);
}

/* What no state of ours can move, in words; NULL: nothing. */
static const char *obstacle(int fd, int protocol, const struct tcp_info *info)
{
	char ulp[16] = "";
	socklen_t len = sizeof(ulp);

	if (protocol == IPPROTO_MPTCP)
		return "Multipath TCP can't be taken apart by this kernel";
	if (getsockopt(fd, IPPROTO_TCP, TCP_ULP, ulp, &len) == 0 && len && ulp[0])
		return "TLS (or another protocol) of the kernel is attached to it";
	if (info->tcpi_state == INET_SYN_SENT)
		return "it is still connecting";
	if (info->tcpi_state == INET_SYN_RECV)
		return "its handshake is not complete (TCP Fast Open)";
	return NULL;
}

static int tcp_check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		     struct fault *f)
{
	struct inet_kind k;
	struct tcp_info info;
	struct net_flow w;
	const char *why;
	char object[200];

	if (inet_check(i, p, report, needs, f) < 0)
		return -1;
	inet_object(i, object, sizeof(object));
	if (!inet_kind_of(i->dup, &k) || (get_info(i->dup, &info) < 0 && k.protocol == IPPROTO_TCP))
		return fault_errno(f, FAULT_SYSTEM, "read TCP_INFO of %s", object);
	why = obstacle(i->dup, k.protocol, &info);
	if (why)
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   info.tcpi_state == INET_SYN_SENT ? "try again when it is connected" : NULL, "%s", why);
	if (info.tcpi_state == INET_LISTEN && inet_flow_of_socket(i->dup, &w))
		arena_push(needs->a, needs->n_ports, needs->ports, w.local_port);
	return 0;
}

/* Reading a queue in repair mode, and knowing that it was all of it. */
static int peek(int fd, uint8_t *buf, size_t len, const char *what, struct fault *f)
{
	uint8_t extra[2];
	struct iovec iov[2] = { { buf, len }, { extra, 1 } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t n;

	if (!len)
		return 0;
	n = recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0)
		return fault_errno(f, FAULT_SYSTEM, "read the %s of a TCP connection (%zu bytes)", what, len);
	if ((size_t)n != len)
		return fault_set(f, FAULT_UNSUPPORTED, "the %s of a TCP connection has %zd bytes instead of %zu", what,
				 n, len);
	return 0;
}

static int queue_len(int fd, unsigned long request, uint32_t *len, struct fault *f)
{
	int n;

	if (ioctl(fd, request, &n) < 0 || n < 0)
		return fault_errno(f, FAULT_SYSTEM, "length of a TCP queue");
	*len = (uint32_t)n;
	return 0;
}

static int queue_seq(int fd, int queue, uint32_t *seq, struct fault *f)
{
	if (set_int(fd, TCP_REPAIR_QUEUE, queue) < 0 || get_u32(fd, TCP_QUEUE_SEQ, seq) < 0)
		return fault_errno(f, FAULT_KERNEL, "sequence number of a TCP queue");
	return 0;
}

/* In repair mode. *queues: in-queue bytes, then out-queue bytes. */
static int read_stream(int fd, unsigned state, TcpStreamEntry *t, struct arena *a, uint8_t **queues, struct fault *f)
{
	struct tcp_repair_window w;
	socklen_t len = sizeof(w);
	uint32_t unsent;

	if (queue_len(fd, SIOCINQ, &t->inq_len, f) < 0 || queue_len(fd, SIOCOUTQ, &t->outq_len, f) < 0 ||
	    queue_len(fd, SIOCOUTQNSD, &unsent, f) < 0)
		return -1;
	if (fin_sent(state)) { /* our FIN is the last byte of what is counted, while it is there */
		t->outq_len -= t->outq_len ? 1 : 0;
		unsent -= unsent ? 1 : 0;
	}
	t->has_unsq_len = 1;
	t->unsq_len = unsent;
	*queues = arena_alloc(a, (size_t)t->inq_len + t->outq_len + 1);
	if (queue_seq(fd, QUEUE_RECV, &t->inq_seq, f) < 0 || peek(fd, *queues, t->inq_len, "receive queue", f) < 0 ||
	    queue_seq(fd, QUEUE_SEND, &t->outq_seq, f) < 0 ||
	    peek(fd, *queues + t->inq_len, t->outq_len, "send queue", f) < 0)
		return -1;
	if (get_u32(fd, TCP_MAXSEG, &t->mss_clamp) < 0 || get_u32(fd, TCP_TIMESTAMP, &t->timestamp) < 0)
		return fault_errno(f, FAULT_KERNEL, "segment size and timestamp of a TCP connection");
	if (getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, &len) < 0)
		return fault_errno(f, FAULT_KERNEL, "window of a TCP connection");
	t->has_snd_wl1 = t->has_snd_wnd = t->has_max_window = t->has_rcv_wnd = t->has_rcv_wup = 1;
	t->snd_wl1 = w.snd_wl1;
	t->snd_wnd = w.snd_wnd;
	t->max_window = w.max_window;
	t->rcv_wnd = w.rcv_wnd;
	t->rcv_wup = w.rcv_wup;
	return 0;
}

static void stream_options(int fd, const struct tcp_info *info, TcpStreamEntry *t, struct arena *a)
{
	char congestion[17] = "";
	socklen_t len = sizeof(congestion) - 1;
	uint32_t v;

	t->opt_mask = info->tcpi_options;
	t->snd_wscale = info->tcpi_snd_wscale;
	t->has_rcv_wscale = 1;
	t->rcv_wscale = info->tcpi_rcv_wscale;
	t->has_timestamp = !!(info->tcpi_options & TCPI_OPT_TIMESTAMPS);
	t->has_cork = t->has_nodelay = t->has_state = 1;
	t->cork = get_u32(fd, TCP_CORK, &v) == 0 && v;
	t->nodelay = get_u32(fd, TCP_NODELAY, &v) == 0 && v;
	t->state = info->tcpi_state;
	if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, &len) == 0)
		t->congestion = arena_strdup(a, congestion);
}

static int note_repair(struct fd_save *s, struct fault *f)
{
	struct undo u = { .kind = UNDO_REPAIR, .pid = s->p ? s->p->pid : 0, .fd = -1 };

	if (s->repair_noted)
		return 0;
	if (s->undo && s->undo->push(s->undo->ctx, &u, f) < 0)
		return -1;
	s->repair_noted = true;
	return 0;
}

int sock_save_end(struct fd_save *s, struct fault *f)
{
	if (!s->repair_noted)
		return 0;
	s->repair_noted = false;
	return s->undo ? s->undo->drop(s->undo->ctx, UNDO_REPAIR, f) : 0;
}

static int repair_off(int fd, int how, int reuse)
{
	/* Leaving repair mode switches SO_REUSEADDR off. */
	return set_int(fd, TCP_REPAIR, how) < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) < 0
		       ? -1
		       : 0;
}

static int save_stream(struct fd_save *s, const struct fd_info *i, InetSkEntry *isk, const struct tcp_info *info,
		       struct fault *f)
{
	struct arena *a = filetab_arena(s->files);
	TcpStreamEntry *t = arena_msg(a, TcpStreamEntry, tcp_stream_entry);
	uint8_t *queues = NULL;
	short now = poll_now(i->dup);
	int was, r;

	if (now & POLLPRI)
		return fault_set(f, FAULT_UNSUPPORTED, "urgent data waits in its receive queue"),
		       fault_hint(f, "try again: it is gone when the program has read it");
	if (now & POLLERR)
		report_add(s->report, REPORT_LOSS, FAULT_UNSUPPORTED, i->link, NULL,
			   "unread messages of its error queue (MSG_ERRQUEUE) are not carried");
	isk->has_shutdown = 1;
	isk->shutdown = (SkShutdown)((now & POLLRDHUP ? SK_SHUTDOWN__READ : 0) |
				     (fin_sent(info->tcpi_state) ? SK_SHUTDOWN__WRITE : 0));
	stream_options(i->dup, info, t, a);
	if (note_repair(s, f) < 0 || inet_peek_begin(s, i, &was, f) < 0)
		return -1;
	if (set_int(i->dup, TCP_REPAIR, TCP_REPAIR_ON) < 0) {
		r = fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR on");
	} else {
		r = read_stream(i->dup, info->tcpi_state, t, a, &queues, f);
		if (repair_off(i->dup, TCP_REPAIR_OFF_NO_WP, isk->opts->reuseaddr) < 0 && r == 0)
			r = fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR off");
	}
	if (inet_peek_end(s, i, was, r < 0 ? NULL : f) < 0 || r < 0)
		return -1;
	return image_put(s->img, IMAGE_TCP_STREAM, isk->ino, t, queues, (size_t)t->inq_len + t->outq_len, f);
}

/* Was it connected once? Then reads say end of file, or an error that is not yet told, instead of ENOTCONN. */
static int save_closed(struct fd_save *s, const struct fd_info *i, InetSkEntry *isk, struct fault *f)
{
	struct arena *a = filetab_arena(s->files);
	TcpStreamEntry *t;
	short now = poll_now(i->dup);
	uint8_t *data;
	int was, r;

	if (!(now & POLLRDHUP))
		return 0;
	isk->has_closed = 1;
	isk->closed = now & POLLERR ? 2 : 1;
	t = arena_msg(a, TcpStreamEntry, tcp_stream_entry);
	if (queue_len(i->dup, SIOCINQ, &t->inq_len, f) < 0)
		return -1;
	if (!t->inq_len)
		return 0;
	data = arena_alloc(a, t->inq_len);
	if (inet_peek_begin(s, i, &was, f) < 0)
		return -1;
	r = peek(i->dup, data, t->inq_len, "receive queue", f);
	if (inet_peek_end(s, i, was, r < 0 ? NULL : f) < 0 || r < 0)
		return -1;
	return image_put(s->img, IMAGE_TCP_STREAM, isk->ino, t, data, t->inq_len, f);
}

static int save_listening(InetSkEntry *isk, const struct tcp_info *info, struct fault *f)
{
	isk->backlog = info->tcpi_sacked;
	if (info->tcpi_unacked)
		return fault_set(f, FAULT_BUSY, "%u connections wait in it to be accepted", info->tcpi_unacked),
		       fault_hint(f, "try again: the program runs on here and accepts them");
	return 0;
}

static int save_state(struct fd_save *s, const struct fd_info *i, InetSkEntry *isk, const struct tcp_info *info,
		      struct fault *f)
{
	const char *why = obstacle(i->dup, (int)isk->proto, info);

	if (why)
		return fault_set(f, FAULT_UNSUPPORTED, "%s", why);
	isk->state = info->tcpi_state;
	isk->has_tcp_state = 1;
	isk->tcp_state = info->tcpi_state;
	if (isk->state == INET_LISTEN)
		return save_listening(isk, info, f);
	if (isk->state == INET_CLOSE)
		return save_closed(s, i, isk, f);
	if (is_connection(isk->state))
		return save_stream(s, i, isk, info, f);
	return fault_set(f, FAULT_UNSUPPORTED, "a TCP socket in state %u", isk->state);
}

static int tcp_save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	struct tcp_info info;
	char object[200];

	if (inet_save(s, i, e, f) < 0)
		return -1;
	inet_object(i, object, sizeof(object));
	if (get_info(i->dup, &info) < 0)
		return fault_errno(f, FAULT_SYSTEM, "read TCP_INFO of %s", object);
	if (save_state(s, i, e->isk, &info, f) < 0)
		return fault_while(f, "saving %s", object);
	return 0;
}

static const TcpStreamEntry *stream_of(const struct image *img, const InetSkEntry *isk, const uint8_t **data,
				       size_t *data_len)
{
	size_t pos = 0;
	const struct image_entry *e = image_next(img, IMAGE_TCP_STREAM, isk->ino, &pos);

	*data = e ? e->extra : NULL;
	*data_len = e ? e->extra_len : 0;
	return e ? e->msg : NULL;
}

static int check_stream(const TcpStreamEntry *t, size_t extra_len, struct fault *f)
{
	if (!t)
		return fault_set(f, FAULT_IMAGE, "a TCP connection without its stream");
	if ((uint64_t)t->inq_len + t->outq_len != extra_len || (t->has_unsq_len && t->unsq_len > t->outq_len))
		return fault_set(f, FAULT_IMAGE, "TCP queues of %u and %u bytes (%u unsent) in %zu bytes", t->inq_len,
				 t->outq_len, t->unsq_len, extra_len);
	return 0;
}

static int set_seq(int fd, int queue, uint32_t seq, struct fault *f)
{
	if (set_int(fd, TCP_REPAIR_QUEUE, queue) < 0 || set_int(fd, TCP_QUEUE_SEQ, (int)seq) < 0)
		return fault_errno(f, FAULT_KERNEL, "set a TCP sequence number");
	return 0;
}

/* The byte for a first round-trip sample (see above); without timestamps it would give none. */
static unsigned sample_bytes(const TcpStreamEntry *t)
{
	return t->has_timestamp && (t->opt_mask & TCPI_OPT_TIMESTAMPS) ? 1 : 0;
}

static int connect_silently(int fd, const InetSkEntry *isk, const TcpStreamEntry *t, struct fault *f)
{
	union inet_addr peer;
	char text[80];

	if (inet_bind(fd, isk, f) < 0 ||
	    set_seq(fd, QUEUE_SEND, t->outq_seq - t->outq_len - fin_sent(isk->state) - sample_bytes(t), f) < 0 ||
	    set_seq(fd, QUEUE_RECV, t->inq_seq - t->inq_len - fin_received(isk->state), f) < 0)
		return -1;
	if (!inet_remote(isk, &peer))
		return fault_set(f, FAULT_IMAGE, "a TCP connection without a peer");
	if (connect(fd, &peer.any, inet_addr_len(&peer)) == 0)
		return 0;
	inet_addr_text(&peer, text, sizeof(text));
	if (errno == ENETUNREACH)
		return fault_errno(f, FAULT_NETWORK, "connect to %s", text),
		       fault_hint(f, "the destination has no route to the peer");
	return fault_errno(f, errno == EADDRNOTAVAIL ? FAULT_BUSY : FAULT_NETWORK, "connect to %s", text);
}

static int set_options(int fd, const TcpStreamEntry *t, struct fault *f)
{
	struct tcp_repair_opt o[4];
	size_t n = 0;

	o[n++] = (struct tcp_repair_opt){ KIND_MSS, t->mss_clamp };
	if (t->opt_mask & TCPI_OPT_WSCALE)
		o[n++] = (struct tcp_repair_opt){ KIND_WINDOW, t->snd_wscale | t->rcv_wscale << 16 };
	if (t->opt_mask & TCPI_OPT_SACK)
		o[n++] = (struct tcp_repair_opt){ KIND_SACK, 0 };
	if (t->opt_mask & TCPI_OPT_TIMESTAMPS)
		o[n++] = (struct tcp_repair_opt){ KIND_TIMESTAMP, 0 };
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, o, (socklen_t)(n * sizeof(*o))) < 0)
		return fault_errno(f, FAULT_KERNEL, "set the options of a TCP connection");
	if (t->has_timestamp && set_int(fd, TCP_TIMESTAMP, (int)t->timestamp) < 0)
		return fault_errno(f, FAULT_KERNEL, "set the timestamp of a TCP connection");
	return 0;
}

static int refill(int fd, int queue, const uint8_t *data, size_t len, struct fault *f)
{
	if (len && set_int(fd, TCP_REPAIR_QUEUE, queue) < 0)
		return fault_errno(f, FAULT_KERNEL, "choose a TCP queue");
	while (len) {
		ssize_t n = send(fd, data, len < CHUNK ? len : CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return fault_errno(f, FAULT_NO_MEMORY, "fill the %s queue of a TCP connection (%zu bytes left)",
					   queue == QUEUE_RECV ? "receive" : "send", len);
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int set_window(int fd, const InetSkEntry *isk, const TcpStreamEntry *t, struct fault *f)
{
	struct tcp_repair_window w = { t->snd_wl1, t->snd_wnd, t->max_window, t->rcv_wnd, t->rcv_wup };
	uint32_t first = t->unsq_len < t->mss_clamp ? t->unsq_len : t->mss_clamp;

	if (!t->has_snd_wnd)
		return 0;
	if (fin_received(isk->state) && w.rcv_wup == t->inq_seq) { /* the FIN is not there yet */
		w.rcv_wup--;
		w.rcv_wnd++;
	}
	/* A closed window: it may have been opened under the lock, unheard, and the peer may leave our probe unanswered
	 * (tcp_invalid_ratelimit) for 500 ms after one of the source's. One segment with data is always answered. */
	if (t->outq_len == t->unsq_len && w.snd_wnd < first + sample_bytes(t))
		w.snd_wnd = first + sample_bytes(t);
	if (w.max_window < w.snd_wnd)
		w.max_window = w.snd_wnd;
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof(w)) < 0)
		return fault_errno(f, FAULT_KERNEL, "set the window of a TCP connection");
	return 0;
}

static int restore_stream(struct fd_restore *s, int fd, const InetSkEntry *isk, const char *object, struct fault *f)
{
	const uint8_t *data;
	size_t data_len;
	const TcpStreamEntry *t = stream_of(s->img, isk, &data, &data_len);
	const uint8_t known = 0;
	size_t sent;

	if (check_stream(t, data_len, f) < 0)
		return -1;
	sent = t->outq_len - t->unsq_len;
	if (set_int(fd, TCP_REPAIR, TCP_REPAIR_ON) < 0)
		return fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR on");
	/* A buffer size of the program's own bounds the window that connect(2) sets up; ours must not. */
	if ((isk->opts->so_buf_lock && inet_buffers_final(fd, isk, f) < 0) ||
	    inet_options_early(fd, isk, s->report, object, f) < 0 || connect_silently(fd, isk, t, f) < 0 ||
	    set_options(fd, t, f) < 0)
		return -1;
	inet_buffers_force(fd, t->inq_len, t->outq_len + 1);
	if (refill(fd, QUEUE_RECV, data, t->inq_len, f) < 0 || refill(fd, QUEUE_SEND, &known, sample_bytes(t), f) < 0 ||
	    refill(fd, QUEUE_SEND, data + t->inq_len, sent, f) < 0 || set_window(fd, isk, t, f) < 0 ||
	    inet_options_late(fd, isk, s->report, object, f) < 0)
		return -1;
	if (!t->unsq_len && inet_buffers_final(fd, isk, f) < 0)
		return -1;
	return inet_settle(fd, isk, f);
}

/* Sockets of the moved process share a port with each other: SO_REUSEADDR is on until this one has it. */
static int restore_bound(struct fd_restore *s, int fd, const InetSkEntry *isk, const char *object, struct fault *f)
{
	int on = 1, reuse = isk->opts->reuseaddr;

	if (inet_options_early(fd, isk, s->report, object, f) < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set SO_REUSEADDR");
	if (inet_options_late(fd, isk, s->report, object, f) < 0 || inet_buffers_final(fd, isk, f) < 0 ||
	    inet_bind(fd, isk, f) < 0)
		return -1;
	if (isk->state == INET_LISTEN && listen(fd, (int)isk->backlog) < 0)
		return fault_errno(f, errno == EADDRINUSE ? FAULT_BUSY : FAULT_SYSTEM, "listen on %s", object);
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set SO_REUSEADDR");
	return inet_settle(fd, isk, f);
}

/* The end of a connection over the loopback of this host: *peer is the other one. */
static int loopback_pair(int fd, int family, int *peer, struct fault *f)
{
	union inet_addr a = { 0 };
	socklen_t len;
	auto_fd l = socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);

	a.any.sa_family = (sa_family_t)family;
	if (family == AF_INET)
		a.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		inet_pton(AF_INET6, "::ffff:127.0.0.1", &a.v6.sin6_addr);
	len = inet_addr_len(&a);
	if (l < 0 || bind(l, &a.any, len) < 0 || listen(l, 1) < 0 || getsockname(l, &a.any, &len) < 0 ||
	    connect(fd, &a.any, len) < 0)
		return fault_errno(f, FAULT_NETWORK, "make a connection over the loopback device");
	*peer = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	return *peer < 0 ? fault_errno(f, FAULT_NETWORK, "make a connection over the loopback device") : 0;
}

/* A connection that is over, but not yet closed by the program: made and ended here in the same way. */
static int restore_ended(struct fd_restore *s, int fd, const InetSkEntry *isk, const char *object, struct fault *f)
{
	const uint8_t *data;
	size_t data_len;
	const TcpStreamEntry *t = stream_of(s->img, isk, &data, &data_len);
	struct pollfd p = { fd, 0, 0 };
	struct linger reset = { 1, 0 };
	auto_fd peer = -1;

	if (t && check_stream(t, data_len, f) < 0)
		return -1;
	if (loopback_pair(fd, (int)isk->family, &peer, f) < 0)
		return -1;
	inet_buffers_force(fd, data_len, 0);
	inet_buffers_force(peer, 0, data_len);
	if (data_len && util_write_all(peer, data, data_len) < 0)
		return fault_errno(f, FAULT_NETWORK, "fill the queue of %s", object);
	if (isk->closed == 2)
		setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	else
		shutdown(fd, SHUT_RDWR);
	close(take_fd(&peer));
	if (poll(&p, 1, 1000) < 0 || !(p.revents & POLLHUP))
		return fault_set(f, FAULT_NETWORK, "%s did not reach its end", object);
	report_add(s->report, REPORT_NOTE, FAULT_UNSUPPORTED, object, NULL,
		   "the connection is over; its local address is not kept");
	if (inet_options_early(fd, isk, s->report, object, f) < 0 ||
	    inet_options_late(fd, isk, s->report, object, f) < 0 || inet_buffers_final(fd, isk, f) < 0)
		return -1;
	return inet_settle(fd, isk, f);
}

static int tcp_restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	const InetSkEntry *isk = e->isk;
	auto_fd fd = -1;
	char object[200];
	int r;

	inet_object_of_entry(isk, object, sizeof(object));
	fd = inet_socket(isk, min_fd, f);
	if (fd < 0)
		return fault_while(f, "restoring %s", object);
	if (is_connection(isk->state))
		r = restore_stream(s, fd, isk, object, f);
	else if (isk->has_closed)
		r = restore_ended(s, fd, isk, object, f);
	else
		r = restore_bound(s, fd, isk, object, f);
	return r < 0 ? fault_while(f, "restoring %s", object) : take_fd(&fd);
}

static uint32_t sum_words(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	return sum;
}

/* A segment of the peer with its FIN, as it would have looked; without a timestamp, so that none is out of order. */
struct fin {
	union {
		struct iphdr v4;
		struct ip6_hdr v6;
	} ip;
	struct tcphdr tcp;
};

static void fin_checksum(struct tcphdr *tcp, const void *addrs, size_t addrs_len)
{
	uint32_t sum = sum_words(addrs, addrs_len) + IPPROTO_TCP + sizeof(*tcp) + sum_words(tcp, sizeof(*tcp));

	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	tcp->check = htons((uint16_t)~sum);
}

/* The peer's FIN, on our own loopback. 0 when it could be sent. */
static int inject_fin(const InetSkEntry *isk, const TcpStreamEntry *t)
{
	bool v6 = isk->family == AF_INET6,
	     mapped = v6 && isk->dst_addr[0] == 0 && isk->dst_addr[1] == 0 && isk->dst_addr[2] == htonl(0xffff);
	union inet_addr to = { 0 };
	struct tcphdr tcp = { .source = htons((uint16_t)isk->dst_port), .dest = htons((uint16_t)isk->src_port) };
	uint32_t addrs[8], window = t->snd_wnd >> t->snd_wscale;
	uint8_t packet[sizeof(struct ip6_hdr) + sizeof(tcp)];
	size_t words = v6 && !mapped ? 4 : 1, head = words == 4 ? sizeof(struct ip6_hdr) : sizeof(struct iphdr);
	auto_fd raw = socket(words == 4 ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);

	memcpy(addrs, mapped ? &isk->dst_addr[3] : isk->dst_addr, words * 4);
	memcpy(addrs + words, mapped ? &isk->src_addr[3] : isk->src_addr, words * 4);
	tcp.seq = htonl(t->inq_seq - 1);
	tcp.ack_seq = htonl(t->outq_seq - t->outq_len - fin_sent(isk->state));
	tcp.doff = sizeof(tcp) / 4;
	tcp.fin = tcp.ack = 1;
	tcp.window = htons((uint16_t)(window < 0xffff ? window : 0xffff));
	fin_checksum(&tcp, addrs, words * 8);
	memset(packet, 0, sizeof(packet));
	if (words == 4) {
		struct ip6_hdr h = { .ip6_plen = htons(sizeof(tcp)), .ip6_nxt = IPPROTO_TCP, .ip6_hlim = 64 };

		h.ip6_vfc = 0x60;
		memcpy(&h.ip6_src, addrs, 32);
		memcpy(packet, &h, sizeof(h));
		to.v6.sin6_family = AF_INET6;
		memcpy(&to.v6.sin6_addr, addrs + 4, 16);
		if (isk->ifname)
			inet_local(isk, &to), to.v6.sin6_port = 0;
	} else {
		struct iphdr h = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP };

		h.saddr = addrs[0];
		h.daddr = addrs[1];
		h.tot_len = htons(sizeof(h) + sizeof(tcp));
		memcpy(packet, &h, sizeof(h));
		to.v4.sin_family = AF_INET;
		to.v4.sin_addr.s_addr = addrs[1];
	}
	memcpy(packet + head, &tcp, sizeof(tcp));
	return raw < 0 || sendto(raw, packet, head + sizeof(tcp), 0, &to.any, inet_addr_len(&to)) < 0 ? -1 : 0;
}

/* Without the FIN in the sequence numbers the program still reads end of file, which is what counts for it. */
static void receive_fin(int fd, const InetSkEntry *isk, const TcpStreamEntry *t)
{
	struct tcp_info info;

	if (inject_fin(isk, t) < 0 || get_info(fd, &info) < 0 || info.tcpi_state == INET_ESTABLISHED)
		shutdown(fd, SHUT_RD);
}

/* An error here is one of the connection (the peer reset it): the program will find it itself. Only being out of
 * buffer space would lose bytes. */
static int send_unsent(int fd, const uint8_t *data, size_t len, struct fault *f)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM))
			return fault_errno(f, FAULT_NO_MEMORY, "queue %zu bytes of a TCP connection", len);
		if (n < 0)
			return 0;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int tcp_commit(const FileEntry *e, const struct image *img, int dup, struct fault *f)
{
	const InetSkEntry *isk = e->isk;
	const uint8_t *data;
	size_t data_len;
	const TcpStreamEntry *t = stream_of(img, isk, &data, &data_len);
	bool peer_first = isk->state == INET_CLOSE_WAIT || isk->state == INET_LAST_ACK;

	if (!is_connection(isk->state))
		return 0;
	if (check_stream(t, data_len, f) < 0)
		return -1;
	if (repair_off(dup, TCP_REPAIR_OFF, isk->opts->reuseaddr) < 0)
		return fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR off");
	if (peer_first)
		receive_fin(dup, isk, t);
	if (send_unsent(dup, data + t->inq_len + t->outq_len - t->unsq_len, t->unsq_len, f) < 0)
		return -1;
	if (fin_sent(isk->state))
		shutdown(dup, SHUT_WR);
	if (isk->state == INET_CLOSING)
		receive_fin(dup, isk, t);
	if (isk->shutdown & SK_SHUTDOWN__READ)
		shutdown(dup, SHUT_RD);
	return t->unsq_len ? inet_buffers_final(dup, isk, f) : 0;
}

const struct fd_kind sock_tcp_kind = {
	.name = "TCP socket",
	.type = FD_TYPES__INETSK,
	.phase = FD_PHASE_NETWORK,
	.claims = tcp_claims,
	.check = tcp_check,
	.save = tcp_save,
	.restore = tcp_restore,
	.commit = tcp_commit,
};

/* Leaving repair mode loses SO_REUSEADDR, whose value died with the worker: what a listener on the port has, accepted
 * connections had from it. */
struct listener {
	uint16_t port;
	int reuse;
};

static int reuse_of_port(const struct listener *l, size_t n, uint16_t port)
{
	for (size_t i = 0; i < n; i++)
		if (l[i].port == port)
			return l[i].reuse;
	return 0;
}

static int repair_one(int fd, bool on, struct listener *l, size_t *n, size_t max, struct fault *f)
{
	struct inet_kind k;
	struct tcp_info info;
	struct net_flow w = { 0 };
	uint32_t repair;
	socklen_t len = sizeof(int);

	if (!inet_kind_of(fd, &k) || k.protocol != IPPROTO_TCP || get_info(fd, &info) < 0)
		return 0;
	inet_flow_of_socket(fd, &w);
	if (info.tcpi_state == INET_LISTEN && *n < max) {
		l[*n].port = w.local_port;
		if (getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &l[*n].reuse, &len) == 0)
			++*n;
		return 0;
	}
	if (on) {
		if (is_connection(info.tcpi_state) && set_int(fd, TCP_REPAIR, TCP_REPAIR_ON) < 0)
			return fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR on");
		return 0;
	}
	if (get_u32(fd, TCP_REPAIR, &repair) < 0 || !repair)
		return 0;
	if (repair_off(fd, TCP_REPAIR_OFF_NO_WP, reuse_of_port(l, *n, w.local_port)) < 0)
		return fault_errno(f, FAULT_KERNEL, "switch TCP_REPAIR off");
	return 0;
}

int sock_repair_all(pid_t pid, bool on, struct fault *f)
{
	struct listener listeners[64];
	size_t n = 0;
	char path[32];
	struct dirent *e;
	DIR *d;
	int r = 0;
	auto_fd pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = pidfd < 0 ? NULL : opendir(path);
	if (!d)
		return errno == ESRCH || errno == ENOENT ? 0 : /* gone, and its sockets with it */
			       fault_errno(f, FAULT_SYSTEM, "list the descriptors of pid %d", (int)pid);
	while ((e = readdir(d))) { /* numbers ascend: a listener comes before what it accepted */
		char link[32] = "";
		auto_fd fd = -1;

		if (readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) < 0 || strncmp(link, "socket:", 7) != 0)
			continue;
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(e->d_name), 0);
		if (fd >= 0 && repair_one(fd, on, listeners, &n, ARRAY_LEN(listeners), f) < 0)
			r = fault_while(f, "fd %s of pid %d", e->d_name, (int)pid);
	}
	closedir(d);
	return r;
}
