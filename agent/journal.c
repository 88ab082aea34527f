#include "journal.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define FIRST_LINE "cpr-journal 1"
#define SUFFIX	   ".journal"
#define FILE_MAX   (64u << 20)

static const char *const undo_names[] = {
#define X(name, str) str,
	UNDO_KINDS(X)
#undef X
};

bool journal_is_uuid(const char *s)
{
	for (size_t i = 0; i < JOURNAL_ID - 1; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? s[i] != '-' : !strchr("0123456789abcdef", s[i]) || !s[i])
			return false;
	}
	return !s[JOURNAL_ID - 1];
}

void journal_done(struct journal *j)
{
	free(j->undo);
	j->undo = NULL;
	j->n_undo = j->cap_undo = 0;
}

int journal_push(struct journal *j, const struct undo *u, struct fault *f)
{
	if (j->n_undo >= JOURNAL_UNDO_MAX)
		return fault_set(f, FAULT_INTERNAL, "more than %u undo records", JOURNAL_UNDO_MAX);
	void *array = j->undo;
	if (util_grow(&array, &j->cap_undo, j->n_undo, sizeof(*j->undo)) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "an undo record");
	j->undo = array;
	j->undo[j->n_undo++] = *u;
	return 0;
}

/* ---- writing ---- */

/* A string without blanks and control characters, "%" when empty: what is read back by sscanf(3). */
static void put_string(FILE *out, const char *s)
{
	if (!*s)
		fputs("%", out);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		if (c <= ' ' || c >= 0x7f || c == '%')
			fprintf(out, "%%%02x", c);
		else
			fputc(c, out);
	}
}

static void put_line(FILE *out, const char *key, const char *value)
{
	fprintf(out, "%s=", key);
	put_string(out, value);
	fputc('\n', out);
}

static void put_undo(FILE *out, const struct undo *u)
{
	fprintf(out, "undo=%s %d %d %" PRId64 " %d %u %u ", undo_names[u->kind], (int)u->pid, u->fd, u->value,
		u->prefix, u->ifa_flags, u->scope);
	put_string(out, u->address);
	fputc(' ', out);
	put_string(out, u->device);
	fputc(' ', out);
	put_string(out, u->name);
	fputc('\n', out);
}

static void put_journal(FILE *out, const struct journal *j)
{
	fputs(FIRST_LINE "\n", out);
	put_line(out, "migration", j->migration);
	put_line(out, "side", j->side == HANDOFF_SOURCE ? "source" : "destination");
	put_line(out, "state", handoff_state_name(j->state));
	put_line(out, "event", handoff_event_name(j->event));
	put_line(out, "reason", j->reason);
	fprintf(out, "pid=%d\nstart_time=%" PRIu64 "\n", (int)j->pid, j->start_time);
	put_line(out, "peer", j->peer);
	put_line(out, "boot_id", j->boot_id);
	fprintf(out, "ready=%d\n", j->ready);
	put_line(out, "freezer", j->freezer);
	fprintf(out, "own_group=%d\n", j->own_group);
	put_line(out, "group", j->group);
	put_line(out, "origin", j->origin);
	for (size_t i = 0; i < j->n_undo; i++)
		put_undo(out, &j->undo[i]);
}

static int file_name(char *buf, size_t len, const char *migration, const char *suffix, struct fault *f)
{
	if (!journal_is_uuid(migration))
		return fault_set(f, FAULT_INTERNAL, "a journal of '%.40s', which is no uuid", migration);
	snprintf(buf, len, "%s%s", migration, suffix);
	return 0;
}

static int write_file(int dirfd, const char *name, const char *text, size_t len, struct fault *f)
{
	auto_fd fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0 || util_write_all(fd, text, len) < 0)
		return fault_errno(f, FAULT_SYSTEM, "write %s in the run directory", name);
	return 0;
}

