/*
 * The source's side of one migration, stage by stage. What can still be undone stands with each stage; until
 * COMMITTING everything can, and worker_source_run does it.
 *
 *	vet        stopped for a few ms; nothing changed. Blockers end it here, all of them at once.
 *	offer      the destination looks, and makes the vessel
 *	track      stopped once more; the tracker is a uffd that vanishes with this process
 *	rounds     the process runs
 *	freeze     ptrace, remote calls, then the warden's freezer: undone by thawing
 *	last round, lock, sockets, state: the lock vanishes with this process, addresses have undo records
 *	commit     after it only the destination's answer decides
 */
#include "worker.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>

#include "address.h"
#include "arch.h"
#include "convert.h"
#include "fd.h"
#include "files_check.h"
#include "identity.h"
#include "keep.h"
#include "lock.h"
#include "log.h"
#include "memory.h"
#include "rounds.h"
#include "sock.h"
#include "state.h"

#define LOOK_AGAIN_NS	  7000000 /* between the two looks of vetting */
#define FREEZE_TRIES	  5
#define OFFER_TIMEOUT_MS  60000 /* the destination hashes files */
#define ROUND_TIMEOUT_MS  60000
#define READY_TIMEOUT_MS  60000
#define COMMIT_TIMEOUT_MS 20000

struct source {
	struct worker *w;
	Cpr__Options *options;
	Cpr__Offer offer;
	struct process *p;
	struct remote *r; /* open only while a stage has the process stopped */
	struct filetab *files;
	struct memory *m;
	struct image *img;
	struct fd_save fds;  /* from one phase to the next */
	size_t files_before; /* entries of files before descriptors were saved */
	struct net_lock *lock;
	struct net_flow *flows;
	size_t n_flows;
	struct net_address *addresses;
	size_t n_addresses;
	size_t removed; /* of addresses, taken off this host so far */
	struct keep *keep;
	struct rounds rounds;
	uint64_t memory_bytes;
	bool frozen;
	bool adopted;
	uint64_t started_ns, freeze_ns, frozen_process_ns, done_ns, pause_ns;
	const Cpr__Resumed *resumed;
	char lock_why[128];
};

_Static_assert(sizeof(struct memory_segment) == sizeof(struct frame_segment), "one layout");
_Static_assert(MEMORY_SEGMENT_ZERO == FRAME_SEGMENT_ZERO && MEMORY_SEGMENT_DISCARD == FRAME_SEGMENT_DISCARD, "flags");

static int stop(struct source *s, struct fault *f)
{
	if (process_stop(s->p, f) < 0)
		return -1;
	process_pin(s->p);
	/* Until the destination's mappings are known nothing is kept clear of: they are the same. */
	return remote_open(s->p, NULL, 0, &s->r, f);
}

static int go_on(struct source *s, struct fault *f)
{
	struct remote *r = take_ptr(s->r);
	if (r && remote_close(r, f) < 0)
		return -1;
	process_unpin(s->p);
	return process_release(s->p, f);
}

/* ---- vet ---- */

static int find_addresses(struct source *s, struct fault *f)
{
	s->n_addresses = s->options->n_move_address;
	s->addresses = calloc(s->n_addresses + 1, sizeof(*s->addresses));
	if (!s->addresses)
		return fault_errno(f, FAULT_NO_MEMORY, "addresses");
	for (size_t i = 0; i < s->n_addresses; i++) {
		Cpr__MoveAddress *m = s->options->move_address[i];
		struct net_address *a = &s->addresses[i];
		snprintf(a->address, sizeof(a->address), "%s", m->address);
		a->prefix = m->has_prefix ? (int)m->prefix : -1;
		if (net_address_find(a, f) < 0)
			return fault_while(f, "looking for the address to move");
		m->has_prefix = true;
		m->prefix = (uint32_t)a->prefix;
		m->source_device = arena_strdup(s->w->arena, a->device);
		if (!m->device)
			m->device = m->source_device;
	}
	return 0;
}

static void mark_moving(struct source *s, Cpr__NeededAddress *n)
{
	for (size_t i = 0; i < s->n_addresses; i++)
		if (!strcmp(s->addresses[i].address, n->address)) {
			n->has_moves = true;
			n->moves = true;
		}
}

