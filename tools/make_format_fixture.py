"""Writes tests/cpp/formats/data/blocks.bin: random blocks of every GGUF format and their values, read by PyPI `gguf`.

The file is a sequence of records: name (16 bytes, NUL-padded), group, block bytes, block count (u32 each), the blocks,
then group * count values as f32. Scales cover zero, subnormal, negative, largest, infinite and NaN halves. Needs
`pip install gguf` (the fixture was made with the version printed into GGUF_VERSION beside it).
"""

from __future__ import annotations

import argparse
import struct
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

FORMATS = ["F32", "BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]

# Where a block keeps its f16 scales.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
}

# 0, -0, smallest and largest subnormal, smallest normal, 1, -2, 65504, infinity, a NaN.
HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xC000, 0x7BFF, 0x7C00, 0x7E01]


def blocks_of(name: str, block_bytes: int, rng: np.random.Generator) -> np.ndarray:
    """Random blocks, the first ones with the special scales; uint8, shape (count, block_bytes)."""
    scales = SCALES.get(name)
    if scales is None:  # a dense value is a block of its own
        return rng.integers(0, 256, (64, block_bytes), dtype=np.uint8)
    count = len(HALVES) + (2 if block_bytes > 100 else 6)
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for at in scales:
        # Finite, ordinary scales for the rest: a random exponent would make one block in 32 not a number.
        ordinary = rng.normal(0, 0.02, count).astype(np.float16).view(np.uint16)
        ordinary[: len(HALVES)] = np.roll(np.array(HALVES, dtype=np.uint16), at)
        blocks[:, at : at + 2] = ordinary.astype("<u2").view(np.uint8).reshape(count, 2)
    return blocks


def values_of(name: str, blocks: np.ndarray) -> np.ndarray:
    if name == "F32":
        return blocks.reshape(-1).view("<f4")
    if name == "F16":
        return blocks.reshape(-1).view("<f2").astype("<f4")
    with np.errstate(all="ignore"):
        return np.asarray(dequantize(blocks, gguf.GGMLQuantizationType[name])).reshape(-1).astype("<f4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "tests/cpp/formats/data"
    parser.add_argument("--out", type=Path, default=default, help="folder of the fixture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261121)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    out = bytearray()
    for name in FORMATS:
        group, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        blocks = blocks_of(name, block_bytes, rng)
        out += struct.pack("<16sIII", name.lower().encode(), group, block_bytes, len(blocks))
        out += blocks.tobytes() + values_of(name, blocks).tobytes()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "blocks.bin").write_bytes(out)
    (args.out / "GGUF_VERSION").write_text(f"gguf {version('gguf')}, seed {args.seed}\n")
    print(f"{args.out / 'blocks.bin'}: {len(out)} bytes")


if __name__ == "__main__":
    main()
