/*
 * The walk over a process's descriptors. Reads /proc only: nothing is opened in, or for, the process.
 *
 * Which descriptors are one open file description is asked of kcmp(2), whose answer is an order: a sort by (device,
 * inode, kcmp) needs n log n questions at most, and none for files that are open once.
 */
#include "fdtab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *fdinfo_value(const char *fdinfo, const char *key)
{
	size_t len = strlen(key);
	for (const char *line = fdinfo; line && *line;) {
		if (!strncmp(line, key, len) && line[len] == ':') {
			line += len + 1;
			return line + strspn(line, " \t");
		}
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return NULL;
}

int fdtab_kcmp(pid_t pid, int a, int b)
{
	return (int)syscall(SYS_kcmp, pid, pid, KCMP_FILE, (unsigned long)a, (unsigned long)b);
}

static char *read_fdinfo(struct process *p, struct arena *a, int fd)
{
	char path[32], buf[2048];
	snprintf(path, sizeof(path), "fdinfo/%d", fd);
	auto_fd file = openat(p->procfd, path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return NULL;
	ssize_t n = read(file, buf, sizeof(buf) - 1);
	if (n >= 0 && (size_t)n < sizeof(buf) / 2) {
		buf[n] = 0;
		return arena_strdup(a, buf);
	}
	/* long ones (epoll, inotify) come in pieces */
	auto_free char *all = util_read_file(p->procfd, path, NULL);
	return all ? arena_strdup(a, all) : NULL;
}

int fdtab_read_one(struct process *p, struct arena *a, int fd, struct fd_info *out, struct fault *f)
{
	char path[32], link[PATH_MAX];
	*out = (struct fd_info){ .fd = fd, .dup = -1 };
	snprintf(path, sizeof(path), "fd/%d", fd);
	ssize_t n = readlinkat(p->procfd, path, link, sizeof(link) - 1);
	if (n < 0 || fstatat(p->procfd, path, &out->st, 0) < 0 || !(out->fdinfo = read_fdinfo(p, a, fd)))
		return fault_errno(f, process_alive(p) ? FAULT_SYSTEM : FAULT_PROCESS_GONE, "read /proc/%d/fd/%d",
				   (int)p->pid, fd);
	link[n] = 0;
	out->link = arena_strdup(a, link);
	const char *flags = fdinfo_value(out->fdinfo, "flags"), *pos = fdinfo_value(out->fdinfo, "pos");
	const char *mnt = fdinfo_value(out->fdinfo, "mnt_id");
	if (!flags || !pos)
		return fault_set(f, FAULT_KERNEL, "fdinfo of fd %d has no flags or position", fd);
	out->flags = (uint32_t)strtoul(flags, NULL, 8);
	out->pos = strtoull(pos, NULL, 10);
	out->mnt_id = mnt ? (uint32_t)strtoul(mnt, NULL, 10) : 0;
	return 0;
}

static int compare_int(const void *x, const void *y)
{
	int a = *(const int *)x, b = *(const int *)y;
	return (a > b) - (a < b);
}

static int list_numbers(struct process *p, int **out, size_t *n, struct fault *f)
{
	int dirfd = openat(p->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = dirfd < 0 ? NULL : fdopendir(dirfd);
	if (!d) {
		util_close(&dirfd);
		return fault_errno(f, process_alive(p) ? FAULT_SYSTEM : FAULT_PROCESS_GONE, "list /proc/%d/fd",
				   (int)p->pid);
	}
	size_t cap = 0, used = 0;
	int *v = NULL;
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		if (util_grow((void **)&v, &cap, used, sizeof(*v)) < 0)
			abort();
		v[used++] = atoi(e->d_name);
	}
	closedir(d);
	if (used)
		qsort(v, used, sizeof(*v), compare_int);
	*out = v;
	*n = used;
	return 0;
}

struct order {
	pid_t pid;
	const struct fd_info *v;
	bool failed;
};

static int compare_file(const void *x, const void *y, void *arg)
{
	struct order *o = arg;
	size_t i = *(const size_t *)x, k = *(const size_t *)y;
	const struct fd_info *a = &o->v[i], *b = &o->v[k];
	if (i == k)
		return 0;
	if (a->st.st_dev != b->st.st_dev)
		return a->st.st_dev < b->st.st_dev ? -1 : 1;
	if (a->st.st_ino != b->st.st_ino)
		return a->st.st_ino < b->st.st_ino ? -1 : 1;
	int link = strcmp(a->link, b->link); /* anonymous inodes share one number */
	if (link)
		return link;
	int r = fdtab_kcmp(o->pid, a->fd, b->fd);
	if (r < 0 || r > 2)
		o->failed = true;
	return r == 1 ? -1 : r == 2 ? 1 : 0;
}

/* leader[i]: lowest index among those that compare equal. */
static int find_shared(struct process *p, struct arena *a, struct fdtab *t, struct fault *f)
{
	size_t *by_file = arena_alloc(a, (t->n + 1) * sizeof(*by_file));
	struct order o = { .pid = p->pid, .v = t->v };
	for (size_t i = 0; i < t->n; i++)
		by_file[i] = i;
	qsort_r(by_file, t->n, sizeof(*by_file), compare_file, &o);
	for (size_t i = 0, end; i < t->n; i = end) {
		size_t low = by_file[i];
		for (end = i + 1; end < t->n && compare_file(&by_file[i], &by_file[end], &o) == 0; end++)
			low = by_file[end] < low ? by_file[end] : low;
		for (size_t k = i; k < end; k++)
			t->leader[by_file[k]] = low;
	}
	if (!o.failed)
		return 0;
	fault_errno(f, FAULT_KERNEL, "kcmp of descriptors of pid %d", (int)p->pid);
	return fault_hint(f, "the kernel must be built with CONFIG_KCMP");
}

struct fdtab *fdtab_walk(struct process *p, struct arena *a, struct fault *f)
{
	auto_free int *numbers = NULL;
	struct fdtab *t = arena_alloc(a, sizeof(*t));
	if (list_numbers(p, &numbers, &t->n, f) < 0)
		return NULL;
	t->v = arena_alloc(a, (t->n + 1) * sizeof(*t->v));
	t->leader = arena_alloc(a, (t->n + 1) * sizeof(*t->leader));
	t->id = arena_alloc(a, (t->n + 1) * sizeof(*t->id));
	for (size_t i = 0; i < t->n; i++)
		if (fdtab_read_one(p, a, numbers[i], &t->v[i], f) < 0)
			return NULL;
	return find_shared(p, a, t, f) < 0 ? NULL : t;
}
