#!/usr/bin/env python3
"""What only a card and PyTorch can show: results against the CPU's, a capture, speed.

    card.py check      every type and batch equals the CPU bit for bit; a graph that PyTorch captured replays
    card.py bench      GEMV and GEMM against the card's own copy bandwidth and torch._int_mm

BITLINEAR_LIBRARY: the library. Exits with 77, and says why, where there is no PyTorch or no card.
"""
import ctypes
import os
import sys

try:
    import torch

    if not torch.cuda.is_available():
        raise ImportError("no CUDA device")
except ImportError as reason:
    print(f"card.py: NOT RUN: {reason}")
    sys.exit(77)

U32, I64, P = ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p
library = ctypes.CDLL(os.environ["BITLINEAR_LIBRARY"])
TYPES = {"ternary": 16, "binary": 17, "int4": 18, "int8": 19}  # bl_type
F32, F16, BF16 = 1, 2, 3
TORCH = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 252)]


class Sized(ctypes.Structure):
    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class LayerOptions(Sized):
    _fields_ = [("struct_size", U32), ("type", U32), ("activation", U32), ("flags", U32)]


class RunOptions(Sized):
    _fields_ = [("struct_size", U32), ("flags", U32), ("workspace", P), ("workspace_size", ctypes.c_size_t)]


class PlanInfo(Sized):
    _fields_ = [("struct_size", U32), ("threads", U32), ("kernel", ctypes.c_char_p), ("workspace_size", ctypes.c_uint64),
                ("workspace_alignment", ctypes.c_uint64), ("bytes_read", ctypes.c_uint64), ("operations", ctypes.c_uint64)]


def call(name, *arguments):
    error = Error()
    status = getattr(library, name)(*arguments, ctypes.byref(error))
    if status:
        raise RuntimeError(f"{name}: {status}: {error.message.decode()}")


library.bl_free.argtypes = [P]


class Layer:
    """Random weights, rounded by the library: on the CPU, and a copy on the card."""

    def __init__(self, out_features, in_features, kind, seed=1):
        self.n, self.k = out_features, in_features
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(out_features, in_features, generator=generator)
        self.cpu, self.card = P(), P()
        options = LayerOptions(type=kind)
        call("bl_layer_create", None, I64(out_features), I64(in_features), P(weights.data_ptr()), U32(F32), I64(4 * in_features),
             ctypes.byref(options), ctypes.byref(self.cpu))
        call("bl_layer_copy", self.cpu, U32(1), None, None, ctypes.byref(self.card))

    def plan(self, m, x_type=F16):
        info = PlanInfo()
        call("bl_plan", self.card, U32(0), I64(m), U32(x_type), ctypes.byref(info))
        return info

    def on_cpu(self, x):
        m = x.shape[0]
        x, y = x.float().cpu().contiguous(), torch.empty(m, self.n)
        call("bl_forward", self.cpu, I64(m), P(x.data_ptr()), U32(F32), I64(4 * self.k), P(y.data_ptr()), U32(F32),
             I64(4 * self.n), None)
        return y

    def forward(self, x, y, workspace):
        kinds = {v: k for k, v in TORCH.items()}
        layers, ys, strides = (P * 1)(self.card), (P * 1)(y.data_ptr()), (I64 * 1)(y.stride(0) * y.element_size())
        options = RunOptions(workspace=workspace.data_ptr(), workspace_size=workspace.numel())
        call("bl_forward_device", layers, ctypes.c_size_t(1), I64(x.shape[0]), P(x.data_ptr()), U32(kinds[x.dtype]),
             I64(x.stride(0) * x.element_size()), ys, U32(kinds[y.dtype]), strides, ctypes.byref(options),
             P(torch.cuda.current_stream().cuda_stream))

    def __del__(self):
        library.bl_free(self.card)
        library.bl_free(self.cpu)


def workspace(layer, m, x_type=F16):
    return torch.empty(layer.plan(m, x_type).workspace_size, dtype=torch.uint8, device="cuda")


