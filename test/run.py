#!/usr/bin/python3
"""Runs the test suite; every test program speaks TAP ("ok", "not ok", "# SKIP reason").

    run.py check | check-full | demo | bench | torture | one NAME... | unit [NAME...]

Ends with one line: N passed, N failed, N skipped. Interrupted or killed, it leaves nothing: unit tests live in a cell
each (lib/cell.sh), hosts of end-to-end tests on processes that die with their test, tests die with this program, and a
guard, which sees it end, removes cgroups and files.
"""
import ctypes
import glob
import os
import re
import signal
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "test/lib"))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(TOP, "build")))
PY = "/usr/bin/python3"
NAME = "cpr-run-%d" % os.getpid()
libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Interrupted(Exception):
    pass


def interrupted(sig, frame):
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)  # once is enough
    raise Interrupted(signal.Signals(sig).name)


def start_guard():
    """A process that outlives this one and removes what it left; it has nothing else to do, and ends with the job."""
    r, w = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(r)
        return w
    os.setsid()
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(s, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, r)
    os.closerange(r + 1, 1024)
    parent = os.getppid()
    os.read(r, 1)  # its end
    import leftovers
    from bed import wait_for
    try:
        wait_for(lambda: not os.path.exists("/proc/%d" % parent), 10)
        # tests that were killed with it have owners that are dead a moment later
        wait_for(lambda: not leftovers.sweep() and not any(leftovers.cgroups()), 10, 0.2)
    except TimeoutError:
        pass
    os._exit(0)


def cell(name):
    """The command that runs a test in its own cell."""
    import bed
    cg = os.path.join(bed.cgroup2(), NAME, name)
    tmp = os.path.join(BUILD, "tmp", NAME, name)
    os.makedirs(cg, exist_ok=True)
    os.makedirs(tmp)
    os.chmod(tmp, 0o1777)
    return ["bash", os.path.join(TOP, "test/lib/cell.sh"), cg, tmp]


def clear_cells():
    import shutil
    import bed
    bed.remove_cgroup(os.path.join(bed.cgroup2(), NAME))
    shutil.rmtree(os.path.join(BUILD, "tmp", NAME), ignore_errors=True)


def make(*args, build=BUILD, quiet=True):
    cmd = ["make", "-s", "-j2", "BUILD=" + build, *args]
    r = subprocess.run(cmd, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode:
        print(r.stdout[-6000:])
    return r.returncode == 0


class Tally:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], []

    def one(self, name, ok, text=""):
        if ok:
            self.passed += 1
            print("ok       %s" % name, flush=True)
        else:
            self.failed.append(name)
            print("NOT OK   %s\n%s" % (name, text), flush=True)

    def tap(self, program, out, status):
        seen = 0
        for line in out.splitlines():
            m = re.match(r"\s*(not ok|ok)\b(?:\s+\d+)?(?:\s+-)?\s*(.*)", line)
            if not m:
                continue
            seen += 1
            name = "%s: %s" % (program, m.group(2))
            if re.search(r"#\s*SKIP", line, re.I):
                self.skipped.append(name)
                print("skipped  %s" % name, flush=True)
            else:
                self.one(name, m.group(1) == "ok")
        if status or not seen:
            self.failed.append("%s: exit status %d" % (program, status))
        if status or not seen or "not ok" in out:
            print("---- %s: exit status %s\n%s\n----" % (program, status, out[-8000:]), flush=True)

    def close(self):
        if self.failed:
            print("\nfailed:\n  " + "\n  ".join(self.failed))
        print("%d passed, %d failed, %d skipped" % (self.passed, len(self.failed), len(self.skipped)), flush=True)
        return 1 if self.failed else 0


