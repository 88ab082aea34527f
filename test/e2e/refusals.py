#!/usr/bin/python3
"""What can't be moved is refused before anything is frozen, with its own code and a sentence; the process is unharmed
and the destination clean."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import BUILD, TOP, wait_for
from cluster import VIP, Cluster
from redis import Redis
from victims import Victim

PKI = os.path.join(TOP, "tools/cpr-pki")
AGENT = os.path.join(BUILD, "cpr-agent")
MIGRATE = os.path.join(BUILD, "cpr-migrate")

tests = tap.Tests()
c = Cluster(hosts=("host1", "host2", "client", "host4"))
v = Victim(c, "threads", "host1")


def nothing_left():
    for h in ("host1", "host2"):
        left = c.settled(h)
        assert not left, "left on %s: %s" % (h, left)


def says(text, *words):
    for w in words:
        assert w in text, "%r is not in:\n%s" % (w, text)


def refused(pid, to, status, *words, args=(), clean=True):
    m = c.migrate(pid, "host1", to, *args)
    assert m.status == status, "exit status %d, not %d:\n%s" % (m.status, status, m.text)
    says(m.text, *words)
    assert v.goes_on(), v.read("result")
    if clean:
        nothing_left()
    return m.text


def ends(cmd, status, *words, host=None, env=None):
    """A program that is used in a wrong way: its exit status and its words."""
    if host:
        r = c[host].run(cmd, check=False, timeout=60)
    else:
        r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
                           timeout=60, env=dict(os.environ, **(env or {})))
    assert r.returncode == status, "%s: exit status %d, not %d:\n%s" % (cmd, r.returncode, status, r.stdout)
    says(r.stdout, *words)


def start_in(host, text):
    """Starts a shell text in its own session; the pid of `sleep 987654` that it ends up as."""
    c[host].sh("setsid bash -c %s >/dev/null 2>&1 </dev/null & true" % ("'" + text + "'"))
    return int(wait_for(lambda: c[host].sh("pgrep -f '^sleep 987654'; true").split())[0])


def agent4(*extra, pki=None, cert="host4"):
    """(Re)starts the agent of host4, which lets host1 in, with another certificate or further options."""
    if "host4" in c.agents:
        c.stop_agent("host4")
    pki = pki or c.pki
    a = c.agent_args("host4") + ["--allow-peer", "host1", *extra]
    for option, file in (("--ca", "ca.pem"), ("--cert", cert + ".pem"), ("--key", cert + ".key")):
        a[a.index(option) + 1] = os.path.join(pki, file)
    c.start_agent("host4", a)


def hanging(host, pid):
    """A migration to something that accepts connections and says nothing: it takes its ten seconds."""
    listener = c["client"].daemon(["/usr/bin/python3", "-c", "import socket, time\ns = socket.create_server(('', 7077))\n"
                                   "a = s.accept()\ntime.sleep(100)"])
    wait_for(lambda: "7077" in c["client"].sh("ss -ltn"), 10, 0.05)
    m = c[host].popen(c.migrate_cmd(pid, "client"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: str(pid) in c[host].sh(MIGRATE + " list | grep CONNECTING; true"), 10, 0.05)
    return listener, m


def new_pki(name, *hosts):
    d = os.path.join(c.dir, name)
    subprocess.run([PKI, "ca", d], check=True, stdout=subprocess.DEVNULL)
    for h in hosts:
        subprocess.run([PKI, "host", d, h], check=True, stdout=subprocess.DEVNULL)
    return d


# ---- which process ----

@tests.add
def no_such_process():
    refused(31999, "host2", 10, "31999", "pgrep")


@tests.add
def pid_1():
    refused(1, "host2", 11, "init", "another process")


@tests.add
def the_agent_itself():
    for name in ("cpr-agent", "cpr-warden"):
        pid = c["host1"].sh("pgrep -x %s | head -1" % name).split()[0]
        refused(pid, "host2", 11, "cpr")


@tests.add
def to_where_it_is():
    refused(v.pid, "host1", 64, "already")


# ---- the way to the other host ----

@tests.add
def unknown_host():
    refused(v.pid, "host9", 20, "host9", "resolved", "hosts = ")


@tests.add
def host_without_an_agent():
    refused(v.pid, "client", 20, "client", "Is cpr-agent running", "as before")


@tests.add
def host_that_drops_packets():
    c["client"].sh("nft add table inet t; nft add chain inet t i '{ type filter hook input priority 0; }'; "
                   "nft add rule inet t i tcp dport 7077 drop")
    refused(v.pid, "client", 20, "did not answer", "firewall")
    c["client"].sh("nft delete table inet t")


@tests.add
def something_else_listens_there_and_a_second_migration_meanwhile():
    listener, first = hanging("host1", v.pid)
    refused(v.pid, "host2", 27, "is being moved to client", "cpr-migrate cancel", clean=False)
    out = first.communicate(timeout=60)[0]
    assert first.returncode == 25, out
    says(out, "TLS handshake", "as before")
    c["client"].kill(listener)


@tests.add
def no_local_agent():
    ends([MIGRATE, "--to", "host2", "1"], 32, "agent", "/run/cpr/api.sock", host="client")


# ---- certificates and policy ----

@tests.add
def certificate_of_another_ca():
    agent4(pki=new_pki("otherpki", "host4"))
    refused(v.pid, "host4", 21, "authority")


@tests.add
def certificate_for_another_host():
    subprocess.run([PKI, "host", c.pki, "host5"], check=True, stdout=subprocess.DEVNULL)
    agent4(cert="host5")
    refused(v.pid, "host4", 21, "host5", "host4")


@tests.add
def certificate_that_has_expired():
    d = new_pki("expired", "host4")
    for f in ("ca.pem", "ca.key"):
        shutil.copy(os.path.join(c.pki, f), d)
    with open(d + "/ext", "w") as f:
        f.write("subjectAltName=DNS:host4\nextendedKeyUsage=serverAuth,clientAuth\n")
    for args in (["req", "-new", "-key", "host4.key", "-subj", "/CN=host4", "-out", "csr"],
                 ["x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "7", "-days", "-1",
                  "-extfile", "ext", "-out", "host4.pem"]):
        subprocess.run(["openssl", *args], cwd=d, check=True, stderr=subprocess.DEVNULL)
    agent4(pki=d)
    refused(v.pid, "host4", 21, "expired")


@tests.add
def policy_of_the_destination():
    subprocess.run([PKI, "host", c.pki, "host4"], check=True, stdout=subprocess.DEVNULL)
    agent4()
    p = Victim(c, "beat", "host4", tag="-policy")
    for _ in range(5):
        r = c["host4"].run(c.migrate_cmd(p.pid, "host2"), check=False)
        assert r.returncode == 22, "%d: %s" % (r.returncode, r.stdout)
        says(r.stdout, "allow-peer = host4", "on host2", "agent.conf", "runs on")
    assert p.goes_on()
    c["host4"].kill(p.pid)
    left = c.settled("host4") + c.settled("host2")
    assert not left, left


@tests.add
def too_many_migrations_on_the_destination():
    agent4("--max-migrations", "1")
    p = Victim(c, "beat", "host4", tag="-busy")
    listener, first = hanging("host4", p.pid)
    refused(v.pid, "host4", 27, "migrations run on host4", "max-migrations")
    c["client"].kill(listener)
    first.communicate(timeout=60)
    c["host4"].kill(p.pid)


# ---- the destination ----

@tests.add
def pid_taken():
    c["host2"].sh("echo %d > /proc/sys/kernel/ns_last_pid; setsid sleep 300 >/dev/null 2>&1 </dev/null & true" % (v.pid - 1))
    wait_for(lambda: c["host2"].alive(v.pid), 5)
    refused(v.pid, "host2", 13, str(v.pid), "sleep")
    c["host2"].kill(v.pid)
    wait_for(lambda: not c["host2"].alive(v.pid), 5)


@tests.add
def not_enough_memory():
    c["host2"].sh("sed 's/^MemAvailable:.*/MemAvailable:       2048 kB/' /proc/meminfo > /run/meminfo; "
                  "mount --bind /run/meminfo /proc/meminfo")
    try:
        refused(v.pid, "host2", 16, "memory", "2 MiB are available", "free memory")
    finally:
        c["host2"].sh("umount /proc/meminfo")


@tests.add
def program_missing_or_different():
    prog = "/opt/victim"
    for h in ("host1", "host2"):
        c[h].sh("mkdir -p /opt")
    c["host1"].sh("cp %s/victims/beat %s" % (BUILD, prog))
    d = os.path.join(c.dir, "opt")
    os.mkdir(d)
    os.chmod(d, 0o777)
    pid = c["host1"].daemon([prog, d])
    wait_for(lambda: os.path.exists(d + "/ready"))
    refused(pid, "host2", 14, prog, "is not on the destination", "copy it")
    c["host2"].sh("cp %s/victims/beat %s; printf x | dd of=%s bs=1 seek=5000 conv=notrunc 2>/dev/null" % (BUILD, prog, prog))
    refused(pid, "host2", 15, prog, "another content", "same version")
    c["host2"].sh("cp %s/victims/beat %s; printf x >> %s" % (BUILD, prog, prog))
    refused(pid, "host2", 15, prog, "bytes here and", "same version")
    c["host2"].sh("cp %s/victims/beat %s" % (BUILD, prog))
    m = c.migrate(pid, "host1", "host2", "--verify")
    assert m.ok, m.text
    c["host2"].kill(pid)


@tests.add
def an_address_that_stays_behind():
    r = Redis(c, megabytes=1)
    refused(r.pid, "host2", 17, VIP, "--move-address")
    assert r.info("host1", "run_id") == r.run_id
    refused(r.pid, "host2", 17, "nosuchdev", args=("--move-address", VIP + "/32@nosuchdev"))
    refused(r.pid, "host2", 17, "10.77.0.99", args=("--move-address", "10.77.0.99"))
    c["host1"].kill(r.pid)
    c["host1"].sh("ip addr del %s/32 dev eth0" % VIP)


# ---- the process ----

TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) < 0:
    sys.exit(1)
print("traced", flush=True)
time.sleep(100)
"""


