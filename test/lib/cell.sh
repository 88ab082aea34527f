#!/bin/bash
# Runs a test program where it can leave nothing: PID, network, IPC and mount namespaces of its own, with its own /proc,
# /tmp (a directory on the disk) and /dev/shm, in a cgroup of its own. All its processes die with it, or with its parent.
#	cell.sh CGROUP TMP PROGRAM ARG...
set -eu
if [ "$1" != inside ]; then
	echo 0 >"$1/cgroup.procs"
	exec unshare --pid --fork --kill-child --mount --net --ipc "$BASH" "$0" inside "${@:2}"
fi
tmp=$2
shift 2
mount -t proc proc /proc
mount --bind "$tmp" /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
# PID 1 stays, and reaps what the test leaves to it.
"$@" &
wait $!
status=$?
exit $status
