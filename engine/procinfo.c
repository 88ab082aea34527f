#include "procinfo.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* The text behind "Key:" at the start of a line, blanks skipped; NULL when there is no such line. */
static const char *value_of(const char *text, const char *key)
{
	size_t len = strlen(key);
	for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
		if (!strncmp(line, key, len) && line[len] == ':')
			return line + len + 1 + strspn(line + len + 1, " \t");
	return NULL;
}

static uint64_t number_of(const char *text, const char *key, int base, uint64_t otherwise)
{
	const char *v = value_of(text, key);
	return v ? strtoull(v, NULL, base) : otherwise;
}

static bool ids_of(const char *text, const char *key, uint32_t out[PROCINFO_IDS])
{
	const char *v = value_of(text, key);
	return v && sscanf(v, "%" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32, &out[0], &out[1], &out[2], &out[3]) == 4;
}

static int groups_of(const char *text, struct procinfo_status *s)
{
	const char *v = value_of(text, "Groups");
	size_t cap = 0;
	while (v && *v && *v != '\n') {
		char *end;
		unsigned long id = strtoul(v, &end, 10);
		if (end == v)
			break;
		if (util_grow((void **)&s->groups, &cap, s->n_groups, sizeof(*s->groups)) < 0)
			return -1;
		s->groups[s->n_groups++] = (uint32_t)id;
		v = end + strspn(end, " ");
	}
	return 0;
}

/* "thread mitigated" is what PR_SPEC_DISABLE makes of a thread; "thread vulnerable", "conditional enabled" are what a
 * thread that asked for nothing shows, and PR_SPEC_ENABLE is no different from that. */
static uint32_t speculation_of(const char *text, const char *key, char words[48])
{
	const char *v = value_of(text, key);
	snprintf(words, 48, "%.*s", v ? (int)strcspn(v, "\n") : 0, v ? v : "");
	if (!strcmp(words, "thread force mitigated") || !strcmp(words, "conditional force disabled"))
		return PR_SPEC_FORCE_DISABLE;
	if (!strcmp(words, "thread mitigated") || !strcmp(words, "conditional disabled"))
		return PR_SPEC_DISABLE;
	return 0;
}

