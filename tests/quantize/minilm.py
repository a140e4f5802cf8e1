#!/usr/bin/env python3
"""What quantising all-MiniLM-L6-v2 costs: minilm.py TOOL LIBRARY MODEL

TOOL is the `bitlinear` command, LIBRARY libbitlinear.so, MODEL what `examples/models/fetch.py minilm`
fetches. Calibration sees the text of this repository's documentation; the cosines are of the twelve
sentences of tests/embed/reference.json, none of which is in it, against embeddings computed in double
precision by others. Activations stay f32: the figures are those of the weights alone. One line a way
of quantising; the exit code is 1 where one is below its bound.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOOL, LIBRARY, MODEL = sys.argv[1:4]
os.environ["BITLINEAR_LIBRARY"] = str(Path(LIBRARY).resolve())
sys.path.insert(0, str(ROOT / "examples/python"))
import bitlinear  # noqa: E402

BLOCKS, HEADS, WIDTH = 6, 12, 384
LINEARS = {
    "attention.self.query": "x", "attention.self.key": "x", "attention.self.value": "x",
    "attention.output.dense": "a", "intermediate.dense": "h", "output.dense": "g",
}  # fmt: skip


def read_safetensors(path):
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data, np.float32, np.prod(t["shape"], dtype=int), 8 + length + t["data_offsets"][0])
        .reshape(t["shape"]) for name, t in header.items() if t["dtype"] == "F32"
    }  # fmt: skip


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, np.float32).tobytes())


TENSORS = read_safetensors(MODEL)


def erf(x):
    """Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - p * np.exp(-x * x))


def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * TENSORS[name + ".LayerNorm.weight"] + TENSORS[name + ".LayerNorm.bias"]


