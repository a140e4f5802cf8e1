#!/bin/sh
# tools.sh [NAME...]: installs what the tests of the C side use (all of it without a name), where this
# is Debian and we are root. What cannot be had is left: the tests say what they do not run.
set -u
[ $# -gt 0 ] || set -- clang cmake go valgrind pkg-config g++ mpicc mpirun mcs mono
packages=
for name; do
  command -v "$name" >/dev/null 2>&1 && continue
  case $name in
    go) packages="$packages golang-go" ;;
    clang++) packages="$packages clang" ;;
    mcs) packages="$packages mono-mcs libmono-system-core4.0-cil" ;;
    mono) packages="$packages mono-runtime libmono-system-core4.0-cil" ;;
    mpicc) packages="$packages libopenmpi-dev" ;;
    mpirun) packages="$packages openmpi-bin" ;;
    qemu-*-static) packages="$packages qemu-user-static" ;;
    aarch64-linux-gnu-gcc) packages="$packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
    objdump | readelf) packages="$packages binutils" ;;
    python3) packages="$packages python3 python3-venv" ;;
    clang | cmake | valgrind | pkg-config | g++ | gcc | binutils) packages="$packages $name" ;;
    *) echo "tools.sh: no package is known for $name" >&2 ;;
  esac
done
[ -n "$packages" ] || exit 0
command -v apt-get >/dev/null 2>&1 || exit 1
[ "$(id -u)" = 0 ] || exit 1
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages
