/*
 * aarch64: registers, syscalls and the stub's code. Guarded calls (signal frames) and the image's thread_info are not
 * there yet: moving a process on this architecture is refused, by these functions and in vetting.
 */
#include "arch.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif
#ifndef NT_ARM_TLS
#define NT_ARM_TLS 0x401
#endif

/* The kernel's struct user_pt_regs. */
struct user_regs {
	uint64_t x[31];
	uint64_t sp, pc, pstate;
};

struct arch_regs {
	struct user_regs u;
	int32_t nr;   /* NT_ARM_SYSTEM_CALL */
	uint64_t tls; /* tpidr_el0 */
	/* x0 holds the first argument until the result comes; the kernel keeps a copy that ptrace does not show */
};

#define PSTATE_SS (UINT64_C(1) << 21)

struct arch_regs *arch_regs_new(void)
{
	struct arch_regs *r = calloc(1, sizeof(*r));
	if (!r)
		abort();
	r->nr = -1;
	return r;
}

void arch_regs_free(struct arch_regs *r)
{
	free(r);
}

static int regset(int request, pid_t tid, int type, void *data, size_t len, struct fault *f)
{
	struct iovec iov = { data, len };
	if (ptrace(request, tid, (void *)(uintptr_t)type, &iov) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM,
				   "%s register set 0x%x of thread %d", request == PTRACE_GETREGSET ? "read" : "write",
				   type, tid);
	if (iov.iov_len != len)
		return fault_set(f, FAULT_UNSUPPORTED, "thread %d runs 32-bit code", tid);
	return 0;
}

int arch_regs_get(pid_t tid, struct arch_regs *r, struct fault *f)
{
	if (regset(PTRACE_GETREGSET, tid, NT_PRSTATUS, &r->u, sizeof(r->u), f) < 0 ||
	    regset(PTRACE_GETREGSET, tid, NT_ARM_SYSTEM_CALL, &r->nr, sizeof(r->nr), f) < 0)
		return -1;
	return regset(PTRACE_GETREGSET, tid, NT_ARM_TLS, &r->tls, sizeof(r->tls), f);
}

int arch_regs_set(pid_t tid, const struct arch_regs *r, struct fault *f)
{
	struct arch_regs copy = *r;
	if (regset(PTRACE_SETREGSET, tid, NT_PRSTATUS, &copy.u, sizeof(copy.u), f) < 0 ||
	    regset(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &copy.nr, sizeof(copy.nr), f) < 0)
		return -1;
	return regset(PTRACE_SETREGSET, tid, NT_ARM_TLS, &copy.tls, sizeof(copy.tls), f);
}

void arch_regs_copy(struct arch_regs *to, const struct arch_regs *from)
{
	*to = *from;
}

bool arch_regs_equal(const struct arch_regs *a, const struct arch_regs *b)
{
	return memcmp(&a->u, &b->u, sizeof(a->u)) == 0 && a->nr == b->nr && a->tls == b->tls;
}

uint64_t arch_pc(const struct arch_regs *r)
{
	return r->u.pc;
}

uint64_t arch_sp(const struct arch_regs *r)
{
	return r->u.sp;
}

void arch_set_pc(struct arch_regs *r, uint64_t pc)
{
	r->u.pc = pc;
}

void arch_set_sp(struct arch_regs *r, uint64_t sp)
{
	r->u.sp = sp;
}

/* ---- syscalls ---- */

void arch_syscall_setup(struct arch_regs *r, uint64_t insn, long nr, const uint64_t args[6])
{
	memcpy(r->u.x, args, 6 * sizeof(args[0]));
	r->u.x[8] = (uint64_t)nr;
	r->u.pc = insn;
	r->u.pstate &= ~PSTATE_SS;
	r->nr = -1;
}

long arch_syscall_result(const struct arch_regs *r)
{
	return (long)r->u.x[0];
}

long arch_syscall_nr(const struct arch_regs *r)
{
	return r->nr;
}

uint64_t arch_syscall_arg(const struct arch_regs *r, int i)
{
	return r->u.x[i];
}

void arch_set_syscall_result(struct arch_regs *r, long value)
{
	r->u.x[0] = (uint64_t)value;
}

void arch_set_syscall_nr(struct arch_regs *r, long nr)
{
	r->nr = (int32_t)nr;
}

void arch_forget_syscall(struct arch_regs *r)
{
	r->nr = -1;
}

/* At a stop where the result is not there yet, the kernel has put pc back and x0 in place already (do_signal): there
 * is nothing to step over but the number. */
void arch_rewind_syscall(struct arch_regs *r)
{
	r->u.x[8] = (uint64_t)(int64_t)r->nr;
	r->nr = -1;
}

/* ---- the stub ---- */

