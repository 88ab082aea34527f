/*
 * The network lock, by libnftables.
 *
 *	net_lock_open      before the pause: context, and a table with `flags owner` whose base chains are empty
 *	net_lock_prepare   before the pause: flows known by now go into the sets; still nothing is dropped
 *	net_lock_engage    in the pause: what is missing in the sets, and the two jumps that make it a lock
 *	net_lock_release   the table goes
 *
 * Loading a library's context, a table and thousands of set elements takes tens of milliseconds, two rules 0.2 ms:
 * hence the split. A kernel without owned tables (< 5.12) gets a plain one, all of it in engage, since only there an
 * undo record can be pushed; it costs that host a longer pause, not its safety.
 *
 * The chains stand before conntrack (raw is -300), so that no entry is made for what is dropped.
 */
#include "lock.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <nftables/libnftables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include "image.h"
#include "inet.h"
#include "nfttable.h"
#include "process.h"

struct net_lock {
	struct nft_ctx *nft; /* NULL: backend none */
	char table[96];
	bool owned; /* the table is there since open, and vanishes with us */
	bool engaged;
	struct net_flow *known; /* sorted: elements that are in the sets */
	size_t n_known;
};

#define TABLE_PREFIX "cpr-"

/* The names that a table of ours may have: no caller can make nft run another command. */
static int table_name(char *buf, size_t len, const char *migration, const char *suffix, struct fault *f)
{
	size_t n = strspn(migration, "0123456789abcdefABCDEF-");

	if (!n || migration[n] || snprintf(buf, len, TABLE_PREFIX "%s%s", migration, suffix) >= (int)len)
		return fault_set(f, FAULT_INTERNAL, "\"%s\" is no migration id", migration);
	return 0;
}

/* The library opens its socket without CLOEXEC, and says its number to nobody: all sockets of this kind are ours.
 * It also waits on it with select(2), and would abort at a number that does not fit into a fd_set. */
static int socket_usable(struct fault *f)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	int highest = -1;

	while (d && (e = readdir(d))) {
		int fd = atoi(e->d_name), domain = 0, proto = 0;
		socklen_t len = sizeof(int);

		if (fd > 2 && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_NETLINK &&
		    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &proto, &len) == 0 && proto == NETLINK_NETFILTER) {
			fcntl(fd, F_SETFD, FD_CLOEXEC);
			highest = fd > highest ? fd : highest;
		}
	}
	if (d)
		closedir(d);
	if (highest < FD_SETSIZE)
		return 0;
	return fault_set(f, FAULT_INTERNAL, "nftables is opened too late: its socket has number %d", highest);
}

static struct nft_ctx *context_new(struct fault *f)
{
	struct nft_ctx *nft = nft_ctx_new(NFT_CTX_DEFAULT);

	if (!nft) {
		fault_set(f, FAULT_SYSTEM, "set up nftables");
		return NULL;
	}
	if (socket_usable(f) < 0) {
		nft_ctx_free(nft);
		return NULL;
	}
	nft_ctx_buffer_error(nft);
	nft_ctx_buffer_output(nft);
	return nft;
}

/* The first line of what the library says, without its file position. */
static void first_error(struct nft_ctx *nft, char *buf, size_t len)
{
	const char *text = nft_ctx_get_error_buffer(nft);
	const char *at = strstr(text, "Error: ");

	snprintf(buf, len, "%s", at ? at + 7 : text);
	buf[strcspn(buf, "\n")] = '\0';
}

static int run(struct nft_ctx *nft, const char *commands, const char *what, struct fault *f)
{
	char why[200];

	if (nft_run_cmd_from_buffer(nft, commands) == 0)
		return 0;
	first_error(nft, why, sizeof(why));
	if (strstr(why, "not supported") || strstr(why, "Operation not permitted") ||
	    strstr(why, "cache initialization"))
		return fault_set(f, FAULT_KERNEL, "%s by nftables: %s", what, why),
		       fault_hint(f, "the kernel needs nf_tables (modprobe nf_tables; packages nftables and "
				     "linux-modules of this distribution), or give --network-lock none");
	return fault_set(f, FAULT_NETWORK, "%s by nftables: %s", what, why);
}

