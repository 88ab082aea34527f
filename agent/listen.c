#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <unistd.h>

#include "endpoint.h"

void listen_init(struct listeners *l)
{
	*l = (struct listeners){ .api = -1 };
}

void listen_close(struct listeners *l)
{
	util_close(&l->api);
	while (l->n_peers > 0)
		util_close(&l->peer[--l->n_peers]);
}

static int add_peer(struct listeners *l, int fd, struct fault *f)
{
	if (l->n_peers == LISTEN_MAX)
		return fault_set(f, FAULT_CONFIG, "more than %d sockets to listen on", LISTEN_MAX);
	l->peer[l->n_peers++] = fd;
	return 0;
}

static int take_one(struct listeners *l, int fd, const char *name, struct fault *f)
{
	int family, listening = 0, type = 0;
	socklen_t len = sizeof(int);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return fault_errno(f, FAULT_CONFIG, "descriptor %d (%s) of LISTEN_FDS", fd, name);
	bool tcp = family == AF_INET || family == AF_INET6;
	if (!listening || type != SOCK_STREAM || (!tcp && family != AF_UNIX)) {
		fault_set(f, FAULT_CONFIG, "descriptor %d (%s) of LISTEN_FDS is not a listening stream socket", fd,
			  name);
		return fault_hint(f, "Use ListenStream= and Accept=no in the socket unit.");
	}
	bool api = !strcmp(name, "api");
	if ((api && tcp) || (!strcmp(name, "peer") && !tcp))
		return fault_set(f, FAULT_CONFIG, "descriptor %d of LISTEN_FDS is named \"%s\" but is a %s socket", fd,
				 name, tcp ? "TCP" : "unix");
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set the flags of descriptor %d", fd);
	if (tcp)
		return add_peer(l, fd, f);
	if (l->api >= 0)
		return fault_set(f, FAULT_CONFIG, "LISTEN_FDS has more than one unix socket");
	l->api = fd;
	return 0;
}

static void clear_variables(void)
{
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
}

int listen_take(struct listeners *l, int first_fd, struct fault *f)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS"), *all = getenv("LISTEN_FDNAMES");
	uint64_t n, p;
	if (!pid || !count || !util_parse_u64(pid, INT32_MAX, &p) || (pid_t)p != getpid())
		return 0;
	if (!util_parse_u64(count, LISTEN_MAX, &n))
		return fault_set(f, FAULT_CONFIG, "LISTEN_FDS=%.20s is not a number up to %d", count, LISTEN_MAX);
	auto_free char *names = strdup(all ? all : "");
	char *rest = names;
	int r = 0;
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		const char *name = rest ? strsep(&rest, ":") : "";
		r = take_one(l, first_fd + (int)i, name && *name ? name : "unnamed", f);
	}
	clear_variables();
	return r;
}

void listen_close_others(const struct listeners *l, int first_fd)
{
	size_t taken = l->n_peers + (l->api >= 0); /* they are neighbours */
	if (close_range((unsigned)first_fd + (unsigned)taken, ~0u, 0) < 0)
		return; /* Linux before 5.9 */
}

static int unix_address(const char *path, struct sockaddr_un *sa, struct fault *f)
{
	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(sa->sun_path)) {
		fault_set(f, FAULT_CONFIG, "the path of the API socket is longer than %zu characters: %s",
			  sizeof(sa->sun_path) - 1, path);
		return fault_hint(f, "Give a shorter one with --api.");
	}
	memcpy(sa->sun_path, path, strlen(path) + 1);
	return 0;
}

/* A socket file that nobody listens on is left over from an agent that died; one that answers is another agent. */
static int clear_stale(const char *path, const struct sockaddr_un *sa, struct fault *f)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : fault_errno(f, FAULT_CONFIG, "look at %s", path);
	if (!S_ISSOCK(st.st_mode)) {
		fault_set(f, FAULT_CONFIG, "%s exists and is not a socket", path);
		return fault_hint(f, "Remove it, or give another path with --api.");
	}
	auto_fd probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a unix socket");
	if (connect(probe, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno == EAGAIN) {
		fault_set(f, FAULT_BUSY, "another cpr-agent serves %s", path);
		return fault_hint(f, "Stop it first, or give this one another --api path.");
	}
	if (unlink(path) < 0)
		return fault_errno(f, FAULT_CONFIG, "remove the left-over socket %s", path);
	return 0;
}

static int make_dir_of(const char *path, struct fault *f)
{
	auto_free char *dir = strdup(path);
	char *slash = dir ? strrchr(dir, '/') : NULL;
	if (!slash || slash == dir)
		return 0;
	*slash = 0;
	if (mkdir(dir, 0755) < 0 && errno != EEXIST)
		return fault_errno(f, FAULT_CONFIG, "make the directory %s of the API socket", dir);
	return 0;
}

/* Who may connect is decided by SO_PEERCRED (policy_api); the mode keeps those away that no rule can let in. */
static int open_api(struct listeners *l, const struct conf *c, uid_t owner, struct fault *f)
{
	struct sockaddr_un sa;
	if (unix_address(c->api, &sa, f) < 0 || make_dir_of(c->api, f) < 0 || clear_stale(c->api, &sa, f) < 0)
		return -1;
	auto_fd fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a unix socket");
	mode_t old = umask(0177);
	int r = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
	umask(old);
	if (r < 0) {
		fault_errno(f, FAULT_CONFIG, "bind the API socket %s", c->api);
		return fault_hint(f, "Make its directory, or give another path with --api.");
	}
	if ((owner != (uid_t)-1 && chown(c->api, owner, (gid_t)-1) < 0) ||
	    chmod(c->api, c->api_uid ? 0666 : 0600) < 0 || listen(fd, 64) < 0)
		return fault_errno(f, FAULT_SYSTEM, "set up the API socket %s", c->api);
	l->api = take_fd(&fd);
	l->api_ours = true;
	return 0;
}

static int open_peer(struct listeners *l, const char *text, struct fault *f)
{
	struct endpoint e;
	int one = 1, zero = 0;
	if (endpoint_parse(text, &e, f) < 0)
		return -1;
	auto_fd fd = socket(e.addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 && errno == EAFNOSUPPORT && e.addr.ss_family == AF_INET6) {
		fault_errno(f, FAULT_CONFIG, "listen on %s", text);
		return fault_hint(f, "This host has no IPv6: give an IPv4 address, like --listen 0.0.0.0:7077.");
	}
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    (e.addr.ss_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)) < 0))
		return fault_errno(f, FAULT_SYSTEM, "set up the socket for %s", text);
	if (bind(fd, (struct sockaddr *)&e.addr, e.len) < 0 || listen(fd, 64) < 0) {
		fault_errno(f, FAULT_CONFIG, "listen on %s", text);
		return fault_hint(f, "Find who has the address with \"ss -ltnp\", or give another one with --listen.");
	}
	return add_peer(l, take_fd(&fd), f);
}

int listen_open(struct listeners *l, const struct conf *c, uid_t owner, struct fault *f)
{
	if (l->api < 0 && open_api(l, c, owner, f) < 0)
		return -1;
	for (size_t i = 0; l->n_peers == i && c->listen && c->listen[i]; i++)
		if (open_peer(l, c->listen[i], f) < 0)
			return -1;
	return 0;
}

void listen_notify(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(sa.sun_path))
		return;
	memcpy(sa.sun_path, path, strlen(path));
	socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (sa.sun_path[0] == '@')
		sa.sun_path[0] = 0; /* abstract */
	auto_fd fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&sa, len) < 0)
		return; /* nobody listens: nobody waits */
}
