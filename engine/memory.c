#include "memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "digest.h"
#include "memory_source.h"
#include "mm.h"

int memory_open(struct process *p, struct remote *r, const char *tracking, struct filetab *files, struct memory **out,
		struct fault *f)
{
	struct memory *m = calloc(1, sizeof(*m));
	char root[4096];
	if (!m || !(m->regions = malloc(MEMORY_REGIONS * sizeof(*m->regions)))) {
		free(m);
		return fault_errno(f, FAULT_NO_MEMORY, "prepare to read memory");
	}
	m->p = p;
	m->files = files;
	m->stub = remote_stub_range(r);
	m->sent = pageset_new();
	ssize_t n = readlinkat(p->procfd, "root", root, sizeof(root) - 1);
	m->root = strndup(root, n > 1 ? (size_t)n : 0);
	if (!m->root)
		abort();
	if (track_open(p, r, tracking, &m->tracker, f) < 0) {
		memory_close(m);
		return fault_while(f, "starting dirty tracking of pid %d (%s)", p->pid, p->comm);
	}
	*out = m;
	return 0;
}

void memory_close(struct memory *m)
{
	if (!m)
		return;
	track_close(m->tracker);
	maps_free(&m->maps);
	shobj_list_free(&m->objects);
	pageset_free(m->sent);
	if (m->arena)
		arena_free(m->arena);
	free(m->root);
	free(m->packed);
	free(m->auxv);
	free(m->fresh_maps);
	free(m->items);
	free(m->regions);
	free(m->guards);
	free(m);
}

const char *memory_tracking(const struct memory *m)
{
	return m->tracker->ops->name;
}

int memory_round_begin(struct memory *m, bool last, bool *maps_changed, struct fault *f)
{
	if (!m->p->stopped)
		m->stub = (struct range){ 0, 0 }; /* unmapped when it was let go */
	m->last = last;
	m->round++;
	if (memory_list_read(m, !last, f) < 0 || memory_list_build(m, f) < 0 || memory_scan_begin(m, f) < 0)
		return fault_while(f, "beginning round %u", m->round);
	if (last)
		memory_list_set_guards(m);
	*maps_changed = memory_list_changed(m);
	return 0;
}

const MmEntry *memory_mm(const struct memory *m)
{
	return m->mm;
}

uint64_t memory_round_pages(const struct memory *m)
{
	return m->round_pages;
}

uint64_t memory_round_zero_pages(const struct memory *m)
{
	return m->zero_pages;
}

int memory_dirty_pages(struct memory *m, uint64_t *pages, struct fault *f)
{
	for (size_t i = 0; i < m->objects.n; i++)
		if (shobj_refresh(&m->objects.v[i], f) < 0)
			return -1;
	return memory_scan_look(m, pages, f);
}

static int save_fields(struct memory *m, struct remote *r, struct fault *f)
{
	struct arena *a = arena_new();
	MmEntry mm = MM_ENTRY__INIT;
	if (mm_save(m->p, r, m->files, m->root, a, &mm, f) < 0) {
		arena_free(a);
		return -1;
	}
	free(m->auxv);
	m->auxv = malloc(mm.n_mm_saved_auxv * 8 + 8);
	if (!m->auxv)
		abort();
	memcpy(m->auxv, mm.mm_saved_auxv, mm.n_mm_saved_auxv * 8);
	mm.mm_saved_auxv = m->auxv;
	m->fields = mm;
	m->saved = true;
	arena_free(a);
	return 0;
}

static int put_mm(struct memory *m, struct image *img, struct fault *f)
{
	struct arena *a = image_arena(img);
	size_t len = mm_entry__get_packed_size(m->mm);
	uint8_t *packed = arena_alloc(a, len ? len : 1);
	mm_entry__pack(m->mm, packed);
	MmEntry *copy = mm_entry__unpack(arena_pb(a), len, packed);
	if (!copy)
		return fault_set(f, FAULT_INTERNAL, "mm_entry can't be unpacked again");
	return image_put(img, IMAGE_MM, (uint32_t)m->p->pid, copy, NULL, 0, f);
}

int memory_save(struct memory *m, struct remote *r, struct image *img, struct fault *f)
{
	m->stub = remote_stub_range(r);
	if (save_fields(m, r, f) < 0 || memory_list_read(m, !m->maps.n, f) < 0 || memory_list_build(m, f) < 0)
		return fault_while(f, "saving the memory layout");
	m->n_guards = 0;
	if (memory_scan_guards(m, 0, f) < 0)
		return -1;
	memory_list_set_guards(m);
	return put_mm(m, img, f);
}

int memory_digest(struct memory *m, const struct range *masked, size_t n_masked, struct arena *a,
		  Cpr__MemoryDigest ***out, size_t *n, struct fault *f)
{
	int *fds = arena_alloc(a, (m->objects.n + 1) * sizeof(*fds));
	for (size_t i = 0; i < m->objects.n; i++)
		fds[i] = m->objects.v[i].fd;
	return digest_memory(m->p, m->mm, fds, m->objects.n, masked, n_masked, a, out, n, f);
}

size_t memory_trackers(struct memory_tracker_info *out, size_t max)
{
	for (size_t i = 0; i < track_backend_count && i < max; i++) {
		out[i].name = track_backends[i]->name;
		out[i].works = track_works(track_backends[i], out[i].why, sizeof(out[i].why));
	}
	return track_backend_count;
}
