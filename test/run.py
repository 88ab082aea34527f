#!/usr/bin/python3
"""Runs the test suite; every test program speaks TAP ("ok", "not ok", "# SKIP reason").

    run.py check | check-full | demo | bench | torture | one NAME...

Ends with one line: N passed, N failed, N skipped.
"""
import glob
import os
import re
import signal
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(TOP, "build")))
PY = "/usr/bin/python3"


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


def run(tally, program, cmd, timeout, env=None):
    t = time.monotonic()
    e = dict(os.environ, BUILD=BUILD, CMOCKA_MESSAGE_OUTPUT="TAP", **(env or {}))
    p = subprocess.Popen(cmd, cwd=TOP, env=e, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, start_new_session=True, errors="replace")
    try:
        out, _ = p.communicate(timeout=timeout)
        status = p.returncode
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGTERM)
        try:
            out, _ = p.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            out, _ = p.communicate()
        status = 124
        out += "\ntimed out after %d s" % timeout
    except KeyboardInterrupt:
        os.killpg(p.pid, signal.SIGTERM)
        raise
    tally.tap(program, out, status)
    print("         %s took %.1f s" % (program, time.monotonic() - t), flush=True)


def e2e(tally, names, env=None, tag="", timeout=900):
    for path in sorted(glob.glob(os.path.join(TOP, "test/e2e/*.py"))):
        n = os.path.basename(path)[:-3]
        if names is None or n in names:
            run(tally, "e2e/" + n + tag, [PY, path], timeout, env)


def units(tally, build=BUILD, tag=""):
    for path in sorted(glob.glob(os.path.join(build, "unit/*"))):
        if os.access(path, os.X_OK) and not path.endswith(".d") and os.path.isfile(path):
            run(tally, "unit/" + os.path.basename(path) + tag, [path], 180)


def static_checks(tally):
    for path in sorted(glob.glob(os.path.join(TOP, "test/check-*.sh"))):
        run(tally, os.path.basename(path), ["sh", path], 600)


def check(tally):
    static_checks(tally)
    if not make("all", "unit", "victims", "benches"):
        tally.one("build", False)
        return
    tally.one("build", True)
    units(tally)
    e2e(tally, None)
    run(tally, "demo", [PY, "test/demo.py", "--tap"], 300)


def check_full(tally):
    check(tally)
    san = BUILD + "-san"
    if make("all", "unit", "SAN=address,undefined", build=san):
        units(tally, san, " (sanitized)")
        e2e(tally, None, {"BUILD": san, "CPR_FULL": "0"}, " (sanitized)")
    else:
        tally.one("sanitized build", False)
    e2e(tally, None, {"CPR_FULL": "1"}, " (full)", 3600)


def main():
    os.chdir(TOP)
    what, rest = sys.argv[1], sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))
    if what == "demo":
        if not make("all"):
            return 1
        return subprocess.call([PY, "test/demo.py", *rest])
    if what == "bench":
        if not make("all", "benches"):
            return 1
        return subprocess.call([PY, "test/bench/bench.py", *rest])
    tally = Tally()
    t = time.monotonic()
    try:
        if what == "check":
            check(tally)
        elif what == "check-full":
            check_full(tally)
        elif what == "torture":
            if make("all", "victims"):
                e2e(tally, ["kill"], {"CPR_FULL": "1"}, timeout=3600)
        elif what == "one":
            if make("all", "unit", "victims"):
                e2e(tally, rest)
        else:
            sys.exit(__doc__)
    except KeyboardInterrupt:
        tally.failed.append("interrupted")
    print("%.0f s" % (time.monotonic() - t))
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
