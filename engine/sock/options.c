/*
 * Socket options: one row an option.
 *
 * Saved is what differs from a fresh socket of that kind, raw as getsockopt(2) gave it (interfaces by name: their
 * numbers differ between hosts); besides, the fields of CRIU's sk_opts_entry. Restored in two steps: what bind(2) and
 * the route depend on before it, the rest when the socket has its final state; in each the order is that of the table.
 * Not here: buffer sizes (their own functions, they change with the queues), SO_REUSEADDR and IP_TRANSPARENT (the kinds
 * need them set while they restore), and what changes by itself: TCP_QUICKACK, TCP_MAXSEG and TCP_WINDOW_CLAMP of a
 * connection.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

#include "inet.h"
#include "sock.h"

/* Newer than the headers of Debian 12. */
#ifndef IPV6_FLOWINFO /* linux/in6.h, which can't be included beside netinet/in.h on every system */
#define IPV6_FLOWINFO 11
#endif
#ifndef IPV6_FLOWINFO_SEND
#define IPV6_FLOWINFO_SEND 33
#endif
#define NEW_IP_LOCAL_PORT_RANGE 51
#define NEW_SO_RCVMARK		75
#define NEW_SO_RCVPRIORITY	82
#define NEW_TCP_RTO_MAX_MS	44
#define NEW_TCP_RTO_MIN_US	45
#define NEW_TCP_DELACK_MAX_US	46
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
#ifndef IPV6_USE_MIN_MTU
#define IPV6_USE_MIN_MTU 63 /* commented out in linux/in6.h, and not known to getsockopt(2) of today */
#endif
#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif

enum option_kind {
	OPTION_PLAIN,	/* bytes are what they are */
	OPTION_DEVICE,	/* NUL-terminated name of a device */
	OPTION_IFINDEX, /* number of a device: stored by name */
	OPTION_IFINDEX_BE,
};

/* Who has it, and when it is set. */
enum {
	TCP = 1,      /* any TCP socket */
	TCP_IDLE = 2, /* one that is not connected: listening, bound, fresh */
	UDP = 4,
	V4 = 8,
	V6 = 16,
	EARLY = 32,
	ALL = TCP | UDP | V4 | V6,
};

struct option_row {
	int level, name;
	const char *text;
	uint8_t size; /* largest value */
	uint8_t who;
	uint8_t kind;
};

#define OPTION_MAX 255
#define INT(level, name, who)                            \
	{                                                \
		level, name, #name, 4, who, OPTION_PLAIN \
	}
#define BYTES(level, name, n, who)                       \
	{                                                \
		level, name, #name, n, who, OPTION_PLAIN \
	}

