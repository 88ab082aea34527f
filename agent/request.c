#include "request.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "endpoint.h"
#include "json.h"

#define REQUEST_ADDRESSES 64u
#define REQUEST_HOUR_US	  3600000000ull

int request_duration(const char *text, uint64_t *us, struct fault *f)
{
	static const struct {
		const char *unit;
		uint64_t us;
	} units[] = { { "us", 1 }, { "ms", 1000 }, { "s", 1000000 } };
	size_t digits = strspn(text, "0123456789");
	char number[16];
	uint64_t n;
	if (digits > 0 && digits < sizeof(number)) {
		memcpy(number, text, digits);
		number[digits] = 0;
		/* base 10 always: no 010ms that is 8 */
		const char *start = number + strspn(number, "0");
		for (size_t i = 0; i < ARRAY_LEN(units); i++) {
			if (strcmp(text + digits, units[i].unit))
				continue;
			if (!util_parse_u64(*start ? start : "0", REQUEST_HOUR_US, &n) ||
			    n > REQUEST_HOUR_US / units[i].us)
				break;
			*us = n * units[i].us;
			return 0;
		}
	}
	fault_set(f, FAULT_USAGE, "\"%.60s\" is not a duration of at most an hour", text);
	return fault_hint(f, "Write a whole number with its unit, like 30ms, 2s or 500us.");
}

int request_move_address(const char *text, struct arena *a, Cpr__MoveAddress **out, struct fault *f)
{
	char *address = arena_strdup(a, text);
	char *device = strchr(address, '@');
	if (device)
		*device++ = 0;
	char *prefix = strchr(address, '/');
	if (prefix)
		*prefix++ = 0;
	uint8_t bin[16];
	bool v4 = inet_pton(AF_INET, address, bin) == 1;
	uint64_t length = 0;
	if ((!v4 && inet_pton(AF_INET6, address, bin) != 1) ||
	    (prefix && !util_parse_u64(prefix, v4 ? 32 : 128, &length)) ||
	    (device && (!*device || strlen(device) >= IFNAMSIZ || strpbrk(device, "/ \t")))) {
		fault_set(f, FAULT_USAGE, "\"%.100s\" is not an address to move", text);
		return fault_hint(f, "Write ADDR[/LEN][@DEV], like 10.0.0.1, 10.0.0.1/32 or fd00::1/128@eth0.");
	}
	Cpr__MoveAddress *m = arena_msg(a, Cpr__MoveAddress, cpr__move_address);
	m->address = address;
	m->has_prefix = prefix != NULL;
	m->prefix = (uint32_t)length;
	m->device = device;
	*out = m;
	return 0;
}

struct parse {
	struct arena *a;
	struct request *rq;
	bool has_pid;
};

static int wrong(const char *key, const char *expected, struct fault *f)
{
	return fault_set(f, FAULT_USAGE, "field \"%s\" must be %s", key, expected);
}

static int number(json_object *v, const char *key, uint64_t min, uint64_t max, uint64_t *out, struct fault *f)
{
	if (json_object_is_type(v, json_type_int)) {
		int64_t s = json_object_get_int64(v);
		uint64_t n = json_object_get_uint64(v);
		if (s >= 0 && n >= min && n <= max) {
			*out = n;
			return 0;
		}
	}
	return fault_set(f, FAULT_USAGE, "field \"%s\" must be a number from %llu to %llu", key,
			 (unsigned long long)min, (unsigned long long)max);
}

static int string(struct parse *p, json_object *v, const char *key, size_t max, const char **out, struct fault *f)
{
	if (!json_object_is_type(v, json_type_string))
		return wrong(key, "a string", f);
	const char *s = json_object_get_string(v);
	size_t n = (size_t)json_object_get_string_len(v);
	if (n == 0 || n > max || strlen(s) != n)
		return fault_set(f, FAULT_USAGE, "field \"%s\" must be a string of 1 to %zu characters", key, max);
	*out = arena_strdup(p->a, s);
	return 0;
}

static int one_of(struct parse *p, json_object *v, const char *key, const char *const *names, char **out,
		  struct fault *f)
{
	const char *s;
	if (string(p, v, key, 64, &s, f) < 0)
		return -1;
	char list[128] = "";
	for (size_t i = 0; names[i]; i++) {
		if (!strcmp(names[i], s)) {
			*out = (char *)s;
			return 0;
		}
		size_t n = strlen(list);
		snprintf(list + n, sizeof(list) - n, "%s%s", n ? ", " : "", names[i]);
	}
	fault_set(f, FAULT_USAGE, "field \"%s\": unknown value \"%s\"", key, s);
	return fault_hint(f, "It must be one of: %s. Without it, cpr chooses.", list);
}

static int set_pid(struct parse *p, json_object *v, struct fault *f)
{
	uint64_t n;
	if (number(v, "pid", 1, 4194304, &n, f) < 0)
		return -1;
	p->rq->pid = (pid_t)n;
	p->has_pid = true;
	return 0;
}

