/*
 * timerfd_create(2): clock, interval, expirations not yet read, and when it expires next.
 *
 * The next expiry is saved twice: as the time that was left (what other tools read), and as a reading of the clock
 * as the process sees it. Restored by the latter a timer comes neither late by the pause nor early. Absolute
 * timers of CLOCK_REALTIME follow that clock; all others run on the monotonic or boot-time clock, which count the pause,
 * too (the time namespace's offsets were fixed before it).
 */
#include "fdtab.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif
#define NS 1000000000ull

static bool claims(const struct fd_info *i)
{
	return !strcmp(i->link, "anon_inode:[timerfd]");
}

static bool scan_pair(const char *text, uint64_t *sec, uint64_t *nsec)
{
	unsigned long long a, b;
	if (!text || sscanf(text, "(%llu, %llu)", &a, &b) != 2)
		return false;
	*sec = a;
	*nsec = b;
	return true;
}

static int parse(const char *text, TimerfdEntry *t, struct fault *f)
{
	const char *clock = fdinfo_value(text, "clockid"), *ticks = fdinfo_value(text, "ticks");
	const char *flags = fdinfo_value(text, "settime flags");
	if (!clock || !ticks || !flags || !scan_pair(fdinfo_value(text, "it_value"), &t->vsec, &t->vnsec) ||
	    !scan_pair(fdinfo_value(text, "it_interval"), &t->isec, &t->insec))
		return fault_set(f, FAULT_KERNEL, "fdinfo of a timerfd lacks a line");
	t->clockid = (uint32_t)strtoul(clock, NULL, 10);
	t->ticks = strtoull(ticks, NULL, 10);
	t->settime_flags = (uint32_t)strtoul(flags, NULL, 8);
	return 0;
}

static bool disarmed(const TimerfdEntry *t)
{
	return t->vsec == 0 && t->vnsec == 0;
}

/* The clock that decides when it expires. */
static clockid_t axis(const TimerfdEntry *t)
{
	bool absolute = t->settime_flags & TFD_TIMER_ABSTIME;
	if (absolute && (t->clockid == CLOCK_REALTIME || t->clockid == CLOCK_REALTIME_ALARM))
		return CLOCK_REALTIME;
	if (t->clockid == CLOCK_BOOTTIME || t->clockid == CLOCK_BOOTTIME_ALARM)
		return CLOCK_BOOTTIME;
	return CLOCK_MONOTONIC;
}

static bool same_time_namespace(struct process *p)
{
	struct stat own, theirs;
	return stat("/proc/self/ns/time", &own) == 0 && fstatat(p->procfd, "ns/time", &theirs, 0) == 0 &&
	       own.st_ino == theirs.st_ino;
}

