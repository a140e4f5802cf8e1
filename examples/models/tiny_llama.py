#!/usr/bin/env python3
"""Writes a tiny llama model with random weights as a GGUF file: tiny_llama.py OUT.gguf [SEED]

It says nothing sensible, but has all the parts: Q4_1 and Q8_0 matrices, F32 norms, grouped-query
attention, a tied output layer, a byte-level vocabulary with a few merges and the ChatML tokens. The
same seed gives the same bytes. About 75 kB.
"""

import random
import struct
import sys

BLOCKS, WIDTH, FFN, HEADS, KV_HEADS, CONTEXT = 2, 64, 128, 4, 2, 256
HEAD_DIM = WIDTH // HEADS
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġ a", "i n", "t h", "Ġt he", "e r", "o n"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# GGUF's numbers for kinds of metadata and of tensors.
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
TENSOR_F32, TENSOR_Q4_1, TENSOR_Q8_0 = 0, 3, 8
ALIGNMENT = 32


def byte_characters():
    """The printable character for each byte: itself, or the next one from U+0100 on."""
    characters, spare = [], 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            characters.append(chr(byte))
        else:
            characters.append(chr(spare))
            spare += 1
    return characters


def half(value):
    """The value as it is after rounding to f16, and its two bytes."""
    data = struct.pack("<e", value)
    return struct.unpack("<e", data)[0], data


def pack_q4_1(row):
    """Blocks of 32: scale, minimum, then 16 bytes with element j low and j + 16 high."""
    out = bytearray()
    for start in range(0, len(row), 32):
        block = row[start : start + 32]
        low, high = min(block), max(block)
        scale, scale_bytes = half((high - low) / 15)
        codes = [min(15, max(0, int((w - low) / scale + 0.5))) for w in block]
        out += scale_bytes + half(low)[1]
        out += bytes(codes[j] | codes[j + 16] << 4 for j in range(16))
    return bytes(out)


def pack_q8_0(row):
    """Blocks of 32: scale, then 32 signed bytes."""
    out = bytearray()
    for start in range(0, len(row), 32):
        block = row[start : start + 32]
        scale, scale_bytes = half(max(abs(w) for w in block) / 127)
        codes = [max(-127, min(127, round(w / scale))) for w in block]
        out += scale_bytes + struct.pack("<32b", *codes)
    return bytes(out)


def pack_f32(row):
    return struct.pack(f"<{len(row)}f", *row)


PACKERS = {TENSOR_F32: pack_f32, TENSOR_Q4_1: pack_q4_1, TENSOR_Q8_0: pack_q8_0}


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, item):
    if kind == STRING:
        return string(item)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], item)


def metadata(tokens):
    types = [1] * (len(tokens) - len(SPECIALS)) + [3] * len(SPECIALS)
    first_special = len(tokens) - len(SPECIALS)
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "tiny random llama"),
        ("llama.block_count", U32, BLOCKS),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, WIDTH),
        ("llama.feed_forward_length", U32, FFN),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, HEAD_DIM),
        ("llama.rope.freq_base", F32, 10000.0),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, MERGES)),
        ("tokenizer.ggml.bos_token_id", U32, first_special + 1),
        ("tokenizer.ggml.eos_token_id", U32, first_special + 2),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


def tensors(vocabulary):
    """Name, shape (rows, columns) or (length,), and type."""
    key = KV_HEADS * HEAD_DIM
    yield "token_embd.weight", (vocabulary, WIDTH), TENSOR_Q8_0
    for i in range(BLOCKS):
        yield f"blk.{i}.attn_norm.weight", (WIDTH,), TENSOR_F32
        yield f"blk.{i}.attn_q.weight", (WIDTH, WIDTH), TENSOR_Q4_1
        yield f"blk.{i}.attn_k.weight", (key, WIDTH), TENSOR_Q4_1
        yield f"blk.{i}.attn_v.weight", (key, WIDTH), TENSOR_Q8_0
        yield f"blk.{i}.attn_output.weight", (WIDTH, WIDTH), TENSOR_Q4_1
        yield f"blk.{i}.ffn_norm.weight", (WIDTH,), TENSOR_F32
        yield f"blk.{i}.ffn_gate.weight", (FFN, WIDTH), TENSOR_Q4_1
        yield f"blk.{i}.ffn_up.weight", (FFN, WIDTH), TENSOR_Q4_1
        yield f"blk.{i}.ffn_down.weight", (WIDTH, FFN), TENSOR_Q4_1
    yield "output_norm.weight", (WIDTH,), TENSOR_F32


def weights(shape, kind, chance):
    """Norms near 1; matrices spread so that a row of ones comes out near 1."""
    if len(shape) == 1:
        return pack_f32([1 + 0.2 * (chance.random() - 0.5) for _ in range(shape[0])])
    spread = (12 / shape[1]) ** 0.5
    rows = ([spread * (chance.random() - 0.5) for _ in range(shape[1])] for _ in range(shape[0]))
    return b"".join(PACKERS[kind](row) for row in rows)


def padded(data):
    return data + bytes(-len(data) % ALIGNMENT)


def build(seed):
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = byte_characters() + merged + SPECIALS
    keys, infos, data = bytearray(), bytearray(), bytearray()
    pairs = metadata(tokens)
    for key, kind, item in pairs:
        keys += string(key) + struct.pack("<I", kind)
        if kind == ARRAY:
            item_kind, items = item
            keys += struct.pack("<IQ", item_kind, len(items))
            keys += b"".join(value(item_kind, one) for one in items)
        else:
            keys += value(kind, item)
    chance = random.Random(seed)
    count = 0
    for name, shape, kind in tensors(len(tokens)):
        infos += string(name) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *reversed(shape))  # innermost first
        infos += struct.pack("<IQ", kind, len(data))
        data += padded(weights(shape, kind, chance))
        count += 1
    header = b"GGUF" + struct.pack("<IQQ", 3, count, len(pairs))
    return padded(header + bytes(keys + infos)) + bytes(data)


def main():
    if len(sys.argv) not in (2, 3):
        print("usage: tiny_llama.py OUT.gguf [SEED]", file=sys.stderr)
        return 2
    with open(sys.argv[1], "wb") as file:
        file.write(build(int(sys.argv[2]) if len(sys.argv) == 3 else 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
