/*
 * The mappings of the source process: read, classified, and as an mm_entry.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory_source.h"

bool memory_kind_private(enum map_kind k)
{
	return k == MAP_KIND_ANON || k == MAP_KIND_FILE || k == MAP_KIND_MEMFD_PRIVATE;
}

bool memory_kind_object(enum map_kind k)
{
	return k == MAP_KIND_SHM || k == MAP_KIND_MEMFD;
}

bool memory_kind_filelike(enum map_kind k)
{
	return k == MAP_KIND_FILE || k == MAP_KIND_MEMFD_PRIVATE || k == MAP_KIND_FILE_SHARED;
}

void memory_map_object(const struct map *m, char *buf, size_t len)
{
	snprintf(buf, len, "mapping %llx-%llx (%s%s)", (unsigned long long)m->start, (unsigned long long)m->end,
		 m->path[0] ? m->path : "anonymous", m->deleted ? ", deleted" : "");
}

static uint64_t locked_kb(const struct process *p)
{
	auto_free char *text = util_read_file(p->procfd, "status", NULL);
	const char *line = text ? strstr(text, "VmLck:") : NULL;
	return line ? strtoull(line + 6, NULL, 10) : 0;
}

/* The mapping of the old list that m is, or grew or shrank from. */
static const struct map *precursor(const struct maps *old, const struct map *m)
{
	const struct map *o = maps_find(old, m->start);
	if (!o)
		o = maps_find(old, m->end - 1);
	if (!o || o->kind != m->kind || o->dev != m->dev || o->ino != m->ino)
		return NULL;
	return m->kind == MAP_KIND_ANON || o->pgoff - o->start == m->pgoff - m->start ? o : NULL;
}

/* In the pause smaps is not read: it walks all page tables, 8 ms a GiB. Advice is what the last round found, a few ms
 * ago; a change of it alone, to a whole mapping, in between goes unseen, but for locks (VmLck shows these). False: a
 * mapping is new, or locks have changed. */
static bool carry_flags(const struct memory *m, const struct maps *old, struct maps *now)
{
	if (!old->n || locked_kb(m->p) != m->locked_kb)
		return false;
	for (size_t i = 0; i < now->n; i++) {
		struct map *n = &now->v[i];
		const struct map *o = precursor(old, n);
		if (!o)
			return false;
		n->flags = o->flags;
	}
	return true;
}

static void leave_out(struct maps *maps, struct range stub)
{
	size_t n = 0;
	for (size_t i = 0; i < maps->n; i++) {
		struct map *m = &maps->v[i];
		if (m->start >= stub.start && m->end <= stub.end) {
			free(m->path);
			free(m->name);
		} else {
			maps->v[n++] = *m;
		}
	}
	maps->n = n;
}

static int read_maps(struct memory *m, bool with_flags, struct maps *out, struct fault *f)
{
	if (!with_flags) {
		if (maps_read(m->p, false, out, f) < 0)
			return -1;
		leave_out(out, m->stub);
		if (carry_flags(m, &m->maps, out))
			return 0;
		maps_free(out);
	}
	uint64_t locked = locked_kb(m->p);
	if (maps_read(m->p, true, out, f) < 0)
		return -1;
	leave_out(out, m->stub);
	m->locked_kb = locked;
	return 0;
}

static int find_objects(struct memory *m, const struct maps *maps, struct fault *f)
{
	for (size_t i = 0; i < maps->n; i++) {
		const struct map *v = &maps->v[i];
		size_t index;
		if (!memory_kind_object(v->kind) && v->kind != MAP_KIND_MEMFD_PRIVATE)
			continue;
		if (shobj_of_map(&m->objects, m->p, v, &index, f) < 0)
			return -1;
	}
	if (shobj_scan_fds(&m->objects, m->p, f) < 0)
		return -1;
	if (m->objects.n >= UINT16_MAX)
		return fault_set(f, FAULT_UNSUPPORTED, "pid %d has more than %d shared memory objects", m->p->pid,
				 UINT16_MAX - 1);
	for (size_t i = 0; i < m->objects.n; i++)
		if (shobj_refresh(&m->objects.v[i], f) < 0)
			return -1;
	return 0;
}

