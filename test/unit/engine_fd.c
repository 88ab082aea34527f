/*
 * Descriptors there and back: a victim that holds some is stopped and saved, killed, and a vessel of the same PID gets
 * what was saved, through packed image entries. Then everything /proc says about both is compared, and the contents
 * are read.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sched.h>
#include <pthread.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cmocka.h>

#include "fdtab.h"
#include "files_check.h"
#include "image.h"

static struct fault f;
#define OK(x)                                                                                           \
	do {                                                                                            \
		if ((x) < 0)                                                                            \
			fail_msg("%s: %s: %s, while %s", #x, fault_code_name(f.code), f.what, f.trail); \
	} while (0)

static char dir[64];

/* ---- the victim ---- */

static struct {
	volatile int ready;
	volatile int value[16];
} * sh;

static void need(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "victim: %s: %s\n", what, strerror(errno));
		_exit(3);
	}
}
#define NEED(x) need((x), #x)

/* Puts fd at a number. */
static int at(int fd, int number, bool cloexec)
{
	need(fd >= 0, "open");
	if (fd == number) {
		fcntl(fd, F_SETFD, cloexec ? FD_CLOEXEC : 0);
		return number;
	}
	NEED(dup3(fd, number, cloexec ? O_CLOEXEC : 0) == number);
	close(fd);
	return number;
}

static char *in_dir(const char *name)
{
	static char path[4][128];
	static int n;
	char *p = path[n++ & 3];
	snprintf(p, 128, "%s/%s", dir, name);
	return p;
}

