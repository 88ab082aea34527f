#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* CRIU 2.0 and later: every file but the inventory starts with this, then its own magic. */
#define IMAGE_MAGIC_COMMON 0x54564319u

static const struct {
	const char *name;
	uint32_t magic;
	const char *file;
	const ProtobufCMessageDescriptor *desc;
	bool extra;
} types[] = {
#define X(name, magic, file, msg, extra) { #name, magic, file, &msg##__descriptor, extra },
	IMAGE_TYPES(X)
#undef X
};

struct image {
	struct arena *arena;
	struct image_entry *entries;
	size_t n, cap;
};

struct image *image_new(void)
{
	struct image *img = calloc(1, sizeof(*img));
	if (!img)
		abort();
	img->arena = arena_new();
	return img;
}

void image_free(struct image *img)
{
	if (!img)
		return;
	arena_free(img->arena);
	free(img->entries);
	free(img);
}

struct arena *image_arena(struct image *img)
{
	return img->arena;
}

static int append(struct image *img, struct image_entry *e, struct fault *f)
{
	if (util_grow((void **)&img->entries, &img->cap, img->n, sizeof(*img->entries)) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "an image of %zu entries", img->n);
	img->entries[img->n++] = *e;
	return 0;
}

int image_put(struct image *img, enum image_type type, uint32_t id, void *msg, const void *extra, size_t extra_len,
	      struct fault *f)
{
	const ProtobufCMessage *m = msg;
	if (m->descriptor != types[type].desc)
		return fault_set(f, FAULT_INTERNAL, "a message of type %s put as %s", m->descriptor->name,
				 types[type].name);
	if (!protobuf_c_message_check(m))
		return fault_set(f, FAULT_INTERNAL, "an incomplete %s", types[type].name);
	size_t len = protobuf_c_message_get_packed_size(m);
	if (len + extra_len > IMAGE_ENTRY_MAX)
		return fault_set(f, FAULT_UNSUPPORTED, "an entry of %zu bytes in %s", len + extra_len,
				 types[type].name);
	uint8_t *packed = arena_alloc(img->arena, len);
	protobuf_c_message_pack(m, packed);
	struct image_entry e = {
		.type = type,
		.id = id,
		.msg = msg,
		.packed = packed,
		.packed_len = len,
		.extra = extra_len ? arena_memdup(img->arena, extra, extra_len) : NULL,
		.extra_len = extra_len,
	};
	return append(img, &e, f);
}

int image_load(struct image *img, uint32_t type, uint32_t id, const void *packed, size_t packed_len, const void *extra,
	       size_t extra_len, struct fault *f)
{
	if (type >= IMAGE_TYPE_COUNT)
		return fault_set(f, FAULT_IMAGE, "an image entry of unknown type %u", type);
	if (packed_len > IMAGE_ENTRY_MAX || extra_len > IMAGE_ENTRY_MAX)
		return fault_set(f, FAULT_IMAGE, "an entry of %zu bytes in %s", packed_len + extra_len,
				 types[type].name);
	if (extra_len && !types[type].extra)
		return fault_set(f, FAULT_IMAGE, "an entry in %s with bytes that have no place there",
				 types[type].name);
	struct image_entry e = { .type = (enum image_type)type, .id = id };
	e.packed = arena_memdup(img->arena, packed, packed_len);
	e.packed_len = packed_len;
	e.extra = extra_len ? arena_memdup(img->arena, extra, extra_len) : NULL;
	e.extra_len = extra_len;
	e.msg = protobuf_c_message_unpack(types[type].desc, arena_pb(img->arena), packed_len, e.packed);
	if (!e.msg)
		return fault_set(f, FAULT_IMAGE, "an entry in %s that is not a %s message", types[type].name,
				 types[type].desc->name);
	return append(img, &e, f);
}

size_t image_count(const struct image *img)
{
	return img->n;
}

