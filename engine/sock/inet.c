/*
 * Common parts of internet sockets. Addresses in an entry stand as CRIU writes them: words in network order, one for
 * IPv4, four for IPv6 (v4-mapped ones included), ports in host order.
 */
#include "inet.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "address.h"
#include "process.h"
#include "sock.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

bool inet_kind_of(int fd, struct inet_kind *k)
{
	socklen_t len = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &k->family, &len) == 0 &&
	       (k->family == AF_INET || k->family == AF_INET6) &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &k->type, &len) == 0 &&
	       getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &k->protocol, &len) == 0;
}

socklen_t inet_addr_len(const union inet_addr *a)
{
	return a->any.sa_family == AF_INET ? sizeof(a->v4) : sizeof(a->v6);
}

bool inet_addr_is_any(const union inet_addr *a)
{
	return a->any.sa_family == AF_INET ? a->v4.sin_addr.s_addr == 0 : IN6_IS_ADDR_UNSPECIFIED(&a->v6.sin6_addr);
}

uint16_t inet_addr_port(const union inet_addr *a)
{
	return ntohs(a->any.sa_family == AF_INET ? a->v4.sin_port : a->v6.sin6_port);
}

static const void *addr_bytes(const union inet_addr *a)
{
	return a->any.sa_family == AF_INET ? (const void *)&a->v4.sin_addr : (const void *)&a->v6.sin6_addr;
}

void inet_addr_text(const union inet_addr *a, char *buf, size_t len)
{
	char ip[INET6_ADDRSTRLEN] = "?", scope[IF_NAMESIZE + 1] = "%";
	bool v6 = a->any.sa_family == AF_INET6;

	inet_ntop(a->any.sa_family, addr_bytes(a), ip, sizeof(ip));
	if (!v6 || !a->v6.sin6_scope_id || !if_indextoname(a->v6.sin6_scope_id, scope + 1))
		scope[0] = '\0';
	snprintf(buf, len, "%s%s%s%s:%u", v6 ? "[" : "", ip, scope, v6 ? "]" : "", inet_addr_port(a));
}

static bool name_of(int fd, bool peer, union inet_addr *a)
{
	socklen_t len = sizeof(*a);

	memset(a, 0, sizeof(*a));
	return (peer ? getpeername(fd, &a->any, &len) : getsockname(fd, &a->any, &len)) == 0;
}

static void object_text(const char *prefix, int protocol, const union inet_addr *local, const union inet_addr *remote,
			char *buf, size_t len)
{
	char l[80] = "", r[80] = "";

	if (local)
		inet_addr_text(local, l, sizeof(l));
	if (remote)
		inet_addr_text(remote, r, sizeof(r));
	snprintf(buf, len, "%s%s %s%s%s", prefix, protocol == IPPROTO_UDP ? "UDP" : "TCP", local ? l : "socket",
		 remote ? " - " : "", r);
}

void inet_object(const struct fd_info *i, char *buf, size_t len)
{
	struct inet_kind k = { 0 };
	union inet_addr local, remote;
	char prefix[24];
	bool bound, connected;

	snprintf(prefix, sizeof(prefix), "fd %d: ", i->fd);
	inet_kind_of(i->dup, &k);
	bound = name_of(i->dup, false, &local) && inet_addr_port(&local);
	connected = name_of(i->dup, true, &remote);
	object_text(prefix, k.protocol, bound ? &local : NULL, connected ? &remote : NULL, buf, len);
}

void inet_object_of_entry(const InetSkEntry *isk, char *buf, size_t len)
{
	union inet_addr local, remote;
	bool bound = inet_local(isk, &local), connected = inet_remote(isk, &remote);

	object_text("", (int)isk->proto, bound ? &local : NULL, connected ? &remote : NULL, buf, len);
}

static void put_addr(struct arena *a, const union inet_addr *addr, size_t *n, uint32_t **words, uint32_t *port)
{
	*n = addr->any.sa_family == AF_INET ? 1 : 4;
	*words = arena_memdup(a, addr_bytes(addr), *n * 4);
	*port = inet_addr_port(addr);
}

