#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "maps.h"
#include "pageset.h"

static void kinds(void **state)
{
	(void)state;
	static const struct {
		const char *tail, *path;
		const char *name;
		enum map_kind kind;
		bool deleted;
	} rows[] = {
		{ "rw-p 00000000 00:00 0 ", "", NULL, MAP_KIND_ANON, false },
		{ "rw-p 00000000 00:00 0                          [heap]", "[heap]", NULL, MAP_KIND_ANON, false },
		{ "rw-p 00000000 00:00 0                          [stack]", "[stack]", NULL, MAP_KIND_ANON, false },
		{ "rw-p 00000000 00:00 0 [anon:arena 1]", "[anon:arena 1]", "arena 1", MAP_KIND_ANON, false },
		{ "rw-s 00000000 00:01 7 [anon_shmem:x]", "[anon_shmem:x]", "x", MAP_KIND_SHM, false },
		{ "r-xp 00001000 fe:01 99   /usr/bin/a b", "/usr/bin/a b", NULL, MAP_KIND_FILE, false },
		{ "r--s 00001000 fe:01 99   /a\\012b", "/a\nb", NULL, MAP_KIND_FILE_SHARED, false },
		{ "r-xp 00001000 fe:01 99   /usr/bin/a (deleted)", "/usr/bin/a", NULL, MAP_KIND_OTHER, true },
		{ "rw-s 00000000 00:01 24 /dev/zero (deleted)", "/dev/zero", NULL, MAP_KIND_SHM, true },
		{ "rw-p 00000000 00:05 24 /dev/zero", "/dev/zero", NULL, MAP_KIND_FILE, false },
		{ "rw-s 00000000 00:01 24 /memfd:a (deleted)", "/memfd:a", NULL, MAP_KIND_MEMFD, true },
		{ "rw-p 00000000 00:01 24 /memfd:a (deleted) (deleted)", "/memfd:a (deleted)", NULL,
		  MAP_KIND_MEMFD_PRIVATE, true },
		{ "rw-s 00000000 00:01 24 /SYSV00000000 (deleted)", "/SYSV00000000", NULL, MAP_KIND_OTHER, true },
		{ "rw-p 00000000 00:0f 24 /anon_hugepage (deleted)", "/anon_hugepage", NULL, MAP_KIND_OTHER, true },
		{ "rw-s 00000000 00:0f 24 anon_inode:[io_uring]", "anon_inode:[io_uring]", NULL, MAP_KIND_OTHER,
		  false },
		{ "rw-s 00000000 00:0f 24 /[aio] (deleted)", "/[aio]", NULL, MAP_KIND_OTHER, true },
		{ "rw-s 00000000 00:0f 24 /secretmem (deleted)", "/secretmem", NULL, MAP_KIND_OTHER, true },
		{ "rw-s 00000000 00:05 24 /dev/dri/card0", "/dev/dri/card0", NULL, MAP_KIND_OTHER, false },
		{ "rw-s 00000000 00:05 24 /dev/shm/x", "/dev/shm/x", NULL, MAP_KIND_FILE_SHARED, false },
		{ "r--p 00000000 00:00 0  [vvar]", "[vvar]", NULL, MAP_KIND_VVAR, false },
		{ "r--p 00000000 00:00 0  [vvar_vclock]", "[vvar_vclock]", NULL, MAP_KIND_VVAR, false },
		{ "r-xp 00000000 00:00 0  [vdso]", "[vdso]", NULL, MAP_KIND_VDSO, false },
		{ "--xp 00000000 00:00 0  [vsyscall]", "[vsyscall]", NULL, MAP_KIND_VSYSCALL, false },
		{ "--xp 00000000 00:00 0  [uprobes]", "[uprobes]", NULL, MAP_KIND_OTHER, false },
	};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char text[256];
		struct maps m;
		struct fault f;
		snprintf(text, sizeof(text), "7f0000000000-7f0000002000 %s\n", rows[i].tail);
		assert_int_equal(maps_parse(text, false, &m, &f), 0);
		assert_int_equal(m.n, 1);
		assert_string_equal(m.v[0].path, rows[i].path);
		assert_int_equal(m.v[0].kind, rows[i].kind);
		assert_int_equal(m.v[0].deleted, rows[i].deleted);
		if (rows[i].name)
			assert_string_equal(m.v[0].name, rows[i].name);
		else
			assert_null(m.v[0].name);
		maps_free(&m);
	}
}

static void smaps_flags(void **state)
{
	(void)state;
	char text[] = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonHugePages: 0 kB\n"
		      "VmFlags: rd wr mr mw me dc gd lo lf hg nr dd wf sr uw gu \n"
		      "3000-4000 r-xs 00002000 fe:00 17 /a\nVmFlags: rd ex sl \n"
		      "4000-5000 rw-p 00000000 00:00 0 \nVmFlags: rd ht \n";
	struct maps m;
	struct fault f;
	assert_int_equal(maps_parse(text, true, &m, &f), 0);
	assert_int_equal(m.n, 3);
	assert_int_equal(m.v[0].flags, MAP_FLAG_MAYWRITE | MAP_FLAG_DONTFORK | MAP_FLAG_GROWSDOWN | MAP_FLAG_LOCKED |
					       MAP_FLAG_LOCKONFAULT | MAP_FLAG_HUGEPAGE | MAP_FLAG_NORESERVE |
					       MAP_FLAG_DONTDUMP | MAP_FLAG_WIPEONFORK | MAP_FLAG_SEQREAD |
					       MAP_FLAG_UFFD | MAP_FLAG_GUARD);
	assert_int_equal(m.v[1].flags, MAP_FLAG_SEALED);
	assert_int_equal(m.v[1].prot, PROT_READ | PROT_EXEC);
	assert_int_equal(m.v[1].pgoff, 0x2000);
	assert_int_equal(m.v[2].kind, MAP_KIND_OTHER);
	assert_ptr_equal(maps_find(&m, 0x2fff), &m.v[0]);
	assert_ptr_equal(maps_find(&m, 0x3000), &m.v[1]);
	assert_null(maps_find(&m, 0x5000));
	maps_free(&m);
}

