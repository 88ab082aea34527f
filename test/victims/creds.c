/* Identity: uids, gids, groups, capabilities, limits, umask, working directory, scheduling, names: everything in
 * /proc/self/{status,limits} that is the program's own stays as it is. Run as root, as uid 1000, without capabilities. */
#include <grp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "victim.h"

static const char *const keep[] = { "Name:",   "Umask:",      "Uid:",	  "Gid:",	  "Groups:",
				    "Tgid:",   "Pid:",	      "Threads:", "SigBlk:",	  "SigIgn:",
				    "SigCgt:", "CapInh:",     "CapPrm:",  "CapEff:",	  "CapBnd:",
				    "CapAmb:", "NoNewPrivs:", "Seccomp:", "THP_enabled:", NULL };

static void slurp(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = 0, k;
	while (fd >= 0 && (k = read(fd, buf + n, len - 1 - (size_t)n)) > 0)
		n += k;
	buf[n] = 0;
	if (fd >= 0)
		close(fd);
}

static void status(char *out, size_t len)
{
	char buf[8192], *save = NULL;
	slurp("/proc/self/status", buf, sizeof(buf));
	out[0] = 0;
	for (char *l = strtok_r(buf, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		for (int i = 0; keep[i]; i++)
			if (!strncmp(l, keep[i], strlen(keep[i]))) {
				strncat(out, l, len - strlen(out) - 1);
				strncat(out, "\n", len - strlen(out) - 1);
			}
}

static void extra(char *out, size_t len)
{
	char cwd[256] = "?";
	if (!getcwd(cwd, sizeof(cwd)))
		cwd[0] = '!';
	snprintf(out, len,
		 "cwd %s nice %d sid %d pgid %d dumpable %d keepcaps %d securebits %d slack %d sched %d subreaper-ok",
		 cwd, getpriority(PRIO_PROCESS, 0), getsid(0) == getpid(), getpgid(0) == getpid(),
		 prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS), prctl(PR_GET_TIMERSLACK),
		 sched_getscheduler(0));
	char more[256];
	slurp("/proc/self/coredump_filter", more, sizeof(more));
	strncat(out, more, len - strlen(out) - 1);
	slurp("/proc/self/oom_score_adj", more, sizeof(more));
	strncat(out, more, len - strlen(out) - 1);
	slurp("/proc/self/personality", more, sizeof(more));
	strncat(out, more, len - strlen(out) - 1);
	slurp("/proc/self/cmdline", more, sizeof(more));
	strncat(out, more, len - strlen(out) - 1);
	slurp("/proc/self/environ", more, sizeof(more));
	strncat(out, more, len - strlen(out) - 1);
}

int main(int argc, char **argv)
{
	static char before[16384], after[16384], limits[8192], limits2[8192], e1[2048], e2[2048];
	victim_init(argc, argv);
	umask(027);
	if (chdir("/usr") < 0)
		return 3;
	prctl(PR_SET_NAME, "creds-victim");
	prctl(PR_SET_TIMERSLACK, 123456);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 321, 4000 });
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 1 << 20 });
	setrlimit(RLIMIT_STACK, &(struct rlimit){ 4 << 20, RLIM_INFINITY });
	nice(3);
	if (argc > 2 && !strcmp(argv[2], "nnp"))
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (geteuid() == 0) {
		gid_t groups[] = { 7, 8, 9000 };
		setgroups(3, groups);
		if (argc > 2 && !strcmp(argv[2], "mixed")) {
			if (setresgid(10, 11, 12) < 0 || setresuid(1001, 1002, 0) < 0)
				return 3;
		}
	}
	status(before, sizeof(before));
	slurp("/proc/self/limits", limits, sizeof(limits));
	extra(e1, sizeof(e1));
	victim_ready();
	while (victim_running()) {
		status(after, sizeof(after));
		if (!victim_check(!strcmp(before, after), "status differs") && access("/dev/null", F_OK) == 0) {
			char *a = before, *b = after;
			while (*a && *a == *b)
				a++, b++;
			while (a > before && a[-1] != '\n')
				a--, b--;
			snprintf(victim_reason, sizeof(victim_reason), "status: %.*s became %.*s",
				 (int)strcspn(a, "\n"), a, (int)strcspn(b, "\n"), b);
		}
		slurp("/proc/self/limits", limits2, sizeof(limits2));
		victim_check(!strcmp(limits, limits2), "limits differ: %s", limits2);
		extra(e2, sizeof(e2));
		victim_check(!strcmp(e1, e2), "%s became %s", e1, e2);
		usleep(1000);
	}
	victim_done();
}
