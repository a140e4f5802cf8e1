#!/bin/sh
# The AVX-512 VNNI and AVX-VNNI kernels on any x86-64 machine: tests/kernels.rs on Bochs' Sapphire Rapids, compared
# with hashes that the scalar kernels gave here. Every kernel that a layer can use must have run.
#
#   BITLINEAR_X86_EVERY=44   one in so many (an even number) of the shapes that cover every pair of sizes, others
#                            for each of the two instruction sets
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
PYTHON=${PYTHON:-python3}
every=${BITLINEAR_X86_EVERY:-44}

. tests/not_run.sh
leave() { # WHY
  not_run x86_emulated "$1"
  exit
}

[ "$(uname -sm)" = "Linux x86_64" ] || leave "the emulator's package is for Linux on x86-64"
# The emulator, in the cache beside the models. The package has a wheel for some versions of Python only.
cache=${BITLINEAR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bitlinear}
python="$cache/bochs-venv/bin/python"
if ! "$python" -c 'import importlib.metadata as m; m.version("bochscpu-python")' 2>/dev/null &&
  ! { "$PYTHON" -m venv "$cache/bochs-venv" && "$cache/bochs-venv/bin/pip" install -q \
    --disable-pip-version-check --only-binary :all: bochscpu-python==0.4.0; }; then
  rm -rf "$cache/bochs-venv"
  leave "the package bochscpu-python could not be installed (see above)"
fi

. tests/environment.sh
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$sweep_flags"
mkdir -p "$target_folder/tmp"
library=$target_folder/tmp/emulate.so
${CC:-cc} -O2 -Wall -Wextra -shared -fPIC tests/x86/emulate.c -o "$library" -ldl

pairs="every_kernel_equals_the_scalar_one_in_every_pair_of_sizes"
record=$BITLINEAR_SCALAR_HASHES # of tests/sweep.sh, all of them
if ! [ -s "$record" ]; then
  record=$target_folder/tmp/scalar-hashes-x86.txt
  BITLINEAR_TEST_RECORD=$record BITLINEAR_TEST_EVERY=$((every / 2)) \
    $CARGO test --quiet --profile sweep --test kernels -- --ignored "$pairs"
fi
program=$($CARGO test --profile sweep --test kernels --no-run 2>&1 | sed -n 's/.*(\(.*\)).*/\1/p' | tail -n 1)

run() { # INSTRUCTION-SET FIRST TEST...
  isa=$1 first=$2
  shift 2
  BITLINEAR_TEST_ONLY=$isa BITLINEAR_TEST_REQUIRE=$isa BITLINEAR_TEST_EVERY=$every \
    BITLINEAR_TEST_FIRST=$first BITLINEAR_TEST_RECORDED=$record \
    "$python" tests/x86/emulate.py "$library" sapphire_rapids "$program" --nocapture "$@"
}
both() { # INSTRUCTION-SET FIRST
  run "$1" "$2" --ignored "$pairs" && run "$1" "$2" rows_of_several_blocks
}
found() { # MODEL BEST: what the processor has is found, and used for every layout
  BITLINEAR_TEST_BEST=$2 "$python" tests/x86/emulate.py "$library" "$1" "$program" every_instruction_set
}
found sapphire_rapids avx512vnni
found arrow_lake avxvnni
start=$(date +%s)
both avxvnni $((every / 2)) >"$target_folder/tmp/avxvnni.txt" 2>&1 &
other=$!
status=0
both avx512vnni 0 || status=1
wait "$other" || status=1
cat "$target_folder/tmp/avxvnni.txt"
echo "x86_emulated: AVX-512 VNNI and AVX-VNNI on an emulated processor, 1 shape in $every: $(($(date +%s) - start)) s"
exit $status