static pid_t start(void (*make)(void), uid_t uid)
{
	sh->ready = 0;
	pid_t pid = fork();
	if (pid == 0) {
		syscall(SYS_close_range, 3, ~0u, 0);
		int err = dup3(2, 900, O_CLOEXEC);
		syscall(SYS_close_range, 0, 2, 0);
		dup2(err, 2); /* so that NEED can speak until all is made */
		close(err);
		setsid();
		if (uid)
			NEED(setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make();
		close(2);
		sh->ready = 1;
		for (;;)
			pause();
	}
	assert_true(pid > 0);
	for (int i = 0; i < 5000 && !sh->ready; i++) {
		int status;
		if (waitpid(pid, &status, WNOHANG) == pid)
			fail_msg("the victim ended with 0x%x", status);
		usleep(1000);
	}
	assert_true(sh->ready);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* ---- what /proc says ---- */

struct seen {
	size_t n;
	int fd[1200];
	char *text[1200];
};

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A line as it may be compared, or false. */
static bool comparable(char *line)
{
	static const char *const skip[] = { "mnt_id:", "ino:", "eventfd-id:", "it_value:" };
	for (size_t i = 0; i < ARRAY_LEN(skip); i++)
		if (!strncmp(line, skip[i], strlen(skip[i])))
			return false;
	char *pos = strstr(line, " pos:");
	if (!strncmp(line, "tfd:", 4) && pos)
		*pos = 0;
	return true;
}

static char *describe(pid_t pid, int fd)
{
	char path[64], link[4096], *lines[1100], *out = NULL;
	size_t n = 0, len = 0;
	struct stat st;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
	ssize_t k = readlink(path, link, sizeof(link) - 1);
	assert_true(k > 0 && stat(path, &st) == 0);
	link[k] = 0;
	if (!strncmp(link, "pipe:[", 6))
		link[5] = 0;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
	char *text = util_read_file(AT_FDCWD, path, NULL);
	assert_non_null(text);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (comparable(line))
			lines[n++] = line;
	qsort(lines, n, sizeof(*lines), by_text);
	FILE *o = open_memstream(&out, &len);
	fprintf(o, "%s mode %o uid %u gid %u\n", link, st.st_mode, st.st_uid, st.st_gid);
	for (size_t i = 0; i < n; i++)
		fprintf(o, "%s\n", lines[i]);
	fclose(o);
	free(text);
	return out;
}

static void look(pid_t pid, struct seen *s)
{
	char path[64];
	s->n = 0;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.' && s->n < ARRAY_LEN(s->fd))
			s->fd[s->n++] = atoi(e->d_name);
	closedir(d);
	for (size_t i = 0; i < s->n; i++)
		for (size_t k = i + 1; k < s->n; k++)
			if (s->fd[k] < s->fd[i]) {
				int t = s->fd[i];
				s->fd[i] = s->fd[k];
				s->fd[k] = t;
			}
	for (size_t i = 0; i < s->n; i++)
		s->text[i] = describe(pid, s->fd[i]);
}

static void forget(struct seen *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->text[i]);
	s->n = 0;
}

static void same(const struct seen *a, const struct seen *b, const char *when)
{
	for (size_t i = 0; i < a->n && i < b->n; i++) {
		if (a->fd[i] != b->fd[i])
			fail_msg("%s: fd %d against %d", when, a->fd[i], b->fd[i]);
		if (strcmp(a->text[i], b->text[i]))
			fail_msg("%s: fd %d was\n%sand is\n%s", when, a->fd[i], a->text[i], b->text[i]);
	}
	if (a->n != b->n)
		fail_msg("%s: %zu descriptors against %zu", when, a->n, b->n);
}

static bool shared(pid_t pid, int a, int b)
{
	return syscall(SYS_kcmp, pid, pid, KCMP_FILE, a, b) == 0;
}

/* ---- there ---- */

static uint64_t save_ns, restore_ns;
static pid_t victim;
static struct process *p;
static struct image *img;
static struct filetab *files;
static struct report report;
static struct seen before;

static struct report checked(void)
{
	struct report r;
	struct arena *a = arena_new();
	struct fd_needs needs = { .a = a };
	report_init(&r);
	OK(fdtab_check(p, &r, &needs, &f));
	files_add_digests(needs.files, needs.n_files, a);
	Cpr__Offer offer = CPR__OFFER__INIT;
	offer.files = needs.files;
	offer.n_files = needs.n_files;
	OK(files_check_target(&offer, &r, &f)); /* this host has them all */
	arena_free(a);
	return r;
}

static void seize(void (*make)(void), uid_t uid)
{
	victim = start(make, uid);
	OK(process_open(&p, victim, &f));
	OK(process_stop(p, &f));
}

static void let_go(void)
{
	OK(process_release(p, &f));
	process_close(p);
	end(victim);
}

static void save(void)
{
	struct remote *r;
	struct seen after;
	struct filetab *t = filetab_new();
	struct image *i = image_new();
	look(victim, &before);
	struct report found = checked();
	for (size_t k = 0; k < found.n; k++)
		fail_msg("%s: %s", found.findings[k].object, found.findings[k].reason);
	report_done(&found);
	OK(remote_open(p, NULL, 0, &r, &f));
	struct fd_save s = { .p = p, .r = r, .files = t, .img = i, .report = &report };
	save_ns = util_monotonic_ns();
	OK(fdtab_save(&s, FD_PHASE_LOCAL, &f));
	s.r = NULL;
	OK(fdtab_save(&s, FD_PHASE_NETWORK, &f));
	save_ns = util_monotonic_ns() - save_ns;
	OK(remote_close(r, &f));
	OK(filetab_put(t, i, &f));
	look(victim, &after);
	same(&before, &after, "saving changed the process");
	forget(&after);
	/* over the wire */
	img = image_new();
	files = filetab_new();
	for (size_t k = 0; k < image_count(i); k++) {
		const struct image_entry *e = image_at(i, k);
		OK(image_load(img, e->type, e->id, e->packed, e->packed_len, e->extra, e->extra_len, &f));
		if (e->type == IMAGE_FILES)
			OK(filetab_load(files, e->packed, e->packed_len, &f));
	}
	image_free(i);
	filetab_free(t);
}

/* ---- and back ---- */

static struct vessel *v;

static void restore_with(const MmEntry *mm, int *objects, size_t n)
{
	struct seen after;
	struct vessel_spec spec = { .pid = victim, .cgroup_fd = -1 };
	process_close(p);
	end(victim);
	OK(vessel_new(&spec, &v, &f));
	struct fd_restore r = {
		.img = img,
		.files = files,
		.v = v,
		.pid = victim,
		.mm = mm,
		.objects = objects,
		.n_objects = n,
		.report = &report,
	};
	restore_ns = util_monotonic_ns();
	OK(fdtab_restore(&r, &f));
	restore_ns = util_monotonic_ns() - restore_ns;
	p = vessel_process(v);
	look(victim, &after);
	same(&before, &after, "restored");
	forget(&after);
	forget(&before);
}

static void restore(void)
{
	restore_with(NULL, NULL, 0);
}

static void discard(void)
{
	vessel_discard(v);
	image_free(img);
	filetab_free(files);
	img = NULL;
	report_done(&report);
}

static int get(int fd)
{
	int dup = process_getfd(p, fd, &f);
	OK(dup);
	return dup;
}

static void reads(int fd, const char *want, size_t len)
{
	char buf[8192];
	auto_fd dup = get(fd);
	fcntl(dup, F_SETFL, fcntl(dup, F_GETFL) | O_NONBLOCK);
	ssize_t n = read(dup, buf, sizeof(buf));
	assert_int_equal(n, len);
	assert_memory_equal(buf, want, len);
}

/* ---- files ---- */

static void make_files(void)
{
	int fd = at(open(in_dir("data"), O_RDONLY), 5, false);
	lseek(fd, 17, SEEK_SET);
	NEED(dup2(fd, 200) == 200);
	NEED(fcntl(fd, F_DUPFD_CLOEXEC, 333) == 333);
	fd = at(open(in_dir("data"), O_RDWR | O_NONBLOCK), 7, true);
	lseek(fd, 4096, SEEK_SET);
	at(open(in_dir("data"), O_RDONLY), 8, false); /* the same file, another description */
	at(open(in_dir("log"), O_WRONLY | O_APPEND), 9, false);
	at(open(in_dir("data"), O_RDWR | O_SYNC), 10, true);
	at(open(in_dir("data"), O_RDWR | O_DSYNC | O_DIRECT), 11, true);
	at(open(in_dir("data"), O_RDONLY | O_NOFOLLOW | O_NOATIME), 12, false);
	at(open(in_dir("data"), O_PATH), 13, false);
	at(open(dir, O_PATH | O_DIRECTORY), 14, true);
	at(open(in_dir("link"), O_PATH | O_NOFOLLOW), 15, false);
	at(open(dir, O_RDONLY | O_DIRECTORY), 16, true);
	fd = at(open(dir, O_RDONLY | O_DIRECTORY), 17, false);
	char buf[65536];
	while (getdents64(fd, buf, sizeof(buf)) > 0)
		;
	at(open(in_dir("odd (deleted)"), O_RDONLY), 18, false);
	at(open("/dev/null", O_RDWR), 0, false);
	at(open("/dev/zero", O_RDONLY | O_CLOEXEC), 20, true);
	at(open("/dev/full", O_WRONLY | O_APPEND), 21, false);
	at(open("/dev/random", O_RDONLY | O_NONBLOCK), 22, false);
	at(open("/dev/urandom", O_RDONLY), 23, false);
	fd = at(open("/proc/meminfo", O_RDONLY), 24, false);
	NEED(read(fd, buf, 10) == 10);
	char own[64];
	snprintf(own, sizeof(own), "/proc/%d/stat", (int)getpid());
	at(open(own, O_RDONLY), 25, false);
	NEED(chdir(dir) == 0);
	umask(0137);
}

static void check_fs(void)
{
	char path[64], link[256];
	snprintf(path, sizeof(path), "/proc/%d/cwd", victim);
	ssize_t n = readlink(path, link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = 0;
	assert_string_equal(link, dir);
	snprintf(path, sizeof(path), "/proc/%d/status", victim);
	char *status = util_read_file(AT_FDCWD, path, NULL);
	assert_non_null(strstr(status, "Umask:\t0137"));
	free(status);
}

static void files_as(uid_t uid)
{
	seize(make_files, uid);
	save();
	restore();
	assert_true(shared(victim, 5, 200) && shared(victim, 5, 333));
	assert_false(shared(victim, 5, 8));
	check_fs();
	auto_fd a = get(5), b = get(200);
	char c;
	assert_int_equal(read(a, &c, 1), 1);
	assert_int_equal(lseek(b, 0, SEEK_CUR), 18);
	discard();
}

static void test_files(void **state)
{
	(void)state;
	files_as(0);
}

static void test_files_of_a_user(void **state)
{
	(void)state;
	files_as(1000);
}

/* ---- pipes ---- */

static void make_pipes(void)
{
	int a[2], b[2], c[2], d[2], e[2], g[2];
	char buf[9000], self[40];
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 + i / 256);
	NEED(pipe2(a, O_NONBLOCK) == 0 && pipe2(b, O_DIRECT) == 0 && pipe(c) == 0 && pipe2(d, O_CLOEXEC) == 0);
	NEED(fcntl(a[1], F_SETPIPE_SZ, 131072) == 131072);
	NEED(write(a[1], buf, 9000) == 9000 && read(a[0], buf, 1000) == 1000);
	at(a[0], 30, false);
	at(a[1], 31, true);
	NEED(write(b[1], "one", 3) == 3 && write(b[1], "2", 1) == 1 && write(b[1], "three", 5) == 5);
	fcntl(b[1], F_SETFL, 0);
	NEED(write(b[1], "stream", 6) == 6);
	fcntl(b[1], F_SETFL, O_DIRECT);
	NEED(write(b[1], "last", 4) == 4);
	at(b[0], 32, false);
	at(b[1], 33, false);
	/* only the write end, and the pipe opened once more through /proc */
	NEED(write(c[1], "nobody reads", 12) == 12);
	close(c[0]);
	at(c[1], 34, false);
	NEED(write(d[1], "both", 4) == 4);
	at(d[0], 36, true);
	at(d[1], 37, true);
	snprintf(self, sizeof(self), "/proc/self/fd/%d", 36);
	at(open(self, O_RDWR), 38, false);
	at(open(self, O_RDONLY | O_NONBLOCK), 39, false);
	/* a single packet: nothing but the flag of the writer tells */
	NEED(pipe2(e, O_DIRECT) == 0 && write(e[1], "single", 6) == 6);
	at(e[0], 40, false);
	at(e[1], 41, false);
	/* the same without a writer: the copy of the pipe tells */
	NEED(pipe2(e, O_DIRECT) == 0 && write(e[1], "alone", 5) == 5);
	close(e[1]);
	at(e[0], 43, false);
	/* a closed write end, and a full pipe */
	NEED(pipe(g) == 0);
	fcntl(g[1], F_SETFL, O_NONBLOCK);
	while (write(g[1], buf, 4096) > 0)
		;
	close(g[1]);
	at(g[0], 42, false);
	fchmod(30, 0644);
}

static void pipes_as(uid_t uid)
{
	char buf[9000];
	seize(make_pipes, uid);
	save();
	restore();
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 + i / 256);
	auto_fd a = get(30);
	assert_int_equal(fcntl(a, F_GETPIPE_SZ), 131072);
	reads(30, buf + 1000, 8000);
	reads(32, "one", 3);
	reads(32, "2", 1);
	reads(32, "three", 5);
	auto_fd b = get(32);
	assert_int_equal(read(b, buf, 4), 4);
	assert_memory_equal(buf, "stre", 4);
	assert_int_equal(read(b, buf, 100), 6); /* stream data and the packet behind it, as on the source */
	assert_memory_equal(buf, "amlast", 6);
	char self[64];
	snprintf(self, sizeof(self), "/proc/%d/fd/34", victim);
	auto_fd c = open(self, O_RDONLY | O_NONBLOCK);
	assert_int_equal(read(c, buf, 100), 12);
	assert_memory_equal(buf, "nobody reads", 12);
	assert_false(shared(victim, 36, 39));
	reads(38, "both", 4);
	auto_fd w = get(37);
	assert_int_equal(write(w, "more", 4), 4);
	reads(39, "more", 4);
	auto_fd e = get(40);
	assert_int_equal(read(e, buf, 2), 2);
	fcntl(e, F_SETFL, O_NONBLOCK);
	assert_int_equal(read(e, buf, 100), -1); /* the rest of the packet is dropped */
	auto_fd alone = get(43);
	assert_int_equal(read(alone, buf, 2), 2);
	assert_int_equal(read(alone, buf, 100), 0);
	auto_fd g = get(42);
	size_t n = 0;
	for (ssize_t k; (k = read(g, buf, sizeof(buf))) > 0;)
		n += (size_t)k;
	assert_int_equal(n, 65536); /* then end of file: no writer is left */
	discard();
}

