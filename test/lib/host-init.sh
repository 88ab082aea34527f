#!/bin/bash
# PID 1 of a test host. Started in fresh net, mount, PID, UTS, IPC, time namespaces, already in its cgroup; makes the
# host its own: root (an overlay that nobody else sees), /proc, /sys, /run, /tmp, boot id, machine id.
#	host-init.sh NAME FIRST_PID SHARED_DIR READY_FIFO
set -eu
name=$1 first_pid=$2 shared=$3 ready=$4
if [ "${5:-}" != pivoted ]; then
	o=/mnt
	mount -t tmpfs tmpfs $o
	mkdir $o/upper $o/work $o/root
	mount -t overlay -o lowerdir=/,upperdir=$o/upper,workdir=$o/work overlay $o/root
	r=$o/root
	mount -t proc proc $r/proc
	mount -t tmpfs -o mode=755 tmpfs $r/dev
	for d in null zero full random urandom tty userfaultfd net/tun; do
		[ -e /dev/$d ] || continue
		mkdir -p "$(dirname $r/dev/$d)"
		mknod -m 666 $r/dev/$d c "0x$(stat -c %t /dev/$d)" "0x$(stat -c %T /dev/$d)"
	done
	mkdir $r/dev/pts $r/dev/shm
	ln -s pts/ptmx $r/dev/ptmx
	ln -s /proc/self/fd $r/dev/fd
	ln -s fd/0 $r/dev/stdin
	ln -s fd/1 $r/dev/stdout
	ln -s fd/2 $r/dev/stderr
	mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts $r/dev/pts
	mount -t tmpfs -o mode=1777 tmpfs $r/dev/shm
	mount -t tmpfs -o mode=1777 tmpfs $r/tmp
	mkdir -p "$r$shared"
	mount --bind "$shared" "$r$shared"
	mkdir -p $r/.old
	# The script itself has to be readable from the new root, whatever lies over its old place.
	cp "$0" $r/.host-init.sh
	cd $r
	pivot_root . .old
	exec chroot . /bin/bash /.host-init.sh "$name" "$first_pid" "$shared" "$ready" pivoted
fi
umount -l /.old
rmdir /.old
rm -f /.host-init.sh
hostname "$name"
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
cat /proc/sys/kernel/random/uuid > /run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
tr -d - < /proc/sys/kernel/random/uuid > /run/machine-id
[ ! -e /etc/machine-id ] || mount --bind /run/machine-id /etc/machine-id
echo "$first_pid" > /proc/sys/kernel/ns_last_pid
echo ok > "$ready"
exec </dev/null >/dev/null 2>&1
# Reaps whatever is left to PID 1.
while :; do sleep 1000000 & wait; done
