/*
 * The destination's side of descriptors.
 *
 * In the helper, whose table is the vessel's and empty at first: each open file description is made once, at a number
 * above all final ones, then put at its numbers with dup3(2) and closed where it was made. Ends of pipes that nobody
 * has come for yet wait above, too. When all are in place, what refers to others follows (finish), then cwd, root and
 * umask. At the end the table is compared with what it has to be: a descriptor of ours must not stay in it.
 */
#include "fdtab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HEADROOM 64u /* numbers above the final ones, for what is being made */
#define FD_MAX	 (1u << 30)

/* ---- for the kinds ---- */

int fd_place(int fd, int min_fd, struct fault *f)
{
	if (fd < 0 || fd >= min_fd)
		return fd;
	int up = fcntl(fd, F_DUPFD_CLOEXEC, min_fd);
	if (up < 0)
		fault_errno(f, FAULT_LIMIT, "put a descriptor at %d or above", min_fd);
	close(fd);
	return up;
}

int fd_set_flags(int fd, uint32_t flags, struct fault *f)
{
	const int settable = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_ASYNC;
	int now = fcntl(fd, F_GETFL);
	if (now < 0)
		return fault_errno(f, FAULT_SYSTEM, "read the flags of a descriptor");
	if ((now & settable) == ((int)flags & settable))
		return 0;
	if (fcntl(fd, F_SETFL, (int)flags & settable) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set flags 0%o of a descriptor", flags);
	return 0;
}

int fd_reopen(int fd, uint32_t flags, int min_fd, struct fault *f)
{
	char self[40];
	int how = (int)(flags & ~(uint32_t)(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | O_NOFOLLOW));
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	int again = open(self, how | O_CLOEXEC | O_NOCTTY);
	if (again < 0)
		return fault_errno(f, FAULT_SYSTEM, "open %s again with flags 0%o", self, flags);
	return fd_place(again, min_fd, f);
}

struct fd_shared_end *fd_shared_find(struct fd_restore *s, FdTypes type, uint32_t pipe_id, const char *path)
{
	for (size_t k = 0; k < s->shared->n; k++) {
		struct fd_shared_end *e = &s->shared->ends[k];
		if (e->type == type && e->pipe_id == pipe_id && (!path || !strcmp(path, e->path)))
			return e;
	}
	return NULL;
}

struct fd_shared_end *fd_shared_add(struct fd_restore *s, const struct fd_shared_end *end)
{
	struct fd_shared *h = s->shared;
	if (util_grow((void **)&h->ends, &h->cap, h->n, sizeof(*h->ends)) < 0)
		abort();
	h->ends[h->n] = *end;
	return &h->ends[h->n++];
}

static void shared_close(struct fd_shared *h)
{
	for (size_t k = 0; k < h->n; k++) {
		if (h->ends[k].wr != h->ends[k].rd)
			util_close(&h->ends[k].wr);
		util_close(&h->ends[k].rd);
	}
	h->n = 0;
}

/* ---- the table ---- */

struct plan {
	size_t n;
	const FdinfoEntry **v; /* by file id, then number */
	uint32_t max_fd;
};

static int by_id(const void *x, const void *y)
{
	const FdinfoEntry *a = *(FdinfoEntry *const *)x, *b = *(FdinfoEntry *const *)y;
	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return (a->fd > b->fd) - (a->fd < b->fd);
}

static int by_number(const void *x, const void *y)
{
	uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
	return (a > b) - (a < b);
}

static int check_numbers(const struct plan *plan, struct fault *f)
{
	auto_free uint32_t *numbers = calloc(plan->n + 1, sizeof(*numbers));
	if (!numbers)
		abort();
	for (size_t i = 0; i < plan->n; i++)
		numbers[i] = plan->v[i]->fd;
	qsort(numbers, plan->n, sizeof(*numbers), by_number);
	for (size_t i = 0; i < plan->n; i++)
		if (numbers[i] >= FD_MAX || (i && numbers[i] == numbers[i - 1]))
			return fault_set(f, FAULT_IMAGE, "descriptor number %u is impossible or there twice",
					 numbers[i]);
	return 0;
}

static int plan_read(const struct fd_restore *s, struct plan *plan, struct fault *f)
{
	size_t pos = 0, cap = 0;
	for (const struct image_entry *e; (e = image_next(s->img, IMAGE_FDINFO, IMAGE_FILES_ID, &pos));) {
		const FdinfoEntry *d = e->msg;
		if (util_grow((void **)&plan->v, &cap, plan->n, sizeof(*plan->v)) < 0)
			abort();
		plan->v[plan->n++] = d;
		plan->max_fd = d->fd > plan->max_fd ? d->fd : plan->max_fd;
	}
	if (plan->n)
		qsort(plan->v, plan->n, sizeof(*plan->v), by_id);
	return check_numbers(plan, f);
}

/* The helper's own limit (the vessel has one of its own) must allow the numbers and those above. */
static int raise_limit(uint32_t max_fd, struct rlimit *old, struct fault *f)
{
	struct rlimit want;
	rlim_t need = (rlim_t)max_fd + 1 + HEADROOM;
	if (getrlimit(RLIMIT_NOFILE, old) < 0)
		return fault_errno(f, FAULT_SYSTEM, "getrlimit");
	if (old->rlim_cur >= need)
		return 0;
	want = (struct rlimit){ .rlim_cur = need, .rlim_max = old->rlim_max > need ? old->rlim_max : need };
	if (setrlimit(RLIMIT_NOFILE, &want) == 0)
		return 0;
	fault_errno(f, FAULT_LIMIT, "descriptor %u needs a limit of %llu open files, %llu are allowed here", max_fd,
		    (unsigned long long)need, (unsigned long long)old->rlim_max);
	return fault_hint(f, "raise LimitNOFILE= of the agent's service on the destination");
}

static int put_in_place(const struct plan *plan, size_t from, size_t to, int made, struct fault *f)
{
	for (size_t i = from; i < to; i++)
		if (dup3(made, (int)plan->v[i]->fd, plan->v[i]->flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
			return fault_errno(f, FAULT_LIMIT, "put a descriptor at %u", plan->v[i]->fd);
	return 0;
}

/* Descriptors [from, to) of the plan are one open file description. */
static int make_one(struct fd_restore *s, const struct plan *plan, size_t from, size_t to, struct fault *f)
{
	const FdinfoEntry *d = plan->v[from];
	const FileEntry *e = filetab_find(s->files, d->id);
	const struct fd_kind *kind = e ? fd_kind_of(e) : NULL;
	if (!kind || e->type != d->type)
		return fault_set(f, FAULT_IMAGE, "fd %u is file %u of type %d, which can't be restored", d->fd, d->id,
				 (int)d->type);
	auto_fd made = kind->restore(s, e, (int)plan->max_fd + 1, f);
	if (made < 0 || fown_restore(e, s->files, made, f) < 0 || put_in_place(plan, from, to, made, f) < 0)
		return fault_while(f, "restoring fd %u (%s)", d->fd, kind->name);
	return 0;
}

static size_t same_file_end(const struct plan *plan, size_t from)
{
	size_t to = from + 1;
	while (to < plan->n && plan->v[to]->id == plan->v[from]->id)
		to++;
	return to;
}

static int make_all(struct fd_restore *s, const struct plan *plan, struct fault *f)
{
	for (size_t i = 0, end; i < plan->n; i = end) {
		end = same_file_end(plan, i);
		if (make_one(s, plan, i, end, f) < 0)
			return -1;
	}
	return 0;
}

static int finish_all(struct fd_restore *s, const struct plan *plan, struct fault *f)
{
	for (size_t i = 0; i < plan->n; i = same_file_end(plan, i)) {
		const FileEntry *e = filetab_find(s->files, plan->v[i]->id);
		const struct fd_kind *kind = fd_kind_of(e);
		if (kind->finish && kind->finish(s, e, (int)plan->v[i]->fd, f) < 0)
			return fault_while(f, "restoring fd %u (%s)", plan->v[i]->fd, kind->name);
	}
	return 0;
}

static bool planned(const struct plan *plan, uint32_t fd)
{
	for (size_t i = 0; i < plan->n; i++)
		if (plan->v[i]->fd == fd)
			return true;
	return false;
}

/* Exactly the recorded numbers. `d` lists /proc/self/fd (opened before the root changed), and is one of them itself. */
static int verify(const struct plan *plan, DIR *d, struct fault *f)
{
	size_t n = 0;
	rewinddir(d);
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9' || atoi(e->d_name) == dirfd(d))
			continue;
		n++;
		if (atoi(e->d_name) > (int)plan->max_fd)
			return fault_set(f, FAULT_INTERNAL, "descriptor %s is left in the table", e->d_name);
	}
	if (n == plan->n)
		return 0;
	rewinddir(d);
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] >= '0' && e->d_name[0] <= '9' && !planned(plan, (uint32_t)atoi(e->d_name)))
			return fault_set(f, FAULT_INTERNAL, "descriptor %s is left in the table", e->d_name);
	return fault_set(f, FAULT_INTERNAL, "%zu descriptors are in the table, not %zu", n, plan->n);
}

