# What the scripts here share; sourced from the root. BITLINEAR_TEST_REQUIRE: every instruction set that this
# CPU has must be exercised, as a test that listed none would pass.
required=scalar
if [ -r /proc/cpuinfo ]; then
  flags=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || true)
  has() { case " $flags " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
  if has avx2 && has fma && has f16c; then required="$required,avx2"; fi
  if has avx2 && has fma && has f16c && has avx_vnni; then required="$required,avxvnni"; fi
  if has avx512f && has avx512bw && has avx512dq && has avx512vl && has avx512_vnni; then
    required="$required,avx512vnni"
  fi
  if has asimd; then required="$required,neon"; fi
  if has asimddp; then required="$required,dotprod"; fi
  if has i8mm; then required="$required,i8mm"; fi
fi
export BITLINEAR_TEST_REQUIRE="$required"
echo "tests: instruction sets that must be exercised here: $required"

# Tests are compiled in one go, as they are on a fresh machine: the library's kernels in 16 or 256 pieces, and what
# compiling a changed file again would need, make that half as long again. Where one works on the code, plain
# `cargo test` keeps its own, and is faster the second time.
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
export CARGO_PROFILE_TEST_CODEGEN_UNITS="${CARGO_PROFILE_TEST_CODEGEN_UNITS:-1}"
# All tests, those of the command-line tool too: the library is compiled once more for every other set of packages and
# features (tests/bindings.rs and tests/cuda/mutate.py name this one as well).
test_packages="--workspace --features cli"

# For the long runs of tests/kernels.rs (profile `sweep`): what the scalar kernels are compiled to matters to their time
# alone, which is most of the time of all. `make test` runs what ships.
case ",$required," in
  *,avx2,*) sweep_flags="-C target-feature=+avx2,+fma,+f16c" ;;
  *) sweep_flags="" ;;
esac

# Cargo's target folder, and the scalar kernels' results in it.
target_folder=$(${CARGO:-cargo} metadata --format-version 1 --no-deps |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
export BITLINEAR_SCALAR_HASHES="$target_folder/tmp/scalar-hashes.txt"
