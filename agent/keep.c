#include "keep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGEMAP_MAGIC 0x56084025u
#define COMMON_MAGIC  0x54564319u
#define PE_PRESENT    (1u << 2) /* pagemap_entry.flags: the page is in pages-N.img */

struct kept {
	uint64_t addr;
	uint32_t space;
	bool gone;    /* zero or discarded after it was sent */
	uint64_t seq; /* in the log; also the order */
};

struct keep {
	char *dir;
	int dirfd;
	int log; /* every page that was sent, in order */
	uint32_t pid;
	struct kept *v;
	size_t n, cap;
	uint64_t logged;
};

int keep_new(const char *dir, uint32_t pid, struct keep **out, struct fault *f)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_USAGE, "make directory %s", dir);
	struct keep *k = calloc(1, sizeof(*k));
	if (!k)
		abort();
	k->dir = strdup(dir);
	k->pid = pid;
	k->log = -1;
	k->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (k->dirfd >= 0)
		k->log = openat(k->dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (!k->dir || k->log < 0) {
		fault_errno(f, FAULT_USAGE, "write into %s", dir);
		keep_free(k);
		return -1;
	}
	*out = k;
	return 0;
}

void keep_free(struct keep *k)
{
	if (!k)
		return;
	util_close(&k->log);
	util_close(&k->dirfd);
	free(k->dir);
	free(k->v);
	free(k);
}

int keep_pages(struct keep *k, const void *data, size_t pages, const struct memory_segment *segs, size_t n,
	       struct fault *f)
{
	if (util_write_all(k->log, data, pages * PAGE_BYTES) < 0)
		return fault_errno(f, FAULT_SYSTEM, "write into %s", k->dir);
	for (size_t i = 0; i < n; i++)
		for (uint32_t p = 0; p < segs[i].npages; p++) {
			if (util_grow((void **)&k->v, &k->cap, k->n, sizeof(*k->v)) < 0)
				return fault_errno(f, FAULT_NO_MEMORY, "keeping the state");
			k->v[k->n++] = (struct kept){ .addr = segs[i].addr + p * PAGE_BYTES,
						      .space = segs[i].space,
						      .gone = segs[i].flags != 0,
						      .seq = segs[i].flags ? k->logged : k->logged++ };
		}
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct kept *x = a, *y = b;
	if (x->space != y->space)
		return x->space < y->space ? -1 : 1;
	if (x->addr != y->addr)
		return x->addr < y->addr ? -1 : 1;
	/* Entries are in order in the array; qsort(3) is not stable, seq is: a page gone and sent again at the same
	 * seq is the later one. */
	if (x->seq != y->seq)
		return x->seq < y->seq ? -1 : 1;
	return (int)y->gone - (int)x->gone;
}

/* Leaves the last version of each page that is still there. */
static void settle(struct keep *k)
{
	size_t out = 0;
	qsort(k->v, k->n, sizeof(*k->v), by_place);
	for (size_t i = 0; i < k->n; i++) {
		bool last = i + 1 == k->n || k->v[i + 1].addr != k->v[i].addr || k->v[i + 1].space != k->v[i].space;
		if (last && !k->v[i].gone)
			k->v[out++] = k->v[i];
	}
	k->n = out;
}

static int put(int fd, const ProtobufCMessage *m)
{
	uint8_t buf[64];
	uint32_t len = (uint32_t)protobuf_c_message_get_packed_size(m);
	protobuf_c_message_pack(m, buf);
	return util_write_all(fd, &len, sizeof(len)) < 0 || util_write_all(fd, buf, len) < 0 ? -1 : 0;
}

static int create(struct keep *k, const char *name, struct fault *f)
{
	int fd = openat(k->dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		fault_errno(f, FAULT_SYSTEM, "create %s/%s", k->dir, name);
	return fd;
}

static int copy_page(struct keep *k, int to, uint64_t seq, struct fault *f)
{
	char page[PAGE_BYTES];
	if (pread(k->log, page, sizeof(page), (off_t)(seq * PAGE_BYTES)) != (ssize_t)sizeof(page) ||
	    util_write_all(to, page, sizeof(page)) < 0)
		return fault_errno(f, FAULT_SYSTEM, "write pages into %s", k->dir);
	return 0;
}

/* One space: v[first, end). Object ids are 1-based as in mm_entry.objects. */
static int write_space(struct keep *k, size_t first, size_t end, uint32_t pages_id, struct fault *f)
{
	char name[64];
	uint32_t space = k->v[first].space;
	if (space)
		snprintf(name, sizeof(name), "pagemap-shmem-%u.img", space);
	else
		snprintf(name, sizeof(name), "pagemap-%u.img", k->pid);
	auto_fd map = create(k, name, f);
	snprintf(name, sizeof(name), "pages-%u.img", pages_id);
	auto_fd pages = map < 0 ? -1 : create(k, name, f);
	if (pages < 0)
		return -1;
	uint32_t magic[2] = { COMMON_MAGIC, PAGEMAP_MAGIC };
	PagemapHead head = PAGEMAP_HEAD__INIT;
	head.pages_id = pages_id;
	if (util_write_all(map, magic, sizeof(magic)) < 0 || put(map, &head.base) < 0)
		return fault_errno(f, FAULT_SYSTEM, "write %s", name);
	for (size_t i = first; i < end;) {
		PagemapEntry e = PAGEMAP_ENTRY__INIT;
		e.vaddr = k->v[i].addr;
		e.has_flags = true;
		e.flags = PE_PRESENT;
		for (; i < end && k->v[i].addr == e.vaddr + e.nr_pages * PAGE_BYTES; i++, e.nr_pages++)
			if (copy_page(k, pages, k->v[i].seq, f) < 0)
				return -1;
		if (put(map, &e.base) < 0)
			return fault_errno(f, FAULT_SYSTEM, "write %s", name);
	}
	return 0;
}

int keep_finish(struct keep *k, const struct image *img, struct fault *f)
{
	settle(k);
	uint32_t id = 1;
	for (size_t i = 0; i < k->n; id++) {
		size_t end = i;
		while (end < k->n && k->v[end].space == k->v[i].space)
			end++;
		if (write_space(k, i, end, id, f) < 0)
			return fault_while(f, "keeping the state");
		i = end;
	}
	if (image_write_dir(img, k->dir, f) < 0)
		return fault_while(f, "keeping the state");
	return 0;
}