static int set_to(struct parse *p, json_object *v, struct fault *f)
{
	char host[256];
	uint16_t port;
	if (string(p, v, "to", 300, &p->rq->to, f) < 0)
		return -1;
	if (endpoint_split(p->rq->to, host, sizeof(host), &port, f) < 0)
		return fault_while(f, "reading field \"to\"");
	return 0;
}

static int set_downtime(struct parse *p, json_object *v, struct fault *f)
{
	p->rq->options->has_downtime_us = true;
	return number(v, "downtime_us", 0, REQUEST_HOUR_US, &p->rq->options->downtime_us, f);
}

static int set_max_time(struct parse *p, json_object *v, struct fault *f)
{
	p->rq->options->has_max_time_us = true;
	return number(v, "max_time_us", 1, 24 * REQUEST_HOUR_US, &p->rq->options->max_time_us, f);
}

static int set_max_rounds(struct parse *p, json_object *v, struct fault *f)
{
	uint64_t n;
	if (number(v, "max_rounds", 0, 1000, &n, f) < 0)
		return -1;
	p->rq->options->has_max_rounds = true;
	p->rq->options->max_rounds = (uint32_t)n;
	return 0;
}

static int set_verify(struct parse *p, json_object *v, struct fault *f)
{
	if (!json_object_is_type(v, json_type_boolean))
		return wrong("verify", "true or false", f);
	p->rq->options->has_verify = true;
	p->rq->options->verify = json_object_get_boolean(v);
	return 0;
}

static int set_tracking(struct parse *p, json_object *v, struct fault *f)
{
	static const char *const names[] = { "wp-async", "soft-dirty", "none", NULL };
	return one_of(p, v, "tracking", names, &p->rq->options->tracking, f);
}

static int set_network_lock(struct parse *p, json_object *v, struct fault *f)
{
	static const char *const names[] = { "nftables", "none", NULL };
	return one_of(p, v, "network_lock", names, &p->rq->options->network_lock, f);
}

static int set_keep_state(struct parse *p, json_object *v, struct fault *f)
{
	const char *s;
	if (string(p, v, "keep_state", 4000, &s, f) < 0)
		return -1;
	if (s[0] != '/')
		return wrong("keep_state", "an absolute path", f);
	p->rq->options->keep_state = (char *)s;
	return 0;
}

static int set_move_address(struct parse *p, json_object *v, struct fault *f)
{
	Cpr__Options *o = p->rq->options;
	if (!json_object_is_type(v, json_type_array) || json_object_array_length(v) > REQUEST_ADDRESSES)
		return wrong("move_address", "a list of at most 64 addresses", f);
	for (size_t i = 0; i < json_object_array_length(v); i++) {
		const char *text;
		Cpr__MoveAddress *m;
		if (string(p, json_object_array_get_idx(v, i), "move_address", 100, &text, f) < 0 ||
		    request_move_address(text, p->a, &m, f) < 0)
			return fault_while(f, "reading address %zu of field \"move_address\"", i + 1);
		arena_push(p->a, o->n_move_address, o->move_address, m);
	}
	return 0;
}

static const struct {
	const char *key;
	int (*set)(struct parse *p, json_object *v, struct fault *f);
} fields[] = {
	{ "pid", set_pid },
	{ "to", set_to },
	{ "downtime_us", set_downtime },
	{ "max_rounds", set_max_rounds },
	{ "max_time_us", set_max_time },
	{ "verify", set_verify },
	{ "tracking", set_tracking },
	{ "move_address", set_move_address },
	{ "network_lock", set_network_lock },
	{ "keep_state", set_keep_state },
};

static int set_field(struct parse *p, const char *key, json_object *v, struct fault *f)
{
	if (!v)
		return 0; /* null: as if it were not there */
	for (size_t i = 0; i < ARRAY_LEN(fields); i++)
		if (!strcmp(fields[i].key, key))
			return fields[i].set(p, v, f);
	return fault_set(f, FAULT_USAGE, "unknown field \"%.60s\"", key);
}

static int parse_object(struct parse *p, json_object *o, struct fault *f)
{
	if (!json_object_is_type(o, json_type_object))
		return fault_set(f, FAULT_USAGE,
				 "the body must be a JSON object, like {\"pid\":4242,\"to\":\"host2\"}");
	json_object_object_foreach(o, key, v)
	{
		if (set_field(p, key, v, f) < 0)
			return -1;
	}
	if (!p->has_pid || !p->rq->to)
		return fault_set(f, FAULT_USAGE, "field \"%s\" is missing", p->has_pid ? "to" : "pid");
	return 0;
}

int request_parse(const char *text, size_t len, struct arena *a, struct request *out, struct fault *f)
{
	json_object *o = json_parse(text, len, f);
	if (!o)
		return -1;
	*out = (struct request){ .options = arena_msg(a, Cpr__Options, cpr__options) };
	struct parse p = { .a = a, .rq = out };
	int r = parse_object(&p, o, f);
	json_object_put(o);
	return r;
}