static DIR *open_listing(const struct plan *plan, struct fault *f)
{
	int fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		fault_errno(f, FAULT_SYSTEM, "open /proc/self/fd");
		return NULL;
	}
	fd = fd_place(fd, (int)plan->max_fd + 1, f);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0) {
		fault_errno(f, FAULT_SYSTEM, "list /proc/self/fd");
		close(fd);
	}
	return d;
}

static int build(struct fd_restore *s, const struct plan *plan, struct fault *f)
{
	DIR *listing = open_listing(plan, f);
	if (!listing)
		return -1;
	int r = make_all(s, plan, f);
	shared_close(s->shared);
	if (r == 0)
		r = finish_all(s, plan, f);
	if (r == 0)
		r = fs_restore(s, f);
	if (r == 0)
		r = verify(plan, listing, f);
	closedir(listing);
	return r;
}

int fdtab_restore_here(struct fd_restore *s, struct fault *f)
{
	struct plan plan = { 0 };
	struct rlimit old;
	s->rootfd = -1; /* the helper's own root; the process's comes last (fs.c) */
	int r = plan_read(s, &plan, f);
	if (r == 0)
		r = raise_limit(plan.max_fd, &old, f);
	if (r == 0) {
		r = build(s, &plan, f);
		setrlimit(RLIMIT_NOFILE, &old);
	}
	free(plan.v);
	return r;
}

