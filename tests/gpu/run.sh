#!/bin/sh
# Everything that only a card can show, in under 20 minutes:     sh run.sh      in the folder that pack.sh made
# What cannot run is said, with the reason. Ends with 1 if something failed, with 77 if there is no card.
set -u
cd "$(dirname "$0")"
here=$PWD
failed=
begin=$(date +%s)
step() { printf '\n== %s (after %d s)\n' "$1" $(($(date +%s) - begin)); }
# try NAME COMMAND...: remembers a failure, goes on
try() {
  name=$1
  shift
  "$@"
  case $? in
    0) echo "$name: passed" ;;
    77) echo "$name: NOT RUN (see above)" ;;
    *)
      echo "$name: FAILED"
      failed="$failed $name"
      ;;
  esac
}

# Containers sometimes keep the driver's libraries off the usual path.
for place in /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu /usr/lib64; do
  [ -e "$place/libcuda.so.1" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place
done
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
if ! command -v nvidia-smi >/dev/null 2>&1 || ! nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv; then
  echo "tests/gpu: NOT RUN: no card here (nvidia-smi finds none)"
  exit 77
fi
export BITLINEAR_LIBRARY="$here/libbitlinear.so"

step "wrappers: the real bodies against the emulated ones"
try probes ./probes emulator images

# On the machine's own driver, with these images, in place of the emulated one.
export BITLINEAR_TEST_CARD="$here/images"
step "every layout against the scalar kernels, machine code"
try kernels ./test_kernels
step "every layout against the scalar kernels, PTX"
try "kernels (PTX)" env BITLINEAR_CUDA_PTX=1 ./test_kernels

step "PyTorch: results against the CPU's, a captured graph"
try card.py python3 card.py check
try "card.py (PTX)" env BITLINEAR_CUDA_PTX=1 python3 card.py check

step "compute-sanitizer"
if command -v compute-sanitizer >/dev/null 2>&1; then
  for tool in memcheck racecheck; do
    try "$tool" env BITLINEAR_TEST_EVERY=20 timeout 240 compute-sanitizer --tool $tool --error-exitcode 1 ./test_kernels
  done
else
  echo "compute-sanitizer: NOT RUN: it is not installed"
fi

step "speed"
try bench python3 card.py bench

echo
if [ -n "$failed" ]; then
  echo "tests/gpu: FAILED:$failed"
  exit 1
fi
echo "tests/gpu: passed"
