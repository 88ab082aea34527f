#!/usr/bin/python3
"""make bench: pause, total time, throughput, memory of the workers, speed of the writer; beside each its floor, taken
in the same run. Prints one table and writes build/bench.json, a list of rows
    {"name", "size", "metric", "unit", "value", "floor", "runs"}

    bench.py [--runs N] [--sizes 64,256,1024,4096] [--no-redis]
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lib"))
from bed import BUILD, wait_for
from cluster import VIP, Cluster
from redis import Redis

SET_MIB, RATE = 16, 20_000_000
rows = []


def median(v):
    return statistics.median(v) if v else None


def row(name, size, metric, unit, values, floor=None):
    v = [x for x in values if x is not None]
    rows.append({"name": name, "size": size, "metric": metric, "unit": unit, "value": round(median(v), 3) if v else None,
                 "floor": round(floor, 3) if floor is not None else None, "runs": [round(x, 3) for x in v]})


class Gap:
    """The writer's datagrams at the client host: gaps, and how fast the writer writes."""

    def __init__(self, c, n):
        self.stop = os.path.join(c.dir, "gap.stop.%d" % n)
        self.out = os.path.join(c.dir, "gap.out.%d" % n)
        self.p = c["client"].popen([os.path.join(BUILD, "bench/gap"), c["client"].ip, "9000", self.stop],
                                   stdout=open(self.out, "w"))

    def finish(self):
        open(self.stop, "w").close()
        self.p.wait(10)
        self.gaps, self.samples = [], []
        for line in open(self.out):
            f = line.split()
            if f[0] == "g":
                self.gaps.append((float(f[1]), float(f[2])))
            else:
                self.samples.append((float(f[1]), int(f[2])))

    def speed(self, a, b):
        s = [x for x in self.samples if a <= x[0] <= b]
        return (s[-1][1] - s[0][1]) / (s[-1][0] - s[0][0]) if len(s) > 2 else None


class Memory:
    """Peak memory of the wires, looked at while a migration runs (not one that is measured: looking costs). Workers
    tell their own; seen from here a vessel would still look like one."""

    def __init__(self):
        self.peak, self.over = {}, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        while not self.over.wait(0.05):
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    self.look(pid)

    def look(self, pid):
        try:
            exe = os.readlink("/proc/%s/exe" % pid)
            name = os.path.basename(exe)
            if os.path.dirname(exe) != BUILD or name != "cpr-wire":
                return
            name += " " + open("/proc/%s/cmdline" % pid).read().split("\0")[2]
            status = dict(l.split(":", 1) for l in open("/proc/%s/status" % pid) if ":" in l)
        except (OSError, IndexError):
            return
        for f in ("VmHWM", "RssAnon", "RssFile", "RssShmem"):
            if f in status:
                kib = int(status[f].split()[0])
                self.peak[name, f] = max(self.peak.get((name, f), 0), kib)

    def finish(self):
        self.over.set()
        self.thread.join()
        return {k: v / 1024 for k, v in self.peak.items()}


def daemons(c):
    """Peak memory of agents and wardens so far, in MiB, of both hosts."""
    out = {}
    for h in ("host1", "host2"):
        for l in c[h].sh("ps -eo pid,comm --no-headers").splitlines():
            pid, name = l.split(None, 1)
            if name in ("cpr-agent", "cpr-warden"):
                out.setdefault(name, []).append(int(c[h].status(int(pid))["VmHWM"].split()[0]) / 1024)
    return out


def client_clock(c):
    return float(c["client"].sh("cut -d' ' -f1 /proc/uptime"))


def stages(done, into):
    for s in done.get("spans", []):
        into.setdefault((s.get("side", ""), s["name"]), []).append(s["length_ns"] / 1e6)


