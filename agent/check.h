/*
 * cpr-agent --check: what this host can do, found by trying (never by version), with the consequence where it can't.
 * Probes need root and leave nothing behind.
 */
#ifndef AGENT_CHECK_H
#define AGENT_CHECK_H

#include <json-c/json.h>
#include <stdio.h>

#include "conf.h"

/* Prints a table; true when processes can be moved from and to this host. */
bool check_run(const struct conf *c, FILE *out);
/* [{"name","works","why"}] */
json_object *check_trackers(void);

#endif
