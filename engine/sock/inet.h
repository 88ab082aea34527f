/*
 * What TCP and UDP sockets have in common, and the other families will have: names, owner, entry, preflight.
 * Only for files of engine/sock and the network lock.
 */
#ifndef ENGINE_INET_H
#define ENGINE_INET_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "fd.h"
#include "lock.h"

/* States as the kernel and CRIU number them; linux/tcp.h has no names for them. */
enum inet_state {
	INET_ESTABLISHED = 1,
	INET_SYN_SENT,
	INET_SYN_RECV,
	INET_FIN_WAIT1,
	INET_FIN_WAIT2,
	INET_TIME_WAIT,
	INET_CLOSE,
	INET_CLOSE_WAIT,
	INET_LAST_ACK,
	INET_LISTEN,
	INET_CLOSING,
};

union inet_addr {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct inet_kind {
	int family, type, protocol;
};

/* False: no socket, or not AF_INET or AF_INET6. */
bool inet_kind_of(int fd, struct inet_kind *k);

socklen_t inet_addr_len(const union inet_addr *a);
bool inet_addr_is_any(const union inet_addr *a);
uint16_t inet_addr_port(const union inet_addr *a);
/* "10.0.0.1:80", "[fe80::1%eth0]:80". */
void inet_addr_text(const union inet_addr *a, char *buf, size_t len);
/* "fd 7: TCP 10.0.0.1:80 - 10.0.0.2:5000"; by its descriptor, or by its entry (then fd < 0). */
void inet_object(const struct fd_info *i, char *buf, size_t len);
void inet_object_of_entry(const InetSkEntry *isk, char *buf, size_t len);

/* Names, owner, flags, fown and options of a socket into a new entry. */
int inet_save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f) MUST_CHECK;
bool inet_local(const InetSkEntry *isk, union inet_addr *out);	/* false: not bound */
bool inet_remote(const InetSkEntry *isk, union inet_addr *out); /* false: not connected */
/* A socket of that kind with its owner, at a number >= min_fd. */
int inet_socket(const InetSkEntry *isk, int min_fd, struct fault *f) MUST_CHECK;
/* Binds, also to an address that is not on this host yet; connect (or not), then inet_settle. */
int inet_bind(int fd, const InetSkEntry *isk, struct fault *f) MUST_CHECK;
/* Takes back what inet_bind needed; open flags (O_ASYNC comes with the owner, fd/fown.c). */
int inet_settle(int fd, const InetSkEntry *isk, struct fault *f) MUST_CHECK;

/* Preflight of both kinds: foreign namespace, BPF filters, peers that stay behind; addresses into needs. */
int inet_check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
	       struct fault *f) MUST_CHECK;

/* MSG_PEEK starts at, and moves, the program's own SO_PEEK_OFF: off meanwhile (on the undo record), then put back. */
int inet_peek_begin(struct fd_save *s, const struct fd_info *i, int *was, struct fault *f) MUST_CHECK;
int inet_peek_end(struct fd_save *s, const struct fd_info *i, int was, struct fault *f) MUST_CHECK;

/* What the network lock has to drop for a socket; false: nothing. */
bool inet_flow_of_entry(const InetSkEntry *isk, struct net_flow *out);
bool inet_flow_of_socket(int fd, struct net_flow *out);

/* options.c in two steps: before bind(2), and when the socket has its final state. Buffer sizes are in neither. */
int inet_options_early(int fd, const InetSkEntry *isk, struct report *losses, const char *object,
		       struct fault *f) MUST_CHECK;
int inet_options_late(int fd, const InetSkEntry *isk, struct report *losses, const char *object,
		      struct fault *f) MUST_CHECK;
bool inet_option_int(const InetSkEntry *isk, int level, int name, int *value); /* false: as on a fresh socket */
/* Big enough to take queues, and as they were (with the program's own SO_BUF_LOCK). */
void inet_buffers_force(int fd, size_t in, size_t out);
int inet_buffers_final(int fd, const InetSkEntry *isk, struct fault *f) MUST_CHECK;

#endif