static const struct option_row rows[] = {
	{ SOL_SOCKET, SO_BINDTODEVICE, "SO_BINDTODEVICE", IF_NAMESIZE, ALL | EARLY, OPTION_DEVICE },
	INT(SOL_SOCKET, SO_REUSEPORT, ALL | EARLY),
	INT(SOL_SOCKET, SO_MARK, ALL | EARLY),
	INT(SOL_SOCKET, SO_DONTROUTE, ALL | EARLY),
	INT(SOL_SOCKET, SO_DEBUG, ALL),
	INT(SOL_SOCKET, SO_BROADCAST, ALL),
	INT(SOL_SOCKET, SO_KEEPALIVE, ALL),
	INT(SOL_SOCKET, SO_OOBINLINE, ALL),
	BYTES(SOL_SOCKET, SO_LINGER, sizeof(struct linger), ALL),
	INT(SOL_SOCKET, SO_RCVLOWAT, ALL),
	BYTES(SOL_SOCKET, SO_RCVTIMEO, sizeof(struct timeval), ALL),
	BYTES(SOL_SOCKET, SO_SNDTIMEO, sizeof(struct timeval), ALL),
	INT(SOL_SOCKET, SO_NO_CHECK, UDP | V4 | V6),
	INT(SOL_SOCKET, SO_TIMESTAMP_OLD, ALL),
	INT(SOL_SOCKET, SO_TIMESTAMPNS_OLD, ALL),
	INT(SOL_SOCKET, SO_TIMESTAMP_NEW, ALL),
	INT(SOL_SOCKET, SO_TIMESTAMPNS_NEW, ALL),
	BYTES(SOL_SOCKET, SO_TIMESTAMPING_OLD, 8, ALL),
	INT(SOL_SOCKET, SO_RXQ_OVFL, UDP | V4 | V6),
	INT(SOL_SOCKET, SO_PEEK_OFF, ALL),
	INT(SOL_SOCKET, SO_SELECT_ERR_QUEUE, ALL),
	INT(SOL_SOCKET, SO_BUSY_POLL, ALL),
	INT(SOL_SOCKET, SO_PREFER_BUSY_POLL, ALL),
	INT(SOL_SOCKET, SO_BUSY_POLL_BUDGET, ALL),
	BYTES(SOL_SOCKET, SO_MAX_PACING_RATE, 8, ALL),
	INT(SOL_SOCKET, SO_INCOMING_CPU, TCP_IDLE | V4 | V6),
	INT(SOL_SOCKET, SO_ZEROCOPY, ALL),
	BYTES(SOL_SOCKET, SO_TXTIME, 8, UDP | V4 | V6),
	INT(SOL_SOCKET, SO_RESERVE_MEM, ALL),
	INT(SOL_SOCKET, SO_TXREHASH, TCP | V4 | V6),
	INT(SOL_SOCKET, NEW_SO_RCVMARK, ALL),
	INT(SOL_SOCKET, NEW_SO_RCVPRIORITY, ALL),

	INT(IPPROTO_IP, IP_FREEBIND, ALL | EARLY),
	INT(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, ALL | EARLY),
	INT(IPPROTO_IP, NEW_IP_LOCAL_PORT_RANGE, ALL | EARLY),
	INT(IPPROTO_IP, IP_TRANSPARENT, ALL), /* set by inet_settle */
	BYTES(IPPROTO_IP, IP_OPTIONS, 40, ALL | EARLY),
	INT(IPPROTO_IP, IP_TOS, ALL | EARLY),
	INT(IPPROTO_IP, IP_TTL, ALL),
	INT(IPPROTO_IP, IP_MINTTL, ALL),
	INT(IPPROTO_IP, IP_MTU_DISCOVER, ALL),
	INT(IPPROTO_IP, IP_RECVERR, ALL),
	INT(IPPROTO_IP, IP_RECVERR_RFC4884, UDP | V4 | V6),
	INT(IPPROTO_IP, IP_PKTINFO, ALL),
	INT(IPPROTO_IP, IP_RECVTTL, ALL),
	INT(IPPROTO_IP, IP_RECVTOS, ALL),
	INT(IPPROTO_IP, IP_RECVOPTS, ALL),
	INT(IPPROTO_IP, IP_RETOPTS, ALL),
	INT(IPPROTO_IP, IP_PASSSEC, ALL),
	INT(IPPROTO_IP, IP_RECVORIGDSTADDR, ALL),
	INT(IPPROTO_IP, IP_CHECKSUM, UDP | V4 | V6),
	INT(IPPROTO_IP, IP_RECVFRAGSIZE, UDP | V4 | V6),
	BYTES(IPPROTO_IP, IP_MULTICAST_IF, 4, UDP | V4 | V6),
	INT(IPPROTO_IP, IP_MULTICAST_TTL, UDP | V4 | V6),
	INT(IPPROTO_IP, IP_MULTICAST_LOOP, UDP | V4 | V6),
	INT(IPPROTO_IP, IP_MULTICAST_ALL, UDP | V4 | V6),
	{ IPPROTO_IP, IP_UNICAST_IF, "IP_UNICAST_IF", 4, ALL, OPTION_IFINDEX_BE },

	INT(IPPROTO_IPV6, IPV6_V6ONLY, TCP | UDP | V6 | EARLY),
	INT(IPPROTO_IPV6, IPV6_TCLASS, TCP | UDP | V6 | EARLY),
	INT(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, TCP | UDP | V6 | EARLY),
	INT(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, TCP | UDP | V6 | EARLY),
	INT(IPPROTO_IPV6, IPV6_UNICAST_HOPS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_MINHOPCOUNT, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_MTU_DISCOVER, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVERR, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVERR_RFC4884, UDP | V6),
	INT(IPPROTO_IPV6, IPV6_DONTFRAG, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_USE_MIN_MTU, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVPKTINFO, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_2292PKTINFO, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_2292HOPLIMIT, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVHOPOPTS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_2292HOPOPTS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVDSTOPTS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_2292DSTOPTS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVRTHDR, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_2292RTHDR, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVPATHMTU, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVTCLASS, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_FLOWINFO, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_FLOWINFO_SEND, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, TCP | UDP | V6),
	INT(IPPROTO_IPV6, IPV6_RECVFRAGSIZE, UDP | V6),
	BYTES(IPPROTO_IPV6, IPV6_HOPOPTS, OPTION_MAX, TCP | UDP | V6),
	BYTES(IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, OPTION_MAX, TCP | UDP | V6),
	BYTES(IPPROTO_IPV6, IPV6_RTHDR, OPTION_MAX, TCP | UDP | V6),
	BYTES(IPPROTO_IPV6, IPV6_DSTOPTS, OPTION_MAX, TCP | UDP | V6),
	{ IPPROTO_IPV6, IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF", 4, UDP | V6, OPTION_IFINDEX },
	INT(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, UDP | V6),
	INT(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, UDP | V6),
	INT(IPPROTO_IPV6, IPV6_MULTICAST_ALL, UDP | V6),
	{ IPPROTO_IPV6, IPV6_UNICAST_IF, "IPV6_UNICAST_IF", 4, TCP | UDP | V6, OPTION_IFINDEX_BE },
	INT(SOL_SOCKET, SO_PRIORITY, ALL), /* IP_TOS sets it, too */

	BYTES(IPPROTO_TCP, TCP_CONGESTION, 16, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_NODELAY, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_CORK, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_KEEPIDLE, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_KEEPINTVL, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_KEEPCNT, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_SYNCNT, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_LINGER2, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_USER_TIMEOUT, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_NOTSENT_LOWAT, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_INQ, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_TX_DELAY, TCP | V4 | V6),
	INT(IPPROTO_TCP, NEW_TCP_RTO_MAX_MS, TCP | V4 | V6),
	INT(IPPROTO_TCP, NEW_TCP_RTO_MIN_US, TCP | V4 | V6),
	INT(IPPROTO_TCP, NEW_TCP_DELACK_MAX_US, TCP | V4 | V6),
	INT(IPPROTO_TCP, TCP_MAXSEG, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_WINDOW_CLAMP, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_DEFER_ACCEPT, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_FASTOPEN, TCP_IDLE | V4 | V6),
	BYTES(IPPROTO_TCP, TCP_FASTOPEN_KEY, 32, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, TCP_IDLE | V4 | V6),
	INT(IPPROTO_TCP, TCP_SAVE_SYN, TCP_IDLE | V4 | V6),

	INT(IPPROTO_UDP, UDP_CORK, UDP | V4 | V6),
	INT(IPPROTO_UDP, UDP_ENCAP, UDP | V4 | V6),
	INT(IPPROTO_UDP, UDP_NO_CHECK6_TX, UDP | V6),
	INT(IPPROTO_UDP, UDP_NO_CHECK6_RX, UDP | V6),
	INT(IPPROTO_UDP, UDP_SEGMENT, UDP | V4 | V6),
	INT(IPPROTO_UDP, UDP_GRO, UDP | V4 | V6),
	INT(SOL_SOCKET, SO_LOCK_FILTER, ALL), /* after the filter; can't be taken back */
};

static bool row_applies(const struct option_row *r, int family, int protocol, bool idle)
{
	unsigned who = family == AF_INET ? V4 : V6;
	unsigned kind = protocol == IPPROTO_TCP ? (unsigned)(idle ? TCP | TCP_IDLE : TCP) : UDP;

	return (r->who & who) && (r->who & kind);
}

static int get(int fd, const struct option_row *r, void *value, socklen_t *len)
{
	memset(value, 0, (size_t)r->size + 1);
	*len = r->size;
	return getsockopt(fd, r->level, r->name, value, len);
}

/* A device's number as its name; 0 stays the empty name. */
static void index_to_name(const struct option_row *r, char *value, socklen_t *len)
{
	uint32_t index;

	if (r->kind != OPTION_IFINDEX && r->kind != OPTION_IFINDEX_BE)
		return;
	memcpy(&index, value, sizeof(index));
	if (r->kind == OPTION_IFINDEX_BE)
		index = ntohl(index);
	memset(value, 0, IF_NAMESIZE);
	if (index)
		if_indextoname(index, value);
	*len = (socklen_t)strlen(value) + 1;
}

static void put_option(struct arena *a, InetSkEntry *isk, const struct option_row *r, const void *value, size_t len)
{
	SkOptionEntry *o = arena_msg(a, SkOptionEntry, sk_option_entry);

	o->level = (uint32_t)r->level;
	o->name = (uint32_t)r->name;
	o->value.data = arena_memdup(a, value, len);
	o->value.len = len;
	arena_push(a, isk->n_options, isk->options, o);
}

static int get_int(int fd, int level, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) < 0 ? 0 : v;
}

