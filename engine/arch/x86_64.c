/*
 * x86_64: registers, the stub's code, signal frames, and the image's thread_info.
 *
 * Only 64-bit programs: a 32-bit one (cs 0x23) is refused where its registers are first read.
 */
#include "arch.h"

#include <asm/sigcontext.h>
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

#define CS_64BIT	0x33
#define FLAG_TRAP	0x100u
#define XSTATE_MAX	((size_t)64 << 10)
#define XSTATE_LEGACY	512u /* FXSAVE area */
#define XSTATE_HEADER	64u
#define XSTATE_SOFTWARE 464u /* sw_reserved of the FXSAVE area; ptrace puts XCR0 into its first word */

/* Components of the extended state, by their XCR0 bit. */
enum { XFEATURE_YMM = 2, XFEATURE_BNDREGS, XFEATURE_BNDCSR, XFEATURE_OPMASK, XFEATURE_ZMM_HI256, XFEATURE_HI16_ZMM };
enum { XFEATURE_PKRU = 9, XFEATURE_AMX_DATA = 18 };

struct arch_regs {
	struct user_regs_struct u;
};

struct arch_regs *arch_regs_new(void)
{
	struct arch_regs *r = calloc(1, sizeof(*r));
	if (!r)
		abort();
	return r;
}

void arch_regs_free(struct arch_regs *r)
{
	free(r);
}

int arch_regs_get(pid_t tid, struct arch_regs *r, struct fault *f)
{
	if (ptrace(PTRACE_GETREGS, tid, NULL, &r->u) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM, "read registers of thread %d",
				   tid);
	if (r->u.cs != CS_64BIT) {
		fault_set(f, FAULT_UNSUPPORTED, "thread %d runs 32-bit code", tid);
		return fault_hint(f, "32-bit programs can't be moved; it runs on where it is.");
	}
	return 0;
}

int arch_regs_set(pid_t tid, const struct arch_regs *r, struct fault *f)
{
	if (ptrace(PTRACE_SETREGS, tid, NULL, &r->u) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_SYSTEM, "set registers of thread %d",
				   tid);
	return 0;
}

void arch_regs_copy(struct arch_regs *to, const struct arch_regs *from)
{
	to->u = from->u;
}

bool arch_regs_equal(const struct arch_regs *a, const struct arch_regs *b)
{
	return memcmp(&a->u, &b->u, sizeof(a->u)) == 0;
}

uint64_t arch_pc(const struct arch_regs *r)
{
	return r->u.rip;
}

uint64_t arch_sp(const struct arch_regs *r)
{
	return r->u.rsp;
}

void arch_set_pc(struct arch_regs *r, uint64_t pc)
{
	r->u.rip = pc;
}

void arch_set_sp(struct arch_regs *r, uint64_t sp)
{
	r->u.rsp = sp;
}

/* ---- syscalls ---- */

void arch_syscall_setup(struct arch_regs *r, uint64_t insn, long nr, const uint64_t args[6])
{
	r->u.rip = insn;
	r->u.rax = (unsigned long long)nr;
	r->u.orig_rax = (unsigned long long)-1; /* not in a syscall: nothing to restart */
	r->u.rdi = args[0];
	r->u.rsi = args[1];
	r->u.rdx = args[2];
	r->u.r10 = args[3];
	r->u.r8 = args[4];
	r->u.r9 = args[5];
	r->u.eflags &= ~(unsigned long long)FLAG_TRAP;
}

long arch_syscall_result(const struct arch_regs *r)
{
	return (long)r->u.rax;
}

long arch_syscall_nr(const struct arch_regs *r)
{
	/* int, as the kernel takes it: only the low half of orig_rax is the number */
	return (int)r->u.orig_rax;
}

uint64_t arch_syscall_arg(const struct arch_regs *r, int i)
{
	const unsigned long long *const arg[] = { &r->u.rdi, &r->u.rsi, &r->u.rdx, &r->u.r10, &r->u.r8, &r->u.r9 };
	return *arg[i];
}