int inet_save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	struct arena *a = filetab_arena(s->files);
	InetSkEntry *isk = arena_msg(a, InetSkEntry, inet_sk_entry);
	struct inet_kind k;
	union inet_addr local, remote;
	char object[200], scope[IF_NAMESIZE];
	int v6only = 0;
	socklen_t len = sizeof(v6only);

	if (!inet_kind_of(i->dup, &k) || !name_of(i->dup, false, &local))
		return fault_errno(f, FAULT_SYSTEM, "name of the socket at fd %d", i->fd);
	inet_object(i, object, sizeof(object));
	isk->id = e->id;
	isk->ino = (uint32_t)i->st.st_ino;
	isk->family = (uint32_t)k.family;
	isk->type = (uint32_t)k.type;
	isk->proto = (uint32_t)k.protocol;
	isk->state = INET_CLOSE;
	isk->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	isk->has_owner_uid = isk->has_owner_gid = 1;
	isk->owner_uid = i->st.st_uid;
	isk->owner_gid = i->st.st_gid;
	put_addr(a, &local, &isk->n_src_addr, &isk->src_addr, &isk->src_port);
	if (name_of(i->dup, true, &remote)) {
		put_addr(a, &remote, &isk->n_dst_addr, &isk->dst_addr, &isk->dst_port);
		isk->state = INET_ESTABLISHED;
	} else {
		isk->n_dst_addr = isk->n_src_addr;
		isk->dst_addr = arena_alloc(a, 4 * isk->n_dst_addr);
	}
	if (k.family == AF_INET6 && local.v6.sin6_scope_id && if_indextoname(local.v6.sin6_scope_id, scope))
		isk->ifname = arena_strdup(a, scope);
	if (k.family == AF_INET6 && getsockopt(i->dup, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, &len) == 0) {
		isk->has_v6only = 1;
		isk->v6only = v6only != 0;
	}
	isk->fown = fd_fown_save(s, i);
	if (sock_options_save(i->dup, k.family, k.type, k.protocol, a, isk, s->report, object, f) < 0)
		return fault_while(f, "saving %s", object);
	e->type = FD_TYPES__INETSK;
	e->isk = isk;
	return 0;
}

static bool get_addr(const InetSkEntry *isk, size_t n, const uint32_t *words, uint32_t port, union inet_addr *out)
{
	memset(out, 0, sizeof(*out));
	out->any.sa_family = (sa_family_t)isk->family;
	if (isk->family == AF_INET && n == 1) {
		out->v4.sin_port = htons((uint16_t)port);
		memcpy(&out->v4.sin_addr, words, 4);
		return true;
	}
	if (isk->family != AF_INET6 || n != 4)
		return false;
	out->v6.sin6_port = htons((uint16_t)port);
	memcpy(&out->v6.sin6_addr, words, 16);
	if (isk->ifname)
		out->v6.sin6_scope_id = if_nametoindex(isk->ifname);
	return true;
}

bool inet_local(const InetSkEntry *isk, union inet_addr *out)
{
	return get_addr(isk, isk->n_src_addr, isk->src_addr, isk->src_port, out) &&
	       (isk->src_port || !inet_addr_is_any(out));
}

bool inet_remote(const InetSkEntry *isk, union inet_addr *out)
{
	return get_addr(isk, isk->n_dst_addr, isk->dst_addr, isk->dst_port, out) &&
	       (isk->dst_port || !inet_addr_is_any(out));
}

int inet_socket(const InetSkEntry *isk, int min_fd, struct fault *f)
{
	auto_fd low = socket((int)isk->family, (int)isk->type, (int)isk->proto);
	auto_fd fd = -1;

	if (low < 0)
		return fault_errno(f, FAULT_KERNEL, "make a socket of family %u, type %u, protocol %u", isk->family,
				   isk->type, isk->proto);
	fd = low >= min_fd ? take_fd(&low) : fcntl(low, F_DUPFD, min_fd);
	if (fd < 0)
		return fault_errno(f, FAULT_LIMIT, "descriptor number %d for a socket", min_fd);
	/* Before bind: ports are shared with SO_REUSEPORT among sockets of one owner only. */
	if (isk->has_owner_uid && fchown(fd, isk->owner_uid, isk->owner_gid) < 0)
		return fault_errno(f, FAULT_SYSTEM, "owner of a socket");
	return take_fd(&fd);
}

