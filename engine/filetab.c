/*
 * Files of the state. Entries are kept by pointer in the order they were made; ids are position + 1 on the source and
 * whatever the image says on the destination.
 *
 * Opening on the destination looks before it opens: an O_PATH descriptor tells type and size, and only then the same
 * file is opened with the program's flags, so that a fifo or a device in the place of a file can't block or act.
 */
#include "filetab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#define DIGEST_CHUNK ((size_t)1 << 20)

struct filetab {
	struct arena *arena;
	size_t n, cap, cap_by_path;
	FileEntry **entries;
	bool *by_path; /* made by filetab_path: may be found again */
};

struct filetab *filetab_new(void)
{
	struct filetab *t = calloc(1, sizeof(*t));
	if (!t)
		abort();
	t->arena = arena_new();
	return t;
}

void filetab_free(struct filetab *t)
{
	if (!t)
		return;
	arena_free(t->arena);
	free(t->entries);
	free(t->by_path);
	free(t);
}

static void append(struct filetab *t, FileEntry *e, bool by_path)
{
	if (util_grow((void **)&t->entries, &t->cap, t->n, sizeof(*t->entries)) < 0 ||
	    util_grow((void **)&t->by_path, &t->cap_by_path, t->n, sizeof(*t->by_path)) < 0)
		abort();
	t->entries[t->n] = e;
	t->by_path[t->n++] = by_path;
}

FileEntry *filetab_new_entry(struct filetab *t, FdTypes type, uint32_t *id)
{
	FileEntry *e = arena_msg(t->arena, FileEntry, file_entry);
	e->type = type;
	e->id = (uint32_t)t->n + 1;
	append(t, e, false);
	*id = e->id;
	return e;
}

static bool same_path(const RegFileEntry *reg, const char *path, uint32_t open_flags)
{
	return (reg->flags & O_ACCMODE) == (open_flags & O_ACCMODE) && !strcmp(reg->name, path);
}

uint32_t filetab_path(struct filetab *t, const char *path, uint32_t open_flags, const struct stat *st)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->by_path[i] && same_path(t->entries[i]->reg, path, open_flags))
			return t->entries[i]->id;
	uint32_t id;
	FileEntry *e = filetab_new_entry(t, FD_TYPES__REG, &id);
	t->by_path[t->n - 1] = true;
	RegFileEntry *reg = e->reg = arena_msg(t->arena, RegFileEntry, reg_file_entry);
	reg->id = id;
	reg->flags = open_flags;
	reg->fown = arena_msg(t->arena, FownEntry, fown_entry);
	reg->name = arena_strdup(t->arena, path);
	if (st) {
		reg->has_size = reg->has_mode = reg->has_mtime_ns = true;
		reg->size = (uint64_t)st->st_size;
		reg->mode = st->st_mode;
		reg->mtime_ns = (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
	}
	return id;
}

struct arena *filetab_arena(struct filetab *t)
{
	return t->arena;
}

void filetab_truncate(struct filetab *t, size_t n)
{
	if (n < t->n)
		t->n = n;
}

size_t filetab_count(const struct filetab *t)
{
	return t->n;
}

FileEntry *filetab_at(const struct filetab *t, size_t i)
{
	return t->entries[i];
}

int filetab_put(struct filetab *t, struct image *img, struct fault *f)
{
	for (size_t i = 0; i < t->n; i++)
		if (image_put(img, IMAGE_FILES, 0, t->entries[i], NULL, 0, f) < 0)
			return fault_while(f, "writing file entry %u", t->entries[i]->id);
	return 0;
}

static size_t position(const struct filetab *t, uint32_t id)
{
	if (id > 0 && id <= t->n && t->entries[id - 1]->id == id)
		return id - 1;
	for (size_t i = 0; i < t->n; i++)
		if (t->entries[i]->id == id)
			return i;
	return t->n;
}

const FileEntry *filetab_find(const struct filetab *t, uint32_t id)
{
	size_t i = position(t, id);
	return i < t->n ? t->entries[i] : NULL;
}

/* The message that the type promises is there: restoring needs no further look. */
static bool entry_complete(const FileEntry *e)
{
	switch (e->type) {
	case FD_TYPES__REG:
		return e->reg && e->reg->name[0] == '/' && strlen(e->reg->name) < PATH_MAX;
	case FD_TYPES__PIPE:
		return e->pipe;
	case FD_TYPES__FIFO:
		return e->fifo;
	case FD_TYPES__INETSK:
		return e->isk;
	case FD_TYPES__EVENTFD:
		return e->efd;
	case FD_TYPES__EVENTPOLL:
		return e->epfd;
	case FD_TYPES__SIGNALFD:
		return e->sgfd;
	case FD_TYPES__TIMERFD:
		return e->tfd;
	case FD_TYPES__MEMFD:
		return e->memfd;
	default:
		return true; /* no kind restores it: refused where a descriptor names it */
	}
}

int filetab_load(struct filetab *t, const void *packed, size_t len, struct fault *f)
{
	FileEntry *e = file_entry__unpack(arena_pb(t->arena), len, packed);
	if (!e)
		return fault_set(f, FAULT_IMAGE, "a file entry of %zu bytes can't be read", len);
	if (e->id == 0 || !entry_complete(e))
		return fault_set(f, FAULT_IMAGE, "file entry %u of type %d is not complete", e->id, (int)e->type);
	size_t i = position(t, e->id);
	if (i < t->n)
		t->entries[i] = e; /* sent again with the mappings of a later round */
	else
		append(t, e, false);
	return 0;
}

