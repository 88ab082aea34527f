#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct {
	const char *program;
	enum log_level max;
	bool journal;
} conf = { "cpr", LOG_LEVEL_NOTICE, false };

void log_open(const char *program, enum log_level max)
{
	conf.program = program;
	conf.max = max;
	conf.journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_line(enum log_level level, const char *subject, const char *fmt, ...)
{
	if (level > conf.max)
		return;
	char line[1600];
	int n;
	if (conf.journal)
		n = snprintf(line, sizeof(line), "<%d>%s: ", (int)level, subject);
	else
		n = snprintf(line, sizeof(line), "%s[%d]: %s: ", conf.program, (int)getpid(), subject);
	va_list ap;
	va_start(ap, fmt);
	int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	n += m;
	if ((size_t)n > sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	line[n++] = '\n';
	if (util_write_all(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nowhere to say it */
}