def embed(ids, linear):
    n = len(ids)
    x = TENSORS["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x = x + TENSORS["embeddings.position_embeddings.weight"][:n] + TENSORS["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings")
    for block in range(BLOCKS):
        p = f"encoder.layer.{block}."
        q, k, v = (linear(p + "attention.self." + name, x).reshape(n, HEADS, -1).transpose(1, 0, 2) for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = (scores @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(x + linear(p + "attention.output.dense", mixed), p + "attention.output")
        up = linear(p + "intermediate.dense", x)
        up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
        x = norm(x + linear(p + "output.dense", up), p + "output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def exact(name, x):
    return x @ TENSORS[name + ".weight"].T.astype(np.float64) + TENSORS[name + ".bias"]


def calibration_ids():
    """Word pieces of text that was tokenised once: the model file holds no vocabulary."""
    return json.loads((Path(__file__).parent / "calibration_ids.json").read_text())["ids"]


def calibrate(folder):
    rows = {}

    def watching(name, x):
        rows.setdefault(name, []).append(x)
        return exact(name, x)

    for ids in calibration_ids():
        embed(ids, watching)
    inputs = Path(folder) / "inputs.safetensors"
    write_safetensors(inputs, {name: np.concatenate(x).astype(np.float32) for name, x in rows.items()})
    known = Path(folder) / "calibration.safetensors"
    subprocess.run([TOOL, "calibrate", inputs, "-o", known], check=True, stdout=subprocess.DEVNULL)
    return known


def cosine(path):
    model = bitlinear.Model(str(path))
    layers = {}

    def linear(name, x):
        if name not in layers:
            layers[name] = model.layer(name, activation=1)
        return layers[name](np.ascontiguousarray(x, np.float32)).astype(np.float64)

    reference = json.loads((ROOT / "tests/embed/reference.json").read_text())["sentences"]
    return float(np.mean([embed(s["ids"], linear) @ np.array(s["embedding"]) for s in reference]))


# name, file, arguments, bound
GPTQ = ["--calibration", "@", "--compensate"]
DAMPED, ROTATED = ["--damping", "0.3"], ["--rotate", "128", "--seed", "1"]
T = ["--type", "ternary"]
WAYS = [
    ("int8, fixed", "bl", ["--type", "int8", "--fixed"], 0.999),
    ("q8_0, fixed", "gguf", ["--type", "q8_0", "--fixed"], 0.999),
    ("int4 g32, fixed", "bl", ["--type", "int4", "--group", "32", "--fixed"], 0.955),
    ("int4 g32, search", "bl", ["--type", "int4", "--group", "32"], 0.97),
    ("int4 g32, calibrated", "bl", ["--type", "int4", "--group", "32", *GPTQ], 0.98),
    ("q4_k else q4_1, search", "gguf", ["--type", "q4_k", "--fallback", "q4_1"], 0.98),
    ("q4_k else q4_1, calibrated", "gguf", ["--type", "q4_k", "--fallback", "q4_1", *GPTQ], 0.985),
    ("ternary, fixed (BitNet)", "bl", [*T, "--fixed"], None),
    ("ternary, search", "bl", T, None),
    ("ternary, rotated, fixed", "bl", [*T, "--fixed", "--rotate", "128", "--seed", "1"], None),
    ("ternary, rotated, search", "bl", [*T, "--rotate", "128", "--seed", "1"], None),
    ("ternary, calibrated", "bl", [*T, *GPTQ], None),
    ("ternary, rotated, calibrated", "bl", [*T, "--rotate", "128", "--seed", "1", *GPTQ], None),
    ("ternary, 2 bases, fixed", "bl", [*T, "--bases", "2", "--fixed"], None),
    ("ternary, 2 bases, search", "bl", [*T, "--bases", "2"], None),
    ("ternary, 2 bases, calibrated", "bl", [*T, "--bases", "2", *GPTQ], None),
    ("ternary, 3 bases, fixed", "bl", [*T, "--bases", "3", "--fixed"], None),
    ("ternary, 3 bases, search", "bl", [*T, "--bases", "3"], None),
    ("ternary, 3 bases, calibrated", "bl", [*T, "--bases", "3", *GPTQ], None),
    ("ternary g64, fixed", "bl", [*T, "--group", "64", "--fixed"], None),
    ("ternary g64, search", "bl", [*T, "--group", "64"], None),
    ("ternary g64, calibrated", "bl", [*T, "--group", "64", *GPTQ, *DAMPED], None),
    ("ternary g64, rotated, search", "bl", [*T, "--group", "64", *ROTATED], None),
    ("ternary g64, rotated, calibrated", "bl", [*T, "--group", "64", *ROTATED, *GPTQ, *DAMPED], None),
    ("q2_k else q4_1, calibrated", "gguf", ["--type", "q2_k", "--fallback", "q4_1", *GPTQ], None),
    ("q3_k else q4_1, calibrated", "gguf", ["--type", "q3_k", "--fallback", "q4_1", *GPTQ], None),
]


def main():
    failed, found = 0, {}
    with tempfile.TemporaryDirectory() as folder:
        known = str(calibrate(folder))
        for name, ending, arguments, bound in WAYS:
            path = Path(folder) / f"model.{ending}"
            words = [known if word == "@" else word for word in arguments]
            # Encoder layers are the linear layers; the pooler is not used, embeddings are no layers.
            subprocess.run([TOOL, "quantize", MODEL, path, "--only", "encoder.layer", *words], check=True, stdout=subprocess.DEVNULL)
            found[name] = cosine(path)
            good = bound is None or found[name] >= bound
            failed += not good
            print(f"{'ok      ' if good else 'FAILED  '}{name:32} {found[name]:.6f}" + (f"  (at least {bound})" if bound else ""))
            sys.stdout.flush()
    for plain, better in [("int4 g32, fixed", "int4 g32, calibrated"), ("q4_k else q4_1, search", "q4_k else q4_1, calibrated")]:
        if found[better] <= found[plain]:
            failed += 1
            print(f"FAILED  {better} is not better than {plain}")
    # At equal bits: both have a scale for 64 weights.
    for plain, better in [("ternary g64, fixed", "ternary g64, rotated, calibrated")]:
        gap = (found["int4 g32, fixed"] - found[plain]) or 1
        closed = (found[better] - found[plain]) / gap
        good = closed >= 0.5
        failed += not good
        print(f"{'ok      ' if good else 'FAILED  '}{better} closes {100 * closed:.0f} % of the gap to int4")
    return 1 if failed else 0


sys.exit(main())
