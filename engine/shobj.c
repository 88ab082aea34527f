#include "shobj.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void shobj_list_free(struct shobj_list *l)
{
	for (size_t i = 0; i < l->n; i++) {
		util_close(&l->v[i].fd);
		free(l->v[i].name);
		pageset_free(l->v[i].sent);
	}
	free(l->v);
	*l = (struct shobj_list){ 0 };
}

static struct shobj *find(const struct shobj_list *l, uint64_t dev, uint64_t ino)
{
	for (size_t i = 0; i < l->n; i++)
		if (l->v[i].st.st_dev == dev && l->v[i].st.st_ino == ino)
			return &l->v[i];
	return NULL;
}

/* Takes fd. */
static int add(struct shobj_list *l, int fd, const char *name, size_t name_len, struct fault *f)
{
	struct shobj o = { .fd = fd, .memfd = name != NULL };
	if (fstat(fd, &o.st) < 0 || util_grow((void **)&l->v, &l->cap, l->n, sizeof(*l->v)) < 0 ||
	    (name && !(o.name = strndup(name, name_len)))) {
		fault_errno(f, FAULT_SYSTEM, "look at shared memory");
		util_close(&fd);
		return -1;
	}
	o.sent = pageset_new();
	l->v[l->n++] = o;
	return 0;
}

int shobj_of_map(struct shobj_list *l, struct process *p, const struct map *m, size_t *index, struct fault *f)
{
	const struct shobj *o = find(l, m->dev, m->ino);
	if (o) {
		*index = (size_t)(o - l->v);
		return 0;
	}
	char path[80];
	snprintf(path, sizeof(path), "map_files/%llx-%llx", (unsigned long long)m->start, (unsigned long long)m->end);
	auto_fd fd = openat(p->procfd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fault_errno(f, errno == ENOENT ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "open shared memory /proc/%d/%s", p->pid, path);
	bool memfd = m->kind != MAP_KIND_SHM;
	const char *name = memfd ? m->path + strlen("/memfd:") : NULL;
	*index = l->n;
	return add(l, take_fd(&fd), name, memfd ? strlen(name) : 0, f);
}

static int look_at_fd(struct shobj_list *l, int dir, const char *fd_name, struct fault *f)
{
	static const char prefix[] = "/memfd:", suffix[] = " (deleted)";
	char link[300];
	ssize_t n = readlinkat(dir, fd_name, link, sizeof(link) - 1);
	if (n < (ssize_t)(sizeof(prefix) - 1 + sizeof(suffix) - 1) || strncmp(link, prefix, sizeof(prefix) - 1) != 0)
		return 0;
	link[n] = 0;
	struct stat st;
	if (fstatat(dir, fd_name, &st, 0) < 0 || !S_ISREG(st.st_mode) || find(l, st.st_dev, st.st_ino))
		return 0;
	auto_fd fd = openat(dir, fd_name, O_RDONLY | O_CLOEXEC);
	if (fd < 0) /* closed meanwhile */
		return 0;
	const char *name = link + sizeof(prefix) - 1;
	size_t len = strlen(name);
	if (len >= sizeof(suffix) - 1 && !strcmp(name + len - (sizeof(suffix) - 1), suffix))
		len -= sizeof(suffix) - 1;
	return add(l, take_fd(&fd), name, len, f);
}

int shobj_scan_fds(struct shobj_list *l, struct process *p, struct fault *f)
{
	int fd = openat(p->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	if (!d) {
		util_close(&fd);
		return fault_errno(f, FAULT_PROCESS_GONE, "list the descriptors of pid %d", p->pid);
	}
	int r = 0;
	for (struct dirent *e; r == 0 && (e = readdir(d));)
		if (e->d_name[0] != '.')
			r = look_at_fd(l, dirfd(d), e->d_name, f);
	closedir(d);
	return r;
}

static int64_t ns(struct timespec t)
{
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int shobj_refresh(struct shobj *o, struct fault *f)
{
	/* The kernel stamps files with a clock that ticks every few ms: what is written later within one tick has the
	 * same mtime. Such a stamp tells nothing, so it counts as changed at the next look. */
	const int64_t tick = 25000000;
	struct timespec now;
	struct stat st;
	clock_gettime(CLOCK_REALTIME, &now);
	if (fstat(o->fd, &st) < 0)
		return fault_errno(f, FAULT_SYSTEM, "look at shared memory");
	bool same = o->known && o->settled && ns(st.st_mtim) == ns(o->st.st_mtim) && st.st_size == o->st.st_size;
	if (!same)
		o->resend = true;
	if (!o->known || st.st_blocks != o->st.st_blocks)
		o->grown = true;
	o->settled = ns(now) - ns(st.st_mtim) > tick;
	o->known = true;
	o->st = st;
	return 0;
}

bool shobj_data(const struct shobj *o, uint64_t from, uint64_t to, uint64_t *start, uint64_t *end)
{
	uint64_t size = ((uint64_t)o->st.st_size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
	if (to > size)
		to = size;
	if (from >= to)
		return false;
	off_t data = lseek(o->fd, (off_t)from, SEEK_DATA);
	if (data < 0 || (uint64_t)data >= to)
		return false;
	off_t hole = lseek(o->fd, data, SEEK_HOLE);
	*start = (uint64_t)data & ~(uint64_t)(PAGE_BYTES - 1);
	*end = hole < 0 ? to : ((uint64_t)hole + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
	if (*end > to)
		*end = to;
	return *start < *end;
}

uint64_t shobj_bytes(const struct shobj *o)
{
	return (uint64_t)o->st.st_blocks * 512;
}

uint32_t shobj_seals(const struct shobj *o)
{
	int seals = fcntl(o->fd, F_GET_SEALS);
	return seals < 0 ? 0 : (uint32_t)seals;
}
