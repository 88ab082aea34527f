/*
 * Service addresses: found, removed, added, announced; by netlink through libnl.
 *
 * Source: net_address_find in vetting, net_address_remove under the lock. Destination: net_address_add under the lock,
 * net_address_announce after the thaw. Both effects are on the undo record before they happen; what the struct has no
 * field for (label, broadcast address) goes into undo.name, so that the address comes back as it was.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "address.h"

/* What of an address's flags is its owner's wish; the rest is the kernel's. */
#define FLAGS_KEPT (IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR)

struct wanted {
	int family;
	size_t len;
	uint8_t bytes[16];
};

/* One address of this host, as a dump gives it. */
struct seen {
	const struct ifaddrmsg *ifa;
	const uint8_t *local;	  /* IFA_LOCAL, else IFA_ADDRESS */
	const uint8_t *broadcast; /* NULL: none */
	const char *label;
	uint32_t flags;
};

static void close_nl(struct nl_sock **sk)
{
	if (*sk)
		nl_socket_free(*sk);
}

static void free_msg(struct nl_msg **m)
{
	if (*m)
		nlmsg_free(*m);
}

static struct nl_sock *route_open(struct fault *f)
{
	struct nl_sock *sk = nl_socket_alloc();
	int err;

	if (!sk) {
		fault_set(f, FAULT_SYSTEM, "no memory for a netlink socket");
		return NULL;
	}
	err = nl_connect(sk, NETLINK_ROUTE);
	if (err < 0) {
		fault_set(f, FAULT_NETWORK, "open a route netlink socket: %s", nl_geterror(err));
		nl_socket_free(sk);
		return NULL;
	}
	return sk;
}

static int parse_numeric(const char *text, struct wanted *w)
{
	w->family = strchr(text, ':') ? AF_INET6 : AF_INET;
	w->len = w->family == AF_INET ? 4 : 16;
	return inet_pton(w->family, text, w->bytes) == 1 ? 0 : -1;
}

int net_address_parse(const char *text, struct net_address *out, struct fault *f)
{
	struct net_address a = { .prefix = -1 };
	char buf[sizeof(a.address) + sizeof(a.device) + 8];
	struct wanted w;
	char *at, *slash;
	uint64_t len;

	if (strlen(text) >= sizeof(buf))
		return fault_set(f, FAULT_USAGE, "\"%.60s…\" is too long for an address", text);
	strcpy(buf, text);
	at = strchr(buf, '@');
	if (at) {
		*at++ = '\0';
		if (!*at || strlen(at) >= sizeof(a.device) || strchr(at, '/'))
			return fault_set(f, FAULT_USAGE, "\"%s\": \"%s\" is no name of a network device", text, at);
		strcpy(a.device, at);
	}
	slash = strchr(buf, '/');
	if (slash)
		*slash++ = '\0';
	if (strlen(buf) >= sizeof(a.address) || parse_numeric(buf, &w) < 0)
		return fault_set(f, FAULT_USAGE, "\"%s\": \"%s\" is no IPv4 or IPv6 address", text, buf),
		       fault_hint(f, "write it as ADDR, ADDR/LEN or ADDR/LEN@DEV, for example 192.0.2.10/24@eth0");
	if (slash) {
		if (!util_parse_u64(slash, w.len * 8, &len))
			return fault_set(f, FAULT_USAGE,
					 "\"%s\": the prefix length \"%s\" is not a number from 0 to %zu", text, slash,
					 w.len * 8);
		a.prefix = (int)len;
	}
	inet_ntop(w.family, w.bytes, a.address, sizeof(a.address)); /* canonical */
	*out = a;
	return 0;
}

/* Dump of all addresses; each is shown to fn, which returns true to stop. */
struct walk {
	bool (*fn)(void *ctx, const struct seen *s);
	void *ctx;
	bool stopped;
};