const struct image_entry *image_at(const struct image *img, size_t i)
{
	return &img->entries[i];
}

const struct image_entry *image_next(const struct image *img, enum image_type type, uint32_t id, size_t *pos)
{
	for (size_t i = *pos; i < img->n; i++)
		if (img->entries[i].type == type && img->entries[i].id == id) {
			*pos = i + 1;
			return &img->entries[i];
		}
	*pos = img->n;
	return NULL;
}

void *image_get(const struct image *img, enum image_type type, uint32_t id)
{
	size_t pos = 0;
	const struct image_entry *e = image_next(img, type, id, &pos);
	return e ? e->msg : NULL;
}

const char *image_type_name(enum image_type type)
{
	return types[type].name;
}

void image_digest(const struct image *img, uint8_t out[16])
{
	XXH3_state_t *state = XXH3_createState();
	if (!state)
		abort();
	XXH3_128bits_reset(state);
	for (size_t i = 0; i < img->n; i++) {
		const struct image_entry *e = &img->entries[i];
		uint64_t head[4] = { e->type, e->id, e->packed_len, e->extra_len };
		XXH3_128bits_update(state, head, sizeof(head));
		XXH3_128bits_update(state, e->packed, e->packed_len);
		if (e->extra_len)
			XXH3_128bits_update(state, e->extra, e->extra_len);
	}
	XXH128_canonical_t canonical;
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
	XXH3_freeState(state);
	memcpy(out, canonical.digest, sizeof(canonical.digest));
}

static void file_name(const struct image_entry *e, char *buf, size_t len)
{
	const char *fmt = types[e->type].file;
	const char *p = strchr(fmt, '%');
	if (!p)
		snprintf(buf, len, "%s", fmt);
	else if (p[1] == 'x')
		snprintf(buf, len, "%.*s%x%s", (int)(p - fmt), fmt, e->id, p + 2);
	else
		snprintf(buf, len, "%.*s%u%s", (int)(p - fmt), fmt, e->id, p + 2);
}

static int write_entry(int fd, const struct image_entry *e)
{
	uint32_t size = (uint32_t)e->packed_len;
	if (util_write_all(fd, &size, sizeof(size)) < 0 || util_write_all(fd, e->packed, e->packed_len) < 0)
		return -1;
	return e->extra_len ? util_write_all(fd, e->extra, e->extra_len) : 0;
}

static bool written_before(const struct image *img, size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (img->entries[k].type == img->entries[i].type && img->entries[k].id == img->entries[i].id)
			return true;
	return false;
}

static int write_file(const struct image *img, size_t first, int dirfd, const char *name, struct fault *f)
{
	const struct image_entry *e = &img->entries[first];
	auto_fd fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "create %s", name);
	uint32_t magic[2] = { IMAGE_MAGIC_COMMON, types[e->type].magic };
	size_t skip = e->type == IMAGE_INVENTORY ? 1 : 0;
	if (util_write_all(fd, magic + skip, sizeof(magic) - skip * sizeof(magic[0])) < 0)
		return fault_errno(f, FAULT_SYSTEM, "write %s", name);
	size_t pos = first;
	for (const struct image_entry *o; (o = image_next(img, e->type, e->id, &pos));)
		if (write_entry(fd, o) < 0)
			return fault_errno(f, FAULT_SYSTEM, "write %s", name);
	return 0;
}

int image_write_dir(const struct image *img, const char *dir, struct fault *f)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_SYSTEM, "make directory %s", dir);
	auto_fd dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return fault_errno(f, FAULT_SYSTEM, "open directory %s", dir);
	for (size_t i = 0; i < img->n; i++) {
		char name[64];
		file_name(&img->entries[i], name, sizeof(name));
		if (!written_before(img, i) && write_file(img, i, dirfd, name, f) < 0)
			return fault_while(f, "writing an image into %s", dir);
	}
	return 0;
}
