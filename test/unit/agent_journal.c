/* What is written is read back; what is not exactly what was written is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "journal.h"

#define ID "0f8fad5b-d9cb-469f-a165-70867728950e"

struct place {
	char dir[64];
	int fd;
};

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	strcpy(p->dir, "/dev/shm/cpr-journal-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	p->fd = open(p->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(p->fd >= 0);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;
	const char *const names[] = { ID ".journal", ID ".new", "other.journal", "x.journal" };
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		unlinkat(p->fd, names[i], 0);
	close(p->fd);
	int r = rmdir(p->dir);
	free(p);
	return r;
}

static void full(struct journal *j)
{
	struct fault f;
	*j = (struct journal){ .side = HANDOFF_DESTINATION,
			       .state = HANDOFF_READY,
			       .event = HANDOFF_EV_READY,
			       .pid = 4242,
			       .start_time = UINT64_MAX,
			       .ready = true,
			       .own_group = true };
	strcpy(j->migration, ID);
	strcpy(j->reason, "a reason\nwith = lines, 100% and \x01 \xff");
	strcpy(j->peer, "host2.example");
	strcpy(j->boot_id, "b0000000-0000-4000-8000-000000000001");
	strcpy(j->freezer, "v2");
	memset(j->group, 'g', sizeof(j->group) - 1);
	strcpy(j->origin, "/sys/fs/cgroup/a b/c");
	for (int k = 0; k < UNDO_KIND_COUNT; k++) {
		struct undo u = { .kind = k,
				  .pid = 4242,
				  .fd = -1,
				  .value = INT64_MIN + k,
				  .prefix = 24,
				  .ifa_flags = UINT32_MAX,
				  .scope = 253 };
		strcpy(u.address, k % 2 ? "2001:db8::1" : "");
		strcpy(u.device, k % 2 ? "" : "eth 0");
		memset(u.name, '%', k == 3 ? sizeof(u.name) - 1 : 0);
		assert_int_equal(journal_push(j, &u, &f), 0);
	}
}

static void same(const struct journal *a, const struct journal *b)
{
	assert_string_equal(a->migration, b->migration);
	assert_int_equal(a->side, b->side);
	assert_int_equal(a->state, b->state);
	assert_int_equal(a->event, b->event);
	assert_string_equal(a->reason, b->reason);
	assert_int_equal(a->pid, b->pid);
	assert_true(a->start_time == b->start_time);
	assert_string_equal(a->peer, b->peer);
	assert_string_equal(a->boot_id, b->boot_id);
	assert_int_equal(a->ready, b->ready);
	assert_int_equal(a->own_group, b->own_group);
	assert_string_equal(a->freezer, b->freezer);
	assert_string_equal(a->group, b->group);
	assert_string_equal(a->origin, b->origin);
	assert_int_equal(a->n_undo, b->n_undo);
	for (size_t i = 0; i < a->n_undo; i++)
		assert_memory_equal(&a->undo[i], &b->undo[i], sizeof(struct undo));
}

static void round_trip(void **state)
{
	struct place *p = *state;
	struct journal a, b;
	struct fault f = { 0 };
	full(&a);
	assert_false(journal_exists(p->fd, ID));
	assert_int_equal(journal_read(p->fd, ID, &b, &f), -1);
	assert_int_equal(f.code, FAULT_FILE_MISSING);
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	assert_true(journal_exists(p->fd, ID));
	assert_int_equal(journal_read(p->fd, ID, &b, &f), 0);
	same(&a, &b);
	journal_done(&b);
	/* replaced as a whole, by less */
	journal_done(&a);
	a.state = HANDOFF_DISCARDED;
	a.reason[0] = a.peer[0] = a.group[0] = 0;
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	assert_int_equal(journal_read(p->fd, ID, &b, &f), 0);
	same(&a, &b);
	assert_int_equal(journal_remove(p->fd, ID, &f), 0);
	assert_int_equal(journal_remove(p->fd, ID, &f), 0);
}

static void put(struct place *p, const char *text, size_t len)
{
	int fd = openat(p->fd, ID ".journal", O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0 && util_write_all(fd, text, len) == 0);
	close(fd);
}

