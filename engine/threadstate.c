#include "threadstate.h"

#include <errno.h>
#include <linux/prctl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arch.h"

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
#define ROBUST_LIST_HEAD_BYTES 24u
#define RSEQ_CS_OFFSET	       8u

struct rseq_config { /* struct __ptrace_rseq_configuration */
	uint64_t area;
	uint32_t size, signature, flags, pad;
};

struct rseq_section { /* struct rseq_cs */
	uint32_t version, flags;
	uint64_t start, length, abort;
};

void threadstate_ask(struct calls *c, struct threadstate_asked *out)
{
	memset(out, 0, sizeof(*out));
	CALL(c, "sigaltstack", NULL, SYS_sigaltstack, 0, calls_out(c, &out->altstack, sizeof(out->altstack)));
	CALL(c, "ask for the address cleared at exit (CONFIG_CHECKPOINT_RESTORE)", NULL, SYS_prctl, PR_GET_TID_ADDRESS,
	     calls_out(c, &out->clear_tid, sizeof(out->clear_tid)));
	CALL(c, "ask for the parent-death signal", NULL, SYS_prctl, PR_GET_PDEATHSIG,
	     calls_out(c, &out->pdeath_sig, sizeof(out->pdeath_sig)));
	CALL(c, "ask for securebits", &out->securebits, SYS_prctl, PR_GET_SECUREBITS);
}

static int rseq_config(pid_t tid, struct rseq_config *conf, struct fault *f)
{
	memset(conf, 0, sizeof(*conf));
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(*conf), conf) >= 0)
		return 0;
	if (errno == EIO) /* a kernel without rseq */
		return 0;
	return fault_errno(f, FAULT_SYSTEM, "read the rseq configuration of thread %d", tid);
}

int threadstate_rseq_pc(struct process *p, pid_t tid, uint64_t *pc, struct fault *f)
{
	struct rseq_config conf;
	struct rseq_section cs;
	struct fault unreadable;
	uint64_t at = 0;
	if (rseq_config(tid, &conf, f) < 0)
		return -1;
	/* Pointers that lead nowhere are the program's business: the kernel will tell it. */
	if (!conf.area || process_read(p, conf.area + RSEQ_CS_OFFSET, &at, sizeof(at), &unreadable) < 0)
		return 0;
	if (!at || process_read(p, at, &cs, sizeof(cs), &unreadable) < 0)
		return 0;
	if (*pc - cs.start < cs.length)
		*pc = cs.abort;
	return 0;
}

static int save_rseq(pid_t tid, struct arena *a, ThreadCoreEntry *th, struct fault *f)
{
	struct rseq_config conf;
	if (rseq_config(tid, &conf, f) < 0)
		return -1;
	if (!conf.area)
		return 0;
	th->rseq_entry = arena_msg(a, RseqEntry, rseq_entry);
	th->rseq_entry->rseq_abi_pointer = conf.area;
	th->rseq_entry->rseq_abi_size = conf.size;
	th->rseq_entry->signature = conf.signature;
	th->has_rseq_flags = true;
	th->rseq_flags = conf.flags;
	return 0;
}

static int save_robust_list(pid_t tid, ThreadCoreEntry *th, struct fault *f)
{
	void *head = NULL;
	size_t len = 0;
	if (syscall(SYS_get_robust_list, tid, &head, &len) < 0)
		return fault_errno(f, FAULT_SYSTEM, "read the robust futex list of thread %d", tid);
	th->futex_rla = th->robust_list = (uintptr_t)head;
	th->has_robust_list = true;
	th->futex_rla_len = (uint32_t)len;
	return 0;
}

static void save_altstack(const struct threadstate_asked *asked, struct arena *a, ThreadCoreEntry *th)
{
	/* SS_ONSTACK tells of the stub's stack pointer, not of the thread's own. */
	th->sas = arena_msg(a, ThreadSasEntry, thread_sas_entry);
	th->sas->ss_sp = asked->altstack.sp;
	th->sas->ss_size = asked->altstack.size;
	th->sas->ss_flags = (uint32_t)asked->altstack.flags & (SS_DISABLE | (uint32_t)SS_AUTODISARM);
}