static int in_helper(void *arg, struct fault *f)
{
	return fdtab_restore_here(arg, f);
}

/* One reading of the vessel's clock between two of ours; *took tells how good it is. */
static int read_delta(struct vessel *v, clockid_t clock, int64_t *delta, uint64_t *took, struct fault *f)
{
	struct remote *r = vessel_remote(v);
	struct timespec t;
	long ret;
	uint64_t before = util_clock_ns(clock);
	if (REMOTE(r, vessel_process(v)->pid, &ret, f, SYS_clock_gettime, (uint64_t)clock, remote_scratch(r)) < 0)
		return -1;
	*took = util_clock_ns(clock) - before;
	if (ret < 0)
		return fault_neg(f, FAULT_SYSTEM, ret, "read the vessel's clock");
	if (remote_get(r, 0, &t, sizeof(t), f) < 0)
		return -1;
	*delta = (int64_t)((uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - (before + *took / 2));
	return 0;
}

/* The vessel's clock minus ours: only the vessel itself sees its time namespace. */
static int clock_delta(struct vessel *v, clockid_t clock, int64_t *delta, struct fault *f)
{
	uint64_t best = UINT64_MAX, took = 0;
	int64_t d = 0;
	for (int k = 0; k < 5 && best > 200000; k++) {
		if (read_delta(v, clock, &d, &took, f) < 0)
			return -1;
		if (took < best) {
			best = took;
			*delta = d;
		}
	}
	return 0;
}

static bool has_timers(const struct filetab *files)
{
	for (size_t i = 0; i < filetab_count(files); i++)
		if (filetab_at(files, i)->type == FD_TYPES__TIMERFD)
			return true;
	return false;
}

int fdtab_restore(struct fd_restore *s, struct fault *f)
{
	struct fd_shared shared = { 0 };
	s->shared = &shared;
	int r = 0;
	if (has_timers(s->files)) {
		r = clock_delta(s->v, CLOCK_MONOTONIC, &shared.monotonic_delta, f);
		if (r == 0)
			r = clock_delta(s->v, CLOCK_BOOTTIME, &shared.boottime_delta, f);
	}
	if (r == 0)
		r = vessel_run(s->v, in_helper, s, f);
	free(shared.ends);
	s->shared = NULL;
	return r < 0 ? fault_while(f, "restoring descriptors of pid %d", (int)s->pid) : 0;
}

/* ---- after the commit ---- */

int fdtab_commit(struct vessel *v, const struct image *img, struct fault *f)
{
	struct process *p = vessel_process(v);
	size_t files = 0;
	for (const struct image_entry *file; (file = image_next(img, IMAGE_FILES, 0, &files));) {
		const FileEntry *e = file->msg;
		const struct fd_kind *kind = fd_kind_of(e);
		if (!kind || !kind->commit)
			continue;
		size_t pos = 0;
		const struct image_entry *d;
		while ((d = image_next(img, IMAGE_FDINFO, IMAGE_FILES_ID, &pos)))
			if (((const FdinfoEntry *)d->msg)->id == e->id)
				break;
		if (!d)
			continue;
		uint32_t fd = ((const FdinfoEntry *)d->msg)->fd;
		auto_fd dup = process_getfd(p, (int)fd, f);
		if (dup < 0 || kind->commit(e, img, dup, f) < 0)
			return fault_while(f, "setting fd %u (%s) free", fd, kind->name);
	}
	return 0;
}
