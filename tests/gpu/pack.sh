#!/bin/sh
# Packs what a machine with a card needs to run tests/gpu, where that machine has no Rust:
#     tests/gpu/pack.sh [FOLDER]            (target/gpu)
# then copy FOLDER there and run `sh FOLDER/run.sh`.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-target/gpu}
mkdir -p "$folder/images" "$folder/emulator"
cargo rustc --release --lib --features reserve --crate-type cdylib
cp target/release/libbitlinear.so "$folder/"
# The kernels' tests: the same program that runs on the emulated GPU.
test=$(cargo test --no-run --message-format=json --test cuda_kernels |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
cp "$test" "$folder/test_kernels"
strip --strip-debug "$folder/test_kernels"
sh tests/cuda/emulator/build.sh "$folder/emulator"
rm -rf "$folder/emulator/objects"
g++ -std=c++20 -O2 -o "$folder/probes" tests/gpu/probes.cpp -ldl
sh tools/get-nvrtc.sh
cargo xtask kernels --raw "$folder/images"
cp tests/gpu/card.py tests/gpu/run.sh "$folder/"
du -sh "$folder"
