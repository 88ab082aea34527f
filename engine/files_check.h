/*
 * Files and addresses that a process needs: what the source adds to its offer, and the destination's look at it.
 */
#ifndef ENGINE_FILES_CHECK_H
#define ENGINE_FILES_CHECK_H

#include "arena.h"
#include "report.h"
#include "wire.pb-c.h"

/* Source, after the process was let go again: fills the digests that fdtab_check asked for (has_digest without
 * bytes). A file that can't be read now, or that is written to meanwhile, is compared by size only. */
void files_add_digests(Cpr__NeededFile **files, size_t n, struct arena *a);
/* Destination, before anything is frozen: every file there and the same, every address local or about to be. All
 * differences at once: FILE_MISSING, FILE_DIFFERS, NO_ADDRESS; what does not stop the migration is a loss. */
int files_check_target(const Cpr__Offer *offer, struct report *report, struct fault *f) MUST_CHECK;

#endif
