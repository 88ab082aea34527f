/*
 * The file table: ids, paths found again, what an image may not say, opening on the destination; and the destination's
 * look at what an offer needs.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

#include "fdtab.h"
#include "files_check.h"

static struct fault f;
static char dir[64];

static char *in_dir(const char *name)
{
	static char path[8][128];
	static int n;
	char *p = path[n++ & 7];
	snprintf(p, 128, "%s/%s", dir, name);
	return p;
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

/* ---- the table ---- */

static void test_ids_and_paths(void **state)
{
	(void)state;
	struct filetab *t = filetab_new();
	struct stat st;
	uint32_t id;
	assert_int_equal(stat("/etc/passwd", &st), 0);
	assert_int_equal(filetab_path(t, "/etc/passwd", O_RDONLY, &st), 1);
	assert_int_equal(filetab_path(t, "/etc/group", O_RDONLY, NULL), 2);
	assert_int_equal(filetab_path(t, "/etc/passwd", O_RDWR, &st), 3);
	FileEntry *e = filetab_new_entry(t, FD_TYPES__REG, &id);
	assert_int_equal(id, 4);
	e->reg = arena_msg(filetab_arena(t), RegFileEntry, reg_file_entry);
	e->reg->id = id;
	e->reg->name = (char *)"/etc/shadow";
	e->reg->fown = arena_msg(filetab_arena(t), FownEntry, fown_entry);
	assert_int_equal(filetab_path(t, "/etc/shadow", O_RDONLY, NULL), 5); /* not the descriptor's own entry */
	assert_int_equal(filetab_path(t, "/etc/passwd", O_RDONLY | O_CLOEXEC, &st), 1);
	assert_int_equal(filetab_count(t), 5);
	assert_int_equal(filetab_find(t, 1)->reg->size, st.st_size);
	assert_null(filetab_find(t, 6));
	assert_null(filetab_find(t, 0));
	/* there and back */
	struct image *img = image_new();
	struct filetab *u = filetab_new();
	assert_int_equal(filetab_put(t, img, &f), 0);
	for (size_t i = image_count(img); i-- > 0;) {
		const struct image_entry *n = image_at(img, i);
		assert_int_equal(n->type, IMAGE_FILES);
		assert_int_equal(filetab_load(u, n->packed, n->packed_len, &f), 0);
		assert_int_equal(filetab_load(u, n->packed, n->packed_len, &f), 0); /* a later round's */
	}
	assert_int_equal(filetab_count(u), 5);
	assert_string_equal(filetab_find(u, 2)->reg->name, "/etc/group");
	assert_int_equal(filetab_find(u, 3)->reg->flags, O_RDWR);
	image_free(img);
	filetab_free(t);
	filetab_free(u);
}

static int load(FileEntry *e)
{
	uint8_t buf[8192];
	struct filetab *t = filetab_new();
	size_t n = file_entry__pack(e, buf);
	int r = filetab_load(t, buf, n, &f);
	filetab_free(t);
	return r;
}

static void test_what_an_image_may_not_say(void **state)
{
	(void)state;
	struct filetab *t = filetab_new();
	FileEntry e = FILE_ENTRY__INIT;
	FownEntry own = FOWN_ENTRY__INIT;
	RegFileEntry reg = REG_FILE_ENTRY__INIT;
	char longest[5000];
	assert_int_equal(filetab_load(t, "\xff\xff\xff", 3, &f), -1);
	assert_int_equal(f.code, FAULT_IMAGE);
	filetab_free(t);
	memset(longest, '/', sizeof(longest));
	longest[sizeof(longest) - 1] = 0;
	reg.fown = &own;
	reg.name = (char *)"/x";
	e.type = FD_TYPES__REG;
	e.id = 7;
	assert_int_equal(load(&e), -1); /* no reg */
	e.reg = &reg;
	assert_int_equal(load(&e), 0);
	e.id = 0;
	assert_int_equal(load(&e), -1);
	e.id = 7;
	reg.name = (char *)"relative";
	assert_int_equal(load(&e), -1);
	reg.name = longest;
	assert_int_equal(load(&e), -1);
	for (int type = FD_TYPES__PIPE; type <= FD_TYPES__MEMFD; type++) {
		static const int known[] = { FD_TYPES__PIPE,	FD_TYPES__FIFO,	     FD_TYPES__INETSK,
					     FD_TYPES__EVENTFD, FD_TYPES__EVENTPOLL, FD_TYPES__SIGNALFD,
					     FD_TYPES__TIMERFD, FD_TYPES__MEMFD };
		FileEntry bare = FILE_ENTRY__INIT;
		bool of_ours = false;
		for (size_t i = 0; i < ARRAY_LEN(known); i++)
			of_ours |= known[i] == type;
		bare.id = 1;
		bare.type = (FdTypes)type;
		assert_int_equal(load(&bare), of_ours ? -1 : 0);
	}
}

/* ---- opening ---- */