def one(c, n, mib, threads):
    ready = os.path.join(c.dir, "writer.ready.%d" % n)
    pid = c["host1"].daemon([os.path.join(BUILD, "bench/writer"), str(mib), str(SET_MIB), str(RATE), c["client"].ip, "9000",
                             str(threads), ready])
    wait_for(lambda: os.path.exists(ready), 120)
    g = Gap(c, n)
    time.sleep(1.0)
    t0 = client_clock(c)
    m = c.migrate(pid, "host1", "host2", "--json", timeout=300)
    t1 = client_clock(c)
    time.sleep(0.5)
    g.finish()
    c["host2"].kill(pid)
    c["host1"].kill(pid)
    if not m.ok:
        print(m.text, c.agent_log("host1")[-2000:], c.agent_log("host2")[-2000:])
        raise SystemExit("bench: the migration failed")
    d = m.done()
    inside = [x for x in g.gaps if t0 - 0.05 <= x[0] <= t1 + 0.3]
    pause = max((x[1] for x in inside), default=0)
    if os.environ.get("BENCH_GAPS"):
        print("  gaps: " + ", ".join("%.0f ms at %.3f" % (x[1], x[0] - t0) for x in inside if x[1] > 4))
    pre = g.speed(t0 - 0.9, t0)
    during = g.speed(t0, (max(inside, key=lambda x: x[1])[0] - pause / 1e3) if inside else t1)
    return d, pause, (during / pre if pre and during else None)