static void test_pipes(void **state)
{
	(void)state;
	pipes_as(0);
}

static void test_pipes_of_a_user(void **state)
{
	(void)state;
	pipes_as(1000);
}

static void make_fifo(void)
{
	unlink(in_dir("fifo"));
	NEED(mkfifo(in_dir("fifo"), 0640) == 0);
	int rd = open(in_dir("fifo"), O_RDONLY | O_NONBLOCK);
	at(open(in_dir("fifo"), O_WRONLY), 4, true);
	at(rd, 3, false);
	NEED(write(4, "in the fifo", 11) == 11);
	unlink(in_dir("fifo2"));
	NEED(mkfifo(in_dir("fifo2"), 0640) == 0);
	at(open(in_dir("fifo2"), O_RDWR | O_NONBLOCK), 5, false);
}

static void test_fifo(void **state)
{
	(void)state;
	seize(make_fifo, 0);
	save();
	restore();
	reads(3, "in the fifo", 11);
	auto_fd w = get(4), r = get(3);
	assert_int_equal(write(w, "x", 1), 1);
	reads(3, "x", 1);
	char c;
	assert_int_equal(read(r, &c, 1), -1);
	discard();
}

/* ---- counters and timers ---- */

static void make_anon(void)
{
	sigset_t set;
	at(eventfd(5, EFD_NONBLOCK), 3, true);
	at(eventfd(3, EFD_SEMAPHORE), 4, false);
	at(eventfd(0, 0), 5, false);
	uint64_t huge = UINT64_MAX - 1;
	at(eventfd(0, 0), 6, false);
	NEED(write(6, &huge, 8) == 8);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX);
	sigprocmask(SIG_BLOCK, &set, NULL);
	at(signalfd(-1, &set, SFD_NONBLOCK), 7, false);
	/* disarmed; once in an hour; every hour; absolute; expired and unread, once and again and again */
	at(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 10, true);
	at(timerfd_create(CLOCK_MONOTONIC, 0), 11, false);
	timerfd_settime(11, 0, &(struct itimerspec){ .it_value = { 3600, 5 } }, NULL);
	at(timerfd_create(CLOCK_BOOTTIME, 0), 12, false);
	timerfd_settime(12, 0, &(struct itimerspec){ { 3600, 7 }, { 1800, 0 } }, NULL);
	at(timerfd_create(CLOCK_REALTIME, 0), 13, false);
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	timerfd_settime(13, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET,
			&(struct itimerspec){ .it_value = { now.tv_sec + 1000, 0 } }, NULL);
	at(timerfd_create(CLOCK_MONOTONIC, 0), 14, false);
	clock_gettime(CLOCK_MONOTONIC, &now);
	timerfd_settime(14, TFD_TIMER_ABSTIME, &(struct itimerspec){ .it_value = { now.tv_sec + 1000, 0 } }, NULL);
	at(timerfd_create(CLOCK_MONOTONIC, 0), 15, false);
	timerfd_settime(15, 0, &(struct itimerspec){ .it_value = { 0, 1 } }, NULL);
	at(timerfd_create(CLOCK_REALTIME, 0), 16, false);
	timerfd_settime(16, 0, &(struct itimerspec){ { 3600, 0 }, { 0, 1 } }, NULL);
	usleep(2000);
	uint64_t ticks; /* 16 has expired once and runs again only when looked at */
	NEED(read(15, &ticks, 8) == 8 && ticks == 1);
	timerfd_settime(15, 0, &(struct itimerspec){ .it_value = { 0, 1 } }, NULL);
	usleep(2000);
}

