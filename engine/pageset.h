/*
 * A set of page numbers: one bit a page, in leaves of 4 KiB (128 MiB of memory each) that exist only where a bit was
 * set. Page numbers up to 2^45 (57-bit addresses).
 */
#ifndef ENGINE_PAGESET_H
#define ENGINE_PAGESET_H

#include "util.h"

struct pageset;

struct pageset *pageset_new(void); /* never NULL */
void pageset_free(struct pageset *s);
bool pageset_has(const struct pageset *s, uint64_t page);
void pageset_add(struct pageset *s, uint64_t page, uint64_t n);
void pageset_remove(struct pageset *s, uint64_t page, uint64_t n);
/* The first run of pages of the set in [from, to): its start, with its length in *n. `to` when there is none. */
uint64_t pageset_next(const struct pageset *s, uint64_t from, uint64_t to, uint64_t *n);
uint64_t pageset_count(const struct pageset *s);

#endif
