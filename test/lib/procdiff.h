/*
 * What procfs shows of a process, before and after a move, line by line; a short list says which lines may differ.
 *
 *	struct procdiff *a = procdiff_read(pid);   … move …   struct procdiff *b = procdiff_read(pid);
 *	if (procdiff_compare(a, b, text, sizeof(text)) > 0) print text
 *	procdiff_free(a); procdiff_free(b);
 */
#ifndef TEST_PROCDIFF_H
#define TEST_PROCDIFF_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROCDIFF_MAX 4096

struct procdiff {
	size_t n;
	char *lines[PROCDIFF_MAX]; /* "file: line" */
};

/* Prefixes of lines ("file: start of line") that tell of the moment or of the host, not of the process. */
static const char *const procdiff_may_differ[] = {
	"status: State:",	"status: TracerPid:", "status: PPid:",	  "status: Vm",	    "status: Rss",
	"status: FDSize:",	"status: Ngid:",      "status: Threads:", "status: SigQ:",  "status: voluntary",
	"status: nonvoluntary", "status: Hugetlb",    "status: CoreDump", "status: NSsid:", "status: NSpgid:",
	"status: Mems_allowed", "status: Kthread:",   "cgroup: ",
};

static inline int procdiff_skipped(const char *line)
{
	for (size_t i = 0; i < sizeof(procdiff_may_differ) / sizeof(procdiff_may_differ[0]); i++)
		if (!strncmp(line, procdiff_may_differ[i], strlen(procdiff_may_differ[i])))
			return 1;
	return 0;
}

static inline void procdiff_file(struct procdiff *d, const char *dir, const char *prefix, const char *name)
{
	char path[400], line[4096], full[4400];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		snprintf(full, sizeof(full), "%s: %s", name, line);
		if (procdiff_skipped(full) || d->n == PROCDIFF_MAX)
			continue;
		snprintf(full, sizeof(full), "%s%s: %s", prefix, name, line);
		d->lines[d->n++] = strdup(full);
	}
	if (f)
		fclose(f);
}

/* policy, nice, real-time priority: of stat the fields that are the process's doing */
static inline void procdiff_stat(struct procdiff *d, const char *dir, const char *prefix)
{
	char path[400], text[2048] = "", full[400];
	snprintf(path, sizeof(path), "%s/stat", dir);
	FILE *f = fopen(path, "r");
	size_t len = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	if (f)
		fclose(f);
	char *s = len ? strrchr(text, ')') : NULL;
	int field = 2;
	for (char *save = NULL, *v = s ? strtok_r(s + 1, " ", &save) : NULL; v && d->n < PROCDIFF_MAX;
	     v = strtok_r(NULL, " ", &save)) {
		field++;
		if (field != 7 && field != 19 && field != 20 && field != 40 && field != 41)
			continue;
		snprintf(full, sizeof(full), "%sstat: field %d: %s", prefix, field, v);
		d->lines[d->n++] = strdup(full);
	}
}

static inline struct procdiff *procdiff_read(pid_t pid)
{
	static const char *const process[] = { "limits",   "timers",	  "oom_score_adj", "coredump_filter",
					       "loginuid", "personality", "gid_map",	   "uid_map" };
	static const char *const thread[] = { "status", "comm", "personality" };
	struct procdiff *d = calloc(1, sizeof(*d));
	char dir[300], prefix[32];
	snprintf(dir, sizeof(dir), "/proc/%d", (int)pid);
	for (size_t i = 0; i < sizeof(process) / sizeof(process[0]); i++)
		procdiff_file(d, dir, "", process[i]);
	snprintf(dir, sizeof(dir), "/proc/%d/task", (int)pid);
	struct dirent **list;
	int n = scandir(dir, &list, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		if (list[i]->d_name[0] != '.') {
			snprintf(dir, sizeof(dir), "/proc/%d/task/%s", (int)pid, list[i]->d_name);
			snprintf(prefix, sizeof(prefix), "%.16s ", list[i]->d_name);
			for (size_t k = 0; k < sizeof(thread) / sizeof(thread[0]); k++)
				procdiff_file(d, dir, prefix, thread[k]);
			procdiff_stat(d, dir, prefix);
			snprintf(dir, sizeof(dir), "/proc/%s", list[i]->d_name);
			procdiff_file(d, dir, prefix, "timerslack_ns");
		}
		free(list[i]);
	}
	if (n >= 0)
		free(list);
	return d;
}

static inline int procdiff_has(const struct procdiff *d, const char *line)
{
	for (size_t i = 0; i < d->n; i++)
		if (!strcmp(d->lines[i], line))
			return 1;
	return 0;
}

/* Number of lines that only one of them has; text lists them with "-" and "+". */
static inline int procdiff_compare(const struct procdiff *a, const struct procdiff *b, char *text, size_t len)
{
	int differ = 0;
	size_t used = 0;
	text[0] = 0;
	for (int side = 0; side < 2; side++) {
		const struct procdiff *x = side ? b : a, *y = side ? a : b;
		for (size_t i = 0; i < x->n; i++) {
			if (procdiff_has(y, x->lines[i]))
				continue;
			differ++;
			if (used < len)
				used += (size_t)snprintf(text + used, len - used, "%c%s\n", side ? '+' : '-',
							 x->lines[i]);
		}
	}
	return differ;
}

static inline void procdiff_free(struct procdiff *d)
{
	for (size_t i = 0; d && i < d->n; i++)
		free(d->lines[i]);
	free(d);
}

#endif
