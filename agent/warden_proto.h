/*
 * What agent and worker may ask the warden for, as plain structures of fixed size over SOCK_SEQPACKET: the warden is
 * root and parses nothing. Both ends are of one build; a message of another size or number is refused.
 *
 *	agent  → warden		struct wp_ask		WIRE: the connected socket; WORKER: the worker's end of its events
 *	warden → agent		struct wp_event		READY or FAILED first
 *	warden → worker		struct wp_start		on descriptor 3, with the link's descriptors and the events socket
 *	worker → warden		struct wp_request	one at a time; KEEP_LOCK: a memfd with struct net_flow[]
 *	warden → worker		struct wp_reply		CGROUP: its directory
 */
#ifndef AGENT_WARDEN_PROTO_H
#define AGENT_WARDEN_PROTO_H

#include "handoff.h"
#include "link.h"
#include "undo.h"

#define WP_ID	       37
#define WP_NAME_MAX    256
#define WP_OPTIONS_MAX 16384
#define WP_FLOWS_MAX   65536u
#define WP_FDS_MAX     (LINK_FD_COUNT + 1)

/* wp_start's descriptors: those of struct link_fds in its order, then the events socket */
#define WP_START_FDS (LINK_FD_COUNT + 1)

enum wp_ask_kind { WP_ASK_WIRE, WP_ASK_CLOSE_WIRE, WP_ASK_WORKER, WP_ASK_KINDS };

struct wp_ask {
	uint32_t size, kind;
	uint64_t conn;
	uint32_t client; /* WIRE */
	uint32_t side;	 /* WORKER: enum handoff_side */
	int32_t pid;
	uint32_t options_len;
	char migration[WP_ID];
	char expect[WP_NAME_MAX];	 /* WIRE: "" for any */
	uint8_t options[WP_OPTIONS_MAX]; /* WORKER: packed Cpr__Options; CLOSE_WIRE: packed Cpr__Abort for the peer */
};

enum wp_event_kind { WP_EVENT_READY, WP_EVENT_FAILED, WP_EVENT_WIRE_UP, WP_EVENT_WIRE_FAILED, WP_EVENT_WORKER_EXIT };

struct wp_event {
	uint32_t size, kind;
	uint64_t conn;
	uint32_t state; /* WORKER_EXIT: enum handoff_state */
	uint32_t crashed;
	char migration[WP_ID];
	char peer[WP_NAME_MAX];
	char text[1024];
	struct fault fault;
};

struct wp_start {
	uint32_t size, side;
	int32_t pid;
	uint32_t options_len;
	char migration[WP_ID];
	char peer[WP_NAME_MAX];
	char host[WP_NAME_MAX]; /* this one */
	uint8_t options[WP_OPTIONS_MAX];
};

/* X(name): the closed list of what a worker may ask for; warden_client.h says what each does */
#define WP_OPS(X)    \
	X(NAME)      \
	X(STATE)     \
	X(ADOPT)     \
	X(CGROUP)    \
	X(FREEZE)    \
	X(THAW)      \
	X(KEEP_LOCK) \
	X(RUN)       \
	X(REMOVE)    \
	X(UNDO_PUSH) \
	X(UNDO_DROP) \
	X(UNDO)      \
	X(FORGET)    \
	X(DONE)

enum wp_op {
#define X(name) WP_##name,
	WP_OPS(X)
#undef X
		WP_OPS_COUNT
};

struct wp_request {
	uint32_t size, op;
	int32_t pid;	    /* NAME, ADOPT, RUN */
	uint32_t to, why;   /* STATE */
	uint32_t undo_kind; /* UNDO_DROP */
	uint64_t flows;	    /* KEEP_LOCK */
	char migration[WP_ID];
	char text[WP_NAME_MAX]; /* STATE: reason; CGROUP: name */
	struct undo undo;	/* UNDO_PUSH */
};

struct wp_reply {
	uint32_t size;
	int32_t result;
	struct fault fault;
};

/* One message with descriptors. Sending never waits; -1 with errno. */
int wp_send(int sock, const void *msg, size_t len, const int *fds, size_t n) MUST_CHECK;
/* 1: a message of exactly len bytes, *n descriptors (CLOEXEC, the caller's; unused ones are -1). 0: the peer is gone.
 * -1 with errno; EPROTO: a message that is none. flags: MSG_DONTWAIT. */
int wp_recv(int sock, void *msg, size_t len, int fds[WP_FDS_MAX], size_t *n, int flags) MUST_CHECK;
/* A string or fault from the other end: ended, and nothing that a terminal obeys. */
void wp_clean(char *s, size_t size);
void wp_clean_fault(struct fault *f);

#endif
