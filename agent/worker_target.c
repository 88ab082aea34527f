/*
 * The destination's side of one migration. Until RUNNING is journalled everything here is thrown away when anything
 * fails: vessels die with this process (EXITKILL) or by the warden, the lock vanishes, addresses have undo records.
 *
 *	vet        files, addresses, CPU, kernel, memory; the PID is taken by making the vessel
 *	receive    mappings and pages, straight into the vessel, round by round
 *	restore    descriptors, sockets under the lock, state, registers; frozen and complete: READY
 *	run        after COMMIT: sockets leave repair mode, tracer off, the warden thaws
 */
#include "worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "address.h"
#include "convert.h"
#include "fd.h"
#include "files_check.h"
#include "lock.h"
#include "log.h"
#include "memory.h"
#include "state.h"

#define OFFER_TIMEOUT_MS  120000 /* the source vets first */
#define FRAME_TIMEOUT_MS  60000
#define COMMIT_TIMEOUT_MS 60000
#define CLOCK_WAIT_MAX_NS 10000000000u

struct target {
	struct worker *w;
	Cpr__Offer *offer;
	struct vessel *v;
	struct memory_target *m;
	struct filetab *files; /* of the last MAPS */
	struct image *img;
	Cpr__Seal *seal;
	MmEntry *mm;
	struct net_lock *lock;
	char lock_why[128];
	struct net_address *addresses;
	int *announcers; /* sockets that did, to be closed after the pause */
	size_t n_addresses;
	size_t added;
	int cgroup_fd;
	uint64_t offered_ns; /* our CLOCK_MONOTONIC when the offer, with the process's clocks, came */
	uint64_t pages, bytes;
	uint32_t rounds;
	bool named;
	bool refused; /* and told so */
	bool ready;
};

/* ---- vet ---- */

static void check_devices(struct target *t)
{
	const Cpr__Options *o = t->offer->options;
	t->n_addresses = o->n_move_address;
	t->addresses = calloc(t->n_addresses + 1, sizeof(*t->addresses));
	t->announcers = calloc(t->n_addresses + 1, sizeof(*t->announcers));
	if (!t->addresses || !t->announcers)
		abort();
	memset(t->announcers, -1, t->n_addresses * sizeof(*t->announcers));
	for (size_t i = 0; i < t->n_addresses; i++) {
		const Cpr__MoveAddress *m = o->move_address[i];
		struct net_address *a = &t->addresses[i];
		struct fault f;
		snprintf(a->address, sizeof(a->address), "%s", m->address);
		a->prefix = m->has_prefix ? (int)m->prefix : -1;
		snprintf(a->device, sizeof(a->device), "%s", m->device ? m->device : "");
		if (net_address_device_exists(a->device, &f) < 0)
			report_add(&t->w->report, REPORT_BLOCKER, FAULT_NO_ADDRESS, a->address,
				   "name a device of the destination: --move-address ADDR/LEN@DEV",
				   "no network device %s on %s", a->device, t->w->host);
	}
}

static int refuse(struct target *t, const struct fault *why, struct fault *f)
{
	struct arena *a = arena_new();
	Cpr__Refuse m = CPR__REFUSE__INIT;
	m.report = convert_report_out(a, &t->w->report);
	m.fault = why ? convert_fault_out(a, why) : NULL;
	int r = link_send_msg(t->w->link, FRAME_REFUSE, &m.base, f);
	if (r == 0)
		r = link_drain(t->w->link, 5000, f);
	arena_free(a);
	return r;
}

