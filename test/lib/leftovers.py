"""What tests can leave on the machine, and taking it away.

    before = leftovers.found()
    ... tests ...
    leftovers.found() - before       texts: what has been left
    leftovers.sweep()                removes what dead runs left

Names carry the pid of the run that they belong to (cpr-run-PID, cpr-bed-PID-…): what a live one owns is not left over.
"""
import os
import re
import shutil
import subprocess

from bed import BUILD, cgroup2, remove_cgroup

OWNED = re.compile(r"cpr-(?:run|bed)-(\d+)\b")


def owner_lives(name):
    m = OWNED.match(name)
    return bool(m) and os.path.exists("/proc/" + m.group(1))


def names(folder, prefix="cpr-"):
    try:
        return [n for n in os.listdir(folder) if n.startswith(prefix)]
    except OSError:
        return []


def cgroups():
    root = cgroup2()
    for d, subs, _ in os.walk(root):
        for s in list(subs):
            if owner_lives(s):
                subs.remove(s)
            elif s.startswith("cpr-") or (s == "cpr" and names(os.path.join(d, s), "")):
                yield os.path.join(d, s)


def processes():
    """Whose program is of this build, or was."""
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            exe = os.readlink("/proc/%s/exe" % pid)
        except OSError:
            continue
        if exe.startswith(BUILD + "/") or exe.startswith(BUILD + "-"):
            yield "process %s %s" % (pid, exe)


def tables():
    r = subprocess.run(["nft", "list", "tables"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL, text=True)
    return [l for l in r.stdout.splitlines() if "cpr" in l]


def found():
    out = set(processes())
    out |= {"cgroup " + g for g in cgroups()}
    out |= {"nft " + t for t in tables()}
    for folder in ("/tmp", "/dev/shm", "/run/netns"):
        out |= {"file %s/%s" % (folder, n) for n in names(folder) if not owner_lives(n)}
    out |= {"interface " + n for n in os.listdir("/sys/class/net") if re.match(r"v(host\d|client)|br-cpr", n)}
    return out


def sweep():
    root = cgroup2()
    for n in names(root):
        if OWNED.match(n) and not owner_lives(n):
            remove_cgroup(os.path.join(root, n))
    for n in names("/tmp"):
        if OWNED.match(n) and not owner_lives(n):
            shutil.rmtree(os.path.join("/tmp", n), ignore_errors=True)
    for n in names(os.path.join(BUILD, "tmp")):
        if OWNED.match(n) and not owner_lives(n):
            shutil.rmtree(os.path.join(BUILD, "tmp", n), ignore_errors=True)
