"""Test hosts: network + PID + mount (+ UTS, IPC, time, cgroup) namespaces on one bridge.

    bed = Bed()                      h1 10.77.0.1, h2 10.77.0.2, cl 10.77.0.3
    h1 = bed["h1"]
    h1.run(["ip", "addr"])           inside; raises when it fails
    p = h1.popen([...])              in the background
    bed.down()                       kills PID 1 of each: all of it is gone

Everything hangs on processes that die with this one (also when it is killed): the bridge lives in a namespace of its
own. Only cgroup directories and the shared directory can outlive it; the next Bed() sweeps them.
"""
import atexit
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(TOP, "build")))
PREFIX = "cpr-bed-"
libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setsid()


def cgroup2():
    for line in open("/proc/self/mountinfo"):
        left, right = line.split(" - ")
        if right.split()[0] == "cgroup2":
            return left.split()[4]
    raise SystemExit("no cgroup2 is mounted here: the test hosts need it")


def wait_for(what, seconds=20, step=0.01):
    """Polls until what() is true; its value. Raises after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        v = what()
        if v:
            return v
        if time.monotonic() > end:
            raise TimeoutError(getattr(what, "__doc__", None) or "condition not met in %g s" % seconds)
        time.sleep(step)


class Host:
    def __init__(self, bed, name, index, first_pid, monotonic):
        self.bed, self.name, self.ip = bed, name, "%s.%d" % (bed.net, index)
        self.ip6 = "fd77::%d" % index
        self.cg = os.path.join(bed.cg, name)
        os.makedirs(self.cg)
        ready = os.path.join(bed.dir, name + ".ready")
        os.mkfifo(ready)
        args = ["unshare", "--net", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--uts",
                "--ipc", "--time", "--monotonic=%d" % monotonic, "--boottime=%d" % monotonic,
                "bash", "-c", 'echo 0 > "$0/cgroup.procs"; exec unshare --cgroup bash "$@"', self.cg,
                os.path.join(TOP, "test/lib/host-init.sh"), name, str(first_pid), bed.dir, ready]
        self.log = os.path.join(bed.dir, name + ".init.log")
        self.unshare = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=open(self.log, "w"),
                                        stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        fd = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
        try:
            wait_for(lambda: os.read(fd, 16) or (self.unshare.poll() is not None), 30)
        finally:
            os.close(fd)
        if self.unshare.poll() is not None:
            raise RuntimeError("host %s did not start: %s" % (name, open(self.log).read()))
        pid = self.unshare.pid
        self.init = int(open("/proc/%d/task/%d/children" % (pid, pid)).read().split()[0])

    def enter(self, cg="enter"):
        d = os.path.join(self.cg, cg)
        os.makedirs(d, exist_ok=True)
        return ["bash", "-c", 'echo 0 > "$0/cgroup.procs"; exec "$@"', d, "nsenter", "-t", str(self.init), "-m", "-u",
                "-i", "-n", "-p", "-C", "-T", "-r", "-w", "--"]

    def run(self, cmd, check=True, timeout=120, cg="enter", **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.STDOUT)
        r = subprocess.run(self.enter(cg) + cmd, timeout=timeout, text=True, **kw)
        if check and r.returncode:
            raise RuntimeError("%s: %s: exit %d\n%s" % (self.name, " ".join(cmd), r.returncode, r.stdout))
        return r

    def sh(self, text, **kw):
        return self.run(["bash", "-c", text], **kw).stdout

    def popen(self, cmd, cg="enter", **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.enter(cg) + cmd, preexec_fn=die_with_parent, **kw)

    def daemon(self, cmd, cg="svc", env="", stdout="/dev/null", uid=None, cwd="/"):
        """Starts cmd as a service would be: own session, no terminal, stdin and stdout from files; its pid inside."""
        pidfile = os.path.join(self.bed.dir, "pid.%d" % time.monotonic_ns())
        quoted = " ".join("'" + c.replace("'", "'\\''") + "'" for c in cmd)
        user = "" if uid is None else "setpriv --reuid=%d --regid=%d --clear-groups --inh-caps=-all " % (uid, uid)
        text = "cd %s; setsid bash -c 'echo $$ > %s.tmp; mv %s.tmp %s; exec \"$@\"' - %s%s </dev/null >%s 2>&1 &" % (
            cwd, pidfile, pidfile, pidfile, (env + " ") if env else "", user + quoted, stdout)
        if env:
            text = text.replace(" - " + env + " ", " - env " + env + " ")
        # nsenter's own children end up below PID 1 of the host
        self.run(["bash", "-c", text], cg=cg, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(pidfile))
        pid = int(open(pidfile).read())
        os.unlink(pidfile)
        return pid

    def alive(self, pid):
        s = self.status(pid)
        return bool(s) and s.get("State", "Z")[0] not in "ZX"

    def status(self, pid):
        r = self.run(["cat", "/proc/%d/status" % pid], check=False)
        if r.returncode:
            return {}
        return dict(l.split(":\t", 1) for l in r.stdout.splitlines() if ":\t" in l)

    def kill(self, pid, sig="KILL"):
        return self.run(["kill", "-" + sig, str(pid)], check=False).returncode == 0


class Bed:
    def __init__(self, hosts=("h1", "h2", "cl"), net="10.77.0"):
        self.net = net
        self.cgroot = cgroup2()
        self.sweep()
        self.dir = tempfile.mkdtemp(prefix=PREFIX + "%d-" % os.getpid(), dir="/tmp")
        os.chmod(self.dir, 0o755)
        self.cg = os.path.join(self.cgroot, os.path.basename(self.dir))
        os.makedirs(self.cg)
        self.hosts = {}
        atexit.register(self.down)
        for sig in (signal.SIGTERM, signal.SIGHUP):  # their default would skip atexit
            if signal.getsignal(sig) == signal.SIG_DFL:
                signal.signal(sig, lambda n, frame: sys.exit(128 + n))
        self.switch = subprocess.Popen(["unshare", "--net", "--kill-child", "--fork", "sleep", "1000000"],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
        kids = "/proc/%d/task/%d/children" % (self.switch.pid, self.switch.pid)
        self.sw = int(wait_for(lambda: open(kids).read().split())[0])
        self.in_switch(["ip", "link", "add", "br0", "type", "bridge"])
        self.in_switch(["ip", "link", "set", "br0", "up"])
        for i, name in enumerate(hosts):
            self.add(name, i + 1, 2000 + 9000 * i if i < 3 else 30000, 40000 * (i + 1) + 123)

    def in_switch(self, cmd):
        subprocess.run(["nsenter", "-t", str(self.sw), "-n"] + cmd, check=True, stdin=subprocess.DEVNULL)

    def add(self, name, index, first_pid, monotonic):
        h = Host(self, name, index, first_pid, monotonic)
        self.hosts[name] = h
        subprocess.run(["ip", "link", "add", "v" + name, "netns", str(self.sw), "type", "veth", "peer", "name", "eth0",
                        "netns", str(h.init)], check=True)
        self.in_switch(["ip", "link", "set", "v" + name, "master", "br0", "up"])
        h.sh("ip link set lo up; ip addr add %s/24 dev eth0; ip -6 addr add %s/64 dev eth0 nodad; ip link set eth0 up"
             % (h.ip, h.ip6))

    def __getitem__(self, name):
        return self.hosts[name]

    def down(self):
        atexit.unregister(self.down)
        for h in self.hosts.values():
            try:
                os.kill(h.init, signal.SIGKILL)
            except ProcessLookupError:
                pass
            h.unshare.wait()
        self.hosts = {}
        self.switch.kill()
        self.switch.wait()
        remove_cgroup(self.cg)
        shutil.rmtree(self.dir, ignore_errors=True)

    def sweep(self):
        """What a killed run left: cgroups and directories whose owner is dead (its processes died with it)."""
        for base in (self.cgroot, "/tmp"):
            for n in os.listdir(base):
                if n.startswith(PREFIX) and not os.path.exists("/proc/" + n[len(PREFIX):].split("-")[0]):
                    path = os.path.join(base, n)
                    remove_cgroup(path) if base == self.cgroot else shutil.rmtree(path, ignore_errors=True)


def remove_cgroup(path):
    def gone():
        if not os.path.isdir(path):
            return True
        try:
            with open(os.path.join(path, "cgroup.kill"), "w") as f:
                f.write("1")
        except OSError:
            pass
        for d, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(d)
            except OSError:
                pass
        return not os.path.isdir(path)
    try:
        wait_for(gone, 10)
    except TimeoutError:
        print("left over: " + path, file=sys.stderr)
