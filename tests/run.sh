#!/bin/sh
# What `make test` runs after the build. Prints what ran and what could not, with the reason.
set -eu
CARGO=${CARGO:-cargo}
PYTHON=${PYTHON:-python3}

. tests/environment.sh
. tests/not_run.sh

echo "tests: the header is what src/capi says"
$CARGO xtask header --check

model=$("$PYTHON" examples/models/fetch.py | tail -n 1) || model=
if [ -n "$model" ]; then
  export BITLINEAR_TEST_GGUF="$model"
else
  not_run tests "all that needs the demo model; it could not be fetched (see above)"
fi

# A Python with the packages `gguf` and `safetensors`, for tests that read what they write and have them
# read what is written here, in the cache beside the model.
cache=${BITLINEAR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bitlinear}
if [ -z "${BITLINEAR_TEST_PYTHON:-}" ]; then
  if "$cache/gguf-venv/bin/python" -c 'import gguf, safetensors' 2>/dev/null ||
    { "$PYTHON" -m venv "$cache/gguf-venv" && "$cache/gguf-venv/bin/pip" install -q \
      --disable-pip-version-check gguf==0.19.0 safetensors==0.8.0; }; then
    export BITLINEAR_TEST_PYTHON="$cache/gguf-venv/bin/python"
  else
    rm -rf "$cache/gguf-venv"
    not_run tests "reading what gguf-py writes and the other way; the packages could not be installed (see above)"
  fi
fi

# shellcheck disable=SC2086 # words
$CARGO test $test_packages

if [ -n "$model" ]; then
  echo "tests: the demo model through the C program"
  "$PYTHON" tests/llm/test_llm.py "$target_folder/examples/llm" "$model"
fi

minilm=$("$PYTHON" examples/models/fetch.py minilm | tail -n 1) || minilm=
if [ -n "$minilm" ]; then
  echo "tests: sentence embeddings through the C program"
  "$PYTHON" tests/embed/test_embed.py "$target_folder/examples/embed" "$minilm"
  if [ -n "${BITLINEAR_TEST_PYTHON:-}" ]; then
    echo "tests: what quantising sentence embeddings costs"
    "$BITLINEAR_TEST_PYTHON" tests/quantize/minilm.py --quick "$target_folder/debug/bitlinear" \
      "$target_folder/release/libbitlinear.so" "$minilm"
  else
    not_run tests "tests/quantize/minilm.py; it needs a Python with numpy (see above)"
  fi
else
  not_run tests "tests/embed and tests/quantize/minilm.py; the model could not be fetched (see above)"
fi