int memory_list_read(struct memory *m, bool with_flags, struct fault *f)
{
	/* A running process may unmap what was just listed. */
	for (int attempt = 0;; attempt++) {
		struct maps now;
		if (read_maps(m, with_flags, &now, f) < 0)
			return -1;
		struct fault why;
		if (find_objects(m, &now, &why) == 0) {
			maps_free(&m->maps);
			m->maps = now;
			return 0;
		}
		maps_free(&now);
		if (why.code != FAULT_PROCESS_GONE || attempt >= 100 || !process_alive(m->p)) {
			*f = why;
			return -1;
		}
	}
}

static uint32_t status_of(const struct map *m)
{
	switch (m->kind) {
	case MAP_KIND_ANON:
		return VMA_REGULAR | VMA_ANON_PRIVATE | (!strcmp(m->path, "[heap]") ? VMA_HEAP : 0) |
		       (!strcmp(m->path, "[stack]") ? VMA_STACK : 0);
	case MAP_KIND_FILE:
		return VMA_REGULAR | VMA_FILE_PRIVATE;
	case MAP_KIND_FILE_SHARED:
		return VMA_REGULAR | VMA_FILE_SHARED;
	case MAP_KIND_SHM:
		return VMA_REGULAR | VMA_ANON_SHARED;
	case MAP_KIND_MEMFD:
		return VMA_REGULAR | VMA_ANON_SHARED | VMA_MEMFD;
	case MAP_KIND_MEMFD_PRIVATE:
		return VMA_REGULAR | VMA_FILE_PRIVATE | VMA_MEMFD;
	case MAP_KIND_VDSO:
		return VMA_REGULAR | VMA_VDSO | VMA_ANON_PRIVATE;
	case MAP_KIND_VVAR:
		return VMA_REGULAR | VMA_VVAR | VMA_ANON_PRIVATE;
	case MAP_KIND_VSYSCALL:
		return VMA_VSYSCALL | VMA_ANON_PRIVATE;
	case MAP_KIND_OTHER:
		return 0;
	}
	return 0;
}

static uint32_t mmap_flags(const struct map *m)
{
	bool anonymous = m->kind == MAP_KIND_ANON || m->kind == MAP_KIND_SHM || m->kind == MAP_KIND_VDSO ||
			 m->kind == MAP_KIND_VVAR || m->kind == MAP_KIND_VSYSCALL;
	return (m->shared ? MAP_SHARED : MAP_PRIVATE) | (anonymous ? MAP_ANONYMOUS : 0u) |
	       (m->flags & MAP_FLAG_GROWSDOWN ? MAP_GROWSDOWN : 0u) |
	       (m->flags & MAP_FLAG_NORESERVE ? MAP_NORESERVE : 0u);
}

static uint64_t madvise_bits(uint32_t flags)
{
	static const struct {
		uint32_t flag;
		int advice;
	} table[] = {
		{ MAP_FLAG_RANDREAD, MADV_RANDOM },   { MAP_FLAG_SEQREAD, MADV_SEQUENTIAL },
		{ MAP_FLAG_DONTFORK, MADV_DONTFORK }, { MAP_FLAG_MERGEABLE, MADV_MERGEABLE },
		{ MAP_FLAG_HUGEPAGE, MADV_HUGEPAGE }, { MAP_FLAG_NOHUGEPAGE, MADV_NOHUGEPAGE },
		{ MAP_FLAG_DONTDUMP, MADV_DONTDUMP }, { MAP_FLAG_WIPEONFORK, MADV_WIPEONFORK },
	};
	uint64_t bits = 0;
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (flags & table[i].flag)
			bits |= (uint64_t)1 << table[i].advice;
	return bits;
}