/* The PID is reserved by making the process: a taken one is found here, before anything is frozen. */
static int make_vessel(struct target *t, struct fault *f)
{
	const Cpr__TaskInfo *task = t->offer->task;
	char hint[64];
	snprintf(hint, sizeof(hint), "%.40s", task->comm ? task->comm : "process");
	if (wc_cgroup(t->w->wc, hint, &t->cgroup_fd, f) < 0)
		return -1;
	struct vessel_spec spec = {
		.pid = (pid_t)task->pid,
		.new_session = true,
		.new_group = true,
		.cgroup_fd = t->cgroup_fd,
		.monotonic_ns = t->offer->monotonic_ns,
		.boottime_ns = t->offer->boottime_ns,
		/* Files were looked at since: if that time were lost, the pause would be as long (wait_for_clock). */
		.at_ns = t->offered_ns,
	};
	if (vessel_new(&spec, &t->v, f) < 0)
		return fault_while(f, "making pid %u", task->pid);
	/* What takes longer with more threads comes before them. */
	if (state_prepare(t->v, t->offer, f) < 0)
		return -1;
	return vessel_threads(t->v, task->tids, task->n_tids, f);
}

static int vet(struct target *t, struct fault *f)
{
	struct worker *w = t->w;
	check_devices(t);
	if (files_check_target(t->offer, &w->report, f) < 0 || state_check_target(t->offer, &w->report, f) < 0)
		return -1;
	struct fault g = { 0 };
	if (make_vessel(t, &g) < 0) {
		char object[32];
		snprintf(object, sizeof(object), "pid %u", t->offer->task->pid);
		report_add(&w->report, REPORT_BLOCKER, g.code, object, g.hint[0] ? g.hint : NULL, "%s", g.what);
	} else if (memory_check_vdso(t->v, t->offer, &w->report, f) < 0) {
		return -1;
	}
	return 0;
}

static int receive_offer(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	Cpr__Hello *peer;
	struct frame fr;
	if (worker_hello(w, w->arena, &peer, f) < 0 || worker_expect(w, FRAME_OFFER, &fr, OFFER_TIMEOUT_MS, f) < 0)
		return -1;
	t->offered_ns = util_monotonic_ns();
	t->offer = link_unpack(&fr, &cpr__offer__descriptor, w->arena, f);
	if (!t->offer)
		return -1;
	const Cpr__TaskInfo *task = t->offer->task;
	if (!task->n_tids || task->tids[0] != task->pid || task->pid < 2)
		return fault_set(f, FAULT_PROTOCOL, "an offer of pid %u with %zu threads", task->pid, task->n_tids);
	if (wc_name(w->wc, t->offer->migration, (pid_t)task->pid, f) < 0)
		return -1;
	t->named = true;
	snprintf(w->events.migration, sizeof(w->events.migration), "%s", t->offer->migration);
	snprintf(w->events.comm, sizeof(w->events.comm), "%s", task->comm ? task->comm : "");
	w->events.pid = task->pid;
	return worker_step(w, HANDOFF_EV_START, "an offer came", f);
}

static int answer_offer(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	size_t span = spans_begin(&w->spans, "vetting");
	struct fault why = { 0 };
	int r = vet(t, &why);
	spans_end(&w->spans, span);
	if (r < 0 || report_count(&w->report, REPORT_BLOCKER)) {
		if (refuse(t, r < 0 ? &why : NULL, f) < 0)
			return -1;
		*f = why;
		t->refused = true;
		return r < 0 ? -1 : fault_set(f, FAULT_UNSUPPORTED, "refused: see the report");
	}
	if (memory_target_new(t->v, &t->m, f) < 0)
		return -1;
	Cpr__Accept m = CPR__ACCEPT__INIT;
	m.report = convert_report_out(w->arena, &w->report);
	m.boot_id = (char *)"";
	auto_free char *boot = util_read_file(-1, "/proc/sys/kernel/random/boot_id", NULL);
	if (boot) {
		boot[strcspn(boot, "\n")] = 0;
		m.boot_id = boot;
	}
	if (worker_step(w, HANDOFF_EV_ACCEPT, "vetted", f) < 0 || link_send_msg(w->link, FRAME_ACCEPT, &m.base, f) < 0)
		return -1;
	/* While the source reads memory: the lock's context takes milliseconds. */
	if (net_lock_open(t->offer->options->network_lock, t->offer->migration, &t->lock, t->lock_why,
			  sizeof(t->lock_why), f) < 0)
		return -1;
	return 0;
}

