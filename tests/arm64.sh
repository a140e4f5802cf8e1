#!/bin/sh
# The arm64 kernels on this machine: cross-built, run under qemu as three processors (NEON alone; with dotprod;
# with i8mm), compared with hashes that the scalar kernels gave here. Outputs of the golden files and the
# logits of the demo model have the same hash as on x86.
#
#   BITLINEAR_ARM64_EVERY=9    each processor takes one in so many of the shapes that cover every pair of
#                              sizes, each others: together a third of them
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
target=aarch64-unknown-linux-gnu
every=${BITLINEAR_ARM64_EVERY:-9}
. tests/not_run.sh

sh tests/tools.sh aarch64-linux-gnu-gcc qemu-aarch64-static || true
for tool in aarch64-linux-gnu-gcc qemu-aarch64-static; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    not_run arm64 "no $tool here"
    exit
  fi
done
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] &&
  ! { command -v rustup >/dev/null 2>&1 && rustup target add "$target"; }; then
  not_run arm64 "this Rust has no $target"
  exit
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
qemu="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
$CARGO clippy --quiet --lib --target $target -- -D warnings

# The scalar kernels' results, from this machine.
. tests/environment.sh
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$sweep_flags" # of the scalar kernels here
folder=$target_folder record=$BITLINEAR_SCALAR_HASHES # of tests/sweep.sh, all of them
mkdir -p "$folder/tmp"
pairs="every_kernel_equals_the_scalar_one_in_every_pair_of_sizes"
if ! [ -s "$record" ]; then
  record=$folder/tmp/scalar-hashes-arm64.txt # some of them: tests/x86_emulated.sh, which wants others, does not find these
  BITLINEAR_TEST_RECORD=$record BITLINEAR_TEST_EVERY=$((every / 3)) \
    $CARGO test --quiet --profile sweep --test kernels -- --ignored "$pairs"
fi

run() { # CPU REQUIRED TEST ARGUMENTS...
  cpu=$1 required=$2
  shift 2
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -cpu $cpu" BITLINEAR_TEST_REQUIRE=$required \
    $CARGO test --quiet --profile sweep --target $target "$@"
}
first=0
for cpu in cortex-a72:neon cortex-a76:neon,dotprod max:neon,dotprod,i8mm; do
  required=${cpu#*:} cpu=${cpu%:*}
  echo "arm64: $cpu ($required)"
  # Its best kernels; the others' are those of the processor before.
  BITLINEAR_TEST_ONLY=${required##*,} BITLINEAR_TEST_EVERY=$every BITLINEAR_TEST_FIRST=$first \
    BITLINEAR_TEST_RECORDED=$record run "$cpu" "${required##*,}" --test kernels -- --ignored "$pairs"
  BITLINEAR_TEST_EVERY=24 run "$cpu" "" --test kernels -- --skip every_kernel_equals
  run "$cpu" "" --test layers outputs::are_the_same_everywhere
  first=$((first + every / 3))
done

model=${BITLINEAR_TEST_GGUF:-$(${PYTHON:-python3} examples/models/fetch.py | tail -n 1)} || model=
if [ -z "$model" ]; then
  not_run arm64 "the demo model, which could not be fetched"
else
  $CARGO rustc --quiet --profile sweep --target $target --lib --crate-type cdylib
  ln -sf libbitlinear.so "$folder/$target/sweep/libbitlinear.so.0"
  aarch64-linux-gnu-gcc -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -ffp-contract=off -Iinclude examples/c/llm/*.c \
    -o "$folder/$target/sweep/llm" -L"$folder/$target/sweep" -lbitlinear -lm -lpthread
  # 8 tokens of the prompt: an emulator does some 50 million multiply-adds a second.
  set -- --model "$model" --hash --tokens 8
  want=$("$folder/examples/llm" "$@")
  got=$($qemu -E LD_LIBRARY_PATH="$folder/$target/sweep" -cpu max "$folder/$target/sweep/llm" "$@")
  echo "arm64: logits of the demo model: $got, on this machine: $want"
  [ "$got" = "$want" ]
fi
