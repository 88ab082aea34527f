#!/bin/sh
# Builds without a warning with clang, too.
cd "$(dirname "$0")/.." || exit 1
if out=$(make -s -j2 CC=clang OPT="-O1" BUILD="${BUILD:-build}-clang" all 2>&1); then
	echo "ok - builds with clang"
else
	echo "$out" | tail -40
	echo "not ok - builds with clang"
	exit 1
fi
