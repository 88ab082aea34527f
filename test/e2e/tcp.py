#!/usr/bin/python3
"""TCP, IPv4 and IPv6, many connections with full queues both ways, moved there and back with their service addresses:
every byte comes back, no RST is seen."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import TOP, wait_for
from cluster import VIP, VIP6, Cluster
from victims import Victim

tests = tap.Tests()
c = Cluster()


def resets():
    """RSTs that the client host has seen or sent."""
    t = c["client"].sh("cat /proc/net/snmp")
    keys, values = [l.split()[1:] for l in t.splitlines() if l.startswith("Tcp:")]
    d = dict(zip(keys, map(int, values)))
    return d["EstabResets"], d["OutRsts"], d["InErrs"]


def moves(n4, n6, trips, tag):
    c["host1"].sh("ip addr add %s/32 dev eth0; ip -6 addr add %s/128 dev eth0 nodad" % (VIP, VIP6))
    v = Victim(c, "netecho", "host1", [VIP, VIP6], tag=tag)
    result, stop = os.path.join(v.dir, "client"), os.path.join(v.dir, "client.stop")
    before = resets()
    p = c["client"].popen(["/usr/bin/python3", os.path.join(TOP, "test/lib/echo_client.py"), result, stop, "7700",
                           VIP, str(n4), VIP6, str(n6)])
    wait_for(lambda: os.path.exists(result + ".up"), 120)
    at, other = "host1", "host2"
    try:
        for trip in range(trips):
            m = c.migrate(v.pid, at, other, "--verify", "--move-address", VIP + "/32@eth0", "--move-address",
                          VIP6 + "/128@eth0")
            assert m.ok, "trip %d: %s\n%s\n%s" % (trip, m.text, c.agent_log(at)[-2000:], c.agent_log(other)[-2000:])
            assert v.goes_on(), v.read("result")
            left = c.settled(at, v.pid, VIP) + c.settled(at, None, VIP6)
            assert not left, left
            at, other = other, at
        open(stop, "w").close()
        wait_for(lambda: os.path.exists(result), 60)
        p.wait()
        got = json.load(open(result))
        assert not got["errors"], got
        assert got["connections"] == n4 + n6 and got["bytes"] > 1000000, got
        assert resets() == before, "RSTs: %s, then %s" % (before, resets())
        assert v.finish() == "PASS", v.read("result")
        print("# %s" % got)
    finally:
        for h in ("host1", "host2"):
            c[h].kill(v.pid)
            c[h].sh("ip addr del %s/32 dev eth0; ip -6 addr del %s/128 dev eth0; true" % (VIP, VIP6))


tests.add(lambda: moves(1, 1, 2, "-1"), "one connection of each family")
tests.add(lambda: moves(40, 40, 6 if tap.FULL else 2, "-40"), "80 connections")

try:
    tests.run(after=lambda: c.agent_log("host1")[-3000:] + c.agent_log("host2")[-3000:])
finally:
    c.down()
