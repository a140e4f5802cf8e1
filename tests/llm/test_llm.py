#!/usr/bin/env python3
"""Acceptance checks of examples/c/llm: test_llm.py PROGRAM [MODEL]

MODEL is the demo model that examples/models/fetch.py fetches; without it the checks that need it
are counted as skipped, and those on the tiny model that examples/models/tiny_llama.py makes still
run. One line a check, and at the end `N passed, N failed, N skipped`; the exit code is 1 after a
failure. BITLINEAR_TEST_REQUIRE=avx2,avx512vnni makes it a failure where one of these instruction
sets was not exercised.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY_MAKER = HERE.parent.parent / "examples" / "models" / "tiny_llama.py"
sys.path.insert(0, str(HERE))
import tiny_reference  # noqa: E402

# Instruction sets that BITLINEAR_ISA narrows the library to, and the CPU feature each needs.
TIERS = {"scalar": None, "avx2": "avx2", "avx512vnni": "avx512_vnni"}
REQUIRED = os.environ.get("BITLINEAR_TEST_REQUIRE", "").split(",")


class Skip(Exception):
    """What a check needs is not here; the text says what."""


def require(condition, text):
    if not condition:
        raise AssertionError(text)


class Llm:
    """The program under test."""

    def __init__(self, program):
        self.program = program

    def call(self, *arguments, isa=None):
        environment = dict(os.environ)
        environment.pop("BITLINEAR_ISA", None)
        if isa:
            environment["BITLINEAR_ISA"] = isa
        words = [self.program, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, env=environment, timeout=1800)

    def run(self, *arguments, isa=None):
        """stdout and stderr of a run that must go well."""
        done = self.call(*arguments, isa=isa)
        error = done.stderr.decode(errors="replace")
        require(done.returncode == 0, f"exit code {done.returncode}: {error.strip()[-300:]}")
        return done.stdout.decode(errors="replace"), error

    def hash_of(self, model, *arguments, isa=None):
        out, error = self.run("--model", model, "--hash", *arguments, isa=isa)
        found = re.fullmatch(r"hash ([0-9a-f]{16}) tokens \d+", out.strip().splitlines()[-1])
        require(found, f"no hash in: {out!r}")
        return found[1], " ".join(re.findall(r"^kernels .*$", error, re.M))

    def refuses(self, code, needle, *arguments):
        done = self.call(*arguments)
        error = done.stderr.decode(errors="replace")
        require(done.returncode == code, f"{arguments}: exit {done.returncode}: {error[-300:]}")
        require(error.startswith("llm: ") and needle in error, f"{arguments}: stderr is {error!r}")
        require(not done.stdout, f"{arguments}: wrote {done.stdout[:80]!r}")


class Checks:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def run(self, name, check, *arguments):
        begin = time.monotonic()
        try:
            note = check(*arguments)
        except Skip as reason:
            self.skipped += 1
            print(f"not run  {name}: {reason}")
        except (AssertionError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            self.failed += 1
            print(f"FAILED   {name}: {error}")
        else:
            self.passed += 1
            seconds = time.monotonic() - begin
            print(f"ok       {name}{': ' + note if note else ''} ({seconds:.1f} s)")
        sys.stdout.flush()


# ---- on any model ------------------------------------------------------------------------------


def cpu_features():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(" ".join(re.findall(r"^flags\s*:(.*)$", text, re.M)).split())


def same_bits_in_pieces(llm, model, tokens, activation):
    common = ("--tokens", tokens, "--activation", activation)
    whole, _ = llm.hash_of(model, *common, "--piece", tokens)
    for piece in (1, 7):
        found, _ = llm.hash_of(model, *common, "--piece", piece)
        require(found == whole, f"in pieces of {piece} {found}, as a whole {whole}")
    return whole


def same_bits_on_tier(llm, model, tokens, tier, activation="int8"):
    feature = TIERS[tier]
    if feature and feature not in cpu_features():
        require(tier not in REQUIRED, f"this CPU has no {feature}")
        raise Skip(f"this CPU has no {feature}")
    widest, _ = llm.hash_of(model, "--tokens", tokens, "--activation", activation)
    found, kernels = llm.hash_of(model, "--tokens", tokens, "--activation", activation, isa=tier)
    require(found == widest, f"{found}, without BITLINEAR_ISA {widest}")
    if tier not in kernels:
        require(tier not in REQUIRED, f"BITLINEAR_ISA={tier} ran other kernels: {kernels}")
        raise Skip(f"the library ran other kernels: {kernels}")
    return found


def same_bits_on_threads(llm, model, tokens, activation):
    """Attention, rows and linear layers shared among threads: fewer, as many and more than there are
    processors, rows or heads; also where the last piece is a single row."""
    common = ("--tokens", tokens, "--activation", activation)
    alone, _ = llm.hash_of(model, *common)
    for threads in (2, 3, 5, 16):
        for piece in (tokens, 7, 1):
            found, _ = llm.hash_of(model, *common, "--threads", threads, "--piece", piece)
            require(found == alone, f"{found} on {threads} threads in pieces of {piece}, {alone} on one")
    return alone


def load_seconds(error):
    """Of the layers, and of the tokenizer."""
    found = re.search(r"^load +layers (\d+\.\d+) s, tokenizer (\d+\.\d+) s;", error, re.M)
    require(found, f"no load times in {error!r}")
    return float(found[1]), float(found[2])


def same_bits_packed(llm, model, folder, tokens):
    """A packed file gives what the file that it was made of gives; its layers are used in place."""
    path = Path(folder) / "packed"
    llm.run("--model", model, "--save-packed", path)
    opened = {}
    for file in (model, path):
        for activation in ("int8", "f32"):
            arguments = ("--tokens", tokens, "--activation", activation)
            expected, _ = llm.hash_of(model, *arguments)
            found, _ = llm.hash_of(file, *arguments, "--threads", 2)
            require(found == expected, f"{activation}: {found}, of the source {expected}")
        out, _ = llm.run("--model", file, "--prompt", "Hello, 12 words", "--length", 8)
        opened[file] = out
    require(opened[path] == opened[model], "the packed file answers a prompt otherwise")
    # Of a few openings the fastest, so that no other work on the machine is in it.
    times, tokenizers = {}, {}
    for file in (model, path):
        errors = [llm.run("--model", file, "--hash", "--tokens", 1)[1] for _ in range(5)]
        times[file], tokenizers[file] = map(min, zip(*map(load_seconds, errors)))
        place = re.search(r"; (\d+\.\d+) MB packed, (\d+\.\d+) MB used in place", errors[0])
        require((float(place[1]) < float(place[2])) == (file == path), f"weights: {place[0]}")
    again = Path(folder) / "again"
    llm.run("--model", path, "--save-packed", again)
    require(again.read_bytes() == path.read_bytes(), "a packed file, saved again, is another file")
    again.unlink()
    path.unlink()
    return (f"opens in {times[path] * 1e3:.1f} ms instead of {times[model] * 1e3:.1f} ms, "
            f"{times[model] / times[path]:.0f} times as fast; the tokenizer takes "
            f"{tokenizers[path] * 1e3:.1f} ms instead of {tokenizers[model] * 1e3:.1f} ms")


def dump(llm, model, text, folder, activation):
    path = Path(folder) / f"logits-{activation}.json"
    out, _ = llm.run("--model", model, "--perplexity", text, "--activation", activation,
                     "--dump-logits", path)
    found = re.fullmatch(r"tokens (\d+) mean_nll (\S+) perplexity (\S+)", out.splitlines()[-1])
    require(found, f"last line {out.splitlines()[-1]!r}")
    result = json.loads(path.read_text())
    result["mean_nll"], result["perplexity"] = float(found[2]), float(found[3])
    require(int(found[1]) == len(result["ids"]) - 1, f"{found[1]} tokens foretold")
    return result


# ---- options -------------------------------------------------------------------------------------


def help_is_printed(llm):
    out, error = llm.run("--help")
    require(out.startswith("usage: llm") and not error, f"stdout {out[:60]!r}, stderr {error!r}")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run([llm.program, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
        require(done.returncode == 1 and "cannot write" in done.stderr, f"on a full disk: {done}")


def options_are_checked(llm, tiny, folder):
    with_prompt = ("--model", tiny, "--prompt", "hello")
    llm.refuses(2, "--frobnicate", "--frobnicate")
    llm.refuses(2, "--model", "--prompt", "hello")
    llm.refuses(2, "--prompt", "--model", tiny)
    llm.refuses(2, "--model needs a value", "--model")
    llm.refuses(2, "--bench needs two numbers", "--model", tiny, "--bench", 3)
    llm.refuses(2, "--length", *with_prompt, "--length", "many")
    llm.refuses(2, "--length", *with_prompt, "--length", "-1")
    llm.refuses(2, "--temperature", *with_prompt, "--temperature", "-1")
    llm.refuses(2, "--temperature", *with_prompt, "--temperature", "nan")
    llm.refuses(2, "--activation", *with_prompt, "--activation", "int3")
    llm.refuses(2, "--threads", *with_prompt, "--threads", 0)
    llm.refuses(2, "--threads", *with_prompt, "--threads", 257)
    llm.refuses(2, "--tokens", *with_prompt, "--tokens", 3)
    llm.refuses(2, "one or the other", "--model", tiny, "--hash", "--bench", 1, 1)
    llm.refuses(2, "one or the other", "--model", tiny, "--hash", "--save-packed", "x")
    llm.refuses(2, "--activation", "--model", tiny, "--save-packed", "x", "--activation", "f32")
    llm.refuses(1, "no-such-folder", "--model", tiny, "--save-packed",
                Path(folder) / "no-such-folder" / "x")
    llm.refuses(1, "no-such-file", "--model", Path(folder) / "no-such-file", "--prompt", "hello")
    llm.refuses(1, "no-such-file", "--model", tiny, "--perplexity", Path(folder) / "no-such-file")
    llm.refuses(1, "cannot load", "--model", __file__, "--prompt", "hello")


# ---- the tiny model ------------------------------------------------------------------------------


def tiny_is_reproducible(tiny, folder):
    again = Path(folder) / "again.gguf"
    subprocess.run([sys.executable, TINY_MAKER, again], check=True)
    require(again.read_bytes() == Path(tiny).read_bytes(), "two runs of tiny_llama.py differ")


def tiny_tokens(llm, tiny, folder):
    text = Path(folder) / "text"
    text.write_bytes("hello the 12\n\xe9<|im_end|>x".encode())
    keys, _ = tiny_reference.read(tiny)
    names = keys["tokenizer.ggml.tokens"]
    expected = ["hello", "Ġthe", "Ġ", "1", "2", "Ċ", "Ã", "©", "<|im_end|>", "x"]
    out, _ = llm.run("--model", tiny, "--tokenize", text)
    require([names[int(i)] for i in out.split()] == expected, f"tokens {out.split()}")
    expected[8:9] = "<|im_end|>"
    out, _ = llm.run("--model", tiny, "--tokenize", text, "--raw")
    require([names[int(i)] for i in out.split()] == expected, f"raw tokens {out.split()}")


def tiny_logits(llm, tiny, folder):
    text = Path(folder) / "text"
    text.write_text("hello the tiny llama, in 12 words or on three lines\n")
    result = dump(llm, tiny, text, folder, "f32")
    expected = tiny_reference.logits(tiny, result["ids"])
    worst = 0.0
    for position, top in enumerate(result["top10"]):
        reference = expected[position]
        for token, logit in top:
            worst = max(worst, abs(logit - reference[token]))
        require(top[0][1] >= max(reference) - 1e-4, f"position {position}: {top[0]} is not largest")
        log_sum = math.log(math.fsum(map(math.exp, reference)))
        worst = max(worst, abs(log_sum - result["logsumexp"][position]))
    require(worst < 1e-4, f"a logit is off by {worst}")
    return f"largest error {worst:.1e}"


def tiny_generates(llm, tiny):
    common = ("--model", tiny, "--prompt", "hello", "--length", 24)
    first, error = llm.run(*common, "--temperature", 1, "--seed", 7)
    require(llm.run(*common, "--temperature", 1, "--seed", 7)[0] == first, "one seed, two answers")
    require(llm.run(*common, "--temperature", 1, "--seed", 8)[0] != first, "two seeds, one answer")
    require(llm.run(*common)[0] == llm.run(*common, "--top-k", 1, "--temperature", 1)[0],
            "--top-k 1 is not the likeliest token")
    for word in ("model ", "weights ", "kernels ", "load ", "prompt ", "q4_1", "q8_0"):
        require(word in error.lower(), f"the report lacks {word!r}")
    _, error = llm.run(*common[:4], "--raw", "--length", 100000, "--temperature", 1)
    require("context of 256" in error or "generated" in error, "an endless answer")
    llm.refuses(1, "context", "--model", tiny, "--prompt", "x" * 300, "--raw")


def tiny_bench(llm, tiny):
    out, _ = llm.run("--model", tiny, "--bench", 33, 5)
    number = r"(\d+\.\d+)"
    found = re.fullmatch(f"prompt_tps {number} generate_tps {number} library_share_prompt {number} "
                         f"library_share_generate {number}", out.splitlines()[-1])
    require(found, f"last line {out.splitlines()[-1]!r}")
    require(all(0 < float(share) < 1 for share in found.groups()[2:]), "shares outside 0..1")


def gives_a_message_or_an_answer(llm, path, variants):
    for variant in variants:
        path.write_bytes(variant)
        done = llm.call("--model", path, "--prompt", "hello", "--length", 2)
        require(done.returncode in (0, 1), f"exit code {done.returncode}")
        require(done.returncode == 0 or done.stderr.startswith(b"llm: "), f"stderr {done.stderr!r}")
    return f"{len(variants)} files"


def damaged_files_are_refused(llm, tiny, folder):
    """Cut or changed in its head, the file gives a message, or an answer, and never a crash."""
    data = Path(tiny).read_bytes()
    variants = [data[: len(data) * i // 40] for i in range(40)]
    for at in range(0, 9000, 61):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        variants.append(bytes(changed))
    return gives_a_message_or_an_answer(llm, Path(folder) / "damaged.gguf", variants)


def damaged_packed_files_are_refused(llm, tiny, folder):
    """The same of a packed file; its header has a sum, so that few changes get past bl_load."""
    path = Path(folder) / "damaged"
    llm.run("--model", tiny, "--save-packed", path)
    data = path.read_bytes()
    variants = [data[: len(data) * i // 20] for i in range(20)]
    for at in range(0, 9000, 331):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        variants.append(bytes(changed))
    return gives_a_message_or_an_answer(llm, path, variants)


# ---- the demo model ------------------------------------------------------------------------------


def model_tokens(llm, model, reference):
    out, _ = llm.run("--model", model, "--tokenize", HERE / "text.txt")
    require([int(i) for i in out.split()] == reference["ids"], "other tokens than the reference")


def top_hits(result, reference):
    same = sum(a[0][0] == b[0][0] for a, b in zip(result["top10"], reference["top10"]))
    return same / len(reference["ids"])


def model_f32(llm, model, reference, folder):
    result = dump(llm, model, HERE / "text.txt", folder, "f32")
    require(result["ids"] == reference["ids"], "other tokens than the reference")
    nll_error = abs(result["mean_nll"] - reference["mean_nll"])
    require(nll_error < 1e-4, f"mean nll is off by {nll_error}")
    worst = 0.0
    for found, expected in zip(result["top10"], reference["top10"]):
        logits = dict(map(tuple, found))
        for token, logit in expected:
            # One that is not among our ten must lie at their end, within the same tolerance.
            worst = max(worst, abs(logits.get(token, found[-1][1]) - logit))
    for found, expected in zip(result["logsumexp"], reference["logsumexp"]):
        worst = max(worst, abs(found - expected))
    require(worst < 2e-3, f"a logit is off by {worst}")
    return f"mean nll off by {nll_error:.1e}, largest logit error {worst:.1e}"


def model_int8(llm, model, reference, folder):
    result = dump(llm, model, HERE / "text.txt", folder, "int8")
    hits = top_hits(result, reference)
    require(hits >= 0.95, f"the likeliest token is the same at {hits:.2%} of the positions")
    return f"same likeliest token {hits:.2%}"


def model_int8_perplexity(llm, model, folder):
    """Against our own f32 run, which another check holds to the reference. On a long text: on a few
    hundred tokens the change itself varies by half a percent with the last bits of the norms. Any
    text will do; the project's pages are at hand."""
    text = Path(folder) / "pages"
    root = HERE.parent.parent
    text.write_bytes(b"".join((root / page).read_bytes() for page in ("README.md", "docs/numerics.md")))
    perplexity = {}
    for activation in ("f32", "int8"):
        out, _ = llm.run("--model", model, "--perplexity", text, "--activation", activation,
                         "--threads", os.cpu_count() or 1)
        found = re.fullmatch(r"tokens (\d+) mean_nll \S+ perplexity (\S+)", out.splitlines()[-1])
        require(found and int(found[1]) >= 3000, f"last line {out.splitlines()[-1]!r}")
        perplexity[activation] = float(found[2])
    change = perplexity["int8"] / perplexity["f32"] - 1
    require(abs(change) <= 0.01, f"perplexity changes by {change:+.2%}")
    return f"{change:+.2%} on {found[1]} tokens"