int journal_write(int dirfd, const struct journal *j, struct fault *f)
{
	char name[64], tmp[64];
	if (file_name(name, sizeof(name), j->migration, SUFFIX, f) < 0 ||
	    file_name(tmp, sizeof(tmp), j->migration, ".new", f) < 0)
		return -1;
	auto_free char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	if (!out)
		return fault_errno(f, FAULT_NO_MEMORY, "a journal");
	put_journal(out, j);
	if (fflush(out) == 0)
		fprintf(out, "check=%016" PRIx64 "\n", (uint64_t)XXH3_64bits(text, len));
	if (fclose(out) != 0)
		return fault_errno(f, FAULT_NO_MEMORY, "a journal");
	if (write_file(dirfd, tmp, text, len, f) < 0)
		return fault_while(f, "journalling migration %s", j->migration);
	if (renameat(dirfd, tmp, dirfd, name) < 0)
		return fault_errno(f, FAULT_SYSTEM, "rename %s in the run directory", tmp);
	return 0;
}

/* ---- reading ---- */

static bool get_string(const char *s, char *out, size_t len)
{
	if (!strcmp(s, "%")) {
		*out = 0;
		return true;
	}
	size_t n = 0;
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		if (c == '%') {
			if (!isxdigit((unsigned char)s[1]) || !isxdigit((unsigned char)s[2]))
				return false;
			char hex[] = { s[1], s[2], 0 };
			c = (unsigned char)strtoul(hex, NULL, 16);
			s += 2;
		}
		if (!c || n + 1 >= len)
			return false;
		out[n++] = (char)c;
	}
	out[n] = 0;
	return n > 0;
}

static bool get_undo(char *s, struct journal *j)
{
	struct undo u = { 0 };
	char kind[32], address[160], device[64], name[800];
	int pid, end = 0;
	unsigned scope;
	if (sscanf(s, "%31s %d %d %" SCNd64 " %d %u %u %159s %63s %799s%n", kind, &pid, &u.fd, &u.value, &u.prefix,
		   &u.ifa_flags, &scope, address, device, name, &end) != 10 ||
	    s[end] || scope > UINT8_MAX)
		return false;
	u.pid = pid;
	u.scope = (uint8_t)scope;
	while (u.kind < UNDO_KIND_COUNT && strcmp(undo_names[u.kind], kind) != 0)
		u.kind++;
	struct fault f;
	return u.kind < UNDO_KIND_COUNT && get_string(address, u.address, sizeof(u.address)) &&
	       get_string(device, u.device, sizeof(u.device)) && get_string(name, u.name, sizeof(u.name)) &&
	       journal_push(j, &u, &f) == 0;
}

static bool get_state(const char *s, struct journal *j)
{
	j->state = handoff_state_parse(s);
	return !strcmp(handoff_state_name(j->state), s);
}

static bool get_event(const char *s, struct journal *j)
{
	for (int e = 0; e < HANDOFF_EVENT_COUNT; e++)
		if (!strcmp(handoff_event_name(e), s)) {
			j->event = e;
			return true;
		}
	return false;
}

static bool get_flag(const char *s, bool *out)
{
	*out = *s == '1';
	return (*s == '0' || *s == '1') && !s[1];
}

static bool get_field(struct journal *j, const char *key, char *value)
{
	const struct {
		const char *key;
		char *to;
		size_t len;
	} strings[] = {
		{ "migration", j->migration, sizeof(j->migration) },
		{ "reason", j->reason, sizeof(j->reason) },
		{ "peer", j->peer, sizeof(j->peer) },
		{ "boot_id", j->boot_id, sizeof(j->boot_id) },
		{ "freezer", j->freezer, sizeof(j->freezer) },
		{ "group", j->group, sizeof(j->group) },
		{ "origin", j->origin, sizeof(j->origin) },
	};
	uint64_t n = 0;
	for (size_t i = 0; i < ARRAY_LEN(strings); i++)
		if (!strcmp(strings[i].key, key))
			return get_string(value, strings[i].to, strings[i].len);
	if (!strcmp(key, "side")) {
		j->side = !strcmp(value, "source") ? HANDOFF_SOURCE : HANDOFF_DESTINATION;
		return j->side == HANDOFF_SOURCE || !strcmp(value, "destination");
	}
	if (!strcmp(key, "state"))
		return get_state(value, j);
	if (!strcmp(key, "event"))
		return get_event(value, j);
	if (!strcmp(key, "undo"))
		return get_undo(value, j);
	if (!strcmp(key, "ready"))
		return get_flag(value, &j->ready);
	if (!strcmp(key, "own_group"))
		return get_flag(value, &j->own_group);
	if (!strcmp(key, "start_time"))
		return util_parse_u64(value, UINT64_MAX, &j->start_time);
	if (strcmp(key, "pid") != 0 || !util_parse_u64(value, INT32_MAX, &n))
		return false;
	j->pid = (pid_t)n;
	return true;
}

