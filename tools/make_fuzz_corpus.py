"""Writes the seeds of tests/fuzz/corpus: small right files of each kind, for the fuzzers to change.

`config` takes its JSON seeds from the golden checkpoints, so that both configuration layouts are there.
What a fuzzer found lies beside them under a name that says what it is, and is not written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests/fuzz/corpus"

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def value(kind: int, item: object) -> bytes:
    if kind == STRING:
        return text(str(item).encode())
    return struct.pack("<" + PACK[kind], item)


def key(name: str, kind: int, item: object) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value(kind, item)


def array(name: str, kind: int, items: Sequence[object]) -> bytes:
    body = b"".join(value(kind, item) for item in items)
    return text(name.encode()) + struct.pack("<IIQ", ARRAY, kind, len(items)) + body


def gguf(keys: list[bytes], tensors: list[tuple[str, list[int], int, bytes]], alignment: int = 32) -> bytes:
    """`tensors`: name, dimensions (innermost first), type number, data."""
    directory, body = b"", b""
    for name, shape, kind, data in tensors:
        directory += text(name.encode()) + struct.pack("<I", len(shape))
        directory += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + directory
    return head + bytes(-len(head) % alignment) + body


def safetensors(tensors: dict[str, tuple[str, list[int], int]], **metadata: str) -> bytes:
    """`tensors`: name -> dtype, shape, bytes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(at)


def gemma_keys(architecture: str) -> list[bytes]:
    p = architecture
    keys = [
        key("general.architecture", STRING, architecture),
        key(f"{p}.block_count", U32, 2),
        key(f"{p}.context_length", U32, 64),
        key(f"{p}.embedding_length", U32, 8),
        key(f"{p}.feed_forward_length", U32, 16),
        key(f"{p}.attention.head_count", U32, 2),
        key(f"{p}.attention.key_length", U32, 8),
        key(f"{p}.attention.layer_norm_rms_epsilon", F32, 1e-6),
        key(f"{p}.attention.sliding_window", U32, 4),
        key(f"{p}.rope.freq_base", F32, 1e6),
    ]
    if architecture == "gemma3":
        return [*keys, key(f"{p}.attention.head_count_kv", U32, 1)]
    return [
        *keys,
        array(f"{p}.attention.head_count_kv", I32, [2, 1]),
        array(f"{p}.attention.sliding_window_pattern", BOOL, [True, False]),
        key(f"{p}.attention.shared_kv_layers", U32, 0),
        key(f"{p}.attention.key_length_swa", U32, 4),
    ]


def seeds() -> dict[str, bytes]:
    out: dict[str, bytes] = {
        "safetensors/empty": safetensors({}),
        "safetensors/dense": safetensors({"a": ("F32", [2, 1], 8), "b": ("BF16", [3], 6), "c": ("F16", [], 2)}, f="pt"),
        "safetensors/other": safetensors({"i": ("I64", [1], 8), "z": ("F32", [0, 4], 0), "u": ("U8", [3], 3)}),
        "safetensors/index": json.dumps({"metadata": {}, "weight_map": {"a": "m-00001-of-00002.safetensors"}}).encode(),
        "gguf/empty": gguf([], []),
        "gguf/values": gguf(
            [
                key("u8", U8, 1),
                key("i16", I16, -2),
                key("u64", U64, 3),
                key("f64", F64, 0.5),
                key("bool", BOOL, True),
                key("text", STRING, "words"),
                array("tokens", STRING, ["a", "", "long"]),
                array("scores", F32, [0.0, -1.0]),
                array("types", I32, [1, 3]),
                array("flags", BOOL, [True, False]),
                key("general.alignment", U32, 64),
                key("split.count", U16, 1),
            ],
            [("a", [4], 0, bytes(16))],
            64,
        ),
        "gguf/formats": gguf(
            [],
            [
                (f"t{kind}", [block, 1], kind, bytes(size))
                for kind, block, size in [
                    (0, 2, 8), (1, 2, 4), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
                    (12, 256, 144), (13, 256, 176), (14, 256, 210), (20, 32, 18), (30, 2, 4), (10, 256, 84),
                ]
            ],
        ),
        "config/gemma3.gguf": gguf(gemma_keys("gemma3"), [("token_embd.weight", [8, 4], 0, bytes(128))]),
        "config/gemma4.gguf": gguf(
            gemma_keys("gemma4"),
            [
                ("token_embd.weight", [8, 4], 0, bytes(128)),
                ("rope_freqs.weight", [4], 0, struct.pack("<4f", 1, 1e30, 1e30, 1e30)),
            ],
        ),
    }  # fmt: skip
    for config in sorted(ROOT.glob("tests/golden/odd/*/config.json")):
        compact = json.dumps(json.loads(config.read_text()), separators=(",", ":"))
        out[f"config/{config.parent.name}.json"] = compact.encode()
    return out


def main() -> None:
    for name, content in seeds().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path.relative_to(ROOT)}: {len(content)} bytes")


if __name__ == "__main__":
    main()
