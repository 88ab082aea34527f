#!/usr/bin/python3
"""--keep-state: what went over the wire, read by crit of Debian's criu package."""
import glob
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from cluster import VIP, Cluster
from redis import Redis

tests = tap.Tests()
c = Cluster()
r = Redis(c, megabytes=8)
r.start_client()
keep = os.path.join(c.dir, "state")


def crit(*args):
    return subprocess.run(["crit", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def decode(name):
    return json.loads(crit("decode", "-i", os.path.join(keep, name)))["entries"]


@tests.add
def a_state_is_kept():
    m = c.migrate(r.pid, "host1", "host2", "--keep-state", keep, "--move-address", VIP + "/32@eth0")
    assert m.ok, m.text + c.agent_log("host1")
    got = r.stop_client()
    assert not got["errors"] and not got["wrong"], got
    assert os.stat(keep).st_mode & 0o777 == 0o700


@tests.add
def crit_decodes_and_encodes_every_file():
    names = sorted(os.path.basename(p) for p in glob.glob(keep + "/*.img"))
    for want in ("inventory.img", "pstree.img", "core-%d.img" % r.pid, "mm-%d.img" % r.pid, "pagemap-%d.img" % r.pid,
                 "files.img", "fdinfo-%d.img" % r.pid):
        assert any(n == want or (want.startswith("fdinfo") and n.startswith("fdinfo")) for n in names), (want, names)
    for n in names:
        if n.startswith("pages-"):
            continue
        entries = decode(n)
        assert entries, n
        back = os.path.join(c.dir, "again.img")
        js = os.path.join(c.dir, "again.json")
        crit("decode", "-i", os.path.join(keep, n), "-o", js)
        crit("encode", "-i", js, "-o", back)
        assert os.path.getsize(back) <= os.path.getsize(os.path.join(keep, n)), n


@tests.add
def entries_say_what_is_true():
    assert decode("inventory.img")[0]["img_version"] == 2
    tree = decode("pstree.img")[0]
    assert tree["pid"] == r.pid and r.pid in tree["threads"], tree
    core = decode("core-%d.img" % r.pid)[0]
    assert core["tc"]["comm"] == "redis-server", core["tc"]["comm"]
    mm = decode("mm-%d.img" % r.pid)[0]
    assert len(mm["vmas"]) > 20
    pages = sum(e.get("nr_pages", 0) for e in decode("pagemap-%d.img" % r.pid)[1:])
    data = sum(os.path.getsize(p) for p in glob.glob(keep + "/pages-*.img"))
    assert 8 << 20 <= pages * 4096 <= data, (pages, data)
    inet = [e for e in decode("files.img") if "isk" in e]
    assert len(inet) >= 2, "a listener and a connection"


@tests.add
def crit_shows_processes_descriptors_and_memory():
    assert "redis-server" in crit("x", keep, "ps")
    assert crit("x", keep, "fds").strip()
    assert "/usr/bin/redis" in crit("x", keep, "mems")


try:
    tests.run()
finally:
    c.down()
