/*
 * Internet sockets: TCP (tcp.c), UDP (udp.c), their options (options.c), common parts (inet.c).
 * The fd kinds are sock_tcp_kind and sock_udp_kind (fd/fd.h).
 */
#ifndef ENGINE_SOCK_H
#define ENGINE_SOCK_H

#include "fd.h"

extern const struct fd_kind sock_tcp_kind, sock_udp_kind;

/* For the warden, after a worker's death and for the silent close after the commit: every TCP socket of pid that
 * is in repair mode leaves it without a probe (on=false), or every connected one enters it (on=true) so that it
 * disappears without FIN or RST when the process is killed. */
int sock_repair_all(pid_t pid, bool on, struct fault *f) MUST_CHECK;

/* After the last socket of FD_PHASE_NETWORK, also when saving failed: no socket is in repair mode, the undo record goes. */
int sock_save_end(struct fd_save *s, struct fault *f) MUST_CHECK;

/* options.c: a table, one row an option. */
struct sock_options_target;
int sock_options_save(int dup, int family, int type, int protocol, struct arena *a, InetSkEntry *isk,
		      struct report *losses, const char *object, struct fault *f) MUST_CHECK;
int sock_options_restore(int fd, const InetSkEntry *isk, struct report *losses, const char *object,
			 struct fault *f) MUST_CHECK;

#endif
