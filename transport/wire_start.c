#include "wire_start.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int wire_user(const char *name, uid_t *uid, gid_t *gid, struct fault *f)
{
	errno = 0;
	const struct passwd *p = getpwnam(name);
	if (!p) {
		fault_set(f, FAULT_CONFIG, "there is no user %s for the wire process", name);
		return fault_hint(f, "Make one (systemd-sysusers does), or name another.");
	}
	if (p->pw_uid == 0)
		return fault_set(f, FAULT_CONFIG, "the wire process must not run as root (user %s)", name);
	*uid = p->pw_uid;
	*gid = p->pw_gid;
	return 0;
}

/* ---- in the child, between fork and exec: async-signal-safe calls only ---- */

static _Noreturn void child_failed(int control, const char *what)
{
	struct wire_hello h = { .size = sizeof(h) };
	fault_errno(&h.fault, FAULT_SYSTEM, "start the wire process: %s", what);
	ssize_t ignored = send(control, &h, sizeof(h), MSG_NOSIGNAL);
	(void)ignored;
	_exit(2);
}

/* All descriptors to their numbers, everything else closed. Two passes: the first gets them out of each other's way. */
static int child_fds(const struct wire_conf *c, int control)
{
	const struct link_fds *l = c->link;
	int from[] = { control,	    c->sock,	c->ca,	     c->cert,	   c->key,	  l->up_mem,
		       l->down_mem, l->up_data, l->up_space, l->down_data, l->down_space, l->wire_end };
	_Static_assert(ARRAY_LEN(from) == WIRE_FD_END - WIRE_FD_CONTROL, "all descriptors of the wire");
	for (size_t i = 0; i < ARRAY_LEN(from); i++)
		if ((from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, WIRE_FD_END + 16)) < 0)
			return -1;
	int null = open("/dev/null", O_RDWR);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		return -1;
	for (size_t i = 0; i < ARRAY_LEN(from); i++)
		if (dup2(from[i], WIRE_FD_CONTROL + (int)i) < 0)
			return -1;
	return (int)syscall(SYS_close_range, WIRE_FD_END, ~0U, 0);
}

static int child_identity(const struct wire_conf *c, pid_t parent)
{
	const struct rlimit none = { 0, 0 };
	if (setgroups(0, NULL) < 0 || setresgid(c->gid, c->gid, c->gid) < 0 || setresuid(c->uid, c->uid, c->uid) < 0)
		return -1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || setrlimit(RLIMIT_CORE, &none) < 0)
		return -1;
	/* After the change of user, which forgets it; the parent may have died before. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return -1;
	if (getppid() != parent)
		_exit(2);
	return 0;
}

static void child_signals(void)
{
	sigset_t none;
	sigemptyset(&none);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void child(const struct wire_conf *c, int control, pid_t parent, char **argv, char **envp)
{
	child_signals();
	if (child_fds(c, control) < 0)
		child_failed(control, "its descriptors");
	umask(077);
	if (chdir("/") < 0 || child_identity(c, parent) < 0)
		child_failed(WIRE_FD_CONTROL, "its user");
	/* No terminal to write to, and no Ctrl-C that would cut the connection before the worker has said goodbye. */
	setsid();
	execve(c->program, argv, envp);
	child_failed(WIRE_FD_CONTROL, c->program);
}

/* ---- in the warden ---- */

int wire_start(const struct wire_conf *conf, struct wire_proc *proc, struct fault *f)
{
	int ends[2];
	char *argv[] = { (char *)"cpr-wire",
			 (char *)"--role",
			 (char *)(conf->client ? "client" : "server"),
			 conf->expect ? (char *)"--expect" : NULL,
			 (char *)conf->expect,
			 NULL };
	char *envp[] = { NULL };
	if (conf->uid == 0)
		return fault_set(f, FAULT_CONFIG, "the wire process must not run as root");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return fault_errno(f, FAULT_SYSTEM, "control socket of the wire process");
	pid_t parent = getpid(), pid = fork();
	if (pid == 0)
		child(conf, ends[1], parent, argv, envp);
	int e = errno;
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return fault_raise(f, FAULT_WHERE, FAULT_SYSTEM, e, "start the wire process");
	}
	proc->pid = pid;
	proc->control = ends[0];
	return 0;
}

static bool host_name(const char *s, size_t max)
{
	size_t n = strnlen(s, max);
	return n > 0 && n < max && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

/* A string from a process that may have been taken over. */
static void clean_string(char *s, size_t size)
{
	s[size - 1] = '\0';
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
}

static int hello_fault(struct fault *from, struct fault *f)
{
	clean_string(from->what, sizeof(from->what));
	clean_string(from->where, sizeof(from->where));
	clean_string(from->trail, sizeof(from->trail));
	clean_string(from->hint, sizeof(from->hint));
	clean_string(from->object, sizeof(from->object));
	if ((unsigned)from->code >= FAULT_CODE_COUNT || from->code == FAULT_NONE)
		from->code = FAULT_INTERNAL;
	if (f)
		*f = *from;
	return -1;
}

int wire_hello_read(int control, char peer[WIRE_PEER_MAX], struct fault *f)
{
	struct wire_hello h;
	ssize_t n;
	do
		n = recv(control, &h, sizeof(h), MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0)
		return fault_set(f, FAULT_INTERNAL, "the wire process died before it had a connection");
	if ((size_t)n != sizeof(h) || h.size != sizeof(h) || h.up > 1)
		return fault_set(f, FAULT_INTERNAL, "the wire process is of another version, or broken");
	if (!h.up)
		return hello_fault(&h.fault, f);
	if (!host_name(h.peer, sizeof(h.peer)))
		return fault_set(f, FAULT_INTERNAL, "the wire process gave no proper name of its peer");
	memcpy(peer, h.peer, sizeof(h.peer));
	return 1;
}
