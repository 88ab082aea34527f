#!/bin/sh
# Manual pages are complete and well-formed: every option that --help prints, and every fault code of proto/fault.h with
# its exit status, has its place, and nothing else has; mandoc finds nothing to say.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
make -s BUILD="$build" "$build/cpr-agent" "$build/cpr-migrate"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

complain() {
	echo "$*"
	bad=1
}

# A long option in mdoc: ".It Fl c , -config Ar FILE"
options() {
	page=docs/$1 program=${1%.*}
	"$build/$program" --help >"$work/help"
	grep -o '^ *\(-[a-zA-Z], \)\?--[a-z-]*' "$work/help" | grep -o '\(^\|[ ,]\)-[a-zA-Z-]*' >"$work/options" || complain "$program --help shows no options"
	while read -r o; do
		grep -q -- "^\.It .*Fl \(.* , \)\?${o#-}\( \|\$\)" "$page" || complain "$page: $o is not there"
	done <"$work/options"
	# and the other way: what the page has is an option
	for o in $(grep '^\.It Fl' "$page" | grep -o ' -[a-z-]*' | grep -v '^ -$'); do
		grep -q -- "-$o\( \|\$\)" "$work/help" || complain "$page: -$o is no option of $program"
	done
}

codes() {
	sed -n 's/^\tX([A-Z_]*, "\([a-z-]*\)", \([0-9]*\),.*/\1 \2/p' proto/fault.h >"$work/faults"
	[ "$(wc -l <"$work/faults")" -gt 20 ] || complain "proto/fault.h: the codes can't be read"
	while read -r code status; do
		grep -q "^\.It Li $code No ($status)" docs/cpr-faults.7 || complain "docs/cpr-faults.7: $code ($status) is not there"
	done <"$work/faults"
	grep '^\.It Li [a-z-]* No ([0-9]*)' docs/cpr-faults.7 | sed 's/^.It Li \([a-z-]*\) No (\([0-9]*\)).*/\1 \2/' >"$work/page"
	while read -r line; do
		grep -qx "$line" "$work/faults" || complain "docs/cpr-faults.7: $line is no code"
	done <"$work/page"
}

lint() {
	for page in docs/*.[1-8]; do
		# References to each other, and the version of the operating system, are not the page's matter.
		mandoc -T lint -W style "$page" 2>&1 | grep -v 'referenced manual not found\|operating system' >"$work/lint" || :
		[ ! -s "$work/lint" ] || complain "$(cat "$work/lint")"
	done
}

check() {
	bad=0
	"$@"
	[ $bad = 0 ] && echo "ok - $name" || { echo "not ok - $name"; failed=1; }
}

failed=0
for page in cpr-migrate.1 cpr-agent.8; do
	name="manual: options of $page" && check options $page
done
name="manual: codes of cpr-faults.7" && check codes
if command -v mandoc >/dev/null; then
	name="manual: mandoc" && check lint
else
	echo "ok - manual: mandoc # SKIP mandoc is not installed"
fi
exit $failed