/* When it expires next, by our own monotonic clock; 0: disarmed. The best of several looks: others run here, too. */
static int64_t expires(int fd)
{
	struct itimerspec it;
	auto_fd dup = get(fd);
	int64_t when = 0;
	uint64_t best = UINT64_MAX;
	for (int i = 0; i < 20; i++) {
		uint64_t t = util_monotonic_ns();
		assert_int_equal(timerfd_gettime(dup, &it), 0);
		uint64_t took = util_monotonic_ns() - t;
		if (took >= best)
			continue;
		best = took;
		when = (int64_t)it.it_value.tv_sec * 1000000000 + it.it_value.tv_nsec;
		if (when)
			when += (int64_t)t;
	}
	return when;
}

static void test_anon(void **state)
{
	(void)state;
	static const int timers[] = { 10, 11, 12, 13, 14, 15, 16 };
	int64_t due[ARRAY_LEN(timers)];
	uint64_t n;
	seize(make_anon, 1000);
	save();
	for (size_t i = 0; i < ARRAY_LEN(timers); i++)
		due[i] = expires(timers[i]);
	restore();
	for (size_t i = 0; i < ARRAY_LEN(timers); i++) {
		int64_t now = expires(timers[i]);
		if (llabs(now - due[i]) > 5000000)
			fail_msg("timer %d: due at %lld, not %lld", timers[i], (long long)now, (long long)due[i]);
	}
	auto_fd e = get(4), once = get(15), again = get(16), big = get(6);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(read(e, &n, 8), 8);
		assert_int_equal(n, 1);
	}
	assert_int_equal(read(once, &n, 8), 8);
	assert_int_equal(n, 1);
	assert_int_equal(read(again, &n, 8), 8);
	assert_int_equal(n, 1);
	assert_int_equal(read(big, &n, 8), 8);
	assert_true(n == UINT64_MAX - 1);
	discard();
}

