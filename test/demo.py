#!/usr/bin/python3
"""make demo: two hosts and a client, a live Redis with a connected client, one command.

Everything is made here and goes away at the end, also after Ctrl-C. With --tap it is a test of itself.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cluster import VIP, Cluster
from redis import Redis

TAP = "--tap" in sys.argv
MB = 256


def say(text):
    print(("# " if TAP else "") + text.replace("\n", "\n# " if TAP else "\n"), flush=True)


def main():
    say("two hosts and a client on a bridge, an agent on host1 and host2, each with its own certificate ...")
    c = Cluster()
    try:
        r = Redis(c, megabytes=MB)
        say("redis-server is pid %d on host1, service address %s, %d MiB of keys" % (r.pid, VIP, MB))
        r.start_client()
        time.sleep(1)
        say("a client writes and reads over one TCP connection and checks every reply\n")
        cmd = c.migrate_cmd(r.pid, "host2", "--move-address", VIP + "/32@eth0")
        say("host1# cpr-migrate " + " ".join(cmd[1:]) + "\n")
        m = c.migrate(r.pid, "host1", "host2", "--move-address", VIP + "/32@eth0")
        say(m.text)
        time.sleep(1)
        got = r.stop_client()
        ok = m.ok and not got["errors"] and not got["wrong"] and got["longest_ms"] < 200
        say("the client's view: %d requests, %d errors, %d wrong replies, longest stall %.1f ms" %
            (got["requests"], got["errors"], got["wrong"], got["longest_ms"]))
        if got["detail"]:
            say(str(got["detail"]))
        if m.ok:
            same = r.info("host2", "run_id") == r.run_id
            ok = ok and same and c["host2"].alive(r.pid) and not c["host1"].alive(r.pid)
            say("on host2: pid %d, %s run_id, %s keys" % (r.pid, "the same" if same else "ANOTHER",
                                                        r.cli("host2", "dbsize").strip()))
        else:
            say(c.agent_log("host1") + c.agent_log("host2"))
        if TAP:
            print(("ok" if ok else "not ok") + " - demo")
        return 0 if ok else 1
    finally:
        c.down()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