#define FIELD(o, field, v)            \
	do {                          \
		(o)->has_##field = 1; \
		(o)->field = (v);     \
	} while (0)

/* The fields that CRIU has. */
static SkOptsEntry *criu_fields(int fd, int protocol, struct arena *a)
{
	SkOptsEntry *o = arena_msg(a, SkOptsEntry, sk_opts_entry);
	struct timeval snd = { 0 }, rcv = { 0 };
	struct linger linger = { 0 };
	char dev[IF_NAMESIZE] = "";
	socklen_t len = sizeof(snd);

	o->so_sndbuf = (uint32_t)get_int(fd, SOL_SOCKET, SO_SNDBUF);
	o->so_rcvbuf = (uint32_t)get_int(fd, SOL_SOCKET, SO_RCVBUF);
	FIELD(o, so_buf_lock, (uint32_t)get_int(fd, SOL_SOCKET, SO_BUF_LOCK));
	getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &snd, &len);
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &rcv, &len);
	o->so_snd_tmo_sec = (uint64_t)snd.tv_sec;
	o->so_snd_tmo_usec = (uint64_t)snd.tv_usec;
	o->so_rcv_tmo_sec = (uint64_t)rcv.tv_sec;
	o->so_rcv_tmo_usec = (uint64_t)rcv.tv_usec;
	FIELD(o, reuseaddr, get_int(fd, SOL_SOCKET, SO_REUSEADDR) != 0);
	FIELD(o, so_reuseport, get_int(fd, SOL_SOCKET, SO_REUSEPORT) != 0);
	FIELD(o, so_priority, (uint32_t)get_int(fd, SOL_SOCKET, SO_PRIORITY));
	FIELD(o, so_rcvlowat, (uint32_t)get_int(fd, SOL_SOCKET, SO_RCVLOWAT));
	FIELD(o, so_mark, (uint32_t)get_int(fd, SOL_SOCKET, SO_MARK));
	FIELD(o, so_dontroute, get_int(fd, SOL_SOCKET, SO_DONTROUTE) != 0);
	FIELD(o, so_no_check, get_int(fd, SOL_SOCKET, SO_NO_CHECK) != 0);
	FIELD(o, so_broadcast, get_int(fd, SOL_SOCKET, SO_BROADCAST) != 0);
	FIELD(o, so_keepalive, get_int(fd, SOL_SOCKET, SO_KEEPALIVE) != 0);
	FIELD(o, so_oobinline, (uint32_t)get_int(fd, SOL_SOCKET, SO_OOBINLINE));
	len = sizeof(linger);
	if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len) == 0 && linger.l_onoff)
		FIELD(o, so_linger, (uint32_t)linger.l_linger);
	len = sizeof(dev);
	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, dev, &len) == 0 && len)
		o->so_bound_dev = arena_strdup(a, dev);
	if (protocol == IPPROTO_TCP) {
		FIELD(o, tcp_keepcnt, (uint32_t)get_int(fd, IPPROTO_TCP, TCP_KEEPCNT));
		FIELD(o, tcp_keepidle, (uint32_t)get_int(fd, IPPROTO_TCP, TCP_KEEPIDLE));
		FIELD(o, tcp_keepintvl, (uint32_t)get_int(fd, IPPROTO_TCP, TCP_KEEPINTVL));
	}
	return o;
}