@tests.add
def traced_by_another():
    t = c["host1"].popen(["/usr/bin/python3", "-c", TRACER, str(v.pid)], stdout=subprocess.PIPE, text=True)
    assert t.stdout.readline() == "traced\n"
    refused(v.pid, "host2", 27, "traced by process", "python3", "debugger")
    pid = v.c["host1"].sh("pgrep -f ptrace | head -1").split()[0]
    c["host1"].kill(int(pid))
    t.wait(20)
    assert v.goes_on()


@tests.add
def with_children():
    pid = start_in("host1", "sleep 987655 & exec sleep 987654")
    refused(pid, "host2", 12, "child processes", "end first")
    c["host1"].sh("pkill -P %d; kill -9 %d" % (pid, pid))


@tests.add
def in_another_pid_namespace():
    pid = start_in("host1", "unshare --pid --fork --mount-proc sleep 987654; true")
    refused(pid, "host2", 12, "PID namespace", "mount namespace", "outside containers")
    c["host1"].kill(pid)


@tests.add
def on_a_terminal():
    pid = start_in("host1", 'script -qc "exec sleep 987654" /dev/null')
    refused(pid, "host2", 12, "2 things can't be moved", "controlling terminal", "setsid",
                   "fd 0: terminal", "/dev/pts/", "redirected to files")
    c["host1"].kill(pid)