/* What one look at the stopped process finds. */
struct look {
	struct report report;
	struct fd_needs needs;
};

static int look_stopped(struct source *s, struct look *l, struct fault *f)
{
	l->needs.a = s->w->arena;
	return state_check(s->p, s->r, &l->report, f) < 0 || fdtab_check(s->p, &l->report, &l->needs, f) < 0 ? -1 : 0;
}

static int vet_stopped(struct source *s, struct look *l, struct fault *f)
{
	struct arena *a = s->w->arena;
	Cpr__Offer *o = &s->offer;
	uint8_t digest[16];
	if (look_stopped(s, l, f) < 0 || memory_vdso_info(s->p, digest, &o->vdso_pages, &o->vvar_pages, f) < 0)
		return -1;
	o->has_vdso_pages = o->has_vvar_pages = true;
	o->has_vdso_digest = true;
	o->vdso_digest = (ProtobufCBinaryData){ sizeof(digest), arena_memdup(a, digest, sizeof(digest)) };
	if (state_offer(s->p, s->r, o, f) < 0 || net_lock_flows_of(s->p, &s->flows, &s->n_flows, f) < 0)
		return -1;
	return identity_read(s->p, a, &o->task, f);
}

static bool found_again(const struct finding *x, const struct report *r)
{
	for (size_t i = 0; i < r->n; i++)
		if (!strcmp(r->findings[i].object, x->object) && !strcmp(r->findings[i].reason, x->reason))
			return true;
	return false;
}

static bool needed_again(const Cpr__NeededFile *x, const struct fd_needs *n)
{
	for (size_t i = 0; i < n->n_files; i++)
		if (!strcmp(n->files[i]->path, x->path))
			return true;
	return false;
}

/* A file that is open for a moment only, a temporary one say, is no reason to refuse: what counts is what both looks
 * found. Whatever is open at the freeze is looked at again there. */
static void settle_looks(struct source *s, const struct look *first, const struct look *second)
{
	Cpr__Offer *o = &s->offer;
	for (size_t i = 0; i < first->report.n; i++) {
		const struct finding *x = &first->report.findings[i];
		if (found_again(x, &second->report))
			report_add(&s->w->report, x->severity, x->code, x->object, x->remedy, "%s", x->reason);
	}
	for (size_t i = 0; i < first->needs.n_files; i++)
		if (needed_again(first->needs.files[i], &second->needs))
			arena_push(s->w->arena, o->n_files, o->files, first->needs.files[i]);
	for (size_t i = 0; i < second->needs.n_addresses; i++)
		mark_moving(s, second->needs.addresses[i]);
	o->n_addresses = second->needs.n_addresses;
	o->addresses = second->needs.addresses;
	o->n_listen_ports = second->needs.n_ports;
	o->listen_ports = second->needs.ports;
}

static void fill_host(Cpr__Offer *o, struct arena *a)
{
	struct utsname u;
	uname(&u);
	o->machine = arena_strdup(a, u.machine);
	o->kernel = arena_strdup(a, u.release);
	o->has_xfeatures = true;
	o->xfeatures = arch_xfeatures();
	o->has_xstate_size = true;
	o->xstate_size = arch_xstate_size();
	uint8_t cpu[256];
	size_t n = arch_cpu_features(cpu, sizeof(cpu));
	o->has_cpu_features = true;
	o->cpu_features = (ProtobufCBinaryData){ n, arena_memdup(a, cpu, n) };
}

/* Blockers become one fault; the report with each of them goes to whoever watches. */
static int blocked(struct source *s, struct fault *f)
{
	size_t n = report_count(&s->w->report, REPORT_BLOCKER);
	if (!n)
		return 0;
	const struct finding *first = NULL;
	for (size_t i = 0; i < s->w->report.n && !first; i++)
		if (s->w->report.findings[i].severity == REPORT_BLOCKER)
			first = &s->w->report.findings[i];
	if (n > 1)
		return fault_set(f, first->code, "%s: %s, and %zu more", first->object, first->reason, n - 1);
	fault_set(f, first->code, "%s: %s", first->object, first->reason);
	if (first->remedy)
		fault_hint(f, "%c%s.", toupper((unsigned char)first->remedy[0]), first->remedy + 1);
	return -1;
}

