/*
 * The vessel's mappings become those of mm. What the plan (mapplan.h) keeps stays where it is; the rest is unmapped and
 * mapped anew; then protection, advice and names; then the result is read back and compared, and what came out otherwise
 * (merged with a neighbour, or not) is rebuilt.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory_dest.h"

#define CALLS_AT_ONCE ((size_t)256)

void target_call(struct calls_list *l, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
		 uint64_t a5)
{
	if (util_grow((void **)&l->v, &l->cap, l->n, sizeof(*l->v)) < 0)
		abort();
	l->v[l->n++] = (struct remote_entry){ .nr = nr, .args = { a0, a1, a2, a3, a4, a5 }, .stop_on_error = true };
}

int target_run(struct memory_target *t, struct calls_list *l, const char *what, struct fault *f)
{
	int r = 0;
	for (size_t i = 0; r == 0 && i < l->n;) {
		size_t n = l->n - i < CALLS_AT_ONCE ? l->n - i : CALLS_AT_ONCE, done = 0;
		r = remote_batch(t->r, t->p->pid, l->v + i, n, &done, f);
		if (r == 0 && done) {
			const struct remote_entry *e = &l->v[i + done - 1];
			if (e->ret < 0 && e->ret >= -4095)
				r = fault_neg(f, e->ret == -ENOMEM ? FAULT_NO_MEMORY : FAULT_SYSTEM, e->ret,
					      "%s at %llx, %llu bytes (system call %ld)", what,
					      (unsigned long long)e->args[0], (unsigned long long)e->args[1], e->nr);
		}
		if (r == 0 && done < n)
			r = fault_set(f, FAULT_INTERNAL, "%s: only %zu of %zu calls were made", what, done, n);
		i += n;
	}
	free(l->v);
	*l = (struct calls_list){ 0 };
	return r;
}

int target_one(struct memory_target *t, long *ret, struct fault *f, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
	       uint64_t a3, uint64_t a4, uint64_t a5)
{
	return REMOTE(t->r, t->p->pid, ret, f, nr, a0, a1, a2, a3, a4, a5);
}

/* In the helper. */

struct open_job {
	struct target_open *v;
	size_t n;
};

static int open_in_helper(void *arg, struct fault *f)
{
	struct open_job *job = arg;
	for (size_t i = 0; i < job->n; i++) {
		struct target_open *o = &job->v[i];
		o->fd = o->reg ? filetab_open(o->reg, -1, f) : helper_fetch_fd(o->worker_fd, 0, f);
		if (o->fd < 0)
			return -1;
	}
	return 0;
}

static int close_in_helper(void *arg, struct fault *f)
{
	(void)f;
	struct open_job *job = arg;
	for (size_t i = 0; i < job->n; i++)
		if (job->v[i].fd >= 0)
			close(job->v[i].fd);
	return 0;
}

/* A mapping that can never be written comes from a descriptor that can't, or seals against writing are refused. */
static int read_only_copy(int fd, struct fault *f)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int copy = open(path, O_RDONLY | O_CLOEXEC);
	return copy >= 0 ? copy : fault_errno(f, FAULT_SYSTEM, "open shared memory for reading");
}

static int prepare_open(struct memory_target *t, const struct filetab *files, struct target_open *o, struct fault *f)
{
	o->fd = -1;
	if (!o->vma)
		return 0;
	if ((o->vma->status & VMA_FILE) && !(o->vma->status & VMA_MEMFD)) {
		const FileEntry *e = filetab_find(files, (uint32_t)o->vma->shmid);
		if (!e || !e->reg)
			return fault_set(f, FAULT_PROTOCOL, "file %llu of a mapping is not in the state",
					 (unsigned long long)o->vma->shmid);
		o->reg = e->reg;
		return 0;
	}
	o->object = o->vma->shmid - 1;
	o->worker_fd = t->objects[o->object].fd;
	if ((o->vma->flags & MAP_SHARED) && !(o->vma->vm_flags & MAP_FLAG_MAYWRITE)) {
		o->worker_fd = read_only_copy(o->worker_fd, f);
		return o->worker_fd < 0 ? -1 : 0;
	}
	return 0;
}

