#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "digest.h"
#include "memory_dest.h"
#include "mm.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#endif
#define ADDRESS_MAX ((uint64_t)1 << 56)

int memory_target_new(struct vessel *v, struct memory_target **out, struct fault *f)
{
	struct memory_target *t = calloc(1, sizeof(*t));
	if (!t || !(t->buf = malloc(MEMORY_TARGET_BUF))) {
		free(t);
		return fault_errno(f, FAULT_NO_MEMORY, "prepare to fill a process");
	}
	t->v = v;
	t->p = vessel_process(v);
	t->r = vessel_remote(v);
	t->uffd = -1;
	t->placed = pageset_new();
	*out = t;
	return 0;
}

void memory_target_free(struct memory_target *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n_objects; i++)
		util_close(&t->objects[i].fd);
	if (t->arena)
		arena_free(t->arena);
	target_fresh_close(t);
	pageset_free(t->placed);
	free(t->armed);
	free(t->objects);
	free(t->object_fds);
	free(t->buf);
	free(t);
}

const int *memory_target_objects(const struct memory_target *t, size_t *n)
{
	struct memory_target *own = (struct memory_target *)t;
	int *v = realloc(own->object_fds, (t->n_objects + 1) * sizeof(*v));
	if (!v)
		abort();
	for (size_t i = 0; i < t->n_objects; i++)
		v[i] = t->objects[i].fd;
	own->object_fds = v;
	*n = t->n_objects;
	return v;
}

/* What comes from outside. */

static int check_vma(const MmEntry *mm, const VmaEntry *e, uint64_t behind, struct fault *f)
{
	const char *why = NULL;
	uint32_t type = e->status & VMA_TYPE;
	bool object = type == VMA_ANON_SHARED || (e->status & VMA_MEMFD);
	bool known = (e->status & VMA_SPECIAL) || type == VMA_ANON_PRIVATE || type == VMA_FILE_PRIVATE ||
		     type == VMA_FILE_SHARED || type == VMA_ANON_SHARED || type == (VMA_ANON_SHARED | VMA_MEMFD) ||
		     type == (VMA_FILE_PRIVATE | VMA_MEMFD);
	bool shared = type & (VMA_FILE_SHARED | VMA_ANON_SHARED);
	if ((e->start | e->end | e->pgoff) % PAGE_BYTES || e->start >= e->end || e->start < behind)
		why = "its bounds make no sense";
	else if (!(e->status & VMA_VSYSCALL) && e->end > ADDRESS_MAX)
		why = "it is not in user space";
	else if (e->prot & ~(uint32_t)(PROT_READ | PROT_WRITE | PROT_EXEC))
		why = "unknown protection";
	else if (!known)
		why = "an unknown kind";
	else if (!!(e->flags & MAP_SHARED) != shared || !!(e->flags & MAP_PRIVATE) == shared)
		why = "its flags don't fit its kind";
	else if (object && (e->shmid == 0 || e->shmid > mm->n_objects))
		why = "its shared memory is not in the list";
	else if (e->pgoff > ADDRESS_MAX || (e->name && strlen(e->name) > 80) || e->n_guard % 2)
		why = "a field is out of bounds";
	for (size_t i = 0; !why && i < e->n_guard; i += 2)
		if ((e->guard[i] | e->guard[i + 1]) % PAGE_BYTES || e->guard[i] < e->start ||
		    e->guard[i + 1] > e->end || e->guard[i] >= e->guard[i + 1])
			why = "guard pages outside of it";
	if (why)
		return fault_set(f, FAULT_PROTOCOL, "mapping %llx-%llx: %s", (unsigned long long)e->start,
				 (unsigned long long)e->end, why);
	return 0;
}

int target_check_mm(const MmEntry *mm, struct fault *f)
{
	uint64_t behind = PAGE_BYTES;
	if (mm->n_objects >= UINT16_MAX)
		return fault_set(f, FAULT_PROTOCOL, "%zu shared memory objects", mm->n_objects);
	for (size_t i = 0; i < mm->n_vmas; i++) {
		if (check_vma(mm, mm->vmas[i], behind, f) < 0)
			return -1;
		behind = mm->vmas[i]->end;
	}
	for (size_t i = 0; i < mm->n_objects; i++) {
		const SharedObjectEntry *e = mm->objects[i];
		if (e->id != i + 1 || e->size > ADDRESS_MAX >> 8 || (e->name && strlen(e->name) > 249) || e->hugetlb ||
		    (!e->name && !e->size))
			return fault_set(f, FAULT_PROTOCOL, "shared memory object %zu is not as it should be", i);
	}
	return 0;
}

