#include "link.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "convert.h"
#include "ring.h"

#define SEND_PIECE	 (LINK_RING_BYTES / 4)
#define LAST_WORDS_BYTES 4096u
#define UNPACK_FACTOR	 32u /* a message in memory is at most this much larger than packed: else it is an attack */

struct link {
	struct ring up, down;
	int up_data, up_space, down_data, down_space, end;
	int timeout_ms;
	bool gone;	      /* the wire has hung up: nothing can be sent, what lies in the ring can be read */
	bool have_last_words; /* `last_words` is why */
	struct fault last_words;
	struct { /* the frame that is being written */
		bool active;
		enum frame_type type;
		size_t max;
	} out;
	struct { /* the frame that is being received or was returned last */
		bool have_header;
		struct frame_header h;
		uint8_t *heap; /* frame that doesn't fit into the ring */
		size_t heap_used;
		size_t held; /* bytes of the ring that the caller may still look at */
	} in;
};

static int event(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

int link_create(struct link_fds *fds, struct fault *f)
{
	struct link_fds r = { -1, -1, -1, -1, -1, -1, -1, -1 };
	int ends[2];
	if ((r.up_mem = ring_create(LINK_RING_BYTES, "cpr-up", f)) < 0 ||
	    (r.down_mem = ring_create(LINK_RING_BYTES, "cpr-down", f)) < 0)
		goto failed;
	if ((r.up_data = event()) < 0 || (r.up_space = event()) < 0 || (r.down_data = event()) < 0 ||
	    (r.down_space = event()) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
		fault_errno(f, FAULT_SYSTEM, "create the descriptors of a link");
		goto failed;
	}
	r.worker_end = ends[0];
	r.wire_end = ends[1];
	*fds = r;
	return 0;
failed:
	link_fds_close(&r);
	return -1;
}

void link_fds_close(struct link_fds *fds)
{
	int *all[LINK_FD_COUNT] = { &fds->up_mem,    &fds->down_mem,   &fds->up_data,	 &fds->up_space,
				    &fds->down_data, &fds->down_space, &fds->worker_end, &fds->wire_end };
	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		util_close(all[i]);
}

struct link *link_open(struct link_fds *fds, struct fault *f)
{
	struct link *l = calloc(1, sizeof(*l));
	if (!l) {
		fault_errno(f, FAULT_NO_MEMORY, "open a link");
		return NULL;
	}
	l->timeout_ms = 30000;
	if (ring_map(&l->up, fds->up_mem, LINK_RING_BYTES, RING_PRODUCER, fds->up_data, fds->up_space, f) < 0 ||
	    ring_map(&l->down, fds->down_mem, LINK_RING_BYTES, RING_CONSUMER, fds->down_data, fds->down_space, f) < 0) {
		ring_unmap(&l->up);
		free(l);
		fault_while(f, "opening the link to the wire");
		return NULL;
	}
	l->up_data = take_fd(&fds->up_data);
	l->up_space = take_fd(&fds->up_space);
	l->down_data = take_fd(&fds->down_data);
	l->down_space = take_fd(&fds->down_space);
	l->end = take_fd(&fds->worker_end);
	link_fds_close(fds);
	return l;
}

void link_close(struct link *l)
{
	if (!l)
		return;
	ring_unmap(&l->up);
	ring_unmap(&l->down);
	int *all[] = { &l->up_data, &l->up_space, &l->down_data, &l->down_space, &l->end };
	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		util_close(all[i]);
	free(l->in.heap);
	free(l);
}

/* ---- faults of others ---- */

/* What a peer or a wire wrote ends up on terminals and in logs. */
static void printable(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
}

static int foreign_fault(const Cpr__Fault *m, struct fault *f)
{
	if (!m || !f)
		return fault_set(f, FAULT_PROTOCOL, "the other side gave a fault that can't be read");
	convert_fault_in(m, f);
	if (f->code == FAULT_NONE)
		f->code = FAULT_INTERNAL;
	printable(f->what);
	printable(f->where);
	printable(f->trail);
	printable(f->hint);
	return -1;
}

static int abort_fault(const struct frame *fr, struct fault *f)
{
	struct arena *a = arena_new();
	Cpr__Abort *m = link_unpack(fr, &cpr__abort__descriptor, a, f);
	if (m)
		foreign_fault(m->fault, f);
	else
		fault_while(f, "reading the other host's reason to abort");
	arena_free(a);
	return -1;
}

/* The wire's end hung up: takes its last words, if there are any. */
static void read_last_words(struct link *l)
{
	uint8_t buf[LAST_WORDS_BYTES];
	ssize_t n = recv(l->end, buf, sizeof(buf), MSG_DONTWAIT);
	l->gone = true;
	if (n <= 0)
		return;
	struct arena *a = arena_new();
	Cpr__Fault *m = cpr__fault__unpack(arena_pb(a), (size_t)n, buf);
	if (m) {
		foreign_fault(m, &l->last_words);
		l->have_last_words = true;
	}
	arena_free(a);
}

static int lost(struct link *l, struct fault *f)
{
	if (!l->have_last_words)
		return fault_set(f, FAULT_PEER_LOST,
				 "the connection to the other host broke: its wire process is gone");
	if (f)
		*f = l->last_words;
	return -1;
}

/* Sending is over. The peer may have said why before it went: an ABORT that waits to be read is the better reason. */
static int send_lost(struct link *l, struct fault *f)
{
	const uint8_t *at;
	uint8_t header[FRAME_HEADER];
	size_t n;
	struct frame fr;
	bool in_frame = l->in.have_header && l->in.heap;
	if (in_frame || ring_data(&l->down, &at, &n, NULL) < 0 || n < l->in.held + FRAME_HEADER)
		return lost(l, f);
	at += l->in.held;
	n -= l->in.held + FRAME_HEADER;
	memcpy(header, at, sizeof(header));
	if (frame_decode(header, &fr.h, NULL) < 0 || fr.h.type != FRAME_ABORT || n < fr.h.length)
		return lost(l, f);
	fr.payload = at + FRAME_HEADER;
	return abort_fault(&fr, f);
}

/* ---- waiting ---- */

/* Sleeps until the ring's eventfd or the wire's end has something. 1; 0 at the timeout. */
static int sleep_on(struct link *l, struct ring *r, int timeout_ms, struct fault *f)
{
	struct pollfd p[2] = { { .fd = ring_fd(r), .events = POLLIN }, { .fd = l->end, .events = POLLIN } };
	int n = poll(p, 2, timeout_ms);
	if (n < 0)
		return errno == EINTR ? 1 : fault_errno(f, FAULT_SYSTEM, "wait for the wire");
	if (p[0].revents)
		ring_woken(r);
	if (p[1].revents)
		read_last_words(l);
	return n > 0;
}

/* Waits until `need` bytes are free in the up ring. The timeout starts anew whenever the wire takes something. */
static int wait_room(struct link *l, size_t need, int timeout_ms, uint8_t **at, struct fault *f)
{
	for (;;) {
		size_t room;
		bool gone = l->gone; /* before looking: what it took before it went counts */
		if (ring_room(&l->up, at, &room, f) < 0)
			return fault_while(f, "sending to the other host");
		if (room >= need)
			return 0;
		if (gone)
			return send_lost(l, f);
		int r = ring_arm(&l->up, need, f);
		if (r == 0)
			r = sleep_on(l, &l->up, timeout_ms, f);
		if (r < 0)
			return -1;
		size_t before = room;
		if (r == 0 && ring_room(&l->up, at, &room, f) == 0 && room == before)
			return fault_set(f, FAULT_TIMEOUT, "the other host took nothing for %d ms", timeout_ms);
	}
}

/* ---- sending ---- */

static int check_out(enum frame_type type, size_t len, struct fault *f)
{
	if (len > frame_max(type))
		return fault_set(f, FAULT_INTERNAL, "%s frame of %zu bytes is too long to send, at most %u are allowed",
				 frame_type_name(type), len, frame_max(type));
	return 0;
}

void *link_begin(struct link *l, enum frame_type type, size_t max_payload, struct fault *f)
{
	uint8_t *at;
	if (check_out(type, max_payload, f) < 0)
		return NULL;
	if (l->out.active || max_payload > LINK_FRAME_IN_RING) {
		fault_set(f, FAULT_INTERNAL, "link_begin(%s, %zu)", frame_type_name(type), max_payload);
		return NULL;
	}
	if (wait_room(l, FRAME_HEADER + max_payload, l->timeout_ms, &at, f) < 0)
		return NULL;
	l->out.active = true;
	l->out.type = type;
	l->out.max = max_payload;
	return at + FRAME_HEADER;
}

void link_cancel(struct link *l)
{
	l->out.active = false;
}

int link_commit(struct link *l, uint64_t arg, size_t payload, struct fault *f)
{
	uint8_t *at;
	size_t room;
	if (!l->out.active || payload > l->out.max)
		return fault_set(f, FAULT_INTERNAL, "link_commit of %zu bytes without room for them", payload);
	if (ring_room(&l->up, &at, &room, f) < 0)
		return -1;
	struct frame_header h = { .length = (uint32_t)payload, .type = (uint16_t)l->out.type, .arg = arg };
	frame_encode(&h, at);
	l->out.active = false;
	ring_produce(&l->up, FRAME_HEADER + payload);
	return 0;
}

/* A frame that is larger than what may lie in the ring goes in pieces, the header with the first. */
static int send_pieces(struct link *l, const struct frame_header *h, const uint8_t *payload, struct fault *f)
{
	uint8_t *at;
	if (wait_room(l, FRAME_HEADER, l->timeout_ms, &at, f) < 0)
		return -1;
	frame_encode(h, at);
	ring_produce(&l->up, FRAME_HEADER);
	for (size_t done = 0, n; done < h->length; done += n) {
		n = h->length - done < SEND_PIECE ? h->length - done : SEND_PIECE;
		if (wait_room(l, n, l->timeout_ms, &at, f) < 0)
			return -1;
		memcpy(at, payload + done, n);
		ring_produce(&l->up, n);
	}
	return 0;
}

int link_send(struct link *l, enum frame_type type, uint64_t arg, const void *payload, size_t len, struct fault *f)
{
	if (check_out(type, len, f) < 0)
		return -1;
	if (len > LINK_FRAME_IN_RING) {
		struct frame_header h = { .length = (uint32_t)len, .type = (uint16_t)type, .arg = arg };
		return l->out.active ? fault_set(f, FAULT_INTERNAL, "link_send within a frame")
				     : send_pieces(l, &h, payload, f);
	}
	void *at = link_begin(l, type, len, f);
	if (!at)
		return -1;
	if (len)
		memcpy(at, payload, len);
	return link_commit(l, arg, len, f);
}

int link_send_msg(struct link *l, enum frame_type type, const ProtobufCMessage *msg, struct fault *f)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	if (check_out(type, len, f) < 0)
		return -1;
	if (len <= LINK_FRAME_IN_RING) {
		uint8_t *at = link_begin(l, type, len, f);
		if (!at)
			return -1;
		protobuf_c_message_pack(msg, at);
		return link_commit(l, 0, len, f);
	}
	auto_free uint8_t *buf = malloc(len);
	if (!buf)
		return fault_errno(f, FAULT_NO_MEMORY, "pack a %s message", frame_type_name(type));
	protobuf_c_message_pack(msg, buf);
	return link_send(l, type, 0, buf, len, f);
}