/* ---- receive ---- */

static int on_maps(struct target *t, const struct frame *fr, struct fault *f)
{
	struct arena *a = arena_new();
	int r = -1;
	Cpr__MapUpdate *m = link_unpack(fr, &cpr__map_update__descriptor, a, f);
	MmEntry *mm = m ? mm_entry__unpack(arena_pb(a), m->mm.len, m->mm.data) : NULL;
	if (m && !mm)
		fault_set(f, FAULT_PROTOCOL, "mappings that are no message");
	filetab_free(t->files);
	t->files = filetab_new();
	bool ok = mm != NULL;
	for (size_t i = 0; ok && i < m->n_files; i++)
		ok = filetab_load(t->files, m->files[i].data, m->files[i].len, f) == 0;
	if (ok)
		r = memory_target_maps(t->m, mm, t->files, f);
	arena_free(a);
	return r < 0 ? fault_while(f, "making mappings") : 0;
}

static int on_pages(struct target *t, const struct frame *fr, struct fault *f)
{
	struct memory_segment segs[FRAME_SEGMENTS_MAX];
	size_t n = fr->h.arg >> 32, pages = fr->h.arg & 0xffffffffu;
	if (n > FRAME_SEGMENTS_MAX || pages > FRAME_PAGES_MAX || fr->h.length != pages * PAGE_BYTES + n * sizeof(*segs))
		return fault_set(f, FAULT_PROTOCOL, "a PAGES frame of %zu pages, %zu segments and %u bytes", pages, n,
				 fr->h.length);
	memcpy(segs, fr->payload + pages * PAGE_BYTES, n * sizeof(*segs));
	t->pages += pages;
	t->bytes += fr->h.length;
	if (memory_target_place(t->m, fr->payload, pages, segs, n, f) < 0)
		return fault_while(f, "placing pages");
	return 0;
}

static int on_round_end(struct target *t, const struct frame *fr, struct fault *f)
{
	Cpr__RoundEnd *m = link_unpack(fr, &cpr__round_end__descriptor, t->w->arena, f);
	if (!m)
		return -1;
	t->rounds++;
	if (m->last)
		return 0;
	Cpr__RoundAck ack = CPR__ROUND_ACK__INIT;
	ack.round = m->round;
	return link_send_msg(t->w->link, FRAME_ROUND_ACK, &ack.base, f);
}

static int on_image(struct target *t, const struct frame *fr, struct fault *f)
{
	uint32_t len;
	if (fr->h.length < 4)
		return fault_set(f, FAULT_PROTOCOL, "an image entry of %u bytes", fr->h.length);
	memcpy(&len, fr->payload, 4);
	if (len > fr->h.length - 4)
		return fault_set(f, FAULT_PROTOCOL, "an image entry that ends before its message");
	return image_load(t->img, (uint32_t)(fr->h.arg >> 32), (uint32_t)fr->h.arg, fr->payload + 4, len,
			  fr->payload + 4 + len, fr->h.length - 4 - len, f);
}

static int on_seal(struct target *t, const struct frame *fr, struct fault *f)
{
	t->seal = link_unpack(fr, &cpr__seal__descriptor, t->w->arena, f);
	if (!t->seal)
		return -1;
	uint8_t digest[16];
	image_digest(t->img, digest);
	if (t->seal->entries != image_count(t->img) || t->seal->state_digest.len != sizeof(digest) ||
	    memcmp(t->seal->state_digest.data, digest, sizeof(digest)) != 0)
		return fault_set(f, FAULT_VERIFY, "the state arrived with %zu entries, %u were sent, or differs",
				 image_count(t->img), t->seal->entries);
	t->mm = image_get(t->img, IMAGE_MM, t->offer->task->pid);
	if (!t->mm)
		return fault_set(f, FAULT_IMAGE, "a state without mappings");
	return 0;
}

