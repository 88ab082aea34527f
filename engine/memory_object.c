/*
 * Shared objects on the destination: memfds of the worker, anonymous shared memory of the vessel (it has to be called
 * "/dev/zero (deleted)" again). Pages are written through a mapping of the vessel, so that its cgroup is charged.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory_dest.h"

static uint64_t page_up(uint64_t n)
{
	return (n + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
}

static int make_memfd(const SharedObjectEntry *e, struct target_object *o, struct fault *f)
{
	auto_fd fd = memfd_create(e->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make the memfd \"%.80s\"", e->name);
	if (e->has_mode && fchmod(fd, e->mode & 07777) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the mode of the memfd \"%.80s\"", e->name);
	if (e->has_uid && e->has_gid && fchown(fd, e->uid, e->gid) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the owner of the memfd \"%.80s\"", e->name);
	o->fd = take_fd(&fd);
	return 0;
}

static int make_anonymous(struct memory_target *t, const MmEntry *mm, const SharedObjectEntry *e,
			  struct target_object *o, struct fault *f)
{
	uint64_t len = page_up(e->size), at = target_hole(t, mm, len, f);
	long ret;
	if (!at || target_one(t, &ret, f, SYS_mmap, at, len, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, (uint64_t)-1, 0) < 0)
		return -1;
	if (ret < 0)
		return fault_neg(f, FAULT_NO_MEMORY, ret, "map %llu bytes of shared memory", (unsigned long long)len);
	char path[80];
	snprintf(path, sizeof(path), "map_files/%llx-%llx", (unsigned long long)at, (unsigned long long)(at + len));
	o->window = (struct range){ at, at + len };
	o->fd = openat(t->p->procfd, path, O_RDWR | O_CLOEXEC);
	if (o->fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "open the vessel's shared memory /proc/%d/%s", t->p->pid, path);
	o->size = e->size;
	return 0;
}

static int resize(struct memory_target *t, const SharedObjectEntry *e, struct target_object *o, struct fault *f)
{
	if (o->size == e->size)
		return 0;
	if (!e->name)
		return fault_set(f, FAULT_PROTOCOL, "anonymous shared memory changes its size");
	if (o->window.end) {
		long ret;
		if (target_one(t, &ret, f, SYS_munmap, o->window.start, o->window.end - o->window.start, 0, 0, 0, 0) <
		    0)
			return -1;
		o->window = (struct range){ 0, 0 };
	}
	if (ftruncate(o->fd, (off_t)e->size) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "set the size of the memfd \"%.80s\"", e->name);
	o->size = e->size;
	return 0;
}

int target_objects_update(struct memory_target *t, const MmEntry *mm, struct fault *f)
{
	if (mm->n_objects < t->n_objects)
		return fault_set(f, FAULT_PROTOCOL, "shared memory objects have vanished from the list");
	if (mm->n_objects > t->n_objects) {
		size_t n = mm->n_objects;
		struct target_object *v = realloc(t->objects, n * sizeof(*v));
		if (!v)
			return fault_errno(f, FAULT_NO_MEMORY, "keep a list of %zu shared memory objects", n);
		t->objects = v;
		for (; t->n_objects < n; t->n_objects++)
			v[t->n_objects] = (struct target_object){ .fd = -1 };
	}
	for (size_t i = 0; i < mm->n_objects; i++) {
		const SharedObjectEntry *e = mm->objects[i];
		struct target_object *o = &t->objects[i];
		if (o->fd < 0 && (e->name ? make_memfd(e, o, f) : make_anonymous(t, mm, e, o, f)) < 0)
			return -1;
		if (resize(t, e, o, f) < 0)
			return -1;
	}
	return 0;
}

int target_window(struct memory_target *t, size_t object, struct fault *f)
{
	struct target_object *o = &t->objects[object];
	uint64_t len = page_up(o->size);
	if (o->window.end)
		return 0;
	uint64_t at = target_hole(t, t->mm, len, f);
	if (!at)
		return -1;
	struct target_open job = { .object = object, .worker_fd = o->fd };
	long ret;
	if (target_open_files(t, NULL, &job, 1, f) < 0)
		return -1;
	int r = target_one(t, &ret, f, SYS_mmap, at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
			   (uint64_t)job.fd, 0);
	if (target_close_files(t, &job, 1, r < 0 ? NULL : f) < 0 || r < 0)
		return -1;
	if (ret < 0)
		return fault_neg(f, FAULT_NO_MEMORY, ret, "map shared memory into the vessel");
	o->window = (struct range){ at, at + len };
	return 0;
}

static bool touches(const struct range *w, const MmEntry *mm)
{
	for (size_t i = 0; i < mm->n_vmas; i++)
		if (mm->vmas[i]->start < w->end && mm->vmas[i]->end > w->start)
			return true;
	return false;
}

int target_windows_drop(struct memory_target *t, const MmEntry *overlapping, struct fault *f)
{
	struct calls_list l = { 0 };
	for (size_t i = 0; i < t->n_objects; i++) {
		struct range *w = &t->objects[i].window;
		if (!w->end || (overlapping && !touches(w, overlapping)))
			continue;
		target_call(&l, SYS_munmap, w->start, w->end - w->start, 0, 0, 0, 0);
		*w = (struct range){ 0, 0 };
	}
	return target_run(t, &l, "unmap a window on shared memory", f);
}
