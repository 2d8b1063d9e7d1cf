#!/usr/bin/env python3
"""Writes a GGUF model of any shape with random weights, quantized as llama.cpp's Q4_K_M is, to measure what a size takes.

    scripts/random-gguf.py --like 8b --tokenizer SmolLM2.gguf 8b.gguf
    scripts/random-gguf.py --arch llama --layers 16 --width 2048 --heads 32 --kv-heads 8 --ff 8192 --vocabulary 128256 \
        --tied --tokenizer SmolLM2.gguf out.gguf

The tokenizer is copied from the file named; a larger vocabulary is filled with tokens that no text has. The weights say
nothing, repeat after a megabyte, and have the size that keeps hidden states finite. Needs Python alone.
"""
import argparse
import os
import struct
import sys

SHAPES = {  # layers, width, heads, key heads, feed-forward, vocabulary, tied
    "smollm2": ("llama", 30, 576, 9, 3, 1536, 49152, True),
    "0.5b": ("qwen2", 24, 896, 14, 2, 4864, 151936, True),
    "1b": ("llama", 16, 2048, 32, 8, 8192, 128256, True),
    "3b": ("llama", 28, 3072, 24, 8, 8192, 128256, True),
    "8b": ("llama", 32, 4096, 32, 8, 14336, 128256, False),
}
# ggml's number, values and bytes of a block, where its f16 scales lie, and their value for weights of about 0.02.
TYPES = {
    "F32": (0, 1, 4, (), 0.0),
    "Q8_0": (8, 32, 34, (0,), 0.0003),
    "Q5_0": (6, 32, 22, (0,), 0.002),
    "Q4_K": (12, 256, 144, (0, 2), 0.0001),
    "Q6_K": (14, 256, 210, (208,), 0.00002),
}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Reader:
    """The metadata of a GGUF file, undecoded: key to (type, bytes)."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, _, keys = struct.unpack("<4sIQQ", self.file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            sys.exit(f"{path} is not a GGUF file of version 2 or 3")
        self.metadata = {}
        for _ in range(keys):
            key = self.text().decode()
            kind = self.number("<I")
            start = self.file.tell()
            self.skip(kind)
            end = self.file.tell()
            self.file.seek(start)
            self.metadata[key] = (kind, self.file.read(end - start))

    def number(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def text(self):
        return self.file.read(self.number("<Q"))

    def skip(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in SIZES:
                self.file.seek(SIZES[inner] * count, 1)
            else:
                for _ in range(count):
                    self.skip(inner)
        else:
            self.file.seek(SIZES[kind], 1)


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def filled(raw, vocabulary, more):
    """An array with as many items as the vocabulary; `more(i)` makes those that are missing."""
    inner, count = struct.unpack("<IQ", raw[:12])
    if count > vocabulary:
        sys.exit(f"the tokenizer has {count} tokens, the model {vocabulary}: expected at most as many")
    return struct.pack("<IQ", inner, vocabulary) + raw[12:] + b"".join(map(more, range(count, vocabulary)))


def tokenizer(path, vocabulary):
    kept = {k: v for k, v in Reader(path).metadata.items() if k.startswith("tokenizer.")}
    more = {
        "tokenizer.ggml.tokens": lambda i: text(f"<|unused {i}|>"),
        "tokenizer.ggml.token_type": lambda _: struct.pack("<i", 5),  # unused
        "tokenizer.ggml.scores": lambda _: struct.pack("<f", -1000.0),
    }
    for key, item in more.items():
        if key in kept:
            kept[key] = (9, filled(kept[key][1], vocabulary, item))
    return kept


def mixed(layer, layers):
    """Whether Q4_K_M gives a layer's values and `ffn_down` six bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(o):
    """Name, rows, columns, type."""
    # Rows that super-blocks don't divide are kept in blocks of 32, as llama.cpp's quantizer does.
    def kind(columns, large):
        if columns % 256 == 0:
            return "Q6_K" if large else "Q4_K"
        return "Q8_0" if large else "Q5_0"

    head_dim = o.head_dim or o.width // o.heads
    q, kv = o.heads * head_dim, o.kv_heads * head_dim
    yield "token_embd.weight", o.vocabulary, o.width, kind(o.width, o.tied)
    for i in range(o.layers):
        large = mixed(i, o.layers)
        yield f"blk.{i}.attn_norm.weight", 0, o.width, "F32"
        for part, rows, columns, six in [
            ("attn_q", q, o.width, False), ("attn_k", kv, o.width, False), ("attn_v", kv, o.width, large),
            ("attn_output", o.width, q, False),
        ]:
            yield f"blk.{i}.{part}.weight", rows, columns, kind(columns, six)
            if o.arch == "qwen2" and part != "attn_output":
                yield f"blk.{i}.{part}.bias", 0, rows, "F32"
        yield f"blk.{i}.ffn_norm.weight", 0, o.width, "F32"
        for part, rows, columns, six in [
            ("ffn_gate", o.ff, o.width, False), ("ffn_up", o.ff, o.width, False), ("ffn_down", o.width, o.ff, large),
        ]:
            yield f"blk.{i}.{part}.weight", rows, columns, kind(columns, six)
    yield "output_norm.weight", 0, o.width, "F32"
    if not o.tied:
        yield "output.weight", o.vocabulary, o.width, kind(o.width, True)


