#!/bin/sh
# Fetches NVIDIA's compiler and assemblers for `cargo xtask kernels`, in exact versions, from PyPI:
#     tools/get-nvrtc.sh [FOLDER]            (target/nvrtc)
# Nothing is installed: the wheels are unpacked below FOLDER. Needs pip and unzip, 170 MB of download and 620 MB of
# disk. Nobody who builds or uses the library needs any of it: the compiled kernels are in kernels/prebuilt.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/nvrtc}
mkdir -p "$folder"

# get NAME PACKAGE==VERSION SHA256: the wheel, unpacked below FOLDER/NAME
get() {
  [ -e "$folder/$1/complete" ] && return
  rm -rf "${folder:?}/$1"
  mkdir -p "$folder/$1/wheel"
  echo "$2 --hash=sha256:$3" >"$folder/$1/requirements"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --platform manylinux2014_x86_64 \
    --require-hashes -r "$folder/$1/requirements" -d "$folder/$1/wheel"
  unzip -qo "$folder/$1"/wheel/*.whl -d "$folder/$1"
  rm -r "$folder/$1/wheel"
  find "$folder/$1" -path '*/bin/*' -type f -exec chmod a+x {} +
  touch "$folder/$1/complete"
}

# The compiler. 12.9 is the newest of CUDA 12, whose machine code every driver from 525 on runs.
get nvrtc-12.9 nvidia-cuda-nvrtc-cu12==12.9.86 210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4
# Assemblers, old ones too: what they take, the drivers of their time take.
get nvcc-11.8 nvidia-cuda-nvcc-cu11==11.8.89 f8e1e995166c884f2f5bf94975d7abb89175363b8712f7f81cd38d0df1b2cd85
get nvcc-12.0 nvidia-cuda-nvcc-cu12==12.0.140 958d54df87d0c0b7207e7fed403d6eeda0890a01cc44cfeaccf87c7f90e9b165
get nvcc-12.9 nvidia-cuda-nvcc-cu12==12.9.86 5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0
# The disassembler; the first one on PyPI.
get nvdisasm-13.2 nvidia-cuda-nvdisasm==13.2.51 5a7acf77c55d6d2911ed6155d4d5bc156ffadf9df7a68a89b0c1155f4b13688c
