/*
 * A list of remote calls for one thread, made together: on a vessel at one stop, on a source one by one.
 *
 *	struct calls *c = calls_new(r, tid);
 *	CALL(c, "name the thread", NULL, SYS_prctl, PR_SET_NAME, calls_in(c, name, 16));
 *	CALL(c, NULL, &ret, SYS_prctl, PR_GET_DUMPABLE);
 *	CALL(c, "ask for …", NULL, SYS_sigaltstack, 0, calls_out(c, &ss, sizeof(ss)));
 *	calls_run(c, f);         any number of times; the list is empty again
 *	calls_free(c);
 *
 * What a call reads or writes lies in the stub's scratch for as long as the list is not run.
 */
#ifndef ENGINE_CALLS_H
#define ENGINE_CALLS_H

#include "remote.h"

struct calls;

struct calls *calls_new(struct remote *r, pid_t tid); /* never NULL */
void calls_free(struct calls *c);
static inline void calls_cleanup(struct calls **c)
{
	calls_free(*c);
}
#define auto_calls __attribute__((cleanup(calls_cleanup))) struct calls

/* Addresses in the process: a copy of `len` bytes, and room that calls_run copies to `to`. 0 when the scratch is full:
 * calls_run then fails, nothing having been called. */
uint64_t calls_in(struct calls *c, const void *bytes, size_t len);
uint64_t calls_out(struct calls *c, void *to, size_t len);
/* Both: starts out as a copy of what is at `buf` and is copied back to it. */
uint64_t calls_inout(struct calls *c, void *buf, size_t len);
/* ret NULL: an error ends the list, and calls_run fails saying `what`. Else *ret is the result, whatever it is. */
void calls_add(struct calls *c, const char *what, long *ret, long nr, const uint64_t args[6]);
#define CALL(c, what, ret, nr, ...) calls_add((c), (what), (ret), (nr), (const uint64_t[6]){ __VA_ARGS__ })
/* Is the list long enough to be run before more is added? For loops of unknown length. */
bool calls_full(const struct calls *c);
int calls_run(struct calls *c, struct fault *f) MUST_CHECK;

#endif
