#include "render.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "json.h"
#include "timeline.h"

#define RENDER_BAR 40u

enum style { STYLE_PLAIN, STYLE_GOOD, STYLE_BAD, STYLE_DIM };

char *render_bytes(uint64_t n, char out[RENDER_NUMBER])
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
	if (n < 1024) {
		snprintf(out, RENDER_NUMBER, "%u B", (unsigned)n);
		return out;
	}
	double v = (double)n / 1024;
	size_t u = 0;
	for (; v >= 1024 && u + 1 < ARRAY_LEN(units); u++)
		v /= 1024;
	snprintf(out, RENDER_NUMBER, v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
	return out;
}

char *render_us(uint64_t us, char out[RENDER_NUMBER])
{
	if (us < 1000)
		snprintf(out, RENDER_NUMBER, "%u us", (unsigned)us);
	else if (us < 1000000)
		snprintf(out, RENDER_NUMBER, us < 100000 ? "%.1f ms" : "%.0f ms", (double)us / 1e3);
	else
		snprintf(out, RENDER_NUMBER, us < 100000000 ? "%.1f s" : "%.0f s", (double)us / 1e6);
	return out;
}

char *render_rate(uint64_t n, char out[RENDER_NUMBER])
{
	if (n < 1000000)
		snprintf(out, RENDER_NUMBER, "%.0f kB/s", (double)n / 1e3);
	else if (n < 10000000000)
		snprintf(out, RENDER_NUMBER, n < 10000000 ? "%.1f MB/s" : "%.0f MB/s", (double)n / 1e6);
	else
		snprintf(out, RENDER_NUMBER, "%.1f GB/s", (double)n / 1e9);
	return out;
}

/* A process may call itself whatever it likes, escape sequences of terminals included. */
static void clean(char *s)
{
	for (unsigned char *p = (unsigned char *)s; *p; p++) {
		if ((*p < 0x20 && *p != '\n') || *p == 0x7f)
			*p = '?';
		if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) /* C1 controls */
			p[1] = 0xbf;
	}
}

static const char *style_on(const struct render *r, enum style s)
{
	static const char *const codes[] = { "", "\033[32m", "\033[31m", "\033[2m" };
	return r->color ? codes[s] : "";
}

static void end_progress(struct render *r)
{
	if (r->progress)
		fputs("\r\033[K", r->out);
	r->progress = false;
}

static void vprint(struct render *r, FILE *to, enum style s, const char *fmt, va_list ap)
{
	char *text;
	if (vasprintf(&text, fmt, ap) < 0)
		abort();
	clean(text);
	end_progress(r);
	fprintf(to, "%s%s%s\n", style_on(r, s), text, r->color && s != STYLE_PLAIN ? "\033[0m" : "");
	fflush(to);
	free(text);
}

static void say(struct render *r, enum style s, const char *fmt, ...) PRINTF(3, 4);
static void complain(struct render *r, enum style s, const char *fmt, ...) PRINTF(3, 4);

static void say(struct render *r, enum style s, const char *fmt, ...)
{
	va_list ap;
	if (r->quiet)
		return;
	va_start(ap, fmt);
	vprint(r, r->out, s, fmt, ap);
	va_end(ap);
}

static void complain(struct render *r, enum style s, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vprint(r, r->err, s, fmt, ap);
	va_end(ap);
}

static const char *or_else(const char *s, const char *other)
{
	return s && *s ? s : other;
}

static void state(struct render *r, const json_object *e)
{
	const char *name = or_else(json_str(e, "state"), "?"), *reason = json_str(e, "reason");
	say(r, STYLE_DIM, "%s%s%s", name, reason ? ": " : "", reason ? reason : "");
}

static void round_line(struct render *r, const json_object *e)
{
	char bytes[RENDER_NUMBER], took[RENDER_NUMBER], rate[RENDER_NUMBER], zero[48] = "", dirty[48] = "";
	if (json_u64(e, "zero_pages"))
		snprintf(zero, sizeof(zero), " and %llu of zeros", (unsigned long long)json_u64(e, "zero_pages"));
	if (json_has(e, "dirty_pages"))
		snprintf(dirty, sizeof(dirty), "; %llu are dirty again",
			 (unsigned long long)json_u64(e, "dirty_pages"));
	say(r, STYLE_PLAIN, "round %2llu: %8s in %7s, %8s; %llu pages%s%s", (unsigned long long)json_u64(e, "round"),
	    render_bytes(json_u64(e, "bytes"), bytes), render_us(json_u64(e, "elapsed_us"), took),
	    render_rate(json_u64(e, "bandwidth"), rate), (unsigned long long)json_u64(e, "pages"), zero, dirty);
}