/* As the process sees it. */
static const char *own_path(const struct memory *m, const char *path)
{
	size_t n = strlen(m->root);
	return n && !strncmp(path, m->root, n) && path[n] == '/' ? path + n : path;
}

static int file_id(struct memory *m, const struct map *v, uint32_t open_flags, uint64_t *id, struct fault *f)
{
	/* The same mapping as before has the same file: spares the stat in the pause. */
	const VmaEntry *was = m->mm ? mapplan_find(m->mm, v->start) : NULL;
	if (was && (was->status & VMA_FILE) && !(was->status & VMA_MEMFD) && was->has_backing &&
	    was->backing == v->ino && was->fdflags == open_flags && was->pgoff - was->start == v->pgoff - v->start) {
		*id = was->shmid;
		return 0;
	}
	char path[80];
	struct stat st;
	snprintf(path, sizeof(path), "map_files/%llx-%llx", (unsigned long long)v->start, (unsigned long long)v->end);
	if (fstatat(m->p->procfd, path, &st, 0) < 0) {
		if (errno != ENOENT)
			return fault_errno(f, FAULT_SYSTEM, "look at the file mapped at %llx (%s)",
					   (unsigned long long)v->start, v->path);
		/* Unmapped meanwhile, the next round sees it: only its name counts now. */
		memset(&st, 0, sizeof(st));
		st.st_mode = S_IFREG;
	}
	*id = filetab_path(m->files, own_path(m, v->path), open_flags, &st);
	return 0;
}

static int set_backing(struct memory *m, const struct map *v, VmaEntry *e, struct fault *f)
{
	if (v->kind == MAP_KIND_FILE || v->kind == MAP_KIND_FILE_SHARED) {
		e->fdflags = v->shared && (v->flags & MAP_FLAG_MAYWRITE) ? O_RDWR : O_RDONLY;
		e->has_fdflags = true;
		if (file_id(m, v, e->fdflags, &e->shmid, f) < 0)
			return -1;
	} else if (memory_kind_object(v->kind) || v->kind == MAP_KIND_MEMFD_PRIVATE) {
		size_t index;
		if (shobj_of_map(&m->objects, m->p, v, &index, f) < 0)
			return -1;
		e->shmid = index + 1;
		e->has_object_size = true;
		e->object_size = (uint64_t)m->objects.v[index].st.st_size;
	} else {
		return 0;
	}
	e->has_backing = true;
	e->backing = v->ino;
	return 0;
}

static VmaEntry *make_vma(struct memory *m, struct arena *a, const struct map *v, struct fault *f)
{
	VmaEntry *e = arena_msg(a, VmaEntry, vma_entry);
	e->start = v->start;
	e->end = v->end;
	e->pgoff = v->pgoff;
	e->prot = v->prot;
	e->flags = mmap_flags(v);
	e->status = status_of(v);
	e->fd = -1;
	e->madv = madvise_bits(v->flags);
	e->has_madv = e->madv != 0;
	e->name = v->name ? arena_strdup(a, v->name) : NULL;
	e->vm_flags = v->flags & ~(MAP_FLAG_UFFD | MAP_FLAG_GUARD | (v->shared ? 0 : MAP_FLAG_MAYWRITE));
	e->has_vm_flags = true;
	if (set_backing(m, v, e, f) < 0)
		return NULL;
	return e;
}

static SharedObjectEntry *make_object(struct arena *a, const struct shobj *o, uint32_t id)
{
	SharedObjectEntry *e = arena_msg(a, SharedObjectEntry, shared_object_entry);
	e->id = id;
	e->size = (uint64_t)o->st.st_size;
	e->name = o->name ? arena_strdup(a, o->name) : NULL;
	e->seals = shobj_seals(o);
	e->has_seals = o->memfd;
	e->mode = o->st.st_mode & 07777;
	e->uid = o->st.st_uid;
	e->gid = o->st.st_gid;
	e->has_mode = e->has_uid = e->has_gid = true;
	e->dev = o->st.st_dev;
	e->ino = o->st.st_ino;
	e->has_dev = e->has_ino = true;
	return e;
}