/* A vessel in a time namespace: timers go by its clocks. */
static void test_timers_in_a_time_namespace(void **state)
{
	(void)state;
	seize(make_anon, 0);
	save();
	int64_t relative = expires(11), absolute = expires(14);
	process_close(p);
	end(victim);
	/* the source's clock, as if this host's were another */
	for (size_t i = 0; i < filetab_count(files); i++) {
		FileEntry *e = filetab_at(files, i);
		if (e->type == FD_TYPES__TIMERFD && e->tfd->value_known && e->tfd->clockid != CLOCK_REALTIME)
			e->tfd->expires_ns += 5000000000000ull;
	}
	struct vessel_spec spec = {
		.pid = victim,
		.cgroup_fd = -1,
		.monotonic_ns = util_clock_ns(CLOCK_MONOTONIC) + 5000000000000ull,
		.boottime_ns = util_clock_ns(CLOCK_BOOTTIME) + 5000000000000ull,
	};
	OK(vessel_new(&spec, &v, &f));
	struct fd_restore r = { .img = img, .files = files, .v = v, .pid = victim, .report = &report };
	OK(fdtab_restore(&r, &f));
	p = vessel_process(v);
	/* the vessel's clock itself is late by the time from `spec` to its birth */
	assert_true(llabs(expires(11) - relative) < 100000000);
	assert_true(llabs(expires(14) - absolute) < 100000000);
	forget(&before);
	discard();
}

/* ---- epoll ---- */

static void watch(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };
	NEED(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
}

static void make_epoll(void)
{
	int p2[2];
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	at(epoll_create1(0), 10, true);
	at(eventfd(1, 0), 11, false);
	at(eventfd(0, 0), 12, false);
	NEED(pipe(p2) == 0 && write(p2[1], "x", 1) == 1);
	at(p2[0], 13, false);
	at(p2[1], 14, false);
	at(timerfd_create(CLOCK_MONOTONIC, 0), 15, false);
	at(signalfd(-1, &set, 0), 16, false);
	watch(10, 11, EPOLLIN, 0x1122334455667788);
	watch(10, 13, EPOLLIN | EPOLLET, 2);
	watch(10, 14, EPOLLOUT | EPOLLEXCLUSIVE, 3);
	watch(10, 15, EPOLLIN, 4);
	watch(10, 16, EPOLLIN, 5);
	/* the number is closed, the file is 11's */
	NEED(dup2(11, 17) == 17);
	watch(10, 17, EPOLLIN, 6);
	close(17);
	/* the number is another file's now, which is watched, too */
	NEED(dup2(12, 18) == 18);
	watch(10, 18, EPOLLIN, 7);
	NEED(dup3(14, 18, O_CLOEXEC) == 18);
	watch(10, 18, EPOLLOUT, 8);
	/* one-shot entries that have fired: of a file that is ready, and of one that is not any more */
	at(epoll_create1(EPOLL_CLOEXEC), 20, true);
	at(eventfd(1, 0), 21, false);
	at(eventfd(1, 0), 22, false);
	NEED(pipe(p2) == 0 && write(p2[1], "y", 1) == 1);
	at(p2[0], 23, false);
	at(p2[1], 24, false);
	struct epoll_event got[8];
	watch(20, 21, EPOLLIN | EPOLLONESHOT, 21);
	watch(20, 23, EPOLLIN | EPOLLONESHOT | EPOLLET, 23);
	NEED(epoll_wait(20, got, 8, 0) == 2);
	char c;
	NEED(read(23, &c, 1) == 1);
	watch(20, 22, EPOLLIN | EPOLLONESHOT, 22); /* still armed */
	/* nested, and one that watches nothing */
	at(epoll_create1(0), 25, false);
	watch(25, 20, EPOLLIN, 20);
	at(epoll_create1(0), 26, false);
}

