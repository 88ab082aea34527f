/*
 * Frames: what goes over a connection, in order, after TLS.
 *
 *	offset 0  u32  length of the payload, without this header
 *	       4  u16  type, enum frame_type
 *	       6  u16  flags, 0 today; a set bit that is not known is refused
 *	       8  u64  argument, see the type
 *	      16  payload
 *
 * Little-endian. The longest payload of each type is checked before anything is read of it.
 *
 *	source                                   destination
 *	HELLO            ------------------>
 *	                 <------------------     HELLO
 *	OFFER            ------------------>     (vets, makes the vessel)
 *	                 <------------------     ACCEPT or REFUSE
 *	MAPS PAGES … ROUND_END  ----------->
 *	                 <------------------     ROUND_ACK        … as many rounds as it takes
 *	MAPS PAGES … ROUND_END(last)  ----->     (frozen from here on)
 *	IMAGE … SEAL     ------------------>
 *	                 <------------------     READY
 *	COMMIT           ------------------>
 *	                 <------------------     RESUMED
 * ABORT (either, before COMMIT) and GONE (destination, instead of RESUMED) end it, too.
 */
#ifndef TRANSPORT_FRAME_H
#define TRANSPORT_FRAME_H

#include <stdint.h>

#include "fault.h"

#define FRAME_HEADER   16u
#define FRAME_PROTOCOL 1u

/* PAGES: data first, then the table that says where it belongs (its size is known last).
 * argument = number of segments << 32 | number of pages with data.
 * payload = pages with data, one after the other; then the segments. */
struct frame_segment {
	uint64_t addr; /* in the process; in object `space` - 1 its offset when space > 0 */
	uint32_t npages;
	uint16_t space; /* 0: the address space; else index + 1 in mm's table of shared objects */
	uint16_t flags; /* FRAME_SEGMENT_* */
};
#define FRAME_SEGMENT_ZERO    1u   /* all bytes are zero now; no data */
#define FRAME_SEGMENT_DISCARD 2u   /* the source dropped these pages; no data */
#define FRAME_PAGES_MAX	      512u /* pages with data in one frame */
#define FRAME_SEGMENTS_MAX    1024u

/* X(name, number, longest payload) */
#define FRAME_TYPES(X)                                                                       \
	X(HELLO, 1, 4096)                                                                    \
	X(OFFER, 2, 8u << 20)                                                                \
	X(ACCEPT, 3, 1u << 20)                                                               \
	X(REFUSE, 4, 1u << 20)                                                               \
	X(MAPS, 5, 32u << 20)                                                                \
	X(PAGES, 6, FRAME_PAGES_MAX * 4096u + FRAME_SEGMENTS_MAX * 16u)                      \
	X(ROUND_END, 7, 4096)                                                                \
	X(ROUND_ACK, 8, 4096)                                                                \
	/* argument = image type << 32 | id; payload = u32 message length, message, extra */ \
	X(IMAGE, 9, 64u << 20)                                                               \
	X(SEAL, 10, 16u << 20)                                                               \
	X(READY, 11, 1u << 20)                                                               \
	X(COMMIT, 12, 4096)                                                                  \
	X(RESUMED, 13, 1u << 20)                                                             \
	X(GONE, 14, 4096)                                                                    \
	X(ABORT, 15, 65536)

enum frame_type {
#define X(name, number, max) FRAME_##name = number,
	FRAME_TYPES(X)
#undef X
};

struct frame_header {
	uint32_t length;
	uint16_t type;
	uint16_t flags;
	uint64_t arg;
};

void frame_encode(const struct frame_header *h, uint8_t out[FRAME_HEADER]);
/* Checks type, flags and length. FAULT_PROTOCOL. */
int frame_decode(const uint8_t in[FRAME_HEADER], struct frame_header *h, struct fault *f) MUST_CHECK;
const char *frame_type_name(unsigned type);
uint32_t frame_max(unsigned type); /* longest payload; 0 for an unknown type */

#endif