/* The checksum is the last line, over everything before it. */
static bool checked(char *text, size_t len)
{
	const size_t tail = sizeof("check=0123456789abcdef\n") - 1;
	if (len < tail || strlen(text) != len)
		return false;
	char want[32];
	snprintf(want, sizeof(want), "check=%016" PRIx64 "\n", (uint64_t)XXH3_64bits(text, len - tail));
	if (strcmp(text + len - tail, want) != 0)
		return false;
	text[len - tail] = 0;
	return true;
}

static bool parse(char *text, struct journal *j)
{
	char *save, *line = strtok_r(text, "\n", &save);
	if (!line || strcmp(line, FIRST_LINE) != 0)
		return false;
	while ((line = strtok_r(NULL, "\n", &save))) {
		char *eq = strchr(line, '=');
		if (!eq)
			return false;
		*eq = 0;
		if (!get_field(j, line, eq + 1))
			return false;
	}
	return true;
}

int journal_read(int dirfd, const char *migration, struct journal *out, struct fault *f)
{
	char name[64];
	if (file_name(name, sizeof(name), migration, SUFFIX, f) < 0)
		return -1;
	size_t len;
	auto_free char *text = util_read_file(dirfd, name, &len);
	if (!text)
		return fault_errno(f, errno == ENOENT ? FAULT_FILE_MISSING : FAULT_SYSTEM, "read %s", name);
	struct journal j = { 0 };
	if (len > FILE_MAX || !checked(text, len) || !parse(text, &j) || strcmp(j.migration, migration) != 0) {
		journal_done(&j);
		fault_set(f, FAULT_IMAGE, "journal %s is damaged", name);
		return fault_hint(f, "The process of that migration may still be frozen: look for a cgroup cpr-%s.",
				  migration);
	}
	*out = j;
	return 0;
}

int journal_remove(int dirfd, const char *migration, struct fault *f)
{
	char name[64];
	if (file_name(name, sizeof(name), migration, SUFFIX, f) < 0)
		return -1;
	if (unlinkat(dirfd, name, 0) < 0 && errno != ENOENT)
		return fault_errno(f, FAULT_SYSTEM, "remove %s", name);
	return 0;
}

bool journal_exists(int dirfd, const char *migration)
{
	char name[64];
	return file_name(name, sizeof(name), migration, SUFFIX, NULL) == 0 && faccessat(dirfd, name, F_OK, 0) == 0;
}

int journal_each(int dirfd, int (*fn)(void *ctx, const char *migration, struct fault *f), void *ctx, struct fault *f)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d) {
		util_close(&fd);
		return fault_errno(f, FAULT_SYSTEM, "read the run directory");
	}
	int r = 0;
	for (struct dirent *e; r == 0 && (e = readdir(d));) {
		char migration[JOURNAL_ID];
		if (strlen(e->d_name) != JOURNAL_ID - 1 + strlen(SUFFIX) ||
		    strcmp(e->d_name + JOURNAL_ID - 1, SUFFIX) != 0)
			continue;
		snprintf(migration, sizeof(migration), "%.36s", e->d_name);
		if (journal_is_uuid(migration))
			r = fn(ctx, migration, f);
	}
	closedir(d);
	return r;
}
