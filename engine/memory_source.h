/*
 * What the files of the source side share: memory.c (open, rounds), memory_list.c (mappings as an image),
 * memory_scan.c (what is to be sent), memory_fill.c (reading it). Not for others.
 */
#ifndef ENGINE_MEMORY_SOURCE_H
#define ENGINE_MEMORY_SOURCE_H

#include "mapplan.h"
#include "memory.h"
#include "pageset.h"
#include "shobj.h"
#include "track.h"

enum item_what { ITEM_DATA, ITEM_ZERO, ITEM_DISCARD };

struct item {
	uint64_t addr; /* in the process, or in the object */
	uint32_t npages;
	uint32_t map; /* index in maps; of an object: ITEM_NO_MAP */
	uint16_t space;
	uint16_t what;
};
#define ITEM_NO_MAP UINT32_MAX

struct memory {
	struct process *p;
	struct tracker *tracker;
	struct filetab *files;
	char *root;	   /* the process's root directory as we see it, "" for our own */
	struct range stub; /* of the remote calls: no part of the image. 0, 0: there is none */

	struct maps maps;   /* of this round */
	uint64_t locked_kb; /* VmLck when maps was read with flags */
	struct shobj_list objects;
	struct arena *arena; /* of mm */
	MmEntry *mm;
	uint8_t *packed; /* mm as it was last handed out */
	size_t packed_len;
	bool saved; /* fields below are those of the process */
	MmEntry fields;
	uint64_t *auxv;

	struct pageset *sent; /* pages that the destination has content for */
	bool saw_guard;	      /* guard pages were there in some round: only scan_all sees those at the end */
	uint32_t round;
	bool last;
	uint64_t round_pages, zero_pages;

	/* What is left of the round: mappings from (at_map, at_addr) on, then objects from at_object on. */
	size_t at_map, at_object;
	uint64_t at_addr, window;
	bool *fresh_maps; /* per mapping: all of it counts as written */
	struct item *items;
	size_t item_head, n_items, cap_items;
	struct pagemap_region *regions; /* scratch of a scan */

	size_t n_guards, cap_guards;
	struct range *guards; /* found by the last round */
};
#define MEMORY_REGIONS 4096

/* memory_list.c */
bool memory_kind_private(enum map_kind k);  /* pages in the address space that are the process's own */
bool memory_kind_object(enum map_kind k);   /* pages belong to a shared object */
bool memory_kind_filelike(enum map_kind k); /* a page of zeroes differs from a page that is not there */
int memory_list_read(struct memory *m, bool with_flags, struct fault *f) MUST_CHECK; /* maps, objects */
int memory_list_build(struct memory *m, struct fault *f) MUST_CHECK;		     /* mm; clears `sent` as planned */
void memory_list_set_guards(struct memory *m);
bool memory_list_changed(struct memory *m); /* since it was last called */
/* "mapping 7f..-7f.. (path)" */
void memory_map_object(const struct map *m, char *buf, size_t len);

/* memory_scan.c */
int memory_scan_begin(struct memory *m, struct fault *f) MUST_CHECK;
/* More items. The queue is empty before; still empty after: the round is over. */
int memory_scan_more(struct memory *m, struct fault *f) MUST_CHECK;
int memory_scan_look(struct memory *m, uint64_t *pages, struct fault *f) MUST_CHECK;
int memory_scan_guards(struct memory *m, size_t from_map, struct fault *f) MUST_CHECK;

#endif
