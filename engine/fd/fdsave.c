/*
 * The source's side of descriptors: what can't be moved and what the destination needs (fdtab_check), and the state
 * (fdtab_save). A duplicate of a descriptor is held only while its kind looks at it: as long as one is held, the
 * program's close(2) is not one.
 */
#include "fdtab.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *fd_object(char buf[FD_OBJECT_LEN], int fd, const char *what)
{
	snprintf(buf, FD_OBJECT_LEN, "fd %d: %s", fd, what);
	return buf;
}

/* A thread may have left the others' table or working directory (unshare(2)); one table is what we move. */
static void check_threads(struct process *p, struct report *report)
{
	static const struct {
		int type;
		const char *what;
	} shared[] = {
		{ KCMP_FILES, "a descriptor table of its own" },
		{ KCMP_FS, "a working directory, root and umask of its own" },
	};
	for (size_t i = 1; i < p->n_tasks; i++)
		for (size_t k = 0; k < ARRAY_LEN(shared); k++) {
			pid_t tid = p->tasks[i].tid;
			char object[FD_OBJECT_LEN];
			if (syscall(SYS_kcmp, p->pid, tid, shared[k].type, 0ul, 0ul) <= 0)
				continue; /* the same, or a thread that has just exited */
			snprintf(object, sizeof(object), "thread %d", (int)tid);
			report_add(report, REPORT_BLOCKER, FAULT_UNSUPPORTED, object, NULL, "it has %s",
				   shared[k].what);
		}
}

static int check_one(struct process *p, struct fd_info *i, struct report *report, struct fd_needs *needs,
		     struct fault *f)
{
	auto_fd dup = process_getfd(p, i->fd, f);
	if (dup < 0)
		return -1;
	i->dup = dup;
	const struct fd_kind *kind = fd_kind_claiming(i);
	int r = 0;
	if (!kind)
		refuse_fd(i, report);
	else if (kind->check)
		r = kind->check(i, p, report, needs, f);
	fown_check(p, i, report);
	i->dup = -1;
	return r;
}

static int check_table(struct process *p, struct arena *a, struct report *report, struct fd_needs *needs,
		       struct fault *f)
{
	struct fdtab *t = fdtab_walk(p, a, f);
	if (!t)
		return -1;
	for (size_t i = 0; i < t->n; i++)
		if (t->leader[i] == i && check_one(p, &t->v[i], report, needs, f) < 0)
			return fault_while(f, "checking fd %d (%s)", t->v[i].fd, t->v[i].link);
	check_threads(p, report);
	if (pipe_check_peers(p, t, report, f) < 0)
		return -1;
	return fs_check(p, report, needs, f);
}

int fdtab_check(struct process *p, struct report *report, struct fd_needs *needs, struct fault *f)
{
	struct arena *a = arena_new();
	int r = check_table(p, a, report, needs, f);
	arena_free(a);
	return r < 0 ? fault_while(f, "checking descriptors of pid %d (%s)", (int)p->pid, p->comm) : 0;
}

/* What appeared after vetting is a fault now: the migration ends, the process goes on. */
static int blocked_by(const struct report *found, struct fault *f)
{
	for (size_t i = 0; i < found->n; i++) {
		const struct finding *b = &found->findings[i];
		if (b->severity != REPORT_BLOCKER)
			continue;
		fault_set(f, b->code, "%s: %s", b->object, b->reason);
		return b->remedy ? fault_hint(f, "%s", b->remedy) : -1;
	}
	return 0;
}

static int check_again(struct fd_save *s, const struct fd_kind *kind, const struct fd_info *i, struct fault *f)
{
	if (!kind->check || kind->phase == FD_PHASE_NETWORK)
		return 0;
	struct report found;
	report_init(&found);
	struct arena *a = arena_new();
	struct fd_needs needs = { .a = a };
	int r = kind->check(i, s->p, &found, &needs, f);
	if (r == 0)
		r = blocked_by(&found, f);
	arena_free(a);
	report_done(&found);
	return r;
}

static int save_with(struct fd_save *s, const struct fd_kind *kind, size_t index, struct fault *f)
{
	const struct fd_info *i = &s->all[index];
	if (check_again(s, kind, i, f) < 0)
		return -1;
	FileEntry *e = filetab_new_entry(s->files, kind->type, &s->tab->id[index]);
	return kind->save(s, i, e, f);
}

static int unclaimed(const struct fd_info *i, struct fault *f)
{
	struct report found;
	report_init(&found);
	refuse_fd(i, &found);
	int r = blocked_by(&found, f);
	report_done(&found);
	return r < 0 ? r : fault_set(f, FAULT_UNSUPPORTED, "fd %d (%s) can't be moved", i->fd, i->link);
}

static int save_one(struct fd_save *s, enum fd_phase phase, size_t index, struct fault *f)
{
	struct fd_info *i = &s->tab->v[index];
	auto_fd dup = process_getfd(s->p, i->fd, f);
	if (dup < 0)
		return -1;
	i->dup = dup;
	const struct fd_kind *kind = fd_kind_claiming(i);
	int r = 0;
	if (!kind)
		r = unclaimed(i, f);
	else if (kind->phase == phase)
		r = save_with(s, kind, index, f);
	i->dup = -1;
	return r;
}

static int put_fdinfo(struct fd_save *s, struct fault *f)
{
	struct arena *a = image_arena(s->img);
	for (size_t i = 0; i < s->tab->n; i++) {
		uint32_t id = s->tab->id[s->tab->leader[i]];
		FdinfoEntry *e = arena_msg(a, FdinfoEntry, fdinfo_entry);
		e->id = id;
		e->flags = s->all[i].flags & O_CLOEXEC ? FD_CLOEXEC : 0;
		e->type = filetab_find(s->files, id)->type;
		e->fd = (uint32_t)s->all[i].fd;
		if (image_put(s->img, IMAGE_FDINFO, IMAGE_FILES_ID, e, NULL, 0, f) < 0)
			return -1;
	}
	return 0;
}

int fdtab_save(struct fd_save *s, enum fd_phase phase, struct fault *f)
{
	if (!s->tab) {
		/* first phase: everything is frozen from here on, so that the second can go by the same walk */
		s->tab = fdtab_walk(s->p, filetab_arena(s->files), f);
		if (!s->tab)
			return fault_while(f, "saving descriptors of pid %d", (int)s->p->pid);
		s->all = s->tab->v;
		s->n_all = s->tab->n;
	}
	for (size_t i = 0; i < s->tab->n; i++)
		if (s->tab->leader[i] == i && s->tab->id[i] == 0 && save_one(s, phase, i, f) < 0)
			return fault_while(f, "saving fd %d (%s) of pid %d", s->all[i].fd, s->all[i].link,
					   (int)s->p->pid);
	if (phase == FD_PHASE_LOCAL)
		return fs_save(s, f);
	return put_fdinfo(s, f);
}