void arch_set_syscall_result(struct arch_regs *r, long value)
{
	r->u.rax = (unsigned long long)value;
}

void arch_set_syscall_nr(struct arch_regs *r, long nr)
{
	r->u.orig_rax = (unsigned long long)nr;
}

void arch_forget_syscall(struct arch_regs *r)
{
	r->u.orig_rax = (unsigned long long)-1;
}

void arch_rewind_syscall(struct arch_regs *r)
{
	r->u.rip -= 2;
	r->u.rax = r->u.orig_rax;
	r->u.orig_rax = (unsigned long long)-1;
}

/* ---- the stub ---- */

/* The first 16 bytes are what a later worker knows it by (remote.c). */
__asm__(".pushsection .rodata\n"
	".balign 16\n"
	"cpr_stub_begin:\n"
	"	.ascii \"cpr-stub\"\n"
	"	.quad 1\n"
	"cpr_stub_call:\n"
	"	syscall\n"
	"	ret\n"
	"cpr_stub_sigret:\n"
	"	mov	$15, %eax\n" /* rt_sigreturn */
	"	syscall\n"
	"	int3\n"
	"cpr_stub_unpin:\n"
	"	mov	$203, %eax\n" /* sched_setaffinity */
	"	xor	%edi, %edi\n"
	"	mov	$128, %esi\n"	   /* ARCH_UNPIN_LEN */
	"	lea	432(%rsp), %rdx\n" /* unpin_mask */
	"	syscall\n"
	"	jmp	cpr_stub_sigret\n"
	"cpr_stub_table:\n"
	"	mov	(%rbx), %rax\n"
	"	cmp	$-1, %rax\n"
	"	je	2f\n"
	"	mov	8(%rbx), %rdi\n"
	"	mov	16(%rbx), %rsi\n"
	"	mov	24(%rbx), %rdx\n"
	"	mov	32(%rbx), %r10\n"
	"	mov	40(%rbx), %r8\n"
	"	mov	48(%rbx), %r9\n"
	"	syscall\n"
	"	mov	%rax, 56(%rbx)\n"
	"	cmpq	$0, 64(%rbx)\n"
	"	je	1f\n"
	"	cmp	$-4095, %rax\n"
	"	jae	2f\n"
	"1:	add	$72, %rbx\n"
	"	jmp	cpr_stub_table\n"
	"2:	int3\n"
	"cpr_stub_end:\n"
	".popsection\n");
extern const char cpr_stub_begin[], cpr_stub_call[], cpr_stub_sigret[], cpr_stub_unpin[], cpr_stub_table[],
	cpr_stub_end[];

/* The kernel's ucontext (struct ucontext of arch/x86; libc's ucontext_t is larger). */
struct kernel_ucontext {
	uint64_t flags;
	uint64_t link;
	struct {
		uint64_t sp;
		uint32_t flags;
		uint64_t size;
	} stack;
	struct sigcontext mc;
	uint64_t mask;
};

/* struct rt_sigframe, followed by what is ours. */
struct frame {
	uint64_t ret;
	struct kernel_ucontext uc;
	uint8_t info[128];
	uint8_t affinity[ARCH_UNPIN_LEN];
};
_Static_assert(offsetof(struct frame, affinity) - offsetof(struct frame, uc) == 432,
	       "the stub's code knows this offset");

const struct arch_code *arch_stub(void)
{
	static struct arch_code code;
	code.bytes = cpr_stub_begin;
	code.len = (size_t)(cpr_stub_end - cpr_stub_begin);
	code.call = (size_t)(cpr_stub_call - cpr_stub_begin);
	code.sigret = (size_t)(cpr_stub_sigret - cpr_stub_begin);
	code.unpin = (size_t)(cpr_stub_unpin - cpr_stub_begin);
	code.unpin_mask = offsetof(struct frame, affinity) - offsetof(struct frame, uc);
	code.table = (size_t)(cpr_stub_table - cpr_stub_begin);
	return &code;
}

