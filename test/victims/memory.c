/* Memory of every ordinary kind, rewritten all the time; each page holds its own address and generation. */
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "victim.h"

#define PAGE 4096ul
#ifndef PR_SET_VMA
#define PR_SET_VMA	     0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

struct area {
	const char *name;
	char *p, *alias; /* alias: another mapping of the same memory */
	size_t len;
	uint64_t *generation; /* per page */
	bool writable;
};
static struct area areas[32];
static int n_areas;

static uint64_t word(const struct area *a, size_t page, int i)
{
	return ((uint64_t)(uintptr_t)a->name * 31 + page * 0x9e3779b97f4a7c15u + (uint64_t)i) ^ a->generation[page]
													<< 20;
}

static void put(struct area *a, size_t page)
{
	uint64_t *w = (uint64_t *)(a->p + page * PAGE);
	a->generation[page]++;
	for (int i = 0; i < 512; i += 37)
		w[i] = word(a, page, i);
}

static void verify(const struct area *a, size_t page)
{
	if (!a->generation[page])
		return;
	const uint64_t *w = (const uint64_t *)((a->alias ? a->alias : a->p) + page * PAGE);
	for (int i = 0; i < 512; i += 37)
		if (!victim_check(w[i] == word(a, page, i), "%s: page %zu word %d: %llx, not %llx", a->name, page, i,
				  (unsigned long long)w[i], (unsigned long long)word(a, page, i)))
			return;
}

static struct area *add(const char *name, void *p, size_t len)
{
	if (p == MAP_FAILED) {
		victim_check(false, "%s: %s", name, strerror(errno));
		victim_done();
	}
	struct area *a = &areas[n_areas++];
	*a = (struct area){ .name = name, .p = p, .len = len, .writable = true };
	a->generation = calloc(len / PAGE, sizeof(*a->generation));
	return a;
}