int inet_bind(int fd, const InetSkEntry *isk, struct fault *f)
{
	union inet_addr a;
	char text[80];
	int on = 1;

	if (!inet_local(isk, &a))
		return 0;
	/* The address may come only after the socket; IP_FREEBIND does for bind(2) but not for connect(2) (trc.c). */
	if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof(on)) < 0)
		return fault_errno(f, FAULT_KERNEL, "set IP_TRANSPARENT");
	if (bind(fd, &a.any, inet_addr_len(&a)) == 0)
		return 0;
	inet_addr_text(&a, text, sizeof(text));
	if (errno == EADDRINUSE)
		return fault_errno(f, FAULT_BUSY, "bind a socket to %s", text),
		       fault_hint(f, "something on the destination uses this port: `ss -tulpn` there shows it");
	return fault_errno(f, FAULT_NETWORK, "bind a socket to %s", text);
}

int inet_settle(int fd, const InetSkEntry *isk, struct fault *f)
{
	int transparent = 0, flags = (int)isk->flags & (O_NONBLOCK | O_APPEND | O_DIRECT | O_NOATIME);

	inet_option_int(isk, IPPROTO_IP, IP_TRANSPARENT, &transparent);
	if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &transparent, sizeof(transparent)) < 0)
		return fault_errno(f, FAULT_KERNEL, "reset IP_TRANSPARENT");
	if (flags && fcntl(fd, F_SETFL, flags) < 0)
		return fault_errno(f, FAULT_SYSTEM, "flags 0%o of a socket", flags);
	return 0;
}

static bool foreign_namespace(int fd)
{
	auto_fd own = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	uint64_t a = 0, b = 0;
	socklen_t len = sizeof(a);

	return own >= 0 && getsockopt(own, SOL_SOCKET, SO_NETNS_COOKIE, &a, &len) == 0 &&
	       getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &b, &len) == 0 && a != b;
}

/* A classic filter can be read; an eBPF program says EACCES. */
static bool has_bpf_filter(int fd)
{
	socklen_t n = 0;

	return getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) < 0 && errno == EACCES;
}

/* The other end of a connection within this host: in the process itself? */
static bool own_peer(struct process *p, const union inet_addr *local, const union inet_addr *remote)
{
	struct dirent *e;
	bool found = false;
	int dirfd = openat(p->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = dirfd < 0 ? NULL : fdopendir(dirfd);

	while (d && !found && (e = readdir(d))) {
		union inet_addr l, r;
		struct inet_kind k;
		struct fault ignored;
		char link[32] = "";

		if (readlinkat(dirfd, e->d_name, link, sizeof(link) - 1) < 0 || strncmp(link, "socket:", 7) != 0)
			continue;
		{
			auto_fd dup = process_getfd(p, atoi(e->d_name), &ignored);

			found = dup >= 0 && inet_kind_of(dup, &k) && name_of(dup, false, &l) &&
				name_of(dup, true, &r) && l.any.sa_family == local->any.sa_family &&
				!memcmp(&l, remote, sizeof(l)) && !memcmp(&r, local, sizeof(r));
		}
	}
	if (d)
		closedir(d);
	return found;
}

static bool is_loopback(const union inet_addr *a)
{
	const uint8_t *b = addr_bytes(a);

	if (a->any.sa_family == AF_INET)
		return b[0] == 127;
	return IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr) || (IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr) && b[12] == 127);
}

static bool same_ip(const union inet_addr *a, const union inet_addr *b)
{
	return a->any.sa_family == b->any.sa_family &&
	       !memcmp(addr_bytes(a), addr_bytes(b), a->any.sa_family == AF_INET ? 4 : 16);
}

static void need_address(struct fd_needs *needs, const union inet_addr *a, const char *object)
{
	const uint8_t *b = addr_bytes(a);
	bool mapped = a->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr);
	char text[INET6_ADDRSTRLEN];
	Cpr__NeededAddress *n;

	inet_ntop(mapped ? AF_INET : a->any.sa_family, mapped ? b + 12 : b, text, sizeof(text));
	for (size_t i = 0; i < needs->n_addresses; i++)
		if (!strcmp(needs->addresses[i]->address, text))
			return;
	n = arena_msg(needs->a, Cpr__NeededAddress, cpr__needed_address);
	n->address = arena_strdup(needs->a, text);
	n->object = arena_strdup(needs->a, object);
	arena_push(needs->a, needs->n_addresses, needs->addresses, n);
}

