#include "track.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct tracker_ops *const track_backends[] = { &track_wp_async, &track_soft_dirty, &track_none };
const size_t track_backend_count = ARRAY_LEN(track_backends);

bool track_works(const struct tracker_ops *ops, char *why, size_t len)
{
	static struct { /* a kernel does not change under a running process */
		bool known, works;
		char why[128];
	} cache[ARRAY_LEN(track_backends)];
	for (size_t i = 0; i < ARRAY_LEN(track_backends); i++) {
		if (track_backends[i] != ops)
			continue;
		if (!cache[i].known)
			cache[i].works = ops->self_test(cache[i].why, sizeof(cache[i].why));
		cache[i].known = true;
		snprintf(why, len, "%s", cache[i].works ? "" : cache[i].why);
		return cache[i].works;
	}
	return false;
}

static int open_named(struct process *p, struct remote *r, const char *name, struct tracker **out, struct fault *f)
{
	for (size_t i = 0; i < ARRAY_LEN(track_backends); i++) {
		const struct tracker_ops *ops = track_backends[i];
		char why[128];
		if (strcmp(ops->name, name) != 0)
			continue;
		if (!track_works(ops, why, sizeof(why))) {
			fault_set(f, FAULT_KERNEL, "dirty tracking by %s does not work here: %s", name, why);
			return fault_hint(f, "Leave --tracking out: then what works is found.");
		}
		return ops->open(p, r, out, f);
	}
	fault_set(f, FAULT_USAGE, "no dirty tracking is called \"%.32s\"", name);
	return fault_hint(f, "Known are wp-async, soft-dirty and none.");
}

int track_open(struct process *p, struct remote *r, const char *name, struct tracker **out, struct fault *f)
{
	if (name && *name)
		return open_named(p, r, name, out, f);
	for (size_t i = 0; i < ARRAY_LEN(track_backends); i++) {
		char why[128];
		struct fault refused;
		if (!track_works(track_backends[i], why, sizeof(why)))
			continue;
		if (track_backends[i]->open(p, r, out, &refused) == 0)
			return 0;
		if (refused.code == FAULT_PROCESS_GONE || i + 1 == ARRAY_LEN(track_backends)) {
			*f = refused;
			return -1;
		}
	}
	return fault_set(f, FAULT_KERNEL, "no way of dirty tracking");
}

void track_close(struct tracker *t)
{
	if (t)
		t->ops->close(t);
}

int track_init(struct tracker *t, const struct tracker_ops *ops, struct process *p, struct fault *f)
{
	t->ops = ops;
	t->p = p;
	t->pm.fd = -1;
	if (pagemap_open(p->procfd, &t->pm) < 0)
		return fault_errno(f, errno == ENOENT || errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "open /proc/%d/pagemap", p->pid);
	return 0;
}

int track_fault(const struct tracker *t, struct fault *f)
{
	if (errno == ESRCH || errno == ENOMEM)
		return fault_set(f, FAULT_PROCESS_GONE, "process %d (%s) exited or called exec: its memory is gone",
				 t->p->pid, t->p->comm);
	return fault_errno(f, FAULT_SYSTEM, "scan the page table of pid %d", t->p->pid);
}

/* none: nothing is known, so everything is sent at the end. */

static bool none_test(char *why, size_t len)
{
	(void)why;
	(void)len;
	return true;
}

static void none_close(struct tracker *t)
{
	pagemap_close(&t->pm);
	free(t);
}

static int none_open(struct process *p, struct remote *r, struct tracker **out, struct fault *f)
{
	(void)r;
	struct tracker *t = calloc(1, sizeof(*t));
	if (!t)
		return fault_errno(f, FAULT_NO_MEMORY, "open dirty tracking");
	if (track_init(t, &track_none, p, f) < 0) {
		free(t);
		return -1;
	}
	*out = t;
	return 0;
}

static int none_scan(struct tracker *t, struct track_range *r, bool look, struct pagemap_region *v, size_t max,
		     size_t *n, uint64_t *walked, bool *tracked, struct fault *f)
{
	(void)t, (void)look, (void)v, (void)max, (void)f;
	*n = 0;
	*walked = r->end;
	*tracked = false;
	return 0;
}

static int none_scan_all(struct tracker *t, const struct track_range *r, struct pagemap_region *v, size_t max,
			 size_t *n, uint64_t *walked, struct fault *f)
{
	struct pagemap_query q = {
		.start = r->start,
		.end = r->end,
		.lack = r->private_file ? PAGEMAP_FILE : 0,
		.any = PAGEMAP_PRESENT | PAGEMAP_SWAPPED | PAGEMAP_GUARD,
		.give = PAGEMAP_ZERO | PAGEMAP_GUARD,
	};
	if (pagemap_scan(&t->pm, &q, v, max, n, walked) < 0)
		return track_fault(t, f);
	for (size_t i = 0; i < *n; i++)
		v[i].is |= PAGEMAP_WRITTEN;
	return 0;
}

const struct tracker_ops track_none = {
	.name = "none",
	.self_test = none_test,
	.open = none_open,
	.scan = none_scan,
	.scan_all = none_scan_all,
	.close = none_close,
};