def stop(p):
    """Ends a test's processes: asked first, so that it takes down its hosts; its last words."""
    out = ""
    for sig, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, None)):
        try:
            os.killpg(p.pid, sig)
        except ProcessLookupError:
            pass
        try:
            out, _ = p.communicate(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            pass
    return out or ""


def run(tally, program, cmd, timeout, env=None):
    t = time.monotonic()
    e = dict(os.environ, BUILD=BUILD, CMOCKA_MESSAGE_OUTPUT="TAP", PYTHONDONTWRITEBYTECODE="1", **(env or {}))
    p = subprocess.Popen(cmd, cwd=TOP, env=e, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, start_new_session=True, errors="replace", preexec_fn=die_with_parent)
    try:
        out, _ = p.communicate(timeout=timeout)
        status = p.returncode
    except subprocess.TimeoutExpired:
        out, status = stop(p) + "\ntimed out after %d s" % timeout, 124
    except BaseException:
        stop(p)
        raise
    tally.tap(program, out, status)
    print("         %s took %.1f s" % (program, time.monotonic() - t), flush=True)


def e2e(tally, names, env=None, tag="", timeout=900):
    for path in sorted(glob.glob(os.path.join(TOP, "test/e2e/*.py"))):
        n = os.path.basename(path)[:-3]
        if names is None or n in names:
            run(tally, "e2e/" + n + tag, [PY, path], timeout, env)


def units(tally, build=BUILD, tag="", only=(), env=None):
    for source in sorted(glob.glob(os.path.join(TOP, "test/unit/*.c"))):
        n = os.path.basename(source)[:-2]
        if not only or n in only:
            run(tally, "unit/" + n + tag, cell(n + tag.replace(" ", "")) + [os.path.join(build, "unit", n)], 180, env)
    clear_cells()


def scripts(tally, *names):
    for n in names or sorted(os.path.basename(p) for p in glob.glob(os.path.join(TOP, "test/check-*.sh"))):
        run(tally, n, ["sh", os.path.join("test", n)], 600)


BUILDING = ("check-clang.sh", "check-arm64.sh", "check-man.sh")  # need a compiler's time, or what it made


def check(tally):
    scripts(tally, *sorted(n for n in map(os.path.basename, glob.glob(os.path.join(TOP, "test/check-*.sh")))
                           if n not in BUILDING))
    built = make("all", "unit", "victims", "benches")
    tally.one("build", built)
    scripts(tally, *BUILDING)
    if built:
        units(tally)
        e2e(tally, None)
        run(tally, "demo", [PY, "test/demo.py", "--tap"], 300)


def check_full(tally):
    check(tally)
    for i in range(4):
        units(tally, tag=" (again %d)" % (i + 1))
    san = BUILD + "-san"
    if make("all", "unit", "victims", "SAN=address,undefined", build=san):
        units(tally, san, " (sanitized)", env={"BUILD": san})
        e2e(tally, None, {"BUILD": san, "CPR_FULL": "0"}, " (sanitized)", 1500)
    else:
        tally.one("sanitized build", False)
    e2e(tally, None, {"CPR_FULL": "1"}, " (full)", 3600)


def tested(what, rest):
    """Runs tests with nothing left behind; exit status."""
    import leftovers
    tally, t = Tally(), time.monotonic()
    leftovers.sweep()
    before = leftovers.found()
    guard = start_guard()
    try:
        if what == "check":
            check(tally)
        elif what == "check-full":
            check_full(tally)
        elif what == "torture":
            if make("all", "victims"):
                e2e(tally, ["kill"], {"CPR_FULL": "1"}, timeout=3600)
        elif make("all", "unit", "victims", "benches"):
            (e2e if what == "one" else lambda y, n: units(y, only=n))(tally, rest)
        leftovers.sweep()
        left = sorted(leftovers.found() - before)
        tally.one("nothing is left on the machine", not left, "  " + "\n  ".join(left))
    except Interrupted as e:
        tally.failed.append("interrupted by " + str(e))
    finally:
        clear_cells()
        leftovers.sweep()
        os.close(guard)
    print("%.0f s" % (time.monotonic() - t))
    return tally.close()


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ("check", "check-full", "demo", "bench", "torture", "one", "unit"):
        sys.exit(__doc__)
    os.chdir(TOP)
    what, rest = sys.argv[1], sys.argv[2:]
    if os.environ.get("MAKELEVEL"):
        libc.prctl(1, signal.SIGTERM)  # a make that is killed does not tell
    if what == "demo":
        if not make("all"):
            return 1
        os.execv(PY, [PY, "test/demo.py", *rest])
    if what == "bench":
        if not make("all", "benches"):
            return 1
        os.execv(PY, [PY, "test/bench/bench.py", *rest])
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, interrupted)
    return tested(what, rest)


if __name__ == "__main__":
    sys.exit(main())
