"""Processes that are to be moved from host1 to host2 and must not be harmed when that fails.

    case = Beating(c, watch, rnd)    or Served(…): Redis, its client and its address
    run = Run(c, "host1", case.pid, "host2", *case.args); …; run.end()
    host = case.where(run)           the one host it runs on; None: in doubt, and it runs nowhere
    case.tidy(run, host)             nothing is left, it works; it is on host1 again
    case.finish()                    it never saw anything wrong
"""
import os
import signal
import subprocess
import time

from bed import TOP, wait_for
from cluster import VIP
from redis import Redis
from victims import Victim
from watch import Beat

CANCELLED = 26
HEAP = "8"  # MiB


def gone(w, pid):
    try:
        return wait_for(lambda: not w.where(pid), 5)
    except TimeoutError:
        return False


class Case:
    address, args = None, ()

    def __init__(self, c, watch, rnd):
        self.c, self.watch, self.rnd = c, watch, rnd
        self.outcomes, self.gaps, self.noise, self.doubt = {}, [], [], False

    def after(self, t):
        """A death at time t made the migration fail."""

    def count(self, what):
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    def in_doubt(self, here):
        """The source is frozen and asks: what may be when the commit was sent. What is only being undone is not."""
        w = self.watch["host1"]
        if not here or not w.frozen(here):
            return False
        if "state=IN_DOUBT" in w.ask("cat /run/cpr/*.journal"):
            return True
        wait_for(lambda: not w.frozen(here), 5)
        return False

    def where(self, run):
        """The one host it runs on; checks that it is the only one. None: in doubt, and it runs nowhere."""
        if run.status != 0:
            wait_for(lambda: not self.watch["host2"].processes("cpr-worker"), 20)
        here, there = self.watch["host1"].where(self.pid), self.watch["host2"].where(self.pid)
        self.doubt = self.in_doubt(here)
        if self.doubt:
            return "host2" if there else None
        # Dead already, or about to be: the source removes a process after it has said that it moved.
        if here and there and gone(self.watch["host1"], self.pid):
            here = None
        assert bool(here) != bool(there), "runs on %s: %s" % ("both" if here else "neither", run.text)
        return "host1" if here else "host2"

    def tidy(self, run, now):
        if self.doubt:
            self.watch["host1"].forget_doubt(self.pid)
        if now is None:
            self.start()
            now = "host1"
        other = "host2" if now == "host1" else "host1"
        left = self.watch[other].settled(self.pid, self.address) + self.watch[now].settled()
        assert not left, "left: %s\n%s" % (left, run.text)
        self.check(now, run)
        if now == "host2" and self.doubt:
            # The copy that was frozen on host1 was ended by hand, with its sockets: connections can't go back there.
            self.c["host2"].kill(self.pid)
            self.start()
        elif now == "host2":
            m = self.c.migrate(self.pid, "host2", "host1", *self.args)
            assert m.ok, m.text


class Beating(Case):
    def __init__(self, c, watch, rnd):
        super().__init__(c, watch, rnd)
        self.quiet = Victim(self.c, "beat", "host1", ["1"], tag="-q%d" % self.rnd.randrange(1 << 30))
        self.quiet_beat = Beat(self.quiet)
        self.start()

    def start(self):
        self.v = Victim(self.c, "beat", "host1", [HEAP], tag="-%d" % self.rnd.randrange(1 << 30))
        self.pid, self.beat = self.v.pid, Beat(self.v)

    def after(self, t):
        now = time.time_ns()
        try:
            self.beat.wait_after(now)
            self.quiet_beat.wait_after(now)
        except TimeoutError:
            return  # where() says more
        self.gaps.append(self.beat.longest_ms(t, now))
        self.noise.append(self.quiet_beat.longest_ms(t, now))

    def check(self, host, run):
        assert self.v.goes_on(), self.v.read("result") + "\n" + run.text

    def finish(self):
        assert self.v.finish() == "PASS", self.v.read("result")
        assert self.quiet.finish() == "PASS", self.quiet.read("result")


class Served(Case):
    """Redis with a client that checks every reply and never reconnects; its address goes along."""
    address, args = VIP, ("--move-address", VIP)

    def __init__(self, c, watch, rnd):
        super().__init__(c, watch, rnd)
        self.redis = None
        self.start()

    def stop(self):
        if self.redis:
            self.redis.client.kill()
            self.redis.client.wait()
        for h in self.watch.values():
            outer = h.where(self.pid) if self.redis else None
            if outer:
                os.kill(outer, signal.SIGKILL)
            h.ask("ip addr del %s/32 dev eth0" % VIP)
        # Nobody announces it where the next one will be.
        self.c["client"].sh("ip neigh flush all")

    def start(self):
        self.stop()
        self.redis = Redis(self.c, "host1", megabytes=4, extra=("--logfile", self.c.dir + "/redis.log"))
        self.pid = self.redis.pid
        self.redis.start_client(seed=self.rnd.randrange(1 << 20))

    def check(self, host, run):
        assert " %s/" % VIP in self.watch[host].ask("ip -o addr"), "the address is not on " + host
        assert "PONG" in self.redis.cli("client", "ping"), run.text
        assert self.redis.client.poll() is None, "the client ended: " + run.text

    def finish(self):
        r = self.redis.stop_client()
        print("# client: %d requests, longest wait %.1f ms" % (r["requests"], r["longest_ms"]))
        assert r["errors"] == 0 and r["wrong"] == 0, r


class Crowded(Served):
    """The same with many more connections: saving them takes long enough to die amid it, with one in repair mode."""
    CROWD = 300

    def start(self):
        super().start()
        self.crowd = self.c["client"].popen(["/usr/bin/python3", os.path.join(TOP, "test/lib/crowd.py"), VIP, "6379",
                                             str(self.CROWD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.crowd.stdout.readline() == "%d\n" % self.CROWD

    def check(self, host, run):
        super().check(host, run)
        self.crowd.stdin.write("\n")
        self.crowd.stdin.flush()
        n = self.crowd.stdout.readline()
        assert n == "%d\n" % self.CROWD, "%s of %d connections answer" % (n.strip(), self.CROWD)