static int walk_one(struct nl_msg *msg, void *arg)
{
	struct walk *w = arg;
	struct nlmsghdr *h = nlmsg_hdr(msg);
	struct nlattr *tb[IFA_MAX + 1];
	struct seen s = { 0 };

	if (w->stopped || h->nlmsg_type != RTM_NEWADDR ||
	    nlmsg_parse(h, sizeof(struct ifaddrmsg), tb, IFA_MAX, NULL) < 0)
		return NL_OK;
	s.ifa = nlmsg_data(h);
	if (!tb[IFA_LOCAL] && !tb[IFA_ADDRESS])
		return NL_OK;
	s.local = nla_data(tb[IFA_LOCAL] ? tb[IFA_LOCAL] : tb[IFA_ADDRESS]);
	s.broadcast = tb[IFA_BROADCAST] ? nla_data(tb[IFA_BROADCAST]) : NULL;
	s.label = tb[IFA_LABEL] ? nla_get_string(tb[IFA_LABEL]) : "";
	s.flags = tb[IFA_FLAGS] ? nla_get_u32(tb[IFA_FLAGS]) : s.ifa->ifa_flags;
	w->stopped = w->fn(w->ctx, &s);
	return NL_OK;
}

static int walk_addresses(int family, bool (*fn)(void *ctx, const struct seen *s), void *ctx, bool *stopped,
			  struct fault *f)
{
	__attribute__((cleanup(close_nl))) struct nl_sock *sk = route_open(f);
	struct walk w = { fn, ctx, false };
	struct ifaddrmsg ifa = { .ifa_family = (uint8_t)family };
	int err;

	if (!sk)
		return -1;
	nl_socket_modify_cb(sk, NL_CB_VALID, NL_CB_CUSTOM, walk_one, &w);
	err = nl_send_simple(sk, RTM_GETADDR, NLM_F_DUMP, &ifa, sizeof(ifa));
	if (err >= 0)
		err = nl_recvmsgs_default(sk);
	if (err < 0)
		return fault_set(f, FAULT_NETWORK, "list the addresses of this host: %s", nl_geterror(err));
	*stopped = w.stopped;
	return 0;
}

struct search {
	struct wanted w;
	unsigned ifindex; /* 0: any device */
	struct net_address *a;
	char label[16], broadcast[48];
	uint8_t prefix_bits;
};

static bool same_prefix(const uint8_t *a, const uint8_t *b, unsigned bits)
{
	unsigned whole = bits / 8, rest = bits % 8;

	return !memcmp(a, b, whole) && (!rest || !((a[whole] ^ b[whole]) >> (8 - rest)));
}

static bool search_one(void *ctx, const struct seen *s)
{
	struct search *q = ctx;

	if (s->ifa->ifa_family != q->w.family || memcmp(s->local, q->w.bytes, q->w.len) != 0 ||
	    (q->ifindex && s->ifa->ifa_index != q->ifindex))
		return false;
	q->ifindex = s->ifa->ifa_index;
	q->a->prefix = s->ifa->ifa_prefixlen;
	q->a->flags = s->flags;
	q->a->scope = s->ifa->ifa_scope;
	snprintf(q->label, sizeof(q->label), "%s", s->label);
	if (s->broadcast)
		inet_ntop(q->w.family, s->broadcast, q->broadcast, sizeof(q->broadcast));
	return true;
}

/* Fills q from the host; *found false when it isn't there. */
static int search_run(struct net_address *a, struct search *q, bool *found, struct fault *f)
{
	*q = (struct search){ .a = a };
	if (parse_numeric(a->address, &q->w) < 0)
		return fault_set(f, FAULT_USAGE, "\"%s\" is no IPv4 or IPv6 address", a->address);
	if (a->device[0]) {
		q->ifindex = if_nametoindex(a->device);
		if (!q->ifindex)
			return net_address_device_exists(a->device, f);
	}
	if (walk_addresses(q->w.family, search_one, q, found, f) < 0)
		return -1;
	if (*found && !if_indextoname(q->ifindex, a->device))
		return fault_errno(f, FAULT_NETWORK, "name of the device of %s", a->address);
	return 0;
}

/* A primary IPv4 address takes its secondaries with it, unless they are promoted. */
static bool is_secondary_of(void *ctx, const struct seen *s)
{
	const struct search *q = ctx;

	return s->ifa->ifa_family == AF_INET && s->ifa->ifa_index == q->ifindex && (s->flags & IFA_F_SECONDARY) &&
	       s->ifa->ifa_prefixlen == q->a->prefix && same_prefix(s->local, q->w.bytes, (unsigned)q->a->prefix);
}

static bool promotes(const char *device)
{
	auto_free char *all = util_read_file(-1, "/proc/sys/net/ipv4/conf/all/promote_secondaries", NULL);
	auto_free char *own = NULL;
	char path[128];

	snprintf(path, sizeof(path), "/proc/sys/net/ipv4/conf/%s/promote_secondaries", device);
	own = util_read_file(-1, path, NULL);
	return (all && all[0] == '1') || (own && own[0] == '1');
}