/* Until the seal. */
static int receive(void *side, struct fault *f)
{
	struct target *t = side;
	size_t span = spans_begin(&t->w->spans, "receive");
	t->img = image_new();
	while (!t->seal) {
		struct frame fr;
		int r;
		if (worker_receive(t->w, &fr, FRAME_TIMEOUT_MS, f) < 0)
			return -1;
		switch ((enum frame_type)fr.h.type) {
		case FRAME_MAPS:
			r = on_maps(t, &fr, f);
			break;
		case FRAME_PAGES:
			r = on_pages(t, &fr, f);
			break;
		case FRAME_ROUND_END:
			r = on_round_end(t, &fr, f);
			break;
		case FRAME_IMAGE:
			r = on_image(t, &fr, f);
			break;
		case FRAME_SEAL:
			r = on_seal(t, &fr, f);
			break;
		default:
			r = fault_set(f, FAULT_PROTOCOL, "%s sent %s amid the rounds", t->w->start.peer,
				      frame_type_name(fr.h.type));
		}
		if (r < 0)
			return -1;
	}
	spans_end(&t->w->spans, span);
	return 0;
}

/* ---- restore ---- */

/* Every file of the state, not only those that mappings name. */
static int load_files(struct target *t, struct fault *f)
{
	size_t pos = 0;
	filetab_free(t->files);
	t->files = filetab_new();
	for (const struct image_entry *e; (e = image_next(t->img, IMAGE_FILES, 0, &pos));)
		if (filetab_load(t->files, e->packed, e->packed_len, f) < 0)
			return -1;
	return 0;
}