/* One stop of a few milliseconds. */
static int look(struct source *s, int (*fn)(struct source *, struct look *, struct fault *), struct look *l,
		struct fault *f)
{
	if (stop(s, f) < 0)
		return -1;
	int r = fn(s, l, f);
	struct fault ignored;
	if (go_on(s, r < 0 ? &ignored : f) < 0)
		return -1;
	return r;
}

static int vet(void *side, struct fault *f)
{
	struct source *s = side;
	struct look first = { .report.n = 0 }, second = { .report.n = 0 };
	size_t span = spans_begin(&s->w->spans, "vetting");
	cpr__offer__init(&s->offer);
	s->offer.migration = s->w->start.migration;
	s->offer.options = s->options;
	fill_host(&s->offer, s->w->arena);
	int r = find_addresses(s, f);
	/* While it runs: smaps walks all page tables, 20 ms a GiB. */
	if (r == 0)
		r = memory_check(s->p, &s->w->report, s->w->arena, &s->offer.files, &s->offer.n_files,
				 &s->offer.memory_bytes, f);
	if (r == 0)
		r = look(s, vet_stopped, &first, f);
	if (r == 0) {
		nanosleep(&(struct timespec){ .tv_nsec = LOOK_AGAIN_NS }, NULL);
		r = look(s, look_stopped, &second, f);
	}
	if (r == 0)
		settle_looks(s, &first, &second);
	report_done(&first.report);
	report_done(&second.report);
	if (r == 0) /* it runs: reading files may take its time */
		files_add_digests(s->offer.files, s->offer.n_files, s->w->arena);
	spans_end(&s->w->spans, span);
	s->memory_bytes = s->offer.memory_bytes;
	return r < 0 ? -1 : blocked(s, f);
}

/* ---- offer ---- */

static int refused(struct source *s, const struct frame *fr, struct fault *f)
{
	Cpr__Refuse *m = link_unpack(fr, &cpr__refuse__descriptor, s->w->arena, f);
	if (!m)
		return -1;
	convert_report_in(m->report, &s->w->report);
	if (m->fault) {
		convert_fault_in(m->fault, f);
		return fault_while(f, "vetting on %s", s->w->start.peer);
	}
	if (blocked(s, f) < 0)
		return fault_while(f, "vetting on %s", s->w->start.peer);
	return fault_set(f, FAULT_PROTOCOL, "%s refused without a reason", s->w->start.peer);
}

static int offer(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	Cpr__Offer *o = &s->offer;
	Cpr__Hello *peer;
	if (worker_hello(w, w->arena, &peer, f) < 0)
		return -1;
	/* As late as possible: the clocks are those of this moment. */
	if (identity_clocks(s->p, &o->monotonic_ns, &o->boottime_ns, f) < 0)
		return -1;
	if (link_send_msg(w->link, FRAME_OFFER, &o->base, f) < 0)
		return -1;
	struct frame fr;
	if (worker_receive(w, &fr, OFFER_TIMEOUT_MS, f) < 0)
		return fault_while(f, "waiting for %s to vet", w->start.peer);
	if (fr.h.type == FRAME_REFUSE)
		return refused(s, &fr, f);
	if (fr.h.type != FRAME_ACCEPT)
		return fault_set(f, FAULT_PROTOCOL, "%s answered an offer with %s", w->start.peer,
				 frame_type_name(fr.h.type));
	Cpr__Accept *m = link_unpack(&fr, &cpr__accept__descriptor, w->arena, f);
	if (!m)
		return -1;
	if (m->report)
		convert_report_in(m->report, &w->report);
	return worker_step(w, HANDOFF_EV_ACCEPT, "accepted", f);
}

/* Ready before the pause: the lock's context takes milliseconds, and so do many flows. */
static int prepare_lock(void *side, struct fault *f)
{
	struct source *s = side;
	if (net_lock_open(s->options->network_lock, s->w->start.migration, &s->lock, s->lock_why, sizeof(s->lock_why),
			  f) < 0)
		return -1;
	return net_lock_prepare(s->lock, s->flows, s->n_flows, f);
}

/* ---- rounds ---- */

