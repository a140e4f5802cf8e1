#!/bin/sh
# Builds the emulated driver:   tests/cuda/emulator/build.sh FOLDER [KERNEL_FOLDER]
# FOLDER gets libcuda.so.1 and a link libcuda.so; put it on LD_LIBRARY_PATH, or open the file by its path before the
# library looks for its driver. KERNEL_FOLDER: other sources than kernels/. CXX: g++ 12 or newer.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec make --no-print-directory -s -j "${JOBS:-2}" -f "$here/Makefile" OUT="${1:?a folder}" KERNELS="${2:-$here/../../../kernels}"
