#!/usr/bin/env python3
"""Writes src/codec/iq1_s_grid.rs: the codebook of IQ1_S, which is data of the format.

    pip install numpy gguf && python3 tools/iq1s_grid.py
"""

import pathlib

import gguf
import numpy as np

quant = gguf.quants.IQ1_S
quant.init_grid()
grid = np.asarray(quant.grid).reshape(2048, 8).astype(np.int64)
assert set(np.unique(grid)) == {-1, 0, 1}
words = ((grid + 1) << (2 * np.arange(8))).sum(axis=1)

lines = [
    "//! The codebook of IQ1_S: made by `tools/iq1s_grid.py` from the PyPI package `gguf`; do not edit.",
    "",
    "/// Element `j` of vector `i` is bits `2 j` and `2 j + 1` of word `i`, less 1.",
    "#[rustfmt::skip]",
    "pub(super) static GRID: [u16; 2048] = [",
]
for row in words.reshape(-1, 16):
    lines.append("    " + " ".join(f"{int(word)}," for word in row))
lines += ["];", ""]
path = pathlib.Path(__file__).parent.parent / "src/codec/iq1_s_grid.rs"
path.write_text("\n".join(lines))
