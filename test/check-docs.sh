#!/bin/sh
# What README.md and docs/architecture.md name in backticks exists: files, functions and other words of the code.
set -eu
cd "$(dirname "$0")/.."
bad=0
code=$(find agent engine transport proto -name '*.[ch]' -o -name '*.proto')
names() {
	grep -ohE '`[^` ]+`' README.md docs/architecture.md | tr -d '`' | sort -u
}
for name in $(names); do
	case $name in
	/* | *'*'* | --* | *:* | \$*) continue ;;
	*/* | *.c | *.h | *.sh | *.py | *.proto | *.md | *.txt)
		for folder in . engine transport agent test; do [ ! -e "$folder/$name" ] || continue 2; done
		;;
	*_*)
		grep -qwF -e "${name%%(*}" $code && continue
		;;
	*) continue ;;
	esac
	echo "$name is named in README.md or docs/architecture.md, and does not exist"
	bad=1
done
[ $bad = 0 ] && echo "ok - documents name what exists" || echo "not ok - documents name what exists"
exit $bad
