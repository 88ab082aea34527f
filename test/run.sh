#!/bin/sh
# make demo | check | check-full | bench | torture: set-up, then test/run.py.
set -eu
cd "$(dirname "$0")/.."
test/setup.sh
exec /usr/bin/python3 test/run.py "$@"
