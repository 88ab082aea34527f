#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* struct pm_scan_arg of linux/fs.h, 6.7. */
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, give;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_WP	   1u /* PM_SCAN_WP_MATCHING */
#define SCAN_CHECK 2u /* PM_SCAN_CHECK_WPASYNC */

static int scan_ioctl(int fd, const struct pagemap_query *q, struct pagemap_region *v, size_t max, size_t *n,
		      uint64_t *walked)
{
	struct scan_arg a = {
		.size = sizeof(a),
		.flags = (q->protect ? SCAN_WP : 0) | (q->must_track ? SCAN_CHECK : 0),
		.start = q->start,
		.end = q->end,
		.vec = (uint64_t)(uintptr_t)v,
		.vec_len = max,
		.inverted = q->lack,
		.mask = q->need | q->lack,
		.any = q->any,
		.give = q->give,
	};
	long r;
	do
		r = ioctl(fd, SCAN_IOCTL, &a);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return -1;
	*n = (size_t)r;
	*walked = a.walk_end;
	return 0;
}

/* Does the kernel know these categories? A page of our own stack is as good as any. */
static bool knows(int fd, uint64_t categories)
{
	struct pagemap_region v[1];
	size_t n;
	uint64_t walked, here = (uint64_t)(uintptr_t)v & ~(uint64_t)(PAGE_BYTES - 1);
	struct pagemap_query q = { .start = here, .end = here + PAGE_BYTES, .any = categories, .give = categories };
	return scan_ioctl(fd, &q, v, 1, &n, &walked) == 0;
}

int pagemap_open(int procfd, struct pagemap *pm)
{
	int fd = openat(procfd, "pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	pm->fd = fd;
	pm->scan = knows(fd, PAGEMAP_PRESENT);
	pm->guard = pm->scan && knows(fd, PAGEMAP_PRESENT | PAGEMAP_GUARD);
	return 0;
}

void pagemap_close(struct pagemap *pm)
{
	util_close(&pm->fd);
}

static uint64_t entry_categories(uint64_t e)
{
	return (e >> 63 & 1 ? PAGEMAP_PRESENT : 0) | (e >> 62 & 1 ? PAGEMAP_SWAPPED : 0) |
	       (e >> 61 & 1 ? PAGEMAP_FILE : 0) | (e >> 58 & 1 ? PAGEMAP_GUARD : 0) |
	       (e >> 55 & 1 ? PAGEMAP_SOFT_DIRTY : 0) | (e >> 57 & 1 ? 0 : PAGEMAP_WRITTEN);
}

static bool matches(const struct pagemap_query *q, uint64_t is)
{
	return (is & q->need) == q->need && !(is & q->lack) && (!q->any || (is & q->any));
}

static int scan_read(int fd, const struct pagemap_query *q, struct pagemap_region *v, size_t max, size_t *n,
		     uint64_t *walked)
{
	uint64_t buf[2048], at = q->start;
	size_t used = 0;
	while (at < q->end) {
		size_t want = (q->end - at) / PAGE_BYTES < ARRAY_LEN(buf) ? (q->end - at) / PAGE_BYTES : ARRAY_LEN(buf);
		ssize_t got = pread(fd, buf, want * 8, (off_t)(at / PAGE_BYTES * 8));
		if (got < 8) {
			errno = got < 0 ? errno : ESRCH;
			return -1;
		}
		for (size_t i = 0; i < (size_t)got / 8; i++, at += PAGE_BYTES) {
			uint64_t is = entry_categories(buf[i]);
			if (!matches(q, is))
				continue;
			if (used && v[used - 1].end == at && v[used - 1].is == (is & q->give)) {
				v[used - 1].end += PAGE_BYTES;
				continue;
			}
			if (used == max)
				goto full;
			v[used++] = (struct pagemap_region){ at, at + PAGE_BYTES, is & q->give };
		}
	}
full:
	*n = used;
	*walked = at;
	return 0;
}

int pagemap_scan(const struct pagemap *pm, const struct pagemap_query *q, struct pagemap_region *v, size_t max,
		 size_t *n, uint64_t *walked)
{
	struct pagemap_query known = *q;
	if (!pm->guard) {
		known.any &= ~(uint64_t)PAGEMAP_GUARD;
		known.give &= ~(uint64_t)PAGEMAP_GUARD;
	}
	if (pm->scan)
		return scan_ioctl(pm->fd, &known, v, max, n, walked);
	if (q->protect || q->must_track) {
		errno = ENOTTY;
		return -1;
	}
	return scan_read(pm->fd, &known, v, max, n, walked);
}