def check(kinds):
    wrong = 0
    for name, kind in kinds.items():
        for n, k in [(1024, 2560), (1000, 1280), (70, 512)]:
            layer = Layer(n, k, kind)
            for m in [1, 3, 8, 17, 64, 65, 200, 1024]:
                x = torch.randn(m, k, device="cuda")
                y = torch.full((m, n), float("nan"), device="cuda")
                layer.forward(x, y, workspace(layer, m, F32))
                same = torch.equal(y.cpu(), layer.on_cpu(x))
                wrong += not same
                if not same:
                    print(f"check: {name} {n}x{k} m={m}: {(y.cpu() != layer.on_cpu(x)).sum()} of {m * n} differ")
    layer = Layer(2560, 2560, kinds["ternary"])
    x = torch.randn(8, 2560, device="cuda", dtype=torch.float16)
    y = torch.empty(8, 2560, device="cuda")
    room = workspace(layer, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer.forward(x, y, room)
    for seed in range(3):
        x.copy_(torch.randn(8, 2560, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(y.cpu(), layer.on_cpu(x)):
            print(f"check: replay {seed} of a captured graph differs")
            wrong += 1
    print(f"check: {wrong} failures")
    return wrong


def timed(work, rounds=100):
    """Seconds of one call in a captured graph of `rounds`, the least of five replays, between events."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(rounds):
            work(i)
    best = float("inf")
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / rounds)
    return best


def bench(kinds):
    properties = torch.cuda.get_device_properties(0)
    print(f"bench: {properties.name}, {properties.multi_processor_count} SM, torch {torch.__version__}")
    a, b = torch.empty(1 << 28, dtype=torch.uint8, device="cuda"), torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    bandwidth = 2 * a.numel() / timed(lambda i: b.copy_(a), 10)
    print(f"bench: copy {bandwidth / 1e9:.0f} GB/s (read and written)")
    cache = 60 << 20
    for name, n, k in [("int4", 28672, 8192), ("int4", 14336, 4096), ("int4", 4096, 4096), ("ternary", 28672, 8192),
                       ("ternary", 14336, 4096), ("ternary", 6912, 2560), ("ternary", 2560, 2560), ("int8", 8192, 8192)]:
        first = Layer(n, k, kinds[name])
        size = first.plan(1).bytes_read
        # So many copies that none is in the cache when its turn comes again.
        copies = [first] + [Layer(n, k, kinds[name], seed) for seed in range(2, 2 + min(16, 3 * cache // size))]
        for m in [1, 8, 16]:
            x = torch.randn(m, k, device="cuda", dtype=torch.float16)
            y = torch.empty(m, n, device="cuda", dtype=torch.float16)
            room = workspace(first, m)
            seconds = timed(lambda i: copies[i % len(copies)].forward(x, y, room))
            print(f"bench: {name} {n}x{k} m={m}: {seconds * 1e6:.2f} us, {size / seconds / bandwidth:.2f} of the copy bandwidth "
                  f"({len(copies)} copies in turn, {first.plan(m).kernel.decode()})")
    for n, k in [(4096, 4096), (14336, 4096)]:
        for m in [128, 512, 4096]:
            a, b = (torch.randint(-127, 128, s, dtype=torch.int8, device="cuda") for s in [(m, k), (k, n)])
            theirs = timed(lambda i: torch._int_mm(a, b), 20)
            x = torch.randn(m, k, device="cuda", dtype=torch.float16)
            y = torch.empty(m, n, device="cuda", dtype=torch.float16)
            for name in ["ternary", "int4"]:
                layer = Layer(n, k, kinds[name])
                room = workspace(layer, m)
                ours = timed(lambda i: layer.forward(x, y, room), 20)
                print(f"bench: {name} {n}x{k} m={m}: {ours * 1e6:.1f} us, {2 * m * n * k / ours / 1e12:.0f} TOPS "
                      f"({layer.plan(m).kernel.decode()}); torch._int_mm {theirs * 1e6:.1f} us, {2 * m * n * k / theirs / 1e12:.0f} TOPS")


if __name__ == "__main__":
    sys.exit(bool(check(TYPES)) if sys.argv[1:] == ["check"] else bench(TYPES))
