#include "client.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "json.h"

struct client {
	char *api;
	CURL *call; /* reused, so that its connection is */
};

struct body {
	char *data;
	size_t len, cap;
	bool too_large;
};

static bool body_add(struct body *b, const char *data, size_t n)
{
	if (n > CLIENT_ANSWER_MAX - b->len) {
		b->too_large = true;
		return false;
	}
	if (b->len + n + 1 > b->cap) {
		size_t cap = (b->len + n + 1) * 2;
		char *p = realloc(b->data, cap);
		if (!p)
			abort();
		b->data = p;
		b->cap = cap;
	}
	memcpy(b->data + b->len, data, n);
	b->len += n;
	b->data[b->len] = 0;
	return true;
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
	return body_add(ctx, data, size * n) ? size * n : 0;
}

int client_open(const char *api, struct client **out, struct fault *f)
{
	struct client *c = calloc(1, sizeof(*c));
	if (!c || !(c->api = strdup(api)))
		abort();
	if (curl_global_init(CURL_GLOBAL_NOTHING) || !(c->call = curl_easy_init())) {
		client_close(c);
		return fault_set(f, FAULT_SYSTEM, "libcurl can't be used");
	}
	*out = c;
	return 0;
}

void client_close(struct client *c)
{
	if (!c)
		return;
	if (c->call)
		curl_easy_cleanup(c->call);
	free(c->api);
	free(c);
}

static void prepare(struct client *c, CURL *easy, const char *path)
{
	char url[256];
	snprintf(url, sizeof(url), "http://localhost%s", path);
	curl_easy_reset(easy);
	curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, c->api);
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 5L);
}

static int no_agent(const struct client *c, CURL *easy, CURLcode code, struct fault *f)
{
	long error = 0;
	if (code == CURLE_OPERATION_TIMEDOUT) {
		fault_set(f, FAULT_AGENT_DOWN, "cpr-agent does not answer at %s", c->api);
		return fault_hint(f, "See what it does with \"journalctl -u cpr-agent\"; restart it when it hangs.");
	}
	if (code != CURLE_COULDNT_CONNECT) {
		fault_set(f, FAULT_AGENT_DOWN, "the talk with cpr-agent at %s broke: %s", c->api,
			  curl_easy_strerror(code));
		return fault_hint(
			f,
			"See why with \"journalctl -u cpr-agent\", and what became of it with \"cpr-migrate list\".");
	}
	curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &error);
	/* libcurl does not always tell; the socket's file does */
	errno = access(c->api, F_OK) < 0   ? ENOENT
		: access(c->api, W_OK) < 0 ? EACCES
		: error			   ? (int)error
					   : ECONNREFUSED;
	if (errno == EACCES) {
		fault_errno(f, FAULT_DENIED, "connect to cpr-agent at %s", c->api);
		return fault_hint(
			f,
			"Use cpr-migrate as root, or have your uid %u listed as api-uid in the agent's configuration.",
			(unsigned)getuid());
	}
	fault_errno(f, FAULT_AGENT_DOWN, "no cpr-agent answers at %s", c->api);
	return fault_hint(
		f,
		"Start it with \"systemctl start cpr-agent\" (or cpr-agent as root), or name its socket with --api.");
}

/* An answer that is no success carries a fault. */
static int check_status(long status, const struct body *b, struct fault *f)
{
	struct fault ignored;
	if (status >= 200 && status < 300)
		return 0;
	json_object *o = b->data ? json_parse(b->data, b->len, &ignored) : NULL;
	if (o && json_str(o, "code")) {
		json_fault_in(o, f);
	} else {
		fault_set(f, FAULT_PROTOCOL, "cpr-agent answered with HTTP status %ld", status);
		fault_hint(f, "Is it a cpr-agent that listens there?");
	}
	if (o)
		json_object_put(o);
	return -1;
}

static int perform(struct client *c, CURL *easy, struct body *b, json_object **out, struct fault *f)
{
	long status = 0;
	CURLcode code = curl_easy_perform(easy);
	if (b->too_large)
		return fault_set(f, FAULT_PROTOCOL, "cpr-agent answered with more than %zu MiB",
				 CLIENT_ANSWER_MAX >> 20);
	if (code != CURLE_OK)
		return no_agent(c, easy, code, f);
	curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	if (check_status(status, b, f) < 0)
		return -1;
	*out = json_parse(b->data ? b->data : "", b->len, f);
	if (*out)
		return 0;
	f->code = FAULT_PROTOCOL;
	return fault_while(f, "reading the answer of cpr-agent");
}