static RegFileEntry entry(const char *path, uint32_t flags, uint32_t mode, uint64_t size)
{
	static FownEntry own = FOWN_ENTRY__INIT;
	RegFileEntry reg = REG_FILE_ENTRY__INIT;
	reg.name = (char *)path;
	reg.flags = flags;
	reg.fown = &own;
	reg.has_mode = reg.has_size = true;
	reg.mode = mode;
	reg.size = size;
	return reg;
}

static void test_open(void **state)
{
	(void)state;
	static const struct {
		const char *name;
		uint32_t flags, mode;
		uint64_t size;
		enum fault_code code;
		const char *text;
	} cases[] = {
		{ "ten", O_RDONLY, S_IFREG, 10, FAULT_NONE, NULL },
		{ "ten", O_RDWR | O_CREAT | O_EXCL | O_TRUNC, S_IFREG, 10, FAULT_NONE, NULL },
		{ "ten", O_RDONLY | O_NOFOLLOW, S_IFREG, 10, FAULT_NONE, NULL },
		{ "ten", O_RDWR | (O_TMPFILE & ~O_DIRECTORY), S_IFREG, 10, FAULT_NONE, NULL }, /* linked later */
		{ "ten", O_PATH, S_IFREG, 11, FAULT_NONE, NULL },
		{ "none", O_RDONLY, S_IFREG, 10, FAULT_FILE_MISSING, "none" },
		{ "ten", O_RDONLY, S_IFREG, 20, FAULT_FILE_DIFFERS, "is 10 bytes here and 20 on the source" },
		{ "ten", O_RDWR, S_IFREG, 9, FAULT_FILE_DIFFERS, "is 10 bytes here and 9 on the source" },
		{ "ten", O_WRONLY | O_APPEND, S_IFREG, 20, FAULT_NONE, NULL },
		{ "ten", O_RDWR | O_APPEND, S_IFREG, 9, FAULT_NONE, NULL },
		{ "ten", O_RDWR | O_APPEND, S_IFREG, 11, FAULT_FILE_DIFFERS, "bytes" },
		{ "fifo", O_RDONLY, S_IFREG, 10, FAULT_FILE_DIFFERS, "is a fifo here and a regular file on" },
		{ "", O_RDONLY, S_IFREG, 10, FAULT_FILE_DIFFERS, "is a directory here" },
		{ "ten", O_RDONLY | O_DIRECTORY, S_IFDIR, 0, FAULT_FILE_DIFFERS, "is a regular file here" },
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		RegFileEntry reg = entry(in_dir(cases[i].name), cases[i].flags, cases[i].mode, cases[i].size);
		auto_fd fd = filetab_open(&reg, -1, &f);
		if (cases[i].code == FAULT_NONE && fd < 0)
			fail_msg("case %zu: %s", i, f.what);
		if (cases[i].code != FAULT_NONE &&
		    (fd >= 0 || f.code != cases[i].code || !strstr(f.what, cases[i].text)))
			fail_msg("case %zu: fd %d, %s: %s", i, fd, fault_code_name(f.code), f.what);
	}
	struct stat st;
	assert_int_equal(stat(in_dir("ten"), &st), 0);
	assert_int_equal(st.st_size, 10); /* O_TRUNC of the recorded flags did nothing */
}

static void test_open_below_a_root(void **state)
{
	(void)state;
	auto_fd root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	RegFileEntry reg = entry("/ten", O_RDONLY, S_IFREG, 10), up = entry("/../../ten", O_RDONLY, S_IFREG, 10);
	RegFileEntry abs = entry("/absolute", O_RDONLY, S_IFREG, 10); /* a link to /ten */
	auto_fd a = filetab_open(&reg, root, &f), b = filetab_open(&up, root, &f), c = filetab_open(&abs, root, &f);
	assert_true(a >= 0 && b >= 0 && c >= 0);
	assert_int_equal(filetab_open(&reg, -1, &f), -1);
}

static void test_digest(void **state)
{
	(void)state;
	static const uint8_t of_nothing[16] = { 0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
						0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f };
	uint8_t a[16], b[16];
	auto_fd ten = open(in_dir("ten"), O_RDONLY), again = open(in_dir("ten"), O_RDONLY);
	auto_fd nothing = open("/dev/null", O_RDONLY);
	assert_int_equal(lseek(again, 5, SEEK_SET), 5);
	assert_int_equal(filetab_digest(ten, a, &f), 0);
	assert_int_equal(filetab_digest(again, b, &f), 0);
	assert_memory_equal(a, b, 16);
	assert_int_equal(lseek(again, 0, SEEK_CUR), 5);
	assert_int_equal(filetab_digest(nothing, b, &f), 0);
	assert_memory_equal(b, of_nothing, 16);
}

/* ---- what an offer needs ---- */

static struct report check(Cpr__NeededFile *file, Cpr__NeededAddress *address)
{
	struct report r;
	Cpr__Offer offer = CPR__OFFER__INIT;
	report_init(&r);
	offer.n_files = file ? 1 : 0;
	offer.files = &file;
	offer.n_addresses = address ? 1 : 0;
	offer.addresses = &address;
	assert_int_equal(files_check_target(&offer, &r, &f), 0);
	return r;
}

