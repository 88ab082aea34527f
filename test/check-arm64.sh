#!/bin/sh
# Everything compiles and links for aarch64, without a warning, when the cross compiler is there.
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
case $build in /*) ;; *) build=$PWD/$build ;; esac
cc=aarch64-linux-gnu-gcc
if ! command -v $cc >/dev/null; then
	echo "ok - builds for aarch64 # SKIP $cc is not installed"
	exit 0
fi
s=$build/sysroot-arm64
if ! why=$(test/arm64-sysroot.sh "$s" 2>&1); then
	echo "$why"
	echo "ok - builds for aarch64 # SKIP no arm64 packages: $(echo "$why" | tail -1)"
	exit 0
fi
export PKG_CONFIG_LIBDIR="$s/usr/lib/aarch64-linux-gnu/pkgconfig:$s/usr/share/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$s"
if out=$(make -s -j2 CC=$cc OPT=-O1 CFLAGS="--sysroot=$s" BUILD="$build-arm64" all 2>&1) &&
	file=$(file -b "$build-arm64/cpr-worker" 2>&1) && case $file in *aarch64*) ;; *) out=$file && false ;; esac; then
	echo "ok - builds for aarch64"
else
	echo "$out" | tail -40
	echo "not ok - builds for aarch64"
	exit 1
fi
