/*
 * Pages that the vessel does not have yet. process_vm_writev(2) lets the kernel fault each of them in: a page is
 * zeroed, then written over. UFFDIO_COPY takes a page, copies into it and maps it, in half the time. So large private
 * mappings are registered with a userfaultfd of the vessel, made in it by remote call and taken out.
 *
 *	target_fresh_arm	after the mappings were made
 *	target_fresh_run, _copy	what is not there yet
 *	target_fresh_disarm	before the mappings are changed; before anything but us looks at them
 *
 * Nobody ever answers a fault: the vessel does not run, and with UFFD_FEATURE_SIGBUS whoever else touches a page that is
 * not there gets an error at once. Everything here is optional: without it pages are placed the slow way.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory_dest.h"

#define WORTH ((uint64_t)1 << 20) /* bytes of a mapping */

static bool alike(const VmaEntry *a, const VmaEntry *b)
{
	return a->end == b->start && a->prot == b->prot && a->flags == b->flags && a->vm_flags == b->vm_flags &&
	       (a->status & VMA_TYPE) == (b->status & VMA_TYPE);
}

/* Would the kernel take a huge page at a fault there? It is filled faster, and stays what it was on the source. */
static bool huge(const VmaEntry *e, bool always)
{
	return (e->vm_flags & MAP_FLAG_HUGEPAGE) || (always && !(e->vm_flags & MAP_FLAG_NOHUGEPAGE));
}

static bool worth(const MmEntry *mm, size_t i, bool always)
{
	const VmaEntry *e = mm->vmas[i];
	if ((e->status & VMA_SPECIAL) || !(e->status & VMA_ANON_PRIVATE) || e->end - e->start < WORTH ||
	    !(e->prot & PROT_WRITE) || (e->prot & PROT_EXEC) || (e->vm_flags & MAP_FLAG_GROWSDOWN) || huge(e, always))
		return false;
	/* Registering and unregistering try to merge neighbours: those that look alike are left as they were made. */
	return !(i > 0 && alike(mm->vmas[i - 1], e)) && !(i + 1 < mm->n_vmas && alike(e, mm->vmas[i + 1]));
}

static bool huge_always(void)
{
	auto_free char *text = util_read_file(-1, "/sys/kernel/mm/transparent_hugepage/enabled", NULL);
	return text && strstr(text, "[always]");
}

static int make(struct memory_target *t)
{
	struct fault ignored;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_SIGBUS };
	long fd, closed;
	if (target_one(t, &fd, &ignored, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0) <
		    0 ||
	    fd < 0)
		return -1;
	auto_fd uffd = process_getfd(t->p, (int)fd, &ignored);
	if (target_one(t, &closed, &ignored, SYS_close, (uint64_t)fd, 0, 0, 0, 0, 0) < 0 || uffd < 0 ||
	    ioctl(uffd, UFFDIO_API, &api) < 0)
		return -1;
	return take_fd(&uffd);
}

void target_fresh_arm(struct memory_target *t)
{
	const MmEntry *mm = t->mm;
	bool always = huge_always();
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *e = mm->vmas[i];
		if (!worth(mm, i, always))
			continue;
		if (t->uffd < 0 && !t->no_uffd && (t->uffd = make(t)) < 0)
			t->no_uffd = true;
		if (t->uffd < 0)
			return;
		struct uffdio_register reg = { .range = { e->start, e->end - e->start },
					       .mode = UFFDIO_REGISTER_MODE_MISSING };
		if (ioctl(t->uffd, UFFDIO_REGISTER, &reg) < 0)
			continue;
		if (util_grow((void **)&t->armed, &t->cap_armed, t->n_armed, sizeof(*t->armed)) < 0)
			abort();
		t->armed[t->n_armed++] = (struct range){ e->start, e->end };
	}
}

void target_fresh_disarm(struct memory_target *t)
{
	for (size_t i = 0; i < t->n_armed; i++) {
		struct uffdio_range r = { t->armed[i].start, t->armed[i].end - t->armed[i].start };
		if (ioctl(t->uffd, UFFDIO_UNREGISTER, &r) < 0) {
			util_close(&t->uffd); /* which does it, too */
			break;
		}
	}
	t->n_armed = 0;
}

void target_fresh_close(struct memory_target *t)
{
	util_close(&t->uffd);
	t->n_armed = 0;
}

static const struct range *armed(const struct memory_target *t, uint64_t addr)
{
	size_t lo = 0, hi = t->n_armed;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (t->armed[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->n_armed && t->armed[lo].start <= addr ? &t->armed[lo] : NULL;
}

size_t target_fresh_run(const struct memory_target *t, uint64_t addr, size_t len, bool *fresh)
{
	const struct range *r = armed(t, addr);
	*fresh = false;
	if (!r)
		return len; /* a segment lies in one mapping */
	uint64_t page = addr / PAGE_BYTES, end = page + len / PAGE_BYTES, n;
	uint64_t there = pageset_next(t->placed, page, end, &n);
	*fresh = there > page;
	return (size_t)(*fresh ? there - page : n) * PAGE_BYTES;
}

size_t target_fresh_copy(struct memory_target *t, uint64_t addr, const char *data, size_t len)
{
	size_t done = 0;
	while (done < len) {
		struct uffdio_copy c = { .dst = addr + done,
					 .src = (uint64_t)(uintptr_t)(data + done),
					 .len = len - done };
		if (ioctl(t->uffd, UFFDIO_COPY, &c) == 0) {
			done = len;
		} else if (c.copy > 0) {
			done += (size_t)c.copy;
		} else {
			if (errno != EEXIST)
				target_fresh_close(t); /* no memory, no such mapping: the other way says why */
			break;
		}
	}
	/* Also the page that stopped it: it is there. */
	pageset_add(t->placed, addr / PAGE_BYTES, (done < len ? done + PAGE_BYTES : len) / PAGE_BYTES);
	return done;
}

void target_fresh_dropped(struct memory_target *t, uint64_t addr, uint64_t len)
{
	pageset_remove(t->placed, addr / PAGE_BYTES, len / PAGE_BYTES);
}
