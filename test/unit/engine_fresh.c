/* Placing pages in a vessel that has some of them: the fast way, the slow way, and wrong ideas about which it has. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory_dest.h"

#define AT    0x200000000000u
#define PAGES 1024u

static struct fault f;
#define OK(expr)                                                         \
	do {                                                             \
		if ((expr) < 0)                                          \
			fail_msg("%s: %s (%s)", #expr, f.what, f.trail); \
	} while (0)

struct set {
	struct vessel *v;
	struct memory_target *t;
	struct filetab *files;
	unsigned char *data;
};

static pid_t free_pid(void)
{
	for (pid_t pid = 20000 + getpid() % 8000;; pid++) {
		char path[32];
		snprintf(path, sizeof(path), "/proc/%d", pid);
		if (access(path, F_OK) < 0)
			return pid;
	}
}

static bool has_vsyscall(void)
{
	auto_free char *text = util_read_file(AT_FDCWD, "/proc/self/maps", NULL);
	return text && strstr(text, "[vsyscall]");
}

/* A vessel with one private mapping of PAGES pages. */
static void set_up(struct set *s, uint32_t advice)
{
	struct vessel_spec spec = { .pid = free_pid(), .new_session = true, .cgroup_fd = -1 };
	MmEntry mm = MM_ENTRY__INIT;
	VmaEntry vma = VMA_ENTRY__INIT, vsyscall = VMA_ENTRY__INIT, *list[] = { &vma, &vsyscall };
	vma.start = AT;
	vma.end = AT + PAGES * PAGE_BYTES;
	vma.prot = PROT_READ | PROT_WRITE;
	vma.flags = MAP_PRIVATE | MAP_ANONYMOUS;
	vma.status = VMA_REGULAR | VMA_ANON_PRIVATE;
	vma.fd = -1;
	vma.has_vm_flags = true;
	vma.vm_flags = advice;
	vsyscall.start = 0xffffffffff600000u; /* every process of this machine has it, or none */
	vsyscall.end = vsyscall.start + PAGE_BYTES;
	vsyscall.prot = PROT_EXEC;
	vsyscall.flags = MAP_PRIVATE | MAP_ANONYMOUS;
	vsyscall.status = VMA_VSYSCALL | VMA_ANON_PRIVATE;
	vsyscall.fd = -1;
	mm.n_vmas = has_vsyscall() ? 2 : 1;
	mm.vmas = list;
	s->files = filetab_new();
	s->data = malloc(PAGES * PAGE_BYTES);
	OK(vessel_new(&spec, &s->v, &f));
	OK(memory_target_new(s->v, &s->t, &f));
	OK(memory_target_maps(s->t, &mm, s->files, &f));
}

static void tear_down(struct set *s)
{
	memory_target_free(s->t);
	vessel_discard(s->v);
	filetab_free(s->files);
	free(s->data);
}

static void place(struct set *s, uint32_t page, uint32_t n, unsigned char value)
{
	struct memory_segment seg = { AT + page * PAGE_BYTES, n, 0, 0 };
	for (uint32_t i = 0; i < n; i++)
		memset(s->data + i * PAGE_BYTES, value + (int)i % 7, PAGE_BYTES);
	OK(memory_target_place(s->t, s->data, n, &seg, 1, &f));
}

static void drop(struct set *s, uint32_t page, uint32_t n)
{
	struct memory_segment seg = { AT + page * PAGE_BYTES, n, 0, MEMORY_SEGMENT_ZERO };
	OK(memory_target_place(s->t, s->data, 0, &seg, 1, &f));
}

/* Also that a page that is not there does not keep us waiting: it reads as zero once the mapping is as usual again. */
static void expect(struct set *s, uint32_t page, uint32_t n, unsigned char value)
{
	target_fresh_disarm(s->t);
	for (uint32_t i = 0; i < n; i++) {
		unsigned char got[PAGE_BYTES], want[PAGE_BYTES];
		memset(want, value ? value + (int)i % 7 : 0, sizeof(want));
		OK(process_read(vessel_process(s->v), AT + (page + i) * PAGE_BYTES, got, sizeof(got), &f));
		if (memcmp(got, want, sizeof(got)) != 0)
			fail_msg("page %u: %u, %u is due", page + i, got[0], want[0]);
	}
	if (s->t->uffd >= 0)
		target_fresh_arm(s->t);
}

static void mixed(void **state)
{
	(void)state;
	struct set s;
	set_up(&s, 0);
	assert_int_equal(s.t->n_armed, 1); /* else nothing below tests anything */
	place(&s, 100, 10, 1);
	place(&s, 130, 10, 20);
	place(&s, 90, 70, 40); /* around and over both */
	expect(&s, 90, 70, 40);
	expect(&s, 80, 10, 0);
	drop(&s, 120, 20);
	expect(&s, 120, 20, 0);
	place(&s, 120, 20, 60);
	expect(&s, 120, 20, 60);
	assert_int_equal(s.t->n_armed, 1);
	tear_down(&s);
}

/* There though not known to be: read by somebody while the mapping was as usual. */
static void unknown(void **state)
{
	(void)state;
	struct set s;
	set_up(&s, 0);
	place(&s, 0, 50, 1);
	pageset_remove(s.t->placed, AT / PAGE_BYTES + 20, 10);
	place(&s, 10, 30, 77);
	expect(&s, 10, 30, 77);
	assert_int_equal(s.t->n_armed, 1);
	tear_down(&s);
}

/* Known, and gone. */
static void gone(void **state)
{
	(void)state;
	struct set s;
	long ret;
	set_up(&s, 0);
	place(&s, 0, 50, 1);
	OK(target_one(s.t, &ret, &f, SYS_madvise, AT + 20 * PAGE_BYTES, 10 * PAGE_BYTES, MADV_DONTNEED, 0, 0, 0));
	assert_int_equal(ret, 0);
	place(&s, 0, 50, 99);
	expect(&s, 0, 50, 99);
	assert_int_equal(s.t->uffd, -1);
	place(&s, 500, 50, 5);
	expect(&s, 500, 50, 5);
	tear_down(&s);
}

/* Huge pages are not taken away. */
static void huge(void **state)
{
	(void)state;
	struct set s;
	set_up(&s, MAP_FLAG_HUGEPAGE);
	assert_int_equal(s.t->n_armed, 0);
	place(&s, 3, 900, 9);
	expect(&s, 3, 900, 9);
	tear_down(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mixed),
		cmocka_unit_test(unknown),
		cmocka_unit_test(gone),
		cmocka_unit_test(huge),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
