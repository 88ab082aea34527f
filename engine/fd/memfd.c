/*
 * memfd_create(2): the descriptor. Content, name, size, owner and seals are the object's, which comes with memory,
 * mapped or not (memory.h); here it is opened once more for each open file description, with its flags and position.
 */
#include "fdtab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool claims(const struct fd_info *i)
{
	return S_ISREG(i->st.st_mode) && !(i->flags & O_PATH) && !strncmp(i->link, "/memfd:", 7) &&
	       fcntl(i->dup, F_GET_SEALS) >= 0 && i->st.st_blksize <= (blksize_t)PAGE_BYTES;
}

static int check(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		 struct fault *f)
{
	(void)p;
	(void)needs;
	(void)f;
	reg_unlocked(i, report);
	return 0;
}

static char *name_of(struct arena *a, const char *link)
{
	static const char suffix[] = " (deleted)";
	char *name = arena_strdup(a, link + strlen("/memfd:"));
	size_t len = strlen(name), tail = strlen(suffix);
	if (len >= tail && !strcmp(name + len - tail, suffix))
		name[len - tail] = 0;
	return name;
}

static bool inode_saved(const struct image *img, uint64_t ino)
{
	size_t pos = 0;
	for (const struct image_entry *e; (e = image_next(img, IMAGE_MEMFD_INODE, 0, &pos));)
		if (((const MemfdInodeEntry *)e->msg)->inode_id == ino)
			return true;
	return false;
}

static int save_inode(struct fd_save *s, const struct fd_info *i, struct fault *f)
{
	struct arena *a = image_arena(s->img);
	MemfdInodeEntry *n = arena_msg(a, MemfdInodeEntry, memfd_inode_entry);
	n->name = name_of(a, i->link);
	n->uid = i->st.st_uid;
	n->gid = i->st.st_gid;
	n->size = (uint64_t)i->st.st_size;
	n->shmid = (uint32_t)i->st.st_ino;
	n->inode_id = i->st.st_ino;
	int seals = fcntl(i->dup, F_GET_SEALS);
	n->seals = seals > 0 ? (uint32_t)seals : 0;
	return image_put(s->img, IMAGE_MEMFD_INODE, 0, n, NULL, 0, f);
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	e->memfd = arena_msg(filetab_arena(s->files), MemfdFileEntry, memfd_file_entry);
	e->memfd->id = e->id;
	e->memfd->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	e->memfd->pos = i->pos;
	e->memfd->fown = fd_fown_save(s, i);
	e->memfd->inode_id = (uint32_t)i->st.st_ino;
	return inode_saved(s->img, i->st.st_ino) ? 0 : save_inode(s, i, f);
}

/* The worker's descriptor of the object whose inode it was on the source. */
static int object_of(const struct fd_restore *s, uint64_t ino)
{
	for (size_t k = 0; s->mm && k < s->mm->n_objects && k < s->n_objects; k++)
		if (s->mm->objects[k]->has_ino && s->mm->objects[k]->name && s->mm->objects[k]->ino == ino)
			return s->objects[k];
	return -1;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	int object = object_of(s, e->memfd->inode_id);
	if (object < 0)
		return fault_set(f, FAULT_IMAGE, "memfd %u has no memory object", e->memfd->inode_id);
	auto_fd own = helper_fetch_fd(object, min_fd, f);
	if (own < 0)
		return -1;
	auto_fd fd = fd_reopen(own, e->memfd->flags, min_fd, f);
	if (fd < 0)
		return -1;
	if (e->memfd->pos && lseek(fd, (off_t)e->memfd->pos, SEEK_SET) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the position of a memfd");
	return take_fd(&fd);
}

const struct fd_kind fd_memfd_kind = {
	.name = "memfd",
	.type = FD_TYPES__MEMFD,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.check = check,
	.save = save,
	.restore = restore,
};
