#!/usr/bin/env python3
"""Acceptance checks of examples/c/embed: test_embed.py PROGRAM MODEL

MODEL is what `examples/models/fetch.py minilm` fetches. reference.json has sentences, their token
ids and their embeddings, computed in double precision by an implementation that is not ours from the
same file. One line a check; the exit code is 1 after a failure. BITLINEAR_TEST_REQUIRE=avx2,avx512vnni
makes it a failure where one of these instruction sets was not exercised.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REFERENCE = json.loads((HERE / "reference.json").read_text())["sentences"]
IDS = "".join(" ".join(map(str, s["ids"])) + "\n" for s in REFERENCE)
# Instruction sets that BITLINEAR_ISA narrows the library to, and the CPU feature each needs.
TIERS = {"scalar": None, "avx2": "avx2", "avx512vnni": "avx512_vnni"}
REQUIRED = os.environ.get("BITLINEAR_TEST_REQUIRE", "").split(",")
# The least mean cosine between our embeddings and the reference's. One scale for a whole row of x is
# too coarse for this model's activations: double precision with weights and inputs rounded so, and
# nothing else, gives 0.9975 (0.9994 with a scale for every 32 inputs).
BOUNDS = {
    ("f32", "auto"): 0.99999,
    ("f16", "auto"): 0.99999,
    ("bf16", "auto"): 0.9999,
    ("int8", "f32"): 0.999,
    ("int8", "auto"): 0.997,
    ("q8_0", "auto"): 0.999,
    ("q8_0", "f32"): 0.999,
}


class NotRun(Exception):
    """What a check needs is not here; the text says what."""


def require(condition, text):
    if not condition:
        raise AssertionError(text)


def call(program, *arguments, ids=IDS, isa=None):
    environment = dict(os.environ)
    environment.pop("BITLINEAR_ISA", None)
    if isa:
        environment["BITLINEAR_ISA"] = isa
    return subprocess.run([program, *map(str, arguments)], input=ids, capture_output=True, text=True,
                          env=environment, timeout=1800)


def embeddings(program, *arguments, **more):
    """The program's text, its numbers, and what it said of its kernels."""
    done = call(program, *arguments, **more)
    require(done.returncode == 0, f"{arguments}: exit code {done.returncode}: {done.stderr[-300:]}")
    rows = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    require(len(rows) == len(REFERENCE), f"{len(rows)} lines")
    return done.stdout, rows, done.stderr


def cosine(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def close_to_reference(program, model, weights, activation):
    arguments = ["--model", model, "--activation", activation]
    arguments += ["--weights", weights] if weights != "f32" else []
    _, rows, error = embeddings(program, *arguments)
    require(f"weights {weights}," in error, f"other weights: {error}")
    cosines = [cosine(row, s["embedding"]) for row, s in zip(rows, REFERENCE)]
    mean = math.fsum(cosines) / len(cosines)
    bound = BOUNDS[weights, activation]
    require(mean >= bound, f"mean cosine {mean:.7f}, at least {bound} expected")
    return f"mean cosine {mean:.7f}, least {min(cosines):.7f}"


def same_on_tier(program, model, tier):
    feature = TIERS[tier]
    try:
        features = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        features = []
    if feature and feature not in features:
        require(tier not in REQUIRED, f"this CPU has no {feature}")
        raise NotRun(f"this CPU has no {feature}")
    for weights in ("f32", "int8"):
        arguments = ("--model", model, "--weights", weights)
        widest, _, _ = embeddings(program, *arguments)
        found, _, error = embeddings(program, *arguments, isa=tier)
        require(re.search(f"kernel \\S*_{tier}", error), f"other kernels: {error}")
        require(found == widest, f"{weights}: other numbers on {tier}")


def same_on_threads(program, model):
    arguments = ("--model", model, "--weights", "int8")
    alone, _, _ = embeddings(program, *arguments)
    for threads in (2, 5):
        found, _, _ = embeddings(program, *arguments, "--threads", threads)
        require(found == alone, f"other numbers on {threads} threads")


def what_is_wrong_is_refused(program, model):
    def refuses(code, needle, *arguments, ids="101 102\n"):
        done = call(program, *arguments, ids=ids)
        require(done.returncode == code, f"{arguments}: exit code {done.returncode}")
        said = [line for line in done.stderr.splitlines() if line.startswith("embed: ")]
        require(len(said) == 1 and needle in said[0], f"{arguments}: {done.stderr!r}, not {needle!r}")

    with_model = ("--model", model)
    refuses(2, "no model")
    refuses(2, "--frobnicate", "--frobnicate", "1")
    refuses(2, "--threads", *with_model, "--threads", "two")
    refuses(2, "--threads", *with_model, "--threads", 0)
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run([program, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
        require(done.returncode == 1 and "cannot write" in done.stderr, f"--help on a full disk: {done}")
    refuses(1, "no-such-file", "--model", "/no-such-file")
    refuses(1, "int3", *with_model, "--weights", "int3")
    refuses(1, "int4", *with_model, "--activation", "int4")
    refuses(1, "q4_k", *with_model, "--weights", "q4_k")
    refuses(1, "heads", *with_model, "--heads", "7")
    refuses(1, "30522", *with_model, ids="30522\n")
    refuses(1, "'x", *with_model, ids="101 x\n")
    refuses(1, "512", *with_model, ids="101 " * 600 + "\n")


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    program, model = str(Path(sys.argv[1]).resolve()), sys.argv[2]
    checks = [("what is wrong is refused", what_is_wrong_is_refused)]
    checks += [(f"{w} weights, {a} activations", close_to_reference, w, a) for w, a in BOUNDS]
    checks += [(f"same numbers on {tier}", same_on_tier, tier) for tier in TIERS]
    checks += [("same numbers on threads", same_on_threads)]
    passed = failed = not_run = 0
    for name, check, *arguments in checks:
        begin = time.monotonic()
        try:
            note = check(program, model, *arguments)
        except NotRun as reason:
            not_run += 1
            print(f"not run  {name}: {reason}")
        except (AssertionError, subprocess.SubprocessError, OSError, ValueError) as error:
            failed += 1
            print(f"FAILED   {name}: {error}")
        else:
            passed += 1
            seconds = time.monotonic() - begin
            print(f"ok       {name}{': ' + note if note else ''} ({seconds:.1f} s)")
        sys.stdout.flush()
    print(f"{passed} passed, {failed} failed, {not_run} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
