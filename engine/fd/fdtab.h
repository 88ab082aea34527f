/*
 * What the files of engine/fd share with each other; nobody else includes this.
 *
 *	fdtab.c      the walk over /proc/PID/fd, and which descriptors are one open file description
 *	fdsave.c     drivers of check and save
 *	fdrestore.c  drivers of restore and commit
 *	kinds.c      the table of kinds
 *	refuse.c     why what no kind claims can't be moved
 *	fown.c, fs.c owner of SIGIO; cwd, root, umask
 */
#ifndef ENGINE_FD_FDTAB_H
#define ENGINE_FD_FDTAB_H

#include "fd.h"

/* O_LARGEFILE as the kernel keeps it in f_flags (libc's is 0 on 64 bit): set by open(2), not by pipe2(2) and the like. */
#ifdef __aarch64__
#define FD_O_LARGEFILE 0400000u
#else
#define FD_O_LARGEFILE 0100000u
#endif

struct fdtab {
	size_t n;
	struct fd_info *v; /* by number */
	size_t *leader;	   /* index of the first descriptor of the same open file description */
	uint32_t *id;	   /* of the file entry, by leader; 0: not saved yet */
};

/* Everything of it lives in the arena. Duplicates (fd_info.dup) are -1: opened one at a time by the drivers. */
struct fdtab *fdtab_walk(struct process *p, struct arena *a, struct fault *f);
int fdtab_read_one(struct process *p, struct arena *a, int fd, struct fd_info *out, struct fault *f) MUST_CHECK;
/* Are fds a and b of pid the same open file description? 0 yes, 1 and 2 order them, -1 unknown. */
int fdtab_kcmp(pid_t pid, int a, int b);

extern const struct fd_kind fd_reg_kind, fd_chardev_kind, fd_pipe_kind, fd_fifo_kind, fd_eventfd_kind, fd_signalfd_kind,
	fd_timerfd_kind, fd_eventpoll_kind, fd_memfd_kind;
const struct fd_kind *fd_kind_claiming(const struct fd_info *i);
const struct fd_kind *fd_kind_of(const FileEntry *e);

/* "fd 7: timerfd" in report.object */
#define FD_OBJECT_LEN 64
const char *fd_object(char buf[FD_OBJECT_LEN], int fd, const char *what);
void refuse_fd(const struct fd_info *i, struct report *report);

/* reg.c: true when the path names the very file that is open; else a blocker is in the report. */
bool reg_reachable(const struct fd_info *i, const char *what, struct report *report);
/* The offer has to name the file; merged with an earlier need of the same path. */
void fd_need_file(struct fd_needs *needs, const Cpr__NeededFile *file);
/* Locks of an open file are not moved yet. */
bool reg_unlocked(const struct fd_info *i, struct report *report);
RegFileEntry *reg_entry(const struct fd_save *s, const struct fd_info *i, uint32_t id);

/* pipe.c */
int pipe_contents(struct fd_save *s, const struct fd_info *i, struct arena *a, PipeDataEntry *e, const void **bytes,
		  struct fault *f) MUST_CHECK;
int pipe_fill(int fd, const PipeDataEntry *e, const void *bytes, struct fault *f) MUST_CHECK;
bool pipe_data_saved(const struct image *img, enum image_type type, uint32_t pipe_id);
/* Pipes and fifos that another process holds, too: one look at all processes for all of them. */
int pipe_check_peers(struct process *p, const struct fdtab *tab, struct report *report, struct fault *f) MUST_CHECK;

/* fown.c */
void fown_check(struct process *p, const struct fd_info *i, struct report *report);
int fown_restore(const FileEntry *e, const struct filetab *files, int fd, struct fault *f) MUST_CHECK;

/* fs.c */
int fs_check(struct process *p, struct report *report, struct fd_needs *needs, struct fault *f) MUST_CHECK;
int fs_save(struct fd_save *s, struct fault *f) MUST_CHECK;
int fs_restore(struct fd_restore *s, struct fault *f) MUST_CHECK;

/* fdrestore.c: what one restore keeps. */
struct fd_shared_end {
	FdTypes type;
	uint32_t pipe_id;
	const char *path;
	int rd, wr; /* kept in the helper's table until all descriptors are made; rd == wr for a fifo */
	bool rd_taken, wr_taken;
};
struct fd_shared {
	size_t n, cap;
	struct fd_shared_end *ends;
	int64_t monotonic_delta, boottime_delta; /* the vessel's clock - the helper's */
};
struct fd_shared_end *fd_shared_find(struct fd_restore *s, FdTypes type, uint32_t pipe_id, const char *path);
struct fd_shared_end *fd_shared_add(struct fd_restore *s, const struct fd_shared_end *end);
/* All of fdtab_restore that happens in the helper: also for a table of one's own (tests). */
int fdtab_restore_here(struct fd_restore *s, struct fault *f) MUST_CHECK;
/* Sets the flags F_SETFL can set, when they differ. */
int fd_set_flags(int fd, uint32_t flags, struct fault *f) MUST_CHECK;
/* A new open file description of fd's file with these flags. */
int fd_reopen(int fd, uint32_t flags, int min_fd, struct fault *f);

#endif
