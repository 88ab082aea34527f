#!/usr/bin/python3
"""Deaths before the commit. Worker, wire, both, on either side, killed with SIGKILL at random instants; agent and warden
as well, alone and together with them; the user's Ctrl-C. Each time: the process is unharmed, goes on at once where it
was, and nothing is left on either host.

CPR_SEED=N repeats the random numbers (not the instants: those are also the machine's). Half of the instants are spread
over the whole migration, half over its pause, which is where most can go wrong.
"""
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
import tap
from bed import wait_for
from cases import CANCELLED, Beating, Crowded, Served
from cluster import Cluster
from watch import Run, Watch, kill_all, pidfds, spread

tests = tap.Tests()
c = Cluster()
KILLS = 500 if tap.FULL else 30
REDIS_KILLS = 60 if tap.FULL else 6
LIMIT_MS = 100  # from the death until the process runs again
SLACK = 0.05    # how many may be later than that and than the machine itself was: two CPUs, and others use them
ARGS = ("--downtime", "1us", "--max-rounds", "4")
seed = int(os.environ.get("CPR_SEED") or time.time_ns() % 1000000)
rnd = random.Random(seed)
watch = {h: Watch(c, h) for h in ("host1", "host2")}
before = {h: w.descriptors() for h, w in watch.items()}


class Pace:
    """How long a migration takes here and now."""
    def __init__(self):
        self.total, self.pause = 0, 0

    def learn(self, run):
        us = run.done().get("pause_us")
        if us:
            part = 0.3 if self.total else 1
            self.total += part * (run.seconds - self.total)
            self.pause += part * (us / 1e6 - self.pause)


pace = Pace()


def moment(run, side, names):
    """Waits for a random instant of the migration; pidfds of those who are to die then."""
    if rnd.random() < 0.5:
        end = run.started + rnd.random() * pace.total
        while time.monotonic() < end and not run.over:
            time.sleep(0.002)
        return pidfds(watch[side].parts(*names))
    wait = rnd.random() * pace.pause - 0.005
    run.wait_state("PRECOPY")
    fds = pidfds(watch[side].parts(*names))
    run.wait_state("SEALED")
    if wait > 0:
        time.sleep(wait)
    return fds


def undisturbed(case):
    run = Run(c, "host1", case.pid, "host2", *ARGS, *case.args)
    assert run.end() == 0, run.text
    pace.learn(run)
    case.tidy(run, case.where(run))


def one(case, side, names):
    if not pace.total:
        undisturbed(case)
    run = Run(c, "host1", case.pid, "host2", *ARGS, *case.args)
    fds = moment(run, side, names)
    died = bool(fds) and not run.over
    t = kill_all(fds)
    run.end()
    if died and run.status != 0:
        case.after(t)
    now = case.where(run)
    if run.status == 0:
        case.count("moved" if died else "not hit")
        pace.learn(run)
    elif not died:
        raise AssertionError("failed by itself: " + run.text)
    elif case.doubt or "COMMITTING" in run.states:
        case.count("after the commit")
    else:
        assert now == "host1", "it runs on %s: %s" % (now, run.text)
        case.count(([x for x in run.states if x and x != "ABORTED"] or ["NONE"])[-1])
    case.tidy(run, now)


def in_time(case):
    print("# ms from the death until it ran again: %s" % spread(case.gaps))
    print("# the same of a process that was let alone: %s" % spread(case.noise))
    late = [g for g, n in zip(case.gaps, case.noise) if g > LIMIT_MS + n]
    assert len(late) <= max(1, SLACK * len(case.gaps)), "later than %d ms: %s" % (LIMIT_MS, sorted(late))


def killing(names, side, n):
    case = Beating(c, watch, rnd)
    try:
        for _ in range(n):
            one(case, side, names)
        case.finish()
    finally:
        print("# last state before the death: %s" % case.outcomes, flush=True)
    in_time(case)


