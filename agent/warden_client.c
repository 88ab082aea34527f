#include "warden_client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lock.h"
#include "spawn.h"
#include "warden_proto.h"

struct wc {
	int sock;
	uint8_t *options; /* start->options */
	struct undo_log undo;
};

static int gone(struct fault *f)
{
	fault_set(f, FAULT_AGENT_DOWN, "the warden is gone");
	return fault_hint(f, "It undoes or keeps what is unfinished when it is started again.");
}

/* *fd: what the reply brought; NULL when none is expected. */
static int call(struct wc *w, struct wp_request *q, int send_fd, int *fd, struct fault *f)
{
	struct wp_reply reply;
	int fds[WP_FDS_MAX];
	size_t n;
	q->size = sizeof(*q);
	if (wp_send(w->sock, q, sizeof(*q), &send_fd, send_fd >= 0) < 0)
		return gone(f);
	int r = wp_recv(w->sock, &reply, sizeof(reply), fds, &n, 0);
	if (r <= 0)
		return gone(f);
	for (size_t i = fd && reply.result == 0 ? 1 : 0; i < n; i++)
		util_close(&fds[i]);
	if (reply.result != 0) {
		wp_clean_fault(&reply.fault);
		if (f)
			*f = reply.fault;
		return -1;
	}
	if (fd)
		*fd = fds[0];
	return 0;
}

static int simple(struct wc *w, enum wp_op op, struct fault *f)
{
	struct wp_request q = { .op = op };
	return call(w, &q, -1, NULL, f);
}

static int undo_push(void *ctx, const struct undo *u, struct fault *f)
{
	struct wp_request q = { .op = WP_UNDO_PUSH, .undo = *u };
	return call(ctx, &q, -1, NULL, f);
}

static int undo_drop(void *ctx, enum undo_kind kind, struct fault *f)
{
	struct wp_request q = { .op = WP_UNDO_DROP, .undo_kind = kind };
	return call(ctx, &q, -1, NULL, f);
}

static void take_start(struct wp_start *s, int fds[WP_FDS_MAX], struct wc_start *out)
{
	wp_clean(s->migration, sizeof(s->migration));
	wp_clean(s->peer, sizeof(s->peer));
	wp_clean(s->host, sizeof(s->host));
	*out = (struct wc_start){ .side = (enum handoff_side)s->side, .pid = s->pid };
	memcpy(out->migration, s->migration, sizeof(out->migration));
	memcpy(out->peer, s->peer, sizeof(out->peer));
	memcpy(out->host, s->host, sizeof(out->host));
	memcpy(&out->link, fds, sizeof(out->link));
	out->events_fd = fds[LINK_FD_COUNT];
}

int wc_open(struct wc **out, struct wc_start *start, struct fault *f)
{
	_Static_assert(sizeof(struct link_fds) == LINK_FD_COUNT * sizeof(int), "an array of descriptors");
	struct wp_start s;
	int fds[WP_FDS_MAX];
	size_t n = 0;
	int type = 0;
	socklen_t len = sizeof(type);
	if (getsockopt(SPAWN_FD, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET) {
		fault_set(f, FAULT_USAGE, "descriptor %d is no socket to a warden", SPAWN_FD);
		return fault_hint(f, "A worker is started by cpr-warden only.");
	}
	if (wp_recv(SPAWN_FD, &s, sizeof(s), fds, &n, 0) <= 0 || n != WP_START_FDS || s.options_len > WP_OPTIONS_MAX) {
		for (size_t i = 0; i < n; i++)
			util_close(&fds[i]);
		return fault_set(f, FAULT_INTERNAL, "no proper start message from the warden");
	}
	fcntl(SPAWN_FD, F_SETFD, FD_CLOEXEC);
	struct wc *w = calloc(1, sizeof(*w));
	uint8_t *options = malloc(s.options_len + 1);
	if (!w || !options)
		abort(); /* a worker's death is one failed migration */
	memcpy(options, s.options, s.options_len);
	take_start(&s, fds, start);
	start->options = options;
	start->options_len = s.options_len;
	w->sock = SPAWN_FD;
	w->options = options;
	w->undo = (struct undo_log){ .push = undo_push, .drop = undo_drop, .ctx = w };
	*out = w;
	return 0;
}

void wc_close(struct wc *w)
{
	util_close(&w->sock);
	free(w->options);
	free(w);
}

int wc_name(struct wc *w, const char *migration, pid_t pid, struct fault *f)
{
	struct wp_request q = { .op = WP_NAME, .pid = pid };
	snprintf(q.migration, sizeof(q.migration), "%s", migration);
	if (strcmp(q.migration, migration) != 0)
		return fault_set(f, FAULT_PROTOCOL, "a migration id of %zu bytes", strlen(migration));
	return call(w, &q, -1, NULL, f);
}

int wc_state(struct wc *w, enum handoff_state to, enum handoff_event why, const char *reason, struct fault *f)
{
	struct wp_request q = { .op = WP_STATE, .to = to, .why = why };
	snprintf(q.text, sizeof(q.text), "%s", reason ? reason : "");
	return call(w, &q, -1, NULL, f);
}

int wc_adopt(struct wc *w, pid_t pid, struct fault *f)
{
	struct wp_request q = { .op = WP_ADOPT, .pid = pid };
	return call(w, &q, -1, NULL, f);
}

int wc_cgroup(struct wc *w, const char *name_hint, int *cgroup_fd, struct fault *f)
{
	struct wp_request q = { .op = WP_CGROUP };
	snprintf(q.text, sizeof(q.text), "%s", name_hint);
	return call(w, &q, -1, cgroup_fd, f);
}

int wc_freeze(struct wc *w, struct fault *f)
{
	return simple(w, WP_FREEZE, f);
}

int wc_thaw(struct wc *w, struct fault *f)
{
	return simple(w, WP_THAW, f);
}

int wc_keep_lock(struct wc *w, const struct net_flow *flows, size_t n, struct fault *f)
{
	struct wp_request q = { .op = WP_KEEP_LOCK, .flows = n };
	if (n > WP_FLOWS_MAX)
		return fault_set(f, FAULT_UNSUPPORTED, "%zu connections; at most %u can be kept locked", n,
				 WP_FLOWS_MAX);
	/* Sealed: the warden reads what was checked. */
	auto_fd fd = memfd_create("cpr-flows", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || util_write_all(fd, flows, n * sizeof(*flows)) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return fault_errno(f, FAULT_NO_MEMORY, "hand %zu connections to the warden", n);
	return call(w, &q, fd, NULL, f);
}

int wc_run(struct wc *w, pid_t pid, struct fault *f)
{
	struct wp_request q = { .op = WP_RUN, .pid = pid };
	return call(w, &q, -1, NULL, f);
}

int wc_remove(struct wc *w, struct fault *f)
{
	return simple(w, WP_REMOVE, f);
}

struct undo_log *wc_undo_log(struct wc *w)
{
	return &w->undo;
}

int wc_undo(struct wc *w, struct fault *f)
{
	return simple(w, WP_UNDO, f);
}

int wc_undo_forget(struct wc *w, struct fault *f)
{
	return simple(w, WP_FORGET, f);
}

int wc_done(struct wc *w, struct fault *f)
{
	return simple(w, WP_DONE, f);
}
