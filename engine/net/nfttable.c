#include "nfttable.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define ANSWER_S 2 /* another transaction may be at work */

struct batch {
	char buf[512] __attribute__((aligned(NLMSG_ALIGNTO)));
	size_t len;
};

static struct nlmsghdr *add_message(struct batch *b, int type, int flags, uint32_t seq, uint8_t family, int res_id)
{
	struct nlmsghdr *h = (struct nlmsghdr *)(b->buf + b->len);
	struct nfgenmsg *g = NLMSG_DATA(h);
	*h = (struct nlmsghdr){
		.nlmsg_len = NLMSG_LENGTH(sizeof(*g)),
		.nlmsg_type = (uint16_t)type,
		.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
		.nlmsg_seq = seq,
	};
	*g = (struct nfgenmsg){
		.nfgen_family = family,
		.version = NFNETLINK_V0,
		.res_id = htons((uint16_t)res_id),
	};
	b->len += NLMSG_ALIGN(h->nlmsg_len);
	return h;
}

static void add_name(struct batch *b, struct nlmsghdr *h, const char *name)
{
	struct nlattr *a = (struct nlattr *)(b->buf + b->len);
	a->nla_type = NFTA_TABLE_NAME;
	a->nla_len = (uint16_t)(NLA_HDRLEN + strlen(name) + 1);
	memcpy((char *)a + NLA_HDRLEN, name, strlen(name) + 1);
	h->nlmsg_len += NLA_ALIGN(a->nla_len);
	b->len += NLA_ALIGN(a->nla_len);
}

int nfttable_open(struct fault *f)
{
	const struct timeval wait = { .tv_sec = ANSWER_S };
	auto_fd s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0)
		return fault_errno(f, FAULT_NETWORK, "open a socket to nf_tables");
	return take_fd(&s);
}

/* The errno that the kernel answers with, 0: done, or found. Of a batch only the parts are answered that fail or ask
 * for it; here one is due. What answers an older request, one that was given up on, is passed over. */
static int answer(int s, uint32_t seq)
{
	char buf[8192] __attribute__((aligned(NLMSG_ALIGNTO)));
	for (;;) {
		ssize_t n = recv(s, buf, sizeof(buf), 0);
		if (n < 0)
			return errno == EAGAIN ? ETIMEDOUT : errno;
		const struct nlmsghdr *h = (const struct nlmsghdr *)buf;
		if (!NLMSG_OK(h, n))
			return EPROTO;
		if (h->nlmsg_seq != seq && h->nlmsg_seq != seq - 1)
			continue;
		if (h->nlmsg_type != NLMSG_ERROR)
			return 0;
		return h->nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr))
			       ? EPROTO
			       : -((const struct nlmsgerr *)NLMSG_DATA(h))->error;
	}
}

static int ask(int s, const struct batch *b, uint32_t seq)
{
	return send(s, b->buf, b->len, 0) == (ssize_t)b->len ? answer(s, seq) : errno;
}

/* ENOENT, or 0. */
static int find(int s, const char *name, uint32_t seq)
{
	struct batch b = { .len = 0 };
	add_name(&b, add_message(&b, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, 0, seq, NFPROTO_INET, 0), name);
	return ask(s, &b, seq);
}

/* nf_tables takes changes only as a batch: begin, the change, end. */
static int delete (int s, const char *name, uint32_t seq)
{
	struct batch b = { .len = 0 };
	add_message(&b, NFNL_MSG_BATCH_BEGIN, 0, seq - 1, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	add_name(&b, add_message(&b, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NLM_F_ACK, seq, NFPROTO_INET, 0),
		 name);
	add_message(&b, NFNL_MSG_BATCH_END, 0, seq, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	return ask(s, &b, seq);
}

int nfttable_delete(int sock, const char *name, struct fault *f)
{
	/* Numbers that no earlier answer has. */
	uint32_t seq = (uint32_t)(util_monotonic_ns() >> 10) | 3u;
	if (strlen(name) >= NFT_TABLE_MAXNAMELEN)
		return fault_set(f, FAULT_INTERNAL, "the name of an nft table is too long");
	errno = find(sock, name, seq - 2);
	if (errno == 0)
		errno = delete (sock, name, seq);
	/* EOPNOTSUPP: the kernel has no nf_tables, and so no tables */
	if (errno == 0 || errno == ENOENT || errno == EOPNOTSUPP)
		return 0;
	return fault_errno(f, FAULT_NETWORK, "remove the nft table %s", name);
}
