#!/bin/sh
# Makes a directory with the arm64 headers and libraries that the tree is built against, for check-arm64.sh: the -dev
# packages of test/packages.txt, by this machine's own apt sources, with an apt state of their own. Packages are
# unpacked, not installed: the machine's dpkg stays as it is (some of them can't be there twice).
#	arm64-sysroot.sh DIR
# Cached: does nothing when DIR was made for the same list. What it can't do, it says on stderr and ends with 1.
set -eu
cd "$(dirname "$0")/.."
case $1 in /*) dir=$1 ;; *) dir=$PWD/$1 ;; esac
want=$(sed -n '/^# to build/,/^# to test/s/^\([a-z0-9.+-]*-dev\)$/\1/p' test/packages.txt | tr '\n' ' ')libc6-dev
[ "$(cat "$dir/.made-of" 2>/dev/null)" != "$want" ] || exit 0

part=$dir.part
rm -rf "$part" "$dir"
mkdir -p "$part/root" "$part/apt/lists/partial" "$part/apt/archives/partial"
trap 'rm -rf "$part"' EXIT
trap 'exit 143' INT TERM HUP
: >"$part/apt/status"

# Lists are read as plain text by pkgcache only: no translations, no contents, no hooks of the machine.
get() {
	apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$part/apt" \
		-o Dir::State::status="$part/apt/status" -o Dir::State::lists="$part/apt/lists" \
		-o Dir::Cache="$part/apt" -o Dir::Cache::archives="$part/apt/archives" -o APT::Sandbox::User=root \
		-o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Update::Post-Invoke-Success= -o Debug::NoLocking=1 \
		"$@" </dev/null
}
log=$part/log
get update >"$log" 2>&1 || : # a source without arm64 is no harm: what counts is whether the packages are found
# shellcheck disable=SC2086
if ! get install --download-only --no-install-recommends -y $want >>"$log" 2>&1; then
	echo "arm64-sysroot: apt-get can't fetch arm64 packages:" >&2
	tail -5 "$log" >&2
	exit 1
fi
for deb in "$part"/apt/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$part/root" --keep-directory-symlink --no-same-owner \
		--exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./etc' \
		--exclude='./var' --exclude='./usr/bin' --exclude='./bin' --exclude='./sbin' --exclude='./usr/sbin' \
		--exclude='*.a.debug'
done
# An absolute link would lead out of the directory, to the machine's own libraries.
find "$part/root" -type l -lname '/*' | while read -r l; do ln -sfnr "$part/root$(readlink "$l")" "$l"; done
echo "$want" >"$part/root/.made-of"
mv "$part/root" "$dir"
