#!/usr/bin/env python3
"""Plants faults in the CUDA kernels and in the code around them, one at a time, and runs the tests: each must be found.

    tests/cuda/mutate.py [--list] [--only TEXT] [--kernels | --host | --few]

A fault of a kernel is compiled into the emulated GPU (the modules named with it; the others stay as they are) and the
kernel tests run in one schedule after another until one fails; two faults at a time. A fault of the host is compiled
into the library, without optimisation. A fault that nothing finds is a missing test: the script then fails. The rest of
the emulated GPU comes from target/emulator (tests/cuda.sh builds it); mutants live in target/mutants.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "mutants"
EMULATOR = ROOT / "tests" / "cuda" / "emulator"
FLAGS = ("-std=c++20 -O1 -march=native -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -fno-gnu-unique "
         "-ftls-model=initial-exec -w").split()
SCHEDULES = [(0, 1), (4, 2), (1, 3), (5, 4), (2, 5), (3, 6), (5, 7)]  # order, seed


class Fault:
    """Replaces the `nth` place of a text (or of a pattern between slashes) in a file."""

    def __init__(self, file, old, new, nth=1, modules=("w2", "w4")):
        self.file, self.old, self.new, self.nth, self.modules = file, old, new, nth, modules

    def name(self):
        return f"{self.file}: {self.old!r} no. {self.nth} -> {self.new!r}"

    def apply(self, text):
        at = -1
        for _ in range(self.nth):
            at = text.find(self.old, at + 1)
            if at < 0:
                raise SystemExit(f"mutate.py is out of date: {self.name()}: not in the file")
        return text[:at] + self.new + text[at + len(self.old):]


def run(command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def must(command, **options):
    done = run(command, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done


def compile_unit(source, kernels, folder):
    """One file of kernels; the object, or what the compiler says."""
    out = folder / (source.name + ".o")
    done = run(["g++", *FLAGS, f"-I{EMULATOR}", f"-I{kernels}", "-DBL_EMU", "-x", "c++", "-c", source, "-o", out])
    return out, done.returncode and f"does not compile: {(done.stderr.strip().splitlines() or ['?'])[0][:100]}"


def test_binaries(names):
    # Packages and features of tests/environment.sh: other ones would compile the library again.
    done = must(["cargo", "test", "--workspace", "--features", "cli", "--no-run", "--message-format=json",
                 *[a for n in names for a in ("--test", n)]])
    found = []
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["target"]["name"] in names:
            found.append(message["executable"])
    return found


def found_by(tests, folder, every):
    """What found a fault: the first schedule and line that failed, or None."""
    for order, seed in SCHEDULES:
        for test in tests:
            settings = dict(os.environ, BITLINEAR_EMULATOR=str(folder), BL_EMU_ORDER=str(order), BL_EMU_SEED=str(seed),
                            BITLINEAR_TEST_EVERY=str(every))
            try:
                done = run([test], env=settings, timeout=600)
            except subprocess.TimeoutExpired:
                raise SystemExit(f"schedule {order}, {test}: no end after 600 s: neither found nor alive")
            if done.returncode:
                text = done.stdout + done.stderr
                lines = [l.strip() for l in text.splitlines() if "emulated GPU:" in l or " differ" in l or "panicked" in l]
                return f"schedule {order}: {(lines or [text.strip()[-100:]])[-1][:110]}"
    return None


def kernel_fault(fault, objects, tests, every):
    """What found a fault in the emulated GPU, and the seconds that it took. No fault: whether the tests pass."""
    begun = time.time()
    folder = WORK / f"kernel-{threading.get_ident()}"
    shutil.rmtree(folder, ignore_errors=True)
    kernels = folder / "kernels"
    shutil.copytree(ROOT / "kernels", kernels, ignore=shutil.ignore_patterns("prebuilt"))
    linked = dict(objects)
    if fault:
        path = kernels / fault.file
        path.write_text(fault.apply(path.read_text()))
        for module in [fault.file[:-3]] if fault.file.endswith(".cu") else fault.modules:
            out, broken = compile_unit(kernels / f"{module}.cu", kernels, folder)
            if broken:
                raise SystemExit(f"mutate.py is out of date: {fault.name()} {broken}")
            linked[out.name] = out
    must(["g++", "-shared", *FLAGS, "-Wl,-soname,libcuda.so.1", *linked.values(), "-o", folder / "libcuda.so.1",
          "-ldl", "-lpthread"])
    os.symlink("libcuda.so.1", folder / "libcuda.so")
    return found_by(tests, folder, every), time.time() - begun


def kernel_faults(faults, every):
    """The emulated GPU with one fault after another; yields each fault, what found it, and the seconds."""
    emulator = ROOT / "target" / "emulator"
    must(["sh", EMULATOR / "build.sh", emulator])
    objects = {path.name: path for path in (emulator / "objects").glob("*.o")}
    tests = test_binaries(["cuda_kernels"])
    if clean := kernel_fault(None, objects, tests, every)[0]:
        raise SystemExit(f"the tests fail without a fault: {clean}")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = {pool.submit(kernel_fault, fault, objects, tests, every): fault for fault in faults}
        for done in concurrent.futures.as_completed(running):
            yield running[done], *done.result()


def host_faults(faults):
    """The library with one fault after another, in a copy of the tree with a target folder of its own."""
    copy = WORK / "host"
    quick = {"CARGO_PROFILE_TEST_OPT_LEVEL": "0", "CARGO_PROFILE_TEST_DEBUG": "0", "CARGO_INCREMENTAL": "1"}
    for part in ("src", "kernels", "include", "tests", "benches", "examples", "cli", "xtask", ".cargo", "abi"):
        shutil.copytree(ROOT / part, copy / part, dirs_exist_ok=True, copy_function=copy_if_other)
    for part in ("Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml"):
        copy_if_other(ROOT / part, copy / part)
    for fault in [None] + faults:
        begun = time.time()
        if fault:
            path = copy / fault.file
            path.write_text(fault.apply((ROOT / fault.file).read_text()))
        done = subprocess.run(["cargo", "test", "--quiet", "--test", "cuda"], cwd=copy, capture_output=True, text=True,
                              env=dict(os.environ, **quick, BITLINEAR_EMULATOR=str(ROOT / "target" / "emulator")))
        if "could not compile" in done.stderr:
            raise SystemExit(f"{fault and fault.name()}: does not compile\n{done.stderr[-3000:]}")
        lines = [l.strip() for l in (done.stdout + done.stderr).splitlines()
                 if re.search(r"^error|panicked|emulated GPU:|FAILED", l)]
        found = (lines or ["failed"])[0][:110] if done.returncode else None
        if fault:
            path.write_text((ROOT / fault.file).read_text())
            yield fault, found, time.time() - begun
        elif found:
            raise SystemExit(f"the tests fail without a fault: {found}")


def copy_if_other(source, to):
    source, to = pathlib.Path(source), pathlib.Path(to)
    if not to.exists() or source.read_bytes() != to.read_bytes():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


SYNC = "__syncthreads();"
HOPPER = ("hopper_w1", "hopper_w2")
KERNELS = [
    # few rows: a barrier less
    Fault("few.cuh", "sums[i] = 0;\n      " + SYNC, "sums[i] = 0;"),
    Fault("few.cuh", SYNC + "\n\n      // 2:", "// 2:"),
    Fault("few.cuh", SYNC + "\n\n      // 3:", "// 3:"),
    Fault("few.cuh", SYNC + "\n      more_chunks", "more_chunks"),
    # few rows: copies, bounds, groups
    Fault("few.cuh", "bl_copy_wait<RING - 1>", "bl_copy_wait<RING>"),
    Fault("few.cuh", "few_place(n, g + i / 2 * 8), c[j][i]", "few_place(n, g + i / 2 * 4), c[j][i]"),
    Fault("few.cuh", "? left - taken : 0", "? left - 1 : 0"),
    Fault("few.cuh", "walk.at + FEW_WARPS < walk.end", "true"),
    Fault("few.cuh", "len - j * p.group)", "len)"),
    Fault("few.cuh", "-__fmul_rn(low_scale, x_scale)", "__fmul_rn(low_scale, x_scale)"),
    Fault("few.cuh", "row ^ (n & 2) << 2", "row | (n & 2) << 2"),
    Fault("few.cuh", "w_row < layer.outputs) bl_finish", "true) bl_finish"),
    # many rows
    Fault("gemm.cuh", "bl_copy_wait<1>();", "bl_copy_wait<2>();"),
    Fault("gemm.cuh", "bl_copy_wait<0>();\n    " + SYNC, "bl_copy_wait<0>();"),
    Fault("gemm.cuh", SYNC + "\n    copy(i + p.stages - 1);", "copy(i + p.stages - 1);"),
    Fault("gemm.cuh", "((piece * 16) ^ (row & 1) * 64)", "(piece * 16)"),
    Fault("gemm.cuh", "&& in_base * UNITS + at / C::BYTES < p.units", "", modules=("w8",)),
    Fault("gemm.cuh", "const bool there = m0 + row < p.m;", "const bool there = true;"),
    Fault("gemm.cuh", "__syncwarp();", ""),
    Fault("gemm.cuh", "bl_mma_k32_ss(c[s][j], a[s][1], b.z, b.w);", "bl_mma_k32_ss(c[s][j], a[s][1], b.w, b.z);"),
    Fault("gemm.cuh", "|| done >= row_halves", ""),
    Fault("gemm.cuh", "(uint32_t)layer.correction * x_sum", "0"),
    # many rows on Hopper
    Fault("wgmma.cuh", "bl_barrier_init_done();\n  }\n  " + SYNC, "bl_barrier_init_done();\n  }", modules=HOPPER),
    Fault("wgmma.cuh", "bl_barrier_wait(full + i % p.stages, i / p.stages & 1);", "", modules=HOPPER),
    Fault("wgmma.cuh", "bl_barrier_wait(empty + (i - 1) % p.stages, (i - 1) / p.stages & 1);", "", modules=HOPPER),
    Fault("wgmma.cuh", "(i - 1) / p.stages & 1", "((i - 1) / p.stages & 1) ^ 1", modules=HOPPER),
    Fault("wgmma.cuh", "bl_barrier_init(empty + i, 8);", "bl_barrier_init(empty + i, 7);", modules=HOPPER),
    Fault("wgmma.cuh", "X + there * bytes", "X + WGMMA_STRIPS * bytes", modules=HOPPER),
    Fault("wgmma.cuh", "bl_wgmma_wait<0>(c, a);", "", modules=HOPPER),
    Fault("wgmma.cuh", "bl_wgmma_wait<0>(c, a);", "bl_wgmma_wait<0>(c, next);", modules=HOPPER),
    Fault("wgmma.cuh", "bl_wgmma_wait<0>(c, a);\n    __syncwarp();\n    if (lane == 0) bl_barrier_arrive(empty + i % p.stages);",
          "__syncwarp();\n    if (lane == 0) bl_barrier_arrive(empty + i % p.stages);\n    bl_wgmma_wait<0>(c, a);", modules=HOPPER),
    Fault("wgmma.cuh", "bl_wgmma_fence();", "", modules=HOPPER),
    Fault("wgmma.cuh", "step / 4 * (COLUMNS * 128), step % 4", "step / 4 * (COLUMNS * 128), step % 3", modules=HOPPER),
    Fault("wgmma.cuh", "min((uint32_t)UNITS, p.units - i * UNITS)", "UNITS", modules=("hopper_w8",)),
    # decoding
    Fault("decode.cuh", "shift >= 0 ? high >> (shift & 31) : high << (-shift & 31)", "high >> (shift & 31)", modules=("w3", "w5", "w6")),
    Fault("decode.cuh", "codes >> 3 & 0x01010101u", "codes >> 2 & 0x01010101u", modules=("t4",)),
    Fault("decode.cuh", "step / LINE_STEPS * 512", "0", modules=("w3", "w5", "w6", "w8")),
    # x into codes
    Fault("prepare.cu", "box.words[threadIdx.x / 32] = v;\n  " + SYNC, "box.words[threadIdx.x / 32] = v;"),
    Fault("prepare.cu", "v = max(v, box.words[i]);\n  " + SYNC, "v = max(v, box.words[i]);"),
    Fault("prepare.cu", "values[i + s] = __fsub_rn(a, b);\n    }\n    " + SYNC, "values[i + s] = __fsub_rn(a, b);\n    }"),
    Fault("prepare.cu", "(127u - 100u)", "(127u - 90u)"),
    Fault("prepare.cu", "t = t > low ? t : low;", ""),
    Fault("prepare.cu", "int o = 16; o; o >>= 1) v = max", "int o = 8; o; o >>= 1) v = max"),
    Fault("prepare.cu", "(column >> 5 & 1) * 8", "(column >> 5 & 1) * 4"),
    Fault("prepare.cu", "if (!p.two_level) {", "{"),
    # products of floats
    Fault("float.cu", SYNC, "", nth=1),
    Fault("float.cu", SYNC, "", nth=2),
    Fault("float.cu", "min((uint32_t)DEPTH, p.columns + DEPTH - k0)", "DEPTH"),
    # what follows a product
    Fault("numbers.cuh", "v == v ? v : bl_nan()", "v"),
    Fault("numbers.cuh", "if (layer.bias) v", "if (false) v"),
]
DEVICE, DRIVER, IMAGE, LANES, LAYER, MEMORY, MODULE = (f"src/cuda/{name}.rs" for name in
                                                       "device driver image lanes layer memory module".split())
HOST = [
    # the host's current context
    Fault(DEVICE, 'self.check((f.push)(self.context), "cuCtxPushCurrent")?;', ""),
    Fault(DEVICE, "if self.pushed {", "if false {"),
    Fault(DEVICE, "let pushed = current != self.context;", "let pushed = false;"),
    Fault(DEVICE, "const RELAXED: c_uint = 2;", "const RELAXED: c_uint = 0;"),
    # what is given back
    Fault(DEVICE, "(self.driver.functions.primary_release)(self.description().handle)", "0"),
    Fault(MEMORY, "(driver.functions.free)(address);", ""),
    Fault(MEMORY, "(driver.functions.host_free)(start.as_ptr().cast());", ""),
    Fault(MEMORY, "(driver.functions.stream_destroy)(handle);", ""),
    Fault(MEMORY, "count.fetch_sub(self.len as u64, Ordering::Relaxed);", ""),
    # a device that is lost, a driver that is old, images
    Fault(DEVICE, "self.lost.store(result, Ordering::Relaxed);", ""),
    Fault(DEVICE, 'Err(self.lost(result, "an earlier call"))', "self.enter_anyhow()"),
    Fault(DRIVER, "if version < OLDEST {", "if false {"),
    Fault(IMAGE, "(self.binary, self.arch, self.exact)", "(!self.binary, self.arch, self.exact)"),
    Fault(MODULE, "let room = gpu.dynamic_shared() as c_int;", "let room = 1024;"),
    # order
    Fault(LAYER, "stream.wait(&slow)?;\n                let mut from = 0;", "let mut from = 0;"),
    Fault(LAYER, "bytes, &stream)?;\n                stream.wait(slow)?;", "bytes, &stream)?;"),
    Fault(LAYER, "bytes, &stream)?;\n                    stream.wait(slow)?;", "bytes, &stream)?;"),
    Fault(LAYER, "launch.shared,\n            stream,", "launch.shared,\n            std::ptr::null_mut(),"),
    # places and sizes
    Fault(LAYER, "(x_bytes + y_bytes) as u64;", "x_bytes as u64;"),
    Fault(LAYER, "if need > 0 && (address == 0", "if false && (address == 0"),
    Fault(LAYER, "Some(index) if index == own => Ok(())", "Some(_) => Ok(())"),
    Fault(LAYER, "before.front == self.front", "true"),
    Fault(LANES, "pinned.bytes().len() < host", "pinned.bytes().len() < 1"),
    Fault(LANES, "memory.size() < device", "memory.size() < 1"),
]


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--list", action="store_true", help="say what would be planted")
    words.add_argument("--only", default="", help="faults whose name contains this")
    words.add_argument("--kernels", action="store_true", help="those in kernels only")
    words.add_argument("--host", action="store_true", help="those of the host only")
    words.add_argument("--few", action="store_true", help="every fourth of those in kernels, as in CI")
    words.add_argument("--every", type=int, default=1, help="of the kernel tests' cases, every so many")
    words.add_argument("--skip", type=int, default=0, help="so many of the list, to go on with a run")
    words = words.parse_args()
    chosen = lambda faults: [f for f in faults if words.only in f.name()]
    step = 4 if words.few else 1
    kernels = [] if words.host else chosen(KERNELS[::step])
    host = [] if words.kernels or words.few else chosen(HOST)
    kernels, host = kernels[words.skip:], host[max(0, words.skip - len(kernels)):]
    for fault in kernels + host:
        text = (ROOT / ("" if fault in host else "kernels") / fault.file).read_text()
        fault.apply(text)  # all are still there
        if words.list:
            print(fault.name())
    if words.list:
        return
    alive, count = [], 0
    for source in [kernel_faults(kernels, words.every)] * bool(kernels) + [host_faults(host)] * bool(host):
        for fault, found, seconds in source:
            count += 1
            print(f"{'found' if found else 'ALIVE'} {fault.name()}  [{found}] {seconds:.0f} s", flush=True)
            if not found:
                alive.append(fault.name())
    print(f"{count - len(alive)} of {count} faults found")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
