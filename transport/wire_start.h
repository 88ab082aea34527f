/*
 * Starting a wire, for the warden. Nothing of OpenSSL is here.
 *
 *	wire_user(name, &uid, &gid)	once
 *	link_create(&fds)
 *	wire_start(&conf, &proc)	fork and exec; the caller may close sock, ca, cert, key and fds.wire_end now
 *	poll proc.control for reading
 *	wire_hello_read(proc.control)	peer name, or why there is no connection
 *	close proc.control; give the link to a worker and close all of its descriptors (all but one worker_end must be
 *	gone for the wire to notice that the worker is); or just close them: then the wire ends
 *	waitpid proc.pid
 *
 * The wire ends with the *thread* that started it (PR_SET_PDEATHSIG).
 */
#ifndef TRANSPORT_WIRE_START_H
#define TRANSPORT_WIRE_START_H

#include <sys/types.h>

#include "link.h"
#include "wire.h"

struct wire_conf {
	const char *program; /* path of cpr-wire */
	bool client;
	const char *expect; /* host name or address that the peer's certificate must be for; NULL: any */
	uid_t uid;	    /* not 0 */
	gid_t gid;
	int sock;	   /* connected TCP socket */
	int ca, cert, key; /* PEM files, open for reading */
	const struct link_fds *link;
};

struct wire_proc {
	pid_t pid;
	int control;
};

/* FAULT_CONFIG when there is no such user, or it is root. */
int wire_user(const char *name, uid_t *uid, gid_t *gid, struct fault *f) MUST_CHECK;
/* Returns when the child is made. That exec failed is told by wire_hello_read. */
int wire_start(const struct wire_conf *conf, struct wire_proc *proc, struct fault *f) MUST_CHECK;
/* Does not block. 1: the connection is up, *peer is a checked host name ([a-z0-9._-]); 0: nothing yet;
 * -1: the wire's fault, or it died without a word. */
int wire_hello_read(int control, char peer[WIRE_PEER_MAX], struct fault *f) MUST_CHECK;

#endif