static void finds(Cpr__NeededFile *file, enum report_severity severity, enum fault_code code, const char *text)
{
	struct report r = check(file, NULL);
	if (code == FAULT_NONE ? r.n != 0 : r.n != 1)
		fail_msg("%s: %zu findings: %s", file->path, r.n, r.n ? r.findings[0].reason : "");
	if (r.n) {
		assert_int_equal(r.findings[0].severity, severity);
		assert_int_equal(r.findings[0].code, code);
		if (!strstr(r.findings[0].reason, text))
			fail_msg("\"%s\" is not in \"%s\"", text, r.findings[0].reason);
		assert_non_null(r.findings[0].remedy);
	}
	report_done(&r);
}

static void test_needed_files(void **state)
{
	(void)state;
	Cpr__NeededFile n = CPR__NEEDED_FILE__INIT;
	struct arena *a = arena_new();
	n.path = in_dir("ten");
	n.size = 10;
	n.has_mode = true;
	n.mode = S_IFREG | 0644;
	n.object = (char *)"fd 3: file";
	finds(&n, 0, FAULT_NONE, NULL);
	n.size = 20;
	finds(&n, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "is 10 bytes here and 20 on the source");
	n.size = 5;
	finds(&n, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "is 10 bytes here and 5 on the source");
	n.has_size_may_grow = n.size_may_grow = true;
	finds(&n, 0, FAULT_NONE, NULL);
	n.size = 20;
	finds(&n, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "is 10 bytes");
	n.has_append_only = n.append_only = true;
	finds(&n, REPORT_LOSS, FAULT_FILE_DIFFERS, "only appended to");
	n.append_only = n.size_may_grow = false;
	n.size = 10;
	n.mode = S_IFDIR;
	finds(&n, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "is a regular file here and a directory on the source");
	n.path = in_dir("none");
	finds(&n, REPORT_BLOCKER, FAULT_FILE_MISSING, "is not on the destination");
	n.path = (char *)"/dev/null";
	n.mode = S_IFCHR;
	n.has_rdev = true;
	n.rdev = makedev(1, 3);
	finds(&n, 0, FAULT_NONE, NULL);
	n.rdev = makedev(1, 5);
	finds(&n, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "is device 1:3 here and 1:5 on the source");
	/* the content */
	Cpr__NeededFile c = CPR__NEEDED_FILE__INIT, *list[] = { &c };
	c.path = in_dir("content");
	put(c.path, "0123456789");
	c.size = 10;
	c.has_digest = true;
	files_add_digests(list, 1, a);
	assert_int_equal(c.digest.len, 16);
	finds(&c, 0, FAULT_NONE, NULL);
	put(c.path, "012345678x");
	finds(&c, REPORT_BLOCKER, FAULT_FILE_DIFFERS, "another content");
	put(c.path, "gone on since vetting");
	c.digest = (ProtobufCBinaryData){ 0 };
	files_add_digests(list, 1, a);
	assert_false(c.has_digest); /* it is not the file that was looked at */
	arena_free(a);
}

static void test_needed_addresses(void **state)
{
	(void)state;
	Cpr__NeededAddress n = CPR__NEEDED_ADDRESS__INIT;
	n.address = (char *)"127.0.0.1";
	struct report r = check(NULL, &n);
	assert_int_equal(r.n, 0);
	n.address = (char *)"192.0.2.77";
	r = check(NULL, &n);
	assert_int_equal(r.n, 1);
	assert_int_equal(r.findings[0].code, FAULT_NO_ADDRESS);
	assert_non_null(strstr(r.findings[0].reason, "192.0.2.77"));
	assert_non_null(strstr(r.findings[0].remedy, "--move-address"));
	report_done(&r);
	n.has_moves = n.moves = true;
	r = check(NULL, &n);
	assert_int_equal(r.n, 0);
	n.address = (char *)"nonsense";
	r = check(NULL, &n);
	assert_int_equal(r.n, 1);
	report_done(&r);
}

static void test_fdinfo_value(void **state)
{
	(void)state;
	const char *text = "pos:\t17\nflags:\t02000002\nsettime flags: 01\nino:\t5\n";
	assert_int_equal(strtoul(fdinfo_value(text, "pos"), NULL, 10), 17);
	assert_int_equal(strtoul(fdinfo_value(text, "flags"), NULL, 8), 02000002);
	assert_int_equal(strtoul(fdinfo_value(text, "settime flags"), NULL, 8), 1);
	assert_null(fdinfo_value(text, "in"));
	assert_null(fdinfo_value("", "pos"));
}

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/var/tmp/cpr-filetab-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	put(in_dir("ten"), "0123456789");
	return mkfifo(in_dir("fifo"), 0600) < 0 || symlink("/ten", in_dir("absolute")) < 0;
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
		cmocka_unit_test(test_ids_and_paths),
		cmocka_unit_test(test_what_an_image_may_not_say),
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_open_below_a_root),
		cmocka_unit_test(test_digest),
		cmocka_unit_test(test_needed_files),
		cmocka_unit_test(test_needed_addresses),
		cmocka_unit_test(test_fdinfo_value),
	};
	alarm(60);
	return cmocka_run_group_tests(tests, setup, teardown);
}
