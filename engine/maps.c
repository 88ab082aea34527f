#include "maps.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

static const struct {
	char code[3];
	uint32_t flag;
} vm_flags[] = {
	{ "gd", MAP_FLAG_GROWSDOWN },	{ "lo", MAP_FLAG_LOCKED },     { "lf", MAP_FLAG_LOCKONFAULT },
	{ "hg", MAP_FLAG_HUGEPAGE },	{ "nh", MAP_FLAG_NOHUGEPAGE }, { "dc", MAP_FLAG_DONTFORK },
	{ "dd", MAP_FLAG_DONTDUMP },	{ "wf", MAP_FLAG_WIPEONFORK }, { "mg", MAP_FLAG_MERGEABLE },
	{ "sr", MAP_FLAG_SEQREAD },	{ "rr", MAP_FLAG_RANDREAD },   { "nr", MAP_FLAG_NORESERVE },
	{ "ht", MAP_FLAG_HUGETLB },	{ "io", MAP_FLAG_IO },	       { "pf", MAP_FLAG_IO },
	{ "sl", MAP_FLAG_SEALED },	{ "um", MAP_FLAG_UFFD },       { "uw", MAP_FLAG_UFFD },
	{ "ui", MAP_FLAG_UFFD },	{ "mw", MAP_FLAG_MAYWRITE },   { "dp", MAP_FLAG_DROPPABLE },
	{ "ss", MAP_FLAG_SHADOWSTACK }, { "gu", MAP_FLAG_GUARD },
};

static const struct {
	const char *name;
	bool prefix;
	enum map_kind kind;
} special[] = {
	{ "[vdso]", false, MAP_KIND_VDSO },	     { "[vvar]", false, MAP_KIND_VVAR },
	{ "[vvar_vclock]", false, MAP_KIND_VVAR },   { "[vsyscall]", false, MAP_KIND_VSYSCALL },
	{ "[heap]", false, MAP_KIND_ANON },	     { "[stack]", false, MAP_KIND_ANON },
	{ "[anon:", true, MAP_KIND_ANON },	     { "[anon_shmem:", true, MAP_KIND_SHM },
	{ "/SYSV", true, MAP_KIND_OTHER },	     { "/anon_hugepage", false, MAP_KIND_OTHER },
	{ "/secretmem", false, MAP_KIND_OTHER },     { "/[aio]", false, MAP_KIND_OTHER },
	{ "/drm mm object", false, MAP_KIND_OTHER },
};

/* Lowercase hex up to 16 digits: sscanf would take signs, blanks and overflow. */
static bool parse_hex(const char **s, uint64_t *out)
{
	uint64_t v = 0;
	int digits = 0;
	const char *p = *s;
	for (;; p++, digits++) {
		int d;
		if (*p >= '0' && *p <= '9')
			d = *p - '0';
		else if (*p >= 'a' && *p <= 'f')
			d = *p - 'a' + 10;
		else
			break;
		if (digits == 16)
			return false;
		v = v << 4 | (unsigned)d;
	}
	if (!digits)
		return false;
	*out = v;
	*s = p;
	return true;
}

static bool parse_dec(const char **s, uint64_t *out)
{
	uint64_t v = 0;
	const char *p = *s;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return false;
	if (p == *s)
		return false;
	*out = v;
	*s = p;
	return true;
}

static bool skip(const char **s, char c)
{
	if (**s != c)
		return false;
	++*s;
	return true;
}

static bool parse_prot(const char **s, struct map *m)
{
	const char *p = *s;
	if ((p[0] != 'r' && p[0] != '-') || (p[1] != 'w' && p[1] != '-') || (p[2] != 'x' && p[2] != '-') ||
	    (p[3] != 's' && p[3] != 'p'))
		return false;
	m->prot = (p[0] == 'r' ? PROT_READ : 0u) | (p[1] == 'w' ? PROT_WRITE : 0u) | (p[2] == 'x' ? PROT_EXEC : 0u);
	m->shared = p[3] == 's';
	*s = p + 4;
	return true;
}