/* A classic filter, each instruction as CRIU packs it. */
static void save_filter(int fd, struct arena *a, SkOptsEntry *o, struct report *losses, const char *object)
{
	struct sock_filter *prog;
	socklen_t n = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) < 0) {
		if (errno == EACCES)
			report_add(losses, REPORT_LOSS, FAULT_UNSUPPORTED, object, NULL,
				   "its eBPF filter can't be read and is not preserved");
		return;
	}
	if (!n)
		return;
	prog = arena_alloc(a, n * sizeof(*prog));
	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, prog, &n) < 0)
		return;
	o->so_filter = arena_alloc(a, n * sizeof(*o->so_filter));
	o->n_so_filter = n;
	for (socklen_t i = 0; i < n; i++)
		o->so_filter[i] = (uint64_t)prog[i].code << 48 | (uint64_t)prog[i].jt << 40 |
				  (uint64_t)prog[i].jf << 32 | prog[i].k;
}

/* What fresh sockets have: read once per kind and network namespace, as reading costs as much as saving a socket. */
struct defaults {
	int family, type, protocol;
	uint64_t netns;
	struct {
		socklen_t len; /* 0: no such option */
		uint8_t value[OPTION_MAX + 1];
	} row[ARRAY_LEN(rows)];
};

static uint64_t netns_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t len = sizeof(cookie);

	return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0 ? 0 : cookie;
}