int procinfo_parse_status(const char *text, struct procinfo_status *out, struct fault *f)
{
	static const char *const caps[PROCINFO_CAPS] = { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" };
	struct procinfo_status s = { 0 };
	const char *state = value_of(text, "State");
	const char *features = value_of(text, "x86_Thread_features");
	if (!state || !ids_of(text, "Uid", s.uid) || !ids_of(text, "Gid", s.gid) || !value_of(text, "SigBlk"))
		return fault_set(f, FAULT_SYSTEM, "a status file in procfs that lacks State, Uid, Gid or SigBlk");
	if (groups_of(text, &s) < 0) {
		free(s.groups);
		return fault_errno(f, FAULT_NO_MEMORY, "a list of groups");
	}
	s.state = *state;
	s.tgid = (pid_t)number_of(text, "Tgid", 10, 0);
	s.tid = (pid_t)number_of(text, "Pid", 10, 0);
	s.ppid = (pid_t)number_of(text, "PPid", 10, 0);
	s.tracer = (pid_t)number_of(text, "TracerPid", 10, 0);
	s.umask = (uint32_t)number_of(text, "Umask", 8, 022);
	s.sig_pending = number_of(text, "SigPnd", 16, 0);
	s.sig_shared = number_of(text, "ShdPnd", 16, 0);
	s.sig_blocked = number_of(text, "SigBlk", 16, 0);
	s.sig_ignored = number_of(text, "SigIgn", 16, 0);
	s.sig_caught = number_of(text, "SigCgt", 16, 0);
	for (size_t i = 0; i < PROCINFO_CAPS; i++)
		s.caps[i] = number_of(text, caps[i], 16, 0);
	s.no_new_privs = number_of(text, "NoNewPrivs", 10, 0) != 0;
	s.kernel_thread = number_of(text, "Kthread", 10, 0) != 0;
	s.seccomp = (unsigned)number_of(text, "Seccomp", 10, 0);
	s.untag_mask = number_of(text, "untag_mask", 16, UINT64_MAX);
	s.shadow_stack = features && !strncmp(features, "shstk", 5);
	s.ssb = speculation_of(text, "Speculation_Store_Bypass", s.speculation[0]);
	s.spec_ib = speculation_of(text, "SpeculationIndirectBranch", s.speculation[1]);
	*out = s;
	return 0;
}

void procinfo_status_done(struct procinfo_status *s)
{
	free(s->groups);
	s->groups = NULL;
	s->n_groups = 0;
}

int procinfo_parse_stat(const char *text, struct procinfo_stat *out, struct fault *f)
{
	/* The name, in brackets, may itself hold brackets and blanks. */
	const char *end = strrchr(text, ')');
	struct procinfo_stat s = { 0 };
	if (!end ||
	    sscanf(end + 1,
		   " %c %d %d %d %" SCNd32 " %*d %" SCNu32 " %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %" SCNu64,
		   &s.state, &s.ppid, &s.pgid, &s.sid, (int32_t *)&s.tty, &s.flags, &s.start_time) != 7)
		return fault_set(f, FAULT_SYSTEM, "a stat file in procfs that has not the expected fields");
	*out = s;
	return 0;
}

static const struct {
	const char *label; /* as in /proc/PID/limits */
	size_t resource;
	const char *name;
} limits[PROCINFO_LIMITS] = {
	{ "Max cpu time ", RLIMIT_CPU, "CPU time (RLIMIT_CPU)" },
	{ "Max file size ", RLIMIT_FSIZE, "file size (RLIMIT_FSIZE)" },
	{ "Max data size ", RLIMIT_DATA, "data size (RLIMIT_DATA)" },
	{ "Max stack size ", RLIMIT_STACK, "stack size (RLIMIT_STACK)" },
	{ "Max core file size ", RLIMIT_CORE, "core file size (RLIMIT_CORE)" },
	{ "Max resident set ", RLIMIT_RSS, "resident set (RLIMIT_RSS)" },
	{ "Max processes ", RLIMIT_NPROC, "processes (RLIMIT_NPROC)" },
	{ "Max open files ", RLIMIT_NOFILE, "open files (RLIMIT_NOFILE)" },
	{ "Max locked memory ", RLIMIT_MEMLOCK, "locked memory (RLIMIT_MEMLOCK)" },
	{ "Max address space ", RLIMIT_AS, "address space (RLIMIT_AS)" },
	{ "Max file locks ", RLIMIT_LOCKS, "file locks (RLIMIT_LOCKS)" },
	{ "Max pending signals ", RLIMIT_SIGPENDING, "pending signals (RLIMIT_SIGPENDING)" },
	{ "Max msgqueue size ", RLIMIT_MSGQUEUE, "message queues (RLIMIT_MSGQUEUE)" },
	{ "Max nice priority ", RLIMIT_NICE, "nice priority (RLIMIT_NICE)" },
	{ "Max realtime priority ", RLIMIT_RTPRIO, "realtime priority (RLIMIT_RTPRIO)" },
	{ "Max realtime timeout ", RLIMIT_RTTIME, "realtime timeout (RLIMIT_RTTIME)" },
};

const char *procinfo_limit_name(size_t resource)
{
	for (size_t i = 0; i < PROCINFO_LIMITS; i++)
		if (limits[i].resource == resource)
			return limits[i].name;
	return "an unknown limit";
}

static bool limit_value(const char **p, uint64_t *out)
{
	*p += strspn(*p, " ");
	if (!strncmp(*p, "unlimited", 9)) {
		*out = UINT64_MAX;
		*p += 9;
		return true;
	}
	char *end;
	*out = strtoull(*p, &end, 10);
	bool ok = end != *p;
	*p = end;
	return ok;
}

int procinfo_parse_limits(const char *text, struct procinfo_limit out[PROCINFO_LIMITS], struct fault *f)
{
	struct procinfo_limit found[PROCINFO_LIMITS];
	for (size_t i = 0; i < PROCINFO_LIMITS; i++) {
		const char *line = strstr(text, limits[i].label);
		const char *p = line ? line + strlen(limits[i].label) : NULL;
		struct procinfo_limit *l = &found[limits[i].resource];
		if (!p || !limit_value(&p, &l->cur) || !limit_value(&p, &l->max))
			return fault_set(f, FAULT_SYSTEM, "a limits file in procfs without \"%s\"", limits[i].label);
	}
	memcpy(out, found, sizeof(found));
	return 0;
}

static bool timer_notify(const char *line, struct procinfo_timer *t)
{
	static const struct {
		const char *word;
		int notify;
	} words[] = { { "signal/", SIGEV_SIGNAL }, { "none/", SIGEV_NONE }, { "thread/", SIGEV_THREAD } };
	const char *v = line + strlen("notify: ");
	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		if (strncmp(v, words[i].word, strlen(words[i].word)))
			continue;
		t->notify = words[i].notify;
		v += strlen(words[i].word);
		t->tid = !strncmp(v, "tid.", 4) ? atoi(v + 4) : 0;
		return true;
	}
	return false;
}

