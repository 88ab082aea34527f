/*
 * A victim: a program that checks itself across a migration. It works without pause, in all its threads, until it is
 * told to stop, then says whether everything was right.
 *
 *	int main(int argc, char **argv)
 *	{
 *		victim_init(argc, argv);	argv[1]: directory shared by the hosts
 *		… make what is to be moved …
 *		victim_ready();
 *		while (victim_running()) { … work; victim_check(cond, "what was wrong %d", x); }
 *		victim_done();			writes PASS or FAIL: reason
 *	}
 *
 * Files in the directory: "ready", "stop" (made by the test), "result", "steps" (one byte appended now and then: it
 * lives). All are opened by path for a moment only, so that the victim holds just what it is about.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char victim_dir[256];
static char victim_reason[512];
static atomic_int victim_failed;
static atomic_uint_fast64_t victim_steps;

__attribute__((unused)) static void victim_path(char *buf, size_t len, const char *name)
{
	snprintf(buf, len, "%s/%s", victim_dir, name);
}

__attribute__((unused)) static void victim_write(const char *name, const char *text)
{
	char tmp[400], path[400];
	snprintf(tmp, sizeof(tmp), "%s/%s.tmp", victim_dir, name);
	snprintf(path, sizeof(path), "%s/%s", victim_dir, name);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		_exit(3);
	close(fd);
	if (rename(tmp, path) < 0)
		_exit(3);
}

__attribute__((unused)) static void victim_init(int argc, char **argv)
{
	if (argc < 2)
		_exit(2);
	snprintf(victim_dir, sizeof(victim_dir), "%s", argv[1]);
}

__attribute__((unused, format(printf, 2, 3))) static bool victim_check(bool ok, const char *fmt, ...)
{
	int expected = 0;
	if (!ok && atomic_compare_exchange_strong(&victim_failed, &expected, 1)) {
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(victim_reason, sizeof(victim_reason), fmt, ap);
		va_end(ap);
	}
	return ok;
}

__attribute__((unused)) static void victim_ready(void)
{
	victim_write("ready", "1");
}

/* Also the sign of life: "steps" holds the number of calls, written at most every 10 ms. */
__attribute__((unused)) static bool victim_running(void)
{
	static struct timespec last;
	struct timespec now;
	char path[300], text[32];
	atomic_fetch_add(&victim_steps, 1);
	clock_gettime(CLOCK_REALTIME, &now);
	if ((now.tv_sec - last.tv_sec) * 1000000000l + now.tv_nsec - last.tv_nsec < 10000000 &&
	    now.tv_sec >= last.tv_sec)
		return true;
	last = now;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)atomic_load(&victim_steps));
	victim_write("steps", text);
	victim_path(path, sizeof(path), "stop");
	return !victim_failed && access(path, F_OK) != 0;
}

__attribute__((unused, noreturn)) static void victim_done(void)
{
	char text[600];
	if (victim_failed)
		snprintf(text, sizeof(text), "FAIL: %s", victim_reason);
	else
		snprintf(text, sizeof(text), "PASS");
	victim_write("result", text);
	_exit(victim_failed ? 1 : 0);
}

#endif
