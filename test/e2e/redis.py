#!/usr/bin/python3
"""Redis there and back while a client with one connection checks every reply."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from cluster import VIP, Cluster
from redis import Redis

tests = tap.Tests()
TRIPS = 20 if tap.FULL else 4
SIZE = 512 if tap.FULL else 64
STALL_MS = 200


@tests.add
def there_and_back_under_a_client():
    c = Cluster()
    try:
        r = Redis(c, megabytes=SIZE)
        digest = None
        r.start_client()
        at, other = "host1", "host2"
        for trip in range(TRIPS):
            m = c.migrate(r.pid, at, other, "--move-address", VIP + "/32@eth0")
            assert m.ok, "trip %d: %s\n%s\n%s" % (trip, m.text, c.agent_log(at), c.agent_log(other))
            assert c[other].alive(r.pid), "not there after trip %d" % trip
            left = c.settled(at, r.pid, VIP)
            assert not left, "left on %s: %s" % (at, left)
            at, other = other, at
        got = r.stop_client()
        assert r.info(at, "run_id") == r.run_id
        assert got["errors"] == 0 and got["wrong"] == 0, got
        assert got["requests"] > 1000, got
        assert got["longest_ms"] <= STALL_MS, got
        digest = r.digest(at)
        m = c.migrate(r.pid, at, other, "--move-address", VIP + "/32@eth0", "--verify")
        assert m.ok, m.text
        assert r.digest(other) == digest
        print("# %d requests, longest stall %.1f ms" % (got["requests"], got["longest_ms"]))
    finally:
        c.down()


tests.run()