/* Everything but elements and the jumps. */
static void text_table(FILE *t, const char *name, bool owner)
{
	fprintf(t, "add table inet %s%s\n", name, owner ? " { flags owner; }" : "");
	fprintf(t, "add set inet %s flow4 { type inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service; }\n",
		name);
	fprintf(t, "add set inet %s flow6 { type inet_proto . ipv6_addr . inet_service . ipv6_addr . inet_service; }\n",
		name);
	fprintf(t, "add set inet %s port4 { type inet_proto . ipv4_addr . inet_service; }\n", name);
	fprintf(t, "add set inet %s port6 { type inet_proto . ipv6_addr . inet_service; }\n", name);
	fprintf(t, "add set inet %s port { type nf_proto . inet_proto . inet_service; }\n", name);
	fprintf(t, "add chain inet %s in { type filter hook prerouting priority -310; policy accept; }\n", name);
	fprintf(t, "add chain inet %s out { type filter hook output priority -310; policy accept; }\n", name);
	fprintf(t, "add chain inet %s lock_in\nadd chain inet %s lock_out\n", name, name);
}

/* One direction: `here` and `there` are the sides of the packet's header that are local and remote. Of a listening
 * socket only what opens a connection is dropped: other processes may have connections on its port. */
static void text_rules(FILE *t, const char *name, const char *chain, char here, char there, const char *opening)
{
	static const char *const fam[] = { "ip", "ip6" };

	for (int i = 0; i < 2; i++)
		fprintf(t,
			"add rule inet %s %s meta l4proto . %s %caddr . th %cport . %s %caddr . th %cport @flow%c "
			"counter drop\n",
			name, chain, fam[i], here, here, fam[i], there, there, i ? '6' : '4');
	fprintf(t, "add rule inet %s %s meta l4proto tcp tcp flags & (fin | syn | rst | ack) != %s accept\n", name,
		chain, opening);
	for (int i = 0; i < 2; i++)
		fprintf(t, "add rule inet %s %s meta l4proto . %s %caddr . th %cport @port%c counter drop\n", name,
			chain, fam[i], here, here, i ? '6' : '4');
	fprintf(t, "add rule inet %s %s meta nfproto . meta l4proto . th %cport @port counter drop\n", name, chain,
		here);
}

static void text_both_rules(FILE *t, const char *name)
{
	text_rules(t, name, "lock_in", 'd', 's', "syn");
	text_rules(t, name, "lock_out", 's', 'd', "syn | ack");
}

static void text_jumps(FILE *t, const char *name)
{
	fprintf(t, "add rule inet %s in jump lock_in\nadd rule inet %s out jump lock_out\n", name, name);
}

static bool is_any(const struct net_flow *w)
{
	static const uint8_t zero[16];

	return !memcmp(w->local, zero, sizeof(zero));
}

static void text_element(FILE *t, const char *name, const struct net_flow *w)
{
	char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN], v = w->family == AF_INET ? '4' : '6';

	inet_ntop(w->family, w->local, local, sizeof(local));
	inet_ntop(w->family, w->remote, remote, sizeof(remote));
	if (w->remote_port)
		fprintf(t, "add element inet %s flow%c { %d . %s . %u . %s . %u }\n", name, v, w->protocol, local,
			w->local_port, remote, w->remote_port);
	else if (!is_any(w))
		fprintf(t, "add element inet %s port%c { %d . %s . %u }\n", name, v, w->protocol, local, w->local_port);
	else { /* an IPv6 wildcard socket takes IPv4 as well */
		fprintf(t, "add element inet %s port { ipv4 . %d . %u }\n", name, w->protocol, w->local_port);
		if (w->family == AF_INET6)
			fprintf(t, "add element inet %s port { ipv6 . %d . %u }\n", name, w->protocol, w->local_port);
	}
}

static int flow_cmp(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct net_flow));
}

/* Many elements of one set in one command: parsing is what costs. Flows are sorted, so runs of one set are long. */
static void text_elements(FILE *t, const char *name, const struct net_flow *flows, size_t n,
			  const struct net_flow *known, size_t n_known)
{
	int open_family = 0;

	for (size_t i = 0; i < n; i++) {
		const struct net_flow *w = &flows[i];
		char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];

		if (!w->local_port || (n_known && bsearch(w, known, n_known, sizeof(*w), flow_cmp)))
			continue;
		if (!w->remote_port) {
			fputs(open_family ? " }\n" : "", t);
			open_family = 0;
			text_element(t, name, w);
			continue;
		}
		if (open_family != w->family)
			fprintf(t, "%sadd element inet %s flow%c { ", open_family ? " }\n" : "", name,
				w->family == AF_INET ? '4' : '6');
		else
			fputs(", ", t);
		open_family = w->family;
		inet_ntop(w->family, w->local, local, sizeof(local));
		inet_ntop(w->family, w->remote, remote, sizeof(remote));
		fprintf(t, "%d . %s . %u . %s . %u", w->protocol, local, w->local_port, remote, w->remote_port);
	}
	fputs(open_family ? " }\n" : "", t);
}

