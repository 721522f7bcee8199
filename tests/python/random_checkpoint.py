"""Random small checkpoints with the true structure of every variant, as safetensors folders in any layout in use.

The weights are well-conditioned, so that rounding does not decide the logits: attention scores of order one, other
norms 1 +- 0.3, layer scalars 0.4 .. 1.2, matrices of standard deviation in^-0.5. NumPy only; the same seed gives the
same bytes.

    shape = random_shape(rng, "moe")
    write(folder, shape, random_weights(shape, rng), layout="released", dtype="BF16")
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Layout = Literal["released", "resaved", "nested"]
Dtype = Literal["F32", "F16", "BF16", "MIXED"]


@dataclass(frozen=True)
class Shape:
    """Sizes of one text decoder. `is_full` has one entry a layer; the global widths are ignored by Gemma 3."""

    is_full: tuple[bool, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    window: int
    gemma: int = 4
    global_head_dim: int = 0
    global_kv_heads: int = 0
    softcap: float | None = 30.0
    ple: int = 0
    kv_shared: int = 0
    double_wide: bool = False
    k_eq_v: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_mlp: int = 0
    rope_theta: float = 1e6
    rope_local_theta: float = 1e4
    rope_factor: float = 1.0
    query_scalar: int = 256
    unified: bool = False

    def width(self, layer: int) -> tuple[int, int]:
        """(head width, KV heads) of a layer."""
        if not self.is_full[layer] or self.gemma == 3:
            return self.head_dim, self.kv_heads
        return self.global_head_dim, self.global_kv_heads if self.k_eq_v else self.kv_heads

    def owns_kv(self, layer: int) -> bool:
        return layer < len(self.is_full) - self.kv_shared


def random_weights(shape: Shape, rng: np.random.Generator, *, unused: bool = False) -> dict[str, F32]:
    """Every tensor by its name without prefix.

    unused: also the K/V tensors of layers that reuse those of another, as the released files have.
    """
    s, h = shape, shape.hidden
    out: dict[str, F32] = {}

    def matrix(name: str, *dims: int) -> None:
        out[name] = (rng.standard_normal(dims) * dims[-1] ** -0.5).astype(np.float32)

    def norm(name: str, size: int, centre: float | NDArray[np.float64] = 1.0) -> None:
        value = centre * rng.uniform(0.7, 1.3, size)
        out[name] = (value if s.gemma == 4 else value - 1).astype(np.float32)

    matrix("embed_tokens.weight", s.vocab, h)
    # Both signs: the table is tied, and a residual that remembers its token would predict that token for ever.
    norm("norm.weight", h, rng.choice([-1.0, 1.0], h))
    if s.ple:
        layers = len(s.is_full)
        matrix("embed_tokens_per_layer.weight", s.vocab, layers * s.ple)
        # Times sqrt(ple) a row has elements of order one, as the context part has.
        out["embed_tokens_per_layer.weight"] *= np.float32(layers**0.5)
        matrix("per_layer_model_projection.weight", layers * s.ple, h)
        norm("per_layer_projection_norm.weight", s.ple)
    for i in range(len(s.is_full)):
        b = f"layers.{i}."
        d, kv_heads = s.width(i)
        # q . k of two normalised rows is of order sqrt(d); the norms bring scores (times Gemma 3's scale) to order one.
        centre = d**-0.25 if s.gemma == 4 else (s.query_scalar / d) ** 0.25
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"):
            norm(f"{b}{name}.weight", h)
        norm(f"{b}post_feedforward_layernorm.weight", h)
        matrix(b + "self_attn.q_proj.weight", s.heads * d, h)
        matrix(b + "self_attn.o_proj.weight", h, s.heads * d)
        norm(b + "self_attn.q_norm.weight", d, centre)
        if s.owns_kv(i) or unused:
            matrix(b + "self_attn.k_proj.weight", kv_heads * d, h)
            norm(b + "self_attn.k_norm.weight", d, centre)
            if not (s.k_eq_v and s.is_full[i]):
                matrix(b + "self_attn.v_proj.weight", kv_heads * d, h)
        inner = s.mlp * (2 if s.double_wide and not s.owns_kv(i) else 1)
        matrix(b + "mlp.gate_proj.weight", inner, h)
        matrix(b + "mlp.up_proj.weight", inner, h)
        matrix(b + "mlp.down_proj.weight", h, inner)
        if s.gemma == 4:
            out[b + "layer_scalar"] = rng.uniform(0.4, 1.2, 1).astype(np.float32)
        if s.ple:
            matrix(b + "per_layer_input_gate.weight", s.ple, h)
            matrix(b + "per_layer_projection.weight", h, s.ple)
            norm(b + "post_per_layer_input_norm.weight", h)
        if s.experts:
            matrix(b + "router.proj.weight", s.experts, h)
            # The router divides by sqrt(h); this scale makes its logits of order one, so that experts differ.
            out[b + "router.scale"] = (h**0.5 * rng.uniform(0.7, 1.3, h)).astype(np.float32)
            out[b + "router.per_expert_scale"] = rng.uniform(0.5, 1.5, s.experts).astype(np.float32)
            matrix(b + "experts.gate_up_proj", s.experts, 2 * s.expert_mlp, h)
            matrix(b + "experts.down_proj", s.experts, h, s.expert_mlp)
            norm(b + "pre_feedforward_layernorm_2.weight", h)
            norm(b + "post_feedforward_layernorm_1.weight", h)
            norm(b + "post_feedforward_layernorm_2.weight", h)
    return out


def config_json(shape: Shape, layout: Layout, dtype: Dtype = "BF16") -> dict[str, Any]:
    """The fields of `config.json`.

    released: as published (Gemma 3: the flat form of 270M with its old RoPE fields). resaved: as a current
    `save_pretrained` writes. nested: Gemma 3 of 4B and up as first uploaded; Gemma 4 has no third form.
    """
    s = shape
    text: dict[str, Any] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "final_logit_softcapping": s.softcap,
        "head_dim": s.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "layer_types": ["full_attention" if full else "sliding_attention" for full in s.is_full],
        "max_position_embeddings": 4096,
        "num_attention_heads": s.heads,
        "num_hidden_layers": len(s.is_full),
        "num_key_value_heads": s.kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "sliding_window": s.window,
        "tie_word_embeddings": True,
        "vocab_size": s.vocab,
    }
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "MIXED": "bfloat16"}[dtype]
    if s.gemma == 3:
        return _gemma3_json(s, layout, text, name)
    text |= {
        "attention_k_eq_v": s.k_eq_v,
        "enable_moe_block": s.experts > 0,
        "hidden_size_per_layer_input": s.ple,
        "moe_intermediate_size": s.expert_mlp or None,
        "num_experts": s.experts or None,
        "num_kv_shared_layers": s.kv_shared,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": s.rope_theta,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": s.rope_local_theta, "rope_type": "default"},
        },
        "top_k_experts": s.experts_per_token or None,
        "use_bidirectional_attention": None if s.ple else "vision",
        "use_double_wide_mlp": s.double_wide,
        "vocab_size_per_layer_input": s.vocab,
    }
    if layout == "resaved":
        own: dict[str, int] = {"head_dim": s.global_head_dim}
        if s.k_eq_v:
            own["num_key_value_heads"] = s.global_kv_heads
        per_layer = {str(i): own for i, full in enumerate(s.is_full) if full}
        return {
            "architectures": ["Gemma4ForCausalLM"],
            "dtype": name,
            "model_type": "gemma4_text",
            "per_layer_config": per_layer,
            **text,
        }
    if layout == "nested":
        raise ValueError(f"layout 'nested' is Gemma 3's; shape has gemma={s.gemma}")
    kind = "gemma4_unified" if s.unified else "gemma4"
    text |= {
        "dtype": name,
        "global_head_dim": s.global_head_dim,
        "model_type": f"{kind}_text",
        "num_global_key_value_heads": s.global_kv_heads if s.k_eq_v else None,
    }
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration" if s.unified else "Gemma4ForConditionalGeneration"],
        "dtype": name,
        "eos_token_id": [1, 106],
        "image_token_id": 258880,
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": True,
        "vision_config": {"model_type": f"{kind}_vision"},
    }


def _gemma3_json(s: Shape, layout: Layout, text: dict[str, Any], dtype: str) -> dict[str, Any]:
    scaling = {"factor": s.rope_factor, "rope_type": "linear"} if s.rope_factor != 1 else None
    text |= {"attn_logit_softcapping": None, "model_type": "gemma3_text", "query_pre_attn_scalar": s.query_scalar}
    if layout == "resaved":
        text["rope_parameters"] = {
            "full_attention": {"rope_theta": s.rope_theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": s.rope_local_theta, "rope_type": "default"},
        }
        return {"architectures": ["Gemma3ForCausalLM"], "dtype": dtype, **text}
    text |= {"rope_theta": s.rope_theta, "rope_local_base_freq": s.rope_local_theta, "rope_scaling": scaling}
    if layout == "released":
        return {"architectures": ["Gemma3ForCausalLM"], "torch_dtype": dtype, **text}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": dtype,
        "vision_config": {"model_type": "siglip_vision_model"},
    }


def prefix(shape: Shape, layout: Layout) -> str:
    """What stands before every text tensor's name in this layout."""
    if shape.gemma == 3:
        return "language_model.model." if layout == "nested" else "model."
    return "model.language_model." if layout == "released" else "model."


