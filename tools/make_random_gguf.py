"""Write a GGUF file with the true tensor shapes and formats of a released Gemma 4 text model, and random weights.

    python tools/make_random_gguf.py --model e2b --recipe q4_0 --out e2b-q4_0.gguf

For measuring speed and memory, which do not depend on what the weights are; the text that comes out is noise. A recipe
gives each tensor the format that the usual quantiser gives it; blocks hold random codes and scales that give the values
the spread of a fresh layer. The vocabulary is the released one (tests/data). Needs `gguf`, numpy and sentencepiece.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from sentencepiece import sentencepiece_model_pb2

TOKENIZER = Path(__file__).parents[1] / "tests" / "data" / "tokenizer_gemma4.model"
HEAD_DIM, GLOBAL_HEAD_DIM = 256, 512
VOCABULARY = 262144


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    window: int
    period: int  # every period-th layer is a full one
    per_layer: int = 0
    shared_kv: int = 0  # layers at the end that reuse KV
    double_wide: bool = False  # the MLP of those
    global_kv_heads: int = 0  # of full layers whose values are their keys; 0: as the others
    experts: int = 0
    experts_used: int = 0
    expert_ffn: int = 0
    context: int = 131072

    def is_full(self, layer: int) -> bool:
        return (layer + 1) % self.period == 0

    def owns_kv(self, layer: int) -> bool:
        return layer < self.layers - self.shared_kv

    def has_values(self, layer: int) -> bool:
        return self.owns_kv(layer) and not (self.is_full(layer) and self.global_kv_heads)

    def width(self, layer: int) -> int:
        return self.ffn * (2 if self.double_wide and not self.owns_kv(layer) else 1)

    def kv(self, layer: int) -> int:
        return self.global_kv_heads if self.is_full(layer) and self.global_kv_heads else self.kv_heads


SHAPES = {
    "e2b": Shape(35, 1536, 8, 1, 6144, 512, 5, per_layer=256, shared_kv=20, double_wide=True),
    "e4b": Shape(42, 2560, 8, 2, 10240, 512, 6, per_layer=256, shared_kv=18),
    "26b-a4b": Shape(
        30, 2816, 16, 8, 2112, 1024, 6, global_kv_heads=2, experts=128, experts_used=8, expert_ffn=704, context=262144
    ),
    "31b": Shape(60, 5376, 32, 16, 21504, 1024, 6, global_kv_heads=4, context=262144),
}

RECIPES = {"bf16": Kind.BF16, "f16": Kind.F16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_k_m": Kind.Q4_K}
_FILE_TYPES = {"bf16": 32, "f16": 1, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}

# Byte offsets of the f16 scales of a block, and the scale at which random codes have a spread of one.
_SCALES = {
    Kind.Q4_0: {0: 1 / 4.6},
    Kind.Q5_0: {0: 1 / 9.2},
    Kind.Q8_0: {0: 1 / 74},
    Kind.Q4_K: {0: 1 / 200, 2: 7.5 / 200},
    Kind.Q6_K: {208: 1 / 1350},
}
_NORM, _SCALAR, _ROPE, _ROUTER = "norm", "scalar", "rope", "router"


@dataclass(frozen=True)
class Entry:
    """A tensor: its name, its shape innermost first, and what it is."""

    name: str
    dims: tuple[int, ...]
    role: str
    layer: int = 0


def entries(shape: Shape) -> Iterator[Entry]:
    """Every tensor, in the order of the file."""
    hidden, per_layer = shape.hidden, shape.per_layer
    yield Entry("token_embd.weight", (hidden, VOCABULARY), "table")
    if per_layer:
        yield Entry("per_layer_token_embd.weight", (per_layer * shape.layers, VOCABULARY), "table")
        yield Entry("per_layer_model_proj.weight", (hidden, per_layer * shape.layers), "per-layer projection")
        yield Entry("per_layer_proj_norm.weight", (per_layer,), _NORM)
    yield Entry("output_norm.weight", (hidden,), _NORM)
    yield Entry("rope_freqs.weight", (GLOBAL_HEAD_DIM // 2,), _ROPE)
    for layer in range(shape.layers):
        for name, dims, role in _layer(shape, layer):
            yield Entry(f"blk.{layer}.{name}", dims, role, layer)


def _layer(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    hidden, width = shape.hidden, shape.width(layer)
    dim = GLOBAL_HEAD_DIM if shape.is_full(layer) else HEAD_DIM
    yield "attn_norm.weight", (hidden,), _NORM
    yield "attn_q.weight", (hidden, dim * shape.heads), "matrix"
    yield "attn_q_norm.weight", (dim,), _NORM
    if shape.owns_kv(layer):
        yield "attn_k.weight", (hidden, dim * shape.kv(layer)), "matrix"
        yield "attn_k_norm.weight", (dim,), _NORM
    if shape.has_values(layer):
        yield "attn_v.weight", (hidden, dim * shape.kv(layer)), "value"
    yield "attn_output.weight", (dim * shape.heads, hidden), "matrix"
    yield "post_attention_norm.weight", (hidden,), _NORM
    yield "ffn_norm.weight", (hidden,), _NORM
    yield "ffn_gate.weight", (hidden, width), "matrix"
    yield "ffn_up.weight", (hidden, width), "matrix"
    yield "ffn_down.weight", (width, hidden), "down"
    yield "post_ffw_norm.weight", (hidden,), _NORM
    if shape.experts:
        yield "ffn_gate_inp.weight", (hidden, shape.experts), _ROUTER
        yield "ffn_gate_inp.scale", (hidden,), _NORM
        yield "pre_ffw_norm_2.weight", (hidden,), _NORM
        yield "post_ffw_norm_1.weight", (hidden,), _NORM
        yield "post_ffw_norm_2.weight", (hidden,), _NORM
        yield "ffn_gate_up_exps.weight", (hidden, 2 * shape.expert_ffn, shape.experts), "matrix"
        yield "ffn_down_exps.weight", (shape.expert_ffn, hidden, shape.experts), "expert down"
        yield "ffn_down_exps.scale", (shape.experts,), _NORM
    if shape.per_layer:
        yield "inp_gate.weight", (hidden, shape.per_layer), "matrix"
        yield "proj.weight", (shape.per_layer, hidden), "matrix"
        yield "post_norm.weight", (hidden,), _NORM
    yield "layer_output_scale.weight", (1,), _SCALAR


def kinds(shape: Shape, recipe: str) -> dict[str, Kind]:
    """The format of every tensor, by name."""
    every = list(entries(shape))
    counts = Counter(entry.role for entry in every)
    met: Counter[str] = Counter()
    found = {}
    for entry in every:
        kind = _kind(recipe, entry, met[entry.role], counts[entry.role])
        met[entry.role] += 1
        if entry.dims[0] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}[kind]
        found[entry.name] = kind
    return found


def _kind(recipe: str, entry: Entry, index: int, count: int) -> Kind:
    if entry.role in (_NORM, _SCALAR, _ROPE, _ROUTER):
        return Kind.F32
    if entry.role == "per-layer projection":
        return Kind.F16 if recipe == "f16" else Kind.BF16
    if recipe in ("q4_0", "q4_k_m") and entry.role == "table":
        return Kind.Q6_K
    if recipe == "q4_k_m" and entry.role in ("value", "down", "expert down"):
        eighth = count // 8
        if index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2:
            return Kind.Q6_K
    return RECIPES[recipe]


class RandomBlocks:
    """Bytes of matrices: one pool of random blocks for each format and spread, copied from random places on."""

    _POOL_BYTES = 8 << 20

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[Kind, float], memoryview] = {}

    def pieces(self, kind: Kind, values: int, spread: float) -> Iterator[memoryview]:
        group, size = gguf.GGML_QUANT_SIZES[kind]
        if (kind, spread) not in self._pools:
            self._pools[kind, spread] = memoryview(self._pool(kind, size, spread))
        pool = self._pools[kind, spread]
        left = values // group * size
        while left > 0:
            start = int(self._rng.integers(0, len(pool) // size)) * size
            piece = pool[start : start + left]
            left -= len(piece)
            yield piece

    def _pool(self, kind: Kind, size: int, spread: float) -> bytes:
        count = self._POOL_BYTES // size
        if kind not in _SCALES:
            values = (self._rng.standard_normal(count) * spread).astype(np.float32)
            if kind == Kind.BF16:
                return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            return values.astype({Kind.F16: np.float16, Kind.F32: np.float32}[kind]).tobytes()
        blocks = self._rng.integers(0, 256, (count, size), np.uint8)
        for offset, scale in _SCALES[kind].items():
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(scale * spread).tobytes(), np.uint8)
        return blocks.tobytes()


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Pieces, GGUF token types and merges of the released tokenizer, with the piece that the released files add."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(TOKENIZER.read_bytes())
    pieces = [piece.piece for piece in model.pieces]
    places = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (model.pieces[index].score, cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, index in places.items()
        for cut in range(1, len(piece))
        if piece[:cut] in places and piece[cut:] in places
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    pieces = [*pieces[:258884], "<|video|>", *pieces[258884:-1]]
    control = {0, 1, 2, 4, *range(46, 53), 98, 100, 101, 105, 106, 255999, 256000, *range(258880, 258885)}
    normal, unknown, controls, byte = 1, 2, 3, 6
    types = [
        controls if index in control else unknown if index == 3 else byte if 238 <= index <= 493 else normal
        for index in range(len(pieces))
    ]
    return pieces, types, [f"{left} {right}" for *_, left, right in merges]


def add_metadata(writer: gguf.GGUFWriter, shape: Shape, recipe: str) -> None:
    layers = range(shape.layers)
    kv_heads = [shape.kv(layer) for layer in layers]
    widths = [shape.width(layer) for layer in layers]
    writer.add_name("random weights")
    writer.add_file_type(_FILE_TYPES[recipe])
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(kv_heads if len(set(kv_heads)) > 1 else kv_heads[0])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern([not shape.is_full(layer) for layer in layers])
    writer.add_shared_kv_layers(shape.shared_kv)
    writer.add_key_length(GLOBAL_HEAD_DIM)
    writer.add_value_length(GLOBAL_HEAD_DIM)
    writer.add_key_length_swa(HEAD_DIM)
    writer.add_value_length_swa(HEAD_DIM)
    writer.add_embedding_length_per_layer_input(shape.per_layer)
    writer.add_final_logit_softcapping(30.0)
    writer.add_rope_dimension_count(GLOBAL_HEAD_DIM)
    writer.add_rope_dimension_count_swa(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_feed_forward_length(widths if shape.double_wide else shape.ffn)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.expert_ffn)
    pieces, types, merges = vocabulary()
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def data(entry: Entry, kind: Kind, shape: Shape, blocks: RandomBlocks) -> Iterator[memoryview]:
    if entry.role in (_NORM, _SCALAR):
        return iter([memoryview(np.ones(math.prod(entry.dims), np.float32).tobytes())])
    if entry.role == _ROPE:  # a quarter of the pairs of a full layer turns
        turning = entry.dims[0] // 4
        values = np.array([1.0] * turning + [1e30] * (entry.dims[0] - turning), np.float32)
        return iter([memoryview(values.tobytes())])
    fan_in = shape.hidden if entry.role == "table" else entry.dims[0]
    return blocks.pieces(kind, math.prod(entry.dims), 1 / math.sqrt(fan_in))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e2b", choices=sorted(SHAPES))
    parser.add_argument("--recipe", default="q4_0", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    shape = SHAPES[options.model]
    formats = kinds(shape, options.recipe)
    blocks = RandomBlocks(options.seed)
    writer = gguf.GGUFWriter(str(options.out), "gemma4")
    add_metadata(writer, shape, options.recipe)
    sizes = {}
    for entry in entries(shape):
        group, size = gguf.GGML_QUANT_SIZES[formats[entry.name]]
        sizes[entry.name] = math.prod(entry.dims) // group * size
        dims = entry.dims[::-1]
        writer.add_tensor_info(entry.name, dims, np.dtype(np.float32), sizes[entry.name], formats[entry.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with options.out.open("ab") as file:

        def pad() -> None:
            file.write(b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))

        pad()
        for entry in entries(shape):
            for piece in data(entry, formats[entry.name], shape, blocks):
                file.write(piece)
            pad()
        print(f"{options.out}: {len(sizes)} tensors, {file.tell() / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
