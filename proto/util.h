/*
 * Small helpers that every layer uses: scope cleanup, whole reads and writes, numbers.
 */
#ifndef PROTO_UTIL_H
#define PROTO_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ARRAY_LEN(a)	  (sizeof(a) / sizeof((a)[0]))
#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define MUST_CHECK	  __attribute__((warn_unused_result))
#define PAGE_BYTES	  ((size_t)4096)

void util_close(int *fd); /* closes when >= 0, keeps errno */
void util_free(void *p);  /* p is the address of a pointer from malloc(3) */

#define auto_fd	  __attribute__((cleanup(util_close))) int
#define auto_free __attribute__((cleanup(util_free)))

/* Hand an fd (a pointer) on: the variable no longer owns it. */
static inline int take_fd(int *fd)
{
	int r = *fd;
	*fd = -1;
	return r;
}
#define take_ptr(p)                            \
	({                                     \
		__typeof__(p) take_tmp_ = (p); \
		(p) = NULL;                    \
		take_tmp_;                     \
	})

/* Whole transfers, restarted after EINTR. 0, or -1 with errno (EPIPE at an early end of file). */
int util_read_all(int fd, void *buf, size_t len) MUST_CHECK;
int util_write_all(int fd, const void *buf, size_t len) MUST_CHECK;
/* A small file (procfs, sysfs) as a string in malloc'ed memory; *len excludes the final NUL. NULL with errno. */
char *util_read_file(int dirfd, const char *path, size_t *len) MUST_CHECK;
int util_write_file(int dirfd, const char *path, const char *text) MUST_CHECK; /* O_WRONLY|O_TRUNC, no create */

uint64_t util_monotonic_ns(void);
uint64_t util_clock_ns(int clockid);
/* A decimal or 0x number that is the whole string; false when it is not or is above max. */
bool util_parse_u64(const char *s, uint64_t max, uint64_t *out) MUST_CHECK;
/* realloc of an array by doubling: room for at least one more. 0, or -1 with ENOMEM. */
int util_grow(void **array, size_t *cap, size_t used, size_t elem) MUST_CHECK;

#endif