static void nonsense(void **state)
{
	(void)state;
	static const char *const rows[] = {
		"x",
		"1000-",
		"1000-1000 rw-p 0 00:00 0",
		"2000-1000 rw-p 0 00:00 0",
		"1000-2000 rwzp 0 00:00 0",
		"1000-2000 rw-p",
		"1001-2000 rw-p 0 00:00 0",
		"11111111111111111-2000 rw-p 0 00:00 0",
		"1000-2000 rw-p 0 00:00 99999999999999999999999",
		"1000-2000 rw-p 0 00:00 0x /a",
		"1000-2000 rw-p 0 00:00 0\n1000-2000 rw-p 0 00:00 0",
		"3000-4000 rw-p 0 00:00 0\n1000-2000 rw-p 0 00:00 0",
	};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct maps m;
		struct fault f;
		char *text = strdup(rows[i]);
		assert_int_equal(maps_parse(text, false, &m, &f), -1);
		free(text);
	}
}

/* Any bytes: no crash, and what is accepted is in order. */
static void mutations(void **state)
{
	(void)state;
	static const char seed[] = "55a0-55b0 r--p 00000000 fe:00 247134   /usr/bin/cat (deleted)\nVmFlags: rd mr gd \n"
				   "7f2c883e9000-7f2c8840b000 rw-p 00000000 00:00 0 [anon:x]\nRss: 1 kB\n";
	unsigned rnd = 1;
	for (int i = 0; i < 200000; i++) {
		char text[sizeof(seed)];
		memcpy(text, seed, sizeof(seed));
		for (int k = 0; k < 3; k++) {
			rnd = rnd * 1103515245u + 12345u;
			text[(rnd >> 8) % (sizeof(seed) - 1)] = (char)(rnd >> 24);
		}
		struct maps m;
		struct fault f;
		if (maps_parse(text, i & 1, &m, &f) == 0) {
			for (size_t k = 1; k < m.n; k++)
				assert_true(m.v[k - 1].end <= m.v[k].start);
			maps_free(&m);
		}
	}
}

static void hole(void **state)
{
	(void)state;
	char text[] = "100000000-200000000 rw-p 0 00:00 0\n3f0000000000-400000000000 rw-p 0 00:00 0\n";
	struct maps m;
	struct fault f;
	assert_int_equal(maps_parse(text, false, &m, &f), 0);
	struct range keep[] = { { 0x3e0000000000, 0x3effff000000 }, { 0x3dffffe00000, 0x3dfffff00000 } };
	for (uint64_t len = PAGE_BYTES; len < (uint64_t)1 << 44; len *= 8) {
		uint64_t at = maps_hole(&m, keep, 2, len);
		assert_true(at && at % PAGE_BYTES == 0);
		for (size_t i = 0; i < m.n; i++)
			assert_true(at + len <= m.v[i].start || at >= m.v[i].end);
		for (size_t i = 0; i < 2; i++)
			assert_true(at + len <= keep[i].start || at >= keep[i].end);
	}
	assert_int_equal(maps_hole(&m, keep, 2, (uint64_t)1 << 46), 0);
	assert_int_equal(maps_hole(&m, keep, 2, 1), 0);
	maps_free(&m);
}

/* Against an array of bools. */
static void pagesets(void **state)
{
	(void)state;
	enum { N = 300000 };
	static bool model[N];
	const uint64_t base = ((uint64_t)1 << 35) - N / 2; /* across a border of all levels */
	struct pageset *s = pageset_new();
	unsigned rnd = 7;
	for (int i = 0; i < 3000; i++) {
		rnd = rnd * 1103515245u + 12345u;
		uint64_t at = (rnd >> 4) % N;
		rnd = rnd * 1103515245u + 12345u;
		uint64_t n = (rnd >> 4) % (i % 10 ? 200 : 60000);
		if (at + n > N)
			n = N - at;
		bool set = rnd >> 30 & 1;
		(set ? pageset_add : pageset_remove)(s, base + at, n);
		memset(model + at, set, n);
	}
	uint64_t count = 0, at = base, run;
	for (size_t i = 0; i < N; i++) {
		count += model[i];
		assert_int_equal(pageset_has(s, base + i), model[i]);
	}
	assert_int_equal(pageset_count(s), count);
	for (; (at = pageset_next(s, at, base + N, &run)) < base + N; at += run) {
		assert_true(at == base || !model[at - base - 1]);
		for (uint64_t k = 0; k < run; k++)
			assert_true(model[at - base + k]);
		count -= run;
	}
	assert_int_equal(count, 0);
	assert_int_equal(pageset_next(s, 0, (uint64_t)1 << 45, &run), pageset_next(s, base, base + N, &run));
	pageset_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kinds),     cmocka_unit_test(smaps_flags), cmocka_unit_test(nonsense),
		cmocka_unit_test(mutations), cmocka_unit_test(hole),	    cmocka_unit_test(pagesets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