/* A copy, sorted: same family together. */
static struct net_flow *sorted(const struct net_flow *flows, size_t n, struct fault *f)
{
	struct net_flow *copy = calloc(n + 1, sizeof(*copy));

	if (!copy) {
		fault_set(f, FAULT_SYSTEM, "no memory for %zu flows", n);
		return NULL;
	}
	if (n)
		memcpy(copy, flows, n * sizeof(*copy));
	qsort(copy, n, sizeof(*copy), flow_cmp);
	return copy;
}

static int open_nftables(struct net_lock *l, char *why, size_t why_len, struct fault *f)
{
	auto_free char *text = NULL;
	size_t len;
	FILE *t = open_memstream(&text, &len);

	l->nft = t ? context_new(f) : NULL;
	if (!l->nft) {
		if (t)
			fclose(t);
		return -1;
	}
	text_table(t, l->table, true);
	text_both_rules(t, l->table);
	fclose(t);
	l->owned = nft_run_cmd_from_buffer(l->nft, text) == 0;
	if (l->owned) {
		snprintf(why, why_len, "the kernel supports tables that vanish with their owner");
		return 0;
	}
	/* Is it the owner flag, or nf_tables as a whole? */
	if (run(l->nft, "list tables", "set up the network lock", f) < 0)
		return -1;
	snprintf(why, why_len, "plain table: the kernel has no owned ones");
	return 0;
}

int net_lock_open(const char *backend, const char *migration, struct net_lock **out, char *why, size_t why_len,
		  struct fault *f)
{
	struct net_lock *l;
	char reason[100] = "";

	if (backend && strcmp(backend, "nftables") != 0 && strcmp(backend, "none") != 0)
		return fault_set(f, FAULT_USAGE, "there is no network lock \"%s\"", backend),
		       fault_hint(f, "known: nftables, none");
	l = calloc(1, sizeof(*l));
	if (!l)
		return fault_set(f, FAULT_SYSTEM, "no memory for a network lock");
	if (table_name(l->table, sizeof(l->table), migration, "", f) < 0 ||
	    ((!backend || !strcmp(backend, "nftables")) && open_nftables(l, reason, sizeof(reason), f) < 0)) {
		net_lock_close(l);
		return fault_while(f, "preparing the network lock");
	}
	if (why)
		snprintf(why, why_len, "%s (%s%s%s)", net_lock_backend(l), backend ? "asked for" : "found by probing",
			 reason[0] ? "; " : "", reason);
	*out = l;
	return 0;
}

const char *net_lock_backend(const struct net_lock *l)
{
	return l->nft ? "nftables" : "none";
}

/* Elements that are missing, and with `jumps` the lock itself; without a table that too. */
static int commit(struct net_lock *l, const struct net_flow *flows, size_t n, bool create, bool jumps, struct fault *f)
{
	auto_free char *text = NULL;
	size_t len;
	FILE *t = open_memstream(&text, &len);

	if (!t)
		return fault_errno(f, FAULT_SYSTEM, "no memory for the rules of %zu flows", n);
	if (create) {
		text_table(t, l->table, false);
		text_both_rules(t, l->table);
	}
	text_elements(t, l->table, flows, n, l->known, l->n_known);
	if (jumps)
		text_jumps(t, l->table);
	fclose(t);
	return len ? run(l->nft, text, "lock the network", f) : 0;
}

int net_lock_prepare(struct net_lock *l, const struct net_flow *flows, size_t n, struct fault *f)
{
	struct net_flow *all, *more;

	if (!l->owned || l->engaged || !n)
		return 0;
	more = sorted(flows, n, f);
	if (!more)
		return -1;
	all = calloc(l->n_known + n, sizeof(*all));
	if (!all || commit(l, more, n, false, false, f) < 0) {
		free(more);
		free(all);
		return all ? -1 : fault_set(f, FAULT_SYSTEM, "no memory for %zu flows", n);
	}
	if (l->n_known)
		memcpy(all, l->known, l->n_known * sizeof(*all));
	memcpy(all + l->n_known, more, n * sizeof(*all));
	free(more);
	free(l->known);
	l->known = all;
	l->n_known += n;
	qsort(l->known, l->n_known, sizeof(*l->known), flow_cmp);
	return 0;
}

