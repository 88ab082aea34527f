#!/usr/bin/python3
"""Many connections to one Redis, idle but when they are asked: crowd.py ADDRESS PORT N. Each line on standard input:
every connection says PING; the answer is how many got PONG."""
import socket
import sys

conns = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) for _ in range(int(sys.argv[3]))]
print(len(conns), flush=True)
for _ in sys.stdin:
    good = 0
    for s in conns:
        try:
            s.sendall(b"PING\r\n")
        except OSError:
            continue
    for s in conns:
        try:
            good += s.recv(100) == b"+PONG\r\n"
        except OSError:
            pass
    print(good, flush=True)
