/*
 * What the wire process gives up before it reads the first byte of a peer: see wire_sandbox.c.
 */
#ifndef TRANSPORT_WIRE_SANDBOX_H
#define TRANSPORT_WIRE_SANDBOX_H

#include "fault.h"

/* Needs nothing but what it has; can't be undone. Everything that needs files must be open. */
int wire_sandbox_enter(struct fault *f) MUST_CHECK;

#endif
