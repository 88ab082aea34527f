#include "peers.h"

#include <errno.h>
#include <event2/dns.h>
#include <event2/util.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "endpoint.h"
#include "log.h"
#include "policy.h"

#define PEERS_ADDRESSES 16

enum peer_state { PEER_RESOLVE, PEER_CONNECT, PEER_HANDSHAKE, PEER_UP, PEER_WORKER };

/* A name being resolved. Outlives a connection that is closed meanwhile: evdns calls back in any case, and what called
 * back can't be freed from within. */
struct lookup {
	LIST_ENTRY(lookup) link;
	struct peer *owner; /* NULL: nobody waits any more */
	struct evdns_base *dns;
	struct evdns_getaddrinfo_request *request;
	struct event *after;
	bool done;
	int result;
	struct endpoint addr[PEERS_ADDRESSES];
	size_t n;
};

struct peer {
	LIST_ENTRY(peer) link;
	struct peers *p;
	uint64_t conn;
	enum peer_state state;
	bool outgoing;
	char host[256]; /* outgoing: the name its certificate must carry */
	uint16_t port;
	char text[ENDPOINT_TEXT]; /* the other end, for messages */
	struct lookup *lookup;
	struct endpoint addr[PEERS_ADDRESSES];
	size_t n_addr, next_addr;
	int sock;
	struct event *io;    /* connect(2) under way, or the first try */
	struct event *timer; /* of resolve and connect, then of the handshake */
	struct fault last;   /* of the addresses tried so far */
};

