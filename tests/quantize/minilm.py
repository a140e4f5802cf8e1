#!/usr/bin/env python3
"""What quantising all-MiniLM-L6-v2 costs: minilm.py [--quick] TOOL LIBRARY MODEL

TOOL is the `bitlinear` command, LIBRARY libbitlinear.so, MODEL what `examples/models/fetch.py minilm` fetches.
Each line is a way of quantising the 36 layers of the encoder, and the mean cosine between sentence embeddings
and those of double precision: of the twelve sentences of tests/embed/reference.json (computed by others), and
of the held-out sentences of sentences.json (computed here, by the same code with float weights). Calibration
sees other sentences. Activations stay f32: the figures are those of the weights alone. The exit code is 1
where a figure is below its bound. --quick: fewer sentences, the ways that a user takes first; under a minute.
"""
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
QUICK = "--quick" in sys.argv
TOOL, LIBRARY, MODEL = [word for word in sys.argv[1:] if word != "--quick"]
os.environ["BITLINEAR_LIBRARY"] = str(Path(LIBRARY).resolve())
sys.path.insert(0, str(ROOT / "examples/python"))
import bitlinear  # noqa: E402

BLOCKS, HEADS = 6, 12
QKV = ("attention.self.query", "attention.self.key", "attention.self.value")


def read_safetensors(path):
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data, np.float32, np.prod(t["shape"], dtype=int), 8 + length + t["data_offsets"][0])
        .reshape(t["shape"]) for name, t in header.items() if t["dtype"] == "F32"
    }  # fmt: skip


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


def embed(sentences, linear, dtype=np.float64):
    """Embeddings of sentences of word pieces; `linear(name, x)` is a layer of the encoder."""
    ends = np.cumsum([0] + [len(ids) for ids in sentences])
    pieces = list(zip(ends, ends[1:]))
    ids, places = np.concatenate(sentences), np.concatenate([np.arange(len(ids)) for ids in sentences])
    x = TENSORS["embeddings.word_embeddings.weight"][ids].astype(dtype)
    x = x + TENSORS["embeddings.position_embeddings.weight"][places] + TENSORS["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings")
    for block in range(BLOCKS):
        p = f"encoder.layer.{block}."
        q, k, v = (linear(p + name, x) for name in QKV)
        mixed = np.empty_like(x)
        for start, end in pieces:
            a, b, c = (m[start:end].reshape(end - start, HEADS, -1).transpose(1, 0, 2) for m in (q, k, v))
            scores = a @ b.transpose(0, 2, 1) / float(np.sqrt(a.shape[-1]))
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed[start:end] = (scores @ c).transpose(1, 0, 2).reshape(end - start, -1)
        x = norm(x + linear(p + "attention.output.dense", mixed), p + "attention.output")
        up = linear(p + "intermediate.dense", x)
        up = up * 0.5 * (1 + erf(up / float(np.sqrt(2))))
        x = norm(x + linear(p + "output.dense", up), p + "output")
    mean = np.stack([x[start:end].mean(0) for start, end in pieces])
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def exact(name, x):
    return x @ TENSORS[name + ".weight"].T.astype(x.dtype) + TENSORS[name + ".bias"]


SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text())
REFERENCE = json.loads((ROOT / "tests/embed/reference.json").read_text())["sentences"]
SETS = [
    ([s["ids"] for s in REFERENCE], np.array([s["embedding"] for s in REFERENCE])),
    (SENTENCES["held_out"], embed(SENTENCES["held_out"], exact)),
]


def cosines(linear):
    """The mean of each set."""
    return [float(np.mean(np.sum(embed(sentences, linear) * wanted, -1))) for sentences, wanted in SETS]


def calibrate(folder):
    """Adds the inputs of all layers, a few sentences at a time."""
    library, handle = bitlinear._library, ctypes.c_void_p()
    library.bl_calibration_create.argtypes = [ctypes.c_void_p] * 4
    library.bl_calibrate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64,
                                     ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p]  # fmt: skip
    library.bl_calibration_save.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    bitlinear._call("bl_calibration_create", None, None, ctypes.byref(handle))

    def watching(name, x):
        rows = np.ascontiguousarray(x, np.float32)
        bitlinear._call("bl_calibrate", handle, name.encode(), *rows.shape, rows.ctypes.data, 1, 0)
        return exact(name, x)

    sentences = SENTENCES["calibration"][: 400 if QUICK else None]
    for first in range(0, len(sentences), 100):
        embed(sentences[first : first + 100], watching, np.float32)
    known = Path(folder) / "calibration.safetensors"
    bitlinear._call("bl_calibration_save", handle, str(known).encode())
    library.bl_free(handle)
    print(f"calibrated with {len(sentences)} sentences of {sum(map(len, sentences))} word pieces")
    return known


def opened(path):
    """The layers of a quantised file."""
    model, layers = bitlinear.Model(str(path)), {}

    def linear(name, x):
        if name not in layers:
            layers[name] = model.layer(name, activation=1)
        return layers[name](np.ascontiguousarray(x, np.float32)).astype(np.float64)

    return linear