static void set_fields(const struct memory *m, MmEntry *mm)
{
	size_t n_vmas = mm->n_vmas, n_objects = mm->n_objects;
	VmaEntry **vmas = mm->vmas;
	SharedObjectEntry **objects = mm->objects;
	if (m->saved)
		*mm = m->fields;
	mm->n_vmas = n_vmas;
	mm->vmas = vmas;
	mm->n_objects = n_objects;
	mm->objects = objects;
}

static MmEntry *make_mm(struct memory *m, struct arena *a, struct fault *f)
{
	MmEntry *mm = arena_msg(a, MmEntry, mm_entry);
	for (size_t i = 0; i < m->maps.n; i++) {
		const struct map *v = &m->maps.v[i];
		if (v->kind == MAP_KIND_OTHER) {
			char object[200];
			memory_map_object(v, object, sizeof(object));
			fault_set(f, FAULT_UNSUPPORTED, "%s of pid %d (%s) can't be moved", object, m->p->pid,
				  m->p->comm);
			return NULL;
		}
		VmaEntry *e = make_vma(m, a, v, f);
		if (!e)
			return NULL;
		if (v->kind == MAP_KIND_VDSO) {
			mm->vdso_start = v->start;
			mm->has_vdso_start = true;
		}
		arena_push(a, mm->n_vmas, mm->vmas, e);
	}
	for (size_t i = 0; i < m->objects.n; i++) {
		SharedObjectEntry *e = make_object(a, &m->objects.v[i], (uint32_t)i + 1);
		arena_push(a, mm->n_objects, mm->objects, e);
	}
	set_fields(m, mm);
	return mm;
}

/* What is not kept is not there at the destination. */
static int forget_replaced(struct memory *m, const MmEntry *mm, struct fault *f)
{
	struct mapplan plan;
	mapplan_make(m->mm, mm, &plan);
	bool *fresh = calloc(mm->n_vmas + 1, sizeof(*fresh));
	if (!fresh) {
		mapplan_done(&plan);
		return fault_errno(f, FAULT_NO_MEMORY, "keep a list of mappings");
	}
	for (size_t i = 0; i < mm->n_vmas; i++) {
		uint64_t at = mm->vmas[i]->start, from, to;
		while (mapplan_gap(&plan, &at, mm->vmas[i]->end, &from, &to)) {
			pageset_remove(m->sent, from / PAGE_BYTES, (to - from) / PAGE_BYTES);
			fresh[i] = true;
		}
	}
	mapplan_done(&plan);
	free(m->fresh_maps);
	m->fresh_maps = fresh;
	return 0;
}

int memory_list_build(struct memory *m, struct fault *f)
{
	struct arena *a = arena_new();
	MmEntry *mm = make_mm(m, a, f);
	if (!mm || forget_replaced(m, mm, f) < 0) {
		arena_free(a);
		return fault_while(f, "listing the mappings of pid %d (%s)", m->p->pid, m->p->comm);
	}
	arena_free(m->arena);
	m->arena = a;
	m->mm = mm;
	return 0;
}

void memory_list_set_guards(struct memory *m)
{
	for (size_t i = 0; i < m->n_guards; i++) {
		VmaEntry *e = (VmaEntry *)mapplan_find(m->mm, m->guards[i].start);
		if (!e)
			continue;
		arena_push(m->arena, e->n_guard, e->guard, m->guards[i].start);
		arena_push(m->arena, e->n_guard, e->guard, m->guards[i].end);
	}
}

bool memory_list_changed(struct memory *m)
{
	size_t len = mm_entry__get_packed_size(m->mm);
	uint8_t *packed = malloc(len ? len : 1);
	if (!packed)
		abort();
	mm_entry__pack(m->mm, packed);
	bool same = m->packed && len == m->packed_len && !memcmp(packed, m->packed, len);
	free(m->packed);
	m->packed = packed;
	m->packed_len = len;
	return !same;
}
