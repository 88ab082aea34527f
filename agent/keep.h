/*
 * --keep-state DIR: what went over the wire, as a directory that crit reads (a debugging aid).
 *
 * Pages are logged as they are sent, the last version of each counts; keep_finish writes pagemap-PID.img and
 * pages-1.img (and those of shared objects) and all image entries.
 */
#ifndef AGENT_KEEP_H
#define AGENT_KEEP_H

#include "image.h"
#include "memory.h"

struct keep;

int keep_new(const char *dir, uint32_t pid, struct keep **out, struct fault *f) MUST_CHECK;
int keep_pages(struct keep *k, const void *data, size_t pages, const struct memory_segment *segs, size_t n,
	       struct fault *f) MUST_CHECK;
int keep_finish(struct keep *k, const struct image *img, struct fault *f) MUST_CHECK;
void keep_free(struct keep *k);

#endif
