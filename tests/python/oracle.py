"""The text decoder of Gemma 4 and Gemma 3 in NumPy, float64: what every backend is checked against.

Written from the specification alone (spec architecture 2 and 6), for reading: no cache, no chunks, no speed; one whole
sequence in, logits at every position out. It refuses images and sound. It shares no code with the package, so that an
agreement means something; `test_oracle.py` checks it against an independent framework's logits in `tests/golden`.

    config, weights = load("folder or file.gguf")
    logits = forward(config, weights, ids)             # (n, vocabulary) float64, after softcap
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Weights = dict[str, F32]

PREFIXES = ("model.language_model.", "language_model.model.", "model.")


@dataclass(frozen=True)
class Rope:
    """Rotary angles of one kind of layer; `rotated` is the fraction of pairs that turn (spec architecture 2.5)."""

    theta: float
    rotated: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True)
class Layer:
    is_full: bool
    head_dim: int
    kv_heads: int


@dataclass(frozen=True)
class Config:
    is_gemma4: bool
    hidden: int
    heads: int
    eps: float
    window: int
    query_scale: float
    softcap: float | None
    rope_full: Rope
    rope_sliding: Rope
    layers: tuple[Layer, ...]
    kv_shared: int = 0
    ple: int = 0
    k_eq_v: bool = False
    experts_per_token: int = 0


def load(path: str | Path) -> tuple[Config, Weights]:
    """Configuration and weights of a safetensors folder (either layout) or a GGUF file.

    Weights carry no prefix: `embed_tokens.weight`, `norm.weight`, `layers.0.self_attn.q_proj.weight`, ...
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return load_gguf(path)
    weights: Weights = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, value in read_safetensors(file).items():
            prefix = next((p for p in PREFIXES if name.startswith(p)), "")
            weights[name[len(prefix) :]] = value
    return read_config(json.loads((path / "config.json").read_text())), weights


