#!/usr/bin/python3
"""Many connections to an echo server, each with a byte stream of its own that must come back unchanged.

    echo_client.py RESULT STOP PORT ADDRESS COUNT [ADDRESS COUNT]...

Sends as fast as the server takes it. When STOP appears each connection is shut down for writing and everything has to
come back. RESULT: JSON {connections, bytes, errors, longest_ms, detail}.
"""
import json
import os
import selectors
import socket
import sys
import time


class Stream:
    """Position -> byte, the same on both ways."""

    def __init__(self, k):
        self.block = bytes((i * 31 + k * 7 + (i >> 8)) & 255 for i in range(65536))

    def get(self, pos, n):
        p = pos % 65536
        return (self.block[p:] + self.block)[:n] if n <= 65536 else None


class Conn:
    def __init__(self, k, addr, port):
        self.s = socket.create_connection((addr, port), timeout=20)
        self.s.setblocking(False)
        self.stream, self.sent, self.got, self.closed = Stream(k), 0, 0, False
        self.last = time.monotonic()


def main():
    result, stop, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    out = {"connections": 0, "bytes": 0, "errors": 0, "longest_ms": 0.0, "detail": []}
    sel = selectors.DefaultSelector()
    conns = []
    rest = sys.argv[4:]
    for addr, count in zip(rest[::2], rest[1::2]):
        for _ in range(int(count)):
            c = Conn(len(conns), addr, port)
            conns.append(c)
            sel.register(c.s, selectors.EVENT_READ | selectors.EVENT_WRITE, c)
    out["connections"] = len(conns)
    open(result + ".up", "w").close()
    ending, deadline = False, None
    any_last = time.monotonic()
    while sel.get_map():
        if not ending and os.path.exists(stop):
            ending, deadline = True, time.monotonic() + 30
        if ending and time.monotonic() > deadline:
            out["errors"] += 1
            out["detail"].append("not everything came back")
            break
        for key, mask in sel.select(0.05):
            c = key.data
            try:
                if mask & selectors.EVENT_READ:
                    d = c.s.recv(65536)
                    now = time.monotonic()
                    out["longest_ms"] = max(out["longest_ms"], (now - any_last) * 1000)
                    any_last = now
                    if d != c.stream.get(c.got, len(d)):
                        raise RuntimeError("wrong bytes at %d" % c.got)
                    c.got += len(d)
                    if not d:
                        if c.got != c.sent or not c.closed:
                            raise RuntimeError("closed after %d of %d bytes" % (c.got, c.sent))
                        sel.unregister(c.s)
                        c.s.close()
                        continue
                if mask & selectors.EVENT_WRITE and not c.closed:
                    if ending:
                        c.s.shutdown(socket.SHUT_WR)
                        c.closed = True
                        sel.modify(c.s, selectors.EVENT_READ, c)
                    elif c.sent - c.got < 200000:
                        c.sent += c.s.send(c.stream.get(c.sent, 16384))
                    else:
                        time.sleep(0.0002)
            except (OSError, RuntimeError) as e:
                out["errors"] += 1
                out["detail"].append(repr(e))
                sel.unregister(c.s)
                c.s.close()
    out["bytes"] = sum(c.got for c in conns)
    out["detail"] = out["detail"][:5]
    with open(result + ".tmp", "w") as f:
        json.dump(out, f)
    os.rename(result + ".tmp", result)


if __name__ == "__main__":
    main()