int link_drain(struct link *l, int timeout_ms, struct fault *f)
{
	uint8_t *at;
	if (wait_room(l, l->up.size, timeout_ms, &at, f) < 0)
		return fault_while(f, "waiting for everything to be sent");
	return 0;
}

/* ---- receiving ---- */

/* The caller is done with the frame that was returned last. */
static void release(struct link *l)
{
	if (l->in.held)
		ring_consume(&l->down, l->in.held);
	l->in.held = 0;
	if (!l->in.have_header) {
		free(l->in.heap);
		l->in.heap = NULL;
	}
}

static int start_frame(struct link *l, const uint8_t *at, struct fault *f)
{
	uint8_t copy[FRAME_HEADER]; /* the wire may change it between two looks */
	memcpy(copy, at, sizeof(copy));
	if (frame_decode(copy, &l->in.h, f) < 0)
		return fault_while(f, "receiving from the other host");
	if (l->in.h.length > LINK_FRAME_IN_RING) {
		l->in.heap = malloc(l->in.h.length);
		if (!l->in.heap)
			return fault_errno(f, FAULT_NO_MEMORY, "receive a %s frame of %u bytes",
					   frame_type_name(l->in.h.type), l->in.h.length);
		l->in.heap_used = 0;
		ring_consume(&l->down, FRAME_HEADER);
	}
	l->in.have_header = true;
	return 0;
}

