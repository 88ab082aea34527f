/*
 * What was done to the source, or to a host, and does not undo itself when the worker dies.
 * The engine pushes a record before the effect; the worker hands it to the warden, which keeps it in the
 * journal and, should the worker die, undoes everything, newest first, before it thaws (DESIGN, section 3).
 */
#ifndef PROTO_UNDO_H
#define PROTO_UNDO_H

#include <sys/types.h>

#include "fault.h"

/* X(enum name, stable name in the journal) */
#define UNDO_KINDS(X)                                                                                      \
	X(REPAIR, "tcp-repair")		      /* TCP sockets of pid may be in TCP_REPAIR: switch it off */ \
	X(PEEK_OFF, "peek-offset")	      /* SO_PEEK_OFF of fd `fd` of pid was `value` */              \
	X(ADDRESS_REMOVED, "address-removed") /* put `address`/`prefix` back on `device`, announce it */   \
	X(ADDRESS_ADDED, "address-added")     /* take it away again */                                     \
	X(NFT_TABLE, "nft-table")	      /* plain table `name`: delete it */                          \
	X(CGROUP_MOVED, "cgroup-moved")	      /* pid came from cgroup `name`: put it back */

enum undo_kind {
#define X(name, str) UNDO_##name,
	UNDO_KINDS(X)
#undef X
		UNDO_KIND_COUNT
};

struct undo {
	enum undo_kind kind;
	pid_t pid;
	int fd;
	int64_t value;
	int prefix;
	uint32_t ifa_flags;
	uint8_t scope;
	char address[48]; /* numeric */
	char device[16];
	char name[256];
};

/* Where the engine records. push: 0 when the record is safe; drop: the effect is undone or final. */
struct undo_log {
	int (*push)(void *ctx, const struct undo *u, struct fault *f);
	int (*drop)(void *ctx, enum undo_kind kind, struct fault *f); /* all records of that kind */
	void *ctx;
};

#endif