static int find(struct net_address *a, struct search *q, struct fault *f)
{
	bool found, others = false;

	if (search_run(a, q, &found, f) < 0)
		return -1;
	if (!found)
		return fault_set(f, FAULT_NO_ADDRESS, "address %s is not on this host%s%s", a->address,
				 a->device[0] ? "'s device " : "", a->device),
		       fault_hint(f, "`ip addr` lists the addresses of this host");
	if (q->w.family == AF_INET && !(a->flags & IFA_F_SECONDARY) && !promotes(a->device)) {
		if (walk_addresses(AF_INET, is_secondary_of, q, &others, f) < 0)
			return -1;
		if (others)
			return fault_set(f, FAULT_NETWORK,
					 "removing %s from %s would remove other addresses of its subnet, too",
					 a->address, a->device),
			       fault_hint(f, "set net.ipv4.conf.%s.promote_secondaries=1 with sysctl(8)", a->device);
	}
	return 0;
}

int net_address_find(struct net_address *a, struct fault *f)
{
	struct net_address found = *a;
	struct search q;

	if (find(&found, &q, f) < 0)
		return -1;
	*a = found;
	return 0;
}

int net_address_device_exists(const char *device, struct fault *f)
{
	if (if_nametoindex(device))
		return 0;
	return fault_set(f, FAULT_NETWORK, "there is no network device \"%s\" on this host", device),
	       fault_hint(f, "name the device: --move-address ADDR/LEN@DEV; `ip link` lists them");
}

/* RTM_NEWADDR or RTM_DELADDR. 0, or a negative error of libnl in *err (and 0) when `quiet` names it. */
static int change(int type, const struct net_address *a, const char *label, const char *broadcast, int quiet,
		  struct fault *f)
{
	__attribute__((cleanup(close_nl))) struct nl_sock *sk = NULL;
	__attribute__((cleanup(free_msg))) struct nl_msg *m = NULL;
	struct ifaddrmsg ifa = { .ifa_scope = a->scope, .ifa_index = if_nametoindex(a->device) };
	struct nl_msg *sent;
	struct wanted w, b;
	int err;

	if (parse_numeric(a->address, &w) < 0)
		return fault_set(f, FAULT_USAGE, "\"%s\" is no IPv4 or IPv6 address", a->address);
	if (!ifa.ifa_index)
		return net_address_device_exists(a->device, f);
	ifa.ifa_family = (uint8_t)w.family;
	ifa.ifa_prefixlen = (uint8_t)(a->prefix < 0 ? (int)w.len * 8 : a->prefix);
	sk = route_open(f);
	if (!sk)
		return -1;
	m = nlmsg_alloc_simple(type, type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_EXCL : 0);
	if (!m || nlmsg_append(m, &ifa, sizeof(ifa), NLMSG_ALIGNTO) < 0 ||
	    nla_put(m, IFA_LOCAL, (int)w.len, w.bytes) < 0 || nla_put(m, IFA_ADDRESS, (int)w.len, w.bytes) < 0)
		return fault_set(f, FAULT_SYSTEM, "no memory for a netlink message");
	if (type == RTM_NEWADDR) {
		uint32_t flags = (a->flags & FLAGS_KEPT) | (w.family == AF_INET6 ? IFA_F_NODAD : 0);

		err = nla_put_u32(m, IFA_FLAGS, flags);
		if (err >= 0 && label && label[0] && w.family == AF_INET)
			err = nla_put_string(m, IFA_LABEL, label);
		if (err >= 0 && broadcast && broadcast[0] && parse_numeric(broadcast, &b) == 0)
			err = nla_put(m, IFA_BROADCAST, (int)b.len, b.bytes);
		if (err < 0)
			return fault_set(f, FAULT_SYSTEM, "no memory for a netlink message");
	}
	sent = m;
	m = NULL; /* nl_send_sync frees it */
	err = nl_send_sync(sk, sent);
	if (err < 0 && err != quiet)
		return fault_set(f, FAULT_NETWORK, "%s address %s/%d on %s: %s", type == RTM_NEWADDR ? "add" : "remove",
				 a->address, ifa.ifa_prefixlen, a->device, nl_geterror(err));
	return 0;
}

static void undo_fill(struct undo *u, enum undo_kind kind, const struct net_address *a)
{
	*u = (struct undo){ .kind = kind, .prefix = a->prefix, .ifa_flags = a->flags, .scope = a->scope, .fd = -1 };
	snprintf(u->address, sizeof(u->address), "%s", a->address);
	snprintf(u->device, sizeof(u->device), "%s", a->device);
}

