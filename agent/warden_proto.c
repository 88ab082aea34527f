#include "warden_proto.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union control {
	char buf[CMSG_SPACE(sizeof(int) * WP_FDS_MAX)];
	struct cmsghdr align;
};

int wp_send(int sock, const void *msg, size_t len, const int *fds, size_t n)
{
	union control c;
	struct iovec iov = { (void *)msg, len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	memset(&c, 0, sizeof(c));
	if (n) {
		m.msg_control = c.buf;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int) * n);
		memcpy(CMSG_DATA(h), fds, sizeof(int) * n);
	}
	ssize_t r;
	do
		r = sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	return r == (ssize_t)len ? 0 : -1;
}

static size_t take_fds(struct msghdr *m, int fds[WP_FDS_MAX])
{
	size_t n = 0;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		size_t got = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < got; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
			if (n < WP_FDS_MAX)
				fds[n++] = fd;
			else
				close(fd);
		}
	}
	return n;
}

int wp_recv(int sock, void *msg, size_t len, int fds[WP_FDS_MAX], size_t *n, int flags)
{
	union control c;
	struct iovec iov = { msg, len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	ssize_t r;
	for (size_t i = 0; i < WP_FDS_MAX; i++)
		fds[i] = -1;
	do
		r = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | flags);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return errno == ECONNRESET ? 0 : -1;
	*n = take_fds(&m, fds);
	if (r == 0)
		return 0;
	uint32_t size;
	if ((size_t)r == len && !(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		memcpy(&size, msg, sizeof(size));
		if (size == len)
			return 1;
	}
	for (size_t i = 0; i < *n; i++)
		util_close(&fds[i]);
	*n = 0;
	errno = EPROTO;
	return -1;
}

void wp_clean(char *s, size_t size)
{
	s[size - 1] = 0;
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			*s = '?';
}

void wp_clean_fault(struct fault *f)
{
	if ((unsigned)f->code >= FAULT_CODE_COUNT || f->code == FAULT_NONE)
		f->code = FAULT_INTERNAL;
	wp_clean(f->what, sizeof(f->what));
	wp_clean(f->where, sizeof(f->where));
	wp_clean(f->trail, sizeof(f->trail));
	wp_clean(f->hint, sizeof(f->hint));
	wp_clean(f->object, sizeof(f->object));
}
