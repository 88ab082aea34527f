#!/usr/bin/python3
"""Self-checking programs moved there and back under --verify, in pre-copy and without tracking, as root and not."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from cluster import Cluster
from victims import Victim

tests = tap.Tests()
c = Cluster()
count = [0]
for h in ("host1", "host2"):
    c[h].sh("mkfifo -m 666 /tmp/victim.fifo")
TRIPS = 6 if tap.FULL else 2


def moves(name, args=(), uid=None, tracking=None, trips=TRIPS):
    count[0] += 1
    v = Victim(c, name, "host1", args, uid, "-%d" % count[0])
    at, other = "host1", "host2"
    options = ["--verify"] + (["--tracking", tracking] if tracking else [])
    try:
        for trip in range(trips):
            assert v.goes_on(), "before trip %d: %s" % (trip + 1, v.read("result"))
            m = c.migrate(v.pid, at, other, *options)
            assert m.ok, "trip %d to %s: %s\n%s\n%s" % (trip + 1, other, m.text, c.agent_log(at)[-3000:],
                                                       c.agent_log(other)[-3000:])
            assert c[other].alive(v.pid), "trip %d: not on %s; %s" % (trip + 1, other, v.read("result"))
            assert v.goes_on(), "after trip %d: %s" % (trip + 1, v.read("result"))
            left = c.settled(at, v.pid)
            assert not left, "left on %s: %s" % (at, left)
            at, other = other, at
        result = v.finish()
        assert result == "PASS", result
    finally:
        c[at].kill(v.pid)
        c[other].kill(v.pid)


PROGRAMS = ["threads", "memory", "clocks", "signals", "timers", "files", "pipes", "syscalls", "creds", "exceptions",
            "script.py", "script.pl"]
for program in PROGRAMS:
    tests.add(lambda p=program: moves(p), "%s, pre-copy" % program)
    tests.add(lambda p=program: moves(p, tracking="none", trips=2), "%s, without tracking" % program)
    tests.add(lambda p=program: moves(p, uid=1000, trips=2), "%s, as uid 1000" % program)
tests.add(lambda: moves("creds", ["nnp"], uid=1000), "creds with no_new_privs")
tests.add(lambda: moves("creds", ["mixed"]), "creds with three different uids")

try:
    tests.run()
finally:
    c.down()
