#!/bin/sh
# Manual pages are complete and well-formed: every option that --help prints, and every fault code of proto/fault.h with
# its exit status, has its place; mandoc finds nothing to say.
# usage: check-man.sh BUILDDIR
set -eu
build=${1:-build}
cd "$(dirname "$0")/.."
bad=0

complain() {
	echo "check-man: $*" >&2
	bad=1
}

# A long option in mdoc: ".It Fl c , -config Ar FILE"
for page in docs/cpr-migrate.1 docs/cpr-agent.8; do
	program=$(basename "${page%.*}")
	options=$("$build/$program" --help | grep -o '^ *\(-[a-zA-Z], \)\?--[a-z-]*' | grep -o '\(^\|[ ,]\)-[a-zA-Z-]*')
	[ -n "$options" ] || complain "$program --help shows no options"
	for o in $options; do
		name=${o#-}
		grep -q -- "^\.It .*Fl \(.* , \)\?$name\( \|\$\)" "$page" || complain "$page: $o is not there"
	done
	# and the other way: what the page has is an option
	for o in $(grep '^\.It Fl' "$page" | grep -o ' -[a-z-]*' | grep -v '^ -$'); do
		"$build/$program" --help | grep -q -- "-$o\( \|\$\)" || complain "$page: -$o is no option of $program"
	done
done

sed -n 's/^\tX([A-Z_]*, "\([a-z-]*\)", \([0-9]*\),.*/\1 \2/p' proto/fault.h >"$build/faults.txt"
[ "$(wc -l <"$build/faults.txt")" -gt 20 ] || complain "proto/fault.h: the codes can't be read"
while read -r code status; do
	grep -q "^\.It Li $code No ($status)" docs/cpr-faults.7 || complain "docs/cpr-faults.7: $code ($status) is not there"
done <"$build/faults.txt"
rm -f "$build/faults.txt"

if command -v mandoc >/dev/null; then
	for page in docs/*.[1-8]; do
		# The operating system's version is not the page's matter.
		lint=$(mandoc -T lint -W style "$page" 2>&1 | grep -v 'referenced manual not found\|operating system\|STYLE: unterminated quoted' || :)
		[ -z "$lint" ] || complain "$lint"
	done
else
	echo "check-man: mandoc is not installed, pages are not linted" >&2
fi
exit $bad
