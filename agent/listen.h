/*
 * The sockets the agent listens on, own ones or those of socket activation (LISTEN_FDS), and the word to the service
 * manager. All of it before privileges are dropped.
 *
 *	listen_take(l, …)	what the service manager hands over: "api" and "peer" by LISTEN_FDNAMES, else by family
 *	listen_close_others(l)	what a shell happened to leave open is not ours, and may be of a process that is to move
 *	listen_open(l, conf)	what is still missing is bound here
 *	listen_close(l)
 */
#ifndef AGENT_LISTEN_H
#define AGENT_LISTEN_H

#include "conf.h"

#define LISTEN_MAX 32

struct listeners {
	int api;       /* -1: none */
	bool api_ours; /* made here: its file is removed at the end */
	int peer[LISTEN_MAX];
	size_t n_peers;
};

void listen_init(struct listeners *l);
/* first_fd: 3, but for tests. Does nothing when LISTEN_PID is not us. Clears the variables. */
int listen_take(struct listeners *l, int first_fd, struct fault *f) MUST_CHECK;
/* Before anything else is opened: closes all descriptors above 2 but those that were taken. */
void listen_close_others(const struct listeners *l, int first_fd);
/* owner: of the API socket's file; -1: leave. */
int listen_open(struct listeners *l, const struct conf *c, uid_t owner, struct fault *f) MUST_CHECK;
void listen_close(struct listeners *l);
/* "READY=1" and the like, as sd_notify(3) sends it. Nobody to tell is no error. */
void listen_notify(const char *text);

#endif