static void epoll_as(uid_t uid)
{
	struct epoll_event got[16];
	seize(make_epoll, uid);
	/* compared by hand: the silent one-shot of fd 23 is armed for hang-up, see eventpoll.c */
	save();
	for (size_t i = 0; i < before.n; i++)
		if (before.fd[i] == 20) {
			char *line = strstr(before.text[i], "23 events: c0000000");
			assert_non_null(line);
			memcpy(line, "23 events: c0000018", 19);
		}
	restore();
	auto_fd ep = get(10);
	int n = epoll_wait(ep, got, 16, 0);
	uint64_t all = 0;
	for (int i = 0; i < n; i++)
		all |= got[i].data.u64 == 0x1122334455667788 ? 1u << 1 : 1u << got[i].data.u64;
	assert_int_equal(n, 5);
	assert_int_equal(all, 1u << 1 | 1u << 2 | 1u << 3 | 1u << 6 | 1u << 8);
	auto_fd other = get(12);
	uint64_t one = 1;
	assert_int_equal(write(other, &one, 8), 8); /* watched as 18, which is a pipe now */
	n = epoll_wait(ep, got, 16, 0);
	for (int i = 0; i < n; i++)
		all |= 1u << (got[i].data.u64 & 15);
	assert_true(all & 1u << 7);
	auto_fd shot = get(20), outer = get(25);
	assert_int_equal(epoll_wait(outer, got, 16, 0), 1);
	assert_int_equal(epoll_wait(shot, got, 16, 0), 1);
	assert_int_equal(got[0].data.u64, 22);
	discard();
}

static void test_epoll(void **state)
{
	(void)state;
	epoll_as(0);
}

static void test_epoll_of_a_user(void **state)
{
	(void)state;
	epoll_as(1000);
}

/* ---- memfd ---- */

static void make_memfd(void)
{
	int fd = memfd_create("some name", MFD_ALLOW_SEALING);
	NEED(write(fd, "content of a memfd", 18) == 18);
	char self[40];
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	at(open(self, O_RDONLY), 9, true);
	at(fd, 8, false);
	lseek(9, 5, SEEK_SET);
	struct stat st;
	fstat(8, &st);
	sh->value[0] = (int)st.st_ino;
}

static void test_memfd(void **state)
{
	(void)state;
	seize(make_memfd, 0);
	save();
	/* what memory would have: the object, filled */
	int object = memfd_create("some name", MFD_ALLOW_SEALING);
	assert_int_equal(write(object, "content of a memfd", 18), 18);
	SharedObjectEntry o = SHARED_OBJECT_ENTRY__INIT, *list[] = { &o };
	MmEntry mm = MM_ENTRY__INIT;
	o.has_ino = true;
	o.ino = (uint32_t)sh->value[0];
	o.name = (char *)"some name";
	mm.objects = list;
	mm.n_objects = 1;
	restore_with(&mm, &object, 1);
	close(object);
	assert_false(shared(victim, 8, 9));
	reads(9, "nt of a memfd", 13);
	auto_fd fd = get(8);
	assert_int_equal(fcntl(fd, F_GET_SEALS), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 18);
	discard();
}

/* ---- owner of SIGIO ---- */

static void make_fown(void)
{
	int p2[2];
	NEED(pipe(p2) == 0);
	at(p2[0], 5, false);
	at(p2[1], 6, false);
	NEED(fcntl(5, F_SETOWN, getpid()) == 0 && fcntl(5, F_SETSIG, SIGRTMIN + 3) == 0);
	NEED(fcntl(5, F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
	at(eventfd(0, 0), 7, false);
	struct f_owner_ex o = { F_OWNER_TID, getpid() };
	NEED(fcntl(7, F_SETOWN_EX, &o) == 0);
}

static void test_fown(void **state)
{
	(void)state;
	uid_t uids[2];
	struct f_owner_ex o;
	seize(make_fown, 1000);
	save();
	restore();
	auto_fd a = get(5), b = get(7);
	assert_int_equal(fcntl(a, F_GETOWN), victim);
	assert_int_equal(fcntl(a, F_GETSIG), SIGRTMIN + 3);
	assert_int_equal(fcntl(a, 17, uids), 0);
	assert_true(uids[0] == 1000 && uids[1] == 1000);
	assert_int_equal(fcntl(b, F_GETOWN_EX, &o), 0);
	assert_true(o.type == F_OWNER_TID && o.pid == victim);
	assert_int_equal(getuid(), 0);
	assert_int_equal(geteuid(), 0);
	discard();
}

static void make_foreign_owner(void)
{
	at(eventfd(0, 0), 7, false);
	NEED(fcntl(7, F_SETOWN, getppid()) == 0);
}

static bool found(const struct report *r, enum report_severity severity, const char *object, const char *reason)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->findings[i].severity == severity && strstr(r->findings[i].object, object) &&
		    strstr(r->findings[i].reason, reason))
			return true;
	return false;
}

static void expect(const struct report *r, enum report_severity severity, const char *object, const char *reason)
{
	if (found(r, severity, object, reason))
		return;
	for (size_t i = 0; i < r->n; i++)
		fprintf(stderr, "  %d %s: %s\n", (int)r->findings[i].severity, r->findings[i].object,
			r->findings[i].reason);
	fail_msg("no finding \"%s\" \"%s\"", object, reason);
}

