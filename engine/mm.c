#include "mm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pagemap.h"

/* Field numbers of proc(5), stat. */
enum {
	STAT_START_CODE = 26,
	STAT_END_CODE = 27,
	STAT_START_STACK = 28,
	STAT_START_DATA = 45,
	STAT_END_DATA,
	STAT_START_BRK,
	STAT_ARG_START,
	STAT_ARG_END,
	STAT_ENV_START,
	STAT_ENV_END,
	STAT_FIELDS
};

static int read_stat(const struct process *p, uint64_t field[STAT_FIELDS], struct fault *f)
{
	auto_free char *text = util_read_file(p->procfd, "stat", NULL);
	if (!text)
		return fault_errno(f, FAULT_PROCESS_GONE, "read /proc/%d/stat", p->pid);
	char *s = strrchr(text, ')'); /* the name may hold anything */
	int i = 2;
	for (char *save = NULL, *w = s ? strtok_r(s + 1, " \n", &save) : NULL; w && i + 1 < STAT_FIELDS;
	     w = strtok_r(NULL, " \n", &save))
		field[++i] = strtoull(w, NULL, 10);
	if (i + 1 != STAT_FIELDS)
		return fault_set(f, FAULT_KERNEL, "/proc/%d/stat has only %d fields", p->pid, i);
	return 0;
}

static int save_auxv(const struct process *p, struct arena *a, MmEntry *mm, struct fault *f)
{
	size_t len;
	auto_free char *raw = util_read_file(p->procfd, "auxv", &len);
	if (!raw)
		return fault_errno(f, FAULT_PROCESS_GONE, "read /proc/%d/auxv", p->pid);
	mm->n_mm_saved_auxv = len / 8;
	mm->mm_saved_auxv = arena_memdup(a, raw, len / 8 * 8);
	return 0;
}

static int save_exe(const struct process *p, struct filetab *files, const char *root, MmEntry *mm, struct fault *f)
{
	char path[4096];
	struct stat st;
	ssize_t n = readlinkat(p->procfd, "exe", path, sizeof(path) - 1);
	if (n <= 0 || fstatat(p->procfd, "exe", &st, 0) < 0)
		return fault_errno(f, FAULT_PROCESS_GONE, "read the link /proc/%d/exe", p->pid);
	path[n] = 0;
	size_t k = strlen(root);
	const char *own = k && !strncmp(path, root, k) && path[k] == '/' ? path + k : path;
	mm->exe_file_id = filetab_path(files, own, O_RDONLY, &st);
	return 0;
}

static bool page_present(const struct process *p, uint64_t addr)
{
	struct pagemap pm;
	struct pagemap_region v[1];
	size_t n = 0;
	uint64_t walked;
	if (pagemap_open(p->procfd, &pm) < 0)
		return false;
	struct pagemap_query q = { .start = addr, .end = addr + PAGE_BYTES, .need = PAGEMAP_PRESENT };
	int r = pagemap_scan(&pm, &q, v, 1, &n, &walked);
	pagemap_close(&pm);
	return r == 0 && n == 1;
}

static uint64_t locked_kb(const struct process *p)
{
	auto_free char *text = util_read_file(p->procfd, "status", NULL);
	const char *line = text ? strstr(text, "VmLck:") : NULL;
	return line ? strtoull(line + 6, NULL, 10) : 0;
}

/* mlockall(MCL_FUTURE) has no getter: a page that is mapped now is locked, or it is not. As the stub was mapped, too,
 * nothing locked at all says the same without a call. */
static int save_lock_future(struct process *p, struct remote *r, MmEntry *mm, struct fault *f)
{
	uint64_t before = locked_kb(p);
	long at, ret;
	if (!before)
		return 0;
	if (REMOTE(r, p->pid, &at, f, SYS_mmap, 0, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   (uint64_t)-1, 0) < 0)
		return -1;
	if (at < 0) /* at the limit of locked memory: then it is locked */
		before = 0;
	bool locked = at < 0 || locked_kb(p) > before;
	bool filled = at > 0 && page_present(p, (uint64_t)at);
	if (at > 0 && REMOTE(r, p->pid, &ret, f, SYS_munmap, (uint64_t)at, PAGE_BYTES) < 0)
		return -1;
	if (locked) {
		mm->mlock_future = mm->has_mlock_future = mm->has_def_flags = true;
		mm->def_flags = MM_LOCK_FUTURE | (filled ? 0 : MM_LOCK_FUTURE_ONFAULT);
	}
	return 0;
}

