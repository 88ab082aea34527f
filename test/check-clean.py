#!/usr/bin/python3
"""Nothing of the tests is left on the machine: processes, cgroups, nft tables, files, interfaces. `make check` ends with
the same question about what it has itself left; by hand, this shows all there is.

    check-clean.py [--sweep]         with --sweep, what dead runs left is removed first
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
import leftovers

if "--sweep" in sys.argv:
    leftovers.sweep()
left = sorted(leftovers.found())
for text in left:
    print("# " + text)
print(("not ok" if left else "ok") + " - nothing is left on the machine")
sys.exit(1 if left else 0)
