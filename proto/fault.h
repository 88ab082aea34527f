/*
 * An error as a value.
 *
 *	if (open(...) < 0)
 *		return fault_errno(f, FAULT_FILE_MISSING, "open %s", path);
 *	...
 *	if (fd_save(..., f) < 0)
 *		return fault_while(f, "saving fd %d of pid %d (%s)", fd, pid, comm);
 *
 * Functions that can fail take `struct fault *f` last and return 0 or -1 (a pointer: NULL);
 * on -1 the fault is filled, on 0 it is untouched. Only whoever ends the operation prints it.
 * Codes are stable: the same in CLI, API and journal. docs/cpr-faults.7 lists them.
 */
#ifndef PROTO_FAULT_H
#define PROTO_FAULT_H

#include <errno.h>
#include <stdarg.h>

#include "util.h"

/* X(enum name, stable name, exit status of cpr-migrate, what it means) */
#define FAULT_CODES(X)                                                                                    \
	X(NONE, "none", 0, "no error")                                                                    \
	X(INTERNAL, "internal", 70, "a defect in cpr; the log says where")                                \
	X(USAGE, "usage", 64, "the request itself is wrong")                                              \
	X(NO_PROCESS, "no-process", 10, "no such process")                                                \
	X(NOT_MOVABLE, "not-movable", 11, "a kernel thread, PID 1, or a part of cpr")                     \
	X(UNSUPPORTED, "unsupported", 12, "the process holds something that can't be moved yet")          \
	X(PID_TAKEN, "pid-taken", 13, "a PID or TID is in use on the destination")                        \
	X(FILE_MISSING, "file-missing", 14, "a file the process uses is not on the destination")          \
	X(FILE_DIFFERS, "file-differs", 15, "a file the process uses is not the same on the destination") \
	X(NO_MEMORY, "no-memory", 16, "not enough memory")                                                \
	X(NO_ADDRESS, "no-address", 17, "a local address of a socket is not on the destination")          \
	X(KERNEL, "kernel", 18, "the kernel lacks something that is needed")                              \
	X(CPU, "cpu", 19, "the destination's CPU lacks something the process uses")                       \
	X(HOST_UNREACHABLE, "host-unreachable", 20, "no connection to the other host's agent")            \
	X(CERTIFICATE, "certificate", 21, "a certificate was refused")                                    \
	X(DENIED, "denied", 22, "policy does not allow it")                                               \
	X(PROTOCOL, "protocol", 23, "the peer sent what it must not send")                                \
	X(PEER_LOST, "peer-lost", 24, "the connection to the other host broke")                           \
	X(TIMEOUT, "timeout", 25, "something took too long")                                              \
	X(CANCELLED, "cancelled", 26, "the user cancelled it")                                            \
	X(BUSY, "busy", 27, "someone else is at it: a tracer, another migration")                         \
	X(PROCESS_GONE, "process-gone", 28, "the process exited or called exec meanwhile")                \
	X(VERIFY, "verify", 29, "memory or state differs between the hosts")                              \
	X(NETWORK, "network", 30, "network lock, address or route")                                       \
	X(SYSTEM, "system", 31, "a system call failed that should not")                                   \
	X(AGENT_DOWN, "agent-down", 32, "the local agent does not answer")                                \
	X(WORKER_DIED, "worker-died", 33, "the worker of this migration died")                            \
	X(IN_DOUBT, "in-doubt", 34, "commit sent, no answer: the source stays frozen")                    \
	X(IMAGE, "image", 35, "a state that can't be read")                                               \
	X(LIMIT, "limit", 36, "a resource limit that can't be raised here")                               \
	X(CONFIG, "config", 37, "a configuration file")

enum fault_code {
#define X(name, str, status, text) FAULT_##name,
	FAULT_CODES(X)
#undef X
		FAULT_CODE_COUNT
};

struct fault {
	enum fault_code code;
	int errnum;	 /* 0: none */
	char what[384];	 /* "open /etc/x: No such file or directory" */
	char where[48];	 /* file:line */
	char trail[384]; /* "while …; while …", innermost first */
	char hint[384];	 /* what the user can do, and where the process runs now */
	char object[96]; /* host or process the fault is about, when that is known */
};

#define FAULT_STR_(x) #x
#define FAULT_STR(x)  FAULT_STR_(x)
#define FAULT_WHERE   __FILE__ ":" FAULT_STR(__LINE__)

/* All return -1, so that failing is one expression. A fault that is set already is overwritten
 * by fault_set/fault_errno; use fault_while to add to it. f may be NULL. */
int fault_raise(struct fault *f, const char *where, enum fault_code code, int errnum, const char *fmt, ...)
	PRINTF(5, 6);
#define fault_set(f, code, ...)	  fault_raise((f), FAULT_WHERE, (code), 0, __VA_ARGS__)
#define fault_errno(f, code, ...) fault_raise((f), FAULT_WHERE, (code), errno, __VA_ARGS__)
/* for calls that return -errno (remote calls) */
#define fault_neg(f, code, neg, ...) fault_raise((f), FAULT_WHERE, (code), (int)-(neg), __VA_ARGS__)
int fault_while(struct fault *f, const char *fmt, ...) PRINTF(2, 3);
int fault_hint(struct fault *f, const char *fmt, ...) PRINTF(2, 3);

const char *fault_code_name(enum fault_code code);
enum fault_code fault_code_parse(const char *name); /* FAULT_INTERNAL when unknown */
int fault_exit_status(enum fault_code code);
const char *fault_code_text(enum fault_code code);
/* One line without the hint: "code: what (while …) [where]". */
void fault_line(const struct fault *f, char *buf, size_t len);

#endif