static int restore_memory(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	if (worker_step(w, HANDOFF_EV_SEAL, "the state is complete", f) < 0)
		return -1;
	process_pin(vessel_process(t->v));
	if (load_files(t, f) < 0)
		return -1;
	size_t span = spans_begin(&w->spans, "mappings");
	const PstreeEntry *tree = image_get(t->img, IMAGE_PSTREE, 0);
	if (!tree)
		return fault_set(f, FAULT_IMAGE, "a state without a process");
	if (vessel_threads(t->v, tree->threads, tree->n_threads, f) < 0 ||
	    memory_target_finish(t->m, t->mm, t->files, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	if (!t->seal->n_memory)
		return 0;
	span = spans_begin(&w->spans, "verify");
	struct range masked[1024];
	size_t n = state_masked(t->img, masked, ARRAY_LEN(masked));
	if (memory_target_digest(t->m, (const Cpr__MemoryDigest *const *)t->seal->memory, t->seal->n_memory, masked, n,
				 f) < 0)
		return fault_while(f, "verifying memory");
	spans_end(&w->spans, span);
	return 0;
}

static int lock_network(void *side, struct fault *f)
{
	struct target *t = side;
	size_t span = spans_begin(&t->w->spans, "network lock");
	struct net_flow *flows = NULL;
	size_t n;
	int r = net_lock_flows(t->img, &flows, &n, f);
	if (r == 0 && n)
		r = net_lock_engage(t->lock, flows, n, wc_undo_log(t->w->wc), f);
	free(flows);
	for (; r == 0 && t->added < t->n_addresses; t->added++)
		r = net_address_add(&t->addresses[t->added], wc_undo_log(t->w->wc), f);
	spans_end(&t->w->spans, span);
	return r;
}

static int restore_fds(void *side, struct fault *f)
{
	struct target *t = side;
	size_t span = spans_begin(&t->w->spans, "descriptors");
	size_t n_objects;
	const int *objects = memory_target_objects(t->m, &n_objects);
	struct fd_restore s = {
		.img = t->img,
		.files = t->files,
		.v = t->v,
		.pid = (pid_t)t->offer->task->pid,
		.rootfd = -1,
		.objects = (int *)objects,
		.n_objects = n_objects,
		.mm = t->mm,
		.report = &t->w->report,
	};
	if (fdtab_restore(&s, f) < 0)
		return -1;
	spans_end(&t->w->spans, span);
	return 0;
}

static int restore_state(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	size_t span = spans_begin(&w->spans, "state");
	if (state_restore(t->v, t->img, &w->report, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	span = spans_begin(&w->spans, "registers");
	process_unpin(vessel_process(t->v));
	if (vessel_orphan(t->v, f) < 0 || state_restore_regs(t->v, t->img, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	return 0;
}

static int ready(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	size_t span = spans_begin(&w->spans, "freezer");
	if (wc_freeze(w->wc, f) < 0)
		return -1;
	spans_end(&w->spans, span);
	Cpr__Ready m = CPR__READY__INIT;
	m.report = convert_report_out(w->arena, &w->report);
	if (worker_step(w, HANDOFF_EV_READY, "complete and stopped", f) < 0)
		return -1;
	t->ready = true;
	return link_send_msg(w->link, FRAME_READY, &m.base, f);
}

/* ---- run ---- */

/* The process's clock must not go back: it was frozen at a time that this host's reckoning, later by half a round trip
 * at most, has to have passed. */
static void wait_for_clock(const struct target *t)
{
	uint64_t now = t->offer->monotonic_ns + (util_monotonic_ns() - t->offered_ns);
	if (now >= t->seal->frozen_monotonic_ns)
		return;
	uint64_t ns = t->seal->frozen_monotonic_ns - now;
	if (ns > CLOCK_WAIT_MAX_NS)
		ns = CLOCK_WAIT_MAX_NS;
	nanosleep(&(struct timespec){ (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) }, NULL);
}

static void announce(struct target *t)
{
	struct fault f = { 0 };
	for (size_t i = 0; i < t->n_addresses; i++)
		if (net_address_announce(&t->addresses[i], &t->announcers[i], &f) < 0)
			log_err(t->w->events.migration, "%s", f.what);
}

static int run(void *side, struct fault *f)
{
	struct target *t = side;
	struct worker *w = t->w;
	struct frame fr;
	size_t span = spans_begin(&w->spans, "commit");
	if (worker_expect(w, FRAME_COMMIT, &fr, COMMIT_TIMEOUT_MS, f) < 0)
		return -1;
	w->may_cancel = false;
	spans_end(&w->spans, span);
	span = spans_begin(&w->spans, "thaw");
	wait_for_clock(t);
	announce(t); /* before the first segment leaves: its answer has to find the way here */
	if (net_lock_release(t->lock, f) < 0 || fdtab_commit(t->v, t->img, f) < 0)
		return -1;
	struct vessel *v = take_ptr(t->v);
	if (vessel_let_go(v, f) < 0)
		return -1;
	const struct handoff_step *step = handoff_next(HANDOFF_DESTINATION, w->state, HANDOFF_EV_COMMIT);
	if (!step || wc_run(w->wc, (pid_t)t->offer->task->pid, f) < 0)
		return -1;
	w->state = step->to;
	spans_end(&w->spans, span);
	return 0;
}

static void tell_done(struct target *t)
{
	struct arena *a = arena_new();
	Cpr__Event *m = events_new(&t->w->events, a, CPR__EVENT__KIND__DONE);
	m->state = arena_strdup(a, handoff_state_name(t->w->state));
	m->has_total_bytes = m->has_total_pages = m->has_rounds = m->has_peak_rss_bytes = true;
	m->total_bytes = t->bytes;
	m->total_pages = t->pages;
	m->rounds = t->rounds;
	m->peak_rss_bytes = worker_peak_rss();
	m->network_lock = arena_strdup(a, t->lock_why);
	m->report = convert_report_out(a, &t->w->report);
	spans_out(&t->w->spans, a, &m->n_spans, &m->spans);
	events_send(&t->w->events, m);
	arena_free(a);
}

/* It runs: nothing below may undo that, only say what went wrong. */
static void after(struct target *t)
{
	struct worker *w = t->w;
	struct fault f = { 0 };
	Cpr__Resumed m = CPR__RESUMED__INIT;
	m.has_peak_rss_bytes = true;
	m.peak_rss_bytes = worker_peak_rss();
	spans_out(&w->spans, w->arena, &m.n_spans, &m.spans);
	if (link_send_msg(w->link, FRAME_RESUMED, &m.base, &f) < 0 || link_drain(w->link, 5000, &f) < 0)
		log_err(w->events.migration, "%s", f.what);
	events_state(&w->events, w->state, "runs here");
	tell_done(t);
	if (wc_undo_forget(w->wc, &f) < 0 || wc_done(w->wc, &f) < 0)
		log_err(w->events.migration, "%s", f.what);
}

/* ---- undoing ---- */

/* The source may have sent its commit: it has to know that nothing runs here, now and for ever. */
static void send_gone(struct target *t, const struct fault *why)
{
	struct fault f = { 0 };
	Cpr__Gone m = CPR__GONE__INIT;
	m.reason = (char *)why->what;
	link_set_timeout(t->w->link, 1000);
	if (link_send_msg(t->w->link, FRAME_GONE, &m.base, &f) < 0 || link_drain(t->w->link, 1000, &f) < 0)
		log_err(t->w->events.migration, "%s", f.what);
}

static void discard(struct target *t, struct fault *why)
{
	struct worker *w = t->w;
	struct fault f = { 0 };
	const char *subject = w->events.migration;
	if (t->v)
		vessel_discard(take_ptr(t->v));
	if (t->lock)
		net_lock_close(take_ptr(t->lock));
	if (t->named && wc_undo(w->wc, &f) < 0)
		log_err(subject, "%s", f.what);
	if (w->state != HANDOFF_NONE && !handoff_final(w->state) &&
	    worker_step(w, HANDOFF_EV_FAIL, fault_code_name(why->code), &f) < 0)
		log_err(subject, "%s", f.what);
	/* The warden kills what is still frozen in the group, before anyone is told that nothing is here. */
	if (wc_done(w->wc, &f) < 0)
		log_err(subject, "%s", f.what);
	else if (t->ready && w->state == HANDOFF_DISCARDED)
		send_gone(t, why);
	else if (!t->refused)
		worker_send_abort(w, why);
	worker_send_failed(w, why);
}

/* Until `run` has ended all of it is thrown away when one fails. */
const struct stage worker_target_stages[] = {
	{ "offer", receive_offer },
	{ "vet", answer_offer },
	{ "receive", receive },
	{ "memory", restore_memory },
	{ "network-lock", lock_network },
	{ "descriptors", restore_fds },
	{ "state", restore_state },
	{ "ready", ready },
	{ "run", run },
};
const size_t worker_target_stage_count = ARRAY_LEN(worker_target_stages);

int worker_target_run(struct worker *w, struct fault *f)
{
	struct target t = { .w = w, .cgroup_fd = -1 };
	int r = worker_stages(w, worker_target_stages, worker_target_stage_count, &t, f);
	if (r < 0 && (w->state == HANDOFF_RECEIVING || w->state == HANDOFF_RESTORING))
		fault_while(f, "restoring pid %u (%s)", t.offer->task->pid, w->events.comm);
	if (r < 0 && w->state != HANDOFF_RUNNING)
		discard(&t, f);
	else
		after(&t);
	util_close(&t.cgroup_fd);
	memory_target_free(t.m);
	if (t.lock)
		net_lock_close(t.lock);
	image_free(t.img);
	filetab_free(t.files);
	for (size_t i = 0; i < t.n_addresses; i++)
		util_close(&t.announcers[i]);
	free(t.announcers);
	free(t.addresses);
	return r;
}
