"""What happens on a host, seen cheaply, hundreds of times in one test: processes from outside by /proc, the rest by one
shell that stays there.

    w = Watch(c, "host1")
    w.parts("cpr-worker", …)       pids as the test sees them
    w.where(pid)                   the same for a process of the host; None: it is gone
    w.left(pid)                    what a migration must not leave; [] is clean
    run = Run(c, "host1", pid, "host2", ...); run.wait_state("SEALED"); run.status; run.text
    beat = Beat(victim); beat.longest_ms(since_ns, until_ns)
"""
import json
import mmap
import os
import signal
import struct
import subprocess
import threading
import time

from bed import cgroup2, wait_for

PARTS = ("cpr-worker", "cpr-wire")


class Watch:
    def __init__(self, c, name):
        self.c, self.name, self.h = c, name, c[name]
        self.ns = os.readlink("/proc/%d/ns/pid" % self.h.init)
        self.shell = subprocess.Popen(self.h.enter("watch") + ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True)

    def ask(self, command):
        self.shell.stdin.write("{ %s\n} </dev/null 2>&1; echo; echo @@@\n" % command)
        self.shell.stdin.flush()
        out = []
        for line in self.shell.stdout:
            if line == "@@@\n":
                return "".join(out).rstrip("\n")
            out.append(line)
        raise RuntimeError("the shell on %s ended" % self.name)

    def inside(self):
        for d in os.listdir("/proc"):
            if d.isdigit():
                try:
                    if os.readlink("/proc/%s/ns/pid" % d) == self.ns:
                        yield int(d)
                except OSError:
                    pass

    def processes(self, *names):
        found = []
        for p in self.inside():
            try:
                if os.path.basename(os.readlink("/proc/%d/exe" % p)) in names:
                    found.append(p)
            except OSError:
                pass
        return found

    def parts(self, *names):
        """Of cpr itself: a vessel is a copy of its worker at first, and isn't meant."""
        wardens = self.processes("cpr-warden")
        found = []
        for p in self.processes(*names):
            try:
                stat = open("/proc/%d/stat" % p).read()
                name = os.path.basename(os.readlink("/proc/%d/exe" % p))
            except OSError:
                continue
            if name not in PARTS or int(stat.rsplit(")", 1)[1].split()[1]) in wardens:
                found.append(p)
        return found

    def where(self, pid, dead=False):
        """dead: a zombie counts as well, its number is taken."""
        for p in self.inside():
            try:
                text = open("/proc/%d/status" % p).read()
            except OSError:
                continue
            f = dict(l.split(":\t", 1) for l in text.splitlines() if ":\t" in l)
            if f["NSpid"].split()[-1] == str(pid) and (dead or f["State"][0] not in "ZX"):
                return p
        return None

    def frozen(self, outer):
        """By its cgroup: it runs nothing, whoever lives or dies."""
        try:
            group = open("/proc/%d/cgroup" % outer).read().split("0::", 1)[1].strip()
            return "frozen 1" in open(cgroup2() + group + "/cgroup.events").read()
        except OSError:
            return False

    def descriptors(self):
        """How many the agent and its warden have: a leak shows after many migrations."""
        n = {}
        for name in ("cpr-agent", "cpr-warden"):
            n[name] = sum(len(os.listdir("/proc/%d/fd" % p)) for p in self.processes(name))
        return n

    def left(self, pid=None, address=None):
        out = []
        if pid and self.where(pid, dead=True):
            out.append("pid %d is there" % pid)
        out += ["%s %d" % (name, p) for name in PARTS for p in self.processes(name)]
        text = self.ask("nft list tables; ip -o addr | sed 's/^/addr /';"
                        "find /sys/fs/cgroup -type d -name 'cpr-*-*-*-*-*' | sed 's/^/cgroup /';"
                        "for d in /sys/fs/cgroup/cpr/*/; do grep -qs 'populated 0' $d/cgroup.events && echo cgroup $d;"
                        " done; for j in /run/cpr/*.journal; do [ -e $j ] && echo journal $(cat $j); done")
        for l in text.splitlines():
            # A destination that was READY keeps a record: it may be asked. Of what was refused or undone none is kept.
            answer = "ready=1" in l and ("state=RUNNING" in l or "state=DISCARDED" in l)
            if l.startswith("table") and "cpr" in l or l.startswith("cgroup") or \
                    l.startswith("journal") and not answer or \
                    address and l.startswith("addr") and " %s/" % address in l:
                out.append(l)
        return out

    def settled(self, pid=None, address=None, seconds=10):
        """What is still left when what takes a moment has gone."""
        try:
            wait_for(lambda: not self.left(pid, address), seconds, 0.02)
            return []
        except TimeoutError:
            return self.left(pid, address)

    def forget_doubt(self, pid):
        """A source that is IN_DOUBT waits for a person: this one says that it is not needed here."""
        outer = self.where(pid)
        if outer:
            os.kill(outer, signal.SIGKILL)
            wait_for(lambda: not self.where(pid), 10)
        # Its own group, when it had one, stays frozen with whoever comes into it.
        self.ask("for g in $(find /sys/fs/cgroup -name cgroup.freeze); do grep -q 1 $g && echo 0 > $g; done;"
                 "nft list tables | grep cpr | while read t; do nft delete $t; done; rm -f /run/cpr/*.journal;"
                 "find /sys/fs/cgroup -type d -name 'cpr-*-*-*-*-*' -exec rmdir {} +")


