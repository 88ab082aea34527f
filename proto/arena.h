/*
 * Memory that is freed all at once: the messages of one state, one request.
 * Also an allocator for protobuf-c, so that unpacked messages need no freeing of their own.
 * Not thread-safe; one owner.
 */
#ifndef PROTO_ARENA_H
#define PROTO_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "util.h"

struct arena;

struct arena *arena_new(void); /* never NULL: aborts when the first page can't be had */
void arena_free(struct arena *a);
/* Zeroed, aligned for any object. Never NULL: a process that can't get memory for its own
 * bookkeeping aborts (a worker's death is one failed migration, undone by the warden). */
void *arena_alloc(struct arena *a, size_t n);
char *arena_strdup(struct arena *a, const char *s);
void *arena_memdup(struct arena *a, const void *p, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF(2, 3);
ProtobufCAllocator *arena_pb(struct arena *a); /* for X__unpack(); never free what it gave */

/* arena_new_msg(a, FownEntry, fown_entry): an initialised message */
#define arena_msg(a, type, lower)                          \
	({                                                 \
		type *msg_ = arena_alloc(a, sizeof(type)); \
		lower##__init(msg_);                       \
		msg_;                                      \
	})
/* Append to a repeated field (n_field, field) of pointers. Quadratic copies are avoided by doubling. */
#define arena_push(a, n, arr, value)                                        \
	do {                                                                \
		if (((n) & ((n)-1)) == 0) {                                 \
			size_t cap_ = (n) ? 2 * (n) : 1;                    \
			void *new_ = arena_alloc(a, cap_ * sizeof(*(arr))); \
			if (n)                                              \
				memcpy(new_, (arr), (n) * sizeof(*(arr)));  \
			(arr) = new_;                                       \
		}                                                           \
		(arr)[(n)++] = (value);                                     \
	} while (0)

#endif