static int open_below(const char *path, int rootfd, uint64_t flags)
{
	if (rootfd < 0)
		return open(path, (int)flags);
	struct open_how how = { .flags = flags, .resolve = RESOLVE_IN_ROOT };
	return (int)syscall(SYS_openat2, rootfd, path, &how, sizeof(how));
}

static const char *type_name(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return "a regular file";
	case S_IFDIR:
		return "a directory";
	case S_IFCHR:
		return "a character device";
	case S_IFBLK:
		return "a block device";
	case S_IFIFO:
		return "a fifo";
	case S_IFLNK:
		return "a symbolic link";
	case S_IFSOCK:
		return "a socket";
	default:
		return "something unknown";
	}
}

/* Append-only files may have any size, other appended ones may have grown meanwhile (a shared log). */
static bool size_fits(const RegFileEntry *reg, uint64_t here)
{
	if (!reg->has_size || here == reg->size || (reg->flags & O_PATH))
		return true;
	if (!(reg->flags & O_APPEND))
		return false;
	return (reg->flags & O_ACCMODE) == O_WRONLY || here > reg->size;
}

static int same_kind(const RegFileEntry *reg, const struct stat *st, struct fault *f)
{
	if (reg->has_mode && (reg->mode & S_IFMT) != (st->st_mode & S_IFMT)) {
		fault_set(f, FAULT_FILE_DIFFERS, "%s is %s here and %s on the source", reg->name,
			  type_name(st->st_mode), type_name(reg->mode));
		return fault_hint(f, "make the same kind of file on the destination");
	}
	if (reg->has_rdev && S_ISCHR(st->st_mode) && reg->rdev != st->st_rdev)
		return fault_set(f, FAULT_FILE_DIFFERS, "%s is another device here than on the source", reg->name);
	if (S_ISREG(st->st_mode) && !size_fits(reg, (uint64_t)st->st_size)) {
		fault_set(f, FAULT_FILE_DIFFERS, "%s is %llu bytes here and %llu on the source", reg->name,
			  (unsigned long long)st->st_size, (unsigned long long)reg->size);
		return fault_hint(f, "copy the file, or put it on storage that both hosts see");
	}
	return 0;
}

/* O_NOFOLLOW can't go through /proc/self/fd (its entries are links), and is a flag the program can read back: such a
 * file is opened by its name again and must be the one looked at. */
static int open_nofollow(const RegFileEntry *reg, int rootfd, int flags, const struct stat *seen, struct fault *f)
{
	auto_fd fd = open_below(reg->name, rootfd, (uint64_t)flags);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return fault_errno(f, FAULT_FILE_MISSING, "open %s", reg->name);
	if (st.st_dev != seen->st_dev || st.st_ino != seen->st_ino)
		return fault_set(f, FAULT_FILE_DIFFERS, "%s was replaced while it was opened", reg->name);
	return take_fd(&fd);
}

int filetab_open(const RegFileEntry *reg, int rootfd, struct fault *f)
{
	/* __O_TMPFILE alone: what was made with O_TMPFILE and linked later has it still */
	int flags = (int)(reg->flags & ~(uint32_t)(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | (O_TMPFILE & ~O_DIRECTORY)));
	flags |= O_CLOEXEC | O_NOCTTY;
	int keep = flags & (flags & O_PATH ? O_NOFOLLOW | O_DIRECTORY : O_NOFOLLOW);
	auto_fd look = open_below(reg->name, rootfd, (uint64_t)(O_PATH | O_CLOEXEC | keep));
	struct stat st;
	if (look < 0 || fstat(look, &st) < 0) {
		fault_errno(f, FAULT_FILE_MISSING, "open %s", reg->name);
		return fault_hint(f, "copy the file to the same path on the destination");
	}
	if (same_kind(reg, &st, f) < 0)
		return -1;
	if (flags & O_PATH)
		return take_fd(&look);
	if (flags & O_NOFOLLOW)
		return open_nofollow(reg, rootfd, flags, &st, f);
	char self[40];
	snprintf(self, sizeof(self), "/proc/self/fd/%d", look);
	int fd = open(self, flags);
	if (fd < 0)
		return fault_errno(f, FAULT_FILE_DIFFERS, "open %s with flags 0%o", reg->name, (unsigned)flags);
	return fd;
}

int filetab_digest(int fd, uint8_t out[16], struct fault *f)
{
	auto_free uint8_t *buf = malloc(DIGEST_CHUNK);
	XXH3_state_t *x = XXH3_createState();
	if (!buf || !x)
		abort();
	XXH3_128bits_reset(x);
	ssize_t n;
	for (off_t pos = 0; (n = pread(fd, buf, DIGEST_CHUNK, pos)) != 0; pos += n) {
		if (n < 0 && errno == EINTR) {
			n = 0;
			continue;
		}
		if (n < 0) {
			XXH3_freeState(x);
			return fault_errno(f, FAULT_SYSTEM, "read a file's content");
		}
		XXH3_128bits_update(x, buf, (size_t)n);
	}
	XXH128_canonical_t c;
	XXH128_canonicalFromHash(&c, XXH3_128bits_digest(x));
	XXH3_freeState(x);
	memcpy(out, c.digest, 16);
	return 0;
}