static void damaged(void **state)
{
	struct place *p = *state;
	struct journal a, b;
	struct fault f;
	size_t len;
	full(&a);
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	char *text = util_read_file(p->fd, ID ".journal", &len);
	assert_non_null(text);
	for (size_t n = 0; n < len; n++) { /* cut anywhere */
		put(p, text, n);
		assert_int_equal(journal_read(p->fd, ID, &b, &f), -1);
		assert_int_equal(f.code, FAULT_IMAGE);
	}
	for (size_t n = 0; n < len; n++) { /* a bit anywhere */
		text[n] = (char)(text[n] ^ (1 << n % 8));
		put(p, text, len);
		assert_int_equal(journal_read(p->fd, ID, &b, &f), -1);
		text[n] = (char)(text[n] ^ (1 << n % 8));
	}
	put(p, text, len);
	assert_int_equal(journal_read(p->fd, ID, &b, &f), 0);
	same(&a, &b);
	journal_done(&b);
	journal_done(&a);
	free(text);
}

/* A file that was copied to another name is not that migration's. */
static void wrong_name(void **state)
{
	struct place *p = *state;
	const char *other = "11111111-d9cb-469f-a165-70867728950e";
	struct journal a, b;
	struct fault f;
	full(&a);
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	assert_int_equal(linkat(p->fd, ID ".journal", p->fd, "11111111-d9cb-469f-a165-70867728950e.journal", 0), 0);
	assert_int_equal(journal_read(p->fd, other, &b, &f), -1);
	assert_int_equal(f.code, FAULT_IMAGE);
	assert_int_equal(journal_remove(p->fd, other, &f), 0);
	assert_int_equal(journal_read(p->fd, "../etc/passwd", &b, &f), -1);
	assert_int_equal(f.code, FAULT_INTERNAL);
	journal_done(&a);
}

static int count(void *ctx, const char *migration, struct fault *f)
{
	(void)f;
	assert_string_equal(migration, ID);
	++*(int *)ctx;
	return 0;
}

static void listing(void **state)
{
	struct place *p = *state;
	struct journal a;
	struct fault f;
	int n = 0;
	full(&a);
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	close(openat(p->fd, "other.journal", O_WRONLY | O_CREAT, 0600));
	close(openat(p->fd, "x.journal", O_WRONLY | O_CREAT, 0600));
	close(openat(p->fd, ID ".new", O_WRONLY | O_CREAT, 0600));
	assert_int_equal(journal_each(p->fd, count, &n, &f), 0);
	assert_int_equal(n, 1);
	journal_done(&a);
}

static void uuids(void **state)
{
	(void)state;
	assert_true(journal_is_uuid(ID));
	assert_false(journal_is_uuid(""));
	assert_false(journal_is_uuid("0f8fad5b-d9cb-469f-a165-70867728950"));
	assert_false(journal_is_uuid("0f8fad5b-d9cb-469f-a165-70867728950ee"));
	assert_false(journal_is_uuid("0F8fad5b-d9cb-469f-a165-70867728950e"));
	assert_false(journal_is_uuid("0f8fad5b-d9cb-469f-a165-7086772895/e"));
}

static void no_room(void **state)
{
	struct place *p = *state;
	struct journal a, b;
	struct fault f = { 0 };
	full(&a);
	assert_int_equal(journal_write(p->fd, &a, &f), 0);
	/* The new one can't be written: the old one stays whole. */
	assert_int_equal(mkdirat(p->fd, ID ".new", 0700), 0);
	a.state = HANDOFF_RUNNING;
	assert_int_equal(journal_write(p->fd, &a, &f), -1);
	assert_int_equal(f.code, FAULT_SYSTEM);
	assert_int_equal(unlinkat(p->fd, ID ".new", AT_REMOVEDIR), 0);
	assert_int_equal(journal_read(p->fd, ID, &b, &f), 0);
	assert_int_equal(b.state, HANDOFF_READY);
	journal_done(&b);
	journal_done(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(uuids),
		cmocka_unit_test_setup_teardown(round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(damaged, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_name, setup, teardown),
		cmocka_unit_test_setup_teardown(listing, setup, teardown),
		cmocka_unit_test_setup_teardown(no_room, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
