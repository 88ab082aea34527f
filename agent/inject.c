#include "inject.h"

#ifdef INJECT

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What is wanted: the variable itself, or the first line of the file that "@PATH" names. "": nothing. */
static void wanted(char *buf, size_t len)
{
	const char *v = getenv("CPR_INJECT");
	snprintf(buf, len, "%s", v && *v != '@' ? v : "");
	FILE *f = v && *v == '@' ? fopen(v + 1, "re") : NULL;
	if (f && fgets(buf, (int)len, f))
		buf[strcspn(buf, "\n")] = 0;
	if (f)
		fclose(f);
}

int inject_at(const char *side, const char *stage, const char *when, struct fault *f)
{
	char want[256], here[128];
	wanted(want, sizeof(want));
	int n = snprintf(here, sizeof(here), "%s:%s:%s:", side, stage, when);
	if (strncmp(want, here, (size_t)n) != 0)
		return 0;
	if (!strcmp(want + n, "kill"))
		kill(getpid(), SIGKILL);
	return fault_set(f, FAULT_INTERNAL, "injected %s %s on the %s", when, stage, side);
}

#endif