__asm__(".pushsection .rodata\n"
	".balign 16\n"
	"cpr_stub_begin:\n"
	"	.ascii \"cpr-stub\"\n"
	"	.quad 1\n"
	"cpr_stub_call:\n"
	"	svc	#0\n"
	"	ret\n"
	"cpr_stub_sigret:\n"
	"	mov	x8, #139\n" /* rt_sigreturn */
	"	svc	#0\n"
	"	brk	#0\n"
	"cpr_stub_table:\n"
	"	ldr	x8, [x19]\n"
	"	cmn	x8, #1\n"
	"	b.eq	2f\n"
	"	ldp	x0, x1, [x19, #8]\n"
	"	ldp	x2, x3, [x19, #24]\n"
	"	ldp	x4, x5, [x19, #40]\n"
	"	svc	#0\n"
	"	str	x0, [x19, #56]\n"
	"	ldr	x9, [x19, #64]\n"
	"	cbz	x9, 1f\n"
	"	cmn	x0, #4095\n"
	"	b.hs	2f\n"
	"1:	add	x19, x19, #72\n"
	"	b	cpr_stub_table\n"
	"2:	brk	#0\n"
	"cpr_stub_end:\n"
	".popsection\n");
extern const char cpr_stub_begin[], cpr_stub_call[], cpr_stub_sigret[], cpr_stub_table[], cpr_stub_end[];

const struct arch_code *arch_stub(void)
{
	static struct arch_code code;
	code.bytes = cpr_stub_begin;
	code.len = (size_t)(cpr_stub_end - cpr_stub_begin);
	code.call = (size_t)(cpr_stub_call - cpr_stub_begin);
	code.sigret = (size_t)(cpr_stub_sigret - cpr_stub_begin);
	code.table = (size_t)(cpr_stub_table - cpr_stub_begin);
	return &code;
}

void arch_table_setup(struct arch_regs *r, uint64_t loop, uint64_t table)
{
	r->u.pc = loop;
	r->u.x[19] = table;
	r->u.pstate &= ~PSTATE_SS;
	r->nr = -1;
}

uint64_t arch_table_at(const struct arch_regs *r)
{
	return r->u.x[19];
}

size_t arch_pattern_syscall(const unsigned char **bytes)
{
	*bytes = (const unsigned char *)"\x01\x00\x00\xd4"; /* svc #0 */
	return 4;
}

size_t arch_pattern_syscall_ret(const unsigned char **bytes)
{
	*bytes = (const unsigned char *)"\x01\x00\x00\xd4\xc0\x03\x5f\xd6"; /* svc #0; ret */
	return 8;
}

size_t arch_pattern_sigreturn(const unsigned char **bytes)
{
	*bytes = (const unsigned char *)"\x68\x11\x80\xd2\x01\x00\x00\xd4"; /* mov x8, #139; svc #0 (the vDSO's) */
	return 8;
}

size_t arch_redzone(void)
{
	return 0;
}

/* ---- not yet ---- */

static int not_yet(const char *what, struct fault *f)
{
	fault_set(f, FAULT_UNSUPPORTED, "%s is not supported on aarch64 yet", what);
	return fault_hint(f, "Processes can be moved between x86_64 hosts only; it runs on where it is.");
}

int arch_sigframe(pid_t tid, const struct arch_regs *regs, uint64_t mask, uint64_t sigret_addr, uint64_t *sp,
		  void **bytes, size_t *len, struct fault *f)
{
	(void)tid, (void)regs, (void)mask, (void)sigret_addr, (void)sp, (void)bytes, (void)len;
	return not_yet("calling into a running process", f);
}

int arch_core_save(pid_t tid, const struct arch_regs *regs, struct arena *a, CoreEntry *core, struct fault *f)
{
	(void)tid, (void)regs, (void)a, (void)core;
	return not_yet("saving registers", f);
}

int arch_core_restore(pid_t tid, const CoreEntry *core, struct arch_regs *regs_out, struct fault *f)
{
	(void)tid, (void)core, (void)regs_out;
	return not_yet("restoring registers", f);
}

void arch_core_set_clear_tid(CoreEntry *core, uint64_t addr)
{
	(void)core, (void)addr;
}

uint64_t arch_core_clear_tid(const CoreEntry *core)
{
	(void)core;
	return 0;
}

CoreEntry__March arch_march(void)
{
	return CORE_ENTRY__MARCH__AARCH64;
}

/* ---- CPU features ---- */

size_t arch_cpu_features(uint8_t *buf, size_t len)
{
	const uint64_t caps[2] = { getauxval(AT_HWCAP), getauxval(AT_HWCAP2) };
	if (len < sizeof(caps))
		return 0;
	memcpy(buf, caps, sizeof(caps));
	return sizeof(caps);
}

void arch_cpu_missing(const uint8_t *theirs, size_t len, char *text, size_t text_len)
{
	uint8_t ours[16];
	size_t n = arch_cpu_features(ours, sizeof(ours)), used = 0;
	if (text_len > 0)
		text[0] = '\0';
	for (size_t bit = 0; bit < n * 8 && bit < len * 8; bit++) {
		if (!((theirs[bit / 8] & ~ours[bit / 8]) >> (bit % 8) & 1))
			continue;
		int k = snprintf(text + used, text_len - used, "%shwcap%s bit %zu", used ? ", " : "",
				 bit < 64 ? "" : "2", bit % 64);
		if (k < 0 || (size_t)k >= text_len - used)
			return;
		used += (size_t)k;
	}
}

uint64_t arch_xfeatures(void)
{
	return 0;
}

uint32_t arch_xstate_size(void)
{
	return 0;
}

bool arch_vdso_map_call(uint64_t addr, long *nr, uint64_t args[6])
{
	(void)addr, (void)nr, (void)args;
	return false;
}
