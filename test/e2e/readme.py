#!/usr/bin/python3
"""What README.md tells a user to do on two hosts, done: each block after "On host1:" and the like, in order."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import BUILD, TOP, wait_for
from cluster import VIP, Cluster
from redis import Redis

tests = tap.Tests()
c = Cluster(agents=())
said = {}


def blocks():
    """(hosts, text) of each indented block that follows a paragraph ending in "On host1:", "on both hosts:" …"""
    text = open(os.path.join(TOP, "README.md")).read()
    found = re.findall(r"[Oo]n (host1|host2|both hosts):\n\n((?:    .*\n|\n(?=    ))+)", text)
    return [(("host1", "host2") if w == "both hosts" else (w,), re.sub("(?m)^    ", "", b)) for w, b in found]


def copy_to(host, files, directory):
    for f in files:
        there = os.path.join(c.dir, os.path.basename(f))
        c["host1"].sh("cp -p %s %s" % (f, there))
        c[host].sh("cp -p %s %s" % (there, directory))
        os.unlink(there)


def do(host, text):
    """As it stands there, but: the addresses of the test hosts, the build that is there already, no ssh."""
    text = text.replace("10.0.0.", c.bed.net + ".")
    text = re.sub(r"(?m)^make\b", "make -s BUILD=" + BUILD, text)
    out = ""
    for part in re.split(r"(?m)^((?:ssh|scp) .*)\n", text):
        words = part.split()
        if part.startswith("ssh "):
            c[words[1]].sh(" ".join(words[2:]))
        elif part.startswith("scp "):
            to, directory = words[-1].split(":")
            copy_to(to, words[2:-1], directory)
        elif part:
            out += c[host].run(["bash", "-ec", "cd %s\n%s" % (TOP, part)], timeout=600).stdout
    return out


def after(host, text):
    """What a user waits for without being told."""
    if "cpr-agent <" in text:
        wait_for(lambda: c[host].run(["cpr-migrate", "list"], check=False).returncode == 0, 20, 0.05)
    if "redis-server --bind" in text:
        wait_for(lambda: "PONG" in c["client"].run(["redis-cli", "-h", VIP, "ping"], check=False).stdout, 20, 0.05)
        client.start_client()
        wait_for(lambda: "cpr:counter" in client.cli("client", "keys", "cpr:counter"), 20, 0.05)


client = Redis.__new__(Redis)
client.c = c
client.dir = os.path.join(c.dir, "redis")
os.mkdir(client.dir)


@tests.add
def every_step():
    steps = blocks()
    assert len(steps) == 8, "%d blocks" % len(steps)
    for hosts, text in steps:
        for h in hosts:
            said[h] = do(h, text)
            if "--to host2" in text:
                assert "runs on host2" in said[h], said[h]
            if "--to host1" in text:
                assert "runs on host1" in said[h], said[h]
            after(h, text)


@tests.add
def the_client_did_not_notice():
    r = client.stop_client()
    assert not r["errors"] and not r["wrong"] and r["requests"] > 100, r


def logs():
    return "\n".join(c[h].sh("tail -30 /var/log/cpr-agent.log", check=False) for h in ("host1", "host2"))


try:
    tests.run(after=logs)
finally:
    c.down()
