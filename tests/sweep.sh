#!/bin/sh
# Every kernel on every pair of sizes against the scalar ones, as a matrix; keeps the hashes of the results
# for tests/arm64.sh.
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
. tests/environment.sh
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$sweep_flags"
mkdir -p "$(dirname "$BITLINEAR_SCALAR_HASHES")"
BITLINEAR_TEST_RECORD=$BITLINEAR_SCALAR_HASHES $CARGO test --quiet --profile sweep --test kernels -- \
  --ignored --nocapture every_kernel_equals_the_scalar_one_in_every_pair_of_sizes