int net_address_remove(const struct net_address *a, struct undo_log *undo, struct fault *f)
{
	struct net_address here = *a;
	struct search q;
	struct undo u;

	if (find(&here, &q, f) < 0)
		return -1;
	undo_fill(&u, UNDO_ADDRESS_REMOVED, &here);
	snprintf(u.name, sizeof(u.name), "%s %s", q.label[0] ? q.label : "-", q.broadcast);
	if (undo && undo->push(undo->ctx, &u, f) < 0)
		return -1;
	return change(RTM_DELADDR, &here, NULL, NULL, 0, f);
}

int net_address_add(const struct net_address *a, struct undo_log *undo, struct fault *f)
{
	struct net_address here = *a;
	struct search q;
	struct undo u;
	bool found;

	if (!a->device[0])
		return fault_set(f, FAULT_NETWORK, "no device is given for address %s", a->address);
	here.device[0] = '\0';
	if (search_run(&here, &q, &found, f) < 0)
		return -1;
	if (found) /* not ours to take away again, and two hosts would answer for it */
		return fault_set(f, FAULT_NETWORK, "address %s is on this host already, on %s", a->address,
				 here.device),
		       fault_hint(f, "remove it there, or leave it out of --move-address");
	here = *a;
	if (here.prefix < 0)
		here.prefix = (int)q.w.len * 8;
	undo_fill(&u, UNDO_ADDRESS_ADDED, &here);
	if (undo && undo->push(undo->ctx, &u, f) < 0)
		return -1;
	return change(RTM_NEWADDR, &here, NULL, NULL, 0, f);
}

/* Announcements are frames of our own: the kernel has no call that sends just one. */
struct frame_arp {
	struct ether_header eth;
	struct ether_arp arp;
} __attribute__((packed));

struct frame_na {
	struct ether_header eth;
	struct ip6_hdr ip;
	struct nd_neighbor_advert na;
	struct nd_opt_hdr opt;
	uint8_t lladdr[ETH_ALEN];
} __attribute__((packed));

static void build_arp(struct frame_arp *p, const uint8_t *mac, const uint8_t *ip)
{
	memset(p, 0, sizeof(*p));
	memset(p->eth.ether_dhost, 0xff, ETH_ALEN);
	memcpy(p->eth.ether_shost, mac, ETH_ALEN);
	p->eth.ether_type = htons(ETHERTYPE_ARP);
	p->arp.ea_hdr = (struct arphdr){ htons(ARPHRD_ETHER), htons(ETHERTYPE_IP), ETH_ALEN, 4, htons(ARPOP_REQUEST) };
	memcpy(p->arp.arp_sha, mac, ETH_ALEN);
	memcpy(p->arp.arp_spa, ip, 4);
	memcpy(p->arp.arp_tpa, ip, 4);
}