static void finish_frame(struct link *l, const uint8_t *payload, struct frame *out)
{
	out->h = l->in.h;
	out->payload = payload;
	l->in.have_header = false;
}

/* Goes on with what lies in the ring. 1: a frame is complete; else 0, and *want bytes are needed to go on. */
static int advance(struct link *l, struct frame *out, size_t *want, struct fault *f)
{
	for (;;) {
		const uint8_t *at;
		size_t n;
		if (ring_data(&l->down, &at, &n, f) < 0)
			return -1;
		if (!l->in.have_header) {
			*want = FRAME_HEADER;
			if (n < FRAME_HEADER)
				return 0;
			if (start_frame(l, at, f) < 0)
				return -1;
			continue;
		}
		if (!l->in.heap) {
			*want = FRAME_HEADER + l->in.h.length;
			if (n < *want)
				return 0;
			l->in.held = *want;
			finish_frame(l, at + FRAME_HEADER, out);
			return 1;
		}
		size_t left = l->in.h.length - l->in.heap_used, take = n < left ? n : left;
		memcpy(l->in.heap + l->in.heap_used, at, take);
		l->in.heap_used += take;
		ring_consume(&l->down, take);
		left -= take;
		if (!left) {
			finish_frame(l, l->in.heap, out);
			return 1;
		}
		*want = left < SEND_PIECE ? left : SEND_PIECE;
		if (!take)
			return 0;
	}
}

