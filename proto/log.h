/*
 * Log lines on stderr (the journal takes them from there, with "<N>" priorities when
 * JOURNAL_STREAM is set). Every line names its subject.
 *	ERR an operation failed, NOTICE a state changed, DEBUG a step.
 * Libraries (proto, transport, engine) never call this; agent/ does.
 */
#ifndef PROTO_LOG_H
#define PROTO_LOG_H

#include "util.h"

enum log_level { LOG_LEVEL_ERR = 3, LOG_LEVEL_NOTICE = 5, LOG_LEVEL_DEBUG = 7 };

void log_open(const char *program, enum log_level max); /* once, at start */
void log_line(enum log_level level, const char *subject, const char *fmt, ...) PRINTF(3, 4);
#define log_err(subject, ...)	 log_line(LOG_LEVEL_ERR, subject, __VA_ARGS__)
#define log_notice(subject, ...) log_line(LOG_LEVEL_NOTICE, subject, __VA_ARGS__)
#define log_debug(subject, ...)	 log_line(LOG_LEVEL_DEBUG, subject, __VA_ARGS__)

#endif