struct peers {
	struct event_base *base;
	struct wa *wa;
	const struct conf *conf;
	struct peers_handlers h;
	void *ctx;
	uint64_t next_conn;
	LIST_HEAD(, peer) list;
	LIST_HEAD(, lookup) lookups;
	struct event *listeners[64];
	size_t n_listeners;
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

static void event_drop(struct event **e)
{
	if (*e)
		event_free(*e);
	*e = NULL;
}

static struct peer *find(struct peers *p, uint64_t conn)
{
	struct peer *x;
	LIST_FOREACH(x, &p->list, link)
	{
		if (x->conn == conn)
			return x;
	}
	return NULL;
}

static void on_timeout(evutil_socket_t fd, short what, void *ctx);

static struct peer *peer_new(struct peers *p, bool outgoing, int seconds)
{
	struct peer *x = must(calloc(1, sizeof(*x)));
	x->p = p;
	x->conn = ++p->next_conn;
	x->outgoing = outgoing;
	x->sock = -1;
	x->timer = must(evtimer_new(p->base, on_timeout, x));
	evtimer_add(x->timer, &(struct timeval){ .tv_sec = seconds });
	LIST_INSERT_HEAD(&p->list, x, link);
	return x;
}

static void peer_free(struct peer *x)
{
	if (x->lookup) {
		x->lookup->owner = NULL;
		if (x->lookup->request && !x->lookup->done)
			evdns_getaddrinfo_cancel(x->lookup->request);
	}
	event_drop(&x->io);
	event_drop(&x->timer);
	util_close(&x->sock);
	LIST_REMOVE(x, link);
	free(x);
}

/* why: for an authenticated peer; NULL: it only sees the end. */
static void close_wire(struct peer *x, const struct fault *why)
{
	struct fault f;
	if (wa_close_wire(x->p->wa, x->conn, why, &f) < 0)
		log_err(x->text, "closing its wire failed: %s", f.what);
}

static void give_up(struct peer *x, const struct fault *why)
{
	struct peers *p = x->p;
	uint64_t conn = x->conn;
	bool outgoing = x->outgoing;
	if (!outgoing)
		log_notice(x->text, "connection refused: %s: %s%s%s", fault_code_name(why->code), why->what,
			   why->hint[0] ? ". " : "", why->hint);
	peer_free(x);
	if (outgoing)
		p->h.failed(p->ctx, conn, why);
}

static void hint_name(const struct peer *x, struct fault *f)
{
	fault_hint(f, "Check the name, or give its address with hosts = %s=ADDR in %s.", x->host,
		   x->p->conf->config ? x->p->conf->config : CONF_FILE);
}

static void on_timeout(evutil_socket_t fd, short what, void *ctx)
{
	struct peer *x = ctx;
	struct fault f;
	(void)fd;
	(void)what;
	if (x->state == PEER_HANDSHAKE) {
		close_wire(x, NULL);
		fault_set(&f, FAULT_TIMEOUT, "%s did not finish the TLS handshake in %d s",
			  x->outgoing ? x->host : x->text, PEERS_HANDSHAKE_SECONDS);
		if (x->outgoing)
			fault_hint(&f, "Is it cpr-agent that listens at %s?", x->text);
	} else if (x->state == PEER_RESOLVE) {
		fault_set(&f, FAULT_HOST_UNREACHABLE,
			  "the name \"%s\" can't be resolved: no name server answered in %d s", x->host,
			  PEERS_CONNECT_SECONDS);
		hint_name(x, &f);
	} else {
		fault_set(&f, FAULT_HOST_UNREACHABLE, "%s did not answer at %s in %d s", x->host, x->text,
			  PEERS_CONNECT_SECONDS);
		fault_hint(&f, "Check the address, and that no firewall drops port %u.", x->port);
	}
	give_up(x, &f);
}

static void want_wire(struct peer *x)
{
	struct fault f;
	x->state = PEER_HANDSHAKE;
	evtimer_add(x->timer, &(struct timeval){ .tv_sec = PEERS_HANDSHAKE_SECONDS });
	if (wa_wire(x->p->wa, x->conn, take_fd(&x->sock), x->outgoing, x->outgoing ? x->host : NULL, &f) < 0)
		give_up(x, &f);
}

static void connect_next(struct peer *x);

static void connect_failed(struct peer *x, int error)
{
	errno = error;
	fault_errno(&x->last, FAULT_HOST_UNREACHABLE, "connect to %s at %s", x->host, x->text);
	fault_hint(&x->last, "Is cpr-agent running on %s, and listening on port %u?", x->host, x->port);
	event_drop(&x->io);
	util_close(&x->sock);
	connect_next(x);
}

static void set_socket(int fd)
{
	int one = 1;
	/* Neither matters for correctness: frames are written whole, and the worker has its own time limits. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) < 0)
		log_debug("peers", "socket options: %s", strerror(errno));
}

static void on_connect(evutil_socket_t fd, short what, void *ctx)
{
	struct peer *x = ctx;
	int error = 0;
	socklen_t len = sizeof(error);
	(void)what;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error) {
		connect_failed(x, error);
		return;
	}
	event_drop(&x->io);
	set_socket(fd);
	want_wire(x);
}

static void connect_next(struct peer *x)
{
	if (x->next_addr == x->n_addr) {
		struct fault why = x->last;
		give_up(x, &why);
		return;
	}
	struct endpoint *e = &x->addr[x->next_addr++];
	endpoint_text((struct sockaddr *)&e->addr, e->len, x->text);
	x->state = PEER_CONNECT;
	x->sock = socket(e->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (x->sock < 0 || (connect(x->sock, (struct sockaddr *)&e->addr, e->len) < 0 && errno != EINPROGRESS)) {
		connect_failed(x, errno);
		return;
	}
	x->io = must(event_new(x->p->base, x->sock, EV_WRITE, on_connect, x));
	event_add(x->io, NULL);
}

/* The first step runs from the loop, so that no handler is called before peers_connect has returned. */
static void on_first(evutil_socket_t fd, short what, void *ctx)
{
	struct peer *x = ctx;
	(void)fd;
	(void)what;
	event_drop(&x->io);
	connect_next(x);
}

static void lookup_free(struct lookup *l)
{
	LIST_REMOVE(l, link);
	event_drop(&l->after);
	evdns_base_free(l->dns, 0);
	free(l);
}

static void on_resolved_later(evutil_socket_t fd, short what, void *ctx)
{
	struct lookup *l = ctx;
	struct peer *x = l->owner;
	(void)fd;
	(void)what;
	if (x) {
		x->lookup = NULL;
		x->n_addr = l->n;
		memcpy(x->addr, l->addr, sizeof(x->addr));
		fault_set(&x->last, FAULT_HOST_UNREACHABLE, "the name \"%s\" can't be resolved: %s", x->host,
			  l->result ? evutil_gai_strerror(l->result) : "it has no address");
		hint_name(x, &x->last);
	}
	lookup_free(l);
	if (x)
		connect_next(x);
}

static void on_resolved(int result, struct evutil_addrinfo *list, void *ctx)
{
	struct lookup *l = ctx;
	l->done = true;
	l->result = result;
	for (struct evutil_addrinfo *a = list; a && l->n < PEERS_ADDRESSES; a = a->ai_next) {
		if (a->ai_addrlen > sizeof(l->addr[0].addr))
			continue;
		memcpy(&l->addr[l->n].addr, a->ai_addr, a->ai_addrlen);
		l->addr[l->n++].len = (socklen_t)a->ai_addrlen;
	}
	if (list)
		evutil_freeaddrinfo(list);
	event_active(l->after, EV_TIMEOUT, 0);
}

/* A resolver of its own for each lookup: resolv.conf and hosts are read as they are now. */
static int resolve(struct peer *x, struct fault *f)
{
	struct peers *p = x->p;
	struct evdns_base *dns =
		evdns_base_new(p->base, EVDNS_BASE_INITIALIZE_NAMESERVERS | EVDNS_BASE_DISABLE_WHEN_INACTIVE);
	if (!dns) {
		fault_set(f, FAULT_HOST_UNREACHABLE, "the name \"%s\" can't be resolved: no usable /etc/resolv.conf",
			  x->host);
		return fault_hint(f, "Give its address with hosts = %s=ADDR in %s.", x->host,
				  p->conf->config ? p->conf->config : CONF_FILE);
	}
	struct lookup *l = must(calloc(1, sizeof(*l)));
	l->owner = x;
	l->dns = dns;
	l->after = must(evtimer_new(p->base, on_resolved_later, l));
	LIST_INSERT_HEAD(&p->lookups, l, link);
	x->lookup = l;
	char service[8];
	snprintf(service, sizeof(service), "%u", x->port);
	struct evutil_addrinfo hints = { .ai_family = AF_UNSPEC,
					 .ai_socktype = SOCK_STREAM,
					 .ai_flags = EVUTIL_AI_NUMERICSERV };
	struct evdns_getaddrinfo_request *rq = evdns_getaddrinfo(dns, x->host, service, &hints, on_resolved, l);
	if (!l->done)
		l->request = rq;
	return 0;
}

int peers_connect(struct peers *p, const char *to, uint64_t *conn, struct fault *f)
{
	char host[256];
	uint16_t port;
	struct endpoint e;
	if (endpoint_split(to, host, sizeof(host), &port, f) < 0)
		return -1;
	const char *mapped = conf_host_address(p->conf, host);
	bool known = mapped ? endpoint_parse(mapped, &e, f) == 0 : endpoint_numeric(host, port, &e);
	struct peer *x = peer_new(p, true, PEERS_CONNECT_SECONDS);
	memcpy(x->host, host, sizeof(host));
	x->port = port;
	if (known) {
		x->addr[x->n_addr++] = e;
		x->port = ntohs(((struct sockaddr_in *)&e.addr)->sin_port); /* at the same place in sockaddr_in6 */
		x->io = must(evtimer_new(p->base, on_first, x));
		event_active(x->io, EV_TIMEOUT, 0);
	} else if (resolve(x, f) < 0) {
		peer_free(x);
		return -1;
	}
	*conn = x->conn;
	return 0;
}

/* Counts incoming connections; with `handshakes`, only those not authenticated yet. */
static unsigned incoming(const struct peers *p, bool handshakes)
{
	unsigned n = 0;
	const struct peer *x;
	LIST_FOREACH(x, &p->list, link)
	{
		n += !x->outgoing && (!handshakes || x->state == PEER_HANDSHAKE);
	}
	return n;
}

static void on_accept(evutil_socket_t fd, short what, void *ctx)
{
	struct peers *p = ctx;
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	(void)what;
	auto_fd sock = accept4(fd, (struct sockaddr *)&sa, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (sock < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			log_err("peers", "accept: %s", strerror(errno));
		return;
	}
	char text[ENDPOINT_TEXT];
	endpoint_text((struct sockaddr *)&sa, len, text);
	if (incoming(p, true) >= conf_number(p->conf->max_handshakes) ||
	    incoming(p, false) >= conf_number(p->conf->max_connections)) {
		log_debug(text, "connection closed: too many at one time (max-connections, max-handshakes)");
		return;
	}
	set_socket(sock);
	struct peer *x = peer_new(p, false, PEERS_HANDSHAKE_SECONDS);
	memcpy(x->text, text, sizeof(text));
	x->sock = take_fd(&sock);
	want_wire(x);
}

int peers_listen(struct peers *p, int fd, struct fault *f)
{
	if (p->n_listeners == ARRAY_LEN(p->listeners))
		return fault_set(f, FAULT_CONFIG, "more than %zu sockets to listen on", ARRAY_LEN(p->listeners));
	struct event *e = must(event_new(p->base, fd, EV_READ | EV_PERSIST, on_accept, p));
	event_add(e, NULL);
	p->listeners[p->n_listeners++] = e;
	return 0;
}

void peers_deafen(struct peers *p)
{
	while (p->n_listeners > 0)
		event_drop(&p->listeners[--p->n_listeners]);
}

void peers_wire_up(struct peers *p, uint64_t conn, const char *peer)
{
	struct peer *x = find(p, conn);
	struct fault f;
	if (!x || x->state != PEER_HANDSHAKE)
		return; /* closed meanwhile */
	event_drop(&x->timer);
	x->state = PEER_UP;
	if (x->outgoing) {
		p->h.connected(p->ctx, conn, peer);
	} else if (policy_peer(p->conf, peer, &f) < 0) {
		close_wire(x, &f);
		give_up(x, &f);
	} else {
		p->h.arrived(p->ctx, conn, peer);
	}
}

void peers_wire_failed(struct peers *p, uint64_t conn, const struct fault *why)
{
	struct peer *x = find(p, conn);
	/* With a worker on it, the worker notices itself and says more. */
	if (x && (x->state == PEER_HANDSHAKE || x->state == PEER_UP))
		give_up(x, why);
}

void peers_handed_over(struct peers *p, uint64_t conn)
{
	struct peer *x = find(p, conn);
	if (x)
		x->state = PEER_WORKER;
}

void peers_refuse(struct peers *p, uint64_t conn, const struct fault *why)
{
	struct peer *x = find(p, conn);
	if (!x)
		return;
	if (x->state == PEER_HANDSHAKE || x->state == PEER_UP)
		close_wire(x, x->state == PEER_UP ? why : NULL);
	peer_free(x);
}

void peers_close(struct peers *p, uint64_t conn)
{
	peers_refuse(p, conn, NULL);
}

struct peers *peers_new(struct event_base *base, struct wa *wa, const struct conf *c, const struct peers_handlers *h,
			void *ctx)
{
	struct peers *p = must(calloc(1, sizeof(*p)));
	p->base = base;
	p->wa = wa;
	p->conf = c;
	p->h = *h;
	p->ctx = ctx;
	return p;
}

void peers_free(struct peers *p)
{
	struct peer *x;
	struct lookup *l;
	if (!p)
		return;
	peers_deafen(p);
	while ((x = LIST_FIRST(&p->list)))
		peer_free(x);
	while ((l = LIST_FIRST(&p->lookups)))
		lookup_free(l);
	free(p);
}