static void drop_copies(const struct memory_target *t, struct target_open *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].vma && !v[i].reg && v[i].worker_fd >= 0 && v[i].worker_fd != t->objects[v[i].object].fd)
			util_close(&v[i].worker_fd);
}

int target_open_files(struct memory_target *t, const struct filetab *files, struct target_open *v, size_t n,
		      struct fault *f)
{
	struct open_job job = { v, n };
	int r = 0;
	for (size_t i = 0; i < n; i++) {
		v[i].fd = -1;
		if (v[i].vma)
			v[i].worker_fd = -1;
	}
	for (size_t i = 0; r == 0 && i < n; i++)
		r = prepare_open(t, files, &v[i], f);
	if (r == 0 && n && vessel_run(t->v, open_in_helper, &job, f) < 0) {
		r = fault_while(f, "opening the files of the mappings");
		if (vessel_run(t->v, close_in_helper, &job, NULL) < 0)
			r = -1;
	}
	drop_copies(t, v, n);
	return r;
}

int target_close_files(struct memory_target *t, struct target_open *v, size_t n, struct fault *f)
{
	struct open_job job = { v, n };
	return n ? vessel_run(t->v, close_in_helper, &job, f) : 0;
}

/* Lists. */

static bool ours(const struct memory_target *t, uint64_t start, uint64_t end)
{
	struct range stub = remote_stub_range(t->r);
	if (start >= stub.start && end <= stub.end)
		return true;
	for (size_t i = 0; i < t->n_objects; i++)
		if (start >= t->objects[i].window.start && end <= t->objects[i].window.end)
			return true;
	return false;
}

int target_read_maps(struct memory_target *t, struct maps *out, struct fault *f)
{
	if (maps_read(t->p, false, out, f) < 0)
		return -1;
	size_t n = 0;
	for (size_t i = 0; i < out->n; i++) {
		struct map *m = &out->v[i];
		if (ours(t, m->start, m->end)) {
			free(m->path);
			free(m->name);
		} else {
			out->v[n++] = *m;
		}
	}
	out->n = n;
	return 0;
}

struct range *target_keep_clear(const struct memory_target *t, const MmEntry *mm, size_t *n)
{
	struct range *v = calloc(mm->n_vmas + t->n_objects + 2, sizeof(*v));
	if (!v)
		abort();
	size_t k = 0;
	for (size_t i = 0; i < mm->n_vmas; i++)
		v[k++] = (struct range){ mm->vmas[i]->start, mm->vmas[i]->end };
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].window.end)
			v[k++] = t->objects[i].window;
	*n = k;
	return v;
}

uint64_t target_hole(struct memory_target *t, const MmEntry *mm, uint64_t len, struct fault *f)
{
	struct maps maps;
	size_t n;
	if (maps_read(t->p, false, &maps, f) < 0)
		return 0;
	struct range *keep = target_keep_clear(t, mm, &n);
	uint64_t at = maps_hole(&maps, keep, n, len);
	free(keep);
	maps_free(&maps);
	if (!at)
		fault_set(f, FAULT_NO_MEMORY, "no hole of %llu bytes in the address space", (unsigned long long)len);
	return at;
}

/* Single mappings. */

int target_mmap_call(const VmaEntry *e, uint64_t start, uint64_t end, uint64_t at, uint32_t prot, int fd,
		     struct calls_list *l, struct fault *f)
{
	uint64_t flags = (e->flags & (MAP_SHARED | MAP_PRIVATE | MAP_GROWSDOWN | MAP_NORESERVE)) | MAP_FIXED_NOREPLACE;
	uint64_t pgoff = e->pgoff + (start - e->start);
	if (e->status & VMA_ANON_PRIVATE) {
		flags |= MAP_ANONYMOUS;
		fd = -1;
		pgoff = 0;
	} else if (fd < 0) {
		return fault_set(f, FAULT_INTERNAL, "no descriptor for the mapping at %llx", (unsigned long long)start);
	}
	target_call(l, SYS_mmap, at, end - start, prot, flags, (uint64_t)(int64_t)fd, pgoff);
	return 0;
}