def kill_all(pidfds):
    """SIGKILL to each; the time just before."""
    t = time.time_ns()
    for fd in pidfds:
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(fd)
    return t


def pidfds(pids):
    out = []
    for p in pids:
        try:
            out.append(os.pidfd_open(p))
        except ProcessLookupError:
            pass
    return out


class Run:
    """A migration under way, and the states it goes through."""
    def __init__(self, c, frm, pid, to, *args, env=None):
        self.started = time.monotonic()
        self.p = c[frm].popen(c.migrate_cmd(pid, to, "--json", *args), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        self.lines, self.states, self.cond = [], [], threading.Condition()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.p.stdout:
            with self.cond:
                self.lines.append(line)
                try:
                    e = json.loads(line)
                except ValueError:
                    e = {}
                if e.get("kind") == "state":
                    self.states.append(e.get("state"))
                self.cond.notify_all()
        with self.cond:
            self.states.append(None)
            self.cond.notify_all()

    def wait_state(self, name, seconds=30):
        """True when it came, False when the end came first."""
        with self.cond:
            self.cond.wait_for(lambda: name in self.states or None in self.states, seconds)
            return name in self.states

    @property
    def over(self):
        return None in self.states

    def end(self, seconds=90):
        self.status = self.p.wait(seconds)
        self.thread.join(10)
        self.seconds = time.monotonic() - self.started
        self.text = "".join(l for l in self.lines if '"kind":"round"' not in l)
        return self.status

    def done(self):
        for l in reversed(self.lines):
            if '"done"' in l.lower() and l.startswith("{"):
                return json.loads(l)
        return {}


class Beat:
    """The beats of the victim of that name."""
    BEATS = 16384

    def __init__(self, victim):
        path = os.path.join(victim.dir, "beat")
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path) >= 8 * (self.BEATS + 1))
        with open(path, "rb") as f:
            self.m = mmap.mmap(f.fileno(), 8 * (self.BEATS + 1), prot=mmap.PROT_READ)

    def times(self):
        n = struct.unpack_from("<Q", self.m, 0)[0]
        first = max(0, n - self.BEATS + 200)
        return [struct.unpack_from("<Q", self.m, 8 * (1 + i % self.BEATS))[0] for i in range(first, n)]

    def wait_after(self, t, seconds=10):
        wait_for(lambda: self.times()[-1:] > [t], seconds, 0.005)

    def longest_ms(self, since, until):
        """The longest stretch without a beat, as far as it lies after `since`."""
        last, worst = since, 0
        for t in self.times():
            if t > since:
                worst = max(worst, t - max(last, since))
                if t > until:
                    break
                last = t
        return worst / 1e6


def spread(values):
    v = sorted(values)
    if not v:
        return "none"
    at = lambda q: v[min(len(v) - 1, int(q * len(v)))]
    return "n %d, median %.1f, 90 %% %.1f, 99 %% %.1f, longest %.1f" % (len(v), at(.5), at(.9), at(.99), v[-1])
