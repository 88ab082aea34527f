/*
 * Files of the state: one file_entry (image.proto) per open file description, and per path that a mapping, the
 * executable, the working directory or the root names. Ids are unique in one state, from 1.
 */
#ifndef ENGINE_FILETAB_H
#define ENGINE_FILETAB_H

#include <sys/stat.h>

#include "image.h"
#include "report.h"

struct filetab;

struct filetab *filetab_new(void);
void filetab_free(struct filetab *t);
/* The entry of a path (mappings, exe, cwd, root): made at the first call, found at the next with the same path and
 * access mode. `path` as seen from the process's root. Returns the id. */
uint32_t filetab_path(struct filetab *t, const char *path, uint32_t open_flags, const struct stat *st);
/* A new entry that the caller fills (type, and the message of its kind with the id): for descriptors. */
FileEntry *filetab_new_entry(struct filetab *t, FdTypes type, uint32_t *id);
struct arena *filetab_arena(struct filetab *t);
/* Forgets all entries from the n-th on: a save is being tried anew. */
void filetab_truncate(struct filetab *t, size_t n);
size_t filetab_count(const struct filetab *t);
FileEntry *filetab_at(const struct filetab *t, size_t i);
/* All entries as IMAGE_FILES. */
int filetab_put(struct filetab *t, struct image *img, struct fault *f) MUST_CHECK;

/* Destination: entry by id among an image's IMAGE_FILES, or in a table loaded with filetab_load. */
int filetab_load(struct filetab *t, const void *packed, size_t len, struct fault *f) MUST_CHECK;
const FileEntry *filetab_find(const struct filetab *t, uint32_t id);
/* Opens a REG entry's path under `rootfd` (the process's root on this host; -1: our own), with its flags but
 * O_CREAT|O_EXCL|O_TRUNC. FAULT_FILE_MISSING, FAULT_FILE_DIFFERS (size, type). */
int filetab_open(const RegFileEntry *reg, int rootfd, struct fault *f) MUST_CHECK;

/* XXH3-128 of a file's content, 16 bytes, canonical byte order. */
int filetab_digest(int fd, uint8_t out[16], struct fault *f) MUST_CHECK;

#endif