/* Calls that make the advice of a mapping that has `have` (MAP_FLAG_*) what it is in mm. */
void target_advise_calls(const VmaEntry *e, uint64_t start, uint64_t end, uint32_t have, struct calls_list *l)
{
	static const struct {
		uint32_t flag;
		int on, off;
	} table[] = {
		{ MAP_FLAG_HUGEPAGE, MADV_HUGEPAGE, -1 },
		{ MAP_FLAG_NOHUGEPAGE, MADV_NOHUGEPAGE, -1 },
		{ MAP_FLAG_DONTFORK, MADV_DONTFORK, MADV_DOFORK },
		{ MAP_FLAG_DONTDUMP, MADV_DONTDUMP, MADV_DODUMP },
		{ MAP_FLAG_WIPEONFORK, MADV_WIPEONFORK, MADV_KEEPONFORK },
		{ MAP_FLAG_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE },
		{ MAP_FLAG_SEQREAD, MADV_SEQUENTIAL, MADV_NORMAL },
		{ MAP_FLAG_RANDREAD, MADV_RANDOM, MADV_NORMAL },
	};
	uint32_t want = (uint32_t)e->vm_flags;
	/* Off first: MADV_NORMAL clears both kinds of access advice. THP advice is never taken back (mapplan.c). */
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if ((have & ~want & table[i].flag) && table[i].off >= 0)
			target_call(l, SYS_madvise, start, end - start, (uint64_t)table[i].off, 0, 0, 0);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (want & ~have & table[i].flag)
			target_call(l, SYS_madvise, start, end - start, (uint64_t)table[i].on, 0, 0, 0);
}

int target_name(struct memory_target *t, const VmaEntry *e, struct fault *f)
{
	long ret;
	size_t n = e->name ? strlen(e->name) + 1 : 0;
	if (n && remote_put(t->r, 0, e->name, n, f) < 0)
		return -1;
	if (target_one(t, &ret, f, SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, e->start, e->end - e->start,
		       n ? remote_scratch(t->r) : 0, 0) < 0)
		return -1;
	if (ret == -EINVAL) /* a kernel without names */
		return 0;
	return ret < 0 ? fault_neg(f, FAULT_SYSTEM, ret, "name the mapping at %llx", (unsigned long long)e->start) : 0;
}

/* The steps. */

static bool is_kernels(enum map_kind k)
{
	return k == MAP_KIND_VDSO || k == MAP_KIND_VVAR || k == MAP_KIND_VSYSCALL;
}

static int unmap_rest(struct memory_target *t, const struct maps *have, const struct mapplan *plan, bool keep_vdso,
		      struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < have->n; i++) {
		const struct map *m = &have->v[i];
		uint64_t at = m->start, from, to;
		if (m->kind == MAP_KIND_VSYSCALL || (keep_vdso && is_kernels(m->kind)))
			continue;
		while (mapplan_gap(plan, &at, m->end, &from, &to))
			target_call(&l, SYS_munmap, from, to - from, 0, 0, 0, 0);
	}
	return target_run(t, &l, "unmap", f);
}

struct block {
	size_t n;
	struct range v[8];
};

static int move_block(struct memory_target *t, const struct block *from, const uint64_t *to, struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < from->n; i++) {
		uint64_t len = from->v[i].end - from->v[i].start;
		target_call(&l, SYS_mremap, from->v[i].start, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to[i], 0);
	}
	return target_run(t, &l, "move the vDSO", f);
}

