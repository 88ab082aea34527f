#include "fault.h"

#include <stdio.h>
#include <string.h>

static const struct {
	const char *name, *text;
	int status;
} codes[] = {
#define X(name, str, status, text) { str, text, status },
	FAULT_CODES(X)
#undef X
};

int fault_raise(struct fault *f, const char *where, enum fault_code code, int errnum, const char *fmt, ...)
{
	if (!f)
		return -1;
	memset(f, 0, sizeof(*f));
	f->code = code;
	f->errnum = errnum;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->what, sizeof(f->what), fmt, ap);
	va_end(ap);
	if (errnum) {
		size_t n = strlen(f->what);
		char text[128];
		snprintf(f->what + n, sizeof(f->what) - n, ": %s", strerror_r(errnum, text, sizeof(text)));
	}
	snprintf(f->where, sizeof(f->where), "%s", where);
	return -1;
}

int fault_while(struct fault *f, const char *fmt, ...)
{
	if (!f)
		return -1;
	size_t n = strlen(f->trail);
	if (n + 16 > sizeof(f->trail))
		return -1;
	n += (size_t)snprintf(f->trail + n, sizeof(f->trail) - n, "%swhile ", n ? ", " : "");
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->trail + n, sizeof(f->trail) - n, fmt, ap);
	va_end(ap);
	return -1;
}

int fault_hint(struct fault *f, const char *fmt, ...)
{
	if (!f)
		return -1;
	size_t n = strlen(f->hint);
	if (n + 2 > sizeof(f->hint))
		return -1;
	if (n)
		f->hint[n++] = ' ';
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->hint + n, sizeof(f->hint) - n, fmt, ap);
	va_end(ap);
	return -1;
}

const char *fault_code_name(enum fault_code code)
{
	return code < FAULT_CODE_COUNT ? codes[code].name : "internal";
}

const char *fault_code_text(enum fault_code code)
{
	return code < FAULT_CODE_COUNT ? codes[code].text : "";
}

int fault_exit_status(enum fault_code code)
{
	return code < FAULT_CODE_COUNT ? codes[code].status : 70;
}

enum fault_code fault_code_parse(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(codes); i++)
		if (!strcmp(codes[i].name, name))
			return (enum fault_code)i;
	return FAULT_INTERNAL;
}

void fault_line(const struct fault *f, char *buf, size_t len)
{
	snprintf(buf, len, "%s: %s%s%s%s [%s]", fault_code_name(f->code), f->what, f->trail[0] ? " (" : "", f->trail,
		 f->trail[0] ? ")" : "", f->where);
}
