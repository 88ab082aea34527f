#!/usr/bin/python3
"""A client of one TCP connection that checks every reply against its own model, in a closed loop.

    redis_client.py ADDRESS PORT STOP_FILE RESULT_FILE [SEED]

Never reconnects. Every gap between a request and its reply is recorded. Ends when STOP_FILE appears; then reads all
keys it ever wrote once more. RESULT_FILE: JSON {requests, errors, wrong, longest_ms, gaps: the ten longest, when}.
"""
import json
import os
import random
import socket
import sys
import time


class Connection:
    def __init__(self, host, port):
        self.s = socket.create_connection((host, port))
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf = b""

    def line(self):
        while b"\r\n" not in self.buf:
            d = self.s.recv(65536)
            if not d:
                raise EOFError("the server closed the connection")
            self.buf += d
        l, self.buf = self.buf.split(b"\r\n", 1)
        return l

    def reply(self):
        l = self.line()
        k, v = l[:1], l[1:]
        if k == b"+":
            return v
        if k == b":":
            return int(v)
        if k == b"-":
            raise RuntimeError("server error: " + v.decode())
        if k == b"$":
            n = int(v)
            if n < 0:
                return None
            while len(self.buf) < n + 2:
                d = self.s.recv(65536)
                if not d:
                    raise EOFError("the server closed the connection")
                self.buf += d
            r, self.buf = self.buf[:n], self.buf[n + 2:]
            return r
        raise RuntimeError("reply %r" % l)

    def call(self, *args):
        parts = [b"*%d\r\n" % len(args)]
        for a in args:
            a = a if isinstance(a, bytes) else str(a).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(a), a))
        self.s.sendall(b"".join(parts))
        return self.reply()


def main():
    host, port, stop, result = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    rnd = random.Random(int(sys.argv[5]) if len(sys.argv) > 5 else 1)
    model, counter = {}, 0
    out = {"requests": 0, "errors": 0, "wrong": 0, "longest_ms": 0.0, "gaps": [], "detail": []}
    gaps = []
    try:
        c = Connection(host, port)
        c.call("DEL", "cpr:counter")
        while not os.path.exists(stop):
            for _ in range(50):
                k = "cpr:k%d" % rnd.randrange(2000)
                op = rnd.random()
                t = time.monotonic()
                if op < 0.4:
                    v = rnd.randbytes(rnd.randrange(1, 400))
                    got, want = c.call("SET", k, v), b"OK"
                    model[k] = v
                elif op < 0.8:
                    got, want = c.call("GET", k), model.get(k)
                elif op < 0.9:
                    counter += 1
                    got, want = c.call("INCR", "cpr:counter"), counter
                else:
                    v = b"x%d" % rnd.randrange(1000)
                    model[k] = model.get(k, b"") + v
                    got, want = c.call("APPEND", k, v), len(model[k])
                gap = (time.monotonic() - t) * 1000
                out["requests"] += 1
                if gap > 5 or gap > out["longest_ms"]:
                    gaps.append((round(gap, 2), time.time()))
                out["longest_ms"] = max(out["longest_ms"], gap)
                if got != want:
                    out["wrong"] += 1
                    out["detail"].append("%s: got %r want %r" % (k, got, want))
        for k, v in model.items():
            if c.call("GET", k) != v:
                out["wrong"] += 1
                out["detail"].append("%s at the end" % k)
    except (OSError, EOFError, RuntimeError) as e:
        out["errors"] += 1
        out["detail"].append(repr(e))
    out["gaps"] = sorted(gaps, reverse=True)[:20]
    out["detail"] = out["detail"][:10]
    with open(result + ".tmp", "w") as f:
        json.dump(out, f)
    os.rename(result + ".tmp", result)


if __name__ == "__main__":
    main()