def int4_by_formula(name, x):
    """int4 in groups of 32 by its fixed rule, in numpy: what the rule itself costs."""
    w = TENSORS[name + ".weight"].reshape(-1, 32)
    scale = np.maximum(np.abs(w).max(-1, keepdims=True) / np.float32(7), np.float32(1e-5))
    codes = np.clip(np.sign(w) * np.floor(np.abs(w / scale) + np.float32(0.5)), -8, 7)
    return x @ (codes * scale).reshape(TENSORS[name + ".weight"].shape).T.astype(x.dtype) + TENSORS[name + ".bias"]


# name, file, arguments, the least cosine of the twelve, whether --quick has it
GPTQ = ["--calibration", "@", "--compensate"]
ROTATED = ["--rotate", "128", "--seed", "1"]
INT4, TERNARY = ["--type", "int4", "--group", "32"], ["--type", "ternary"]
GROUPS, Q4_K = [*TERNARY, "--group", "64"], ["--type", "q4_k", "--fallback", "q4_1"]
WAYS = [
    ("int8, fixed", "bl", ["--type", "int8", "--fixed"], 0.999, True),
    ("q8_0, fixed", "gguf", ["--type", "q8_0", "--fixed"], 0.999, False),
    ("int4 g32, fixed", "bl", [*INT4, "--fixed"], 0.955, True),
    ("int4 g32, search", "bl", INT4, 0.97, True),
    ("int4 g32, calibrated", "bl", [*INT4, *GPTQ], 0.987 if QUICK else 0.99, True),
    ("q4_k else q4_1, search", "gguf", Q4_K, 0.98, True),
    ("q4_k else q4_1, calibrated", "gguf", [*Q4_K, *GPTQ], 0.99, True),
    ("q3_k else q4_1, calibrated", "gguf", ["--type", "q3_k", "--fallback", "q4_1", *GPTQ], None, False),
    ("q2_k else q4_1, calibrated", "gguf", ["--type", "q2_k", "--fallback", "q4_1", *GPTQ], None, False),
    ("ternary, fixed (BitNet)", "bl", [*TERNARY, "--fixed"], None, False),
    ("ternary, search", "bl", TERNARY, None, False),
    ("ternary, rotated, fixed", "bl", [*TERNARY, "--fixed", *ROTATED], None, False),
    ("ternary, rotated, search", "bl", [*TERNARY, *ROTATED], None, False),
    ("ternary, calibrated", "bl", [*TERNARY, *GPTQ], None, False),
    ("ternary, rotated, calibrated", "bl", [*TERNARY, *ROTATED, *GPTQ], None, False),
    ("ternary, 2 bases, fixed", "bl", [*TERNARY, "--bases", "2", "--fixed"], None, False),
    ("ternary, 2 bases, search", "bl", [*TERNARY, "--bases", "2"], None, False),
    ("ternary, 2 bases, calibrated", "bl", [*TERNARY, "--bases", "2", *GPTQ], None, False),
    ("ternary, 3 bases, fixed", "bl", [*TERNARY, "--bases", "3", "--fixed"], None, False),
    ("ternary, 3 bases, search", "bl", [*TERNARY, "--bases", "3"], None, False),
    ("ternary, 3 bases, calibrated", "bl", [*TERNARY, "--bases", "3", *GPTQ], None, False),
    ("ternary g64, fixed", "bl", [*GROUPS, "--fixed"], None, True),
    ("ternary g64, search", "bl", GROUPS, None, False),
    ("ternary g64, calibrated", "bl", [*GROUPS, *GPTQ], None, True),
    ("ternary g64, rotated, fixed", "bl", [*GROUPS, *ROTATED, "--fixed"], None, False),
    ("ternary g64, rotated, calibrated", "bl", [*GROUPS, *ROTATED, *GPTQ], None, False),
]  # fmt: skip


def main():
    failed, found = 0, {}

    def report(good, text):
        nonlocal failed
        failed += not good
        print(f"{'ok      ' if good else 'FAILED  '}{text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        known = str(calibrate(folder))
        for name, ending, arguments, bound, quick in WAYS:
            if QUICK and not quick:
                continue
            path = Path(folder) / f"model.{ending}"
            words = [known if word == "@" else word for word in arguments]
            # Encoder layers are the linear layers; the pooler is not used, embeddings are no layers.
            command = [TOOL, "quantize", MODEL, path, "--only", "encoder.layer", "--threads", "2", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            mean, held_out = cosines(opened(path))
            found[name] = mean
            least = "" if bound is None else f"  (at least {bound})"
            report(bound is None or mean >= bound, f"{name:34} {mean:.4f}  held out {held_out:.4f}{least}")
    by_formula = cosines(int4_by_formula)[0]
    same = abs(by_formula - found["int4 g32, fixed"]) < 1e-4
    report(same, f"{'int4 g32, fixed, by numpy':34} {by_formula:.4f}  (the same)")
    for kind in "int4 g32", "q4_k else q4_1":
        plain, better = found[f"{kind}, search"], found[f"{kind}, calibrated"]
        report(better > plain, f"{kind}: calibrated is better than searched")
    # At equal bits: both have a scale for 64 weights. What a search closes is not counted as calibration's.
    plain, better = found["ternary g64, fixed"], found["ternary g64, calibrated"]
    closed = (better - plain) / (found["int4 g32, fixed"] - plain)
    report(QUICK or closed >= 0.5, f"calibration closes {100 * closed:.0f} % of ternary's gap to int4 (groups of 64)")
    return 1 if failed else 0


sys.exit(main())