/* The kernel writes a newline in a name as \012 and nothing else differently. */
static void unescape(char *s)
{
	char *to = s;
	while (*s) {
		if (!strncmp(s, "\\012", 4)) {
			*to++ = '\n';
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = 0;
}

static enum map_kind kind_of_file(const struct map *m)
{
	if (!strncmp(m->path, "/memfd:", 7) && m->deleted)
		return m->shared ? MAP_KIND_MEMFD : MAP_KIND_MEMFD_PRIVATE;
	if (!strcmp(m->path, "/dev/zero"))
		return m->deleted ? (m->shared ? MAP_KIND_SHM : MAP_KIND_OTHER)
				  : (m->shared ? MAP_KIND_OTHER : MAP_KIND_FILE);
	if (!strncmp(m->path, "/dev/", 5) && strncmp(m->path, "/dev/shm/", 9))
		return MAP_KIND_OTHER;
	if (m->deleted || m->path[0] != '/')
		return MAP_KIND_OTHER; /* anon_inode:[io_uring], socket:[…], [uprobes], … */
	return m->shared ? MAP_KIND_FILE_SHARED : MAP_KIND_FILE;
}

static enum map_kind classify(const struct map *m)
{
	if (!m->path[0])
		return m->shared || m->ino ? MAP_KIND_OTHER : MAP_KIND_ANON;
	for (size_t i = 0; i < ARRAY_LEN(special); i++)
		if (special[i].prefix ? !strncmp(m->path, special[i].name, strlen(special[i].name))
				      : !strcmp(m->path, special[i].name))
			return special[i].kind;
	return kind_of_file(m);
}

static bool set_path(struct map *m, char *text)
{
	static const char suffix[] = " (deleted)";
	size_t n = strlen(text), k = sizeof(suffix) - 1;
	if (n > k && !strcmp(text + n - k, suffix)) {
		m->deleted = true;
		text[n - k] = 0;
	}
	unescape(text);
	m->path = strdup(text);
	if (!m->path)
		return false;
	m->kind = classify(m);
	const char *colon = strchr(text, ':');
	n = strlen(text);
	if (colon && text[n - 1] == ']' && (!strncmp(text, "[anon:", 6) || !strncmp(text, "[anon_shmem:", 12))) {
		m->name = strndup(colon + 1, n - (size_t)(colon + 1 - text) - 1);
		return m->name != NULL;
	}
	return true;
}

/* "start-end perms offset major:minor inode   path" */
static int parse_header(char *line, struct map *m, struct fault *f)
{
	const char *s = line;
	uint64_t major, minor;
	if (!parse_hex(&s, &m->start) || !skip(&s, '-') || !parse_hex(&s, &m->end) || !skip(&s, ' ') ||
	    !parse_prot(&s, m) || !skip(&s, ' ') || !parse_hex(&s, &m->pgoff) || !skip(&s, ' ') ||
	    !parse_hex(&s, &major) || !skip(&s, ':') || !parse_hex(&s, &minor) || !skip(&s, ' ') ||
	    !parse_dec(&s, &m->ino) || m->start >= m->end || (m->start | m->end | m->pgoff) % PAGE_BYTES ||
	    (*s && *s != ' '))
		return fault_set(f, FAULT_SYSTEM, "a line of /proc/PID/maps that makes no sense: \"%.80s\"", line);
	m->dev = makedev((unsigned)major, (unsigned)minor);
	while (*s == ' ')
		s++;
	if (!set_path(m, line + (s - line)))
		return fault_errno(f, FAULT_NO_MEMORY, "keep a list of mappings");
	return 0;
}

static uint32_t parse_flags(const char *s)
{
	uint32_t flags = 0;
	while (*s) {
		while (*s == ' ')
			s++;
		for (size_t i = 0; i < ARRAY_LEN(vm_flags) && *s; i++)
			if (!strncmp(s, vm_flags[i].code, 2) && (s[2] == ' ' || !s[2]))
				flags |= vm_flags[i].flag;
		while (*s && *s != ' ')
			s++;
	}
	return flags;
}

static void map_done(struct map *m)
{
	free(m->path);
	free(m->name);
}

static int add_line(char *line, bool smaps, struct maps *out, struct fault *f)
{
	if (smaps && !isdigit((unsigned char)*line) && (*line < 'a' || *line > 'f')) {
		if (out->n && !strncmp(line, "VmFlags:", 8)) {
			struct map *m = &out->v[out->n - 1];
			m->flags = parse_flags(line + 8);
			if (m->flags & MAP_FLAG_HUGETLB)
				m->kind = MAP_KIND_OTHER;
		}
		return 0;
	}
	if (util_grow((void **)&out->v, &out->cap, out->n, sizeof(*out->v)) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "keep a list of mappings");
	struct map m = { 0 };
	if (parse_header(line, &m, f) < 0) {
		map_done(&m);
		return -1;
	}
	if (out->n && m.start < out->v[out->n - 1].end) {
		map_done(&m);
		return fault_set(f, FAULT_SYSTEM, "mappings out of order at %llx", (unsigned long long)m.start);
	}
	out->v[out->n++] = m;
	return 0;
}

int maps_parse(char *text, bool smaps, struct maps *out, struct fault *f)
{
	struct maps list = { 0 };
	char *save = NULL;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		if (add_line(line, smaps, &list, f) < 0) {
			maps_free(&list);
			return -1;
		}
	*out = list;
	return 0;
}

int maps_read(struct process *p, bool with_flags, struct maps *out, struct fault *f)
{
	size_t len = 0;
	const char *file = with_flags ? "smaps" : "maps";
	auto_free char *text = util_read_file(p->procfd, file, &len);
	if (!text)
		return fault_errno(f, errno == ENOENT || errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "read /proc/%d/%s", p->pid, file);
	if (!len) /* a zombie's list is empty; a living process has mappings */
		return fault_set(f, FAULT_PROCESS_GONE, "process %d has no memory any more", p->pid);
	if (maps_parse(text, with_flags, out, f) < 0)
		return fault_while(f, "reading the mappings of pid %d (%s)", p->pid, p->comm);
	return 0;
}

void maps_free(struct maps *m)
{
	for (size_t i = 0; i < m->n; i++)
		map_done(&m->v[i]);
	free(m->v);
	*m = (struct maps){ 0 };
}

const struct map *maps_find(const struct maps *m, uint64_t addr)
{
	size_t lo = 0, hi = m->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (addr < m->v[mid].start)
			hi = mid;
		else if (addr >= m->v[mid].end)
			lo = mid + 1;
		else
			return &m->v[mid];
	}
	return NULL;
}

/* Lowest start of what overlaps [start, end), 0 when nothing does. */
static uint64_t overlap(const struct maps *m, const struct range *keep, size_t n, uint64_t start, uint64_t end)
{
	uint64_t low = 0;
	for (size_t i = 0; i < m->n; i++)
		if (m->v[i].start < end && m->v[i].end > start && (!low || m->v[i].start < low))
			low = m->v[i].start;
	for (size_t i = 0; i < n; i++)
		if (keep[i].start < end && keep[i].end > start && (!low || keep[i].start < low))
			low = keep[i].start;
	return low;
}

/* The top of the address space belongs to the stack, which grows, and to the kernel's own mmap choices; the bottom to
 * the program and its heap. So the search goes down from 64 TiB, where no program of ours is, with room on both sides. */
uint64_t maps_hole(const struct maps *m, const struct range *keep_clear, size_t n, uint64_t len)
{
	const uint64_t top = (uint64_t)1 << 46, bottom = (uint64_t)1 << 32, room = (uint64_t)1 << 24;
	if (!len || len % PAGE_BYTES || len > top - bottom)
		return 0;
	uint64_t end = top;
	while (end > bottom && end - bottom > len + 2 * room) {
		uint64_t start = end - room - len;
		uint64_t low = overlap(m, keep_clear, n, start - room, end);
		if (!low)
			return start & ~(((uint64_t)1 << 21) - 1);
		if (low < bottom)
			return 0;
		end = low < end ? low : end - room;
	}
	return 0;
}
