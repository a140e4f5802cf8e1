#!/bin/sh
# Containers and codecs under miri, where a nightly toolchain has it. Not what it cannot do: pipes, and giving
# back a part of a mapping (memory.rs).
set -eu
cd "$(dirname "$0")/.."
. tests/not_run.sh
if ! cargo +nightly miri --version >/dev/null 2>&1 &&
  ! { command -v rustup >/dev/null 2>&1 && rustup component add --toolchain nightly miri rust-src &&
    cargo +nightly miri --version >/dev/null 2>&1; }; then
  not_run miri "no nightly toolchain with miri here, and it could not be installed"
  exit
fi
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance"
cargo +nightly miri test --lib -- --skip container::source:: container:: codec:: layout:: quantize:: reserve::