/* The end. */

static int same_list(const struct memory_target *t, const MmEntry *mm, struct fault *f)
{
	if (!t->mm || t->mm->n_vmas != mm->n_vmas || t->mm->n_objects != mm->n_objects)
		return fault_set(f, FAULT_PROTOCOL, "the final mappings are not those of the last list");
	for (size_t i = 0; i < mm->n_vmas; i++)
		if (t->mm->vmas[i]->start != mm->vmas[i]->start || t->mm->vmas[i]->end != mm->vmas[i]->end)
			return fault_set(f, FAULT_PROTOCOL, "the final mapping at %llx is not in the last list",
					 (unsigned long long)mm->vmas[i]->start);
	return 0;
}

static int guards_and_locks(struct memory_target *t, struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < t->mm->n_vmas; i++) {
		const VmaEntry *e = t->mm->vmas[i];
		for (size_t k = 0; k < e->n_guard; k += 2)
			target_call(&l, SYS_madvise, e->guard[k], e->guard[k + 1] - e->guard[k], MADV_GUARD_INSTALL, 0,
				    0, 0);
		if ((e->vm_flags & (MAP_FLAG_LOCKED | MAP_FLAG_LOCKONFAULT)) && !(e->status & VMA_SPECIAL))
			target_call(&l, SYS_mlock2, e->start, e->end - e->start,
				    e->vm_flags & MAP_FLAG_LOCKONFAULT ? MLOCK_ONFAULT : 0, 0, 0, 0);
	}
	return target_run(t, &l, "guard or lock memory", f);
}

static int seal(struct memory_target *t, struct fault *f)
{
	for (size_t i = 0; i < t->mm->n_objects; i++) {
		const SharedObjectEntry *e = t->mm->objects[i];
		if (e->name && e->has_seals && e->seals && fcntl(t->objects[i].fd, F_ADD_SEALS, (int)e->seals) < 0)
			return fault_errno(f, FAULT_SYSTEM, "seal the memfd \"%.80s\"", e->name);
	}
	return 0;
}

static int compare_final(struct memory_target *t, struct fault *f)
{
	struct maps have;
	size_t at;
	if (target_read_maps(t, &have, f) < 0)
		return -1;
	int r = target_compare(&have, t->mm, true, &at, f);
	maps_free(&have);
	return r;
}

int memory_target_finish(struct memory_target *t, const MmEntry *mm, const struct filetab *files, struct fault *f)
{
	if (same_list(t, mm, f) < 0)
		return -1;
	target_fresh_close(t);
	process_pin(t->p);
	int r = target_windows_drop(t, NULL, f);
	if (r == 0)
		r = guards_and_locks(t, f);
	if (r == 0)
		r = seal(t, f);
	if (r == 0)
		r = mm_restore(t->v, mm, files, f);
	process_unpin(t->p);
	if (r == 0)
		r = compare_final(t, f);
	return r < 0 ? fault_while(f, "finishing the memory of pid %d", t->p->pid) : 0;
}

int memory_target_digest(struct memory_target *t, const Cpr__MemoryDigest *const *expect, size_t n,
			 const struct range *masked, size_t n_masked, struct fault *f)
{
	struct arena *a = arena_new();
	Cpr__MemoryDigest **have = NULL;
	size_t n_have = 0, n_fds;
	const int *fds = memory_target_objects(t, &n_fds);
	int r = digest_memory(t->p, t->mm, fds, n_fds, masked, n_masked, a, &have, &n_have, f);
	for (size_t i = 0; r == 0 && i < (n > n_have ? n : n_have); i++) {
		const Cpr__MemoryDigest *e = i < n ? expect[i] : NULL, *h = i < n_have ? have[i] : NULL;
		if (e && h && e->start == h->start && e->end == h->end && e->lo == h->lo && e->hi == h->hi)
			continue;
		const Cpr__MemoryDigest *first = !h || (e && e->start <= h->start) ? e : h;
		const char *how = !e || (h && h->start < e->start) ? "is not empty here as on the source"
				  : !h || e->start < h->start	   ? "is empty here and not on the source"
								   : "differs from the source";
		r = fault_set(f, FAULT_VERIFY, "memory at %llx-%llx %s", (unsigned long long)first->start,
			      (unsigned long long)first->end, how);
	}
	arena_free(a);
	return r;
}