def read_safetensors(path: str | Path) -> Weights:
    """Name -> array; bf16, f16 and f32 are widened to float32."""
    raw = np.fromfile(path, np.uint8)
    start = 8 + int(struct.unpack("<Q", raw[:8].tobytes())[0])
    out: Weights = {}
    for name, entry in json.loads(raw[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        bits = raw[start + begin : start + end].copy()
        value: F32
        if entry["dtype"] == "BF16":
            value = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            value = bits.view({"F32": np.float32, "F16": np.float16}[entry["dtype"]]).astype(np.float32)
        out[name] = value.reshape(entry["shape"])
    return out


def read_config(top: dict[str, Any]) -> Config:
    """`config.json` in any layout: nested or flat, released fields or `per_layer_config`, old or new RoPE fields."""
    c: dict[str, Any] = top.get("text_config") or top
    is_gemma4 = str(c["model_type"]).startswith("gemma4")
    count = int(c["num_hidden_layers"])
    types = c.get("layer_types")
    pattern = int(c.get("sliding_window_pattern") or c.get("_sliding_window_pattern") or 6)
    is_full = [types[i] == "full_attention" if types else (i + 1) % pattern == 0 for i in range(count)]

    overrides: dict[int, dict[str, int]] = {int(k): v for k, v in (c.get("per_layer_config") or {}).items()}
    if is_gemma4 and "per_layer_config" not in c:
        own = {"head_dim": int(c["global_head_dim"])}
        if c.get("attention_k_eq_v") and c.get("num_global_key_value_heads"):
            own["num_key_value_heads"] = int(c["num_global_key_value_heads"])
        overrides = {i: own for i in range(count) if is_full[i]}
    layers = []
    for i in range(count):
        own = overrides.get(i, {})
        kv_heads = own.get("num_key_value_heads", c["num_key_value_heads"])
        layers.append(Layer(is_full[i], own.get("head_dim", c["head_dim"]), kv_heads))

    ropes = c.get("rope_parameters")
    if ropes is None:  # Gemma 3 as uploaded
        ropes = {
            "full_attention": {"rope_theta": c["rope_theta"], **(c.get("rope_scaling") or {})},
            "sliding_attention": {"rope_theta": c["rope_local_base_freq"]},
        }

    def rope(kind: str) -> Rope:
        p = ropes[kind]
        proportional, linear = p.get("rope_type") == "proportional", p.get("rope_type") == "linear"
        return Rope(
            float(p["rope_theta"]),
            float(p["partial_rotary_factor"]) if proportional else 1.0,
            float(p["factor"]) if linear else 1.0,
        )

    return Config(
        is_gemma4=is_gemma4,
        hidden=c["hidden_size"],
        heads=c["num_attention_heads"],
        eps=c["rms_norm_eps"],
        window=c["sliding_window"],
        query_scale=1.0 if is_gemma4 else float(c["query_pre_attn_scalar"]) ** -0.5,
        softcap=c.get("final_logit_softcapping"),
        rope_full=rope("full_attention"),
        rope_sliding=rope("sliding_attention"),
        layers=tuple(layers),
        kv_shared=c.get("num_kv_shared_layers") or 0,
        ple=c.get("hidden_size_per_layer_input") or 0,
        k_eq_v=bool(c.get("attention_k_eq_v")),
        experts_per_token=int(c["top_k_experts"]) if c.get("enable_moe_block") else 0,
    )


GGUF_TOP = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
GGUF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
}


def load_gguf(path: Path) -> tuple[Config, Weights]:
    """Architectures gemma4 and gemma3, dequantised by the PyPI package `gguf` (spec architecture 4 and 6.4)."""
    import gguf
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(str(path))

    def field(key: str, default: Any = None) -> Any:
        found = reader.fields.get(key)
        return default if found is None else found.contents()

    arch = str(field("general.architecture"))
    is_gemma4 = arch == "gemma4"

    def get(key: str, default: Any = None) -> Any:
        return field(f"{arch}.{key}", default)

    weights: Weights = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = GGUF_TOP.get(tensor.name)
        if name is None:
            _, index, kind = tensor.name.split(".", 2)
            name = f"layers.{index}.{GGUF_LAYER[kind]}"
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        # The converter added one to every norm of Gemma 3; `forward` adds it itself.
        weights[name] = value - 1 if not is_gemma4 and name.endswith("norm.weight") else value

    count = int(get("block_count"))
    sliding = get("attention.sliding_window_pattern")
    if not isinstance(sliding, list):
        sliding = [(i + 1) % int(sliding or 6) != 0 for i in range(count)]
    kv_heads = get("attention.head_count_kv")
    if not isinstance(kv_heads, list):
        kv_heads = [kv_heads] * count
    hidden, heads, head_dim = (
        int(get(k)) for k in ("embedding_length", "attention.head_count", "attention.key_length")
    )
    sliding_dim = int(get("attention.key_length_swa", head_dim))
    shared = int(get("attention.shared_kv_layers", 0))
    scale_dim = hidden // heads if count == 62 else head_dim
    linear = get("rope.scaling.type") == "linear"
    owns_v = [f"layers.{i}.self_attn.v_proj.weight" in weights for i in range(count - shared)]
    return Config(
        is_gemma4=is_gemma4,
        hidden=hidden,
        heads=heads,
        eps=float(get("attention.layer_norm_rms_epsilon")),
        window=int(get("attention.sliding_window")),
        query_scale=1.0 if is_gemma4 else scale_dim**-0.5,
        softcap=get("final_logit_softcapping"),
        rope_full=Rope(
            float(get("rope.freq_base", 1e6)),
            0.25 if is_gemma4 else 1.0,
            float(get("rope.scaling.factor", 1.0)) if linear else 1.0,
        ),
        rope_sliding=Rope(float(get("rope.freq_base_swa", 1e4))),
        layers=tuple(
            Layer(not sliding[i], sliding_dim if sliding[i] else head_dim, int(kv_heads[i])) for i in range(count)
        ),
        kv_shared=shared,
        ple=int(get("embedding_length_per_layer_input", 0)),
        k_eq_v=not all(owns_v),
        experts_per_token=int(get("expert_used_count", 0)),
    ), weights


def bf16(x: float) -> float:
    """`x` rounded to the nearest bfloat16, ties to even."""
    u = int(np.float32(x).view(np.uint32))
    u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000
    return float(np.uint32(u).view(np.float32))


def rms(x: F64, eps: float) -> F64:
    y: F64 = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y


def gelu(x: F64) -> F64:
    y: F64 = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(-1, keepdims=True))
    p: F64 = e / e.sum(-1, keepdims=True)
    return p


