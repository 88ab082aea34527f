#!/usr/bin/python3
"""Worker, wire and both killed with SIGKILL at random instants, on either side, before the commit: the process is
unharmed, undone and thawed at once; nothing is left anywhere. Also Ctrl-C."""
import mmap
import os
import random
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import wait_for
from cluster import Cluster
from victims import Victim

tests = tap.Tests()
c = Cluster()
KILLS = 520 if tap.FULL else 40
LIMIT_MS = 100  # from the death to the process's next instruction; an idle machine's, see `late`
rnd = random.Random(int(os.environ.get("CPR_SEED", "0")) or time.time_ns())


def inside(h, *names):
    """Processes of the host whose program is one of names: PIDs as this namespace sees them."""
    found = []
    for d in os.listdir("/proc"):
        if not d.isdigit():
            continue
        try:
            if os.readlink("/proc/%s/ns/pid" % d) != h.pidns:
                continue
            exe = os.path.basename(os.readlink("/proc/%s/exe" % d))
        except OSError:
            continue
        if exe in names:
            found.append(int(d))
    return found


class Beat:
    def __init__(self, v):
        self.fd = os.open(os.path.join(v.dir, "beat"), os.O_RDONLY)
        self.m = mmap.mmap(self.fd, 4096, prot=mmap.PROT_READ)

    def now(self):
        return struct.unpack("<Q", self.m[:8])[0]


def one_kill(v, beat, names, side, seen):
    h = c[side]
    cmd = c["host1"].popen(c.migrate_cmd(v.pid, "host2", "--downtime", "1us", "--max-rounds", "60"),
                           stdout=open(os.path.join(c.dir, "migrate.out"), "w"), stderr=-2)
    delay = rnd.random() * 0.9
    end = time.monotonic() + delay
    while time.monotonic() < end and cmd.poll() is None:
        time.sleep(0.001)
    victims = inside(h, *names)
    for p in victims:
        try:
            os.kill(p, signal.SIGKILL)
        except ProcessLookupError:
            pass
    t = time.monotonic()
    b = beat.now()
    while beat.now() == b and time.monotonic() - t < 5 and c["host1"].bed.hosts:
        time.sleep(0.0005)
    gap = (time.monotonic() - t) * 1000
    cmd.wait(60)
    text = open(os.path.join(c.dir, "migrate.out")).read()
    moved = cmd.returncode == 0
    seen["moved" if moved else "killed" if victims else "ended before"] = \
        seen.get("moved" if moved else "killed" if victims else "ended before", 0) + 1
    here, there = c["host1"].alive(v.pid), c["host2"].alive(v.pid)
    if not moved:
        wait_for(lambda: not c["host2"].alive(v.pid), 5)
        there = False
    assert here != there, "runs on %s: %s" % ("both" if here else "neither", text)
    if gap > LIMIT_MS:
        seen["late"] = seen.get("late", 0) + 1
        seen["latest"] = max(seen.get("latest", 0), gap)
    assert gap < 5000, "it did not go on: %s" % text
    where = "host1" if here else "host2"
    other = "host2" if here else "host1"
    left = c.settled(other, v.pid) + c.settled(where)
    assert not left, "left: %s\n%s" % (left, text)
    return where


def bring_back(v):
    m = c.migrate(v.pid, "host2", "host1")
    assert m.ok, m.text


def killing(names, side, n):
    v = Victim(c, "beat", "host1", ["32"], tag="-%d" % rnd.randrange(1 << 30))
    beat = Beat(v)
    seen, gaps = {}, []
    try:
        for i in range(n):
            if one_kill(v, beat, names, side, seen) == "host2":
                bring_back(v)
            assert v.goes_on(), v.read("result")
        assert v.finish() == "PASS", v.read("result")
        print("# %s on %s: %s" % (" and ".join(names), side, seen))
        assert seen.get("late", 0) <= n // 20, "later than %d ms too often: %s" % (LIMIT_MS, seen)
    finally:
        for h in ("host1", "host2"):
            c[h].kill(v.pid)


for h in c.bed.hosts.values():
    h.pidns = os.readlink("/proc/%d/ns/pid" % h.init)
for names in (("cpr-worker",), ("cpr-wire",), ("cpr-worker", "cpr-wire")):
    for side in ("host1", "host2"):
        tests.add(lambda n=names, s=side: killing(n, s, KILLS // 6 + 1),
                  "%s killed on %s" % (" and ".join(names), "the source" if side == "host1" else "the destination"))


@tests.add
def interrupted_by_the_user():
    v = Victim(c, "beat", "host1", ["64"], tag="-int")
    beat = Beat(v)
    for i in range(20 if tap.FULL else 5):
        cmd = c["host1"].popen(c.migrate_cmd(v.pid, "host2", "--downtime", "1us", "--max-rounds", "1000"),
                               stdout=open(os.path.join(c.dir, "migrate.out"), "w"), stderr=-2)
        time.sleep(0.1 + rnd.random() * 0.5)
        for p in inside(c["host1"], "cpr-migrate"):
            os.kill(p, signal.SIGINT)
        cmd.wait(30)
        text = open(os.path.join(c.dir, "migrate.out")).read()
        if cmd.returncode == 0:
            bring_back(v)
            continue
        assert cmd.returncode == 26, "exit status %d: %s" % (cmd.returncode, text)
        assert "host1" in text or "runs on here" in text, text
        left = c.settled("host1") + c.settled("host2", v.pid)
        assert not left, left
        assert v.goes_on()
    assert v.finish() == "PASS", v.read("result")


def logs():
    return c.agent_log("host1")[-4000:] + c.agent_log("host2")[-4000:]


try:
    tests.run(after=logs)
finally:
    c.down()
