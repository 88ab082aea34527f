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

/* nf_tables takes changes only as a batch: begin, the change, end. */
enum { SEQ_BEGIN = 1, SEQ_DELETE, SEQ_END };

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

static int open_socket(struct fault *f)
{
	const struct timeval wait = { .tv_sec = ANSWER_S };
	auto_fd s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0)
		return fault_errno(f, FAULT_NETWORK, "open a socket to nf_tables");
	return take_fd(&s);
}

/* Errno of the batch, 0 when it was done. Its parts are answered in order, and only those that fail or ask for it. */
static int answer(int s)
{
	char buf[4096] __attribute__((aligned(NLMSG_ALIGNTO)));
	ssize_t n = recv(s, buf, sizeof(buf), 0);
	if (n < 0)
		return errno;
	const struct nlmsghdr *h = (const struct nlmsghdr *)buf;
	if (!NLMSG_OK(h, n) || h->nlmsg_type != NLMSG_ERROR || h->nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr)))
		return EPROTO;
	return -((const struct nlmsgerr *)NLMSG_DATA(h))->error;
}

int nfttable_delete(const char *name, struct fault *f)
{
	struct batch b = { .len = 0 };
	if (strlen(name) >= NFT_TABLE_MAXNAMELEN)
		return fault_set(f, FAULT_INTERNAL, "the name of an nft table is too long");
	auto_fd s = open_socket(f);
	if (s < 0)
		return -1;
	add_message(&b, NFNL_MSG_BATCH_BEGIN, 0, SEQ_BEGIN, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	add_name(&b,
		 add_message(&b, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, NLM_F_ACK, SEQ_DELETE, NFPROTO_INET, 0),
		 name);
	add_message(&b, NFNL_MSG_BATCH_END, 0, SEQ_END, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
	errno = send(s, b.buf, b.len, 0) == (ssize_t)b.len ? answer(s) : errno;
	/* EOPNOTSUPP: the kernel has no nf_tables, and so no tables */
	if (errno == 0 || errno == ENOENT || errno == EOPNOTSUPP)
		return 0;
	return fault_errno(f, FAULT_NETWORK, "remove the nft table %s", name);
}