void arch_table_setup(struct arch_regs *r, uint64_t loop, uint64_t table)
{
	r->u.rip = loop;
	r->u.rbx = table;
	r->u.orig_rax = (unsigned long long)-1;
	r->u.eflags &= ~(unsigned long long)FLAG_TRAP;
}

uint64_t arch_table_at(const struct arch_regs *r)
{
	return r->u.rbx;
}

size_t arch_pattern_syscall(const unsigned char **bytes)
{
	*bytes = (const unsigned char *)"\x0f\x05";
	return 2;
}

size_t arch_pattern_syscall_ret(const unsigned char **bytes)
{
	*bytes = (const unsigned char *)"\x0f\x05\xc3";
	return 3;
}

size_t arch_pattern_sigreturn(const unsigned char **bytes)
{
	/* mov $15,%rax; syscall: __restore_rt of glibc, musl, Go */
	*bytes = (const unsigned char *)"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05";
	return 9;
}

size_t arch_redzone(void)
{
	return 128;
}

/* ---- extended state ---- */

struct xstate {
	size_t len;
	uint8_t bytes[XSTATE_MAX] __attribute__((aligned(64)));
};

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return v;
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return v;
}

/* Where a component lies in the standard (not compacted) format of this CPU; false: it has none. */
static bool xfeature_place(int feature, uint32_t *offset, uint32_t *size)
{
	uint32_t c, d;
	if (feature < 2 || !__get_cpuid_count(0xd, (unsigned)feature, size, offset, &c, &d))
		return false;
	return *size > 0 && !(c & 1); /* bit 0: a supervisor component */
}

static uint8_t *xstate_part(struct xstate *x, int feature, uint32_t want)
{
	uint32_t offset, size;
	if (!xfeature_place(feature, &offset, &size) || size < want || offset + want > x->len)
		return NULL;
	return x->bytes + offset;
}

static int xstate_get(pid_t tid, struct xstate *x, struct fault *f)
{
	struct iovec iov = { x->bytes, sizeof(x->bytes) };
	if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &iov) < 0)
		return fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_KERNEL,
				   "read the extended registers of thread %d", tid);
	if (iov.iov_len < XSTATE_LEGACY + XSTATE_HEADER)
		return fault_set(f, FAULT_KERNEL, "extended registers of thread %d: only %zu bytes", tid, iov.iov_len);
	x->len = iov.iov_len;
	return 0;
}

uint64_t arch_xfeatures(void)
{
	uint32_t a, b, c, d;
	if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 3; /* x87 and SSE */
	__asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (uint64_t)d << 32 | a;
}

uint32_t arch_xstate_size(void)
{
	uint32_t a, b, c, d;
	if (!__get_cpuid_count(0xd, 0, &a, &b, &c, &d))
		return XSTATE_LEGACY;
	return b; /* for the components enabled in XCR0 */
}

/* ---- signal frames ---- */

/* Bytes of the extended state that the kernel takes from a frame of this thread. Its limit is what the thread has
 * permission for: components that are enabled dynamically (AMX) count only when they are in use. */
static size_t frame_xstate_len(const struct xstate *x)
{
	uint64_t present = get64(x->bytes + XSTATE_LEGACY);
	uint64_t features = get64(x->bytes + XSTATE_SOFTWARE);
	size_t len = XSTATE_LEGACY + XSTATE_HEADER;
	for (int i = 2; i < 63; i++) {
		uint32_t offset, size;
		bool wanted = i == XFEATURE_AMX_DATA ? present >> i & 1 : features >> i & 1;
		if (wanted && xfeature_place(i, &offset, &size) && offset + size > len && offset + size <= x->len)
			len = offset + size;
	}
	return len;
}

