#!/bin/sh
# Every header compiles alone.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
make -s BUILD="$build" "$build/gen/image.pb-c.c" "$build/gen/wire.pb-c.c"
bad=0
pk=$(pkg-config --cflags libprotobuf-c libnl-3.0 libnl-route-3.0 libnftables libevent json-c openssl)
for h in proto/*.h transport/*.h $(find engine -name '*.h') agent/*.h; do
	case $h in
	proto/*) inc="-Iproto" ;;
	transport/*) inc="-Iproto -Itransport" ;;
	engine/*) inc="-Iproto -Iengine -Iengine/arch -Iengine/fd -Iengine/sock -Iengine/net" ;;
	*) inc="-Iproto -Itransport -Iengine -Iengine/arch -Iengine/fd -Iengine/sock -Iengine/net -Iagent" ;;
	esac
	if ! gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Werror -fsyntax-only -x c "$h" -I"$build/gen" $inc $pk -Wno-pragma-once-outside-header; then
		echo "not ok - header $h"
		bad=1
	fi
done
[ $bad = 0 ] && echo "ok - every header compiles alone"
exit $bad
