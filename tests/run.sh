#!/bin/sh
# What `make test` runs after the build. Prints what ran and what could not, with the reason.
set -eu
CARGO=${CARGO:-cargo}
PYTHON=${PYTHON:-python3}

# Every instruction set that this CPU has must be exercised: a test that listed none would pass.
required=scalar
if [ -r /proc/cpuinfo ]; then
  flags=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || true)
  has() { case " $flags " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
  if has avx2 && has fma && has f16c; then required="$required,avx2"; fi
  if has avx512f && has avx512bw && has avx512dq && has avx512vl && has avx512_vnni; then
    required="$required,avx512vnni"
  fi
fi
export BITLINEAR_TEST_REQUIRE="$required"
echo "tests: instruction sets that must be exercised here: $required"

echo "tests: the header is what src/capi says"
$CARGO xtask header --check

model=$("$PYTHON" examples/models/fetch.py | tail -n 1) || model=
if [ -n "$model" ]; then
  export BITLINEAR_TEST_GGUF="$model"
else
  echo "tests: NOT RUN: all that needs the demo model; it could not be fetched (see above)"
fi

$CARGO test --workspace

if [ -n "$model" ]; then
  echo "tests: the demo model through the C program"
  "$PYTHON" tests/llm/test_llm.py target/examples/llm "$model"
fi
