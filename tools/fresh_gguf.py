"""Writes a GGUF file of fresh random tensors for tests/layers: fresh_gguf.py FILE [SEED]

Every format that the `gguf` package can quantise: `quantised.<NAME>.weight` from random weights. Every
other that it can dequantise: `random.<NAME>.weight`, blocks of random bytes. Beside each, as F32, what the
package reads back: `truth.<kind>.<NAME>`. Prints one line: what it wrote.
"""

import sys

import gguf
import numpy as np
from gguf import quants


def main():
    path = sys.argv[1]
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else np.random.SeedSequence().entropy
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    wrote = []
    for kind in gguf.GGMLQuantizationType:
        rows, columns = int(random.integers(1, 40)), 256 * int(random.integers(1, 4))
        weights = random.standard_normal((rows, columns), dtype=np.float32)
        if kind.name.startswith(("TQ", "Q2_0")):
            weights = np.sign(np.round(weights)) * np.float32(0.5)
        try:
            data = quants.quantize(weights, kind)
            name = "quantised." + kind.name
        except NotImplementedError:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = random.integers(0, 256, (rows, columns // block * size), dtype=np.uint8)
            name = "random." + kind.name
        try:
            truth = quants.dequantize(data, kind)
        except NotImplementedError:
            continue
        if kind is gguf.GGMLQuantizationType.BF16:
            data = data.view(np.uint8)
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)
        writer.add_tensor("truth." + name, truth.astype(np.float32))
        wrote.append(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"seed {seed}: {' '.join(wrote)}")


main()