static void *anon(size_t len, int prot)
{
	return mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* The mappings as lines "start-end perms": nothing may change them but we. */
static char *layout(void)
{
	static char buf[1 << 17];
	size_t used = 0;
	char line[512];
	FILE *f = fopen("/proc/self/maps", "re");
	while (f && fgets(line, sizeof(line), f)) {
		unsigned long s, e;
		char perms[8];
		if (sscanf(line, "%lx-%lx %7s", &s, &e, perms) == 3 && !strstr(line, "[stack]") &&
		    !strstr(line, "[heap]"))
			used += (size_t)snprintf(buf + used, sizeof(buf) - used, "%lx-%lx %s\n", s, e, perms);
	}
	if (f)
		fclose(f);
	return buf;
}

static void recurse(int depth)
{
	volatile char frame[4096];
	for (size_t i = 0; i < sizeof(frame); i += 512)
		frame[i] = (char)depth;
	if (depth)
		recurse(depth - 1);
	for (size_t i = 0; i < sizeof(frame); i += 512)
		victim_check(frame[i] == (char)depth, "the stack at depth %d", depth);
}

static void make(void)
{
	char path[300];
	size_t mb = 1 << 20;
	struct area *a;
	add("anonymous", anon(8 * mb, PROT_READ | PROT_WRITE), 8 * mb);
	add("sparse", anon(1024 * mb, PROT_READ | PROT_WRITE), 1024 * mb);
	a = add("huge pages", anon(8 * mb, PROT_READ | PROT_WRITE), 8 * mb);
	madvise(a->p, a->len, MADV_HUGEPAGE);
	a = add("locked", anon(64 * PAGE, PROT_READ | PROT_WRITE), 64 * PAGE);
	victim_check(mlock(a->p, 8 * PAGE) == 0, "mlock: %s", strerror(errno));
	a = add("shared anonymous", mmap(NULL, mb, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), mb);
	int fd = memfd_create("victim", MFD_CLOEXEC);
	if (ftruncate(fd, (off_t)mb) < 0)
		victim_check(false, "ftruncate");
	a = add("memfd, mapped twice", mmap(NULL, mb, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), mb);
	a->alias = mmap(NULL, mb, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	victim_path(path, sizeof(path), "private");
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	for (size_t i = 0; i < 64; i++) {
		char page[PAGE];
		memset(page, (int)i, PAGE);
		if (write(fd, page, PAGE) != (ssize_t)PAGE)
			victim_check(false, "write");
	}
	add("private file", mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), 32 * PAGE);
	add("shared file", mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 32 * PAGE), 32 * PAGE);
	close(fd);
	a = add("no access", anon(16 * PAGE, PROT_READ | PROT_WRITE), 16 * PAGE);
	for (size_t i = 0; i < 16; i++)
		put(a, i);
	mprotect(a->p, a->len, PROT_NONE);
	a->writable = false;
	a = add("read only", anon(16 * PAGE, PROT_READ | PROT_WRITE), 16 * PAGE);
	for (size_t i = 0; i < 16; i++)
		put(a, i);
	mprotect(a->p, a->len, PROT_READ);
	a->writable = false;
	/* Two mappings that are neighbours but not one: filled in two pieces (a later mremap of both fails). */
	char *n = anon(48 * PAGE, PROT_NONE);
	munmap(n, 48 * PAGE);
	mmap(n, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	n[0] = 1;
	mmap(n + 17 * PAGE, 15 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	n[17 * PAGE] = 1;
	mmap(n + 16 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	add("neighbours", n, 32 * PAGE);
	a = add("advice", anon(32 * PAGE, PROT_READ | PROT_WRITE), 32 * PAGE);
	madvise(a->p, a->len, MADV_DONTFORK);
	madvise(a->p, a->len, MADV_DONTDUMP);
	a = add("named", anon(32 * PAGE, PROT_READ | PROT_WRITE), 32 * PAGE);
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, a->p, a->len, "victim name");
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	setvbuf(stdout, NULL, _IONBF, 0);
	make();
	recurse(200);
	char *before = strdup(layout());
	before = strdup(layout()); /* the first strdup may have moved the heap's end */
	uint64_t seed = 1, dropped = 0;
	char *heap = malloc(100);
	size_t heap_len = 100;
	victim_ready();
	while (victim_running()) {
		for (int k = 0; k < 400; k++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			struct area *a = &areas[(seed >> 33) % (unsigned)n_areas];
			size_t page = (seed >> 40) % (a->len / PAGE);
			if (a->len > 512u << 20)
				page = page / 4096 * 4096; /* sparse */
			if (!strcmp(a->name, "no access"))
				continue;
			verify(a, page);
			if (a->writable)
				put(a, page);
			/* Dropped pages read as zeroes from then on, until they are written again. */
			if (!strcmp(a->name, "anonymous") && (seed >> 20) % 64 == 0) {
				madvise(a->p + page * PAGE, PAGE, MADV_DONTNEED);
				a->generation[page] = 0;
				dropped++;
				victim_check(a->p[page * PAGE + 8] == 0, "a dropped page is not zero");
			}
		}
		if (heap_len < 4 << 20) { /* grows in place by brk, then by mmap and mremap */
			heap = realloc(heap, heap_len * 2);
			memset(heap + heap_len, (int)(heap_len & 0x7f), heap_len);
			heap_len *= 2;
		}
		recurse(20);
		usleep(200);
	}
	for (int i = 0; i < n_areas; i++) {
		if (!strcmp(areas[i].name, "no access"))
			mprotect(areas[i].p, areas[i].len, PROT_READ);
		for (size_t p = 0; p < areas[i].len / PAGE; p++)
			verify(&areas[i], p);
		if (!strcmp(areas[i].name, "no access"))
			mprotect(areas[i].p, areas[i].len, PROT_NONE);
	}
	for (size_t l = 100; l < heap_len; l *= 2)
		for (size_t i = l; i < 2 * l; i += 97)
			victim_check(heap[i] == (char)(l & 0x7f), "the heap at %zu", i);
	recurse(200);
	free(heap);
	struct area *n = NULL;
	for (int i = 0; i < n_areas; i++)
		if (!strcmp(areas[i].name, "neighbours"))
			n = &areas[i];
	victim_check(n && mremap(n->p, 32 * PAGE, 64 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED,
		     "two neighbours have become one mapping");
	(void)before;
	victim_done();
}
