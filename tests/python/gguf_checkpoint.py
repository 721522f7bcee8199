"""Random GGUF files of true structure, written with PyPI `gguf`: every stored format in every variant's tensors.

Formats that package can quantise are quantised; for the others (K-quants, IQ4_NL) random blocks are made whose values
have about the wanted spread. What the bytes mean is read back by `gguf.quants.dequantize` in `oracle.load`.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from numpy.typing import NDArray
from oracle import GGUF_LAYER, GGUF_TOP
from random_checkpoint import Shape, random_weights

# Bytes and values of a block, the offsets of its f16 scales, and the scale that gives values a spread of one.
BLOCKS = {
    Kind.Q4_K: (144, 256, {0: 1 / 200, 2: 7.5 / 200}),
    Kind.Q5_K: (176, 256, {0: 1 / 400, 2: 15.5 / 400}),
    Kind.Q6_K: (210, 256, {208: 1 / 1350}),
    Kind.IQ4_NL: (18, 32, {0: 1 / 70}),
}


def encode(value: NDArray[np.float32], kind: Kind, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rows of a matrix (or of stacked matrices) as bytes of one format."""
    if kind not in BLOCKS:
        return np.ascontiguousarray(quantize(value, kind)).view(np.uint8)
    size, group, scales = BLOCKS[kind]
    rows = value.reshape(-1, value.shape[-1])
    blocks = rng.integers(0, 256, (len(rows), value.shape[-1] // group, size), np.uint8)
    for offset, scale in scales.items():
        blocks[:, :, offset : offset + 2] = np.frombuffer(np.float16(scale * value.std()).tobytes(), np.uint8)
    return blocks.reshape(*value.shape[:-1], -1)


def write(
    path: Path, shape: Shape, rng: np.random.Generator, kinds: list[Kind], *, split_experts: bool = False
) -> None:
    """A GGUF file; the matrices take the formats of `kinds` in turn, where their row length allows."""
    arch = f"gemma{shape.gemma}"
    layers = len(shape.is_full)
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    wide = [shape.mlp * (2 if shape.double_wide and not shape.owns_kv(i) else 1) for i in range(layers)]
    writer.add_feed_forward_length(wide if shape.double_wide else shape.mlp)
    writer.add_head_count(shape.heads)
    widths = [shape.width(i) for i in range(layers)]
    writer.add_head_count_kv([kv for _, kv in widths] if shape.k_eq_v else shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(shape.window)
    writer.add_rope_freq_base(shape.rope_theta)
    if shape.gemma == 4:
        writer.add_key_length(shape.global_head_dim)
        writer.add_value_length(shape.global_head_dim)
        writer.add_uint32(f"{arch}.attention.key_length_swa", shape.head_dim)
        writer.add_uint32(f"{arch}.attention.value_length_swa", shape.head_dim)
        writer.add_array(f"{arch}.attention.sliding_window_pattern", [not full for full in shape.is_full])
        writer.add_uint32(f"{arch}.attention.shared_kv_layers", shape.kv_shared)
        writer.add_uint32(f"{arch}.embedding_length_per_layer_input", shape.ple)
        writer.add_float32(f"{arch}.final_logit_softcapping", shape.softcap or 0.0)
        writer.add_float32(f"{arch}.rope.freq_base_swa", shape.rope_local_theta)
        turning = int(0.25 * shape.global_head_dim / 2)
        freqs = np.full(shape.global_head_dim // 2, 1e30, np.float32)
        freqs[:turning] = 1
        writer.add_tensor("rope_freqs.weight", freqs)
        if shape.experts:
            writer.add_expert_count(shape.experts)
            writer.add_expert_used_count(shape.experts_per_token)
            writer.add_expert_feed_forward_length(shape.expert_mlp)
    else:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        if shape.rope_factor != 1:
            writer.add_string(f"{arch}.rope.scaling.type", "linear")
            writer.add_float32(f"{arch}.rope.scaling.factor", shape.rope_factor)

    top = {hf: name for name, hf in GGUF_TOP.items()}
    inner = {hf: name for name, hf in GGUF_LAYER.items()}
    turn = 0
    for name, value in random_weights(shape, rng).items():
        if name in top:
            full = top[name]
        else:
            _, index, rest = name.split(".", 2)
            full = f"blk.{index}.{inner[rest]}"
        if value.ndim < 2 or is_router(name):
            writer.add_tensor(full, value + 1 if shape.gemma == 3 and name.endswith("norm.weight") else value)
            continue
        kind = kinds[turn % len(kinds)]
        turn += 1
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] != 0:
            kind = Kind.F16
        if split_experts and "gate_up_exps" in full:
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=1), strict=True):
                piece = np.ascontiguousarray(half)
                writer.add_tensor(full.replace("gate_up", part), encode(piece, kind, rng), raw_dtype=kind)
            continue
        writer.add_tensor(full, encode(value, kind, rng), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_router(name: str) -> bool:
    """The router stays in f32 in every published file."""
    return name.endswith("router.proj.weight")
