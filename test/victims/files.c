/* Regular files, directories and devices by path, with offsets and flags; descriptors shared by dup and by threads. */
#include <dirent.h>
#include <sys/sendfile.h>

#include "victim.h"

static int rd, dup_of_rd, ap, dir, null, zero, urandom, odd;

static void *reader(void *arg)
{
	(void)arg;
	char c;
	while (!victim_failed) { /* shares rd's offset with the main thread */
		off_t before = lseek(rd, 0, SEEK_CUR);
		victim_check(before >= 0, "lseek in a thread: %s", strerror(errno));
		victim_check(read(zero, &c, 1) == 1 && c == 0, "/dev/zero");
		usleep(500);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	char path[300];
	pthread_t t;
	victim_init(argc, argv);
	victim_path(path, sizeof(path), "data");
	int w = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	for (int i = 0; i < 100000; i++)
		if (dprintf(w, "%07d\n", i) != 8)
			return 3;
	rd = open(path, O_RDONLY);
	close(w);
	dup_of_rd = dup2(rd, 200);
	odd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	lseek(odd, 4096, SEEK_SET);
	victim_path(path, sizeof(path), "log");
	ap = open(path, O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0600);
	dir = open("/usr", O_RDONLY | O_DIRECTORY);
	null = open("/dev/null", O_RDWR);
	zero = open("/dev/zero", O_RDONLY);
	urandom = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	pthread_create(&t, NULL, reader, NULL);
	victim_ready();
	int n = 0, lines = 0;
	while (victim_running()) {
		char buf[16] = "", want[16];
		int fd = n & 1 ? rd : dup_of_rd;
		victim_check(read(fd, buf, 8) == 8, "read: %s", strerror(errno));
		snprintf(want, sizeof(want), "%07d\n", n % 100000);
		victim_check(!strcmp(buf, want), "read %.7s, not %.7s", buf, want);
		n++;
		if (n % 100000 == 0)
			lseek(rd, 0, SEEK_SET);
		victim_check(lseek(odd, 0, SEEK_CUR) == 4096, "another file's offset moved");
		victim_check((fcntl(odd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_APPEND)) == (O_RDWR | O_NONBLOCK),
			     "flags %o", fcntl(odd, F_GETFL));
		victim_check(fcntl(odd, F_GETFD) == FD_CLOEXEC && fcntl(rd, F_GETFD) == 0, "close-on-exec flags");
		if (n % 100 == 0) {
			victim_check(dprintf(ap, "line %06d\n", lines++) == 12, "append: %s", strerror(errno));
			victim_check(write(null, "x", 1) == 1, "/dev/null: %s", strerror(errno));
			victim_check(read(urandom, buf, 8) == 8, "/dev/urandom: %s", strerror(errno));
			struct stat st;
			victim_check(fstatat(dir, "bin", &st, 0) == 0, "a directory descriptor: %s", strerror(errno));
			usleep(100);
		}
	}
	victim_path(path, sizeof(path), "log");
	int log = open(path, O_RDONLY);
	char line[16] = "", want[24];
	for (int i = 0; i < lines; i++) {
		snprintf(want, sizeof(want), "line %06d\n", i);
		victim_check(read(log, line, 12) == 12 && !memcmp(line, want, 12), "line %d of the log", i);
	}
	victim_done();
}