static void frame_registers(struct sigcontext *s, const struct user_regs_struct *u)
{
#define COPY(reg) s->reg = u->reg
	COPY(r8), COPY(r9), COPY(r10), COPY(r11), COPY(r12), COPY(r13), COPY(r14), COPY(r15);
	COPY(rdi), COPY(rsi), COPY(rbp), COPY(rbx), COPY(rdx), COPY(rax), COPY(rcx), COPY(rsp), COPY(rip);
#undef COPY
	s->eflags = u->eflags;
	s->cs = (uint16_t)u->cs;
	s->ss = (uint16_t)u->ss;
}

int arch_sigframe(pid_t tid, const struct arch_regs *regs, uint64_t mask, uint64_t sigret_addr, uint64_t *sp,
		  void **bytes, size_t *len, struct fault *f)
{
	auto_free struct xstate *x = malloc(sizeof(*x));
	if (!x)
		abort();
	if (xstate_get(tid, x, f) < 0)
		return -1;
	size_t xlen = frame_xstate_len(x);
	uint64_t fp = (*sp - xlen - FP_XSTATE_MAGIC2_SIZE) & ~(uint64_t)63;
	uint64_t at = ((fp - sizeof(struct frame)) & ~(uint64_t)15) - 8;
	size_t total = fp + xlen + FP_XSTATE_MAGIC2_SIZE - at;
	uint8_t *buf = calloc(1, total);
	if (!buf)
		abort();
	struct frame *fr = (struct frame *)buf;
	fr->ret = sigret_addr;
	fr->uc.flags = 7; /* UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
	/* No such mode: sigaltstack fails inside rt_sigreturn, which ignores that, and the thread keeps its own. */
	fr->uc.stack.flags = 3;
	fr->uc.mask = mask;
	frame_registers(&fr->uc.mc, &regs->u);
	fr->uc.mc.fpstate = (void *)fp;
	struct _fpx_sw_bytes sw = {
		.magic1 = FP_XSTATE_MAGIC1,
		.extended_size = (uint32_t)(xlen + FP_XSTATE_MAGIC2_SIZE),
		.xfeatures = get64(x->bytes + XSTATE_SOFTWARE),
		.xstate_size = (uint32_t)xlen,
	};
	uint8_t *xs = buf + (fp - at);
	memcpy(xs, x->bytes, xlen);
	memcpy(xs + XSTATE_SOFTWARE, &sw, sizeof(sw));
	uint32_t magic2 = FP_XSTATE_MAGIC2;
	memcpy(xs + xlen, &magic2, sizeof(magic2));
	*sp = at;
	*bytes = buf;
	*len = total;
	return 0;
}

/* ---- image ---- */

CoreEntry__March arch_march(void)
{
	return CORE_ENTRY__MARCH__X86_64;
}

/* X(field of the image, field of user_regs_struct) */
#define GP_REGS(X)           \
	X(r15, r15)          \
	X(r14, r14)          \
	X(r13, r13)          \
	X(r12, r12)          \
	X(bp, rbp)           \
	X(bx, rbx)           \
	X(r11, r11)          \
	X(r10, r10)          \
	X(r9, r9)            \
	X(r8, r8)            \
	X(ax, rax)           \
	X(cx, rcx)           \
	X(dx, rdx)           \
	X(si, rsi)           \
	X(di, rdi)           \
	X(orig_ax, orig_rax) \
	X(ip, rip)           \
	X(cs, cs)            \
	X(flags, eflags)     \
	X(sp, rsp)           \
	X(ss, ss)            \
	X(fs_base, fs_base)  \
	X(gs_base, gs_base)  \
	X(ds, ds)            \
	X(es, es)            \
	X(fs, fs)            \
	X(gs, gs)