static int track(void *side, struct fault *f)
{
	struct source *s = side;
	const char *tracking =
		s->options->tracking && strcmp(s->options->tracking, "auto") ? s->options->tracking : NULL;
	if (stop(s, f) < 0)
		return -1;
	int r = memory_open(s->p, s->r, tracking, s->files, &s->m, f);
	struct fault ignored;
	if (go_on(s, r < 0 ? &ignored : f) < 0)
		return -1;
	return r;
}

static int send_maps(struct source *s, struct fault *f)
{
	struct arena *a = arena_new();
	Cpr__MapUpdate m = CPR__MAP_UPDATE__INIT;
	const MmEntry *mm = memory_mm(s->m);
	m.generation = s->rounds.n;
	m.mm.len = mm_entry__get_packed_size(mm);
	m.mm.data = arena_alloc(a, m.mm.len);
	mm_entry__pack(mm, m.mm.data);
	for (size_t i = 0; i < filetab_count(s->files); i++) {
		const FileEntry *e = filetab_at(s->files, i);
		ProtobufCBinaryData b = { .len = file_entry__get_packed_size(e) };
		b.data = arena_alloc(a, b.len);
		file_entry__pack(e, b.data);
		arena_push(a, m.n_files, m.files, b);
	}
	int r = link_send_msg(s->w->link, FRAME_MAPS, &m.base, f);
	arena_free(a);
	return r;
}

/* One frame of pages, read straight into the ring. *more is false when the round has no more. */
static int send_pages(struct source *s, struct round *round, bool *more, struct fault *f)
{
	struct memory_segment segs[FRAME_SEGMENTS_MAX];
	size_t pages, n;
	uint8_t *payload = link_begin(s->w->link, FRAME_PAGES, FRAME_PAGES_MAX * PAGE_BYTES + sizeof(segs), f);
	if (!payload)
		return -1;
	if (memory_fill(s->m, payload, FRAME_PAGES_MAX, segs, FRAME_SEGMENTS_MAX, &pages, &n, f) < 0)
		return fault_while(f, "reading memory of pid %d (%s)", s->p->pid, s->p->comm);
	*more = n > 0;
	if (!n) {
		link_cancel(s->w->link);
		return 0;
	}
	memcpy(payload + pages * PAGE_BYTES, segs, n * sizeof(*segs));
	if (s->keep && keep_pages(s->keep, payload, pages, segs, n, f) < 0)
		return -1;
	round->pages += pages;
	round->bytes += pages * PAGE_BYTES + n * sizeof(*segs);
	return link_commit(s->w->link, (uint64_t)n << 32 | pages, pages * PAGE_BYTES + n * sizeof(*segs), f);
}

static int send_round(struct source *s, bool last, struct round *round, struct fault *f)
{
	bool changed, more = true;
	*round = (struct round){ .start_ns = util_monotonic_ns() };
	if (memory_round_begin(s->m, last, &changed, f) < 0)
		return -1;
	if ((changed || s->rounds.n == 0) && send_maps(s, f) < 0)
		return -1;
	round->send_ns = util_monotonic_ns();
	while (more) {
		if (send_pages(s, round, &more, f) < 0)
			return -1;
		if (!last && worker_check_cancel(s->w, f) < 0)
			return -1;
	}
	round->zero_pages = memory_round_zero_pages(s->m);
	Cpr__RoundEnd m = CPR__ROUND_END__INIT;
	m.round = s->rounds.n;
	m.pages = round->pages;
	m.bytes = round->bytes;
	m.has_last = last;
	m.last = last;
	return link_send_msg(s->w->link, FRAME_ROUND_END, &m.base, f);
}

static void tell_round(struct source *s, const struct round *r)
{
	struct arena *a = arena_new();
	Cpr__Event *m = events_new(&s->w->events, a, CPR__EVENT__KIND__ROUND);
	m->has_round = m->has_pages = m->has_bytes = m->has_zero_pages = m->has_elapsed_us = true;
	m->round = s->rounds.n;
	m->pages = r->pages;
	m->bytes = r->bytes;
	m->zero_pages = r->zero_pages;
	m->elapsed_us = (r->end_ns - r->start_ns) / 1000u;
	m->has_dirty_pages = m->has_bandwidth = true;
	m->dirty_pages = r->dirty_pages;
	m->bandwidth = s->rounds.bandwidth;
	m->has_memory_bytes = true;
	m->memory_bytes = s->memory_bytes;
	events_send(&s->w->events, m);
	arena_free(a);
}

