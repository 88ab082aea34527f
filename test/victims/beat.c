/* A heart that beats in shared memory, so that a test can see when it stopped and when it went on: argv[1]/beat holds
 * the number of beats, then the times (CLOCK_REALTIME, ns) of the last BEATS of them. Also holds an argv[2] MiB heap
 * that it checks and rewrites. */
#include <sys/mman.h>

#include "victim.h"

#define BEATS	16384
#define WORD(i) ((uint64_t)(i)*0x9e3779b97f4a7c15u)

struct page {
	uint64_t n, at[BEATS];
};

static volatile struct page *map_page(void)
{
	char path[300];
	victim_path(path, sizeof(path), "beat");
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0 || ftruncate(fd, sizeof(struct page)) < 0)
		_exit(3);
	void *p = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p;
}

static void beat(volatile struct page *p, uint64_t n)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	p->at[n % BEATS] = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	p->n = n + 1;
}

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	size_t words = ((size_t)(argc > 2 ? atoi(argv[2]) : 16) << 20) / 8;
	volatile struct page *p = map_page();
	uint64_t *heap = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < words; i++)
		heap[i] = WORD(i);
	victim_ready();
	for (uint64_t n = 0; victim_running(); n++) {
		for (size_t i = 0; i < 200; i++) {
			size_t k = (n * 7919 + i * 104729) % words;
			victim_check(heap[k] == WORD(k), "word %zu", k);
			heap[k] = WORD(k);
		}
		beat(p, n);
		usleep(300);
	}
	for (size_t i = 0; i < words; i++)
		victim_check(heap[i] == WORD(i), "word %zu at the end", i);
	victim_done();
}
