"""A Python program: threads, generators, dictionaries, big integers, files; checks itself."""
import hashlib
import os
import sys
import threading
import time

d = sys.argv[1]
failed = []
stop = threading.Event()


def put(name, text):
    with open(os.path.join(d, name + ".tmp"), "w") as f:
        f.write(text)
    os.rename(os.path.join(d, name + ".tmp"), os.path.join(d, name))


def hashing():
    h, n = hashlib.sha256(b""), 0
    while not stop.is_set():
        x = hashlib.sha256(b"%d" % n)
        y = hashlib.sha256(b"%d" % n)
        if x.digest() != y.digest():
            failed.append("sha256 differs")
        h.update(x.digest())
        n += 1


def fib():
    a, b = 0, 1
    while True:
        yield a
        a, b = b, a + b


def numbers():
    g, seen = fib(), {}
    for i in range(10 ** 9):
        if stop.is_set():
            return
        v = next(g)
        seen[i] = v
        if i >= 2 and seen[i] != seen[i - 1] + seen[i - 2]:
            failed.append("fibonacci %d" % i)
        if i > 3000:
            g, seen = fib(), {}
            return numbers()
        time.sleep(0)


ts = [threading.Thread(target=f) for f in (hashing, numbers)]
for t in ts:
    t.start()
put("ready", "1")
n = 0
last = time.monotonic()
while not os.path.exists(os.path.join(d, "stop")):
    t = time.monotonic()
    if t < last or t - last > 20:
        failed.append("monotonic: %r then %r" % (last, t))
    last = t
    n += 1
    put("steps", str(n))
    time.sleep(0.01)
stop.set()
for t in ts:
    t.join()
put("result", "FAIL: " + failed[0] if failed else "PASS")
