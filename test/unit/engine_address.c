/* Service addresses: parsing, and moving one between two hosts of a switch. */
#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "address.h"
#include "testnet.h"

static struct testnet net;

/* An undo log that keeps what is pushed. */
static struct undo kept[16];
static size_t n_kept;

static int push(void *ctx, const struct undo *u, struct fault *f)
{
	(void)ctx;
	(void)f;
	kept[n_kept++] = *u;
	return 0;
}

static int drop(void *ctx, enum undo_kind kind, struct fault *f)
{
	(void)ctx;
	(void)f;
	while (n_kept && kept[n_kept - 1].kind == kind)
		n_kept--;
	return 0;
}

static struct undo_log log_ = { push, drop, NULL };

static void parses(void **state)
{
	static const struct {
		const char *text, *address, *device;
		int prefix;
	} good[] = {
		{ "10.0.0.1", "10.0.0.1", "", -1 },
		{ "10.0.0.1/24", "10.0.0.1", "", 24 },
		{ "10.0.0.1/24@eth0", "10.0.0.1", "eth0", 24 },
		{ "10.0.0.1@br-lan", "10.0.0.1", "br-lan", -1 },
		{ "FD00::0:1/64@eth0.7", "fd00::1", "eth0.7", 64 },
		{ "::/0", "::", "", 0 },
	};
	static const char *const bad[] = {
		"",
		"10.0.0",
		"10.0.0.1/33",
		"10.0.0.1/",
		"10.0.0.1/x",
		"fd00::1/129",
		"10.0.0.1@",
		"host",
		"10.0.0.1@a/b",
		"10.0.0.1@a-name-that-is-too-long",
		"10.0.0.1/24/24",
		"10.0.0.1 ",
		"-1",
		"1111111111111111111111111111111111111111111111111111111111111111111111111111111111111",
	};
	struct net_address a;
	struct fault f;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(net_address_parse(good[i].text, &a, &f), 0);
		assert_string_equal(a.address, good[i].address);
		assert_string_equal(a.device, good[i].device);
		assert_int_equal(a.prefix, good[i].prefix);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(net_address_parse(bad[i], &a, &f), -1);
		assert_int_equal(f.code, FAULT_USAGE);
	}
}

static bool has(const char *what)
{
	return testnet_number("ip addr show dev eth0 | grep -c '%s'", what) == 1;
}

static void move_one(const char *text, const char *add, const char *shown, const char *shown_there, int family,
		     const char *neighbour)
{
	struct net_address a;
	struct fault f;
	uint8_t bytes[16];
	struct timespec t0, t1;

	n_kept = 0;
	testnet_enter(&net, HOST_A);
	testnet_sh("ip addr add %s", add);
	testnet_enter(&net, HOST_B);
	testnet_sh("ping -c1 -w3 -q %s >/dev/null", neighbour); /* B knows the address at A */
	testnet_enter(&net, HOST_A);
	assert_int_equal(net_address_parse(text, &a, &f), 0);
	assert_int_equal(net_address_find(&a, &f), 0);
	assert_string_equal(a.device, "eth0");
	inet_pton(family, a.address, bytes);
	assert_true(net_address_is_local(family, bytes));
	assert_int_equal(net_address_remove(&a, &log_, &f), 0);
	assert_false(net_address_is_local(family, bytes));
	assert_int_equal(n_kept, 1);

	testnet_enter(&net, HOST_C);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	assert_int_equal(net_address_add(&a, &log_, &f), 0);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	printf("add %s: %.0f us\n", text,
	       (double)(t1.tv_sec - t0.tv_sec) * 1e6 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e3);
	assert_true(has(shown_there));
	assert_int_equal(testnet_number("ip addr show dev eth0 tentative | grep -c '%s'", a.address),
			 0); /* usable at once */
	assert_int_equal(n_kept, 2);
	assert_int_equal(net_address_announce(&a, NULL, &f), 0);
	testnet_enter(&net, HOST_B);
	testnet_sh("ping -c1 -w1 -q %s >/dev/null", neighbour); /* would wait for A's old entry to fail */

	/* All undone, twice: nothing changes the second time. */
	for (int i = 0; i < 2; i++) {
		testnet_enter(&net, HOST_C);
		assert_int_equal(net_address_undo(&kept[1], &f), 0);
		assert_false(has(shown_there));
		testnet_enter(&net, HOST_A);
		assert_int_equal(net_address_undo(&kept[0], &f), 0);
		assert_true(has(shown));
	}
	testnet_enter(&net, HOST_B);
	testnet_sh("ping -c1 -w1 -q %s >/dev/null", neighbour);
	testnet_enter(&net, HOST_A);
	testnet_sh("ip addr del %s/%d dev eth0", a.address, a.prefix);
}

static void moves_ipv4(void **state)
{
	(void)state;
	move_one("10.99.0.50@eth0", "10.99.0.50/24 brd 10.99.0.255 label eth0:svc dev eth0",
		 "inet 10.99.0.50/24 brd 10.99.0.255 scope global secondary eth0:svc$",
		 "inet 10.99.0.50/24 scope global secondary eth0$", AF_INET, "10.99.0.50");
}

static void moves_ipv6(void **state)
{
	(void)state;
	move_one("fd99::50", "fd99::50/128 dev eth0 nodad noprefixroute", "inet6 fd99::50/128", "inet6 fd99::50/128",
		 AF_INET6, "fd99::50");
}

static void says_what_is_wrong(void **state)
{
	struct net_address a;
	struct fault f;
	uint8_t bytes[4] = { 127, 1, 2, 3 };

	(void)state;
	testnet_enter(&net, HOST_A);
	assert_int_equal(net_address_parse("10.99.0.77", &a, &f), 0);
	assert_int_equal(net_address_find(&a, &f), -1);
	assert_int_equal(f.code, FAULT_NO_ADDRESS);
	assert_int_equal(net_address_parse("10.99.0.1/24@nodev", &a, &f), 0);
	assert_int_equal(net_address_find(&a, &f), -1);
	assert_int_equal(f.code, FAULT_NETWORK);
	assert_int_equal(net_address_device_exists("eth0", &f), 0);
	assert_true(net_address_is_local(AF_INET, bytes));

	/* Here already: not added, so that an undo does not take it away. */
	assert_int_equal(net_address_parse("10.99.0.1/24@eth0", &a, &f), 0);
	n_kept = 0;
	assert_int_equal(net_address_add(&a, &log_, &f), -1);
	assert_int_equal(f.code, FAULT_NETWORK);
	assert_int_equal(n_kept, 0);

	/* A primary would take its secondaries along. */
	testnet_sh("sysctl -qw net.ipv4.conf.all.promote_secondaries=0 net.ipv4.conf.eth0.promote_secondaries=0; "
		   "ip addr add 10.99.0.60/24 dev eth0");
	assert_int_equal(net_address_remove(&a, &log_, &f), -1);
	assert_int_equal(n_kept, 0);
	assert_true(has("10.99.0.60/24") && has("10.99.0.1/24"));
	testnet_sh("ip addr del 10.99.0.60/24 dev eth0");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parses),
		cmocka_unit_test(moves_ipv4),
		cmocka_unit_test(moves_ipv6),
		cmocka_unit_test(says_what_is_wrong),
	};

	alarm(60);
	testnet_make(&net);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