@tests.add
def stopped_by_a_signal():
    p = Victim(c, "beat", "host1", tag="-stopped")
    c["host1"].kill(p.pid, "STOP")
    refused(p.pid, "host2", 12, "is stopped by a signal (STOP)", "CONT")
    assert c["host1"].status(p.pid)["State"][0] == "T", c["host1"].status(p.pid)
    c["host1"].kill(p.pid, "CONT")
    assert p.goes_on()
    c["host1"].kill(p.pid)


@tests.add
def everything_at_once():
    p = Victim(c, "refused", "host1")
    text = refused(p.pid, "host2", 12, "3 things can't be moved", "inotify", "unix socket", "watching of files",
                   "its other end")
    assert text.count("fd ") >= 3, text
    assert p.goes_on()
    c["host1"].kill(p.pid)


# ---- wrong use ----

@tests.add
def cpr_migrate_used_wrongly():
    pid = str(v.pid)
    for args, *words in ((["5"], "--to"), (["--downtime", "soon", "--to", "host2", "5"], "soon", "30ms"),
                         (["--no-such-option", "--to", "host2", "5"], "no-such-option", "--help"),
                         (["--move-address", "10.0.0.300", "--to", "host2", pid], "10.0.0.300"),
                         (["--tracking", "magic", "--to", "host2", pid], "magic", "wp-async"),
                         (["--network-lock", "magic", "--to", "host2", pid], "magic", "nftables"),
                         (["--max-rounds", "-1", "--to", "host2", pid], "-1"),
                         (["--to", "host2:99999", pid], "99999"), (["--to", "", pid], "to"),
                         (["--to", "host2", "redis"], "redis"), (["--to", "host2", "5", "6"], "6"), (["show"], "show"),
                         (["cancel", "zzz"], "zzz", "cpr-migrate list"), (["show", "1234abcd"], "1234abcd"), ([], "--to")):
        ends([MIGRATE, *args], 64, *words, host="host1")
    assert v.goes_on()


