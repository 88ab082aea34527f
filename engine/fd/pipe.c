/*
 * Anonymous pipes with both ends in the process: contents, capacity, packets, owner, and flags of each end.
 *
 * Contents are copied by tee(2) into a pipe of our own, which leaves them where they are. Packets (O_DIRECT) keep
 * their boundaries through tee, whatever the flags of our pipe: a read of the copy ends with a packet.
 * On the destination one pipe is made for all descriptions of a pipe_id; the first reader and the first writer get its
 * two ends, what was opened through /proc/self/fd is opened so again.
 */
#include "fdtab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define STREAM_RUN 0x80000000u /* in PipeDataEntry.sizes: bytes that are not a packet */

static bool claims(const struct fd_info *i)
{
	return S_ISFIFO(i->st.st_mode) && !(i->flags & O_PATH) && !strncmp(i->link, "pipe:", 5);
}

/* ---- who else has it ---- */

struct peers {
	struct process *p;
	const struct fdtab *tab;
	struct report *report;
	size_t *pipes; /* indices of tab */
	size_t n;
};

static void found_peer(const struct peers *s, const struct fd_info *i, int pid, int procfd)
{
	char object[FD_OBJECT_LEN], comm[32] = "?";
	auto_free char *text = util_read_file(procfd, "comm", NULL);
	if (text)
		snprintf(comm, sizeof(comm), "%.*s", (int)strcspn(text, "\n"), text);
	bool fifo = i->link[0] == '/';
	report_add(s->report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, fifo ? "fifo" : "pipe"),
		   "redirect it to a file, or end the other process",
		   "%.200s is also held by process %d (%s), which stays here", i->link, pid, comm);
}

