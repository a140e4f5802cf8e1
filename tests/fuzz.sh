#!/bin/sh
# Every fuzz target for a while, two at a time, under AddressSanitizer: a crash, a leak, a hang of 20 s or
# more than 2 GiB of memory fails. New inputs stay in fuzz/corpus (ignored), what failed in fuzz/artifacts.
#
#   BITLINEAR_FUZZ_SECONDS=60   for each target
#
# The flags are those of cargo-fuzz, which is not needed. The sanitizer's option is unstable, so that a stable
# compiler is told to take it: only these programs are built so.
set -eu
cd "$(dirname "$0")/../fuzz"
. ../tests/not_run.sh
seconds=${BITLINEAR_FUZZ_SECONDS:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
  x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu) ;;
  *) not_run fuzz "no AddressSanitizer for $host"; exit ;;
esac

sh ../tests/tools.sh g++ || true
if ! command -v c++ >/dev/null 2>&1; then
  not_run fuzz "libFuzzer wants a C++ compiler, and there is none here"
  exit
fi

export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
-Zsanitizer=address --cfg fuzzing"
cargo build --quiet --release --bins --target "$host"

one() {
  mkdir -p "corpus/$1" "artifacts/$1"
  if "target/$host/release/$1" "corpus/$1" "seeds/$1" -max_total_time="$seconds" -max_len=6000 \
    -timeout=20 -rss_limit_mb=2048 -artifact_prefix="artifacts/$1/" >"artifacts/$1.log" 2>&1; then
    echo "fuzz: $1: $(grep -E '^Done' "artifacts/$1.log")"
  else
    echo "fuzz: $1 FAILED:"
    grep -vE '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse)' "artifacts/$1.log" | tail -n 40
    touch artifacts/failed
  fi
}

rm -f artifacts/failed
targets=$(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | grep -v '^bitlinear-fuzz$')
for target in $targets; do
  # Two at a time: the first of a pair in the background.
  if [ -z "${first:-}" ]; then
    first=$target
    one "$target" &
  else
    one "$target"
    wait
    first=
  fi
done
wait
if [ -e artifacts/failed ]; then exit 1; fi
