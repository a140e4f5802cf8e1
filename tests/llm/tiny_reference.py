"""The logits of a tiny llama model, computed in double precision from its GGUF file.

Written from the formats' and the architecture's definitions, apart from the C program that it
checks: plain lists, one token after the other, no cache layout, no batches.
"""

import math
import struct

PLAIN = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
         10: "<Q", 11: "<q", 12: "<d"}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code):
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def string(self):
        size = self.number("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            item, count = self.number("<I"), self.number("<Q")
            return [self.value(item) for _ in range(count)]
        return self.number(PLAIN[kind])


def decode(data, at, kind, count):
    """`count` weights of a tensor: F32, Q4_1 or Q8_0."""
    out = []
    if kind == 0:
        return list(struct.unpack_from(f"<{count}f", data, at))
    for _ in range(count // 32):
        if kind == 3:
            scale, low = struct.unpack_from("<ee", data, at)
            codes = data[at + 4 : at + 20]
            out += [scale * (c & 15) + low for c in codes] + [scale * (c >> 4) + low for c in codes]
            at += 20
        else:
            (scale,) = struct.unpack_from("<e", data, at)
            out += [scale * c for c in struct.unpack_from("<32b", data, at + 2)]
            at += 34
    return out


def read(path):
    """Metadata, and tensors as lists of rows."""
    with open(path, "rb") as file:
        reader = Reader(file.read())
    reader.at = 8
    tensor_count, key_count = reader.number("<Q"), reader.number("<Q")
    keys, infos, tensors = {}, [], {}
    for _ in range(key_count):
        key = reader.string()
        keys[key] = reader.value(reader.number("<I"))
    for _ in range(tensor_count):
        name, dims = reader.string(), reader.number("<I")
        shape = [reader.number("<Q") for _ in range(dims)]
        infos.append((name, shape, reader.number("<I"), reader.number("<Q")))
    start = (reader.at + 31) // 32 * 32
    for name, shape, kind, offset in infos:
        flat = decode(reader.data, start + offset, kind, math.prod(shape))
        tensors[name] = [flat[i : i + shape[0]] for i in range(0, len(flat), shape[0])]
    return keys, tensors


def times(matrix, x):
    return [math.fsum(w * v for w, v in zip(row, x)) for row in matrix]


def norm(x, gain, epsilon):
    scale = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + epsilon)
    return [v * scale * g for v, g in zip(x, gain[0])]


def rotated(head, position, base):
    out = list(head)
    for i in range(0, len(head), 2):
        angle = position * base ** (-i / len(head))
        out[i] = head[i] * math.cos(angle) - head[i + 1] * math.sin(angle)
        out[i + 1] = head[i] * math.sin(angle) + head[i + 1] * math.cos(angle)
    return out


def heads_of(x, count):
    size = len(x) // count
    return [x[i * size : (i + 1) * size] for i in range(count)]


def attention(query, keys, values):
    """One head's mix of the values seen so far."""
    scores = [sum(a * b for a, b in zip(query, key)) / math.sqrt(len(query)) for key in keys]
    shares = [math.exp(score) for score in scores]
    total = math.fsum(shares)
    columns = zip(*values)
    return [math.fsum(s * v for s, v in zip(shares, column)) / total for column in columns]


def logits(path, ids):
    """The logits that follow each of the tokens."""
    keys, tensors = read(path)
    heads = keys["llama.attention.head_count"]
    kv_heads = keys["llama.attention.head_count_kv"]
    epsilon = keys["llama.attention.layer_norm_rms_epsilon"]
    base = keys["llama.rope.freq_base"]
    blocks = keys["llama.block_count"]
    seen = [([], []) for _ in range(blocks)]  # keys and values so far: [position][kv head]
    out = []
    for position, token in enumerate(ids):
        x = list(tensors["token_embd.weight"][token])
        for i in range(blocks):
            weight = lambda name: tensors[f"blk.{i}.{name}.weight"]
            h = norm(x, weight("attn_norm"), epsilon)
            query = heads_of(times(weight("attn_q"), h), heads)
            key = heads_of(times(weight("attn_k"), h), kv_heads)
            seen[i][0].append([rotated(k, position, base) for k in key])
            seen[i][1].append(heads_of(times(weight("attn_v"), h), kv_heads))
            mixed = []
            for head, q in enumerate(query):
                shared = head * kv_heads // heads
                mixed += attention(rotated(q, position, base), [k[shared] for k in seen[i][0]],
                                   [v[shared] for v in seen[i][1]])
            x = [a + b for a, b in zip(x, times(weight("attn_output"), mixed))]
            h = norm(x, weight("ffn_norm"), epsilon)
            gate = [g / (1 + math.exp(-g)) for g in times(weight("ffn_gate"), h)]
            inner = [g * u for g, u in zip(gate, times(weight("ffn_up"), h))]
            x = [a + b for a, b in zip(x, times(weight("ffn_down"), inner))]
        h = norm(x, tensors["output_norm.weight"], epsilon)
        out.append(times(tensors["token_embd.weight"], h))
    return out