static void look_at(const struct peers *s, int pid)
{
	char path[64], link[256];
	snprintf(path, sizeof(path), "/proc/%d", pid);
	auto_fd procfd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fds = procfd < 0 ? -1 : openat(procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fds < 0 ? NULL : fdopendir(fds);
	if (!d) { /* gone meanwhile */
		util_close(&fds);
		return;
	}
	for (struct dirent *e; (e = readdir(d));) {
		ssize_t n = readlinkat(fds, e->d_name, link, sizeof(link) - 1);
		if (n <= 0)
			continue;
		link[n] = 0;
		for (size_t k = 0; k < s->n; k++)
			if (!strcmp(s->tab->v[s->pipes[k]].link, link))
				found_peer(s, &s->tab->v[s->pipes[k]], pid, procfd);
	}
	closedir(d);
}

int pipe_check_peers(struct process *p, const struct fdtab *tab, struct report *report, struct fault *f)
{
	auto_free size_t *pipes = calloc(tab->n + 1, sizeof(*pipes));
	struct peers s = { .p = p, .tab = tab, .report = report, .pipes = pipes };
	if (!pipes)
		abort();
	for (size_t i = 0; i < tab->n; i++)
		if (tab->leader[i] == i && S_ISFIFO(tab->v[i].st.st_mode) && !(tab->v[i].flags & O_PATH))
			pipes[s.n++] = i;
	if (s.n == 0)
		return 0;
	DIR *d = opendir("/proc");
	if (!d)
		return fault_errno(f, FAULT_SYSTEM, "list /proc");
	for (struct dirent *e; (e = readdir(d));) {
		int pid = atoi(e->d_name);
		if (pid > 0 && pid != p->pid)
			look_at(&s, pid);
	}
	closedir(d);
	return 0;
}

/* ---- contents ---- */

/* A descriptor to read from without moving anything of the program's: the duplicate, or for a write end the same pipe
 * opened for reading. */
static int reader_of(struct process *p, const struct fd_info *i, struct fault *f)
{
	if ((i->flags & O_ACCMODE) != O_WRONLY)
		return fcntl(i->dup, F_DUPFD_CLOEXEC, 0);
	char path[32];
	snprintf(path, sizeof(path), "fd/%d", i->fd);
	int fd = openat(p->procfd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return fd >= 0 ? fd : fault_errno(f, FAULT_SYSTEM, "open the pipe for reading");
}

static int copy_of(int reader, int size, int copy[2], size_t *len, struct fault *f)
{
	int queued = 0;
	if (ioctl(reader, FIONREAD, &queued) < 0 || pipe2(copy, O_CLOEXEC | O_NONBLOCK) < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a pipe for the contents");
	*len = (size_t)queued;
	if (queued == 0)
		return 0;
	/* tee starts from the beginning each time: our pipe has to take all of it at once */
	if (fcntl(copy[1], F_SETPIPE_SZ, size) < size)
		return fault_errno(f, FAULT_LIMIT, "make a pipe of %d bytes for the contents", size);
	ssize_t n = tee(reader, copy[1], (size_t)queued, SPLICE_F_NONBLOCK);
	if (n != queued)
		return fault_errno(f, FAULT_SYSTEM, "copy %d bytes out of the pipe (got %zd)", queued, n);
	return 0;
}

/* One-byte reads of another copy tell packets (their rest is dropped) from stream data. Only when there are packets. */
static size_t packet_at(int probe, size_t rest)
{
	char c;
	int left = 0;
	if (read(probe, &c, 1) != 1 || ioctl(probe, FIONREAD, &left) < 0)
		return 0;
	return rest - (size_t)left;
}

static void push_size(struct arena *a, PipeDataEntry *e, uint32_t size)
{
	if ((size & STREAM_RUN) && e->n_sizes && (e->sizes[e->n_sizes - 1] & STREAM_RUN))
		e->sizes[e->n_sizes - 1] += size & ~STREAM_RUN;
	else
		arena_push(a, e->n_sizes, e->sizes, size);
}

/* [at, end) was one read of the copy, ended by a packet: stream data may stand before it. */
static void split_read(struct arena *a, PipeDataEntry *e, int probe, size_t at, size_t end, size_t len)
{
	while (at < end) {
		size_t n = packet_at(probe, len - at);
		if (n == 0)
			return;
		push_size(a, e, n == 1 && at + 1 < end ? STREAM_RUN | 1 : (uint32_t)n);
		at += n;
	}
}

static int read_copy(int copy, int probe, uint8_t *buf, size_t len, struct arena *a, PipeDataEntry *e, struct fault *f)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = read(copy, buf + at, len - at);
		if (n <= 0)
			return fault_errno(f, FAULT_SYSTEM, "read the copy of the pipe");
		size_t end = at + (size_t)n;
		/* Read in one go it is a stream, or a single packet. */
		if (e->packet || end < len) {
			e->packet = true;
			split_read(a, e, probe, at, end, len);
		} else if (packet_at(probe, len) > 1) {
			e->packet = true;
			push_size(a, e, (uint32_t)len);
		}
		at = end;
	}
	return 0;
}

static bool written_in_packets(const struct fd_save *s, const struct fd_info *i)
{
	for (size_t k = 0; k < s->n_all; k++) {
		const struct fd_info *o = &s->all[k];
		if (o->st.st_ino == i->st.st_ino && o->st.st_dev == i->st.st_dev && (o->flags & O_DIRECT) &&
		    (o->flags & O_ACCMODE) != O_RDONLY)
			return true;
	}
	return false;
}

int pipe_contents(struct fd_save *s, const struct fd_info *i, struct arena *a, PipeDataEntry *e, const void **bytes,
		  struct fault *f)
{
	int copy[2] = { -1, -1 }, probe[2] = { -1, -1 }, size = fcntl(i->dup, F_GETPIPE_SZ);
	size_t len = 0, again = 0;
	auto_fd reader = reader_of(s->p, i, f);
	if (reader < 0)
		return -1;
	int r = copy_of(reader, size, copy, &len, f);
	if (r == 0)
		r = copy_of(reader, size, probe, &again, f);
	e->has_packet = true;
	e->packet = written_in_packets(s, i);
	uint8_t *buf = arena_alloc(a, len + 1);
	if (r == 0)
		r = read_copy(copy[0], probe[0], buf, len, a, e, f);
	for (int k = 0; k < 2; k++) {
		util_close(&copy[k]);
		util_close(&probe[k]);
	}
	e->bytes = (uint32_t)len;
	e->has_size = true;
	e->size = (uint32_t)size;
	*bytes = buf;
	return r;
}

bool pipe_data_saved(const struct image *img, enum image_type type, uint32_t pipe_id)
{
	size_t pos = 0;
	for (const struct image_entry *e; (e = image_next(img, type, 0, &pos));)
		if (((const PipeDataEntry *)e->msg)->pipe_id == pipe_id)
			return true;
	return false;
}

static int save_data(struct fd_save *s, const struct fd_info *i, uint32_t pipe_id, struct fault *f)
{
	struct arena *a = image_arena(s->img);
	PipeDataEntry *d = arena_msg(a, PipeDataEntry, pipe_data_entry);
	const void *bytes;
	d->pipe_id = pipe_id;
	d->has_uid = d->has_gid = d->has_mode = true;
	d->uid = i->st.st_uid;
	d->gid = i->st.st_gid;
	d->mode = i->st.st_mode & 07777;
	if (pipe_contents(s, i, a, d, &bytes, f) < 0)
		return -1;
	return image_put(s->img, IMAGE_PIPES_DATA, 0, d, bytes, d->bytes, f);
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	e->pipe = arena_msg(filetab_arena(s->files), PipeEntry, pipe_entry);
	e->pipe->id = e->id;
	e->pipe->pipe_id = (uint32_t)i->st.st_ino;
	e->pipe->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	e->pipe->fown = fd_fown_save(s, i);
	if (pipe_data_saved(s->img, IMAGE_PIPES_DATA, e->pipe->pipe_id))
		return 0;
	return save_data(s, i, e->pipe->pipe_id, f);
}

/* ---- putting together ---- */

static int write_all_now(int fd, const uint8_t *p, size_t len, struct fault *f)
{
	for (ssize_t n; len > 0; p += n, len -= (size_t)n) {
		n = write(fd, p, len);
		if (n <= 0)
			return fault_errno(f, FAULT_SYSTEM, "fill a pipe: %zu bytes do not fit", len);
	}
	return 0;
}

static int fill_packets(int fd, const PipeDataEntry *e, const uint8_t *bytes, struct fault *f)
{
	size_t at = 0;
	for (size_t k = 0; k < e->n_sizes; k++) {
		size_t n = e->sizes[k] & ~STREAM_RUN;
		if (n == 0 || n > e->bytes - at)
			return fault_set(f, FAULT_IMAGE, "packets of pipe %u do not fit its %u bytes", e->pipe_id,
					 e->bytes);
		if (fcntl(fd, F_SETFL, O_NONBLOCK | (e->sizes[k] & STREAM_RUN ? 0 : O_DIRECT)) < 0)
			return fault_errno(f, FAULT_SYSTEM, "switch packet mode of a pipe");
		if (write_all_now(fd, bytes + at, n, f) < 0)
			return -1;
		at += n;
	}
	return write_all_now(fd, bytes + at, e->bytes - at, f);
}

int pipe_fill(int fd, const PipeDataEntry *e, const void *bytes, struct fault *f)
{
	int now = fcntl(fd, F_GETPIPE_SZ);
	if (e->has_size && (int)e->size != now && fcntl(fd, F_SETPIPE_SZ, (int)e->size) < 0) {
		fault_errno(f, FAULT_LIMIT, "set the size of a pipe to %u bytes", e->size);
		return fault_hint(f, "raise fs.pipe-max-size (and pipe-user-pages-soft) on the destination");
	}
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return fault_errno(f, FAULT_SYSTEM, "fill a pipe");
	return fill_packets(fd, e, bytes, f);
}

/* By the program's own uid a pipe can be opened again through /proc/self/fd (/dev/stdout). */
static int set_owner(int fd, const PipeDataEntry *e, struct fault *f)
{
	if (e->has_uid && e->has_gid && fchown(fd, e->uid, e->gid) < 0)
		return fault_errno(f, FAULT_SYSTEM, "give a pipe to uid %u", e->uid);
	if (e->has_mode && fchmod(fd, e->mode) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the mode of a pipe");
	return 0;
}

static int make_pipe(struct fd_restore *s, uint32_t pipe_id, int min_fd, struct fd_shared_end *end, struct fault *f)
{
	int p[2];
	if (pipe2(p, O_CLOEXEC) < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a pipe");
	p[0] = fd_place(p[0], min_fd, f);
	p[1] = fd_place(p[1], min_fd, f);
	*end = (struct fd_shared_end){ .type = FD_TYPES__PIPE, .pipe_id = pipe_id, .rd = p[0], .wr = p[1] };
	if (p[0] < 0 || p[1] < 0)
		return -1;
	size_t pos = 0;
	for (const struct image_entry *e; (e = image_next(s->img, IMAGE_PIPES_DATA, 0, &pos));) {
		const PipeDataEntry *d = e->msg;
		if (d->pipe_id != pipe_id)
			continue;
		if (d->bytes != e->extra_len)
			return fault_set(f, FAULT_IMAGE, "pipe %u has %zu bytes, not %u", pipe_id, e->extra_len,
					 d->bytes);
		if (pipe_fill(p[1], d, e->extra, f) < 0 || set_owner(p[1], d, f) < 0)
			return -1;
	}
	return fcntl(p[1], F_SETFL, 0) < 0 ? fault_errno(f, FAULT_SYSTEM, "reset a pipe's flags") : 0;
}

static int take_end(struct fd_shared_end *end, uint32_t flags, int min_fd, struct fault *f)
{
	bool write_end = (flags & O_ACCMODE) == O_WRONLY;
	bool *taken = write_end ? &end->wr_taken : &end->rd_taken;
	if ((flags & O_ACCMODE) == O_RDWR || (flags & FD_O_LARGEFILE) || *taken)
		return fd_reopen(write_end ? end->wr : end->rd, flags, min_fd, f);
	*taken = true;
	int fd = fcntl(write_end ? end->wr : end->rd, F_DUPFD_CLOEXEC, min_fd);
	if (fd < 0)
		return fault_errno(f, FAULT_LIMIT, "duplicate an end of a pipe");
	if (fd_set_flags(fd, flags, f) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	struct fd_shared_end *end = fd_shared_find(s, FD_TYPES__PIPE, e->pipe->pipe_id, NULL);
	if (!end) {
		struct fd_shared_end made = { .rd = -1, .wr = -1 };
		int r = make_pipe(s, e->pipe->pipe_id, min_fd, &made, f);
		end = fd_shared_add(s, &made); /* also when it failed: the driver closes what is there */
		if (r < 0)
			return -1;
	}
	return take_end(end, e->pipe->flags, min_fd, f);
}

const struct fd_kind fd_pipe_kind = {
	.name = "pipe",
	.type = FD_TYPES__PIPE,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.save = save,
	.restore = restore,
};
