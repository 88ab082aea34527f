// C++: exceptions in flight in several threads, thread-local objects, containers and the standard library's threads.
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static std::string dir;
static std::atomic<bool> stop{ false };
static std::mutex lock;
static std::string reason;

static void fail(const std::string &why)
{
	std::lock_guard<std::mutex> g(lock);
	if (reason.empty())
		reason = why;
}

struct Tag {
	int depth;
	explicit Tag(int d) : depth(d)
	{
		live++;
	}
	~Tag()
	{
		live--;
	}
	static thread_local int live;
};
thread_local int Tag::live = 0;

static void dive(int depth, uint64_t seed)
{
	Tag t(depth);
	if (depth == 0)
		throw std::runtime_error(std::to_string(seed));
	try {
		dive(depth - 1, seed);
	} catch (const std::out_of_range &) {
		fail("caught what was not thrown");
	}
}

static void work(int id)
{
	std::map<uint64_t, std::string> m;
	for (uint64_t n = 0; !stop; n++) {
		uint64_t seed = n * 1000 + (uint64_t)id;
		try {
			dive(40, seed);
			fail("nothing was thrown");
		} catch (const std::runtime_error &e) {
			if (std::to_string(seed) != e.what())
				fail(std::string("threw ") + std::to_string(seed) + ", caught " + e.what());
		}
		if (Tag::live != 0)
			fail("destructors were not run");
		m[n % 1000] = std::string(n % 300, (char)('a' + n % 26));
		auto it = m.find((n * 7) % 1000);
		if (it != m.end() && !it->second.empty() && it->second.front() != it->second.back())
			fail("a string changed");
	}
}

static void put(const char *name, const std::string &text)
{
	std::string path = dir + "/" + name;
	FILE *f = fopen((path + ".tmp").c_str(), "we");
	if (!f)
		_exit(3);
	fputs(text.c_str(), f);
	fclose(f);
	rename((path + ".tmp").c_str(), path.c_str());
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	dir = argv[1];
	std::vector<std::thread> threads;
	for (int i = 0; i < 4; i++)
		threads.emplace_back(work, i);
	put("ready", "1");
	for (int n = 0; access((dir + "/stop").c_str(), F_OK) != 0; n++) {
		put("steps", std::to_string(n));
		usleep(5000);
	}
	stop = true;
	for (auto &t : threads)
		t.join();
	put("result", reason.empty() ? "PASS" : "FAIL: " + reason);
	return reason.empty() ? 0 : 1;
}
