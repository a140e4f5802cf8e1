#!/bin/sh
# Prints where onnxruntime's shared library is: the one in its Python wheel, installed into the cache. Nothing
# is printed, and stderr says why, where it cannot be had.
version=1.32.0
cache=${BITLINEAR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bitlinear}
folder="$cache/onnxruntime-$version"
find_it() { find "$folder" -name "libonnxruntime.so.$version" 2>/dev/null | head -n 1; }
if [ -z "$(find_it)" ]; then
  "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$folder" "onnxruntime==$version" >&2 ||
    echo "bench: onnxruntime will not be measured (see above)" >&2
fi
find_it
