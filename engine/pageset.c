#include "pageset.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LEAF_BITS  15 /* 32768 pages */
#define MID_BITS   10
#define TOP_BITS   20
#define LEAF_WORDS (1u << (LEAF_BITS - 6))

struct leaf {
	uint64_t w[LEAF_WORDS];
};
struct mid {
	struct leaf *leaf[1u << MID_BITS];
};
struct pageset {
	struct mid **top; /* 8 MiB of address space, of which only what is used becomes memory */
	uint64_t count;
	bool used; /* there are leaves, maybe empty ones */
};
#define TOP_BYTES (sizeof(struct mid *) << TOP_BITS)

struct pageset *pageset_new(void)
{
	struct pageset *s = calloc(1, sizeof(*s));
	if (!s)
		abort();
	s->top = mmap(NULL, TOP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->top == MAP_FAILED)
		abort();
	return s;
}

void pageset_free(struct pageset *s)
{
	if (!s)
		return;
	for (size_t i = 0; s->used && i < (1u << TOP_BITS); i++) {
		if (!s->top[i])
			continue;
		for (size_t j = 0; j < (1u << MID_BITS); j++)
			free(s->top[i]->leaf[j]);
		free(s->top[i]);
	}
	munmap(s->top, TOP_BYTES);
	free(s);
}

/* NULL: nothing there; *skip: the first page behind the empty part. */
static struct leaf *find(const struct pageset *s, uint64_t page, uint64_t *skip)
{
	const struct mid *m = s->top[page >> (LEAF_BITS + MID_BITS) & ((1u << TOP_BITS) - 1)];
	struct leaf *l = m ? m->leaf[page >> LEAF_BITS & ((1u << MID_BITS) - 1)] : NULL;
	int shift = m ? LEAF_BITS : LEAF_BITS + MID_BITS;
	*skip = ((page >> shift) + 1) << shift;
	return l;
}

static struct leaf *make(struct pageset *s, uint64_t page)
{
	s->used = true;
	struct mid **m = &s->top[page >> (LEAF_BITS + MID_BITS) & ((1u << TOP_BITS) - 1)];
	if (!*m && !(*m = calloc(1, sizeof(**m))))
		abort();
	struct leaf **l = &(*m)->leaf[page >> LEAF_BITS & ((1u << MID_BITS) - 1)];
	if (!*l && !(*l = calloc(1, sizeof(**l))))
		abort();
	return *l;
}

bool pageset_has(const struct pageset *s, uint64_t page)
{
	uint64_t skip;
	const struct leaf *l = find(s, page, &skip);
	return l && (l->w[page >> 6 & (LEAF_WORDS - 1)] >> (page & 63) & 1);
}

/* Bits of the word that holds `page`, from it on, at most n; *take: how many pages that is. */
static uint64_t word_mask(uint64_t page, uint64_t n, uint64_t *take)
{
	unsigned bit = page & 63;
	*take = n < 64 - bit ? n : 64 - bit;
	return (*take == 64 ? ~(uint64_t)0 : (((uint64_t)1 << *take) - 1)) << bit;
}

void pageset_add(struct pageset *s, uint64_t page, uint64_t n)
{
	for (uint64_t take; n; page += take, n -= take) {
		uint64_t mask = word_mask(page, n, &take);
		uint64_t *w = &make(s, page)->w[page >> 6 & (LEAF_WORDS - 1)];
		s->count += (uint64_t)__builtin_popcountll(mask & ~*w);
		*w |= mask;
	}
}

void pageset_remove(struct pageset *s, uint64_t page, uint64_t n)
{
	for (uint64_t take, end = page + n; page < end; page += take) {
		uint64_t skip;
		struct leaf *l = find(s, page, &skip);
		if (!l) {
			take = skip - page;
			continue;
		}
		uint64_t mask = word_mask(page, end - page, &take);
		uint64_t *w = &l->w[page >> 6 & (LEAF_WORDS - 1)];
		s->count -= (uint64_t)__builtin_popcountll(mask & *w);
		*w &= ~mask;
	}
}

/* First page in [from, to) whose bit is `set`. */
static uint64_t seek(const struct pageset *s, uint64_t from, uint64_t to, bool set)
{
	while (from < to) {
		uint64_t skip;
		const struct leaf *l = find(s, from, &skip);
		if (!l) {
			if (!set)
				return from;
			from = skip;
			continue;
		}
		uint64_t w = l->w[from >> 6 & (LEAF_WORDS - 1)];
		w = (set ? w : ~w) >> (from & 63);
		if (w) {
			from += (unsigned)__builtin_ctzll(w);
			return from < to ? from : to;
		}
		from = (from | 63) + 1;
	}
	return to;
}

uint64_t pageset_next(const struct pageset *s, uint64_t from, uint64_t to, uint64_t *n)
{
	uint64_t start = seek(s, from, to, true);
	*n = start < to ? seek(s, start, to, false) - start : 0;
	return start;
}

uint64_t pageset_count(const struct pageset *s)
{
	return s->count;
}