def rotate(x: F64, rope: Rope) -> F64:
    """Rotary embedding of `x` (n, heads, d) at positions 0 .. n-1; element i pairs with i + d/2."""
    n, _, d = x.shape
    i = np.arange(d // 2)
    frequency = rope.theta ** (-2.0 * i / d) / rope.factor
    frequency[int(rope.rotated * d / 2) :] = 0
    angle = np.arange(n)[:, None] * frequency
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    left, right = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def likeliest(p: F64, k: int) -> I64:
    """The `k` largest of each row, descending; ties to the lower id."""
    return np.argsort(-p, axis=-1, kind="stable")[:, :k]


def experts(z: F64, p: F64, chosen: I64, gate_up: F64, down: F64, scale: F64) -> F64:
    """Rows `z` (n, h) through `chosen` (n, k) of the experts of `p` (n, experts); weights renormalised, then scaled."""
    out = np.zeros_like(z)
    for t in range(len(z)):
        for j in chosen[t]:
            gate, up = np.split(gate_up[j] @ z[t], 2)
            out[t] += p[t, j] / p[t, chosen[t]].sum() * scale[j] * (down[j] @ (gelu(gate) * up))
    return out


def forward(
    config: Config,
    weights: Weights,
    ids: ArrayLike,
    *,
    round_scale: bool = True,
    margins: list[float] | None = None,
    choose: Callable[[int, F64], I64] | None = None,
) -> F64:
    """Logits (n, vocabulary) after softcap of the ids (n,).

    `round_scale`: the embedding scale sqrt(h) is rounded to bfloat16, as the models were trained; llama.cpp does not.
    `margins` collects, for every layer with experts, the smallest distance in probability between an expert that was
    chosen and one that was not: where it is tiny, a float32 run may rightly choose another.
    `choose` says which experts each row takes, from the layer and its probabilities, in place of the likeliest.
    """
    c = config
    ids = np.asarray(ids)
    n, h, count = len(ids), c.hidden, len(c.layers)

    def w(name: str) -> F64:
        return weights[name].astype(np.float64)

    def norm(x: F64, name: str) -> F64:
        y: F64 = rms(x, c.eps) * (w(name) if c.is_gemma4 else 1 + w(name))
        return y

    def embed_scale(width: int) -> float:
        return bf16(width**0.5) if round_scale else width**0.5

    table = w("embed_tokens.weight")
    x: F64 = table[ids] * embed_scale(h)
    if c.ple:
        token = w("embed_tokens_per_layer.weight")[ids].reshape(n, count, c.ple) * embed_scale(c.ple)
        context = (x @ w("per_layer_model_projection.weight").T * h**-0.5).reshape(n, count, c.ple)
        per_layer = (norm(context, "per_layer_projection_norm.weight") + token) * 2**-0.5

    query, key = np.arange(n)[:, None], np.arange(n)[None]
    donor: dict[bool, tuple[F64, F64]] = {}
    for i, layer in enumerate(c.layers):
        b, d = f"layers.{i}.", layer.head_dim
        rope = c.rope_full if layer.is_full else c.rope_sliding

        u = norm(x, b + "input_layernorm.weight")
        q = (u @ w(b + "self_attn.q_proj.weight").T).reshape(n, c.heads, d)
        q = rotate(norm(q, b + "self_attn.q_norm.weight"), rope)
        if i < count - c.kv_shared:
            raw = (u @ w(b + "self_attn.k_proj.weight").T).reshape(n, layer.kv_heads, d)
            k = rotate(norm(raw, b + "self_attn.k_norm.weight"), rope)
            if not (c.k_eq_v and layer.is_full):
                raw = (u @ w(b + "self_attn.v_proj.weight").T).reshape(n, layer.kv_heads, d)
            v = rms(raw, c.eps) if c.is_gemma4 else raw
            donor[layer.is_full] = (k, v)
        k, v = donor[layer.is_full]

        visible = key <= query
        if not layer.is_full:
            visible = visible & (query - key < c.window)
        group = c.heads // k.shape[1]
        score = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, 1)) * c.query_scale
        p = softmax(np.where(visible, score, -np.inf))
        o = np.einsum("hqk,khd->qhd", p, np.repeat(v, group, 1)).reshape(n, c.heads * d)
        x = x + norm(o @ w(b + "self_attn.o_proj.weight").T, b + "post_attention_layernorm.weight")

        z = norm(x, b + "pre_feedforward_layernorm.weight")
        f = gelu(z @ w(b + "mlp.gate_proj.weight").T) * (z @ w(b + "mlp.up_proj.weight").T)
        f = f @ w(b + "mlp.down_proj.weight").T
        if c.experts_per_token:
            r = rms(x, c.eps) * h**-0.5 * w(b + "router.scale")
            p = softmax(r @ w(b + "router.proj.weight").T)
            if margins is not None and c.experts_per_token < p.shape[-1]:
                ranked = -np.sort(-p, -1)
                margins.append(float((ranked[:, c.experts_per_token - 1] - ranked[:, c.experts_per_token]).min()))
            m = experts(
                norm(x, b + "pre_feedforward_layernorm_2.weight"),
                p,
                choose(i, p) if choose else likeliest(p, c.experts_per_token),
                w(b + "experts.gate_up_proj"),
                w(b + "experts.down_proj"),
                w(b + "router.per_expert_scale"),
            )
            f = norm(f, b + "post_feedforward_layernorm_1.weight") + norm(m, b + "post_feedforward_layernorm_2.weight")
        x = x + norm(f, b + "post_feedforward_layernorm.weight")

        if c.ple:
            m = gelu(x @ w(b + "per_layer_input_gate.weight").T) * per_layer[:, i]
            x = x + norm(m @ w(b + "per_layer_projection.weight").T, b + "post_per_layer_input_norm.weight")
        if c.is_gemma4:
            x = x * float(weights[b + "layer_scalar"].reshape(-1)[0])

    y: F64 = norm(x, "norm.weight") @ table.T
    return c.softcap * np.tanh(y / c.softcap) if c.softcap else y
