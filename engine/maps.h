/*
 * Mappings of a process: /proc/PID/maps and smaps, as a sorted list.
 */
#ifndef ENGINE_MAPS_H
#define ENGINE_MAPS_H

#include "process.h"
#include "remote.h"
#include "report.h"

enum map_kind {
	MAP_KIND_ANON,	      /* private anonymous: heap, stacks, arenas */
	MAP_KIND_FILE,	      /* MAP_PRIVATE of a file */
	MAP_KIND_FILE_SHARED, /* MAP_SHARED of a regular file */
	MAP_KIND_SHM,	      /* MAP_SHARED|MAP_ANONYMOUS ("/dev/zero (deleted)") */
	MAP_KIND_MEMFD,	      /* "/memfd:name (deleted)", shared */
	MAP_KIND_MEMFD_PRIVATE,
	MAP_KIND_VDSO,
	MAP_KIND_VVAR, /* [vvar], [vvar_vclock] */
	MAP_KIND_VSYSCALL,
	MAP_KIND_OTHER, /* not movable: device, SysV shm, hugetlb, io_uring, aio ring, deleted file … */
};

/* VmFlags of smaps that matter (bit per code, for vma_entry.vm_flags). */
#define MAP_FLAG_GROWSDOWN   (1u << 0)	/* gd */
#define MAP_FLAG_LOCKED	     (1u << 1)	/* lo */
#define MAP_FLAG_LOCKONFAULT (1u << 2)	/* lf */
#define MAP_FLAG_HUGEPAGE    (1u << 3)	/* hg */
#define MAP_FLAG_NOHUGEPAGE  (1u << 4)	/* nh */
#define MAP_FLAG_DONTFORK    (1u << 5)	/* dc */
#define MAP_FLAG_DONTDUMP    (1u << 6)	/* dd */
#define MAP_FLAG_WIPEONFORK  (1u << 7)	/* wf */
#define MAP_FLAG_MERGEABLE   (1u << 8)	/* mg */
#define MAP_FLAG_SEQREAD     (1u << 9)	/* sr */
#define MAP_FLAG_RANDREAD    (1u << 10) /* rr */
#define MAP_FLAG_NORESERVE   (1u << 11) /* nr */
#define MAP_FLAG_HUGETLB     (1u << 12) /* ht */
#define MAP_FLAG_IO	     (1u << 13) /* io, pf */
#define MAP_FLAG_SEALED	     (1u << 14) /* sl */
#define MAP_FLAG_UFFD	     (1u << 15) /* um, uw, ui: somebody's userfaultfd (not our own tracking) */
#define MAP_FLAG_MAYWRITE    (1u << 16) /* mw */
#define MAP_FLAG_DROPPABLE   (1u << 17) /* dp */
#define MAP_FLAG_SHADOWSTACK (1u << 18) /* ss */
#define MAP_FLAG_GUARD	     (1u << 19) /* gu */

struct map {
	uint64_t start, end;
	uint32_t prot; /* PROT_* */
	bool shared;
	uint64_t pgoff; /* bytes into the file */
	uint64_t dev;	/* makedev */
	uint64_t ino;
	char *path; /* as maps shows it, without " (deleted)"; "" for none */
	bool deleted;
	enum map_kind kind;
	uint32_t flags; /* MAP_FLAG_*; 0 when read without smaps */
	char *name;	/* [anon:NAME], NULL: none */
};

struct maps {
	size_t n, cap;
	struct map *v;
};

/* with_flags: reads smaps (slower: it walks page tables) for VmFlags; else maps. */
int maps_read(struct process *p, bool with_flags, struct maps *out, struct fault *f) MUST_CHECK;
int maps_parse(char *text, bool smaps, struct maps *out, struct fault *f) MUST_CHECK; /* text is modified */
void maps_free(struct maps *m);
const struct map *maps_find(const struct maps *m, uint64_t addr); /* the mapping that holds addr, or NULL */
/* A hole of `len` bytes (page multiple) that none of m and keep_clear touches, well away from the stack. 0: none. */
uint64_t maps_hole(const struct maps *m, const struct range *keep_clear, size_t n, size_t len);

#endif
