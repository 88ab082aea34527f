#!/bin/sh
# Installs the packages of test/packages.txt that are missing, and makes the users that the agent runs as.
set -eu
cd "$(dirname "$0")/.."
want=$(sed 's/#.*//' test/packages.txt)
missing=
for p in $want; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
	[ "$(id -u)" = 0 ] || { echo "setup: not root, and these packages are missing:$missing" >&2; exit 1; }
	echo "setup: installing$missing"
	log=$(mktemp)
	# Services of installed packages are not wanted, only their programs.
	policy=/usr/sbin/policy-rc.d
	made=
	if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy && made=1; fi
	if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
		[ -z "$made" ] || rm -f $policy
		echo "setup: apt-get failed:" >&2
		tail -20 "$log" >&2
		exit 1
	fi
	[ -z "$made" ] || rm -f $policy
	rm -f "$log"
fi
for u in cpr cpr-wire; do
	id "$u" >/dev/null 2>&1 || useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$u"
done
