#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void util_close(int *fd)
{
	if (*fd >= 0) {
		int e = errno;
		close(*fd);
		*fd = -1;
		errno = e;
	}
}

void util_free(void *p)
{
	void **pp = p;
	int e = errno;
	free(*pp);
	*pp = NULL;
	errno = e;
}

int util_read_all(int fd, void *buf, size_t len)
{
	char *p = buf;
	while (len > 0) {
		ssize_t n = read(fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0) {
			errno = EPIPE;
			return -1;
		}
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int util_write_all(int fd, const void *buf, size_t len)
{
	const char *p = buf;
	while (len > 0) {
		ssize_t n = write(fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

char *util_read_file(int dirfd, const char *path, size_t *len)
{
	auto_fd fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	size_t cap = 4096, used = 0;
	auto_free char *buf = malloc(cap + 1);
	if (!buf)
		return NULL;
	for (;;) {
		if (used == cap) {
			char *b = realloc(buf, cap * 2 + 1);
			if (!b)
				return NULL;
			buf = b;
			cap *= 2;
		}
		ssize_t n = read(fd, buf + used, cap - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return NULL;
		if (n == 0)
			break;
		used += (size_t)n;
	}
	buf[used] = 0;
	if (len)
		*len = used;
	return take_ptr(buf);
}

int util_write_file(int dirfd, const char *path, const char *text)
{
	auto_fd fd = openat(dirfd, path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -1;
	return util_write_all(fd, text, strlen(text));
}

uint64_t util_clock_ns(int clockid)
{
	struct timespec t;
	clock_gettime(clockid, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t util_monotonic_ns(void)
{
	return util_clock_ns(CLOCK_MONOTONIC);
}

bool util_parse_u64(const char *s, uint64_t max, uint64_t *out)
{
	if (*s < '0' || *s > '9')
		return false;
	char *end;
	errno = 0;
	unsigned long long v = strtoull(s, &end, 0);
	if (errno || *end || v > max)
		return false;
	*out = v;
	return true;
}

int util_grow(void **array, size_t *cap, size_t used, size_t elem)
{
	if (used < *cap)
		return 0;
	size_t n = *cap ? *cap * 2 : 16;
	if (n > SIZE_MAX / elem) {
		errno = ENOMEM;
		return -1;
	}
	void *p = realloc(*array, n * elem);
	if (!p)
		return -1;
	*array = p;
	*cap = n;
	return 0;
}
