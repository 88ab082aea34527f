#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif

#define SEALS	   (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define NOBODY	   UINT64_MAX
#define CACHE_LINE 64

/* First page of the memfd. Each line has one writer in the normal course of things. */
struct ring_shared {
	_Alignas(CACHE_LINE) _Atomic uint64_t head; /* bytes ever produced */
	/* Index of the other side at which it has to wake the one that sleeps; NOBODY: nobody sleeps. */
	_Alignas(CACHE_LINE) _Atomic uint64_t producer_wants; /* of tail */
	_Alignas(CACHE_LINE) _Atomic uint64_t tail;	      /* bytes ever consumed */
	_Alignas(CACHE_LINE) _Atomic uint64_t consumer_wants; /* of head */
};

static size_t control_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static int memory(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

int ring_create(size_t size, const char *name, struct fault *f)
{
	auto_fd fd = memory(name);
	if (fd < 0)
		return fault_errno(f, FAULT_SYSTEM, "create shared memory for %s", name);
	if (ftruncate(fd, (off_t)(control_bytes() + size)) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "size shared memory for %s", name);
	/* The page is shared by nobody yet: a plain write does. */
	const uint64_t nobody = NOBODY;
	if (pwrite(fd, &nobody, 8, offsetof(struct ring_shared, producer_wants)) != 8 ||
	    pwrite(fd, &nobody, 8, offsetof(struct ring_shared, consumer_wants)) != 8)
		return fault_errno(f, FAULT_NO_MEMORY, "write shared memory for %s", name);
	if (fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		return fault_errno(f, FAULT_SYSTEM, "seal shared memory for %s", name);
	return take_fd(&fd);
}

static int check_memory(int memfd, size_t size, struct fault *f)
{
	struct stat st;
	int seals = fcntl(memfd, F_GET_SEALS);
	if (seals < 0 || fstat(memfd, &st) < 0)
		return fault_errno(f, FAULT_PROTOCOL, "shared memory of a ring");
	if ((seals & SEALS) != SEALS || (size_t)st.st_size != control_bytes() + size || size % control_bytes())
		return fault_set(f, FAULT_PROTOCOL, "shared memory of a ring has the wrong size or is not sealed");
	return 0;
}

int ring_map(struct ring *r, int memfd, size_t size, enum ring_role role, int fd_data, int fd_space, struct fault *f)
{
	if (check_memory(memfd, size, f) < 0)
		return -1;
	size_t ctl = control_bytes(), len = ctl + 2 * size;
	uint8_t *base = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return fault_errno(f, FAULT_NO_MEMORY, "reserve addresses for a ring");
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED;
	if (mmap(base, ctl + size, prot, flags, memfd, 0) == MAP_FAILED ||
	    mmap(base + ctl + size, size, prot, flags, memfd, (off_t)ctl) == MAP_FAILED) {
		fault_errno(f, FAULT_NO_MEMORY, "map a ring");
		munmap(base, len);
		return -1;
	}
	*r = (struct ring){
		.shared = (void *)base,
		.data = base + ctl,
		.size = size,
		.role = role,
		.fd_wait = role == RING_PRODUCER ? fd_space : fd_data,
		.fd_wake = role == RING_PRODUCER ? fd_data : fd_space,
		.map_len = len,
	};
	return 0;
}

void ring_unmap(struct ring *r)
{
	if (r->shared)
		munmap(r->shared, r->map_len);
	r->shared = NULL;
}

/* Reads the other side's index. It may only move forward, and not past what ours allows. */
static int look(struct ring *r, size_t *n, struct fault *f)
{
	bool producer = r->role == RING_PRODUCER;
	uint64_t now = atomic_load_explicit(producer ? &r->shared->tail : &r->shared->head, memory_order_acquire);
	uint64_t limit = producer ? r->mine : r->mine + r->size;
	if (now - r->other > limit - r->other)
		return fault_set(f, FAULT_PROTOCOL, "impossible index in a ring: %#llx after %#llx, limit %#llx",
				 (unsigned long long)now, (unsigned long long)r->other, (unsigned long long)limit);
	r->other = now;
	*n = producer ? r->size - (size_t)(r->mine - now) : (size_t)(now - r->mine);
	return 0;
}

int ring_room(struct ring *r, uint8_t **at, size_t *n, struct fault *f)
{
	*at = r->data + r->mine % r->size;
	return look(r, n, f);
}

int ring_data(struct ring *r, const uint8_t **at, size_t *n, struct fault *f)
{
	*at = r->data + r->mine % r->size;
	return look(r, n, f);
}

/*
 * Sleeping and waking are a Dekker pair: the sleeper writes `wants`, then reads the index; the waker writes the index,
 * then reads `wants`. With a full barrier between on both sides at least one of them sees the other. The exchange
 * makes it one eventfd write for each sleep.
 */
static void publish(struct ring *r, _Atomic uint64_t *index, _Atomic uint64_t *wants, size_t n)
{
	r->mine += n;
	atomic_store_explicit(index, r->mine, memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	uint64_t want = atomic_load_explicit(wants, memory_order_relaxed);
	if (want == NOBODY || (int64_t)(r->mine - want) < 0)
		return;
	if (!atomic_compare_exchange_strong(wants, &want, NOBODY))
		return;
	const uint64_t one = 1;
	/* EAGAIN means that the counter is full: then it is readable, which is all that we want. */
	ssize_t ignored = write(r->fd_wake, &one, sizeof(one));
	(void)ignored;
}

void ring_produce(struct ring *r, size_t n)
{
	publish(r, &r->shared->head, &r->shared->consumer_wants, n);
}

void ring_consume(struct ring *r, size_t n)
{
	publish(r, &r->shared->tail, &r->shared->producer_wants, n);
}

uint64_t ring_taken(const struct ring *r)
{
	uint64_t tail = atomic_load_explicit(&r->shared->tail, memory_order_relaxed);
	return tail - r->other <= r->mine - r->other ? tail : r->other;
}

int ring_arm(struct ring *r, size_t want, struct fault *f)
{
	bool producer = r->role == RING_PRODUCER;
	_Atomic uint64_t *wants = producer ? &r->shared->producer_wants : &r->shared->consumer_wants;
	/* The other side's index at which we have what we want. */
	uint64_t target = producer ? r->mine - r->size + want : r->mine + want;
	atomic_store_explicit(wants, target, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	size_t n;
	if (look(r, &n, f) < 0)
		return -1;
	if (n < want)
		return 0;
	/* A signal that was sent meanwhile stays in the eventfd: the next sleep ends early, which harms nobody. */
	atomic_store_explicit(wants, NOBODY, memory_order_relaxed);
	return 1;
}

int ring_fd(const struct ring *r)
{
	return r->fd_wait;
}

void ring_woken(struct ring *r)
{
	uint64_t count;
	ssize_t ignored = read(r->fd_wait, &count, sizeof(count));
	(void)ignored;
}