int mm_save(struct process *p, struct remote *r, struct filetab *files, const char *root, struct arena *a, MmEntry *mm,
	    struct fault *f)
{
	uint64_t s[STAT_FIELDS];
	long brk;
	if (read_stat(p, s, f) < 0 || REMOTE(r, p->pid, &brk, f, SYS_brk, 0) < 0 || save_auxv(p, a, mm, f) < 0 ||
	    save_exe(p, files, root, mm, f) < 0 || save_lock_future(p, r, mm, f) < 0)
		return fault_while(f, "saving the address space of pid %d (%s)", p->pid, p->comm);
	mm->mm_start_code = s[STAT_START_CODE];
	mm->mm_end_code = s[STAT_END_CODE];
	mm->mm_start_stack = s[STAT_START_STACK];
	mm->mm_start_data = s[STAT_START_DATA];
	mm->mm_end_data = s[STAT_END_DATA];
	mm->mm_start_brk = s[STAT_START_BRK];
	mm->mm_arg_start = s[STAT_ARG_START];
	mm->mm_arg_end = s[STAT_ARG_END];
	mm->mm_env_start = s[STAT_ENV_START];
	mm->mm_env_end = s[STAT_ENV_END];
	mm->mm_brk = (uint64_t)brk;
	return 0;
}

struct exe_job {
	const RegFileEntry *reg;
	int fd;
	struct stat st;
};

static int open_exe(void *arg, struct fault *f)
{
	struct exe_job *job = arg;
	job->fd = filetab_open(job->reg, -1, f);
	if (job->fd < 0)
		return -1;
	if (fstat(job->fd, &job->st) < 0)
		return fault_errno(f, FAULT_SYSTEM, "look at the executable");
	return 0;
}

static int close_exe(void *arg, struct fault *f)
{
	(void)f;
	close(((struct exe_job *)arg)->fd);
	return 0;
}

/* The argument in the scratch: the struct, then auxv. */
static int set_map(struct vessel *v, const MmEntry *mm, int exe_fd, struct fault *f)
{
	struct remote *r = vessel_remote(v);
	pid_t pid = vessel_process(v)->pid;
	size_t auxv_len = mm->n_mm_saved_auxv * 8;
	struct prctl_mm_map map = {
		.start_code = mm->mm_start_code,
		.end_code = mm->mm_end_code,
		.start_data = mm->mm_start_data,
		.end_data = mm->mm_end_data,
		.start_brk = mm->mm_start_brk,
		.brk = mm->mm_brk,
		.start_stack = mm->mm_start_stack,
		.arg_start = mm->mm_arg_start,
		.arg_end = mm->mm_arg_end,
		.env_start = mm->mm_env_start,
		.env_end = mm->mm_env_end,
		.auxv = (void *)(uintptr_t)(auxv_len ? remote_scratch(r) + sizeof(map) : 0),
		.auxv_size = (uint32_t)auxv_len,
		.exe_fd = (uint32_t)exe_fd,
	};
	long ret;
	if (sizeof(map) + auxv_len > REMOTE_SCRATCH)
		return fault_set(f, FAULT_PROTOCOL, "an auxiliary vector of %zu bytes", auxv_len);
	if (remote_put(r, 0, &map, sizeof(map), f) < 0 ||
	    (auxv_len && remote_put(r, sizeof(map), mm->mm_saved_auxv, auxv_len, f) < 0) ||
	    REMOTE(r, pid, &ret, f, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, remote_scratch(r), sizeof(map), 0) < 0)
		return -1;
	if (ret < 0)
		return fault_neg(f, FAULT_SYSTEM, ret, "set heap, argument and executable addresses (PR_SET_MM_MAP)");
	return 0;
}

int mm_restore(struct vessel *v, const MmEntry *mm, const struct filetab *files, struct fault *f)
{
	const FileEntry *e = filetab_find(files, mm->exe_file_id);
	if (!e || !e->reg)
		return fault_set(f, FAULT_PROTOCOL, "the executable (file %u) is not in the state", mm->exe_file_id);
	struct exe_job job = { .reg = e->reg };
	if (vessel_run(v, open_exe, &job, f) < 0)
		return fault_while(f, "opening the executable %s", e->reg->name);
	/* The kernel refuses to change the link while the old executable is mapped. When it is the same file (the worker's
	 * own program is moved: tests do that) there is nothing to change. */
	struct stat now;
	bool same = fstatat(vessel_process(v)->procfd, "exe", &now, 0) == 0 && now.st_dev == job.st.st_dev &&
		    now.st_ino == job.st.st_ino;
	int r = set_map(v, mm, same ? -1 : job.fd, f);
	if (vessel_run(v, close_exe, &job, r < 0 ? NULL : f) < 0 || r < 0)
		return -1;
	if (mm->mlock_future) {
		long ret;
		int flags = MCL_FUTURE | (mm->def_flags & MM_LOCK_FUTURE_ONFAULT ? MCL_ONFAULT : 0);
		if (REMOTE(vessel_remote(v), vessel_process(v)->pid, &ret, f, SYS_mlockall, (uint64_t)flags) < 0)
			return -1;
		if (ret < 0)
			return fault_neg(f, FAULT_LIMIT, ret, "lock future memory (mlockall)");
	}
	return 0;
}
