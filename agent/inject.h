/*
 * Faults on purpose, in builds with INJECT=1 only: the environment variable CPR_INJECT="side:stage:when:kind" with when
 * before|after and kind error|kill makes the stage fail, or the worker kill itself, there. "@PATH": a file
 * with that line, looked at anew each time. Other builds have no trace of it.
 */
#ifndef AGENT_INJECT_H
#define AGENT_INJECT_H

#include "fault.h"

#ifdef INJECT
int inject_at(const char *side, const char *stage, const char *when, struct fault *f) MUST_CHECK;
#else
static inline int inject_at(const char *side, const char *stage, const char *when, struct fault *f)
{
	(void)side;
	(void)stage;
	(void)when;
	(void)f;
	return 0;
}
#endif

#endif