@tests.add
def cpr_agent_used_wrongly():
    conf = os.path.join(c.dir, "agent.conf")
    good = c.agent_args("host1")[1:]

    def with_(*pairs):
        a = list(good)
        for option, value in pairs + (("--api", "/run/other.sock"), ("--listen", "127.0.0.1:7099")):
            a[a.index(option) + 1] = value
        return a + ["--run-dir", "/run/other"]
    for args, status, *words in (
            (["--no-such-option"], 64, "no-such-option"), (["extra"], 64, "extra"),
            (["--listen", "nowhere"], 37, "nowhere", "ADDR:PORT"), (["--config", "/nonexistent.conf"], 37, "/nonexistent.conf"),
            (with_(("--programs", "/nonexistent")), 37, "/nonexistent", "--programs"),
            (with_() + ["--user", "nosuchuser"], 37, "nosuchuser", "--user"),
            (with_(("--cert", "/nonexistent.pem")), 37, "/nonexistent.pem", "cpr-pki"),
            (with_()[:-2] + ["--listen", "10.77.0.1:7077"], 37, "in use", "ss -ltnp"), (good, 27, "/run/cpr/api.sock")):
        ends([AGENT, *args], status, *words, host="host1")
    for text, *words in (("listen = here\n", "agent.conf:1", "here"), ("\nallow_peer = host2\n", "agent.conf:2", "unknown key"),
                         ("allow-peer = *\n", "agent.conf:1", "wildcard"), ("log-level loud\n", "agent.conf:1", "="),
                         ("max-migrations = many\n", "agent.conf:1", "many")):
        with open(conf, "w") as f:
            f.write(text)
        ends([AGENT, "--config", conf], 37, *words, host="host1")
    ends([MIGRATE, "list"], 0, host="host1")


@tests.add
def cpr_pki_used_wrongly():
    d = os.path.join(c.dir, "wrongpki")
    ends([PKI], 64, "usage")
    ends([PKI, "host", d, "host1"], 1, "make it first", "cpr-pki ca " + d)
    ends([PKI, "ca", d], 0)
    ends([PKI, "ca", d], 1, "exists already")
    ends([PKI, "host", d], 64, "a name")
    ends([PKI, "host", d, "10.0.0.1"], 64, "the host's name first")
    ends([PKI, "host", d, "ho st"], 64, "ho st")
    ends([PKI, "host", d, "host1", "10.0.0"], 1, "openssl")
    ends([PKI, "host", d, "host1"], 64, "number of days", env={"CPR_PKI_DAYS": "soon"})
    ends([PKI, "host", d, "host1"], 0)
    ends([PKI, "host", d, "host1"], 1, "exists already")
    ends([PKI, "show", d + "/none.pem"], 1, "none.pem")


@tests.add
def the_victim_was_never_harmed():
    assert v.finish() == "PASS", v.read("result")


def logs():
    return c.agent_log("host1")[-3000:] + c.agent_log("host2")[-3000:]


try:
    tests.run(after=logs)
finally:
    c.down()
