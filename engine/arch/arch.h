/*
 * Everything that knows a register's name is behind this header: x86_64.c, aarch64.c.
 */
#ifndef ENGINE_ARCH_H
#define ENGINE_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "arena.h"
#include "fault.h"
#include "image.pb-c.h"

struct arch_regs; /* general-purpose registers */
struct arch_regs *arch_regs_new(void);
void arch_regs_free(struct arch_regs *r);
int arch_regs_get(pid_t tid, struct arch_regs *r, struct fault *f) MUST_CHECK;
int arch_regs_set(pid_t tid, const struct arch_regs *r, struct fault *f) MUST_CHECK;
void arch_regs_copy(struct arch_regs *to, const struct arch_regs *from);

uint64_t arch_pc(const struct arch_regs *r);
uint64_t arch_sp(const struct arch_regs *r);
void arch_set_pc(struct arch_regs *r, uint64_t pc);
void arch_set_sp(struct arch_regs *r, uint64_t sp);

/* Syscalls. */
void arch_syscall_setup(struct arch_regs *r, uint64_t insn, long nr,
			const uint64_t args[6]); /* ready to run `syscall` at insn */
long arch_syscall_result(const struct arch_regs *r);
long arch_syscall_nr(const struct arch_regs *r); /* the interrupted one, -1 when the stop was not in a syscall */
uint64_t arch_syscall_arg(const struct arch_regs *r, int i);
void arch_set_syscall_result(struct arch_regs *r, long value); /* keeps the syscall number: the kernel restarts by it */
void arch_forget_syscall(struct arch_regs *r);		       /* no restart */
void arch_rewind_syscall(struct arch_regs *r);		       /* steps back onto the syscall instruction */
void arch_set_syscall_nr(struct arch_regs *r, long nr);	       /* the interrupted one, where the kernel hides it */
bool arch_regs_equal(const struct arch_regs *a, const struct arch_regs *b);

/* Code for the stub page. All are position-independent. */
struct arch_code {
	const void *bytes;
	size_t len;
	size_t call;	   /* offset of `syscall; ret` */
	size_t sigret;	   /* offset of the rt_sigreturn call that `ret` goes to */
	size_t unpin;	   /* offset of: sched_setaffinity(0, ARCH_UNPIN_LEN, sp + unpin_mask), then sigret; 0: none */
	size_t unpin_mask; /* offset of that mask in a frame of arch_sigframe(), from the sp that sigret is entered with */
	size_t table;	   /* offset of the loop that runs a table of remote_entry-like records; 0: none */
};
#define ARCH_UNPIN_LEN ((size_t)128)
const struct arch_code *arch_stub(void);
/* Registers to start the table loop at; records are {nr, a0..a5, ret, stop_on_error} of 9 u64, nr -1 ends it in a trap. */
void arch_table_setup(struct arch_regs *r, uint64_t loop, uint64_t table);
uint64_t arch_table_at(const struct arch_regs *r); /* after the trap: address of the record it stopped at */
/* Byte patterns of `syscall; ret` and of the rt_sigreturn stub, to find them in libc. */
size_t arch_pattern_syscall(const unsigned char **bytes); /* the bare instruction: enough for a vessel */
size_t arch_pattern_syscall_ret(const unsigned char **bytes);
size_t arch_pattern_sigreturn(const unsigned char **bytes);

/* A signal frame below *sp that rt_sigreturn takes to exactly `regs`, `mask` and the thread's present xstate.
 * Returns its bytes (malloc) and length, and in *sp the stack pointer with which `ret` goes to sigret_addr: where the
 * bytes go. The thread's alternate stack is left as it is. */
int arch_sigframe(pid_t tid, const struct arch_regs *regs, uint64_t mask, uint64_t sigret_addr, uint64_t *sp,
		  void **bytes, size_t *len, struct fault *f) MUST_CHECK;
size_t arch_redzone(void);

/* Image side: thread_info of core_entry, with general, floating point and vector state and TLS; raw xstate goes
 * to thread_core->xstate. The core's own fields (clear_tid_addr) are the caller's. */
int arch_core_save(pid_t tid, const struct arch_regs *regs, struct arena *a, CoreEntry *core,
		   struct fault *f) MUST_CHECK;
int arch_core_restore(pid_t tid, const CoreEntry *core, struct arch_regs *regs_out, struct fault *f) MUST_CHECK;
void arch_core_set_clear_tid(CoreEntry *core, uint64_t addr);
uint64_t arch_core_clear_tid(const CoreEntry *core);
CoreEntry__March arch_march(void);

/* What a program may have found out about its CPU: bytes to compare. features_missing: text of what `theirs`
 * has and this CPU lacks, "" when nothing. */
size_t arch_cpu_features(uint8_t *buf, size_t len);
void arch_cpu_missing(const uint8_t *theirs, size_t len, char *text, size_t text_len);
uint64_t arch_xfeatures(void);
uint32_t arch_xstate_size(void);

/* vDSO: map fresh ones at `addr` by remote call number and arguments; 0 when the arch can't (then mremap). */
bool arch_vdso_map_call(uint64_t addr, long *nr, uint64_t args[6]);

#endif