static UserX86RegsEntry *gp_save(const struct user_regs_struct *u, struct arena *a)
{
	UserX86RegsEntry *e = arena_msg(a, UserX86RegsEntry, user_x86_regs_entry);
#define X(field, reg) e->field = u->reg;
	GP_REGS(X)
#undef X
	e->has_mode = 1;
	e->mode = USER_X86_REGS_MODE__NATIVE;
	return e;
}

/* A component as an array of an image field: always there at its full size (readers expect that), zero when the CPU has
 * no such component. */
static void *part_save(struct xstate *x, int feature, size_t bytes, struct arena *a)
{
	void *out = arena_alloc(a, bytes);
	const uint8_t *p = xstate_part(x, feature, (uint32_t)bytes);
	if (p)
		memcpy(out, p, bytes);
	return out;
}

static UserX86XsaveEntry *xsave_save(struct xstate *x, struct arena *a)
{
	UserX86XsaveEntry *e = arena_msg(a, UserX86XsaveEntry, user_x86_xsave_entry);
	e->xstate_bv = get64(x->bytes + XSTATE_LEGACY);
	e->n_ymmh_space = 64;
	e->ymmh_space = part_save(x, XFEATURE_YMM, 256, a);
	e->n_opmask_reg = 8;
	e->opmask_reg = part_save(x, XFEATURE_OPMASK, 64, a);
	e->n_zmm_upper = 64;
	e->zmm_upper = part_save(x, XFEATURE_ZMM_HI256, 512, a);
	e->n_hi16_zmm = 128;
	e->hi16_zmm = part_save(x, XFEATURE_HI16_ZMM, 1024, a);
	e->n_pkru = 2;
	e->pkru = part_save(x, XFEATURE_PKRU, 8, a);
	return e;
}

static uint32_t *words(const uint8_t *p, size_t n, struct arena *a)
{
	return arena_memdup(a, p, n * 4);
}

static UserX86FpregsEntry *fp_save(struct xstate *x, struct arena *a)
{
	UserX86FpregsEntry *e = arena_msg(a, UserX86FpregsEntry, user_x86_fpregs_entry);
	const uint8_t *b = x->bytes; /* FXSAVE image */
	e->cwd = get32(b) & 0xffff;
	e->swd = get32(b) >> 16;
	e->twd = get32(b + 4) & 0xffff;
	e->fop = get32(b + 4) >> 16;
	e->rip = get64(b + 8);
	e->rdp = get64(b + 16);
	e->mxcsr = get32(b + 24);
	e->mxcsr_mask = get32(b + 28);
	e->n_st_space = 32;
	e->st_space = words(b + 32, 32, a);
	e->n_xmm_space = 64;
	e->xmm_space = words(b + 160, 64, a);
	e->n_padding = 24;
	e->padding = arena_alloc(a, 24 * sizeof(uint32_t));
	e->xsave = xsave_save(x, a);
	return e;
}

int arch_core_save(pid_t tid, const struct arch_regs *regs, struct arena *a, CoreEntry *core, struct fault *f)
{
	auto_free struct xstate *x = malloc(sizeof(*x));
	if (!x)
		abort();
	if (xstate_get(tid, x, f) < 0)
		return -1;
	ThreadInfoX86 *t = arena_msg(a, ThreadInfoX86, thread_info_x86);
	t->gpregs = gp_save(&regs->u, a);
	t->fpregs = fp_save(x, a);
	core->mtype = CORE_ENTRY__MARCH__X86_64;
	core->thread_info = t;
	if (core->thread_core) {
		core->thread_core->has_xstate = 1;
		core->thread_core->xstate.len = x->len;
		core->thread_core->xstate.data = arena_memdup(a, x->bytes, x->len);
	}
	return 0;
}

