"""A real Redis on a host, with a service address, data and a checking client."""
import json
import os

from bed import TOP, wait_for
from cluster import VIP


class Redis:
    def __init__(self, c, host="host1", megabytes=64, extra=()):
        self.c, self.home = c, host
        h = c[host]
        h.sh("ip addr add %s/32 dev eth0" % VIP)
        self.dir = os.path.join(c.dir, "redis")
        os.makedirs(self.dir, exist_ok=True)
        self.pid = h.daemon(["redis-server", "--bind", VIP, "--port", "6379", "--save", "", "--dir", self.dir,
                             "--protected-mode", "no", "--enable-debug-command", "yes", *extra])
        wait_for(lambda: "PONG" in self.cli(host, "ping"), 20, 0.05)
        n = megabytes * 1024
        if n:
            self.cli(host, "debug", "populate", str(n), "data", "1000")
            if self.cli(host, "dbsize").strip() != str(n):
                raise RuntimeError("redis has %s keys, not %d" % (self.cli(host, "dbsize"), n))
        self.run_id = self.info(host, "run_id")

    def cli(self, host, *args):
        return self.c[host].run(["redis-cli", "-h", VIP, *args], check=False, timeout=100).stdout

    def info(self, host, key):
        for l in self.cli(host, "info").splitlines():
            if l.startswith(key + ":"):
                return l.split(":", 1)[1].strip()
        return None

    def digest(self, host):
        d = self.cli(host, "debug", "digest").strip()
        if len(d) != 40:
            raise RuntimeError("no digest: " + d)
        return d

    def start_client(self, seed=1, host="client"):
        self.stop = os.path.join(self.dir, "stop.%d" % seed)
        self.result = os.path.join(self.dir, "result.%d" % seed)
        for f in (self.stop, self.result):
            if os.path.exists(f):
                os.unlink(f)
        self.client = self.c[host].popen(["/usr/bin/python3", os.path.join(TOP, "test/lib/redis_client.py"), VIP,
                                          "6379", self.stop, self.result, str(seed)])

    def stop_client(self):
        open(self.stop, "w").close()
        wait_for(lambda: os.path.exists(self.result), 60, 0.05)
        self.client.wait()
        return json.load(open(self.result))