static void test_foreign_owner(void **state)
{
	(void)state;
	seize(make_foreign_owner, 0);
	struct report r = checked();
	expect(&r, REPORT_LOSS, "fd 7", "which stays here");
	report_done(&r);
	let_go();
}

/* ---- many ---- */

static void make_many(void)
{
	for (int i = 3; i < 1003; i++)
		at(i % 3 ? eventfd((unsigned)i, 0) : open(in_dir("data"), O_RDONLY), i, i & 1);
	for (int i = 3; i < 1003; i += 100)
		NEED(dup2(i, 1100 + i) == 1100 + i);
}

static void test_many(void **state)
{
	(void)state;
	struct rlimit old, more = { 4000, 4000 };
	getrlimit(RLIMIT_NOFILE, &old);
	more.rlim_max = old.rlim_max;
	setrlimit(RLIMIT_NOFILE, &more);
	seize(make_many, 0);
	save();
	restore();
	for (int i = 3; i < 1003; i += 100)
		assert_true(shared(victim, i, 1100 + i));
	assert_false(shared(victim, 4, 5));
	print_message("1010 descriptors: saved in %.1f ms, restored in %.1f ms\n", (double)save_ns / 1e6,
		      (double)restore_ns / 1e6);
	discard();
	setrlimit(RLIMIT_NOFILE, &old);
}

static void make_nothing(void)
{
}

static void test_empty_table(void **state)
{
	(void)state;
	seize(make_nothing, 0);
	save();
	restore();
	discard();
}

/* A number above any limit that can be had here. */
static void test_limit(void **state)
{
	(void)state;
	seize(make_nothing, 0);
	save();
	process_close(p);
	end(victim);
	FdinfoEntry d = FDINFO_ENTRY__INIT;
	d.id = 1;
	d.type = FD_TYPES__EVENTFD;
	d.fd = 1u << 29;
	OK(image_put(img, IMAGE_FDINFO, IMAGE_FILES_ID, &d, NULL, 0, &f));
	struct vessel_spec spec = { .pid = victim, .cgroup_fd = -1 };
	OK(vessel_new(&spec, &v, &f));
	struct fd_restore r = { .img = img, .files = files, .v = v, .pid = victim, .report = &report };
	assert_int_equal(fdtab_restore(&r, &f), -1);
	assert_int_equal(f.code, FAULT_LIMIT);
	forget(&before);
	discard();
}

/* ---- what can't be moved ---- */

/* A child that keeps all that is open now; its pid is in value[0]. */
static void fork_holder(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	NEED(pid > 0);
	sh->value[0] = pid;
}

static void end_holder(void)
{
	assert_true(sh->value[0] > 1);
	kill(sh->value[0], SIGKILL);
}

static void make_refused(void)
{
	int s[2];
	at(inotify_init1(0), 10, false);
	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
	at(s[0], 11, false);
	at(s[1], 12, false);
	at(socket(AF_NETLINK, SOCK_RAW, 0), 13, false);
	at(open(in_dir("gone"), O_RDWR | O_CREAT, 0600), 14, false);
	unlink(in_dir("gone"));
	at(open(in_dir("moved"), O_RDWR | O_CREAT, 0600), 15, false);
	NEED(rename(in_dir("moved"), in_dir("elsewhere")) == 0);
	NEED(rename(in_dir("elsewhere"), in_dir("moved")) == 0); /* its name is right again */
	at(open(in_dir("replaced"), O_RDWR | O_CREAT, 0600), 16, false);
	NEED(close(open(in_dir("new"), O_RDWR | O_CREAT, 0600)) == 0);
	at(open(in_dir("data"), O_RDONLY), 17, false);
	NEED(flock(17, LOCK_SH) == 0);
	at(open(in_dir("data"), O_RDONLY), 18, false);
	struct flock lock = { .l_type = F_RDLCK };
	NEED(fcntl(18, F_SETLK, &lock) == 0);
	at(open(dir, O_TMPFILE | O_RDWR, 0600), 19, false);
	int fd = at(open("/usr/bin", O_RDONLY | O_DIRECTORY), 20, false);
	char buf[1000];
	NEED(getdents64(fd, buf, sizeof(buf)) > 0);
	at(open("/proc/1/stat", O_RDONLY), 21, false);
	at(open("/proc/self/ns/net", O_RDONLY), 22, false);
	at((int)syscall(SYS_pidfd_open, getppid(), 0), 23, false);
	int pty = at(posix_openpt(O_RDWR | O_NOCTTY), 24, false);
	grantpt(pty);
	unlockpt(pty);
	at(open(ptsname(pty), O_RDWR | O_NOCTTY), 25, false);
	at(socket(AF_PACKET, SOCK_RAW, 0), 26, false);
	at(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), 27, false);
	at((int)syscall(SYS_userfaultfd, 0), 28, false);
	int p2[2];
	NEED(pipe(p2) == 0);
	at(p2[0], 29, false);
	fork_holder(); /* stays here with the other end */
	close(p2[1]);
	NEED(mkdir(in_dir("dead"), 0700) == 0 && chdir(in_dir("dead")) == 0 && rmdir(in_dir("dead")) == 0);
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *object, *reason;
	} want[] = {
		{ "fd 10: inotify instance", "can't be moved yet" },
		{ "fd 11: unix socket", "its other end" },
		{ "fd 12: unix socket", "its other end" },
		{ "fd 13: netlink socket", "kernel" },
		{ "fd 14: file", "has no name any more" },
		{ "fd 16: file", "another file is at this path now" },
		{ "fd 17: file", "FLOCK lock" },
		{ "fd 18: file", "POSIX lock" },
		{ "fd 19: file", "has no name any more, its" },
		{ "fd 20: directory", "half-way" },
		{ "fd 21: file", "names a process" },
		{ "fd 22: namespace", "names a namespace" },
		{ "fd 23: pidfd", "names a process" },
		{ "fd 24: terminal", "stays with whoever sits at it" },
		{ "fd 25: terminal", "stays with whoever sits at it" },
		{ "fd 26: packet socket", "can't be moved yet" },
		{ "fd 27: raw IPv4 socket", "can't be moved yet" },
		{ "fd 28: userfaultfd", "can't be moved yet" },
		{ "fd 29: pipe", "is also held by process" },
		{ "working directory", "no longer" },
	};
	seize(make_refused, 0);
	assert_int_equal(rename(in_dir("new"), in_dir("replaced")), 0);
	struct report r = checked();
	for (size_t i = 0; i < ARRAY_LEN(want); i++)
		expect(&r, REPORT_BLOCKER, want[i].object, want[i].reason);
	assert_false(found(&r, REPORT_BLOCKER, "fd 15:", ""));
	assert_int_equal(report_count(&r, REPORT_BLOCKER), (int)ARRAY_LEN(want));
	report_done(&r);
	end_holder();
	let_go();
}

