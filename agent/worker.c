#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "convert.h"
#include "inject.h"
#include "version.h"

int worker_stages(struct worker *w, const struct stage *stages, size_t n, void *side, struct fault *f)
{
	for (size_t i = 0; i < n; i++) {
		const char *name = stages[i].name;
		if (inject_at(w->events.side, name, "before", f) < 0 || stages[i].run(side, f) < 0 ||
		    inject_at(w->events.side, name, "after", f) < 0)
			return -1;
	}
	return 0;
}

int worker_step(struct worker *w, enum handoff_event event, const char *reason, struct fault *f)
{
	const struct handoff_step *step = handoff_next(w->start.side, w->state, event);
	if (!step)
		return fault_set(f, FAULT_INTERNAL, "event %s in state %s", handoff_event_name(event),
				 handoff_state_name(w->state));
	if (wc_state(w->wc, step->to, event, reason, f) < 0)
		return fault_while(f, "going from %s to %s", handoff_state_name(w->state),
				   handoff_state_name(step->to));
	w->state = step->to;
	events_state(&w->events, w->state, reason);
	return 0;
}

int worker_check_cancel(struct worker *w, struct fault *f)
{
	if (w->may_cancel && events_cancelled(&w->events))
		return fault_set(f, FAULT_CANCELLED, "cancelled by the user");
	return 0;
}

static int peer_aborted(struct worker *w, const struct frame *fr, struct fault *f)
{
	Cpr__Abort *m = link_unpack(fr, &cpr__abort__descriptor, w->arena, f);
	if (!m)
		return -1;
	convert_fault_in(m->fault, f);
	return fault_while(f, "working on %s", w->start.peer);
}

int worker_receive(struct worker *w, struct frame *fr, int timeout_ms, struct fault *f)
{
	uint64_t end = util_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
	for (;;) {
		int r = link_recv(w->link, fr, 0, f);
		if (r < 0)
			return -1;
		if (r > 0)
			return fr->h.type == FRAME_ABORT ? peer_aborted(w, fr, f) : 0;
		if (worker_check_cancel(w, f) < 0)
			return -1;
		uint64_t now = util_monotonic_ns();
		if (now >= end)
			return fault_set(f, FAULT_TIMEOUT, "no answer from %s for %d ms", w->start.peer, timeout_ms);
		struct pollfd p[] = {
			{ .fd = link_poll_fd(w->link), .events = POLLIN },
			{ .fd = link_hangup_fd(w->link), .events = POLLIN },
			{ .fd = w->may_cancel ? w->events.fd : -1, .events = POLLIN },
		};
		/* An agent that has gone hangs up for good: that is no reason to spin, nor to stop. */
		if (p[2].fd >= 0 && poll(&p[2], 1, 0) == 1 && p[2].revents & POLLHUP)
			p[2].fd = -1;
		uint64_t ms = (end - now) / 1000000u + 1;
		if (poll(p, ARRAY_LEN(p), ms > 1000 ? 1000 : (int)ms) < 0 && errno != EINTR)
			return fault_errno(f, FAULT_SYSTEM, "poll");
	}
}

int worker_expect(struct worker *w, enum frame_type type, struct frame *fr, int timeout_ms, struct fault *f)
{
	if (worker_receive(w, fr, timeout_ms, f) < 0)
		return fault_while(f, "waiting for %s from %s", frame_type_name(type), w->start.peer);
	if (fr->h.type != type)
		return fault_set(f, FAULT_PROTOCOL, "%s sent %s where %s was due", w->start.peer,
				 frame_type_name(fr->h.type), frame_type_name(type));
	return 0;
}

int worker_hello(struct worker *w, struct arena *a, Cpr__Hello **peer, struct fault *f)
{
	Cpr__Hello m = CPR__HELLO__INIT;
	auto_free char *boot = util_read_file(-1, "/proc/sys/kernel/random/boot_id", NULL);
	if (boot)
		boot[strcspn(boot, "\n")] = 0;
	m.protocol = FRAME_PROTOCOL;
	m.version = (char *)CPR_VERSION;
	m.host = (char *)w->host;
	m.boot_id = boot ? boot : (char *)"";
	struct frame fr;
	if (link_send_msg(w->link, FRAME_HELLO, &m.base, f) < 0 || worker_expect(w, FRAME_HELLO, &fr, 10000, f) < 0)
		return fault_while(f, "greeting %s", w->start.peer);
	*peer = link_unpack(&fr, &cpr__hello__descriptor, a, f);
	if (!*peer)
		return -1;
	if ((*peer)->protocol != FRAME_PROTOCOL)
		return fault_set(f, FAULT_PROTOCOL, "%s speaks protocol %u (cpr %s), this host %u", w->start.peer,
				 (*peer)->protocol, (*peer)->version, FRAME_PROTOCOL);
	return 0;
}

void worker_send_abort(struct worker *w, const struct fault *why)
{
	struct arena *a = arena_new();
	Cpr__Abort m = CPR__ABORT__INIT;
	m.fault = convert_fault_out(a, why);
	struct fault ignored; /* the link may be what failed */
	link_set_timeout(w->link, 1000);
	if (link_send_msg(w->link, FRAME_ABORT, &m.base, &ignored) == 0 && link_drain(w->link, 1000, &ignored) < 0)
		(void)ignored;
	arena_free(a);
}

void worker_send_failed(struct worker *w, const struct fault *why)
{
	struct arena *a = arena_new();
	Cpr__Event *m = events_new(&w->events, a, CPR__EVENT__KIND__FAILED);
	m->state = arena_strdup(a, handoff_state_name(w->state));
	m->fault = convert_fault_out(a, why);
	m->report = convert_report_out(a, &w->report);
	spans_out(&w->spans, a, &m->n_spans, &m->spans);
	events_send(&w->events, m);
	arena_free(a);
}

uint64_t worker_peak_rss(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (uint64_t)u.ru_maxrss * 1024u;
}
