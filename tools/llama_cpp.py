#!/usr/bin/env python3
"""llama.cpp on GGUF files, for comparing: that it reads what is written here, and what its own quantisers give.

    tools/llama_cpp.py run TEXT FILE.gguf ...            tokens, mean nll and perplexity of a text, tokens/s, an answer
    tools/llama_cpp.py convert FLOATS.gguf OURS.gguf THEIRS.gguf

`convert` copies OURS and writes over every quantised tensor what ggml makes of the same floats in the same type, so
that the two files differ in nothing but the quantiser. llama.cpp comes as it is built for node-llama-cpp (npm:
@node-llama-cpp/linux-x64, llama.cpp 0.5.0 with ggml 0.25.1), is checked against a hash and kept in the cache of
examples/models/fetch.py. Its structs are passed as they are given: only the fields that are set here must lie where
they are thought to, and that is checked by their defaults. Linux x86-64; needs npm and the packages numpy and gguf.
"""
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
P, I32 = ctypes.c_void_p, ctypes.c_int32


def libraries():
    """The folder of llama.cpp's libraries; fetched the first time."""
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "examples/models/fetch.py")
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    folder = fetch.cache_folder() / "llama_cpp-3.22.1"
    if not (folder / "libggml-base.so").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(folder.glob("*.tgz"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            archive.unlink()
            sys.exit(f"{PACKAGE} is not what it was")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.isfile() and member.name.startswith("package/bins/") and member.name.endswith(".so"):
                    (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())
        archive.unlink()
    return folder


class Struct(ctypes.Structure):
    """Room for a struct of parameters that is passed by value."""

    _fields_ = [("bytes", ctypes.c_ubyte * 1024)]

    def words(self):
        return (I32 * 16).from_buffer(self)


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", I32), ("token", ctypes.POINTER(I32)), ("embd", P), ("pos", ctypes.POINTER(I32)),
        ("n_seq_id", ctypes.POINTER(I32)), ("seq_id", ctypes.POINTER(ctypes.POINTER(I32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]  # fmt: skip


class Llama:
    def __init__(self):
        folder = libraries()
        self.ggml = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        backends = ctypes.CDLL(str(next(folder.glob("libggml.v*.so"))), ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
        self.silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, P)(lambda level, text, user: None)
        self.ggml.ggml_log_set(self.silent, None)
        self.lib.llama_log_set(self.silent, None)
        backends.ggml_backend_load_all_from_path(ctypes.c_char_p(os.fsencode(str(folder) + "/")))
        for name, result, arguments in [
            ("llama_model_default_params", Struct, []),
            ("llama_context_default_params", Struct, []),
            ("llama_model_load_from_file", P, [ctypes.c_char_p, Struct]),
            ("llama_init_from_model", P, [P, Struct]),
            ("llama_batch_init", Batch, [I32, I32, I32]),
            ("llama_decode", I32, [P, Batch]),
            ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [P]),
            ("llama_model_get_vocab", P, [P]),
            ("llama_vocab_n_tokens", I32, [P]),
            ("llama_tokenize", I32, [P, ctypes.c_char_p, I32, P, I32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_token_to_piece", I32, [P, I32, ctypes.c_char_p, I32, I32, ctypes.c_bool]),
            ("llama_batch_free", None, [Batch]),
            ("llama_free", None, [P]),
            ("llama_model_free", None, [P]),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        words = self.lib.llama_context_default_params().words()
        if list(words[:3]) != [512, 2048, 512] or not words[7] == words[8] > 0:
            sys.exit("llama_context_params is not laid out as it was")
        self.ggml.ggml_quantize_chunk.restype = self.ggml.ggml_row_size.restype = ctypes.c_size_t
        self.ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, P, P, *[ctypes.c_int64] * 3, P]

    def quantize(self, values, kind):
        """Rows of float32 as ggml quantises them."""
        rows, columns = values.shape
        out = np.zeros((rows, self.ggml.ggml_row_size(int(kind), columns)), np.uint8)
        self.ggml.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
        return out

    def run(self, path, text, threads):
        lib = self.lib
        model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not model:
            return f"{path}: llama.cpp cannot load it"
        vocabulary = lib.llama_model_get_vocab(model)
        size = lib.llama_vocab_n_tokens(vocabulary)
        ids = (I32 * (len(text) + 8))()
        count = lib.llama_tokenize(vocabulary, text, len(text), ids, len(ids), False, False)
        parameters = lib.llama_context_default_params()
        words = parameters.words()
        words[0] = words[1] = count + 32  # the context, and the largest batch
        words[7] = words[8] = threads
        context = lib.llama_init_from_model(model, parameters)
        batch = lib.llama_batch_init(count, 0, 1)

        def decode(tokens, first):
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
                batch.seq_id[i][0] = 0
            start = time.perf_counter()
            if lib.llama_decode(context, batch):
                sys.exit(f"{path}: llama_decode failed")
            logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(tokens), size)).astype(np.float64)
            return logits, time.perf_counter() - start

        logits, seconds = decode(ids[:count], 0)
        most = logits.max(-1)
        total = most + np.log(np.exp(logits - most[:, None]).sum(-1))
        nll = (total[:-1] - logits[np.arange(count - 1), ids[1:count]]).mean()
        answer, token, spent = b"", int(logits[-1].argmax()), 0.0
        for i in range(16):
            piece = ctypes.create_string_buffer(64)
            length = lib.llama_token_to_piece(vocabulary, token, piece, 64, 0, False)
            answer += piece.raw[: max(0, length)]
            logits, once = decode([token], count + i)
            token, spent = int(logits[-1].argmax()), spent + once
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        lib.llama_model_free(model)
        return (
            f"{path}: tokens {count - 1} mean_nll {nll:.6f} perplexity {np.exp(nll):.4f}; prompt {count / seconds:.1f} "
            f"tokens/s, generated {16 / spent:.1f}; goes on with {answer.decode(errors='replace')!r}"
        )


def convert(llama, source, ours, theirs):
    floats = {t.name: t for t in gguf.GGUFReader(source).tensors}
    shutil.copy(ours, theirs)
    done = 0
    for tensor in gguf.GGUFReader(theirs, "r+").tensors:
        kind = tensor.tensor_type
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
            continue
        found = floats[tensor.name]
        values = gguf.quants.dequantize(found.data, found.tensor_type).astype(np.float32)
        tensor.data[:] = llama.quantize(np.ascontiguousarray(values), kind).reshape(tensor.data.shape)
        done += 1
    print(f"{theirs}: {done} tensors as ggml quantises them")


def main():
    words = sys.argv[1:]
    if len(words) >= 3 and words[0] == "run":
        llama, text = Llama(), Path(words[1]).read_bytes()
        for path in words[2:]:
            print(llama.run(path, text, len(os.sched_getaffinity(0))), flush=True)
    elif len(words) == 4 and words[0] == "convert":
        convert(Llama(), *words[1:])
    else:
        sys.exit(__doc__)


main()