int inet_check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
	       struct fault *f)
{
	union inet_addr local, remote;
	char object[200];

	inet_object(i, object, sizeof(object));
	if (foreign_namespace(i->dup)) {
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object, NULL,
			   "the socket is in another network namespace than cpr");
		return 0;
	}
	if (has_bpf_filter(i->dup))
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object, NULL,
			   "an eBPF program is attached to the socket, and can't be read");
	if (!name_of(i->dup, false, &local))
		return fault_errno(f, FAULT_SYSTEM, "name of %s", object);
	if (!inet_addr_is_any(&local) && !is_loopback(&local))
		need_address(needs, &local, object);
	if (!name_of(i->dup, true, &remote))
		return 0;
	if ((is_loopback(&remote) || same_ip(&local, &remote)) && !own_peer(p, &local, &remote))
		report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object,
			   "close the connection, or make it over an address that other hosts reach",
			   "it is connected within this host, to a program that stays behind");
	return 0;
}

int inet_peek_begin(struct fd_save *s, const struct fd_info *i, int *was, struct fault *f)
{
	struct undo u = { .kind = UNDO_PEEK_OFF, .pid = s->p ? s->p->pid : 0, .fd = i->fd };
	int off = -1;
	socklen_t len = sizeof(*was);

	*was = -1;
	if (getsockopt(i->dup, SOL_SOCKET, SO_PEEK_OFF, was, &len) < 0 || *was < 0)
		return 0;
	u.value = *was;
	if (s->undo && s->undo->push(s->undo->ctx, &u, f) < 0)
		return -1;
	if (setsockopt(i->dup, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "switch SO_PEEK_OFF of fd %d off", i->fd);
	return 0;
}

int inet_peek_end(struct fd_save *s, const struct fd_info *i, int was, struct fault *f)
{
	if (was < 0)
		return 0;
	if (setsockopt(i->dup, SOL_SOCKET, SO_PEEK_OFF, &was, sizeof(was)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "put SO_PEEK_OFF of fd %d back", i->fd);
	return s->undo ? s->undo->drop(s->undo->ctx, UNDO_PEEK_OFF, f) : 0;
}

static void flow_addr(const union inet_addr *a, int *family, uint8_t out[16], uint16_t *port)
{
	const uint8_t *b = addr_bytes(a);
	bool mapped = a->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr);

	*family = mapped ? AF_INET : a->any.sa_family;
	memcpy(out, mapped ? b + 12 : b, *family == AF_INET ? 4 : 16);
	*port = inet_addr_port(a);
}

static bool make_flow(int protocol, bool listening, const union inet_addr *local, const union inet_addr *remote,
		      struct net_flow *out)
{
	int family;

	memset(out, 0, sizeof(*out));
	out->protocol = protocol;
	flow_addr(local, &out->family, out->local, &out->local_port);
	if (remote)
		flow_addr(remote, &family, out->remote, &out->remote_port);
	/* A TCP socket that is neither connected nor listening gets nothing. */
	return out->local_port && (remote || listening || protocol != IPPROTO_TCP);
}

bool inet_flow_of_entry(const InetSkEntry *isk, struct net_flow *out)
{
	union inet_addr local, remote;

	if ((isk->proto != IPPROTO_TCP && isk->proto != IPPROTO_UDP) || !inet_local(isk, &local))
		return false;
	return make_flow((int)isk->proto, isk->state == INET_LISTEN, &local, inet_remote(isk, &remote) ? &remote : NULL,
			 out);
}

bool inet_flow_of_socket(int fd, struct net_flow *out)
{
	struct inet_kind k;
	union inet_addr local, remote;
	int listening = 0;
	socklen_t len = sizeof(listening);

	if (!inet_kind_of(fd, &k) || (k.protocol != IPPROTO_TCP && k.protocol != IPPROTO_UDP) ||
	    !name_of(fd, false, &local) || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0)
		return false;
	return make_flow(k.protocol, listening != 0, &local, name_of(fd, true, &remote) ? &remote : NULL, out);
}
