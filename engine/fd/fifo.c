/*
 * Named fifos: a file by path, with contents like a pipe's. As in CRIU's format the fifo entry names a file entry of
 * its own, which has path, flags and owner.
 *
 * A fifo on the destination is opened read-write first, which never waits; that descriptor is kept until all others
 * are there, so that neither a reader nor a writer waits for the other.
 */
#include "fdtab.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool claims(const struct fd_info *i)
{
	return S_ISFIFO(i->st.st_mode) && !(i->flags & O_PATH) && i->link[0] == '/';
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	char object[FD_OBJECT_LEN];
	(void)p;
	(void)f;
	if (!reg_reachable(i, "fifo", report) || !reg_unlocked(i, report))
		return 0;
	Cpr__NeededFile file = CPR__NEEDED_FILE__INIT;
	file.path = i->link;
	file.has_mode = true;
	file.mode = i->st.st_mode;
	file.object = (char *)fd_object(object, i->fd, "fifo");
	fd_need_file(needs, &file);
	return 0;
}

static int save_data(struct fd_save *s, const struct fd_info *i, uint32_t pipe_id, struct fault *f)
{
	struct arena *a = image_arena(s->img);
	PipeDataEntry *d = arena_msg(a, PipeDataEntry, pipe_data_entry);
	const void *bytes;
	d->pipe_id = pipe_id;
	if (pipe_contents(s, i, a, d, &bytes, f) < 0)
		return -1;
	return image_put(s->img, IMAGE_FIFO_DATA, 0, d, bytes, d->bytes, f);
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	uint32_t reg_id;
	FileEntry *named = filetab_new_entry(s->files, FD_TYPES__REG, &reg_id);
	named->reg = reg_entry(s, i, reg_id);
	e->fifo = arena_msg(filetab_arena(s->files), FifoEntry, fifo_entry);
	e->fifo->id = e->id;
	e->fifo->pipe_id = (uint32_t)i->st.st_ino;
	e->fifo->has_regf_id = true;
	e->fifo->regf_id = reg_id;
	if (pipe_data_saved(s->img, IMAGE_FIFO_DATA, e->fifo->pipe_id))
		return 0;
	return save_data(s, i, e->fifo->pipe_id, f);
}

static int fill(struct fd_restore *s, int fd, uint32_t pipe_id, const char *path, struct fault *f)
{
	size_t pos = 0;
	for (const struct image_entry *e; (e = image_next(s->img, IMAGE_FIFO_DATA, 0, &pos));) {
		const PipeDataEntry *d = e->msg;
		int queued = 0;
		if (d->pipe_id != pipe_id)
			continue;
		if (d->bytes != e->extra_len)
			return fault_set(f, FAULT_IMAGE, "fifo %s has %zu bytes, not %u", path, e->extra_len, d->bytes);
		if (ioctl(fd, FIONREAD, &queued) == 0 && queued > 0) {
			fault_set(f, FAULT_BUSY, "fifo %s is in use on this host: %d bytes are in it", path, queued);
			return fault_hint(f, "end the program that uses it, or use another fifo");
		}
		if (pipe_fill(fd, d, e->extra, f) < 0)
			return -1;
	}
	return 0;
}

static struct fd_shared_end *open_fifo(struct fd_restore *s, const RegFileEntry *reg, uint32_t pipe_id, int min_fd,
				       struct fault *f)
{
	RegFileEntry both = *reg;
	both.flags = O_RDWR | O_NONBLOCK;
	if (!S_ISFIFO(reg->mode)) {
		fault_set(f, FAULT_IMAGE, "%s is named as a fifo, but is none", reg->name);
		return NULL;
	}
	int fd = filetab_open(&both, s->rootfd, f);
	if (fd < 0 || (fd = fd_place(fd, min_fd, f)) < 0)
		return NULL;
	struct fd_shared_end end = {
		.type = FD_TYPES__FIFO, .pipe_id = pipe_id, .path = reg->name, .rd = fd, .wr = fd
	};
	struct fd_shared_end *kept = fd_shared_add(s, &end);
	return fill(s, fd, pipe_id, reg->name, f) < 0 ? NULL : kept;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	const FileEntry *named = e->fifo->has_regf_id ? filetab_find(s->files, e->fifo->regf_id) : NULL;
	if (!named || named->type != FD_TYPES__REG || !named->reg)
		return fault_set(f, FAULT_IMAGE, "fifo %u names no file", e->id);
	struct fd_shared_end *end = fd_shared_find(s, FD_TYPES__FIFO, e->fifo->pipe_id, named->reg->name);
	if (!end && !(end = open_fifo(s, named->reg, e->fifo->pipe_id, min_fd, f)))
		return -1;
	return fd_reopen(end->rd, named->reg->flags, min_fd, f);
}

const struct fd_kind fd_fifo_kind = {
	.name = "fifo",
	.type = FD_TYPES__FIFO,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
};
