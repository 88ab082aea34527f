/*
 * One migration, one side. Started by the warden when the wire has an authenticated peer; ends with the migration.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "worker.h"

static void finish(struct worker *w)
{
	if (w->link)
		link_close(w->link);
	if (w->wc)
		wc_close(w->wc);
	report_done(&w->report);
	arena_free(w->arena);
}

static int run(struct worker *w, struct fault *f)
{
	if (wc_open(&w->wc, &w->start, f) < 0)
		return fault_while(f, "starting a worker");
	bool source = w->start.side == HANDOFF_SOURCE;
	w->events.fd = w->start.events_fd;
	w->events.side = source ? "source" : "destination";
	snprintf(w->events.migration, sizeof(w->events.migration), "%s", w->start.migration);
	spans_init(&w->spans, w->events.side);
	w->host = w->start.host;
	w->may_cancel = true;
	w->link = link_open(&w->start.link, f);
	if (!w->link)
		return fault_while(f, "opening the link to %s", w->start.peer);
	return source ? worker_source_run(w, f) : worker_target_run(w, f);
}

/* For tests: the names of all stages. */
static void list_stages(void)
{
	for (size_t i = 0; i < worker_source_stage_count; i++)
		printf("source %s\n", worker_source_stages[i].name);
	for (size_t i = 0; i < worker_target_stage_count; i++)
		printf("destination %s\n", worker_target_stages[i].name);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--stages")) {
		list_stages();
		return 0;
	}
	signal(SIGPIPE, SIG_IGN);
	const char *level = getenv("CPR_LOG_LEVEL");
	log_open("cpr-worker", level ? (enum log_level)atoi(level) : LOG_LEVEL_NOTICE);
	struct worker w = { .events.fd = -1 };
	struct fault f = { 0 };
	w.arena = arena_new();
	report_init(&w.report);
	int r = run(&w, &f);
	if (r < 0) {
		char line[1024];
		fault_line(&f, line, sizeof(line));
		log_err(w.events.migration[0] ? w.events.migration : "-", "%s", line);
	}
	finish(&w);
	return r < 0 ? 1 : 0;
}