/* [vvar], [vvar_vclock], [vdso] in their order; each is moved whole, distances are the source's. */
static int move_vdso(struct memory_target *t, const struct maps *have, const MmEntry *mm, struct fault *f)
{
	struct block now = { 0 }, want = { 0 };
	for (size_t i = 0; i < have->n && now.n < ARRAY_LEN(now.v); i++)
		if (have->v[i].kind == MAP_KIND_VDSO || have->v[i].kind == MAP_KIND_VVAR)
			now.v[now.n++] = (struct range){ have->v[i].start, have->v[i].end };
	for (size_t i = 0; i < mm->n_vmas && want.n < ARRAY_LEN(want.v); i++)
		if (mm->vmas[i]->status & (VMA_VDSO | VMA_VVAR))
			want.v[want.n++] = (struct range){ mm->vmas[i]->start, mm->vmas[i]->end };
	if (!want.n) /* the program unmapped it */
		return 0;
	bool same = now.n == want.n, there = same, clear = true;
	for (size_t i = 0; same && i < now.n; i++)
		same = now.v[i].end - now.v[i].start == want.v[i].end - want.v[i].start;
	if (!same) {
		fault_set(f, FAULT_KERNEL, "the vDSO has another layout on the destination's kernel");
		return fault_hint(f, "Run the same kernel on both hosts.");
	}
	for (size_t i = 0; i < now.n; i++)
		there &= now.v[i].start == want.v[i].start;
	if (there)
		return 0;
	uint64_t low = now.v[0].start, high = now.v[now.n - 1].end, to[ARRAY_LEN(want.v)] = { 0 };
	for (size_t i = 0; i < want.n; i++)
		clear &= want.v[i].end <= low || want.v[i].start >= high;
	if (!clear) { /* aside first */
		uint64_t hole = target_hole(t, mm, high - low, f);
		if (!hole)
			return -1;
		for (size_t i = 0; i < now.n; i++)
			to[i] = hole + (now.v[i].start - low);
		if (move_block(t, &now, to, f) < 0)
			return -1;
		for (size_t i = 0; i < now.n; i++) {
			uint64_t len = now.v[i].end - now.v[i].start;
			now.v[i] = (struct range){ to[i], to[i] + len };
		}
	}
	for (size_t i = 0; i < want.n; i++)
		to[i] = want.v[i].start;
	return move_block(t, &now, to, f);
}

/* One descriptor per file and access, so that pieces of one mapping can become one again. */
static size_t needed_files(const MmEntry *mm, const struct mapplan *plan, struct target_open *v, int *index)
{
	size_t n = 0;
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i];
		uint64_t at = e->start, from, to;
		index[i] = -1;
		if ((e->status & (VMA_ANON_PRIVATE | VMA_SPECIAL)) || !mapplan_gap(plan, &at, e->end, &from, &to))
			continue;
		for (size_t k = 0; k < n && index[i] < 0; k++)
			if (v[k].vma->shmid == e->shmid &&
			    ((v[k].vma->status ^ e->status) & (VMA_FILE | VMA_MEMFD | VMA_ANON_SHARED)) == 0 &&
			    ((v[k].vma->vm_flags ^ e->vm_flags) & MAP_FLAG_MAYWRITE) == 0)
				index[i] = (int)k;
		if (index[i] < 0) {
			v[n].vma = e;
			index[i] = (int)n++;
		}
	}
	return n;
}

static int map_gaps(struct memory_target *t, const MmEntry *mm, const struct mapplan *plan, const struct target_open *v,
		    const int *index, struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i];
		uint64_t at = e->start, from, to;
		while (!(e->status & VMA_SPECIAL) && mapplan_gap(plan, &at, e->end, &from, &to)) {
			if (target_mmap_call(e, from, to, from, e->prot, index[i] < 0 ? -1 : v[index[i]].fd, &l, f) <
			    0) {
				free(l.v);
				return -1;
			}
			target_advise_calls(e, from, to, 0, &l);
		}
	}
	return target_run(t, &l, "map", f);
}

static int map_new(struct memory_target *t, const MmEntry *mm, const struct mapplan *plan, const struct filetab *files,
		   struct fault *f)
{
	struct target_open *v = calloc(mm->n_vmas + 1, sizeof(*v));
	int *index = calloc(mm->n_vmas + 1, sizeof(*index)), r = -1;
	if (!v || !index) {
		fault_errno(f, FAULT_NO_MEMORY, "keep a list of mappings");
		goto out;
	}
	size_t n = needed_files(mm, plan, v, index);
	if (target_open_files(t, files, v, n, f) < 0)
		goto out;
	r = map_gaps(t, mm, plan, v, index, f);
	if (target_close_files(t, v, n, r < 0 ? NULL : f) < 0)
		r = -1;
out:
	free(v);
	free(index);
	return r;
}

