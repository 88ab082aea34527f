/* Echoes whatever comes over TCP, IPv4 and IPv6, slowly, so that queues are never empty in both directions; epoll, many
 * connections. argv[2], argv[3]: addresses; port 7700. Clients check the bytes. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "victim.h"

#define MAX 1024
static struct conn {
	char buf[8192];
	size_t have;
	bool eof;
} * conns[MAX];
static int ep;

static int listen_on(int family, const char *addr)
{
	struct sockaddr_storage ss = { .ss_family = (sa_family_t)family };
	socklen_t len;
	int s = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (family == AF_INET) {
		struct sockaddr_in *a = (struct sockaddr_in *)&ss;
		inet_pton(family, addr, &a->sin_addr);
		a->sin_port = htons(7700);
		len = sizeof(*a);
	} else {
		struct sockaddr_in6 *a = (struct sockaddr_in6 *)&ss;
		setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
		inet_pton(family, addr, &a->sin6_addr);
		a->sin6_port = htons(7700);
		len = sizeof(*a);
	}
	if (bind(s, (struct sockaddr *)&ss, len) < 0 || listen(s, 128) < 0) {
		victim_check(false, "listen on %s: %s", addr, strerror(errno));
		victim_done();
	}
	epoll_ctl(ep, EPOLL_CTL_ADD, s, &(struct epoll_event){ .events = EPOLLIN, .data.fd = s });
	return s;
}

static void accept_one(int l)
{
	int c = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
	if (c < 0)
		return;
	if (c >= MAX) {
		close(c);
		return;
	}
	setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	conns[c] = calloc(1, sizeof(struct conn));
	epoll_ctl(ep, EPOLL_CTL_ADD, c, &(struct epoll_event){ .events = EPOLLIN | EPOLLOUT, .data.fd = c });
}

static void end(int s)
{
	close(s);
	free(conns[s]);
	conns[s] = NULL;
}

static void serve(int s)
{
	struct conn *c = conns[s];
	if (c->have < sizeof(c->buf) && !c->eof) {
		size_t room = sizeof(c->buf) - c->have;
		ssize_t n = recv(s, c->buf + c->have, room < 1500 ? room : 1500, 0);
		if (n > 0)
			c->have += (size_t)n;
		else if (n == 0)
			c->eof = true;
		else if (errno != EAGAIN)
			victim_check(false, "recv: %s", strerror(errno));
	}
	if (c->have) {
		ssize_t n = send(s, c->buf, c->have, MSG_NOSIGNAL);
		if (n > 0) {
			memmove(c->buf, c->buf + n, c->have - (size_t)n);
			c->have -= (size_t)n;
		} else if (n < 0 && errno != EAGAIN) {
			victim_check(false, "send: %s", strerror(errno));
		}
	}
	if (c->eof && !c->have)
		end(s);
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	ep = epoll_create1(EPOLL_CLOEXEC);
	int l4 = listen_on(AF_INET, argv[2]), l6 = argc > 3 ? listen_on(AF_INET6, argv[3]) : -1;
	victim_ready();
	while (victim_running()) {
		struct epoll_event e[64];
		int n = epoll_wait(ep, e, 64, 20);
		victim_check(n >= 0, "epoll_wait: %s", strerror(errno));
		for (int i = 0; i < n; i++)
			if (e[i].data.fd == l4 || e[i].data.fd == l6)
				accept_one(e[i].data.fd);
			else if (conns[e[i].data.fd])
				serve(e[i].data.fd);
	}
	victim_done();
}