/* What comes after vetting ends the migration, with the same words. */
static void make_locked(void)
{
	at(open(in_dir("data"), O_RDONLY), 17, false);
	NEED(flock(17, LOCK_SH) == 0);
}

static void test_locked_later(void **state)
{
	(void)state;
	seize(make_locked, 0);
	struct fd_save s = { .p = p, .files = filetab_new(), .img = image_new(), .report = &report };
	assert_int_equal(fdtab_save(&s, FD_PHASE_LOCAL, &f), -1);
	assert_int_equal(f.code, FAULT_UNSUPPORTED);
	assert_non_null(strstr(f.what, "FLOCK lock"));
	filetab_free(s.files);
	image_free(s.img);
	let_go();
}

static void *own_table(void *arg)
{
	(void)arg;
	NEED(unshare(CLONE_FILES | CLONE_FS) == 0);
	sh->value[0] = (int)syscall(SYS_gettid);
	for (;;)
		pause();
	return NULL;
}

static void make_own_table(void)
{
	pthread_t t;
	sh->value[0] = 0;
	pthread_create(&t, NULL, own_table, NULL);
	while (!sh->value[0])
		usleep(1000);
}

static void test_thread_with_its_own_table(void **state)
{
	(void)state;
	seize(make_own_table, 0);
	struct report r = checked();
	expect(&r, REPORT_BLOCKER, "thread", "a descriptor table of its own");
	expect(&r, REPORT_BLOCKER, "thread", "a working directory");
	report_done(&r);
	let_go();
}

/* An epoll entry whose file only another process has open. */
static void make_lost_target(void)
{
	at(epoll_create1(0), 10, false);
	at(eventfd(0, 0), 11, false);
	watch(10, 11, EPOLLIN, 1);
	fork_holder();
	close(11);
}

static void test_lost_target(void **state)
{
	(void)state;
	seize(make_lost_target, 0);
	struct report r = checked();
	expect(&r, REPORT_BLOCKER, "fd 10: epoll", "what it watches as 11 is closed");
	report_done(&r);
	end_holder();
	let_go();
}

/* ---- the surroundings ---- */

static int setup(void **state)
{
	(void)state;
	sh = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(dir, sizeof(dir), "/var/tmp/cpr-fd-XXXXXX");
	if (!mkdtemp(dir) || chmod(dir, 0777) < 0)
		return -1;
	char data[8192];
	memset(data, 'd', sizeof(data));
	const char *names[] = { "data", "log", "odd (deleted)" };
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		int fd = open(in_dir(names[i]), O_WRONLY | O_CREAT, 0666);
		if (fd < 0 || write(fd, data, sizeof(data)) != sizeof(data) || fchmod(fd, 0666) < 0 ||
		    fchown(fd, 1000, 1000) < 0)
			return -1;
		close(fd);
	}
	return symlink("data", in_dir("link"));
}

static int teardown(void **state)
{
	char cmd[128];
	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty_table),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_files_of_a_user),
		cmocka_unit_test(test_pipes),
		cmocka_unit_test(test_pipes_of_a_user),
		cmocka_unit_test(test_fifo),
		cmocka_unit_test(test_anon),
		cmocka_unit_test(test_timers_in_a_time_namespace),
		cmocka_unit_test(test_epoll),
		cmocka_unit_test(test_epoll_of_a_user),
		cmocka_unit_test(test_memfd),
		cmocka_unit_test(test_fown),
		cmocka_unit_test(test_foreign_owner),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_locked_later),
		cmocka_unit_test(test_thread_with_its_own_table),
		cmocka_unit_test(test_lost_target),
	};
	alarm(120);
	return cmocka_run_group_tests(tests, setup, teardown);
}