static void fp_load(struct xstate *x, const UserX86FpregsEntry *e)
{
	uint32_t v = (e->cwd & 0xffff) | e->swd << 16;
	memcpy(x->bytes, &v, 4);
	v = (e->twd & 0xffff) | e->fop << 16;
	memcpy(x->bytes + 4, &v, 4);
	put64(x->bytes + 8, e->rip);
	put64(x->bytes + 16, e->rdp);
	memcpy(x->bytes + 24, &e->mxcsr, 4);
	if (e->n_st_space == 32)
		memcpy(x->bytes + 32, e->st_space, 128);
	if (e->n_xmm_space == 64)
		memcpy(x->bytes + 160, e->xmm_space, 256);
}

static bool part_load(struct xstate *x, int feature, const void *from, size_t bytes, size_t want)
{
	uint8_t *p = bytes == want ? xstate_part(x, feature, (uint32_t)want) : NULL;
	if (p)
		memcpy(p, from, want);
	return p;
}

/* From the image's own fields: for a state whose raw size is not this CPU's, and one that was not made by us. */
static int xstate_from_fields(pid_t tid, const UserX86FpregsEntry *e, struct xstate *x, struct fault *f)
{
	if (xstate_get(tid, x, f) < 0)
		return -1;
	uint64_t bv = 3;
	memset(x->bytes + XSTATE_LEGACY + XSTATE_HEADER, 0, x->len - XSTATE_LEGACY - XSTATE_HEADER);
	fp_load(x, e);
	const UserX86XsaveEntry *s = e->xsave;
	if (s) {
		const struct {
			int feature;
			const void *from;
			size_t bytes, want;
		} parts[] = {
			{ XFEATURE_YMM, s->ymmh_space, s->n_ymmh_space * 4, 256 },
			{ XFEATURE_OPMASK, s->opmask_reg, s->n_opmask_reg * 8, 64 },
			{ XFEATURE_ZMM_HI256, s->zmm_upper, s->n_zmm_upper * 8, 512 },
			{ XFEATURE_HI16_ZMM, s->hi16_zmm, s->n_hi16_zmm * 8, 1024 },
			{ XFEATURE_PKRU, s->pkru, s->n_pkru * 4, 8 },
		};
		for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
			uint64_t bit = UINT64_C(1) << parts[i].feature;
			if (!(s->xstate_bv & bit))
				continue;
			if (!part_load(x, parts[i].feature, parts[i].from, parts[i].bytes, parts[i].want)) {
				fault_set(f, FAULT_CPU, "thread %d uses register state %d, which this CPU has not", tid,
					  parts[i].feature);
				return fault_hint(f, "Move it to a host with the same CPU features.");
			}
			bv |= bit;
		}
	}
	memset(x->bytes + XSTATE_LEGACY, 0, XSTATE_HEADER);
	put64(x->bytes + XSTATE_LEGACY, bv);
	return 0;
}

/* Raw is preferred: it has components that the fields don't know. The kernel takes exactly its own size. */
static int xstate_restore(pid_t tid, const CoreEntry *core, struct fault *f)
{
	auto_free struct xstate *x = malloc(sizeof(*x));
	if (!x)
		abort();
	const ThreadCoreEntry *tc = core->thread_core;
	if (xstate_get(tid, x, f) < 0)
		return -1;
	if (tc && tc->has_xstate && tc->xstate.len == x->len)
		memcpy(x->bytes, tc->xstate.data, x->len);
	else if (xstate_from_fields(tid, core->thread_info->fpregs, x, f) < 0)
		return -1;
	struct iovec iov = { x->bytes, x->len };
	if (ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &iov) == 0)
		return 0;
	fault_errno(f, errno == ESRCH ? FAULT_PROCESS_GONE : FAULT_CPU, "set the extended registers of thread %d", tid);
	return fault_hint(f, "The process uses register state that this CPU or kernel does not take.");
}