def model_knows_paris(llm, model):
    prompt = "The capital of France is"
    out, _ = llm.run("--model", model, "--raw", "--prompt", prompt, "--length", 8)
    require(out.startswith(" Paris"), f"it is{out!r}")


def model_chats(llm, model):
    prompt = "What is the capital of France?"
    out, _ = llm.run("--model", model, "--prompt", prompt, "--length", 40, "--activation", "f32")
    require("Paris" in out, f"the answer is {out!r}")


def check_tiny(checks, llm, folder):
    tiny = Path(folder) / "tiny.gguf"
    subprocess.run([sys.executable, TINY_MAKER, tiny], check=True)
    checks.run("options and paths are checked", options_are_checked, llm, tiny, folder)
    checks.run("tiny: the same seed gives the same file", tiny_is_reproducible, tiny, folder)
    checks.run("tiny: tokens", tiny_tokens, llm, tiny, folder)
    checks.run("tiny: f32 logits", tiny_logits, llm, tiny, folder)
    checks.run("tiny: generates", tiny_generates, llm, tiny)
    checks.run("tiny: bench", tiny_bench, llm, tiny)
    for activation in ("int8", "f32"):
        checks.run(f"tiny: same bits in pieces, {activation}", same_bits_in_pieces, llm, tiny, 200,
                   activation)
        checks.run(f"tiny: same bits on threads, {activation}", same_bits_on_threads, llm, tiny, 64,
                   activation)
        for tier in TIERS:
            checks.run(f"tiny: same bits on {tier}, {activation}", same_bits_on_tier, llm, tiny, 64,
                       tier, activation)
    checks.run("tiny: packed file", same_bits_packed, llm, tiny, folder, 64)
    checks.run("tiny: damaged files are refused", damaged_files_are_refused, llm, tiny, folder)
    checks.run("tiny: damaged packed files are refused", damaged_packed_files_are_refused, llm, tiny,
               folder)


