#!/usr/bin/python3
"""What can't be moved is refused before anything is frozen, with its own code and a sentence; the process is unharmed
and the destination clean."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import BUILD, TOP, wait_for
from cluster import VIP, Cluster
from redis import Redis
from victims import Victim

tests = tap.Tests()
c = Cluster(hosts=("host1", "host2", "client", "host4"))
v = Victim(c, "threads", "host1")
n = [0]


def refused(pid, to, status, *words, args=(), clean=True):
    m = c.migrate(pid, "host1", to, *args)
    assert m.status == status, "exit status %d, not %d:\n%s" % (m.status, status, m.text)
    for w in words:
        assert w in m.text, "%r is not in:\n%s" % (w, m.text)
    assert v.goes_on(), v.read("result")
    if clean:
        for h in ("host1", "host2"):
            left = c.settled(h)
            assert not left, "left on %s: %s" % (h, left)
    return m.text


@tests.add
def no_such_process():
    refused(31999, "host2", 10, "31999")


@tests.add
def pid_1():
    refused(1, "host2", 11)


@tests.add
def the_agent_itself():
    pid = c["host1"].sh("cat /run/cpr/agent.pid 2>/dev/null || pgrep -x cpr-agent | head -1").split()[0]
    refused(pid, "host2", 11)


@tests.add
def not_a_number():
    refused("redis", "host2", 64, "redis")


@tests.add
def unknown_host():
    refused(v.pid, "host9", 20, "host9")


@tests.add
def host_without_an_agent():
    refused(v.pid, "client", 20, "client")


@tests.add
def no_local_agent():
    r = c["client"].run([os.path.join(BUILD, "cpr-migrate"), "--to", "host2", "1"], check=False)
    assert r.returncode == 32, r.stdout
    assert "agent" in r.stdout, r.stdout


@tests.add
def certificate_of_another_ca():
    d = os.path.join(c.dir, "otherpki")
    os.mkdir(d)
    tool = os.path.join(TOP, "tools/cpr-pki")
    subprocess.run([tool, "ca", d], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tool, "host", d, "host4"], check=True, stdout=subprocess.DEVNULL)
    args = [a.replace(c.pki, d) for a in c.agent_args("host4")] + ["--allow-peer", "host1"]
    args[args.index("--key") + 1] = d + "/host4.key"
    args[args.index("--cert") + 1] = d + "/host4.pem"
    c.start_agent("host4", args)
    refused(v.pid, "host4", 21, "certificate")


@tests.add
def policy_of_the_destination():
    p = Victim(c, "beat", "host4", tag="-policy")
    subprocess.run([os.path.join(TOP, "tools/cpr-pki"), "host", c.pki, "host4"], check=True, stdout=subprocess.DEVNULL)
    c.agents["host4"].terminate()
    c.agents["host4"].wait()
    wait_for(lambda: not c["host4"].sh("pgrep -x cpr-agent; true").strip(), 10, 0.1)
    c.start_agent("host4")
    r = c["host4"].run(c.migrate_cmd(p.pid, "host2"), check=False)
    assert r.returncode == 22, r.stdout
    assert "host4" in r.stdout and "allow-peer" in r.stdout, r.stdout
    assert p.goes_on()
    c["host4"].kill(p.pid)


@tests.add
def pid_taken():
    c["host2"].sh("echo %d > /proc/sys/kernel/ns_last_pid; setsid sleep 300 >/dev/null 2>&1 </dev/null & true" % (v.pid - 1))
    wait_for(lambda: c["host2"].alive(v.pid), 5)
    refused(v.pid, "host2", 13, str(v.pid))
    c["host2"].kill(v.pid)
    wait_for(lambda: not c["host2"].alive(v.pid), 5)


@tests.add
def program_missing_and_different():
    prog = "/opt/victim"
    for h in ("host1", "host2"):
        c[h].sh("mkdir -p /opt")
    c["host1"].sh("cp %s/victims/beat %s" % (BUILD, prog))
    d = os.path.join(c.dir, "opt")
    os.mkdir(d)
    os.chmod(d, 0o777)
    pid = c["host1"].daemon([prog, d])
    wait_for(lambda: os.path.exists(d + "/ready"))
    refused(pid, "host2", 14, prog)
    c["host2"].sh("cp %s/victims/beat %s; printf x | dd of=%s bs=1 seek=5000 conv=notrunc 2>/dev/null" % (BUILD, prog, prog))
    refused(pid, "host2", 15, prog)
    c["host2"].sh("cp %s/victims/beat %s" % (BUILD, prog))
    m = c.migrate(pid, "host1", "host2", "--verify")
    assert m.ok, m.text
    c["host2"].kill(pid)


@tests.add
def everything_at_once():
    p = Victim(c, "refused", "host1")
    text = refused(p.pid, "host2", 12, "inotify", "unix")
    assert p.goes_on()
    assert "fd " in text, text
    c["host1"].kill(p.pid)


@tests.add
def an_address_that_stays_behind():
    r = Redis(c, megabytes=1)
    refused(r.pid, "host2", 17, VIP, "--move-address")
    assert r.info("host1", "run_id") == r.run_id
    m = c.migrate(r.pid, "host1", "host2", "--move-address", VIP + "/32@nosuchdev")
    assert m.status == 17 and "nosuchdev" in m.text, m.text
    c["host1"].kill(r.pid)
    c["host1"].sh("ip addr del %s/32 dev eth0" % VIP)


@tests.add
def usage():
    for args, word in (([], "--to"), (["--downtime", "soon", "--to", "host2", "5"], "soon"),
                       (["--no-such-option", "--to", "host2", "5"], "no-such-option"),
                       (["--move-address", "10.0.0.300", "--to", "host2", str(v.pid)], "10.0.0.300"),
                       (["--tracking", "magic", "--to", "host2", str(v.pid)], "magic"),
                       (["--to", "host2", "5", "6"], "")):
        r = c["host1"].run([os.path.join(BUILD, "cpr-migrate"), *args], check=False)
        assert r.returncode == 64, "%s: %d %s" % (args, r.returncode, r.stdout)
        assert word in r.stdout, r.stdout


@tests.add
def the_victim_was_never_harmed():
    assert v.finish() == "PASS", v.read("result")


def logs():
    return c.agent_log("host1")[-3000:] + c.agent_log("host2")[-3000:]


try:
    tests.run(after=logs)
finally:
    c.down()