static int by_id(const void *a, const void *b)
{
	const struct procinfo_timer *x = a, *y = b;
	return (x->id > y->id) - (x->id < y->id);
}

int procinfo_parse_timers(const char *text, struct procinfo_timer **out, size_t *n, struct fault *f)
{
	auto_free struct procinfo_timer *list = NULL;
	size_t used = 0, cap = 0;
	for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
		struct procinfo_timer t = { 0 };
		bool ok = true;
		if (sscanf(line, "ID: %d", &t.id) == 1) {
			if (util_grow((void **)&list, &cap, used, sizeof(*list)) < 0)
				return fault_errno(f, FAULT_NO_MEMORY, "a list of timers");
			list[used++] = t;
		} else if (used && !strncmp(line, "signal: ", 8)) {
			ok = sscanf(line, "signal: %d/%" SCNx64, &list[used - 1].signo, &list[used - 1].value) == 2;
		} else if (used && !strncmp(line, "notify: ", 8)) {
			ok = timer_notify(line, &list[used - 1]);
		} else if (used && !strncmp(line, "ClockID: ", 9)) {
			ok = sscanf(line, "ClockID: %d", &list[used - 1].clock) == 1;
		}
		if (!ok)
			return fault_set(f, FAULT_SYSTEM, "a timers file in procfs with the line \"%.*s\"",
					 (int)strcspn(line, "\n"), line);
	}
	if (used)
		qsort(list, used, sizeof(*list), by_id);
	*out = take_ptr(list);
	*n = used;
	return 0;
}

char *procinfo_thread_file(struct process *p, pid_t tid, const char *name)
{
	char path[64];
	snprintf(path, sizeof(path), "task/%d/%s", tid, name);
	size_t len;
	char *text = util_read_file(p->procfd, path, &len);
	if (text && len && text[len - 1] == '\n')
		text[len - 1] = 0;
	return text;
}

bool procinfo_number(struct process *p, const char *name, int base, int64_t *out)
{
	auto_free char *text = util_read_file(p->procfd, name, NULL);
	if (!text)
		return false;
	char *end;
	*out = strtoll(text, &end, base);
	return end != text;
}

static int gone(struct process *p, const char *name, struct fault *f)
{
	if (errno == ENOENT || errno == ESRCH)
		return fault_errno(f, FAULT_PROCESS_GONE, "read %s of pid %d", name, p->pid);
	return fault_errno(f, FAULT_SYSTEM, "read %s of pid %d", name, p->pid);
}

int procinfo_status(struct process *p, pid_t tid, struct procinfo_status *out, struct fault *f)
{
	auto_free char *text = procinfo_thread_file(p, tid, "status");
	if (!text)
		return gone(p, "a thread's status", f);
	return procinfo_parse_status(text, out, f);
}

int procinfo_stat(struct process *p, struct procinfo_stat *out, struct fault *f)
{
	auto_free char *text = util_read_file(p->procfd, "stat", NULL);
	return text ? procinfo_parse_stat(text, out, f) : gone(p, "stat", f);
}

int procinfo_limits(struct process *p, struct procinfo_limit out[PROCINFO_LIMITS], struct fault *f)
{
	auto_free char *text = util_read_file(p->procfd, "limits", NULL);
	return text ? procinfo_parse_limits(text, out, f) : gone(p, "limits", f);
}

int procinfo_timers(struct process *p, struct procinfo_timer **out, size_t *n, struct fault *f)
{
	auto_free char *text = util_read_file(p->procfd, "timers", NULL);
	return text ? procinfo_parse_timers(text, out, n, f) : gone(p, "timers", f);
}
