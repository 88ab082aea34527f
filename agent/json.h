/*
 * Messages as JSON, for the API and its clients. Field names are those of wire.proto; an unset field is not there.
 * Strings that came from a process or a peer may be any bytes: what is not UTF-8 becomes '?'.
 */
#ifndef AGENT_JSON_H
#define AGENT_JSON_H

#include <json-c/json.h>

#include "fault.h"
#include "wire.pb-c.h"

void json_add_str(json_object *o, const char *key, const char *value); /* NULL: nothing is added */
void json_add_u64(json_object *o, const char *key, uint64_t value);
/* NULL or 0 when it is not there or of another type. */
const char *json_str(const json_object *o, const char *key);
uint64_t json_u64(const json_object *o, const char *key);
bool json_has(const json_object *o, const char *key);
json_object *json_array(const json_object *o, const char *key); /* NULL when it is none */
json_object *json_object_in(const json_object *o, const char *key);

json_object *json_fault(const struct fault *f);
void json_fault_in(const json_object *o, struct fault *f);
json_object *json_report(const Cpr__Report *r); /* array of findings */
json_object *json_event(const Cpr__Event *e);

/* One JSON value, strictly, of at most JSON_DEPTH levels; FAULT_USAGE says at which byte it goes wrong. */
#define JSON_DEPTH 8
json_object *json_parse(const char *text, size_t len, struct fault *f) MUST_CHECK;

#endif