static int remaining_ms(uint64_t deadline, int timeout_ms)
{
	if (timeout_ms < 0)
		return -1;
	uint64_t now = util_monotonic_ns();
	return now >= deadline ? 0 : (int)((deadline - now + 999999) / 1000000);
}

int link_recv(struct link *l, struct frame *out, int timeout_ms, struct fault *f)
{
	uint64_t deadline = timeout_ms > 0 ? util_monotonic_ns() + (uint64_t)timeout_ms * 1000000 : 0;
	release(l);
	for (;;) {
		size_t want;
		bool gone = l->gone; /* before looking: what it wrote before it went must not be missed */
		int r = advance(l, out, &want, f);
		if (r)
			return r;
		if (gone)
			return lost(l, f);
		r = ring_arm(&l->down, want, f);
		if (r < 0)
			return -1;
		if (r)
			continue;
		r = sleep_on(l, &l->down, remaining_ms(deadline, timeout_ms), f);
		if (r < 0)
			return -1;
		if (!r)
			return 0; /* still armed: link_poll_fd tells */
	}
}

int link_expect(struct link *l, enum frame_type type, struct frame *out, int timeout_ms, struct fault *f)
{
	struct frame fr;
	int r = link_recv(l, &fr, timeout_ms, f);
	if (r < 0)
		return fault_while(f, "waiting for %s", frame_type_name(type));
	if (!r)
		return 0;
	if (fr.h.type == FRAME_ABORT && type != FRAME_ABORT)
		return abort_fault(&fr, f);
	if (fr.h.type != type)
		return fault_set(f, FAULT_PROTOCOL, "%s from the other host where %s is due",
				 frame_type_name(fr.h.type), frame_type_name(type));
	*out = fr;
	return 1;
}

/* ---- messages ---- */

/* protobuf-c makes large structures of small input: the arena must not grow without bound. */
struct budget {
	ProtobufCAllocator *arena;
	size_t left;
};

static void *budget_alloc(void *ctx, size_t n)
{
	struct budget *b = ctx;
	if (n > b->left)
		return NULL;
	b->left -= n;
	return b->arena->alloc(b->arena->allocator_data, n);
}

static void budget_free(void *ctx, void *p)
{
	(void)ctx; /* goes with the arena */
	(void)p;
}

void *link_unpack(const struct frame *fr, const ProtobufCMessageDescriptor *desc, struct arena *a, struct fault *f)
{
	size_t len = fr->h.length;
	uint8_t *copy = arena_memdup(a, fr->payload, len); /* the wire may change it while it is parsed */
	struct budget b = { .arena = arena_pb(a), .left = ((size_t)1 << 20) + UNPACK_FACTOR * len };
	ProtobufCAllocator allocator = { .alloc = budget_alloc, .free = budget_free, .allocator_data = &b };
	void *m = protobuf_c_message_unpack(desc, &allocator, len, copy);
	if (!m)
		fault_set(f, FAULT_PROTOCOL, "a %s frame whose %s can't be read", frame_type_name(fr->h.type),
			  desc->name);
	return m;
}

/* ---- the rest ---- */

void link_set_timeout(struct link *l, int ms)
{
	l->timeout_ms = ms;
}

int link_poll_fd(const struct link *l)
{
	return ring_fd(&l->down);
}

int link_hangup_fd(const struct link *l)
{
	return l->end;
}

uint64_t link_bytes_sent(const struct link *l)
{
	return l->up.mine;
}

uint64_t link_bytes_taken(const struct link *l)
{
	return ring_taken(&l->up);
}
