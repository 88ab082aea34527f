/*
 * What no kind claims, by name: what it is, and what the user can do about it.
 */
#include "fdtab.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

struct refusal {
	const char *prefix; /* of the link of /proc/PID/fd/N */
	const char *what;
	const char *reason;
	const char *remedy;
};

static const struct refusal links[] = {
	{ "anon_inode:[io_uring]", "io_uring instance", "its rings and requests under way can't be moved yet",
	  "most programs have a switch for epoll instead of io_uring" },
	{ "anon_inode:inotify", "inotify instance", "watches and unread events can't be moved yet",
	  "turn off watching of files, if the program has a switch for it" },
	{ "anon_inode:[fanotify]", "fanotify group", "marks and unread events can't be moved yet", NULL },
	{ "anon_inode:[userfaultfd]", "userfaultfd", "memory that the program itself pages can't be moved yet", NULL },
	{ "anon_inode:bpf", "BPF object", "programs and maps loaded into this kernel stay here",
	  "detach and close it before the migration" },
	{ "anon_inode:bpf_", "BPF object", "programs and maps loaded into this kernel stay here", NULL },
	{ "anon_inode:[perf_event]", "perf event", "counters of this host's CPUs can't be moved",
	  "stop profiling the process" },
	{ "anon_inode:[pidfd]", "pidfd", "it names a process of this host that does not move along", NULL },
	{ "pidfd:", "pidfd", "it names a process of this host that does not move along", NULL },
	{ "anon_inode:seccomp notify", "seccomp listener", "it answers for processes of this host", NULL },
	{ "anon_inode:kvm", "KVM object", "a virtual machine can't be moved this way",
	  "use the migration of the virtual machine monitor" },
	{ "anon_inode:[landlock-ruleset]", "Landlock ruleset", "rulesets can't be moved yet", NULL },
	{ "anon_inode:dmabuf", "DMA buffer", "memory of a device of this host can't be moved", NULL },
	{ "/dmabuf:", "DMA buffer", "memory of a device of this host can't be moved", NULL },
	{ "anon_inode:sync_file", "device fence", "it belongs to a device of this host", NULL },
	{ "anon_inode:[fscontext]", "mount in the making", "it belongs to this host's mounts", NULL },
	{ "/secretmem", "memfd_secret", "its content can't be read by anyone but the program", NULL },
	{ "/anon_hugepage", "memfd of huge pages", "huge pages of hugetlbfs can't be moved yet",
	  "use ordinary or transparent huge pages" },
	{ "mnt:[", "namespace", "it names a namespace of this host", NULL },
	{ "net:[", "namespace", "it names a namespace of this host", NULL },
	{ "pid:[", "namespace", "it names a namespace of this host", NULL },
	{ "user:[", "namespace", "it names a namespace of this host", NULL },
	{ "uts:[", "namespace", "it names a namespace of this host", NULL },
	{ "ipc:[", "namespace", "it names a namespace of this host", NULL },
	{ "time:[", "namespace", "it names a namespace of this host", NULL },
	{ "cgroup:[", "namespace", "it names a namespace of this host", NULL },
};

struct family {
	int family, type;
	const char *what, *reason, *remedy;
};

#define ANY (-1)
static const struct family families[] = {
	{ AF_UNIX, ANY, "unix socket", "its other end is a process of this host",
	  "connect over TCP, or close the connection (syslog, D-Bus, a database's local socket) first" },
	{ AF_NETLINK, ANY, "netlink socket", "what it has asked of this kernel can't be moved yet", NULL },
	{ AF_PACKET, ANY, "packet socket", "raw packets of this host's devices can't be moved yet",
	  "end the packet capture" },
	{ AF_INET, SOCK_RAW, "raw IPv4 socket", "raw sockets can't be moved yet", NULL },
	{ AF_INET6, SOCK_RAW, "raw IPv6 socket", "raw sockets can't be moved yet", NULL },
	{ AF_INET, ANY, "IPv4 socket", "this protocol can't be moved yet", NULL },
	{ AF_INET6, ANY, "IPv6 socket", "this protocol can't be moved yet", NULL },
	{ AF_VSOCK, ANY, "vsock socket", "it is a connection to this host's hypervisor", NULL },
	{ AF_ALG, ANY, "kernel crypto socket", "keys inside this kernel can't be moved", NULL },
	{ AF_XDP, ANY, "AF_XDP socket", "it is bound to a queue of a device of this host", NULL },
	{ AF_BLUETOOTH, ANY, "Bluetooth socket", "it is bound to a device of this host", NULL },
	{ AF_CAN, ANY, "CAN socket", "it is bound to a device of this host", NULL },
	{ AF_TIPC, ANY, "TIPC socket", "this protocol can't be moved yet", NULL },
};

static void refuse(const struct fd_info *i, const char *what, const char *reason, const char *remedy,
		   struct report *report)
{
	char object[FD_OBJECT_LEN];
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, what), remedy, "%s", reason);
}

static void refuse_socket(const struct fd_info *i, struct report *report)
{
	int domain = -1, type = -1;
	socklen_t len = sizeof(int);
	if (getsockopt(i->dup, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0)
		getsockopt(i->dup, SOL_SOCKET, SO_TYPE, &type, &len);
	for (size_t k = 0; k < ARRAY_LEN(families); k++) {
		const struct family *m = &families[k];
		if (m->family == domain && (m->type == ANY || m->type == type)) {
			refuse(i, m->what, m->reason, m->remedy, report);
			return;
		}
	}
	char object[FD_OBJECT_LEN];
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, "socket"), NULL,
		   "sockets of family %d can't be moved yet", domain);
}

void refuse_fd(const struct fd_info *i, struct report *report)
{
	if (S_ISSOCK(i->st.st_mode) && !strncmp(i->link, "socket:", 7)) {
		refuse_socket(i, report);
		return;
	}
	for (size_t k = 0; k < ARRAY_LEN(links); k++)
		if (!strncmp(i->link, links[k].prefix, strlen(links[k].prefix))) {
			refuse(i, links[k].what, links[k].reason, links[k].remedy, report);
			return;
		}
	if (S_ISBLK(i->st.st_mode)) {
		refuse(i, "block device", "devices of this host can't be moved", NULL, report);
		return;
	}
	char object[FD_OBJECT_LEN];
	report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, fd_object(object, i->fd, "unknown kind"), NULL,
		   "%.200s can't be moved yet", i->link);
}