static void progress(struct render *r, const json_object *e)
{
	char bytes[RENDER_NUMBER], all[RENDER_NUMBER];
	if (!r->terminal || r->quiet)
		return;
	end_progress(r);
	fprintf(r->out, "%s", render_bytes(json_u64(e, "bytes"), bytes));
	if (json_u64(e, "memory_bytes"))
		fprintf(r->out, " of %s", render_bytes(json_u64(e, "memory_bytes"), all));
	if (json_has(e, "round"))
		fprintf(r->out, ", round %llu", (unsigned long long)json_u64(e, "round"));
	if (json_u64(e, "bandwidth"))
		fprintf(r->out, ", %s", render_rate(json_u64(e, "bandwidth"), bytes));
	fflush(r->out);
	r->progress = true;
}

static size_t findings(struct render *r, const json_object *report, const char *severity, bool loud)
{
	size_t n = 0;
	for (size_t i = 0; report && i < json_object_array_length(report); i++) {
		const json_object *o = json_object_array_get_idx(report, i);
		const char *remedy = json_str(o, "remedy");
		if (strcmp(or_else(json_str(o, "severity"), "blocker"), severity))
			continue;
		n++;
		(loud ? complain : say)(r, STYLE_PLAIN, "  %s: %s%s%s%s", or_else(json_str(o, "object"), "?"),
					or_else(json_str(o, "reason"), "?"), remedy ? " (" : "", remedy ? remedy : "",
					remedy ? ")" : "");
	}
	return n;
}

static size_t count(const json_object *report, const char *severity)
{
	size_t n = 0;
	for (size_t i = 0; report && i < json_object_array_length(report); i++)
		n += !strcmp(or_else(json_str(json_object_array_get_idx(report, i), "severity"), ""), severity);
	return n;
}

/* Notes as they come; losses and blockers stand at the end, with the outcome. */
static void report(struct render *r, const json_object *e)
{
	json_object *list = json_array(e, "report");
	if (count(list, "note"))
		findings(r, list, "note", false);
}

void render_event(struct render *r, const json_object *e)
{
	static const struct {
		const char *kind;
		void (*show)(struct render *r, const json_object *e);
	} kinds[] = { { "state", state }, { "round", round_line }, { "progress", progress }, { "report", report } };
	const char *kind = or_else(json_str(e, "kind"), "");
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
		if (!strcmp(kinds[i].kind, kind))
			kinds[i].show(r, e);
}

static const char *host_of(const struct render *r, const struct timeline_stage *s)
{
	return s->there ? or_else(r->to, "destination") : or_else(r->from, "source");
}

/* A bar that stands where the stage stands in the pause. */
static void stage_line(struct render *r, const struct timeline *t, const struct timeline_stage *s, int width)
{
	char bar[RENDER_BAR + 1];
	double unit = t->pause_ms > 0 ? RENDER_BAR / t->pause_ms : 0;
	size_t from = (size_t)(s->at * unit), to = (size_t)((s->at + s->ms) * unit + 0.5);
	from = from < RENDER_BAR ? from : RENDER_BAR - 1;
	to = to > from ? to < RENDER_BAR ? to : RENDER_BAR : from + 1;
	memset(bar, ' ', sizeof(bar));
	memset(bar + from, s->there ? '=' : '#', to - from);
	bar[to] = 0;
	say(r, STYLE_PLAIN, "  %-*s  %-14s %8.1f %8.1f ms  %s", width, host_of(r, s), s->name, s->at, s->ms, bar);
}

static void before_pause(struct render *r, const struct timeline *t)
{
	char text[512] = "";
	for (size_t i = 0, n = 0; i < t->n && n < sizeof(text); i++) {
		char took[RENDER_NUMBER];
		const struct timeline_stage *s = &t->v[i];
		if (!s->pause && s->ms < 1e12)
			n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s %s (%s)", n ? ", " : "", s->name,
					      render_us((uint64_t)(s->ms * 1e3), took), host_of(r, s));
	}
	if (text[0])
		say(r, STYLE_PLAIN, "before the pause: %s", text);
}

static void timeline(struct render *r, const json_object *done)
{
	struct timeline t;
	timeline_read(&t, json_array(done, "spans"));
	if (t.n == 0)
		return;
	before_pause(r, &t);
	int width = 0;
	for (size_t i = 0; i < t.n; i++) {
		int n = (int)strlen(host_of(r, &t.v[i]));
		width = n > width ? n : width;
	}
	say(r, STYLE_PLAIN, "the pause, stage by stage:");
	say(r, STYLE_DIM, "  %-*s  %-14s %8s %8s", width, "host", "stage", "at", "for");
	for (size_t i = 0; i < t.n; i++)
		if (t.v[i].pause)
			stage_line(r, &t, &t.v[i], width);
}

