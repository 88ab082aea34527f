/*
 * A process under ptrace: all its threads, seized and stopped, or let go.
 *
 *	process_open(&p, pid)          identity (pidfd, start time); nothing is touched
 *	process_prepare(p)             optional: makes the next short
 *	process_stop(p)                seize + interrupt every thread, until no new one appears
 *	  … read state, remote calls (remote.h) …
 *	process_release(p)             all threads go on as if nothing had happened (stop.h), detached
 *	process_close(p)
 *
 * One thread of the worker does all of it (an exiting tracer thread lets go, or kills, its tracees).
 * Also used for vessels: process_adopt() takes over a child that vessel.c made.
 * Pointers to tasks are good until the next process_stop, process_add_thread or process_drop_thread.
 * A process that exits or calls exec between two stops is FAULT_PROCESS_GONE.
 */
#ifndef ENGINE_PROCESS_H
#define ENGINE_PROCESS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fault.h"

enum task_state { TASK_FREE, TASK_SEIZED, TASK_STOPPED, TASK_GONE };

struct task {
	pid_t tid;
	enum task_state state;
	int status; /* of the last stop, as waitpid(2) gives it */
	bool regs_valid;
	struct arch_regs *regs; /* general registers at the stop, owned; NULL when not stopped. Remote calls
				 * leave them alone: they say where the program is. */
	uint64_t sigmask;	/* the program's own signal mask at the stop */

	/* Private to task.c, stop.c and remote.c. */
	bool waiting_status;   /* status is a stop that was reported while another thread was waited for */
	bool stop_signal;      /* a SIGSTOP came during a remote call: sent again at the release */
	unsigned long options; /* ptrace options in force */
	struct task_restart {
		bool known;
		long nr;	      /* the interrupted call, also when the registers only say restart_syscall */
		uint64_t deadline_ns; /* of a relative timeout, our CLOCK_MONOTONIC; 0: unknown */
		uint64_t pc, sp, args[4];
	} restart;
};

struct process {
	pid_t pid;
	int pidfd;
	int procfd;	     /* /proc/PID, O_PATH|O_DIRECTORY */
	int memfd;	     /* /proc/PID/mem, O_RDWR; -1 while not stopped for the first time */
	uint64_t start_time; /* field 22 of stat */
	char comm[16];
	bool stopped;
	bool vessel; /* ours to shape: PTRACE_O_EXITKILL */
	size_t n_tasks, cap_tasks;
	struct task *tasks; /* [0] is the leader */

	/* Private to process.c and remote.c. */
	unsigned long options; /* PTRACE_O_* that every thread has */
	uint64_t start_stack;  /* exec changes it */
	uint64_t call_at,
		sigret_at;	  /* code in the process's own text that guarded calls used last; 0: not searched yet */
	struct stop_times *times; /* of process_prepare, for the next stop */
	struct remote *remote;	  /* while one is open */
	struct process_pin *pin;  /* NULL: not pinned */
};

int process_open(struct process **out, pid_t pid, struct fault *f) MUST_CHECK;
void process_close(struct process *p); /* releases what is still stopped */
/* Optional, right before process_stop, while the process runs: the part of it that takes time (0.1 ms a thread: since when
 * do they sleep? see stop.h). Without it process_stop does it first thing. */
void process_prepare(struct process *p);
int process_stop(struct process *p, struct fault *f) MUST_CHECK;
/* Interrupted syscalls go on: their registers were set up for that (stop.h) as soon as each thread stopped. */
int process_release(struct process *p, struct fault *f) MUST_CHECK;
bool process_alive(const struct process *p); /* same process, not a zombie */
struct task *process_task(struct process *p, pid_t tid);
/* PTRACE_SETOPTIONS on all threads; vessels have PTRACE_O_EXITKILL until the commit. */
int process_set_options(struct process *p, unsigned long options, struct fault *f) MUST_CHECK;
/* Detach all threads without any clean-up: used into a frozen cgroup, after registers are final. */
int process_detach(struct process *p, struct fault *f) MUST_CHECK;
/* Memory as /proc/PID/mem gives and takes it (also PROT_NONE and read-only). Whole or fault. */
int process_read(struct process *p, uint64_t addr, void *buf, size_t len, struct fault *f) MUST_CHECK;
int process_write(struct process *p, uint64_t addr, const void *buf, size_t len, struct fault *f) MUST_CHECK;
/* Duplicate of one of its descriptors, CLOEXEC (pidfd_getfd(2)). Only while it is stopped, and closed before it
 * runs on: a duplicate changes what close(2), seeks and flags mean for the program. -1 with a fault. */
int process_getfd(struct process *p, int fd, struct fault *f) MUST_CHECK;
/* Pins the calling thread and the process's threads to one CPU for a burst of remote calls, and back
 * (affinities are read before and put back exactly). Failure is not an error: it is only slower. */
void process_pin(struct process *p);
void process_unpin(struct process *p);
/* The CPU that threads are pinned to during guarded calls, or -1. A source's threads are pinned by remote.c, each only
 * while it would unpin itself should we die. */
int process_pin_cpu(const struct process *p);

/* For vessel.c: a child of ours (or of the helper) becomes a vessel: seized with PTRACE_O_EXITKILL and stopped. */
int process_adopt(struct process **out, pid_t pid, struct fault *f) MUST_CHECK;
/* A thread that a traced clone made, waited for in its first stop. */
int process_add_thread(struct process *p, pid_t tid, struct fault *f) MUST_CHECK;
/* A vessel's thread that has ended leaves the list. */
void process_drop_thread(struct process *p, pid_t tid);

#endif
