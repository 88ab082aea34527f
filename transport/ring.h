/*
 * Bytes from one process to another through shared memory: one producer, one consumer.
 *
 *	ring_create		the memory, a memfd sealed against change of size (both sides get it, and two eventfds)
 *	ring_map		each side for itself, once, as producer or as consumer
 *	producer: ring_room, write into the span, ring_produce
 *	consumer: ring_data, read the span, ring_consume
 *	to sleep: ring_arm(want) until it gives 0, poll(2) on ring_fd, ring_woken when that was readable
 *
 * The data is mapped twice in a row, so every span is contiguous and none is ever split at the end.
 *
 * The other side may be hostile. It can write all of the shared memory at any time: so each side keeps its own index
 * to itself and only publishes it, checks the other's at each use, and must not rely on what it reads in a span staying
 * as it is. Size changes (SIGBUS) are ruled out by the seals, which ring_map checks.
 *
 * No system call is made while both sides are busy: an eventfd is written only when the other side has announced that
 * it goes to sleep, and then once.
 */
#ifndef TRANSPORT_RING_H
#define TRANSPORT_RING_H

#include "fault.h"

struct ring_shared;

enum ring_role { RING_PRODUCER, RING_CONSUMER };

struct ring {
	struct ring_shared *shared;
	uint8_t *data;
	size_t size;
	enum ring_role role;
	uint64_t mine;	/* our index: bytes produced or consumed so far */
	uint64_t other; /* the other side's, as last seen and found possible */
	int fd_wait;	/* we sleep on it */
	int fd_wake;	/* we write it */
	size_t map_len;
};

/* size: a multiple of the page size. Returns the memfd, or -1. */
int ring_create(size_t size, const char *name, struct fault *f) MUST_CHECK;
/* The consumer sleeps on fd_data, the producer on fd_space (both non-blocking eventfds). All descriptors stay the
 * caller's; memfd may be closed afterwards, the eventfds must stay open until ring_unmap. */
int ring_map(struct ring *r, int memfd, size_t size, enum ring_role role, int fd_data, int fd_space,
	     struct fault *f) MUST_CHECK;
void ring_unmap(struct ring *r);

/* Free (producer) or filled (consumer) bytes from *at on. FAULT_PROTOCOL when the other side's index is impossible. */
int ring_room(struct ring *r, uint8_t **at, size_t *n, struct fault *f) MUST_CHECK;
int ring_data(struct ring *r, const uint8_t **at, size_t *n, struct fault *f) MUST_CHECK;
/* n: at most what was given. */
void ring_produce(struct ring *r, size_t n);
void ring_consume(struct ring *r, size_t n);

/* Producer: bytes that the consumer has taken out so far. */
uint64_t ring_taken(const struct ring *r);

/* Announces that we sleep until `want` (1…size) bytes are free or filled. 1: they are already, don't sleep. */
int ring_arm(struct ring *r, size_t want, struct fault *f) MUST_CHECK;
int ring_fd(const struct ring *r);
void ring_woken(struct ring *r); /* takes the eventfd's signal away */

#endif
