#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the UTF-8 sequence at s, 0 when there is none. */
static size_t sequence(const unsigned char *s)
{
	if (s[0] < 0x80)
		return 1;
	size_t n = s[0] >= 0xc2 && s[0] < 0xe0	 ? 2
		   : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
		   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
						 : 0;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	/* overlong forms, surrogates, beyond U+10FFFF */
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
	    (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

void json_add_str(json_object *o, const char *key, const char *value)
{
	if (!value)
		return;
	char *clean = strdup(value);
	if (!clean)
		abort();
	for (unsigned char *p = (unsigned char *)clean; *p;) {
		size_t n = sequence(p);
		if (!n)
			*p = '?';
		p += n ? n : 1;
	}
	json_object_object_add(o, key, json_object_new_string(clean));
	free(clean);
}

void json_add_u64(json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

static json_object *member(const json_object *o, const char *key, enum json_type type)
{
	json_object *v;
	if (!o || !json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v))
		return NULL;
	return json_object_is_type(v, type) ? v : NULL;
}

const char *json_str(const json_object *o, const char *key)
{
	json_object *v = member(o, key, json_type_string);
	return v ? json_object_get_string(v) : NULL;
}

uint64_t json_u64(const json_object *o, const char *key)
{
	json_object *v = member(o, key, json_type_int);
	return v ? json_object_get_uint64(v) : 0;
}

bool json_has(const json_object *o, const char *key)
{
	return o && json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, key, NULL);
}

json_object *json_array(const json_object *o, const char *key)
{
	return member(o, key, json_type_array);
}

json_object *json_object_in(const json_object *o, const char *key)
{
	return member(o, key, json_type_object);
}

static void add_text(json_object *o, const char *key, const char *value)
{
	if (value && *value)
		json_add_str(o, key, value);
}

json_object *json_fault(const struct fault *f)
{
	json_object *o = json_object_new_object();
	json_add_str(o, "code", fault_code_name(f->code));
	if (f->errnum)
		json_object_object_add(o, "errnum", json_object_new_int(f->errnum));
	json_add_str(o, "what", f->what);
	add_text(o, "hint", f->hint);
	add_text(o, "trail", f->trail);
	add_text(o, "where", f->where);
	add_text(o, "object", f->object);
	return o;
}

static void take_text(char *to, size_t len, const json_object *o, const char *key)
{
	const char *v = json_str(o, key);
	snprintf(to, len, "%s", v ? v : "");
}

void json_fault_in(const json_object *o, struct fault *f)
{
	memset(f, 0, sizeof(*f));
	const char *code = json_str(o, "code");
	f->code = code ? fault_code_parse(code) : FAULT_INTERNAL;
	f->errnum = (int)json_u64(o, "errnum");
	take_text(f->what, sizeof(f->what), o, "what");
	take_text(f->hint, sizeof(f->hint), o, "hint");
	take_text(f->trail, sizeof(f->trail), o, "trail");
	take_text(f->where, sizeof(f->where), o, "where");
	take_text(f->object, sizeof(f->object), o, "object");
}

json_object *json_report(const Cpr__Report *r)
{
	static const char *const severities[] = { "note", "loss", "blocker" };
	json_object *list = json_object_new_array();
	for (size_t i = 0; r && i < r->n_findings; i++) {
		const Cpr__Finding *m = r->findings[i];
		json_object *o = json_object_new_object();
		json_add_str(o, "severity", (unsigned)m->severity < 3 ? severities[m->severity] : "blocker");
		json_add_str(o, "code", m->code);
		json_add_str(o, "object", m->object);
		json_add_str(o, "reason", m->reason);
		add_text(o, "remedy", m->remedy);
		json_object_array_add(list, o);
	}
	return list;
}

static json_object *spans(Cpr__Span *const *list, size_t n)
{
	json_object *out = json_object_new_array();
	for (size_t i = 0; i < n; i++) {
		json_object *o = json_object_new_object();
		json_add_str(o, "name", list[i]->name);
		add_text(o, "side", list[i]->side);
		json_add_u64(o, "start_ns", list[i]->start_ns);
		json_add_u64(o, "length_ns", list[i]->length_ns);
		json_object_array_add(out, o);
	}
	return out;
}

static json_object *wire_fault(const Cpr__Fault *m)
{
	json_object *o = json_object_new_object();
	json_add_str(o, "code", m->code ? m->code : "internal");
	if (m->has_errnum)
		json_object_object_add(o, "errnum", json_object_new_int(m->errnum));
	json_add_str(o, "what", m->what ? m->what : "no reason was given");
	add_text(o, "hint", m->hint);
	add_text(o, "trail", m->trail);
	add_text(o, "where", m->where);
	return o;
}

json_object *json_event(const Cpr__Event *e)
{
	static const char *const kinds[] = { "state", "round", "report", "done", "failed", "progress", "log" };
	json_object *o = json_object_new_object();
	json_add_str(o, "kind", (unsigned)e->kind < ARRAY_LEN(kinds) ? kinds[e->kind] : "log");
	json_add_str(o, "migration", e->migration);
	add_text(o, "side", e->side);
#define NUMBER(field)       \
	if (e->has_##field) \
	json_add_u64(o, #field, e->field)
	NUMBER(pid);
	add_text(o, "comm", e->comm);
	add_text(o, "state", e->state);
	add_text(o, "reason", e->reason);
	NUMBER(round);
	NUMBER(pages);
	NUMBER(bytes);
	NUMBER(zero_pages);
	NUMBER(dirty_pages);
	NUMBER(bandwidth);
	NUMBER(elapsed_us);
	NUMBER(memory_bytes);
	NUMBER(pause_us);
	NUMBER(total_us);
	NUMBER(total_bytes);
	NUMBER(total_pages);
	NUMBER(rounds);
	add_text(o, "stop_reason", e->stop_reason);
	add_text(o, "tracking", e->tracking);
	add_text(o, "network_lock", e->network_lock);
	NUMBER(peak_rss_bytes);
	NUMBER(peer_peak_rss_bytes);
	NUMBER(level);
#undef NUMBER
	add_text(o, "text", e->text);
	if (e->n_spans)
		json_object_object_add(o, "spans", spans(e->spans, e->n_spans));
	if (e->report)
		json_object_object_add(o, "report", json_report(e->report));
	if (e->fault)
		json_object_object_add(o, "fault", wire_fault(e->fault));
	return o;
}

json_object *json_parse(const char *text, size_t len, struct fault *f)
{
	if (len > INT32_MAX) {
		fault_set(f, FAULT_USAGE, "%zu bytes are too much JSON", len);
		return NULL;
	}
	json_tokener *tok = json_tokener_new_ex(JSON_DEPTH);
	if (!tok)
		abort();
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	json_object *o = json_tokener_parse_ex(tok, text, (int)len);
	enum json_tokener_error e = json_tokener_get_error(tok);
	if (e == json_tokener_continue && len > 0) /* a number is only over at what follows it */
		o = json_tokener_parse_ex(tok, "", 1), e = json_tokener_get_error(tok);
	size_t end = json_tokener_get_parse_end(tok);
	json_tokener_free(tok);
	if (e != json_tokener_success || !o) {
		if (o)
			json_object_put(o);
		fault_set(f, FAULT_USAGE, "not JSON: %s at byte %zu",
			  e == json_tokener_success ? "nothing there" : json_tokener_error_desc(e), end);
		return NULL;
	}
	return o;
}
