#!/usr/bin/python3
"""At each stage of a migration, on either side, before it and after it: an error, or the worker's death. Before the
commit the process runs on where it was, and the other host is clean; from the commit on it is in exactly one place, or
frozen on the source, in doubt. The process is a Redis with its address and a client that never reconnects.

Needs a build with INJECT=1 (made in $BUILD/inject when it isn't there); the stages are what that worker lists.
"""
import os
import random
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(os.path.abspath(os.environ.get("BUILD", os.path.join(TOP, "build"))), "inject")
os.environ["BUILD"] = BUILD
sys.path.insert(0, os.path.join(TOP, "test/lib"))
import tap
from cases import Served
from cluster import Cluster
from watch import Run, Watch

if not os.environ.get("CPR_NOMAKE"):
    subprocess.run(["make", "-s", "-C", TOP, "BUILD=" + os.path.relpath(BUILD, TOP), "INJECT=1", "all"], check=True)
STAGES = [l.split() for l in subprocess.run([os.path.join(BUILD, "cpr-worker"), "--stages"], check=True, text=True,
                                            stdout=subprocess.PIPE).stdout.splitlines()]
HOST = {"source": "host1", "destination": "host2"}
INTERNAL, PEER_LOST, WORKER_DIED = 70, 24, 33
EXITS = {("source", "error"): (INTERNAL,), ("source", "kill"): (WORKER_DIED,),
         ("destination", "error"): (INTERNAL, PEER_LOST), ("destination", "kill"): (PEER_LOST,)}
tests = tap.Tests()
os.environ["CPR_INJECT"] = "@/run/cpr/inject"
c = Cluster()
watch = {h: Watch(c, h) for h in ("host1", "host2")}
case = Served(c, watch, random.Random(1))


def decided(side, stage, when):
    """Is it at or after the commit? A destination that has said READY can't know."""
    if side == "source":
        return (stage, when) == ("commit", "after")
    return (stage, when) == ("ready", "after") or stage == "run"


def one(side, stage, when, kind):
    text = "%s:%s:%s:%s" % (side, stage, when, kind)
    watch[HOST[side]].ask("echo '%s' > /run/cpr/inject" % text)
    try:
        run = Run(c, "host1", case.pid, "host2", *case.args)
        run.end()
    finally:
        watch[HOST[side]].ask("rm -f /run/cpr/inject")
    told = run.text + c.agent_log(HOST[side])[-6000:]
    assert ("injected %s %s" % (when, stage) if kind == "error" else "killed by signal 9") in told, "it was not injected"
    # The source tells its user at the end of the commit: what fails after that fails to clean up, and is repeated.
    assert run.status != 0 or (side, stage, when) == ("source", "commit", "after"), run.text
    now = case.where(run)
    if not decided(side, stage, when):
        assert now == "host1" and not case.doubt, "on %s, in doubt: %s; %s" % (now, case.doubt, run.text)
        assert run.status in EXITS[side, kind], "exit status %d: %s" % (run.status, run.text)
    elif (stage, when) in (("commit", "after"), ("run", "after")):
        assert now == "host2", "on %s; %s" % (now, run.text)
    case.count("%s%s" % (now or "nowhere", ", in doubt" if case.doubt else ""))
    case.tidy(run, now)


def stage_fails(side, stage):
    for when, kind in (("before", "error"), ("before", "kill"), ("after", "error"), ("after", "kill")):
        if not tap.FULL and (when, kind) in (("before", "kill"), ("after", "error")):
            continue
        try:
            one(side, stage, when, kind)
        except Exception:
            print("# %s %s %s" % (when, stage, kind), flush=True)
            case.start()  # the next one finds a whole world
            raise


def the_client_saw_nothing():
    print("# %s" % case.outcomes)
    case.finish()
    case.start()


# What may lose the process, and with it the client's model, comes last.
LAST = [["destination", "ready"], ["destination", "run"]]
for group in ([x for x in STAGES if x not in LAST], [x for x in STAGES if x in LAST]):
    for side, stage in group:
        tests.add(lambda d=side, s=stage: stage_fails(d, s), "%s: %s fails" % (side, stage))
    tests.add(the_client_saw_nothing)


def logs():
    return c.agent_log("host1")[-2500:] + c.agent_log("host2")[-2500:]


try:
    tests.run(after=logs)
finally:
    case.stop()
    c.down()
