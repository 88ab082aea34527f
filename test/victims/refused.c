/* Holds several things that can't be moved: an inotify instance, a unix socket, a terminal-less pipe to its parent (the
 * other end is held by a child that is not moved). All of them have to be named at once. */
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "victim.h"

int main(int argc, char **argv)
{
	int s[2];
	victim_init(argc, argv);
	int in = inotify_init1(IN_CLOEXEC);
	inotify_add_watch(in, "/usr", IN_CREATE);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) < 0)
		return 3;
	victim_ready();
	while (victim_running())
		usleep(1000);
	victim_done();
}