def rounded(value: F32, dtype: str) -> F32:
    """The values a file of this dtype holds, as float32 (ties to even)."""
    if dtype == "F32":
        return value
    if dtype == "F16":
        return value.astype(np.float16).astype(np.float32)
    u = value.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


def _bytes(value: F32, dtype: str) -> bytes:
    if dtype == "BF16":
        return (rounded(value, dtype).view(np.uint32) >> 16).astype("<u2").tobytes()
    return value.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[F32, str]]) -> None:
    """One file of name -> (values, dtype), in the order given, header padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (value, dtype) in tensors.items():
        data = _bytes(value, dtype)
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def write(
    folder: Path,
    shape: Shape,
    weights: Mapping[str, F32],
    *,
    layout: Layout,
    dtype: Dtype = "BF16",
    shards: int = 1,
    towers: bool = False,
) -> None:
    """A checkpoint folder: config.json, generation_config.json and weights, rounded to `dtype` (MIXED: turn by turn).

    shards: files, with an index when there are several. towers: adds a few tensors of encoders that text does not need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ("BF16", "F32", "F16")
    tensors = {
        prefix(shape, layout) + name: (value, kinds[i % 3] if dtype == "MIXED" else dtype)
        for i, (name, value) in enumerate(sorted(weights.items()))
    }
    if towers:
        root = "" if layout == "nested" else "model."
        patch = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
        tower = "F32" if dtype == "F32" else "BF16"
        tensors[f"{root}vision_tower.patch_embedder.input_proj.weight"] = (patch, tower)
        tensors[f"{root}vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"] = (patch, tower)
        tensors[f"{root}audio_tower.output_proj.bias"] = (patch[0].copy(), tower)
        tensors[f"{root}embed_vision.embedding_projection.weight"] = (patch, tower)
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", {n: tensors[n] for n in names})
    else:
        index: dict[str, str] = {}
        for part in range(shards):
            file = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
            mine = names[part * len(names) // shards : (part + 1) * len(names) // shards]
            write_safetensors(folder / file, {n: tensors[n] for n in mine})
            index |= dict.fromkeys(mine, file)
        total = sum(value.size * (4 if kind == "F32" else 2) for value, kind in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    write_json(folder / "config.json", config_json(shape, layout, dtype))
    write_json(folder / "generation_config.json", GENERATION)


GENERATION = {"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, 106, 50], "pad_token_id": 0, "top_k": 64}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


Kind = Literal["e", "large", "moe", "gemma3"]
KINDS: tuple[Kind, ...] = ("e", "large", "moe", "gemma3")


def random_shape(rng: np.random.Generator, kind: Kind) -> Shape:
    """Odd sizes of one kind: PLE with KV sharing; dense, K = V or not; experts with K = V; or Gemma 3."""

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def coin() -> bool:
        return bool(rng.integers(2))

    kv_heads = pick(1, 3)
    heads = kv_heads * pick(1, 4)
    own = [coin() for _ in range(pick(2, 4))]
    own[0], own[-1] = (True, False) if kind in ("e", "gemma3") and coin() else (False, True)  # both kinds own K/V
    shared = [*(coin() for _ in range(pick(0, 2))), True] if kind == "e" else []  # Gemma 4 ends with a global layer
    is_full = [*own, *shared]
    head_dim, vocab, window = 2 * pick(3, 20), pick(110, 260), pick(2, 24)
    if kind == "gemma3":
        hidden = heads * pick(max(1, 24 // heads), max(2, 60 // heads))
        return Shape(
            is_full=tuple(is_full),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            mlp=pick(20, 90),
            vocab=vocab,
            window=window,
            gemma=3,
            softcap=None,
            rope_factor=float(rng.choice([1.0, 4.0, 8.0])),
            query_scalar=pick(8, 64),
        )
    k_eq_v = kind != "e" and (kind == "moe" or coin())
    experts = pick(3, 9) if kind == "moe" else 0
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]
    return Shape(
        is_full=tuple(is_full),
        hidden=pick(20, 70),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=pick(20, 90),
        vocab=vocab,
        window=window,
        global_head_dim=2 * pick(4, 30),
        global_kv_heads=int(rng.choice(divisors)) if k_eq_v else 0,
        softcap=float(rng.choice([30.0, 8.0])),
        ple=pick(2, 5) ** 2 if kind == "e" else 0,
        kv_shared=len(shared),
        double_wide=kind == "e" and coin(),
        k_eq_v=k_eq_v,
        experts=experts,
        experts_per_token=pick(1, max(1, experts - 1)) if experts else 0,
        expert_mlp=pick(5, 30) if experts else 0,
    )