static uint16_t checksum(const void *data, size_t len, uint32_t sum)
{
	const uint8_t *p = data;
	size_t i;

	for (i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	if (len & 1)
		sum += (uint32_t)p[len - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void build_na(struct frame_na *p, const uint8_t *mac, const uint8_t *ip)
{
	static const uint8_t all_nodes[16] = { 0xff, 2, [15] = 1 };
	size_t len = sizeof(p->na) + sizeof(p->opt) + sizeof(p->lladdr);
	uint32_t pseudo = (uint32_t)len + IPPROTO_ICMPV6;

	memset(p, 0, sizeof(*p));
	memcpy(p->eth.ether_dhost, "\x33\x33\0\0\0\1", ETH_ALEN);
	memcpy(p->eth.ether_shost, mac, ETH_ALEN);
	p->eth.ether_type = htons(ETHERTYPE_IPV6);
	p->ip.ip6_vfc = 0x60;
	p->ip.ip6_plen = htons((uint16_t)len);
	p->ip.ip6_nxt = IPPROTO_ICMPV6;
	p->ip.ip6_hlim = 255;
	memcpy(&p->ip.ip6_src, ip, 16);
	memcpy(&p->ip.ip6_dst, all_nodes, 16);
	p->na.nd_na_type = ND_NEIGHBOR_ADVERT;
	p->na.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
	memcpy(&p->na.nd_na_target, ip, 16);
	p->opt.nd_opt_type = ND_OPT_TARGET_LINKADDR;
	p->opt.nd_opt_len = 1;
	memcpy(p->lladdr, mac, ETH_ALEN);
	for (size_t i = 0; i < 16; i += 2)
		pseudo += ((uint32_t)p->ip.ip6_src.s6_addr[i] << 8 | p->ip.ip6_src.s6_addr[i + 1]) +
			  ((uint32_t)p->ip.ip6_dst.s6_addr[i] << 8 | p->ip.ip6_dst.s6_addr[i + 1]);
	p->na.nd_na_cksum = checksum((uint8_t *)p + offsetof(struct frame_na, na), len, pseudo);
}

int net_address_announce(const struct net_address *a, int *later, struct fault *f)
{
	auto_fd sk = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_halen = ETH_ALEN };
	struct ifreq ifr = { 0 };
	struct frame_arp arp;
	struct frame_na na;
	struct wanted w;
	ssize_t sent;

	if (later)
		*later = -1;
	if (parse_numeric(a->address, &w) < 0)
		return fault_set(f, FAULT_USAGE, "\"%s\" is no IPv4 or IPv6 address", a->address);
	if (sk < 0)
		return fault_errno(f, FAULT_NETWORK, "open a packet socket to announce %s", a->address);
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", a->device);
	if (ioctl(sk, SIOCGIFFLAGS, &ifr) < 0)
		return fault_errno(f, FAULT_NETWORK, "announce %s on %s", a->address, a->device);
	if ((ifr.ifr_flags & (IFF_LOOPBACK | IFF_NOARP)) || !(ifr.ifr_flags & IFF_UP))
		return 0; /* nobody there keeps a table */
	if (ioctl(sk, SIOCGIFHWADDR, &ifr) < 0)
		return fault_errno(f, FAULT_NETWORK, "hardware address of %s", a->device);
	if (ifr.ifr_hwaddr.sa_family != ARPHRD_ETHER)
		return 0;
	to.sll_ifindex = (int)if_nametoindex(a->device);
	if (w.family == AF_INET) {
		build_arp(&arp, (uint8_t *)ifr.ifr_hwaddr.sa_data, w.bytes);
		sent = sendto(sk, &arp, sizeof(arp), 0, (struct sockaddr *)&to, sizeof(to));
	} else {
		build_na(&na, (uint8_t *)ifr.ifr_hwaddr.sa_data, w.bytes);
		sent = sendto(sk, &na, sizeof(na), 0, (struct sockaddr *)&to, sizeof(to));
	}
	if (sent < 0)
		return fault_errno(f, FAULT_NETWORK, "announce %s on %s", a->address, a->device);
	if (later)
		*later = take_fd(&sk);
	return 0;
}

int net_address_undo(const struct undo *u, struct fault *f)
{
	struct net_address a = { .prefix = u->prefix, .flags = u->ifa_flags, .scope = u->scope };
	char label[16] = "", broadcast[48] = "";

	snprintf(a.address, sizeof(a.address), "%s", u->address);
	snprintf(a.device, sizeof(a.device), "%s", u->device);
	if (u->kind == UNDO_ADDRESS_ADDED)
		return change(RTM_DELADDR, &a, NULL, NULL, -NLE_NOADDR, f);
	if (u->kind != UNDO_ADDRESS_REMOVED)
		return fault_set(f, FAULT_INTERNAL, "undo record of another kind (%d)", (int)u->kind);
	sscanf(u->name, "%15s %47s", label, broadcast);
	if (label[0] == '-')
		label[0] = '\0';
	if (change(RTM_NEWADDR, &a, label, broadcast, -NLE_EXIST, f) < 0)
		return -1;
	return net_address_announce(&a, NULL, f);
}

struct local {
	int family;
	const uint8_t *bytes;
};

static bool local_one(void *ctx, const struct seen *s)
{
	const struct local *l = ctx;

	return s->ifa->ifa_family == l->family && !memcmp(s->local, l->bytes, l->family == AF_INET ? 4 : 16);
}

bool net_address_is_local(int family, const void *addr)
{
	struct local l = { family, addr };
	bool found = false;

	if (family == AF_INET6 && IN6_IS_ADDR_V4MAPPED((const struct in6_addr *)addr))
		l = (struct local){ AF_INET, (const uint8_t *)addr + 12 };
	if (l.family == AF_INET && l.bytes[0] == 127)
		return true;
	return walk_addresses(l.family, local_one, &l, &found, NULL) == 0 && found;
}
