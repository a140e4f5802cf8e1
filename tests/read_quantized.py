#!/usr/bin/env python3
"""read_quantized.py (FILE NAME TRUTH)...: reads a layer with gguf-py or safetensors and compares it, value
for value, with f32 in a file. The formats of safetensors layers are decoded here by their own formulas."""
import sys

import gguf
import numpy as np
from safetensors.numpy import load_file


def of_gguf(path, name):
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    assert list(tensor.shape) == [512, 64], tensor.shape
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(64, 512)


def of_safetensors(path, name):
    try:
        tensors = load_file(path)
    except TypeError:  # numpy has no bf16: the file is checked by the package's own reader of bytes
        from safetensors import deserialize

        tensors = {}
        for key, info in deserialize(open(path, "rb").read()):
            if info["dtype"] == "BF16":
                bits = np.frombuffer(info["data"], np.uint16).astype(np.uint32) << 16
                tensors[key] = bits.view(np.float32).reshape(info["shape"])
    if name + ".weight_packed" in tensors:
        packed, scales = tensors[name + ".weight_packed"], tensors[name + ".scales"]
        packed = packed.reshape(packed.shape[0], packed.shape[1], -1)
        codes = (packed[:, :, None, :] >> (2 * np.arange(4, dtype=np.uint8))[None, None, :, None]) & 3
        values = np.array([0, 1, -1, 0], np.float32)[codes].reshape(packed.shape[0], -1, packed.shape[2])
        total = values[:, :, 0] * scales[0]
        for base in range(1, len(scales)):
            total = total + values[:, :, base] * scales[base]
        return total
    if name + ".weight_4bit" in tensors:
        packed, scales = tensors[name + ".weight_4bit"], tensors[name + ".scales_4bit"]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1).astype(np.float32) - 8
        return codes * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    if name + ".weight_scale" in tensors:
        packed, scale = tensors[name + ".weight"], tensors[name + ".weight_scale"]
        codes = np.concatenate([(packed >> (2 * i)) & 3 for i in range(4)])
        return (codes.astype(np.float32) - 1) * scale[0]
    return tensors[name + ".weight"].astype(np.float32)


def main():
    words = iter(sys.argv[1:])
    for path, name, truth in zip(words, words, words):
        read = of_gguf if path.endswith(".gguf") else of_safetensors
        values = read(path, name)
        want = np.fromfile(truth, np.float32).reshape(64, 512)
        assert values.shape == want.shape and np.array_equal(values, want), path
        print("same", path)


main()
