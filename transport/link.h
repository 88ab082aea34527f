/*
 * One connection to a peer, as the worker sees it: frames in, frames out. Behind it is the wire,
 * another process that does TLS; between them are two rings of shared memory, so that pages are
 * read straight into what is sent and placed straight from what was received.
 *
 *	warden: link_create(&fds), gives all of them to cpr-wire and cpr-worker, closes its own.
 *	worker: link_open(&fds); link_send*, link_recv …; link_close.
 *
 * The wire is not trusted with anything but bytes: ring indices are checked at each use, frame
 * headers and messages are copied out of the shared memory before they are looked at.
 * A link belongs to one thread.
 */
#ifndef TRANSPORT_LINK_H
#define TRANSPORT_LINK_H

#include <protobuf-c/protobuf-c.h>

#include "arena.h"
#include "frame.h"

#define LINK_RING_BYTES ((size_t)4 << 20)
/* Payloads larger than this (no PAGES frame is) don't lie in the ring: they are moved through a buffer on the heap. */
#define LINK_FRAME_IN_RING (LINK_RING_BYTES / 8 * 5)

/* Descriptors of both rings. "up": worker to peer, "down": peer to worker. All are CLOEXEC. */
struct link_fds {
	int up_mem, down_mem;  /* memfd, sealed against change of size */
	int up_data, up_space; /* eventfds: the producer has written, the consumer has made room */
	int down_data, down_space;
	int worker_end, wire_end; /* socketpair: the other side's hang-up is how a death is noticed; one
				     * line of text from the wire before it says why (a fault, packed Cpr__Fault) */
};
#define LINK_FD_COUNT 8

int link_create(struct link_fds *fds, struct fault *f) MUST_CHECK;
void link_fds_close(struct link_fds *fds);

struct link;

/* Takes the descriptors it needs and closes the wire's end. */
struct link *link_open(struct link_fds *fds, struct fault *f) MUST_CHECK;
void link_close(struct link *l); /* what was committed is still sent by the wire before it closes the connection */

/* A frame that is being written: room for max_payload bytes in the ring (max: LINK_FRAME_IN_RING).
 * Waits for room; FAULT_PEER_LOST when the wire is gone, FAULT_TIMEOUT after timeout_ms without progress. */
void *link_begin(struct link *l, enum frame_type type, size_t max_payload, struct fault *f) MUST_CHECK;
int link_commit(struct link *l, uint64_t arg, size_t payload, struct fault *f) MUST_CHECK;
void link_cancel(struct link *l); /* the frame that was begun is not sent after all */
int link_send(struct link *l, enum frame_type type, uint64_t arg, const void *payload, size_t len,
	      struct fault *f) MUST_CHECK; /* any length the type allows */
int link_send_msg(struct link *l, enum frame_type type, const ProtobufCMessage *msg, struct fault *f) MUST_CHECK;
/* Waits until the wire has taken everything that was committed out of the ring. */
int link_drain(struct link *l, int timeout_ms, struct fault *f) MUST_CHECK;

struct frame {
	struct frame_header h;
	const uint8_t *payload; /* in the ring: valid until the next link_recv; h.length bytes. May change under the
				 * reader's eyes if the wire is compromised: copy before parsing. */
};
/* Next frame. Returns 1; 0 at the timeout; -1 with FAULT_PEER_LOST, FAULT_PROTOCOL or the wire's fault. */
int link_recv(struct link *l, struct frame *out, int timeout_ms, struct fault *f) MUST_CHECK;
/* As link_recv, but a frame of another type is a fault; an ABORT frame becomes the fault it carries. */
int link_expect(struct link *l, enum frame_type type, struct frame *out, int timeout_ms, struct fault *f) MUST_CHECK;
/* Copies and unpacks a frame's payload. NULL with FAULT_PROTOCOL. */
void *link_unpack(const struct frame *fr, const ProtobufCMessageDescriptor *desc, struct arena *a,
		  struct fault *f) MUST_CHECK;

void link_set_timeout(struct link *l, int ms); /* for link_begin and link_send; default 30 s */
/* Readable when link_recv may have something: for poll(2) beside other descriptors. Poll only after link_recv has
 * returned 0; watch link_hangup_fd, too. */
int link_poll_fd(const struct link *l);
int link_hangup_fd(const struct link *l);
uint64_t link_bytes_sent(const struct link *l);	 /* committed to the ring */
uint64_t link_bytes_taken(const struct link *l); /* taken out of the ring by the wire: for bandwidth estimates */

#endif
