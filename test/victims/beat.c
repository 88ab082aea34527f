/* A heart that beats in shared memory, so that a test can see when it stopped: argv[1]/beat holds a counter. Also holds
 * an argv[2] MiB heap that it rewrites. */
#include <sys/mman.h>

#include "victim.h"

int main(int argc, char **argv)
{
	victim_init(argc, argv);
	size_t len = (size_t)(argc > 2 ? atoi(argv[2]) : 16) << 20;
	char path[300];
	victim_path(path, sizeof(path), "beat");
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0 || ftruncate(fd, 4096) < 0)
		return 3;
	volatile uint64_t *beat = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	uint64_t *heap = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < len / 8; i++)
		heap[i] = i * 0x9e3779b97f4a7c15u;
	victim_ready();
	uint64_t n = 0;
	while (victim_running()) {
		for (int i = 0; i < 200; i++) {
			size_t k = (n * 7919 + (unsigned)i * 104729) % (len / 8);
			victim_check(heap[k] == k * 0x9e3779b97f4a7c15u, "word %zu", k);
			heap[k] = k * 0x9e3779b97f4a7c15u;
		}
		*beat = ++n;
		usleep(300);
	}
	for (size_t i = 0; i < len / 8; i++)
		victim_check(heap[i] == i * 0x9e3779b97f4a7c15u, "word %zu at the end", i);
	victim_done();
}
