/*
 * Who a thread is: ids, groups, capabilities, securebits, no_new_privs. Linux keeps them per thread.
 *
 *	source       creds_save            from the thread's status; securebits were asked for by remote call
 *	destination  creds_restore         by calls that the thread itself makes; the last thing that needs privilege
 *	             creds_verify          what procfs shows afterwards, against the image
 */
#ifndef ENGINE_CREDS_H
#define ENGINE_CREDS_H

#include "arena.h"
#include "calls.h"
#include "image.pb-c.h"
#include "procinfo.h"
#include "report.h"

/* More would not fit in the scratch. */
#define CREDS_GROUPS_MAX 4096

CredsEntry *creds_save(const struct procinfo_status *s, uint32_t securebits, struct arena *a);
/* now: what the thread has at present. Runs c. Capabilities that this host can't give are losses, named. */
int creds_restore(struct calls *c, const CredsEntry *e, const struct procinfo_status *now, struct report *losses,
		  struct fault *f) MUST_CHECK;
/* FAULT_VERIFY when anything differs but what creds_restore reported. had: as given to creds_restore. */
int creds_verify(const CredsEntry *e, const struct procinfo_status *had, const struct procinfo_status *is,
		 struct fault *f) MUST_CHECK;

#endif