static const struct defaults *defaults_of(int dup, int family, int type, int protocol, struct fault *f)
{
	static _Thread_local struct defaults known[4];
	static _Thread_local unsigned next;
	uint64_t netns = netns_cookie(dup);
	struct defaults *d;
	auto_fd fresh = -1;

	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (netns && known[i].netns == netns && known[i].family == family && known[i].type == type &&
		    known[i].protocol == protocol)
			return &known[i];
	fresh = socket(family, type | SOCK_CLOEXEC, protocol);
	if (fresh < 0) {
		fault_errno(f, FAULT_SYSTEM, "make a socket of family %d, type %d, protocol %d", family, type,
			    protocol);
		return NULL;
	}
	d = &known[next++ % ARRAY_LEN(known)];
	memset(d, 0, sizeof(*d));
	d->family = family;
	d->type = type;
	d->protocol = protocol;
	d->netns = netns;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (row_applies(&rows[i], family, protocol, true) &&
		    get(fresh, &rows[i], d->row[i].value, &d->row[i].len) < 0)
			d->row[i].len = 0;
	return d;
}

int sock_options_save(int dup, int family, int type, int protocol, struct arena *a, InetSkEntry *isk,
		      struct report *losses, const char *object, struct fault *f)
{
	const struct defaults *d = defaults_of(dup, family, type, protocol, f);
	bool idle = isk->state != INET_ESTABLISHED;

	if (!d)
		return -1;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		const struct option_row *r = &rows[i];
		char value[OPTION_MAX + 1];
		socklen_t len;
		bool always = r->level == IPPROTO_TCP && r->name == TCP_CONGESTION; /* hosts differ in their default */

		if (!row_applies(r, family, protocol, idle) || get(dup, r, value, &len) < 0)
			continue;
		if (!always && len == d->row[i].len && !memcmp(value, d->row[i].value, len))
			continue;
		index_to_name(r, value, &len);
		put_option(a, isk, r, value, len);
	}
	isk->opts = criu_fields(dup, protocol, a);
	save_filter(dup, a, isk->opts, losses, object);
	isk->ip_opts = arena_msg(a, IpOptsEntry, ip_opts_entry);
	FIELD(isk->ip_opts, freebind, get_int(dup, IPPROTO_IP, IP_FREEBIND) != 0);
	return 0;
}

static const struct option_row *row_of(const SkOptionEntry *o)
{
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if ((uint32_t)rows[i].level == o->level && (uint32_t)rows[i].name == o->name)
			return &rows[i];
	return NULL;
}

bool inet_option_int(const InetSkEntry *isk, int level, int name, int *value)
{
	for (size_t i = 0; i < isk->n_options; i++) {
		const SkOptionEntry *o = isk->options[i];

		if (o->level == (uint32_t)level && o->name == (uint32_t)name && o->value.len == sizeof(*value)) {
			memcpy(value, o->value.data, sizeof(*value));
			return true;
		}
	}
	return false;
}

static int set(int fd, const struct option_row *r, const SkOptionEntry *o)
{
	uint32_t index;

	if (r->kind != OPTION_IFINDEX && r->kind != OPTION_IFINDEX_BE)
		return setsockopt(fd, r->level, r->name, o->value.data, (socklen_t)o->value.len);
	if (!o->value.len || o->value.data[o->value.len - 1] != '\0')
		return errno = EINVAL, -1;
	index = if_nametoindex((const char *)o->value.data);
	if (!index && o->value.len > 1)
		return errno = ENODEV, -1;
	if (r->kind == OPTION_IFINDEX_BE)
		index = htonl(index);
	return setsockopt(fd, r->level, r->name, &index, sizeof(index));
}

