#!/bin/sh
# What `make demo` runs after the build: a real language model whose every linear layer is in
# libbitlinear answers a prompt. Without a network it says so and runs a tiny random one instead.
set -eu
PYTHON=${PYTHON:-python3}
PROMPT=${PROMPT:-Why is the sky blue?}
LENGTH=${LENGTH:-120}
target=${CARGO_TARGET_DIR:-target}

model=$("$PYTHON" examples/models/fetch.py | tail -n 1) || model=
if [ -z "$model" ]; then
  model=$target/tiny_llama.gguf
  echo "demo: the model could not be fetched. Running a tiny model with random weights instead:"
  echo "demo: the text will be noise, but every layer is real work for the library."
  "$PYTHON" examples/models/tiny_llama.py "$model"
fi
echo "demo: $model"
echo "demo: prompt: $PROMPT"
echo
"$target/examples/llm" --model "$model" --prompt "$PROMPT" --length "$LENGTH"