/* What the process would read from the clock now. */
static int process_clock(struct fd_save *s, clockid_t clock, uint64_t *ns, bool *known, struct fault *f)
{
	struct timespec t;
	*known = true;
	if (clock == CLOCK_REALTIME || same_time_namespace(s->p)) {
		*ns = util_clock_ns(clock);
		return 0;
	}
	*known = s->r != NULL;
	if (!s->r)
		return 0; /* frozen: the time left has to do */
	long ret;
	if (REMOTE(s->r, s->p->pid, &ret, f, SYS_clock_gettime, (uint64_t)clock, remote_scratch(s->r)) < 0 ||
	    remote_get(s->r, 0, &t, sizeof(t), f) < 0)
		return -1;
	if (ret < 0)
		return fault_neg(f, FAULT_SYSTEM, ret, "read the process's clock");
	*ns = (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
	return 0;
}

static int read_values(struct fd_save *s, const struct fd_info *i, TimerfdEntry *t, struct fault *f)
{
	struct fd_info now;
	if (fdtab_read_one(s->p, filetab_arena(s->files), i->fd, &now, f) < 0)
		return -1;
	return parse(now.fdinfo, t, f);
}

/* A periodic timer that has expired stands still until somebody looks at it; timerfd_gettime(2) winds it on, and
 * changes nothing that a read could tell. */
static int read_again(struct fd_save *s, const struct fd_info *i, TimerfdEntry *t, struct fault *f)
{
	struct itimerspec unused;
	if (read_values(s, i, t, f) < 0)
		return -1;
	if (!disarmed(t) || !(t->isec || t->insec) || !t->ticks)
		return 0;
	if (timerfd_gettime(i->dup, &unused) < 0)
		return fault_errno(f, FAULT_SYSTEM, "timerfd_gettime");
	return read_values(s, i, t, f);
}

/* What is left, and the clock that it is measured by, are read one after the other: again when something came between
 * (we are preempted, too). */
#define TRIES	 5
#define CLOSE_NS 200000u

static int save_expiry(struct fd_save *s, const struct fd_info *i, TimerfdEntry *t, struct fault *f)
{
	uint64_t best = UINT64_MAX;
	for (int k = 0; k < TRIES && best > CLOSE_NS; k++) {
		uint64_t now = 0, began = util_monotonic_ns();
		bool known = false;
		if (read_again(s, i, t, f) < 0 || process_clock(s, axis(t), &now, &known, f) < 0)
			return -1;
		uint64_t took = util_monotonic_ns() - began;
		if (disarmed(t)) { /* it expired just now */
			t->value_known = t->has_expires_ns = false;
			return 0;
		}
		if (took >= best)
			continue;
		best = took;
		t->has_expires_ns = known;
		t->expires_ns = now - took / 2 + t->vsec * NS + t->vnsec;
	}
	return 0;
}

static int save(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f)
{
	TimerfdEntry *t = e->tfd = arena_msg(filetab_arena(s->files), TimerfdEntry, timerfd_entry);
	t->id = e->id;
	t->flags = i->flags & ~(uint32_t)O_CLOEXEC;
	t->fown = fd_fown_save(s, i);
	if (read_again(s, i, t, f) < 0)
		return -1;
	t->has_value_known = true;
	t->value_known = !disarmed(t);
	return t->value_known ? save_expiry(s, i, t, f) : 0;
}

/* The clock in the helper, moved to what the vessel reads. */
static uint64_t vessel_clock(const struct fd_restore *s, clockid_t clock)
{
	uint64_t now = util_clock_ns(clock);
	if (clock == CLOCK_MONOTONIC)
		return now + (uint64_t)s->shared->monotonic_delta;
	return clock == CLOCK_BOOTTIME ? now + (uint64_t)s->shared->boottime_delta : now;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS) };
}

/* Relative timers by what is left, at least 1 ns (0 disarms). Absolute ones stay absolute: of CLOCK_REALTIME by the
 * clock's reading, of others by the helper's own reading of it, which is that of another time namespace. */
static struct timespec next_expiry(const struct fd_restore *s, const TimerfdEntry *t)
{
	clockid_t clock = axis(t);
	uint64_t left = t->vsec * NS + t->vnsec;
	if (t->has_expires_ns) {
		if (clock == CLOCK_REALTIME)
			return to_timespec(t->expires_ns ? t->expires_ns : 1);
		uint64_t now = vessel_clock(s, clock);
		left = t->expires_ns > now ? t->expires_ns - now : 0;
	}
	if (left == 0)
		left = 1;
	return to_timespec(t->settime_flags & TFD_TIMER_ABSTIME ? util_clock_ns(clock) + left : left);
}

static int arm(struct fd_restore *s, const TimerfdEntry *t, int fd, struct fault *f)
{
	struct itimerspec it = { .it_interval = { (time_t)t->isec, (long)t->insec } };
	int flags = (int)t->settime_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
	bool armed = t->has_value_known ? t->value_known : !disarmed(t);
	if (armed)
		it.it_value = next_expiry(s, t);
	if (timerfd_settime(fd, flags, &it, NULL) < 0)
		return fault_errno(f, FAULT_SYSTEM, "arm a timerfd");
	uint64_t ticks = t->ticks;
	if (ticks && ioctl(fd, TFD_IOC_SET_TICKS, &ticks) < 0)
		return fault_errno(f, FAULT_KERNEL, "set %llu expirations of a timerfd (CONFIG_CHECKPOINT_RESTORE)",
				   (unsigned long long)ticks);
	return 0;
}

static int restore(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f)
{
	const TimerfdEntry *t = e->tfd;
	auto_fd fd = timerfd_create((clockid_t)t->clockid, TFD_CLOEXEC | (t->flags & O_NONBLOCK ? TFD_NONBLOCK : 0));
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "make a timerfd of clock %u", t->clockid);
	if (arm(s, t, fd, f) < 0)
		return -1;
	return fd_place(take_fd(&fd), min_fd, f);
}

const struct fd_kind fd_timerfd_kind = {
	.name = "timerfd",
	.type = FD_TYPES__TIMERFD,
	.phase = FD_PHASE_LOCAL,
	.claims = claims,
	.save = save,
	.restore = restore,
};