def tls_floor(c, n, total):
    """The same bytes over the same link as one raw TLS stream: seconds."""
    t = os.path.join(BUILD, "bench/tlsraw")
    port = str(9100 + n % 500)
    pem = lambda h: [c.pki + "/%s.pem" % h, c.pki + "/%s.key" % h, c.pki + "/ca.pem"]
    s = c["host2"].popen([t, "server", c["host2"].ip, port, *pem("host2")], stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    out = c["host1"].run([t, "client", c["host2"].ip, port, *pem("host1"), str(int(total))]).stdout
    s.wait(10)
    return float(re.search(r", ([0-9.]+) s,", out).group(1))


def memcpy_floor(total):
    a = bytearray(64 << 20)
    b = memoryview(bytearray(64 << 20))
    t = time.monotonic()
    for _ in range(8):
        a[:] = b
    return total / (8 * (64 << 20) / (time.monotonic() - t))


def writers(c, sizes, runs, threads):
    n = 0
    for mib in sizes:
        memory = Memory()
        n += 1
        one(c, n, mib, threads)
        peak = memory.finish()
        pause, inner, total, thr, rss_s, rss_d, speed, rounds, sent, floors, st = [], [], [], [], [], [], [], [], [], [], {}
        for _ in range(runs):
            n += 1
            d, p, sp = one(c, n, mib, threads)
            pause.append(p)
            inner.append(d["pause_us"] / 1e3)
            total.append(d["total_us"] / 1e6)
            sent.append(d["total_bytes"] / 1e6)
            rounds.append(d["rounds"])
            thr.append(d["total_bytes"] / d["total_us"])
            rss_s.append(d.get("peak_rss_bytes", 0) / 1048576)
            rss_d.append(d.get("peer_peak_rss_bytes", 0) / 1048576)
            speed.append(sp)
            floors.append(tls_floor(c, n, d["total_bytes"]))
            stages(d, st)
        size = "%d MiB" % mib
        tls = median(floors)
        row("pause", size, "longest gap at the client", "ms", pause, 1.0)
        row("pause", size, "freeze to resumed, seen by the source", "ms", inner)
        for (side, name), v in st.items():
            row("pause", size, "%s: %s" % (side, name), "ms", v)
        row("total", size, "total time", "s", total, tls)
        row("total", size, "total / raw TLS stream", "ratio", [a / b for a, b in zip(total, floors)], 1.0)
        row("total", size, "memcpy of the same bytes", "s", [memcpy_floor(median(sent) * 1e6)])
        row("total", size, "rounds", "count", rounds)
        row("total", size, "sent", "MB", sent)
        row("throughput", size, "bytes sent / total time", "MB/s", thr, median(sent) / tls)
        row("worker_rss", size, "source", "MiB", rss_s)
        row("worker_rss", size, "destination", "MiB", rss_d)
        for (name, field), v in sorted(peak.items()):
            row("worker_rss", size, "%s %s" % (name, field), "MiB", [v])
        for name, v in daemons(c).items():
            row("worker_rss", size, "%s, so far, larger of both hosts" % name, "MiB", [max(v)])
        row("writer_speed", size, "during the rounds / before", "ratio", speed, 1.0)


def redis(c, runs):
    pause, longest, total, st = [], [], [], {}
    r = Redis(c, megabytes=512)
    at, other = "host1", "host2"
    for i in range(runs):
        # each client starts with an empty model
        r.cli(at, "eval", "for _, k in ipairs(redis.call('keys', 'cpr:*')) do redis.call('del', k) end", "0")
        r.start_client(i + 1)
        time.sleep(1)
        m = c.migrate(r.pid, at, other, "--json", "--move-address", VIP + "/32@eth0", timeout=300)
        time.sleep(0.5)
        got = r.stop_client()
        if not m.ok or got["errors"] or got["wrong"]:
            raise SystemExit("bench: redis: %s %s" % (m.text[-2000:], {k: got[k] for k in ("errors", "wrong")}))
        d = m.done()
        pause.append(d["pause_us"] / 1e3)
        total.append(d["total_us"] / 1e6)
        longest.append(got["longest_ms"])
        stages(d, st)
        at, other = other, at
    row("pause", "Redis 512 MiB", "longest stall of a closed-loop client", "ms", longest)
    row("pause", "Redis 512 MiB", "freeze to resumed, seen by the source", "ms", pause)
    for (side, name), v in st.items():
        row("pause", "Redis 512 MiB", "%s: %s" % (side, name), "ms", v)
    row("total", "Redis 512 MiB", "total time", "s", total)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--sizes", default="64,256,1024,4096")
    a.add_argument("--threads", type=int, default=4)
    a.add_argument("--no-redis", action="store_true")
    o = a.parse_args()
    c = Cluster()
    try:
        stop = c["host1"].run([os.path.join(BUILD, "bench/ptracestop"), str(o.threads)]).stdout
        row("pause", "%d threads" % o.threads, "floor: a bare ptrace stop", "ms", [float(stop)])
        writers(c, [int(s) for s in o.sizes.split(",")], o.runs, o.threads)
        if not o.no_redis:
            redis(c, o.runs)
    finally:
        c.down()
    print("%-14s %-14s %-42s %12s %10s %s" % ("name", "size", "metric", "median", "floor", "unit"))
    for r in rows:
        print("%-14s %-14s %-42s %12s %10s %s" % (r["name"], r["size"], r["metric"], r["value"],
                                                 "" if r["floor"] is None else r["floor"], r["unit"]))
    keep(o)
    verdict()


def keep(o):
    """Into bench.json, beside what other benchmarks put there."""
    path = os.path.join(BUILD, "bench.json")
    try:
        old = [r for r in json.load(open(path)) if r["name"] not in {x["name"] for x in rows}]
    except (OSError, ValueError):
        old = []
    with open(path, "w") as f:
        json.dump(old + rows, f, indent=1)


def verdict():
    """The targets, and what came out."""
    by = {(r["name"], r["size"], r["metric"]): r["value"] for r in rows}
    gap = {size: v for (name, size, metric), v in by.items() if metric == "longest gap at the client"}
    checks = [("pause at 1 GiB", gap.get("1024 MiB"), 30, False)]
    if gap.get("4096 MiB") and gap.get("256 MiB"):
        checks.append(("pause(4 GiB) / pause(256 MiB)", gap["4096 MiB"] / gap["256 MiB"], 1.25, False))
    for (name, size, metric), v in by.items():
        if metric == "total / raw TLS stream":
            checks.append(("total / raw TLS stream, " + size, v, 1.3, False))
        if name == "worker_rss" and metric in ("source", "destination"):
            checks.append(("worker memory, %s, %s" % (metric, size), v, 64, False))
        if name == "writer_speed":
            checks.append(("writer speed, " + size, v, 0.9, True))
    print()
    for what, v, bound, at_least in checks:
        if v is not None:
            good = v >= bound if at_least else v <= bound
            print("%-6s %-42s %8.2f (%s %g)" % ("ok" if good else "MISSED", what, v, ">=" if at_least else "<=", bound))


if __name__ == "__main__":
    main()
