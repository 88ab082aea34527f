"""Two hosts with an agent each, and a client host: what most end-to-end tests need.

    c = Cluster()
    c.migrate(pid, "host1", "host2", "--verify")   -> Result
    c.clean("host1", pid)                          -> list of leftovers there
    c.down()
"""
import json
import os
import re
import signal
import subprocess

import bed
from bed import BUILD, TOP, wait_for

VIP = "10.77.0.100"
VIP6 = "fd77::100"


class Result:
    def __init__(self, r):
        self.status, self.text = r.returncode, r.stdout
        self.events = []
        for line in r.stdout.splitlines():
            if line.startswith("{"):
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    pass

    @property
    def ok(self):
        return self.status == 0

    def done(self):
        for e in reversed(self.events):
            if e.get("kind") in ("DONE", "done"):
                return e
        return {}


class Cluster:
    def __init__(self, hosts=("host1", "host2", "client"), agents=("host1", "host2"), start=True, extra=()):
        self.bed = bed.Bed(hosts)
        self.dir = self.bed.dir
        self.agents = {}
        self.names = list(agents)
        self.extra = list(extra)
        # Where sanitizers write (make SAN=...); cpr-wire, which has no environment and may open nothing, writes to the log
        self.reports = os.path.join(self.dir, "reports")
        os.mkdir(self.reports)
        os.chmod(self.reports, 0o1777)
        log_path = "log_path=%s/report:%s" % (self.reports, "log_exe_name=1")
        self.env = dict(os.environ, ASAN_OPTIONS=log_path, UBSAN_OPTIONS=log_path + ":print_stacktrace=1")
        self.pki = os.path.join(self.dir, "pki")
        os.mkdir(self.pki)
        tool = os.path.join(TOP, "tools/cpr-pki")
        subprocess.run([tool, "ca", self.pki], check=True, stdout=subprocess.DEVNULL)
        for h in agents:
            subprocess.run([tool, "host", self.pki, h], check=True, stdout=subprocess.DEVNULL)
        hostsfile = "127.0.0.1 localhost\n" + "".join("%s %s\n" % (h.ip, n) for n, h in self.bed.hosts.items())
        for h in self.bed.hosts.values():
            h.sh("cat > /etc/hosts <<'X'\n%sX\nmkdir -p /run/cpr" % hostsfile)
        if start:
            for h in agents:
                self.start_agent(h)

    def __getitem__(self, name):
        return self.bed[name]

    def agent_args(self, name):
        a = [os.path.join(BUILD, "cpr-agent"), "--name", name, "--listen", "%s:7077" % self.bed[name].ip, "--api",
             "/run/cpr/api.sock", "--ca", self.pki + "/ca.pem", "--cert", "%s/%s.pem" % (self.pki, name), "--key",
             "%s/%s.key" % (self.pki, name), "--programs", BUILD]
        for o in self.names:
            if o != name:
                a += ["--allow-peer", o]
        return a + self.extra

    def start_agent(self, name, args=None):
        log = open(os.path.join(self.dir, name + ".agent.log"), "a")
        p = self.bed[name].popen(args or self.agent_args(name), cg="agent", stdout=log, stderr=log,
                                 env=self.env)
        self.agents[name] = p

        def up():
            """the agent does not answer"""
            if p.poll() is not None:
                raise RuntimeError("agent of %s ended: %s" % (name, self.agent_log(name)))
            return self.bed[name].run([os.path.join(BUILD, "cpr-migrate"), "list"], check=False).returncode == 0
        wait_for(up, 20, 0.05)
        return p

    def stop_agent(self, name):
        """The agent itself: what popen started is the nsenter around it."""
        p = self.agents.pop(name)
        for pid in open("/proc/%d/task/%d/children" % (p.pid, p.pid)).read().split():
            os.kill(int(pid), signal.SIGTERM)
        p.wait(20)

    def agent_log(self, name):
        return open(os.path.join(self.dir, name + ".agent.log")).read()

    def migrate_cmd(self, pid, to, *args):
        return [os.path.join(BUILD, "cpr-migrate"), "--to", to, *map(str, args), str(pid)]

    def migrate(self, pid, frm, to, *args, timeout=120):
        return Result(self.bed[frm].run(self.migrate_cmd(pid, to, *args), check=False, timeout=timeout))

    def leftovers(self, name, pid=None, address=None):
        """What a finished migration must not leave on a host: all that is found, as text."""
        h, out = self.bed[name], []
        if pid and h.alive(pid):
            out.append("pid %d lives" % pid)
        t = h.sh("nft list tables 2>/dev/null", check=False)
        out += ["nft " + l for l in t.splitlines() if "cpr" in l]
        if address and address in h.sh("ip addr"):
            out.append("address " + address)
        for l in h.sh("ps -eo pid,comm,args --no-headers").splitlines():
            if re.search(r"cpr-(worker|wire)$", l.split()[1]):
                out.append("process " + l.strip())
        # groups with nobody in them
        for l in h.sh("find /sys/fs/cgroup -name 'cpr*' -type d", check=False).splitlines():
            if "populated 0" in h.sh("cat %s/cgroup.events" % l, check=False):
                out.append("cgroup " + l)
        return out

    def settled(self, name, pid=None, address=None, seconds=5):
        """Leftovers, once those that only take a moment have gone."""
        try:
            wait_for(lambda: not self.leftovers(name, pid, address), seconds, 0.05)
            return []
        except TimeoutError:
            return self.leftovers(name, pid, address)

    def sanitizer_reports(self):
        found = [open(os.path.join(self.reports, n), errors="replace").read() for n in sorted(os.listdir(self.reports))]
        for h in self.agents:
            log = self.agent_log(h)
            at = re.search(r"ERROR: \w+Sanitizer|runtime error:", log)
            if at:
                found.append("log of %s: %s" % (h, log[max(at.start() - 200, 0):at.start() + 4000]))
        return found

    def down(self):
        found = self.sanitizer_reports() if os.path.isdir(self.reports) else []
        self.bed.down()
        assert not found, "%d sanitizer reports:\n%s" % (len(found), "\n".join(found)[:8000])