static int apply(int fd, const InetSkEntry *isk, bool early, struct report *losses, const char *object, struct fault *f)
{
	for (size_t i = 0; i < isk->n_options; i++) {
		const SkOptionEntry *o = isk->options[i];
		const struct option_row *r = row_of(o);

		if (!r) {
			if (early)
				report_add(losses, REPORT_LOSS, FAULT_UNSUPPORTED, object, NULL,
					   "socket option %u:%u is not known here", o->level, o->name);
			continue;
		}
		if (((r->who & EARLY) != 0) != early || (r->level == IPPROTO_IP && r->name == IP_TRANSPARENT) ||
		    (r->level == SOL_SOCKET && r->name == SO_LOCK_FILTER) || set(fd, r, o) == 0)
			continue;
		if (r->kind == OPTION_DEVICE) /* it would talk to other networks than it was meant to */
			return fault_errno(f, FAULT_NETWORK, "bind %s to the device \"%.*s\"", object,
					   (int)o->value.len, (const char *)o->value.data);
		report_add(losses, REPORT_LOSS, FAULT_UNSUPPORTED, object, NULL, "socket option %s can't be set: %s",
			   r->text, strerror(errno));
	}
	return 0;
}

static int restore_filter(int fd, const SkOptsEntry *opts, struct fault *f)
{
	struct sock_filter prog[BPF_MAXINSNS];
	struct sock_fprog p = { (unsigned short)opts->n_so_filter, prog };

	if (!opts->n_so_filter)
		return 0;
	if (opts->n_so_filter > BPF_MAXINSNS)
		return fault_set(f, FAULT_IMAGE, "a socket filter of %zu instructions", opts->n_so_filter);
	for (size_t i = 0; i < opts->n_so_filter; i++) {
		uint64_t w = opts->so_filter[i];

		prog[i] = (struct sock_filter){ (uint16_t)(w >> 48), (uint8_t)(w >> 40), (uint8_t)(w >> 32),
						(uint32_t)w };
	}
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &p, sizeof(p)) < 0)
		return fault_errno(f, FAULT_IMAGE, "attach a socket filter of %zu instructions", opts->n_so_filter);
	return 0;
}

int inet_options_early(int fd, const InetSkEntry *isk, struct report *losses, const char *object, struct fault *f)
{
	return apply(fd, isk, true, losses, object, f);
}

int inet_options_late(int fd, const InetSkEntry *isk, struct report *losses, const char *object, struct fault *f)
{
	int lock = 0;

	if (apply(fd, isk, false, losses, object, f) < 0 || restore_filter(fd, isk->opts, f) < 0)
		return -1;
	if (inet_option_int(isk, SOL_SOCKET, SO_LOCK_FILTER, &lock) && lock &&
	    setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &lock, sizeof(lock)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "lock the filter of %s", object);
	return 0;
}

int sock_options_restore(int fd, const InetSkEntry *isk, struct report *losses, const char *object, struct fault *f)
{
	int reuse = isk->opts->reuseaddr;

	if (inet_options_early(fd, isk, losses, object, f) < 0 || inet_options_late(fd, isk, losses, object, f) < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "SO_REUSEADDR of %s", object);
	return inet_buffers_final(fd, isk, f);
}

void inet_buffers_force(int fd, size_t in, size_t out)
{
	/* The kernel doubles the value; a queue's bookkeeping can cost more than its bytes. */
	int rcv = (int)(in < (256u << 20) ? 2 * in + (1u << 20) : 512u << 20);
	int snd = (int)(out < (256u << 20) ? 2 * out + (1u << 20) : 512u << 20);

	if (in)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcv, sizeof(rcv));
	if (out)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &snd, sizeof(snd));
}

int inet_buffers_final(int fd, const InetSkEntry *isk, struct fault *f)
{
	int snd = (int)(isk->opts->so_sndbuf / 2), rcv = (int)(isk->opts->so_rcvbuf / 2);
	int lock = isk->opts->has_so_buf_lock ? (int)isk->opts->so_buf_lock : 0;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &snd, sizeof(snd)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcv, sizeof(rcv)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "buffer sizes of a socket (%d, %d)", 2 * snd, 2 * rcv);
	/* Before 5.14 the sizes stay as if the program had set them: they no longer grow by themselves. */
	if (setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &lock, sizeof(lock)) < 0 && errno != ENOPROTOOPT)
		return fault_errno(f, FAULT_SYSTEM, "SO_BUF_LOCK %d of a socket", lock);
	return 0;
}
