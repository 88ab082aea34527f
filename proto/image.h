/*
 * The state of a process as a list of image entries (image.proto).
 *
 * Source: image_new, image_put for each entry in any order, then the worker sends entries
 * as frames (image_entry.packed) and --keep-state writes them with image_write_dir.
 * Destination: image_new, image_load for each frame, then image_first/image_next/image_get to restore from.
 *
 * An entry belongs to a file: `type` says which, `id` is the number in the file's name
 * (pid, or 0 where the name has none). Entries of one file keep the order they were put in.
 */
#ifndef PROTO_IMAGE_H
#define PROTO_IMAGE_H

#include "arena.h"
#include "fault.h"
#include "image.pb-c.h"

/* X(enum name, magic, file name with %u for id, message descriptor, has extra bytes after the message) */
#define IMAGE_TYPES(X)                                                      \
	X(INVENTORY, 0x58313116, "inventory.img", inventory_entry, 0)       \
	X(PSTREE, 0x50273030, "pstree.img", pstree_entry, 0)                \
	X(CORE, 0x55053847, "core-%u.img", core_entry, 0)                   \
	X(IDS, 0x54432030, "ids-%u.img", task_kobj_ids_entry, 0)            \
	X(MM, 0x57492820, "mm-%u.img", mm_entry, 0)                         \
	X(FDINFO, 0x56213732, "fdinfo-%u.img", fdinfo_entry, 0)             \
	X(FILES, 0x56303138, "files.img", file_entry, 0)                    \
	X(FS, 0x51403912, "fs-%u.img", fs_entry, 0)                         \
	X(CREDS, 0x54023547, "creds-%u.img", creds_entry, 0)                \
	X(PIPES_DATA, 0x56453709, "pipes-data.img", pipe_data_entry, 1)     \
	X(FIFO_DATA, 0x59333054, "fifo-data.img", pipe_data_entry, 1)       \
	X(TCP_STREAM, 0x51465506, "tcp-stream-%x.img", tcp_stream_entry, 1) \
	X(MEMFD_INODE, 0x48453499, "memfd.img", memfd_inode_entry, 0)       \
	X(TIMENS, 0x43114433, "timens-%u.img", timens_entry, 0)             \
	X(UTSNS, 0x54473203, "utsns-%u.img", utsns_entry, 0)                \
	X(SECCOMP, 0x64413049, "seccomp.img", seccomp_entry, 0)

enum image_type {
#define X(name, magic, file, msg, extra) IMAGE_##name,
	IMAGE_TYPES(X)
#undef X
		IMAGE_TYPE_COUNT
};

/* task_kobj_ids_entry.files_id of a process's descriptor table, and so the number in fdinfo-%u.img: a state of one
 * process has one table. */
#define IMAGE_FILES_ID	1u

#define IMAGE_ENTRY_MAX (64u << 20) /* a packed entry with its extra bytes */

struct image_entry {
	enum image_type type;
	uint32_t id;
	void *msg; /* the unpacked message, in the image's arena */
	const void *packed;
	size_t packed_len;
	const void *extra; /* TCP queues, pipe contents; NULL when none */
	size_t extra_len;
};

struct image;

struct image *image_new(void);
void image_free(struct image *img);
struct arena *image_arena(struct image *img); /* for building messages that are put */

/* Packs msg and keeps a copy of it and of extra. msg must live in image_arena() or longer than img. */
int image_put(struct image *img, enum image_type type, uint32_t id, void *msg, const void *extra, size_t extra_len,
	      struct fault *f) MUST_CHECK;
/* From outside: bytes are checked. */
int image_load(struct image *img, uint32_t type, uint32_t id, const void *packed, size_t packed_len, const void *extra,
	       size_t extra_len, struct fault *f) MUST_CHECK;

size_t image_count(const struct image *img);
const struct image_entry *image_at(const struct image *img, size_t i); /* i < image_count() */
/* First entry of a type and id from index *pos on; advances *pos behind it. NULL: no more. */
const struct image_entry *image_next(const struct image *img, enum image_type type, uint32_t id, size_t *pos);
/* The message of the only entry of that type and id, or NULL. */
void *image_get(const struct image *img, enum image_type type, uint32_t id);
const char *image_type_name(enum image_type type);
/* XXH3-128 over types, ids and bytes of all entries, in order. */
void image_digest(const struct image *img, uint8_t out[16]);

/* Writes all entries into a directory as CRIU does: magic, then size and message of each. The
 * directory is made (0700) when it is not there; files are replaced. */
int image_write_dir(const struct image *img, const char *dir, struct fault *f) MUST_CHECK;

#endif