def check_model(checks, llm, model, folder):
    reference = json.loads((HERE / "reference.json").read_text())
    list_of_checks = [
        ("tokens", model_tokens, reference),
        ("f32 logits", model_f32, reference, folder),
        ("int8 likeliest tokens", model_int8, reference, folder),
        ("int8 perplexity", model_int8_perplexity, folder),
        ("Paris", model_knows_paris),
        ("chat", model_chats),
        ("same bits in pieces, int8", same_bits_in_pieces, 64, "int8"),
        ("same bits in pieces, f32", same_bits_in_pieces, 16, "f32"),
        ("same bits on threads", same_bits_on_threads, 64, "int8"),
        ("packed file", same_bits_packed, folder, 64),
        *((f"same bits on {tier}", same_bits_on_tier, 64, tier) for tier in TIERS),
    ]
    for name, check, *arguments in list_of_checks:
        checks.run(f"model: {name}", check if model else no_model, llm, model, *arguments)


def no_model(*_):
    raise Skip("no model was given")


def main():
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    model = sys.argv[2] if len(sys.argv) == 3 and sys.argv[2] else None
    llm = Llm(str(Path(sys.argv[1]).resolve()))
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        checks.run("help", help_is_printed, llm)
        check_tiny(checks, llm, folder)
        check_model(checks, llm, model, folder)
    print(f"{checks.passed} passed, {checks.failed} failed, {checks.skipped} skipped")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