int net_lock_engage(struct net_lock *l, const struct net_flow *flows, size_t n, struct undo_log *undo, struct fault *f)
{
	auto_free struct net_flow *all = NULL;
	struct undo u = { .kind = UNDO_NFT_TABLE, .fd = -1 };

	if (!l->nft || l->engaged)
		return 0;
	all = sorted(flows, n, f);
	if (!all)
		return -1;
	if (!l->owned) {
		snprintf(u.name, sizeof(u.name), "%s", l->table);
		if (undo && undo->push(undo->ctx, &u, f) < 0)
			return -1;
	}
	l->engaged = true; /* also when it fails halfway: release then removes what there is */
	return commit(l, all, n, !l->owned, true, f);
}

int net_lock_release(struct net_lock *l, struct fault *f)
{
	char text[128];

	if (!l->nft || (!l->engaged && !l->owned))
		return 0;
	snprintf(text, sizeof(text), "delete table inet %s\n", l->table);
	if (run(l->nft, text, "release the network lock", f) < 0)
		return -1;
	l->engaged = l->owned = false;
	return 0;
}

void net_lock_close(struct net_lock *l)
{
	struct fault ignored;

	if (!l)
		return;
	if (l->nft) {
		if (net_lock_release(l, &ignored) < 0) { /* an owned table goes with the context */
		}
		nft_ctx_free(l->nft);
	}
	free(l->known);
	free(l);
}

int net_lock_keep(const char *migration, const struct net_flow *flows, size_t n, struct fault *f)
{
	struct net_lock l = { 0 };
	auto_free struct net_flow *all = NULL;
	int r;

	if (table_name(l.table, sizeof(l.table), migration, "-kept", f) < 0)
		return -1;
	all = sorted(flows, n, f);
	l.nft = all ? context_new(f) : NULL;
	if (!l.nft)
		return -1;
	r = commit(&l, all, n, true, true, f);
	nft_ctx_free(l.nft);
	return r;
}

int net_lock_remove(int nft, const char *table, struct fault *f)
{
	if (strncmp(table, TABLE_PREFIX, strlen(TABLE_PREFIX)) != 0 ||
	    table[strspn(table, "abcdefghijklmnopqrstuvwxyzABCDEF0123456789-")])
		return fault_set(f, FAULT_INTERNAL, "\"%s\" is not a table of ours", table);
	auto_fd own = nft < 0 ? nfttable_open(f) : -1;
	if (nft < 0 && own < 0)
		return -1;
	return nfttable_delete(nft < 0 ? own : nft, table, f);
}

static int add_flow(struct net_flow **flows, size_t *n, size_t *cap, const struct net_flow *w, struct fault *f)
{
	if (util_grow((void **)flows, cap, *n, sizeof(**flows)) < 0)
		return fault_set(f, FAULT_SYSTEM, "no memory for %zu flows", *n);
	(*flows)[(*n)++] = *w;
	return 0;
}

int net_lock_flows(const struct image *img, struct net_flow **flows, size_t *n, struct fault *f)
{
	auto_free struct net_flow *list = NULL;
	size_t count = 0, cap = 0, pos = 0;
	const struct image_entry *e;
	struct net_flow w;

	while ((e = image_next(img, IMAGE_FILES, 0, &pos))) {
		const FileEntry *file = e->msg;

		if (file->type == FD_TYPES__INETSK && file->isk && inet_flow_of_entry(file->isk, &w) &&
		    add_flow(&list, &count, &cap, &w, f) < 0)
			return -1;
	}
	*flows = take_ptr(list);
	*n = count;
	return 0;
}

int net_lock_flows_of(struct process *p, struct net_flow **flows, size_t *n, struct fault *f)
{
	auto_free struct net_flow *list = NULL;
	size_t count = 0, cap = 0;
	struct dirent *e;
	struct net_flow w;
	int r = 0, dirfd = openat(p->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = dirfd < 0 ? NULL : fdopendir(dirfd);

	if (!d)
		return fault_errno(f, FAULT_PROCESS_GONE, "list the descriptors of pid %d", (int)p->pid);
	while (r == 0 && (e = readdir(d))) {
		char link[32] = "";

		if (e->d_name[0] == '.' || readlinkat(dirfd, e->d_name, link, sizeof(link) - 1) < 0 ||
		    strncmp(link, "socket:", 7) != 0)
			continue;
		{
			auto_fd dup = process_getfd(p, atoi(e->d_name), f);

			if (dup < 0)
				r = -1;
			else if (inet_flow_of_socket(dup, &w))
				r = add_flow(&list, &count, &cap, &w, f);
		}
	}
	closedir(d);
	if (r < 0)
		return -1;
	*flows = take_ptr(list);
	*n = count;
	return 0;
}
