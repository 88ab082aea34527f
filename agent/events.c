#include "events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define EVENT_MAX (192u << 10) /* fits the default socket buffer */

Cpr__Event *events_new(const struct events *e, struct arena *a, Cpr__Event__Kind kind)
{
	Cpr__Event *m = arena_msg(a, Cpr__Event, cpr__event);
	m->kind = kind;
	m->migration = arena_strdup(a, e->migration);
	m->side = arena_strdup(a, e->side);
	if (e->pid) {
		m->has_pid = true;
		m->pid = e->pid;
		m->comm = arena_strdup(a, e->comm);
	}
	return m;
}

void events_send(const struct events *e, const Cpr__Event *m)
{
	size_t len = cpr__event__get_packed_size(m);
	if (e->fd < 0 || len > EVENT_MAX)
		return;
	auto_free uint8_t *buf = malloc(len);
	if (!buf)
		return;
	cpr__event__pack(m, buf);
	/* A final event must not be lost to a full socket: the agent is only slow then. */
	bool final = m->kind == CPR__EVENT__KIND__DONE || m->kind == CPR__EVENT__KIND__FAILED;
	while (send(e->fd, buf, len, MSG_NOSIGNAL | (final ? 0 : MSG_DONTWAIT)) < 0 && errno == EINTR)
		continue;
}

void events_state(const struct events *e, enum handoff_state s, const char *reason)
{
	struct arena *a = arena_new();
	Cpr__Event *m = events_new(e, a, CPR__EVENT__KIND__STATE);
	m->state = arena_strdup(a, handoff_state_name(s));
	m->reason = arena_strdup(a, reason);
	events_send(e, m);
	arena_free(a);
}

bool events_cancelled(const struct events *e)
{
	char c;
	return e->fd >= 0 && recv(e->fd, &c, 1, MSG_DONTWAIT) == 1 && c == 'C';
}
