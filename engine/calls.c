#include "calls.h"

#include <stdlib.h>
#include <string.h>

/* Half of the scratch is left to remote.c, whose table of calls has to lie somewhere, too. */
#define DATA_MAX  (REMOTE_SCRATCH / 2)
#define LIST_SOFT 48

struct place {
	void *to;
	size_t offset, len;
};

struct calls {
	struct remote *r;
	pid_t tid;
	size_t n, cap, cap_what, cap_ret;
	struct remote_entry *entries;
	const char **what;
	long **ret;
	size_t n_out, cap_out;
	struct place *out;
	size_t used; /* of data */
	bool overflow;
	unsigned char data[DATA_MAX];
};

struct calls *calls_new(struct remote *r, pid_t tid)
{
	struct calls *c = malloc(sizeof(*c));
	if (!c)
		abort();
	memset(c, 0, offsetof(struct calls, data));
	c->r = r;
	c->tid = tid;
	return c;
}

void calls_free(struct calls *c)
{
	if (!c)
		return;
	free(c->entries);
	free(c->what);
	free(c->ret);
	free(c->out);
	free(c);
}

static void grow(void *array, size_t *cap, size_t used, size_t elem)
{
	if (util_grow(array, cap, used, elem) < 0)
		abort();
}

static uint64_t place(struct calls *c, const void *bytes, size_t len)
{
	size_t at = (c->used + 15) & ~(size_t)15;
	if (len > DATA_MAX || at > DATA_MAX - len) {
		c->overflow = true;
		return 0;
	}
	if (bytes)
		memcpy(c->data + at, bytes, len);
	else
		memset(c->data + at, 0, len);
	memset(c->data + c->used, 0, at - c->used);
	c->used = at + len;
	return remote_scratch(c->r) + at;
}

uint64_t calls_in(struct calls *c, const void *bytes, size_t len)
{
	return place(c, bytes, len);
}

static uint64_t place_out(struct calls *c, const void *bytes, void *to, size_t len)
{
	uint64_t addr = place(c, bytes, len);
	if (!addr)
		return 0;
	grow(&c->out, &c->cap_out, c->n_out, sizeof(*c->out));
	c->out[c->n_out++] = (struct place){ to, (size_t)(addr - remote_scratch(c->r)), len };
	return addr;
}

uint64_t calls_out(struct calls *c, void *to, size_t len)
{
	return place_out(c, NULL, to, len);
}

uint64_t calls_inout(struct calls *c, void *buf, size_t len)
{
	return place_out(c, buf, buf, len);
}

void calls_add(struct calls *c, const char *what, long *ret, long nr, const uint64_t args[6])
{
	grow(&c->entries, &c->cap, c->n, sizeof(*c->entries));
	grow(&c->what, &c->cap_what, c->n, sizeof(*c->what));
	grow(&c->ret, &c->cap_ret, c->n, sizeof(*c->ret));
	struct remote_entry e = { .nr = nr, .stop_on_error = !ret };
	memcpy(e.args, args, sizeof(e.args));
	c->entries[c->n] = e;
	c->what[c->n] = what;
	c->ret[c->n++] = ret;
}

bool calls_full(const struct calls *c)
{
	return c->n >= LIST_SOFT || c->used > DATA_MAX / 2;
}

static int run(struct calls *c, struct fault *f)
{
	size_t done = 0;
	if (c->overflow)
		return fault_set(f, FAULT_INTERNAL, "%zu remote calls with too much data for the scratch", c->n);
	if (!c->n)
		return 0;
	if (c->used && remote_put(c->r, 0, c->data, c->used, f) < 0)
		return -1;
	if (remote_batch(c->r, c->tid, c->entries, c->n, &done, f) < 0)
		return fault_while(f, "running %zu calls in thread %d", c->n, c->tid);
	for (size_t i = 0; i < done; i++) {
		long ret = c->entries[i].ret;
		if (c->ret[i])
			*c->ret[i] = ret;
		else if (ret < 0 && ret >= -4095)
			return fault_neg(f, FAULT_SYSTEM, ret, "%s in thread %d", c->what[i], c->tid);
	}
	if (done < c->n)
		return fault_set(f, FAULT_SYSTEM, "only %zu of %zu calls were made in thread %d", done, c->n, c->tid);
	if (!c->n_out)
		return 0;
	if (remote_get(c->r, 0, c->data, c->used, f) < 0)
		return -1;
	for (size_t i = 0; i < c->n_out; i++)
		memcpy(c->out[i].to, c->data + c->out[i].offset, c->out[i].len);
	return 0;
}

int calls_run(struct calls *c, struct fault *f)
{
	int ret = run(c, f);
	c->n = c->n_out = c->used = 0;
	c->overflow = false;
	return ret;
}
