#!/bin/sh
# CUDA without a GPU: the emulated one is built and tested, then the kernels and the whole library run on it, in several
# schedules and on several capabilities; then the compiled kernels are compiled again and looked into.
#   BITLINEAR_CUDA_CHECK=0    leaves the compiler out, which is a download of 170 MB
#   BITLINEAR_CUDA_FAULTS=1   plants a few faults too (all: tests/cuda/mutate.py)
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
. tests/environment.sh
. tests/not_run.sh

sh tests/tools.sh g++ || true
if ! g++ -std=c++20 -E -x c++ - </dev/null >/dev/null 2>&1; then
  not_run cuda "the emulated GPU wants g++ 12 or newer, and there is none here"
  exit
fi

folder=$PWD/target/emulator
start=$(date +%s)
say() { echo "cuda: $* (after $(($(date +%s) - start)) s)"; }

say "the emulated GPU"
sh tests/cuda/emulator/build.sh "$folder"
g++ -std=c++20 -O1 -Wall -Wextra -o "$folder/selftest" tests/cuda/selftest.cpp -ldl
"$folder/selftest" "$folder"

# Schedules: 0 to 5 are forward, reverse, random, and the same with one warp at a time as far as it gets
# (tests/cuda/emulator/engine.hpp). The first run is the complete one; the others take every third case, each other ones.
say "kernels and library, built"
# shellcheck disable=SC2086 # words
tests=$($CARGO test $test_packages --no-run --message-format=json --test cuda_kernels --test cuda 2>/dev/null |
  sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
[ "$(echo "$tests" | wc -l)" = 2 ] # one that is not found would be one that is not run
export BITLINEAR_EMULATOR="$folder"
run() { # order seed capability poison every
  for test in $tests; do
    log=$folder/log.$1.$(basename "$test")
    BL_EMU_ORDER=$1 BL_EMU_SEED=$2 BL_EMU_CC=$3 BL_EMU_POISON=$4 BITLINEAR_TEST_EVERY=$5 "$test" >"$log" 2>&1 || {
      echo "cuda: FAILED in schedule $1, seed $2, capability $3, poison $4:"
      cat "$log"
      return 1
    }
  done
}
# 9.0 has all kernels.
run 0 1 90 0xA5 1
say "forward on 9.0: all cases"
# Two at a time.
run 1 2 75 0xFF 3 &
run 2 3 86 0x00 3
wait $!
say "reverse on 7.5, random on 8.6"
run 3 4 89 0x7F 3 &
run 4 5 80 0xFF 3
wait $!
say "greedy on 8.9, greedy reverse on 8.0"
run 5 6 120 0xA5 3
say "greedy random on 12.0"

if [ "${BITLINEAR_CUDA_FAULTS:-0}" = 0 ]; then
  echo "cuda: NOT RUN: planted faults; BITLINEAR_CUDA_FAULTS=1 plants some"
elif command -v python3 >/dev/null 2>&1; then
  say "a few planted faults (all: tests/cuda/mutate.py)"
  python3 tests/cuda/mutate.py --few --every 5
else
  not_run cuda "planted faults; there is no python3"
fi

if [ "${BITLINEAR_CUDA_CHECK:-1}" = 0 ]; then
  echo "cuda: NOT RUN: compiling the kernels again; BITLINEAR_CUDA_CHECK=0"
elif ! sh tools/get-nvrtc.sh; then
  not_run cuda "compiling the kernels again; the compiler could not be fetched (see above)"
else
  $CARGO xtask kernels --check
  say "kernels/prebuilt"
fi