int arch_core_restore(pid_t tid, const CoreEntry *core, struct arch_regs *regs_out, struct fault *f)
{
	const ThreadInfoX86 *t = core->thread_info;
	if (core->mtype != CORE_ENTRY__MARCH__X86_64 || !t || !t->gpregs || !t->fpregs)
		return fault_set(f, FAULT_IMAGE, "core of thread %d has no x86_64 registers", tid);
	const UserX86RegsEntry *e = t->gpregs;
	if ((e->has_mode && e->mode != USER_X86_REGS_MODE__NATIVE) || e->cs != CS_64BIT)
		return fault_set(f, FAULT_UNSUPPORTED, "thread %d runs 32-bit code", tid);
	if (xstate_restore(tid, core, f) < 0)
		return -1;
#define X(field, reg) regs_out->u.reg = e->field;
	GP_REGS(X)
#undef X
	return 0;
}

void arch_core_set_clear_tid(CoreEntry *core, uint64_t addr)
{
	if (core->thread_info)
		core->thread_info->clear_tid_addr = addr;
}

uint64_t arch_core_clear_tid(const CoreEntry *core)
{
	return core->thread_info ? core->thread_info->clear_tid_addr : 0;
}

/* ---- CPU features ---- */

/* The words of the feature list, in this order. Append only: the list goes over the wire. */
static const struct {
	uint32_t leaf, subleaf;
	int reg; /* 0..3: eax, ebx, ecx, edx */
} feature_words[] = {
	{ 1, 0, 2 }, { 1, 0, 3 }, { 7, 0, 1 },	 { 7, 0, 2 },	       { 7, 0, 3 },	     { 7, 1, 0 },
	{ 7, 1, 3 }, { 7, 2, 3 }, { 0xd, 1, 0 }, { 0x80000001, 0, 2 }, { 0x80000001, 0, 3 },
};

/* What programs pick code paths by, by word and bit. Flags of the system (APIC, PCID, …) don't matter to them. */
static const struct {
	uint8_t word, bit;
	const char *name;
} feature_names[] = {
	{ 0, 0, "sse3" },
	{ 0, 1, "pclmulqdq" },
	{ 0, 9, "ssse3" },
	{ 0, 12, "fma" },
	{ 0, 13, "cx16" },
	{ 0, 19, "sse4_1" },
	{ 0, 20, "sse4_2" },
	{ 0, 22, "movbe" },
	{ 0, 23, "popcnt" },
	{ 0, 25, "aes" },
	{ 0, 26, "xsave" },
	{ 0, 27, "osxsave" },
	{ 0, 28, "avx" },
	{ 0, 29, "f16c" },
	{ 0, 30, "rdrand" },
	{ 1, 4, "tsc" },
	{ 1, 8, "cx8" },
	{ 1, 15, "cmov" },
	{ 1, 19, "clflush" },
	{ 1, 23, "mmx" },
	{ 1, 24, "fxsr" },
	{ 1, 25, "sse" },
	{ 1, 26, "sse2" },
	{ 2, 0, "fsgsbase" },
	{ 2, 3, "bmi1" },
	{ 2, 4, "hle" },
	{ 2, 5, "avx2" },
	{ 2, 8, "bmi2" },
	{ 2, 9, "erms" },
	{ 2, 11, "rtm" },
	{ 2, 14, "mpx" },
	{ 2, 16, "avx512f" },
	{ 2, 17, "avx512dq" },
	{ 2, 18, "rdseed" },
	{ 2, 19, "adx" },
	{ 2, 21, "avx512ifma" },
	{ 2, 23, "clflushopt" },
	{ 2, 24, "clwb" },
	{ 2, 28, "avx512cd" },
	{ 2, 29, "sha_ni" },
	{ 2, 30, "avx512bw" },
	{ 2, 31, "avx512vl" },
	{ 3, 1, "avx512vbmi" },
	{ 3, 3, "pku" },
	{ 3, 4, "ospke" },
	{ 3, 5, "waitpkg" },
	{ 3, 6, "avx512_vbmi2" },
	{ 3, 7, "shstk" },
	{ 3, 8, "gfni" },
	{ 3, 9, "vaes" },
	{ 3, 10, "vpclmulqdq" },
	{ 3, 11, "avx512_vnni" },
	{ 3, 12, "avx512_bitalg" },
	{ 3, 14, "avx512_vpopcntdq" },
	{ 3, 22, "rdpid" },
	{ 3, 25, "cldemote" },
	{ 3, 27, "movdiri" },
	{ 3, 28, "movdir64b" },
	{ 3, 29, "enqcmd" },
	{ 4, 4, "fsrm" },
	{ 4, 8, "avx512_vp2intersect" },
	{ 4, 14, "serialize" },
	{ 4, 20, "ibt" },
	{ 4, 22, "amx_bf16" },
	{ 4, 23, "avx512_fp16" },
	{ 4, 24, "amx_tile" },
	{ 4, 25, "amx_int8" },
	{ 5, 4, "avx_vnni" },
	{ 5, 5, "avx512_bf16" },
	{ 5, 10, "fzrm" },
	{ 5, 11, "fsrs" },
	{ 5, 12, "fsrc" },
	{ 5, 21, "amx_fp16" },
	{ 5, 23, "avx_ifma" },
	{ 6, 4, "avx_vnni_int8" },
	{ 6, 5, "avx_ne_convert" },
	{ 6, 19, "avx10" },
	{ 8, 0, "xsaveopt" },
	{ 8, 1, "xsavec" },
	{ 8, 2, "xgetbv1" },
	{ 9, 0, "lahf_lm" },
	{ 9, 5, "abm" },
	{ 9, 6, "sse4a" },
	{ 9, 8, "3dnowprefetch" },
	{ 9, 11, "xop" },
	{ 9, 16, "fma4" },
	{ 9, 21, "tbm" },
	{ 10, 27, "rdtscp" },
};

