/*
 * Faults and reports as messages and back. Messages live in the arena.
 */
#ifndef PROTO_CONVERT_H
#define PROTO_CONVERT_H

#include "arena.h"
#include "fault.h"
#include "report.h"
#include "wire.pb-c.h"

Cpr__Fault *convert_fault_out(struct arena *a, const struct fault *f);
void convert_fault_in(const Cpr__Fault *m, struct fault *f);
Cpr__Report *convert_report_out(struct arena *a, const struct report *r);
void convert_report_in(const Cpr__Report *m, struct report *r);

#endif
