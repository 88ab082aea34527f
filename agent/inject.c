#include "inject.h"

#ifdef INJECT

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int inject_at(const char *side, const char *stage, const char *when, struct fault *f)
{
	const char *want = getenv("CPR_INJECT");
	char here[128];
	int n = snprintf(here, sizeof(here), "%s:%s:%s:", side, stage, when);
	if (!want || strncmp(want, here, (size_t)n) != 0)
		return 0;
	if (!strcmp(want + n, "kill"))
		kill(getpid(), SIGKILL);
	return fault_set(f, FAULT_INTERNAL, "injected %s %s on the %s", when, stage, side);
}

#endif