#define FEATURE_WORDS ARRAY_LEN(feature_words)
#define FEATURE_BYTES (FEATURE_WORDS * 4 + 8) /* and XCR0 */

size_t arch_cpu_features(uint8_t *buf, size_t len)
{
	if (len < FEATURE_BYTES)
		return 0;
	for (size_t i = 0; i < FEATURE_WORDS; i++) {
		uint32_t r[4] = { 0 };
		__get_cpuid_count(feature_words[i].leaf, feature_words[i].subleaf, &r[0], &r[1], &r[2], &r[3]);
		memcpy(buf + i * 4, &r[feature_words[i].reg], 4);
	}
	put64(buf + FEATURE_WORDS * 4, arch_xfeatures());
	return FEATURE_BYTES;
}

void arch_cpu_missing(const uint8_t *theirs, size_t len, char *text, size_t text_len)
{
	uint8_t ours[FEATURE_BYTES];
	size_t used = 0;
	arch_cpu_features(ours, sizeof(ours));
	if (text_len == 0)
		return;
	text[0] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(feature_names); i++) {
		size_t at = feature_names[i].word * 4u;
		if (at + 4 > len)
			continue;
		if (!((get32(theirs + at) & ~get32(ours + at)) >> feature_names[i].bit & 1))
			continue;
		int n = snprintf(text + used, text_len - used, "%s%s", used ? " " : "", feature_names[i].name);
		if (n < 0 || (size_t)n >= text_len - used)
			return;
		used += (size_t)n;
	}
	if (len >= FEATURE_BYTES && used < text_len) {
		uint64_t more = get64(theirs + FEATURE_WORDS * 4) & ~get64(ours + FEATURE_WORDS * 4);
		if (more)
			snprintf(text + used, text_len - used, "%sregister state 0x%llx", used ? ", " : "",
				 (unsigned long long)more);
	}
}

/* ---- vDSO ---- */

bool arch_vdso_map_call(uint64_t addr, long *nr, uint64_t args[6])
{
	memset(args, 0, 6 * sizeof(args[0]));
	*nr = SYS_arch_prctl;
	args[0] = 0x2003; /* ARCH_MAP_VDSO_64 */
	args[1] = addr;
	return true;
}