int threadstate_save(struct process *p, pid_t tid, const struct procinfo_status *s,
		     const struct threadstate_asked *asked, struct arena *a, CoreEntry *core, struct fault *f)
{
	ThreadCoreEntry *th = core->thread_core;
	auto_free char *comm = procinfo_thread_file(p, tid, "comm");
	if (save_rseq(tid, a, th, f) < 0 || save_robust_list(tid, th, f) < 0)
		return -1;
	save_altstack(asked, a, th);
	arch_core_set_clear_tid(core, asked->clear_tid);
	th->has_pdeath_sig = asked->pdeath_sig != 0;
	th->pdeath_sig = (uint32_t)asked->pdeath_sig;
	th->comm = arena_strdup(a, comm ? comm : "");
	auto_free char *personality = procinfo_thread_file(p, tid, "personality");
	if ((th->has_personality = personality != NULL))
		th->personality = (uint32_t)strtoul(personality, NULL, 16);
	if ((th->has_spec_store_bypass = s->ssb != 0))
		th->spec_store_bypass = s->ssb;
	if ((th->has_spec_indirect_branch = s->spec_ib != 0))
		th->spec_indirect_branch = s->spec_ib;
	return 0;
}

static void restore_altstack(struct calls *c, const ThreadSasEntry *sas)
{
	struct {
		uint64_t sp;
		int32_t flags;
		uint64_t size;
	} ss = { 0, SS_DISABLE, 0 };
	if (sas && !(sas->ss_flags & SS_DISABLE) && sas->ss_size) {
		ss.sp = sas->ss_sp;
		ss.size = sas->ss_size;
		ss.flags = (int32_t)(sas->ss_flags & (uint32_t)SS_AUTODISARM);
	}
	CALL(c, "sigaltstack", NULL, SYS_sigaltstack, calls_in(c, &ss, sizeof(ss)), 0);
}

void threadstate_restore(struct calls *c, const CoreEntry *core, const char *comm)
{
	const ThreadCoreEntry *th = core->thread_core;
	char name[16] = { 0 };
	memcpy(name, comm, strnlen(comm, sizeof(name) - 1));
	CALL(c, "name the thread", NULL, SYS_prctl, PR_SET_NAME, calls_in(c, name, sizeof(name)));
	if (th->has_personality)
		CALL(c, "set the personality", NULL, SYS_personality, th->personality);
	CALL(c, "set_tid_address", NULL, SYS_set_tid_address, arch_core_clear_tid(core));
	CALL(c, "set_robust_list", NULL, SYS_set_robust_list, th->futex_rla, ROBUST_LIST_HEAD_BYTES);
	restore_altstack(c, th->sas);
	if (th->spec_store_bypass)
		CALL(c, "set PR_SPEC_STORE_BYPASS", NULL, SYS_prctl, PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS,
		     th->spec_store_bypass, 0, 0);
	if (th->spec_indirect_branch)
		CALL(c, "set PR_SPEC_INDIRECT_BRANCH", NULL, SYS_prctl, PR_SET_SPECULATION_CTRL,
		     PR_SPEC_INDIRECT_BRANCH, th->spec_indirect_branch, 0, 0);
}

int threadstate_restore_rseq(struct calls *c, struct process *p, const ThreadCoreEntry *th, struct fault *f)
{
	const RseqEntry *e = th->rseq_entry;
	const uint64_t none = 0;
	if (!e)
		return 0;
	if (process_write(p, e->rseq_abi_pointer + RSEQ_CS_OFFSET, &none, sizeof(none), f) < 0)
		return fault_while(f, "restoring rseq");
	CALL(c, "register rseq", NULL, SYS_rseq, e->rseq_abi_pointer, e->rseq_abi_size, 0, e->signature);
	return 0;
}