static int one_round(struct source *s, struct fault *f)
{
	struct round r;
	struct frame fr;
	if (send_round(s, false, &r, f) < 0 || worker_expect(s->w, FRAME_ROUND_ACK, &fr, ROUND_TIMEOUT_MS, f) < 0)
		return fault_while(f, "sending round %u", s->rounds.n + 1);
	r.end_ns = util_monotonic_ns();
	if (memory_dirty_pages(s->m, &r.dirty_pages, f) < 0)
		return -1;
	rounds_add(&s->rounds, &r);
	tell_round(s, &r);
	return 0;
}

static int precopy(void *side, struct fault *f)
{
	struct source *s = side;
	rounds_init(&s->rounds, s->options);
	if (!strcmp(memory_tracking(s->m), "none")) {
		rounds_stop(&s->rounds, "there is no dirty tracking: everything is sent in the pause");
		return 0;
	}
	size_t span = spans_begin(&s->w->spans, "pre-copy");
	while (!rounds_done(&s->rounds))
		if (one_round(s, f) < 0)
			return -1;
	spans_end(&s->w->spans, span);
	return 0;
}

/* ---- freeze, last round, state ---- */

/* Everything that needs remote calls. The process is stopped by ptrace only: it can be let go again. */
static int collect(struct source *s, struct fault *f)
{
	struct worker *w = s->w;
	uint64_t boottime;
	size_t span = spans_begin(&w->spans, "threads");
	if (identity_clocks(s->p, &s->frozen_process_ns, &boottime, f) < 0 ||
	    state_save(s->p, s->r, NULL, w->start.migration, s->img, &w->report, f) < 0 ||
	    memory_save(s->m, s->r, s->img, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	span = spans_begin(&w->spans, "files");
	s->files_before = filetab_count(s->files);
	s->fds = (struct fd_save){
		.p = s->p, .r = s->r, .files = s->files, .img = s->img, .undo = wc_undo_log(w->wc), .report = &w->report
	};
	if (fdtab_save(&s->fds, FD_PHASE_LOCAL, f) < 0)
		return -1;
	s->fds.r = NULL;
	spans_end(&w->spans, span);
	return 0;
}

static int stop_and_collect(struct source *s, struct fault *f)
{
	struct worker *w = s->w;
	process_prepare(s->p); /* when its threads fell asleep: before the pause */
	s->freeze_ns = util_monotonic_ns();
	size_t span = spans_begin(&w->spans, "stop");
	if (stop(s, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	return collect(s, f);
}

/* It holds something just now that can't be moved, and did not in vetting: it goes on, and is stopped again later. */
static int let_go_again(struct source *s, size_t spans_before, struct fault *f)
{
	if (go_on(s, f) < 0)
		return -1;
	filetab_truncate(s->files, s->files_before);
	image_free(s->img);
	s->img = image_new();
	s->w->spans.n = spans_before;
	if (worker_check_cancel(s->w, f) < 0)
		return -1;
	if (strcmp(memory_tracking(s->m), "none"))
		return one_round(s, f);
	nanosleep(&(struct timespec){ .tv_nsec = LOOK_AGAIN_NS }, NULL);
	return 0;
}

static bool may_pass(const struct fault *f)
{
	return f->code == FAULT_UNSUPPORTED || f->code == FAULT_FILE_MISSING || f->code == FAULT_FILE_DIFFERS;
}

static int freeze(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	for (int tries = 1;; tries++) {
		size_t spans_before = w->spans.n;
		s->files_before = filetab_count(s->files);
		if (stop_and_collect(s, f) == 0)
			break;
		if (!s->r || tries == FREEZE_TRIES || !may_pass(f))
			return -1;
		if (let_go_again(s, spans_before, f) < 0)
			return -1;
	}
	size_t span = spans_begin(&w->spans, "freezer");
	struct remote *r = take_ptr(s->r);
	if (remote_close(r, f) < 0 || wc_freeze(w->wc, f) < 0)
		return -1;
	s->frozen = true;
	process_unpin(s->p);
	spans_end(&w->spans, span);
	return worker_step(w, HANDOFF_EV_SEAL, "frozen", f);
}

static int last_round(void *side, struct fault *f)
{
	struct source *s = side;
	size_t span = spans_begin(&s->w->spans, "last round");
	struct round r;
	if (send_round(s, true, &r, f) < 0)
		return fault_while(f, "sending the last round");
	r.end_ns = util_monotonic_ns();
	rounds_last(&s->rounds, &r);
	spans_end(&s->w->spans, span);
	return 0;
}

static int take_addresses(struct source *s, struct fault *f)
{
	for (; s->removed < s->n_addresses; s->removed++)
		if (net_address_remove(&s->addresses[s->removed], wc_undo_log(s->w->wc), f) < 0)
			return -1;
	return 0;
}

static int network(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	size_t span = spans_begin(&w->spans, "network lock");
	free(take_ptr(s->flows));
	if (net_lock_flows_of(s->p, &s->flows, &s->n_flows, f) < 0 ||
	    net_lock_engage(s->lock, s->flows, s->n_flows, wc_undo_log(w->wc), f) < 0 || take_addresses(s, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	span = spans_begin(&w->spans, "sockets");
	if (fdtab_save(&s->fds, FD_PHASE_NETWORK, f) < 0 || sock_save_end(&s->fds, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	return filetab_put(s->files, s->img, f);
}

static int send_entry(struct source *s, const struct image_entry *e, struct fault *f)
{
	size_t len = 4 + e->packed_len + e->extra_len;
	auto_free uint8_t *buf = malloc(len);
	if (!buf)
		return fault_errno(f, FAULT_NO_MEMORY, "a state of %zu bytes", len);
	uint32_t n = (uint32_t)e->packed_len;
	memcpy(buf, &n, 4);
	memcpy(buf + 4, e->packed, e->packed_len);
	if (e->extra_len)
		memcpy(buf + 4 + e->packed_len, e->extra, e->extra_len);
	return link_send(s->w->link, FRAME_IMAGE, (uint64_t)e->type << 32 | e->id, buf, len, f);
}

static int send_state(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	size_t span = spans_begin(&w->spans, "send state");
	for (size_t i = 0; i < image_count(s->img); i++)
		if (send_entry(s, image_at(s->img, i), f) < 0)
			return fault_while(f, "sending the state");
	Cpr__Seal m = CPR__SEAL__INIT;
	uint8_t digest[16];
	image_digest(s->img, digest);
	m.frozen_monotonic_ns = s->frozen_process_ns;
	m.entries = (uint32_t)image_count(s->img);
	m.has_state_digest = true;
	m.state_digest = (ProtobufCBinaryData){ sizeof(digest), digest };
	if (s->options->verify) {
		struct range masked[1024];
		size_t n = state_masked(s->img, masked, ARRAY_LEN(masked));
		if (memory_digest(s->m, masked, n, w->arena, &m.memory, &m.n_memory, f) < 0)
			return fault_while(f, "digesting memory");
	}
	if (link_send_msg(w->link, FRAME_SEAL, &m.base, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	return 0;
}

/* ---- commit ---- */

static void tell_done(struct source *s)
{
	const Cpr__Resumed *resumed = s->resumed;
	struct arena *a = arena_new();
	Cpr__Event *m = events_new(&s->w->events, a, CPR__EVENT__KIND__DONE);
	m->state = arena_strdup(a, handoff_state_name(s->w->state));
	m->has_pause_us = m->has_total_us = m->has_total_bytes = m->has_total_pages = m->has_rounds = true;
	m->pause_us = s->pause_ns / 1000u;
	m->total_us = (s->done_ns - s->started_ns) / 1000u;
	m->total_bytes = link_bytes_sent(s->w->link);
	m->total_pages = s->rounds.total_pages;
	m->rounds = s->rounds.n;
	m->stop_reason = arena_strdup(a, s->rounds.reason);
	m->tracking = arena_strdup(a, memory_tracking(s->m));
	m->network_lock = arena_strdup(a, s->lock_why);
	m->report = convert_report_out(a, &s->w->report);
	m->has_memory_bytes = true;
	m->memory_bytes = s->memory_bytes;
	m->has_peak_rss_bytes = true;
	m->peak_rss_bytes = worker_peak_rss();
	m->has_peer_peak_rss_bytes = resumed->has_peak_rss_bytes;
	m->peer_peak_rss_bytes = resumed->peak_rss_bytes;
	spans_out(&s->w->spans, a, &m->n_spans, &m->spans);
	for (size_t i = 0; i < resumed->n_spans; i++)
		arena_push(a, m->n_spans, m->spans, resumed->spans[i]);
	events_send(&s->w->events, m);
	arena_free(a);
}

/* The link broke, or nothing came, after the commit was sent: frozen here until someone knows. */
static int in_doubt(struct source *s, struct fault *f)
{
	struct fault why = *f, ignored;
	if (worker_step(s->w, HANDOFF_EV_LINK_LOST, why.what, f) < 0)
		return -1;
	char line[256];
	snprintf(line, sizeof(line), "%.200s", why.what);
	fault_set(f, FAULT_IN_DOUBT, "commit sent to %s, and no answer: %s", s->w->start.peer, line);
	fault_hint(f, "Pid %d is frozen here and may run on %s: look there before you decide anything.", s->p->pid,
		   s->w->start.peer);
	if (process_detach(s->p, &ignored) < 0) /* frozen by its cgroup: it stays so */
		log_err(s->w->start.migration, "%s", ignored.what);
	return -1;
}

static int await_ready(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	struct frame fr;
	size_t span = spans_begin(&w->spans, "restore");
	if (worker_expect(w, FRAME_READY, &fr, READY_TIMEOUT_MS, f) < 0)
		return -1;
	Cpr__Ready *ready = link_unpack(&fr, &cpr__ready__descriptor, w->arena, f);
	if (!ready)
		return -1;
	if (ready->report)
		convert_report_in(ready->report, &w->report);
	spans_end(&w->spans, span);
	return worker_check_cancel(w, f);
}

static int commit(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	struct frame fr;
	size_t span = spans_begin(&w->spans, "commit");
	if (s->n_flows && wc_keep_lock(w->wc, s->flows, s->n_flows, f) < 0)
		return -1;
	w->may_cancel = false;
	if (worker_step(w, HANDOFF_EV_READY, "the destination is ready", f) < 0)
		return -1;
	Cpr__Commit m = CPR__COMMIT__INIT;
	if (link_send_msg(w->link, FRAME_COMMIT, &m.base, f) < 0 || worker_receive(w, &fr, COMMIT_TIMEOUT_MS, f) < 0)
		return in_doubt(s, f);
	if (fr.h.type == FRAME_GONE) {
		if (worker_step(w, HANDOFF_EV_GONE, "the destination discarded it", f) < 0)
			return -1;
		return fault_set(f, FAULT_PEER_LOST, "%s discarded the process instead of running it", w->start.peer);
	}
	Cpr__Resumed *resumed =
		fr.h.type == FRAME_RESUMED ? link_unpack(&fr, &cpr__resumed__descriptor, w->arena, f) : NULL;
	if (!resumed)
		return in_doubt(s, f);
	uint64_t pause = util_monotonic_ns() - s->freeze_ns;
	s->done_ns = util_monotonic_ns();
	s->pause_ns = pause;
	s->resumed = resumed;
	spans_end(&w->spans, span);
	return worker_step(w, HANDOFF_EV_RESUMED, "runs on the destination", f);
}

static void keep_state(struct source *s)
{
	struct fault f = { 0 };
	if (s->keep && keep_finish(s->keep, s->img, &f) < 0)
		report_add(&s->w->report, REPORT_LOSS, f.code, "--keep-state", NULL, "the state was not kept: %s",
			   f.what);
}

/* It runs on the destination, whatever happens here. */
static int clean(struct source *s, struct fault *f)
{
	/* The uffd goes with the process: closing it first would cost 20 ms a GiB for nothing. */
	if (wc_remove(s->w->wc, f) < 0 || wc_undo_forget(s->w->wc, f) < 0) {
		fault_while(f, "removing pid %d here", s->p->pid);
		fault_hint(f, "It runs on %s; what is left of it here is frozen and may be killed.", s->w->start.peer);
		worker_send_failed(s->w, f);
		return -1;
	}
	keep_state(s);
	tell_done(s); /* now its number is free here, too: it could come back */
	return wc_done(s->w->wc, f);
}

/* ---- undoing ---- */

static void take_back(struct source *s, const struct fault *why)
{
	struct fault f = { 0 };
	struct worker *w = s->w;
	const char *subject = w->start.migration;
	struct remote *r = take_ptr(s->r);
	if (r && remote_close(r, &f) < 0) {
		log_err(subject, "%s", f.what);
		remote_forget(r);
	}
	if (s->adopted && wc_undo(w->wc, &f) < 0)
		log_err(subject, "%s", f.what);
	/* Closing it takes 20 ms more, and can wait. */
	if (s->lock && net_lock_release(s->lock, &f) < 0)
		log_err(subject, "%s", f.what);
	if (s->p) {
		process_unpin(s->p);
		if (s->p->stopped && process_release(s->p, &f) < 0)
			log_err(subject, "%s", f.what);
	}
	if (s->frozen && wc_thaw(w->wc, &f) < 0)
		log_err(subject, "%s", f.what);
	/* Now that it runs: who is told may be slow to hear it. */
	worker_send_abort(w, why);
	for (size_t i = 0; i < s->removed; i++)
		if (net_address_announce(&s->addresses[i], NULL, &f) < 0)
			log_err(subject, "%s", f.what);
}

static void fail(struct source *s, struct fault *f)
{
	struct worker *w = s->w;
	struct fault g = { 0 };
	bool undecided = handoff_undecided(w->state) || w->state == HANDOFF_NONE || w->state == HANDOFF_ABORTED;
	if (undecided) {
		take_back(s, f);
		if (w->state != HANDOFF_ABORTED && w->state != HANDOFF_NONE &&
		    worker_step(w, HANDOFF_EV_FAIL, fault_code_name(f->code), &g) < 0)
			log_err(w->start.migration, "%s", g.what);
		if (f->code == FAULT_PROCESS_GONE || f->code == FAULT_NO_PROCESS)
			fault_hint(f, "Nothing is left of this migration on either host.");
		else
			fault_hint(f, "Pid %d runs on here (%s), unchanged.", w->start.pid, w->host);
	}
	worker_send_failed(w, f);
	if (undecided && wc_done(w->wc, &g) < 0)
		log_err(w->start.migration, "%s", g.what);
}

static void done(struct source *s)
{
	memory_close(s->m);
	if (s->lock)
		net_lock_close(s->lock);
	keep_free(s->keep);
	image_free(s->img);
	filetab_free(s->files);
	free(s->flows);
	free(s->addresses);
	if (s->p)
		process_close(s->p);
}

/* ---- all of it ---- */

static int prepare(void *side, struct fault *f)
{
	struct source *s = side;
	struct worker *w = s->w;
	s->options = cpr__options__unpack(arena_pb(w->arena), w->start.options_len, w->start.options);
	if (!s->options)
		return fault_set(f, FAULT_INTERNAL, "options that are no message");
	s->files = filetab_new();
	s->img = image_new();
	if (process_open(&s->p, w->start.pid, f) < 0)
		return -1;
	w->events.pid = (uint32_t)s->p->pid;
	snprintf(w->events.comm, sizeof(w->events.comm), "%s", s->p->comm);
	if (wc_adopt(w->wc, s->p->pid, f) < 0)
		return -1;
	s->adopted = true;
	if (s->options->keep_state && keep_new(s->options->keep_state, (uint32_t)s->p->pid, &s->keep, f) < 0)
		return -1;
	return worker_step(w, HANDOFF_EV_START, "asked to migrate", f);
}

/* What can be undone after each: everything, up to `ready`. */
const struct stage worker_source_stages[] = {
	{ "prepare", prepare }, { "vet", vet },		 { "offer", offer },	   { "prepare-lock", prepare_lock },
	{ "track", track },	{ "pre-copy", precopy }, { "freeze", freeze },	   { "last-round", last_round },
	{ "network", network }, { "state", send_state }, { "ready", await_ready }, { "commit", commit },
};
const size_t worker_source_stage_count = ARRAY_LEN(worker_source_stages);

int worker_source_run(struct worker *w, struct fault *f)
{
	struct source s = { .w = w, .started_ns = util_monotonic_ns() };
	int r = worker_stages(w, worker_source_stages, worker_source_stage_count, &s, f);
	if (r < 0)
		fail(&s, f);
	else
		r = clean(&s, f);
	done(&s);
	return r;
}
