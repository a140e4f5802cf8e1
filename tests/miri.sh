#!/bin/sh
# Containers and codecs under miri, where a nightly toolchain has it.
set -eu
cd "$(dirname "$0")/.."
if ! cargo +nightly miri --version >/dev/null 2>&1 &&
  ! { command -v rustup >/dev/null 2>&1 && rustup component add --toolchain nightly miri >/dev/null 2>&1 &&
    cargo +nightly miri --version >/dev/null 2>&1; }; then
  echo "miri: NOT RUN: no nightly toolchain with miri here, and it could not be installed"
  exit 0
fi
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance"
cargo +nightly miri test --lib -- --skip container::source:: \
  container:: codec:: layout:: memory:: reserve::
