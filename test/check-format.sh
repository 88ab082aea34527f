#!/bin/sh
# clang-format, over everything that git knows.
cd "$(dirname "$0")/.." || exit 1
if out=$(git ls-files '*.c' '*.h' '*.cc' | xargs clang-format --dry-run -Werror 2>&1); then
	echo "ok - clang-format"
else
	echo "$out" | head -40
	echo "not ok - clang-format (make format)"
	exit 1
fi