static void how_to_undo(struct render *r, unsigned long long pid)
{
	if (r->from[0])
		say(r, STYLE_DIM, "to move it back: on %s, cpr-migrate --to %s %llu", r->to, r->from, pid);
}

static void losses(struct render *r, json_object *list)
{
	if (!count(list, "loss"))
		return;
	say(r, STYLE_PLAIN, "not preserved:");
	findings(r, list, "loss", false);
}

void render_done(struct render *r, const json_object *d)
{
	char pause[RENDER_NUMBER], total[RENDER_NUMBER], bytes[RENDER_NUMBER];
	unsigned long long pid = json_u64(d, "pid"), rounds = json_u64(d, "rounds");
	const char *why = json_str(d, "stop_reason"), *tracking = json_str(d, "tracking"),
		   *lock = json_str(d, "network_lock");
	if (why)
		say(r, STYLE_PLAIN, "pre-copy stopped: %s", why);
	timeline(r, d);
	if (tracking || lock)
		say(r, STYLE_DIM, "tracking %s, network lock %s", or_else(tracking, "?"), or_else(lock, "none"));
	losses(r, json_array(d, "report"));
	say(r, STYLE_GOOD, "pid %llu (%s) runs on %s; pause %s, total %s, %s in %llu round%s", pid,
	    or_else(json_str(d, "comm"), "?"), r->to[0] ? r->to : "the destination",
	    render_us(json_u64(d, "pause_us"), pause), render_us(json_u64(d, "total_us"), total),
	    render_bytes(json_u64(d, "total_bytes"), bytes), rounds, rounds == 1 ? "" : "s");
	how_to_undo(r, pid);
}

void render_failed(struct render *r, const struct fault *f, const json_object *list)
{
	size_t n = count(list, "blocker");
	if (n) {
		complain(r, STYLE_BAD, "%zu thing%s can't be moved:", n, n == 1 ? "" : "s");
		findings(r, list, "blocker", true);
	}
	complain(r, STYLE_BAD, "cpr-migrate: %s%s%s%s", f->what, f->trail[0] ? " (" : "", f->trail,
		 f->trail[0] ? ")" : "");
	if (f->hint[0])
		complain(r, STYLE_PLAIN, "%s", f->hint);
	complain(r, STYLE_DIM, "[%s, %s]", fault_code_name(f->code), f->where[0] ? f->where : "?");
}

static const char *direction(const json_object *m)
{
	return json_str(m, "to") ? "to" : "from";
}

void render_list(struct render *r, const json_object *o)
{
	json_object *list = json_array(o, "migrations");
	size_t n = list ? json_object_array_length(list) : 0;
	if (n == 0)
		say(r, STYLE_PLAIN, "no migrations");
	for (size_t i = 0; i < n; i++) {
		const json_object *m = json_object_array_get_idx(list, i);
		say(r, STYLE_PLAIN, "%s  %-12s pid %llu (%s) %s %s", or_else(json_str(m, "id"), "?"),
		    or_else(json_str(m, "state"), "?"), (unsigned long long)json_u64(m, "pid"),
		    or_else(json_str(m, "comm"), "?"), direction(m), or_else(json_str(m, direction(m)), "?"));
	}
}

static void started(struct render *r, const json_object *m)
{
	char text[64] = "?", took[RENDER_NUMBER] = "";
	time_t t = (time_t)(json_u64(m, "started_us") / 1000000);
	struct tm tm;
	if (localtime_r(&t, &tm))
		strftime(text, sizeof(text), "%F %T", &tm);
	if (json_has(m, "ended_us"))
		render_us(json_u64(m, "ended_us") - json_u64(m, "started_us"), took);
	say(r, STYLE_DIM, "started %s%s%s", text, took[0] ? ", ended after " : "", took);
}

void render_one(struct render *r, const json_object *m)
{
	struct fault f;
	json_object *rounds = json_array(m, "rounds"), *fault = json_object_in(m, "fault"),
		    *done = json_object_in(m, "result");
	say(r, STYLE_PLAIN, "%s: pid %llu (%s) %s %s: %s", or_else(json_str(m, "id"), "?"),
	    (unsigned long long)json_u64(m, "pid"), or_else(json_str(m, "comm"), "?"), direction(m),
	    or_else(json_str(m, direction(m)), "?"), or_else(json_str(m, "state"), "?"));
	if (json_str(m, "to"))
		snprintf(r->to, sizeof(r->to), "%s", json_str(m, "to"));
	started(r, m);
	for (size_t i = 0; rounds && i < json_object_array_length(rounds); i++)
		round_line(r, json_object_array_get_idx(rounds, i));
	if (done)
		render_done(r, done);
	if (!fault)
		return;
	json_fault_in(fault, &f);
	render_failed(r, &f, json_array(m, "report"));
}
