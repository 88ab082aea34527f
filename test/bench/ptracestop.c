/* A floor: how long does it take to stop all threads of a process by ptrace? Prints the median in milliseconds.
 *	ptracestop THREADS */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t tids[256];

static void *sleeper(void *arg)
{
	((volatile pid_t *)arg)[0] = gettid();
	for (;;)
		pause();
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1, p[2];
	if (n < 1 || n > 256 || pipe(p) < 0)
		return 2;
	pid_t pid = fork();
	if (pid == 0) {
		volatile pid_t *mine = tids;
		mine[0] = getpid();
		for (int i = 1; i < n; i++) {
			pthread_t t;
			pthread_create(&t, NULL, sleeper, (void *)&tids[i]);
			while (!mine[i])
				usleep(100);
		}
		if (write(p[1], tids, sizeof(tids)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	if (read(p[0], tids, sizeof(tids)) != (ssize_t)sizeof(tids))
		return 3;
	double ms[21];
	for (int k = 0; k < 21; k++) {
		struct timespec a, b;
		int status;
		clock_gettime(CLOCK_MONOTONIC, &a);
		for (int i = 0; i < n; i++) {
			ptrace(PTRACE_SEIZE, tids[i], NULL, NULL);
			ptrace(PTRACE_INTERRUPT, tids[i], NULL, NULL);
		}
		for (int i = 0; i < n; i++)
			waitpid(tids[i], &status, __WALL);
		clock_gettime(CLOCK_MONOTONIC, &b);
		ms[k] = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
		for (int i = 0; i < n; i++)
			ptrace(PTRACE_DETACH, tids[i], NULL, NULL);
		usleep(5000);
	}
	qsort(ms, 21, sizeof(ms[0]), by_value);
	printf("%.3f\n", ms[10]);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}