int client_call(struct client *c, const char *method, const char *path, json_object *body, json_object **out,
		struct fault *f)
{
	struct body b = { 0 };
	struct curl_slist *headers = NULL;
	prepare(c, c->call, path);
	curl_easy_setopt(c->call, CURLOPT_TIMEOUT, 30L);
	curl_easy_setopt(c->call, CURLOPT_CUSTOMREQUEST, method);
	curl_easy_setopt(c->call, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(c->call, CURLOPT_WRITEDATA, &b);
	if (body) {
		headers = curl_slist_append(NULL, "Content-Type: application/json");
		curl_easy_setopt(c->call, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(c->call, CURLOPT_COPYPOSTFIELDS,
				 json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN));
	}
	int r = perform(c, c->call, &b, out, f);
	curl_slist_free_all(headers);
	free(b.data);
	return r;
}

struct follow {
	CURL *easy;
	const struct client_handlers *h;
	struct body line; /* the part of a line that came so far, or the body of an error */
};

static void whole_line(struct follow *fo)
{
	struct fault ignored;
	json_object *o = json_parse(fo->line.data, fo->line.len, &ignored);
	if (o) {
		fo->h->event(fo->h->ctx, o, fo->line.data);
		json_object_put(o);
	}
	fo->line.len = 0;
}

static size_t on_lines(char *data, size_t size, size_t n, void *ctx)
{
	struct follow *fo = ctx;
	size_t total = size * n;
	long status = 0;
	curl_easy_getinfo(fo->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		return body_add(&fo->line, data, total) ? total : 0;
	for (size_t done = 0; done < total;) {
		const char *nl = memchr(data + done, '\n', total - done);
		size_t len = nl ? (size_t)(nl - (data + done)) : total - done;
		if (!body_add(&fo->line, data + done, len))
			return 0;
		done += len + (nl != NULL);
		if (nl)
			whole_line(fo);
	}
	return total;
}

static bool take_signal(int fd)
{
	struct signalfd_siginfo info;
	return fd >= 0 && read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info);
}

/* 1: the stream has ended with *code; 0: the handler wants no more; -1: fault */
static int pump(CURLM *multi, const struct client_handlers *h, CURLcode *code, struct fault *f)
{
	for (;;) {
		int running = 0, left;
		CURLMcode m = curl_multi_perform(multi, &running);
		CURLMsg *msg = curl_multi_info_read(multi, &left);
		if (msg && msg->msg == CURLMSG_DONE) {
			*code = msg->data.result;
			return 1;
		}
		struct curl_waitfd extra = { .fd = h->signal_fd, .events = CURL_WAIT_POLLIN };
		if (m == CURLM_OK)
			m = curl_multi_poll(multi, &extra, h->signal_fd >= 0, 1000, NULL);
		if (m != CURLM_OK)
			return fault_set(f, FAULT_SYSTEM, "libcurl: %s", curl_multi_strerror(m));
		if (take_signal(h->signal_fd) && !h->interrupted(h->ctx))
			return 0;
	}
}

int client_follow(struct client *c, const char *id, const struct client_handlers *h, struct fault *f)
{
	char path[128];
	CURLcode code = CURLE_OK;
	long status = 0;
	struct follow fo = { .easy = curl_easy_init(), .h = h };
	CURLM *multi = curl_multi_init();
	if (!fo.easy || !multi)
		abort();
	snprintf(path, sizeof(path), "/v1/migrations/%s/events", id);
	prepare(c, fo.easy, path);
	curl_easy_setopt(fo.easy, CURLOPT_WRITEFUNCTION, on_lines);
	curl_easy_setopt(fo.easy, CURLOPT_WRITEDATA, &fo);
	curl_multi_add_handle(multi, fo.easy);
	int r = pump(multi, h, &code, f);
	if (r == 1) {
		curl_easy_getinfo(fo.easy, CURLINFO_RESPONSE_CODE, &status);
		r = code != CURLE_OK ? no_agent(c, fo.easy, code, f) : check_status(status, &fo.line, f);
	}
	curl_multi_remove_handle(multi, fo.easy);
	curl_easy_cleanup(fo.easy);
	curl_multi_cleanup(multi);
	free(fo.line.data);
	return r;
}
