/* Threads: mutexes and conditions under contention, a robust mutex, thread-local storage, vector registers, masks, names,
 * alternate stacks, affinity and nice values, rseq. */
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "victim.h"

#define THREADS 8

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t robust;
static unsigned long turn, shared_count, counts[THREADS];
static __thread unsigned long local_tag;
static atomic_bool stop;

__attribute__((target("avx512f"))) static bool spin_zmm(const uint64_t *in, uint64_t *out)
{
	unsigned n = 200000;
	__asm__ volatile("vmovdqa64 (%1), %%zmm17\n kxnorw %%k3,%%k3,%%k3\n"
			 "1: sub $1, %0\n jnz 1b\n"
			 "vmovdqa64 %%zmm17, (%2)"
			 : "+r"(n)
			 : "r"(in), "r"(out)
			 : "xmm5", "xmm17", "k3", "memory");
	return !memcmp(in, out, 64);
}

__attribute__((target("avx2"))) static bool spin_ymm(const uint64_t *in, uint64_t *out)
{
	unsigned n = 200000;
	__asm__ volatile("vmovdqa (%1), %%ymm9\n 1: sub $1, %0\n jnz 1b\n vmovdqa %%ymm9, (%2)"
			 : "+r"(n)
			 : "r"(in), "r"(out)
			 : "xmm9", "memory");
	return !memcmp(in, out, 32);
}

static bool spin_xmm(const uint64_t *in, uint64_t *out)
{
	unsigned n = 200000;
	__asm__ volatile("movdqa (%1), %%xmm9\n 1: sub $1, %0\n jnz 1b\n movdqa %%xmm9, (%2)"
			 : "+r"(n)
			 : "r"(in), "r"(out)
			 : "xmm9", "memory");
	return !memcmp(in, out, 16);
}

/* A known value in a vector register across many iterations; false when it changed. */
static bool vectors(uint64_t tag)
{
	uint64_t in[8] __attribute__((aligned(64))), out[8] __attribute__((aligned(64)));
	for (int i = 0; i < 8; i++)
		in[i] = tag * 0x9e3779b97f4a7c15u + (unsigned)i;
	if (__builtin_cpu_supports("avx512f"))
		return spin_zmm(in, out);
	return __builtin_cpu_supports("avx2") ? spin_ymm(in, out) : spin_xmm(in, out);
}

static void check_self(int i, pid_t tid, void *stack)
{
	char name[16], want[16];
	sigset_t mask;
	stack_t alt;
	cpu_set_t cpus;
	snprintf(want, sizeof(want), "worker-%d", i);
	prctl(PR_GET_NAME, name);
	victim_check(!strcmp(name, want), "thread %d is called %s", i, name);
	victim_check(gettid() == tid, "thread %d: tid %d became %d", i, tid, gettid());
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	victim_check(sigismember(&mask, SIGRTMIN + i) == 1 && sigismember(&mask, SIGRTMIN + i + 1) == 0,
		     "thread %d: its signal mask changed", i);
	sigaltstack(NULL, &alt);
	victim_check(alt.ss_sp == stack && alt.ss_size == 32768, "thread %d: its alternate stack is %p", i, alt.ss_sp);
	sched_getaffinity(0, sizeof(cpus), &cpus);
	victim_check(CPU_COUNT(&cpus) == (i & 1 ? 1 : (int)sysconf(_SC_NPROCESSORS_ONLN)), "thread %d: %d CPUs", i,
		     CPU_COUNT(&cpus));
	victim_check(getpriority(PRIO_PROCESS, 0) == i % 3, "thread %d: nice %d", i, getpriority(PRIO_PROCESS, 0));
	victim_check(sched_getcpu() >= 0, "thread %d: sched_getcpu", i);
}

static void *work(void *arg)
{
	int i = (int)(intptr_t)arg;
	char name[16];
	sigset_t mask;
	cpu_set_t cpus;
	void *stack = malloc(32768);
	snprintf(name, sizeof(name), "worker-%d", i);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + i);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = 32768 }, NULL);
	if (i & 1) {
		CPU_ZERO(&cpus);
		CPU_SET(0, &cpus);
		sched_setaffinity(0, sizeof(cpus), &cpus);
	}
	setpriority(PRIO_PROCESS, 0, i % 3);
	pid_t tid = gettid();
	local_tag = (unsigned long)i * 1000;
	for (unsigned long n = 0; !stop && !victim_failed; n++) {
		pthread_mutex_lock(&lock);
		while (turn % THREADS != (unsigned)i && !stop)
			pthread_cond_wait(&turned, &lock);
		turn++;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&lock);
		pthread_mutex_lock(&robust);
		shared_count++;
		counts[i]++;
		pthread_mutex_unlock(&robust);
		victim_check(local_tag == (unsigned long)i * 1000 + n, "thread %d: thread-local storage", i);
		local_tag++;
		victim_check(vectors(n * THREADS + (unsigned)i), "thread %d: a vector register changed", i);
		check_self(i, tid, stack);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &a);
	pthread_t t[THREADS];
	for (int i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, work, (void *)(intptr_t)i);
	victim_ready();
	while (victim_running())
		usleep(1000);
	stop = true;
	pthread_mutex_lock(&lock);
	pthread_cond_broadcast(&turned);
	pthread_mutex_unlock(&lock);
	unsigned long sum = 0;
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		sum += counts[i];
	}
	victim_check(sum == shared_count && sum > 0, "counts add up to %lu, not %lu", sum, shared_count);
	victim_done();
}