def blocks(kind):
    """About a megabyte of random blocks."""
    _, _, size, scales, scale = TYPES[kind]
    data = bytearray(os.urandom((1 << 20) // size * size))
    for place in scales:
        for at in range(place, len(data), size):
            struct.pack_into("<e", data, at, scale)
    return bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--tokenizer", required=True, help="GGUF file whose tokenizer is copied")
    parser.add_argument("--like", choices=SHAPES, help="a size that people run")
    parser.add_argument("--arch", default="llama", choices=["llama", "qwen2"])
    for name in ["layers", "width", "heads", "kv-heads", "head-dim", "ff", "vocabulary"]:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tied", action="store_true")
    o = parser.parse_args()
    if o.like:
        o.arch, o.layers, o.width, o.heads, o.kv_heads, o.ff, o.vocabulary, o.tied = SHAPES[o.like]
    missing = [n for n in ["layers", "width", "heads", "kv_heads", "ff", "vocabulary"] if not getattr(o, n)]
    if missing:
        sys.exit(f"expected --like, or {', '.join('--' + n.replace('_', '-') for n in missing)}")

    number, real, word = (lambda v: (4, struct.pack("<I", v))), (lambda v: (6, struct.pack("<f", v))), (lambda v: (8, text(v)))
    head_dim = o.head_dim or o.width // o.heads
    keys = {
        "general.architecture": word(o.arch), "general.type": word("model"), "general.name": word("random weights"),
        "general.quantization_version": number(2), "general.file_type": number(15),
        f"{o.arch}.block_count": number(o.layers), f"{o.arch}.context_length": number(o.context),
        f"{o.arch}.embedding_length": number(o.width), f"{o.arch}.feed_forward_length": number(o.ff),
        f"{o.arch}.attention.head_count": number(o.heads), f"{o.arch}.attention.head_count_kv": number(o.kv_heads),
        f"{o.arch}.attention.key_length": number(head_dim), f"{o.arch}.attention.value_length": number(head_dim),
        f"{o.arch}.rope.dimension_count": number(head_dim), f"{o.arch}.rope.freq_base": real(500000.0),
        f"{o.arch}.attention.layer_norm_rms_epsilon": real(1e-5), f"{o.arch}.vocab_size": number(o.vocabulary),
    }
    keys.update(tokenizer(o.tokenizer, o.vocabulary))
    table, place, listed = b"", 0, list(tensors(o))
    for name, rows, columns, kind in listed:
        identity, values, size, _, _ = TYPES[kind]
        dims = [columns] + ([rows] if rows else [])
        table += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, identity, place)
        bytes_ = columns // values * size * max(rows, 1)
        place += (bytes_ + 31) // 32 * 32
    noise = {kind: blocks(kind) for kind in TYPES if kind != "F32"}
    with open(o.out, "wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(keys)))
        for key, (kind, raw) in keys.items():
            out.write(text(key) + struct.pack("<I", kind) + raw)
        out.write(table)
        out.write(b"\0" * (-out.tell() % 32))
        for _, rows, columns, kind in listed:
            _, values, size, _, _ = TYPES[kind]
            left = columns // values * size * max(rows, 1)
            pad = -left % 32
            while left:
                # Norms of ones; biases of ones do no harm.
                part = struct.pack("<f", 1.0) * columns if kind == "F32" else noise[kind][:left]
                out.write(part)
                left -= len(part)
            out.write(b"\0" * pad)


if __name__ == "__main__":
    main()
