"""TAP for end-to-end tests: each test is a function; a failure says why and the next test goes on.

    tests = Tests()
    @tests.add
    def moves_and_comes_back(): ...
    tests.run()
"""
import os
import sys
import traceback

FULL = os.environ.get("CPR_FULL") == "1"


class Skip(Exception):
    pass


class Tests:
    def __init__(self):
        self.list = []

    def add(self, fn, name=None):
        self.list.append((name or fn.__name__.replace("_", " "), fn))
        return fn

    def run(self, after=None):
        failed = 0
        want = sys.argv[1:]
        for name, fn in self.list:
            if want and not any(w in name for w in want):
                continue
            try:
                fn()
                print("ok - " + name, flush=True)
            except Skip as e:
                print("ok - %s # SKIP %s" % (name, e), flush=True)
            except Exception:
                failed += 1
                print("not ok - " + name, flush=True)
                print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)
                if after:
                    print("# " + str(after()).replace("\n", "\n# "), flush=True)
        sys.exit(1 if failed else 0)
