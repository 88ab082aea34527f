/*
 * Descriptors. One kind, one file, both directions: `ls engine/fd engine/sock` is the support matrix.
 *
 *	source       fdtab_check     while the process is stopped for a few ms in vetting: blockers, losses, needs
 *	             fdtab_save      frozen; FD_PHASE_LOCAL before the network lock, FD_PHASE_NETWORK under it
 *	destination  fdtab_restore   in the helper (vessel.h): at final numbers, shared as they were
 *	             fdtab_commit    after the commit, before the thaw: what may only happen then (TCP leaves repair mode)
 *
 * A kind claims a descriptor by what it is (struct fd_info). What no kind claims is a blocker.
 * The table of kinds is engine/fd/kinds.c: add a line there.
 */
#ifndef ENGINE_FD_H
#define ENGINE_FD_H

#include <sys/stat.h>

#include "filetab.h"
#include "undo.h"
#include "vessel.h"
#include "wire.pb-c.h"

struct fd_info {
	int fd;	 /* number in the process */
	int dup; /* our duplicate, valid only inside check and save; never sought on, no F_SETFL */
	struct stat st;
	char *link;	/* readlink of /proc/PID/fd/N */
	char *fdinfo;	/* text of /proc/PID/fdinfo/N */
	uint32_t flags; /* open flags (octal "flags:" of fdinfo), with O_CLOEXEC when FD_CLOEXEC is set */
	uint64_t pos;
	uint32_t mnt_id;
};

enum fd_phase { FD_PHASE_LOCAL, FD_PHASE_NETWORK };

/* What saving needs. */
struct fd_save {
	struct process *p;
	struct remote *r; /* NULL in FD_PHASE_NETWORK: the process is frozen by cgroup */
	struct filetab *files;
	struct image *img;
	struct undo_log *undo;
	struct report *report;	   /* losses found only now */
	const struct fd_info *all; /* every descriptor of the process, by number: epoll looks up its targets */
	size_t n_all;
	struct fdtab *tab; /* fdtab.c's own, kept from one phase to the next; NULL at first */
	bool repair_noted; /* sock/tcp.c: UNDO_REPAIR is on the record (sock_save_end) */
};

/* What vetting collects for the offer. */
struct fd_needs {
	struct arena *a;
	size_t n_files, n_addresses, n_ports;
	Cpr__NeededFile **files;
	Cpr__NeededAddress **addresses;
	uint32_t *ports;
};

/* What restoring has at hand, in the helper. */
struct fd_restore {
	const struct image *img;
	const struct filetab *files;
	struct vessel *v;
	pid_t pid;
	int rootfd;   /* the process's root directory on this host, in the helper's table */
	int *objects; /* memfd per shared object of mm (index), in the WORKER's table; -1: none */
	size_t n_objects;
	const MmEntry *mm;
	struct report *report;
	/* pipe_id, inode … -> descriptors made earlier in this restore, for kinds with two ends */
	struct fd_shared *shared;
};

struct fd_kind {
	const char *name; /* "eventfd" */
	FdTypes type;	  /* of file_entry */
	enum fd_phase phase;
	bool (*claims)(const struct fd_info *i);
	/* Blockers and losses into report, what the destination must have into needs. May be NULL. */
	int (*check)(const struct fd_info *i, struct process *p, struct report *report, struct fd_needs *needs,
		     struct fault *f);
	/* Fills the entry of a new open file description. Extra image entries (queues) go to s->img. */
	int (*save)(struct fd_save *s, const struct fd_info *i, FileEntry *e, struct fault *f);
	/* Returns a descriptor of it in the helper's table at a number >= min_fd, or -1. */
	int (*restore)(struct fd_restore *s, const FileEntry *e, int min_fd, struct fault *f);
	/* In the helper, when all descriptors are at their final numbers: epoll, what refers to others. May be NULL. */
	int (*finish)(struct fd_restore *s, const FileEntry *e, int fd, struct fault *f);
	/* After the commit, in the worker, `dup` a duplicate of the vessel's descriptor. May be NULL. */
	int (*commit)(const FileEntry *e, const struct image *img, int dup, struct fault *f);
};

extern const struct fd_kind *const fd_kinds[];
extern const size_t fd_kind_count;

int fdtab_check(struct process *p, struct report *report, struct fd_needs *needs, struct fault *f) MUST_CHECK;
/* Also cwd, root, umask (fs_entry) in FD_PHASE_LOCAL. Descriptors shared by dup(2) become one entry (kcmp). Puts the
 * fdinfo entries in FD_PHASE_NETWORK, which must come last; the file entries are the caller's (filetab_put). */
int fdtab_save(struct fd_save *s, enum fd_phase phase, struct fault *f) MUST_CHECK;
/* Through vessel_run: every descriptor at its number, fs_entry applied. */
int fdtab_restore(struct fd_restore *s, struct fault *f) MUST_CHECK;
int fdtab_commit(struct vessel *v, const struct image *img, struct fault *f) MUST_CHECK;
/* For every kind's save: owner and signal of F_SETOWN, F_SETSIG. An owner that does not move is a loss. The driver of
 * the restore sets it (and O_ASYNC) after kind->restore, for all types. */
FownEntry *fd_fown_save(const struct fd_save *s, const struct fd_info *i);
/* For every kind's restore: moves fd to a number >= min_fd, CLOEXEC. Closes fd, also when it fails. */
int fd_place(int fd, int min_fd, struct fault *f);
/* Value of "key:" in an fdinfo text, or NULL; points behind the blanks. */
const char *fdinfo_value(const char *fdinfo, const char *key);

#endif
