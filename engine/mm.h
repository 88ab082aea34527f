/*
 * What the kernel keeps of an address space besides its mappings: code, data, heap, stack, argument and environment
 * bounds, auxv, the executable; whether future mappings are locked.
 */
#ifndef ENGINE_MM_H
#define ENGINE_MM_H

#include "filetab.h"
#include "remote.h"
#include "vessel.h"

/* Bits of mm_entry.def_flags, ours. */
#define MM_LOCK_FUTURE	       1u /* mlockall(MCL_FUTURE) */
#define MM_LOCK_FUTURE_ONFAULT 2u /* … | MCL_ONFAULT */

/* Stopped, r open. Fills the fields of mm but for mappings and objects; auxv in the arena. own_path: what the path of
 * the executable is called in the process's root. */
int mm_save(struct process *p, struct remote *r, struct filetab *files, const char *root, struct arena *a, MmEntry *mm,
	    struct fault *f) MUST_CHECK;
/* The final mappings are there, the old executable's are not. Uses the helper. */
int mm_restore(struct vessel *v, const MmEntry *mm, const struct filetab *files, struct fault *f) MUST_CHECK;

#endif