for who in (("cpr-worker",), ("cpr-wire",), ("cpr-worker", "cpr-wire")):
    for where in ("host1", "host2"):
        tests.add(lambda n=who, s=where: killing(n, s, KILLS // 6 + 1),
                  "%s killed on %s" % (" and ".join(who), "the source" if where == "host1" else "the destination"))


def serving(kind, sides, n):
    case = kind(c, watch, rnd)
    try:
        for i in range(n):
            one(case, sides[i % len(sides)], ("cpr-worker",))
        case.finish()
    finally:
        print("# last state before the death: %s" % case.outcomes, flush=True)
        case.stop()


tests.add(lambda: serving(Served, ("host1", "host1", "host2"), REDIS_KILLS), "redis keeps its client when workers die")
tests.add(lambda: serving(Crowded, ("host1",), REDIS_KILLS),
          "no connection is harmed when the worker dies while it saves them")


@tests.add
def interrupted_by_the_user():
    case = Beating(c, watch, rnd)
    undisturbed(case)
    for _ in range(40 if tap.FULL else 5):
        run = Run(c, "host1", case.pid, "host2", *ARGS)
        end = time.monotonic() + rnd.random() * pace.total
        while time.monotonic() < end and not run.over:
            time.sleep(0.002)
        clients = watch["host1"].processes("cpr-migrate")
        for p in clients:
            os.kill(p, signal.SIGINT)
        run.end()
        now = case.where(run)
        assert run.status in (0, CANCELLED, -signal.SIGINT, 128 + signal.SIGINT), "%d: %s" % (run.status, run.text)
        case.count("moved" if run.status == 0 else "cancelled")
        if run.status == CANCELLED:
            assert now == "host1" and "runs on" in run.text, run.text
        left = watch["host1"].settled(case.pid if now == "host2" else None) + \
            watch["host2"].settled(case.pid if now == "host1" else None)
        assert not left, left
        case.check(now, run)
        if now == "host2":
            assert c.migrate(case.pid, "host2", "host1").ok
    case.finish()
    print("# %s" % case.outcomes)


def start_again(host):
    c.agents[host].wait(30)  # killed, or it has nobody to ask any more
    c.start_agent(host)


def agents_die(names, side, n):
    """Then nothing can be asked of anyone: what the agent finds when it is started again is the journal and the kernel."""
    case = Beating(c, watch, rnd)
    undisturbed(case)
    for _ in range(n):
        run = Run(c, "host1", case.pid, "host2", *ARGS)
        fds = moment(run, side, names)
        kill_all(fds)
        run.end()
        # An agent's warden and workers go on without it, and end with their work.
        wait_for(lambda: not watch[side].processes("cpr-worker"), 30)
        start_again(side)
        now = case.where(run) if run.status == 0 else wait_for(lambda: settle(case), 20)
        case.count("%s, then on %s" % ("moved" if run.status == 0 else "failed", now))
        if now == "lost":
            case.start()
            now = "host1"
        other = "host2" if now == "host1" else "host1"
        left = watch[other].settled(case.pid) + watch[now].settled()
        assert not left, "left: %s\n%s" % (left, run.text)
        case.check(now, run)
        if now == "host2":
            m = c.migrate(case.pid, "host2", "host1")
            assert m.ok, m.text
    case.finish()
    print("# %s" % case.outcomes)


def settle(case):
    """it runs on one host"""
    here, there = watch["host1"].where(case.pid), watch["host2"].where(case.pid)
    if here and watch["host1"].frozen(here):
        # After the commit, and who has it can't be told yet: that is for a person.
        if "state=IN_DOUBT" not in watch["host1"].ask("cat /run/cpr/*.journal"):
            return None
        watch["host1"].forget_doubt(case.pid)
        return "host2" if there else "lost"
    return "host1" if here and not there else "host2" if there and not here else None


EVERYONE = ("cpr-agent", "cpr-warden", "cpr-worker", "cpr-wire")
for who in (("cpr-agent",), ("cpr-warden",), EVERYONE):
    for where in ("host1", "host2"):
        tests.add(lambda n=who, s=where: agents_die(n, s, 20 if tap.FULL else 2),
                  "%s killed on %s" % ("agent, warden, worker and wire" if who == EVERYONE else who[0],
                                       "the source" if where == "host1" else "the destination"))


def nothing_leaked():
    for h, w in watch.items():
        try:
            wait_for(lambda: w.descriptors() == before[h], 10, 0.1)
        except TimeoutError:
            raise AssertionError("descriptors of the agents of %s: %s at first, %s now" % (h, before[h], w.descriptors()))


# Before agents are started anew.
tests.list.insert([n for n, _ in tests.list].index("cpr-agent killed on the source"),
                  ("no descriptor was left in the agents", nothing_leaked))


def logs():
    return "CPR_SEED=%d\n" % seed + c.agent_log("host1")[-3000:] + c.agent_log("host2")[-3000:]


try:
    tests.run(after=logs)
finally:
    c.down()
