#!/usr/bin/env python3
"""Writes tests/data/vectors/random_blocks.json: random blocks of every ggml format that the PyPI
package `gguf` can dequantise, and what it makes of them. They reach bit patterns that no quantiser
writes, and the formats for which the other vectors have none.

    pip install numpy gguf && python3 tools/codec_vectors.py
"""

import json
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

HALVES = {  # where f16 scales stand in a block
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "TQ1_0": [52], "TQ2_0": [64], "IQ1_S": [0], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
rng = np.random.default_rng(20260101)
formats = {}
for name, halves in HALVES.items():
    elements, nbytes = gguf.GGML_QUANT_SIZES[T[name]]
    count = 32 if elements == 32 else 6
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    for at in halves:
        scales = (rng.standard_normal(count) * 0.1).astype(np.float16)
        scales[0] = np.float16(5.9604645e-08)  # the smallest subnormal
        scales[1] = np.float16(65504.0)
        scales[2] = np.float16(-3.0e-06)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if name == "MXFP4":
        blocks[:4, 0] = [0, 1, 2, 255]
    values = gguf.quants.dequantize(blocks.reshape(1, -1), T[name]).astype("<f4")
    formats[name.lower()] = {
        "columns": int(values.size),
        "packed_hex": blocks.tobytes().hex(),
        "dequantized_f32_hex": values.tobytes().hex(),
    }
path = pathlib.Path(__file__).parent.parent / "tests/data/vectors/random_blocks.json"
path.write_text(json.dumps({"producer": "gguf-py, tools/codec_vectors.py", "formats": formats}, indent=1) + "\n")