/* Kept parts: what can be changed on them. */
static int change_kept(struct memory_target *t, const MmEntry *mm, const struct mapplan *plan, struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < plan->n; i++) {
		const struct mapplan_keep *k = &plan->keep[i];
		const VmaEntry *o = t->mm->vmas[k->old_index], *n = mm->vmas[k->new_index];
		if (o->prot != n->prot)
			target_call(&l, SYS_mprotect, k->start, k->end - k->start, n->prot, 0, 0, 0);
		target_advise_calls(n, k->start, k->end, (uint32_t)o->vm_flags, &l);
	}
	return target_run(t, &l, "change the protection or advice", f);
}

static int set_names(struct memory_target *t, const MmEntry *mm, struct fault *f)
{
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i], *o = t->mm ? mapplan_find(t->mm, e->start) : NULL;
		if (o && o->start == e->start && o->end == e->end &&
		    (o->name == e->name || (o->name && e->name && !strcmp(o->name, e->name))))
			continue;
		if ((e->name || (o && o->name)) && !(e->status & VMA_SPECIAL) && target_name(t, e, f) < 0)
			return -1;
	}
	return 0;
}

static int stub_aside(struct memory_target *t, const MmEntry *mm, struct fault *f)
{
	struct range stub = remote_stub_range(t->r);
	bool hit = false;
	for (size_t i = 0; i < mm->n_vmas; i++)
		hit |= mm->vmas[i]->start < stub.end && mm->vmas[i]->end > stub.start;
	if (!hit)
		return 0;
	size_t n;
	struct range *keep = target_keep_clear(t, mm, &n);
	int r = remote_relocate(t->r, keep, n, f);
	free(keep);
	return r;
}

static int apply(struct memory_target *t, const MmEntry *mm, const struct filetab *files, const struct mapplan *plan,
		 struct fault *f)
{
	struct maps have;
	bool want_vdso = false;
	for (size_t i = 0; i < mm->n_vmas; i++)
		want_vdso |= (mm->vmas[i]->status & (VMA_VDSO | VMA_VVAR)) != 0;
	if (target_read_maps(t, &have, f) < 0)
		return -1;
	int r = unmap_rest(t, &have, plan, want_vdso, f);
	if (r == 0)
		r = move_vdso(t, &have, mm, f);
	maps_free(&have);
	if (r < 0 || change_kept(t, mm, plan, f) < 0 || map_new(t, mm, plan, files, f) < 0 || set_names(t, mm, f) < 0)
		return -1;
	return target_rebuild(t, mm, files, f);
}

static MmEntry *copy_mm(const MmEntry *mm, struct arena *a)
{
	size_t len = mm_entry__get_packed_size(mm);
	uint8_t *packed = arena_alloc(a, len ? len : 1);
	mm_entry__pack(mm, packed);
	return mm_entry__unpack(arena_pb(a), len, packed);
}

int memory_target_maps(struct memory_target *t, const MmEntry *mm, const struct filetab *files, struct fault *f)
{
	struct arena *a = arena_new();
	MmEntry *copy = copy_mm(mm, a);
	struct mapplan plan = { 0 };
	int r = copy ? target_check_mm(copy, f) : fault_set(f, FAULT_PROTOCOL, "a list of mappings that can't be read");
	if (r == 0) {
		mapplan_make(t->mm, copy, &plan);
		target_fresh_disarm(t);
		process_pin(t->p);
		r = stub_aside(t, copy, f);
		if (r == 0)
			r = target_windows_drop(t, copy, f);
		if (r == 0)
			r = target_objects_update(t, copy, f);
		if (r == 0)
			r = apply(t, copy, files, &plan, f);
		process_unpin(t->p);
	}
	mapplan_done(&plan);
	if (r < 0) {
		arena_free(a);
		return fault_while(f, "making the mappings of pid %d", t->p->pid);
	}
	if (t->arena)
		arena_free(t->arena);
	t->arena = a;
	t->mm = copy;
	target_fresh_arm(t);
	return 0;
}
