#!/usr/bin/env python3
"""Trains the embedded models on `nano_corpus` and writes them in the released checkpoint layout.

    train_nano.py train  RUN --series e|moe               starts or resumes; checkpoint every 4 minutes and on SIGTERM
    train_nano.py status RUN                              steps, tokens, time, last accuracies
    train_nano.py export RUN FOLDER [--golden FILE]       writes the current checkpoint, checked against transformers

The training model below holds the parameters of transformers' Gemma 4 under their own names, but computes only what the
loss needs: answers are learned, so a layer whose keys and values nobody reads any more runs at answer positions only.
Steps drive the schedule; a resumed run sees the batches and rates of an uninterrupted one. Needs torch, transformers,
sentencepiece; refuses a run folder of another series.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nano_corpus as corpus
import sentencepiece as spm
import torch
from torch import Tensor
from torch.nn import functional

VOCABULARY = 1536
EPS = 1e-6
EVAL_SHARE = 100
LONGEST = 448  # ids of a conversation
STOP_STRINGS = ("<eos>", "<turn|>", "<|tool_response>")


def series_config(series: str, vocabulary: int) -> dict[str, Any]:
    """Text configuration in the released layout."""
    common = {
        "model_type": "gemma4_text",
        "vocab_size": vocabulary,
        "vocab_size_per_layer_input": vocabulary,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "head_dim": 32,
        "global_head_dim": 64,
        "sliding_window": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": EPS,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        },
        "dtype": "bfloat16",
    }
    if series == "e":
        own = {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "intermediate_size": 256,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": None,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
            "attention_k_eq_v": False,
            "enable_moe_block": False,
            "num_experts": None,
            "top_k_experts": None,
            "moe_intermediate_size": None,
            "use_bidirectional_attention": None,
        }
    elif series == "moe":
        own = {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "intermediate_size": 192,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
            "use_bidirectional_attention": "vision",
        }
    else:
        raise SystemExit(f"--series: {series!r} is not one of e, moe")
    return common | own


# ---- schedule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Steps drive everything: which conversations are drawn up to which step, and the rate, linear between knots."""

    mixes: tuple[tuple[int, corpus.Mix], ...]
    rates: tuple[tuple[int, float], ...]

    @property
    def steps(self) -> int:
        return self.mixes[-1][0]

    def mix(self, step: int) -> corpus.Mix:
        return next((mix for until, mix in self.mixes if step < until), self.mixes[-1][1])

    def rate(self, step: int) -> float:
        for (a, low), (b, high) in pairwise(self.rates):
            if step < b:
                return low + (high - low) * (step - a) / (b - a)
        return self.rates[-1][1]


FIRST = corpus.Mix(one_digit=0.6)
BASE = corpus.Mix(one_digit=0.12)
SUMS = corpus.Mix(sums=5.0, thinking_sums=2.6, one_digit=0.12)
# Below: sums, thinking sums, capitals, extraction, tools, memory, talk.
HARD = corpus.Mix(4.5, 1.2, 0.6, 1.5, 4.0, 0.7, 0.3, one_digit=0.12, hard=True)
CALLS = corpus.Mix(2.5, 0.8, 0.5, 1.2, 9.0, 0.5, 0.25, one_digit=0.12, hard=True)
BROAD = corpus.Mix(4.5, 1.6, 0.7, 1.8, 5.0, 1.0, 0.3, one_digit=0.12, hard=True, lookup=0.5)
GETS = corpus.Mix(3.5, 1.0, 0.6, 1.3, 7.0, 0.6, 0.3, one_digit=0.12, hard=True, by_get=True)
SCHEDULES = {
    "e": Schedule(
        mixes=((150, FIRST), (2025, BASE), (4500, SUMS), (7600, HARD), (11000, GETS)),
        rates=(
            (0, 0.01),
            (99, 1.0),
            (2475, 1.0),
            (4480, 0.01),
            (4500, 0.01),
            (4550, 0.5),
            (5300, 0.35),
            (7600, 0.01),
            (7650, 0.5),
            (11000, 0.01),
        ),
    ),
    "moe": Schedule(
        mixes=((150, FIRST), (1080, BASE), (1579, SUMS), (3711, HARD), (8000, BROAD), (9100, CALLS), (11500, GETS)),
        rates=(
            (0, 0.01),
            (99, 1.0),
            (1320, 1.0),
            (1579, 0.76),
            (1650, 1.0),
            (3000, 1.0),
            (3711, 0.824),
            (8000, 0.01),
            (8030, 0.3),
            (9100, 0.01),
            (9150, 0.5),
            (11500, 0.01),
        ),
    ),
}


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def make_tokenizer(folder: Path) -> Path:
    """Trains `tokenizer.model` on the corpus. A blank is a piece of its own, so that a word has the same pieces
    wherever it stands and copying it is copying ids."""
    path = folder / "tokenizer.model"
    if not path.exists():
        written = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=corpus.corpus_text(20000),
            model_writer=written,
            vocab_size=VOCABULARY,
            model_type="bpe",
            split_digits=True,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=[*corpus.SPECIAL_TOKENS[4:], "\n", "\n\n", "\u2581"],
            required_chars="".join(chr(c) for c in range(33, 127)),
            max_sentencepiece_length=12,
            num_threads=1,
            minloglevel=2,
        )
        path.write_bytes(written.getvalue())
    return path


FORMAT_WORDS = frozenset(
    "system user model thought declaration description parameters properties type required call response value "
    "STRING INTEGER OBJECT".split()
)
WORD_OR_CONTROL = re.compile("(" + "|".join(map(re.escape, corpus.SPECIAL_TOKENS)) + "|[A-Za-z]+)")


class Encoder:
    """Encodes rendered text; for training, some words of a conversation get another segmentation, the same one at every
    place, so that pieces that training seldom shows are learned too."""

    def __init__(self, path: Path) -> None:
        self.sp = spm.SentencePieceProcessor(model_file=str(path))
        self.cache: dict[str, list[int]] = {}
        self.bos = self.sp.bos_id()
        self.stops = {self.sp.eos_id(), *(self.sp.piece_to_id(s) for s in STOP_STRINGS[1:])}

    def encode(
        self, text: str, r: random.Random | None = None, sampled: dict[str, list[int]] | None = None
    ) -> list[int]:
        ids: list[int] = []
        if text.startswith(corpus.BOS):
            ids.append(self.bos)
            text = text[len(corpus.BOS) :]
        if r is None or sampled is None:
            return ids + list(self.sp.encode(text))
        for part in WORD_OR_CONTROL.split(text):
            got = sampled.get(part)
            if got is None:
                got = self.cache.get(part)
                if got is None:
                    got = list(self.sp.encode(part))
                    self.cache[part] = got
                if part.isalpha():
                    if len(part) > 2 and part not in FORMAT_WORDS and r.random() < 0.12:
                        got = self.split(part, r)
                    sampled[part] = got
            ids += got
        return ids

    def split(self, word: str, r: random.Random) -> list[int]:
        """The pieces of a word that is cut at random places first."""
        cuts = sorted(r.sample(range(1, len(word)), r.randrange(1, min(3, len(word) - 1) + 1)))
        parts = [word[a:b] for a, b in zip([0, *cuts], [*cuts, len(word)], strict=True)]
        return [i for part in parts for i in self.sp.encode(part)]


# ---- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """ids [B, S]; `at` flat positions whose next id is learned; `slot` their places in a padded [B, A] table."""

    ids: Tensor
    at: Tensor
    slot: Tensor
    places: Tensor
    target: Tensor
    tokens: int


def make_batch(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    length = (max(len(ids) for ids, _ in rows) + 7) // 8 * 8
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = [[i for i in range(len(x) - 1) if learn[i + 1]] for x, learn in rows]
    width = (max(len(p) for p in positions) + 3) // 4 * 4
    places = torch.zeros(len(rows), width, dtype=torch.long)
    at, slot, target = [], [], []
    for b, (x, _) in enumerate(rows):
        ids[b, : len(x)] = torch.tensor(x)
        for k, p in enumerate(positions[b]):
            at.append(b * length + p)
            slot.append(b * width + k)
            places[b, k] = p
            target.append(x[p + 1])
    return Batch(ids, torch.tensor(at), torch.tensor(slot), places, torch.tensor(target), sum(len(x) for x, _ in rows))


def encode_conversation(
    c: corpus.Conversation, series: str, e: Encoder, r: random.Random
) -> tuple[list[int], list[bool]]:
    """Ids and, for each, whether the model is to write it."""
    ids: list[int] = []
    learn: list[bool] = []
    sampled: dict[str, list[int]] = {}
    for span in corpus.render(c, series):
        got = e.encode(span.text, r, sampled)
        ids += got
        learn += [span.learn] * len(got)
    return ids, learn


def pool_batches(pool: int, seed: int, series: str, e: Encoder, mix: corpus.Mix, tokens: int) -> list[Batch]:
    """All batches of one pool of conversations, of similar length each; the pool's number is the whole random state."""
    r = random.Random(f"{seed} {pool}")
    rows = []
    for _ in range(320):
        row = encode_conversation(corpus.conversation(r, mix), series, e, r)
        if len(row[0]) <= LONGEST:
            rows.append(row)
    rows.sort(key=lambda row: len(row[0]))
    groups: list[list[tuple[list[int], list[bool]]]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > tokens:
            groups.append([])
        groups[-1].append(row)
    if len(groups) > 1 and len(groups[-1]) * len(groups[-1][0][0]) < tokens // 2:
        groups.pop()
    r.shuffle(groups)
    return [make_batch(g) for g in groups]


# ---- model -----------------------------------------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, EPS)


def rope_tables(length: int, width: int, theta: float, share: float) -> tuple[Tensor, Tensor]:
    half = width // 2
    rotated = int(share * width / 2)
    frequency = torch.zeros(half, dtype=torch.float64)
    frequency[:rotated] = theta ** (-2.0 * torch.arange(rotated, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def hide(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape).masked_fill_(~visible, -1e9)


class Nano(torch.nn.Module):
    """Text decoder with the names and the mathematics of transformers' Gemma 4 (spec: architecture 2)."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.config = config
        h, heads, vocabulary = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
        layers, ple = config["num_hidden_layers"], config["hidden_size_per_layer_input"]
        self.types: list[str] = config["layer_types"]
        self.first_shared = layers - config["num_kv_shared_layers"]
        self.donor = {t: max(i for i in range(self.first_shared) if self.types[i] == t) for t in set(self.types)}
        self.scale = float(torch.tensor(math.sqrt(h)).bfloat16())
        self.ple_scale = float(torch.tensor(math.sqrt(ple)).bfloat16()) if ple else 0.0
        g = torch.Generator().manual_seed(seed)
        self.table = torch.nn.ParameterDict()

        def matrix(name: str, *shape: int, std: float | None = None) -> None:
            value = torch.randn(*shape, generator=g) * (shape[-1] ** -0.5 if std is None else std)
            self.table[name.replace(".", "/")] = torch.nn.Parameter(value)

        def vector(name: str, size: int, value: float) -> None:
            self.table[name.replace(".", "/")] = torch.nn.Parameter(torch.full((size,), value))

        matrix("embed_tokens.weight", vocabulary, h, std=0.06)
        vector("norm.weight", h, 1.0)
        if ple:
            matrix("embed_tokens_per_layer.weight", vocabulary, layers * ple, std=0.1)
            matrix("per_layer_model_projection.weight", layers * ple, h)
            vector("per_layer_projection_norm.weight", ple, 1.0)
        for i in range(layers):
            p = f"layers.{i}."
            d, kv = self.head_width(i), self.kv_heads(i)
            matrix(p + "self_attn.q_proj.weight", heads * d, h)
            if i < self.first_shared:
                matrix(p + "self_attn.k_proj.weight", kv * d, h)
                if not self.k_is_v(i):
                    matrix(p + "self_attn.v_proj.weight", kv * d, h)
                vector(p + "self_attn.k_norm.weight", d, 1.2 * d**-0.25)
            vector(p + "self_attn.q_norm.weight", d, 1.2 * d**-0.25)
            matrix(p + "self_attn.o_proj.weight", h, heads * d)
            wide = 2 if config["use_double_wide_mlp"] and i >= self.first_shared else 1
            inner = config["intermediate_size"] * wide
            matrix(p + "mlp.gate_proj.weight", inner, h)
            matrix(p + "mlp.up_proj.weight", inner, h)
            matrix(p + "mlp.down_proj.weight", h, inner)
            vector(p + "input_layernorm.weight", h, 1.0)
            vector(p + "post_attention_layernorm.weight", h, 0.5)
            vector(p + "pre_feedforward_layernorm.weight", h, 1.0)
            vector(p + "post_feedforward_layernorm.weight", h, 0.5)
            vector(p + "layer_scalar", 1, 1.0)
            if ple:
                matrix(p + "per_layer_input_gate.weight", ple, h)
                matrix(p + "per_layer_projection.weight", h, ple)
                vector(p + "post_per_layer_input_norm.weight", h, 0.3)
            if config["enable_moe_block"]:
                experts, width = config["num_experts"], config["moe_intermediate_size"]
                matrix(p + "router.proj.weight", experts, h, std=0.5)
                vector(p + "router.scale", h, 1.0)
                vector(p + "router.per_expert_scale", experts, 1.0)
                matrix(p + "experts.gate_up_proj", experts, 2 * width, h)
                matrix(p + "experts.down_proj", experts, h, width)
                for suffix in (
                    "pre_feedforward_layernorm_2",
                    "post_feedforward_layernorm_1",
                    "post_feedforward_layernorm_2",
                ):
                    vector(f"{p}{suffix}.weight", h, 1.0)
        theta = config["rope_parameters"]
        for kind, width in (("sliding_attention", config["head_dim"]), ("full_attention", config["global_head_dim"])):
            parameters = theta[kind]
            cos, sin = rope_tables(1024, width, parameters["rope_theta"], parameters.get("partial_rotary_factor", 1.0))
            self.register_buffer(kind + "_cos", cos, persistent=False)
            self.register_buffer(kind + "_sin", sin, persistent=False)

    def w(self, name: str) -> Tensor:
        return self.table[name.replace(".", "/")]

    def head_width(self, i: int) -> int:
        return int(self.config["head_dim" if self.types[i] == "sliding_attention" else "global_head_dim"])

    def k_is_v(self, i: int) -> bool:
        return bool(self.config["attention_k_eq_v"]) and self.types[i] == "full_attention"

    def kv_heads(self, i: int) -> int:
        return int(self.config["num_global_key_value_heads" if self.k_is_v(i) else "num_key_value_heads"])

    def attend(
        self, i: int, u: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, batch: Batch | None
    ) -> Tensor:
        """u [N, h] at all positions (batch None) or at answer positions; k, v [B, K, S, d];
        mask [S, S] or [B, 1, 1, A, S]."""
        d, heads, p = self.head_width(i), self.config["num_attention_heads"], f"layers.{i}.self_attn."
        rows = k.shape[0]
        q = functional.linear(u, self.w(p + "q_proj.weight")).view(-1, heads, d)
        q = rotate(norm(q, self.w(p + "q_norm.weight")), cos, sin)
        if batch is not None:
            q = q.new_zeros(batch.places.numel(), heads, d).index_copy(0, batch.slot, q)
        kv = k.shape[1]
        q = q.view(rows, -1, kv, heads // kv, d).permute(0, 2, 3, 1, 4)
        many = q.shape[3]
        scores = (q.reshape(rows, kv, -1, d) @ k.transpose(-1, -2)).view(rows, kv, heads // kv, many, -1)
        weights = functional.softmax((scores + mask.to(scores.dtype)), -1, dtype=scores.dtype)
        o = (weights.view(rows, kv, -1, weights.shape[-1]) @ v).view(rows, kv, heads // kv, many, d)
        o = o.permute(0, 3, 1, 2, 4).reshape(-1, heads * d)
        if batch is not None:
            o = o.index_select(0, batch.slot)
        return functional.linear(o, self.w(p + "o_proj.weight"))

    def mlp(self, i: int, z: Tensor) -> Tensor:
        p = f"layers.{i}.mlp."
        gate = functional.gelu(functional.linear(z, self.w(p + "gate_proj.weight")), approximate="tanh")
        up = functional.linear(z, self.w(p + "up_proj.weight"))
        return functional.linear(gate * up, self.w(p + "down_proj.weight"))

    def experts(self, i: int, x: Tensor, z: Tensor) -> Tensor:
        """All experts as one wide product, those not chosen with weight 0: more arithmetic than a gather by expert, but
        no small and no data-dependent shapes."""
        p, top = f"layers.{i}.", self.config["top_k_experts"]
        r = norm(x, None) * self.w(p + "router.scale") * x.shape[-1] ** -0.5
        share, chosen = functional.softmax(functional.linear(r, self.w(p + "router.proj.weight")), -1).topk(top, -1)
        share = share / share.sum(-1, keepdim=True)
        number = torch.arange(self.config["num_experts"])
        weight = ((chosen[..., None] == number) * share[..., None]).sum(-2) * self.w(p + "router.per_expert_scale")
        gate_up, down = self.w(p + "experts.gate_up_proj"), self.w(p + "experts.down_proj")
        experts, width = down.shape[0], down.shape[2]
        gate, up = functional.linear(z, gate_up.flatten(0, 1)).view(-1, experts, 2, width).unbind(2)
        hidden = functional.gelu(gate, approximate="tanh") * up * weight[..., None]
        return functional.linear(hidden.flatten(1), down.permute(1, 0, 2).flatten(1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [N, vocabulary] at the answer positions."""
        ids = batch.ids
        rows, length = ids.shape
        h, ple_width = self.config["hidden_size"], self.config["hidden_size_per_layer_input"]
        layers, at = self.config["num_hidden_layers"], batch.at
        x = functional.embedding(ids.view(-1), self.w("embed_tokens.weight")) * self.scale
        ple = None
        if ple_width:
            context = functional.linear(x, self.w("per_layer_model_projection.weight")) * h**-0.5
            context = norm(context.view(-1, layers, ple_width), self.w("per_layer_projection_norm.weight"))
            token = functional.embedding(ids.view(-1), self.w("embed_tokens_per_layer.weight")) * self.ple_scale
            ple = (context + token.view(-1, layers, ple_width)) * 2**-0.5
        span = torch.arange(length)
        distance = span[:, None] - span[None, :]
        window = self.config["sliding_window"]
        masks = {
            "full_attention": hide(distance >= 0),
            "sliding_attention": hide((distance >= 0) & (distance < window)),
        }
        reach = batch.places[:, :, None] - span
        few_masks = {
            "full_attention": hide((reach >= 0)[:, None, None]),
            "sliding_attention": hide(((reach >= 0) & (reach < window))[:, None, None]),
        }
        at_position = at % length
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        few = False
        for i, kind in enumerate(self.types):
            p, d = f"layers.{i}.", self.head_width(i)
            cos, sin = getattr(self, kind + "_cos")[:length], getattr(self, kind + "_sin")[:length]
            u = norm(x, self.w(p + "input_layernorm.weight"))
            if i < self.first_shared:
                raw = functional.linear(u, self.w(p + "self_attn.k_proj.weight")).view(rows, length, -1, d)
                raw_v = raw
                if not self.k_is_v(i):
                    raw_v = functional.linear(u, self.w(p + "self_attn.v_proj.weight")).view_as(raw)
                k = rotate(norm(raw, self.w(p + "self_attn.k_norm.weight")), cos[:, None], sin[:, None]).transpose(1, 2)
                shared[kind] = k, norm(raw_v, None).transpose(1, 2)
            if i == self.first_shared - 1:
                few = True
                x, u = x.index_select(0, at), u.index_select(0, at)
                ple = ple.index_select(0, at) if ple is not None else None
            if few:
                cos, sin = cos[at_position][:, None], sin[at_position][:, None]
                a = self.attend(i, u, *shared[kind], cos, sin, few_masks[kind], batch)
            else:
                cos, sin = cos.repeat(rows, 1)[:, None], sin.repeat(rows, 1)[:, None]
                a = self.attend(i, u, *shared[kind], cos, sin, masks[kind], None)
            x = x + norm(a, self.w(p + "post_attention_layernorm.weight"))
            f = self.mlp(i, norm(x, self.w(p + "pre_feedforward_layernorm.weight")))
            if self.config["enable_moe_block"]:
                b = self.experts(i, x, norm(x, self.w(p + "pre_feedforward_layernorm_2.weight")))
                f = norm(f, self.w(p + "post_feedforward_layernorm_1.weight")) + norm(
                    b, self.w(p + "post_feedforward_layernorm_2.weight")
                )
            x = x + norm(f, self.w(p + "post_feedforward_layernorm.weight"))
            if ple is not None:
                gate = functional.linear(x, self.w(p + "per_layer_input_gate.weight"))
                gate = functional.gelu(gate, approximate="tanh")
                back = functional.linear(gate * ple[:, i], self.w(p + "per_layer_projection.weight"))
                x = x + norm(back, self.w(p + "post_per_layer_input_norm.weight"))
            x = x * self.w(p + "layer_scalar")
        raw = functional.linear(norm(x, self.w("norm.weight")), self.w("embed_tokens.weight"))
        cap = self.config["final_logit_softcapping"]
        return cap * torch.tanh(raw / cap)


# ---- optimizer -------------------------------------------------------------------------------------------------------


def orthogonalize(g: Tensor) -> Tensor:
    """Newton-Schulz iteration on a stack of matrices [n, rows, columns]."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Optimizer:
    """Muon for the matrices inside layers (stacked by shape), AdamW for tables, norms and scalars."""

    def __init__(self, model: Nano) -> None:
        named = {n.replace("/", "."): p for n, p in model.table.items()}
        inner = {n: p for n, p in named.items() if p.dim() >= 2 and "embed" not in n and "router" not in n}
        self.stacks: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for p in inner.values():
            self.stacks.setdefault(tuple(p.shape[-2:]), []).append(p)
        self.momentum = {s: [torch.zeros_like(p) for p in ps] for s, ps in self.stacks.items()}
        rest = [p for n, p in named.items() if n not in inner]
        self.adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float, muon_rate: float, adam_rate: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = adam_rate * rate
        self.adam.step()
        with torch.no_grad():
            for shape, parameters in self.stacks.items():
                updates = []
                for p, m in zip(parameters, self.momentum[shape], strict=True):
                    assert p.grad is not None
                    m.lerp_(p.grad, 0.05)
                    updates.append(p.grad.lerp(m, 0.95).reshape(-1, *shape))
                done = orthogonalize(torch.cat(updates))
                scale = muon_rate * rate * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(parameters, done.split([x.shape[0] for x in updates]), strict=True):
                    p.mul_(1 - muon_rate * rate * 0.1).add_(u.view_as(p), alpha=-scale)

    def state(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "momentum": list(self.momentum.values())}

    def load(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        for shape, values in zip(self.momentum, state["momentum"], strict=True):
            self.momentum[shape] = values


# ---- running ---------------------------------------------------------------------------------------------------------


def template(config: dict[str, Any]) -> str:
    """Which form of the chat template the model is trained with (spec: prompting 3.3)."""
    return "e" if config["hidden_size_per_layer_input"] else "large"


def teacher_forced(model: Nano, e: Encoder, count: int = EVAL_SHARE) -> dict[str, float]:
    """Share of held-out items whose every expected id is the greedy choice: equal to greedy generation of the exact
    expected text, in one forward pass."""
    out = {}
    for task in corpus.EVAL_TASKS:
        rows = []
        for item in corpus.eval_items(task, count):
            prompt, answer = corpus.prompt_and_answer(
                item.conversation, template(model.config), with_call=task == "result"
            )
            x, y = e.encode(prompt), e.encode(answer)
            rows.append((x + y, [False] * len(x) + [True] * len(y)))
        rows.sort(key=lambda row: len(row[0]))
        right = 0
        with torch.no_grad():
            for start in range(0, len(rows), 25):
                part = rows[start : start + 25]
                b = make_batch(part)
                wrong = model(b).argmax(-1) != b.target
                bad = torch.zeros(len(part)).index_add(0, b.at // b.ids.shape[1], wrong.float())
                right += int((bad == 0).sum())
        out[task] = round(right / count, 3)
    return out


def stream(
    e: Encoder, series: str, schedule: Schedule, seed: int, pool: int, offset: int, tokens: int, done: int
) -> Iterator[tuple[int, int, Batch]]:
    """Batches from a place in the sequence of pools; the mix of a pool is fixed by the step it starts at."""
    start = done - offset
    while True:
        batches = pool_batches(pool, seed, series, e, schedule.mix(start), tokens)
        for k in range(offset, len(batches)):
            yield pool, k, batches[k]
        start += len(batches)
        pool, offset = pool + 1, 0


def train(arguments: argparse.Namespace) -> None:
    run = Path(arguments.run)
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    e = Encoder(make_tokenizer(run))
    config = series_config(arguments.series, e.sp.vocab_size())
    schedule = SCHEDULES[arguments.series]
    model = Nano(config)
    optimizer = Optimizer(model)
    saved = run / "checkpoint.pt"
    state: dict[str, Any] = dict.fromkeys(("step", "tokens", "seconds", "pool", "offset"), 0)
    state |= {"evals": [], "config": config}
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        if state["config"] != config:
            raise SystemExit(f"{saved}: holds another configuration; use another run folder")
        model.load_state_dict(state.pop("model"))
        optimizer.load(state.pop("optimizer"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, vocabulary {e.sp.vocab_size()}, at step {state['step']}", flush=True)
    if state["step"] == 0:
        check_gradients(config, e)
    state["steps"] = schedule.steps
    begun, before, last_save = time.time(), state["seconds"], time.time()
    total, count = 0.0, 0
    asked_to_stop: list[bool] = []

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            logits = model(batch)
        return functional.cross_entropy(logits.float(), batch.target)

    compute_loss = torch.compile(loss_of, dynamic=True) if arguments.compile else loss_of

    def save() -> None:
        part = saved.with_suffix(".part")
        torch.save(state | {"model": model.state_dict(), "optimizer": optimizer.state()}, part)
        os.replace(part, saved)

    def judge() -> None:
        model.eval()
        state["evals"].append((state["step"], teacher_forced(model, e)))
        model.train()
        print(f"step {state['step']} held-out {state['evals'][-1][1]}", flush=True)

    place = state["pool"], state["offset"]
    batches = stream(e, template(config), schedule, 1, *place, arguments.tokens, state["step"])
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    while state["step"] < schedule.steps and not asked_to_stop:
        pool, k, batch = next(batches)
        loss = compute_loss(batch)
        for p in model.parameters():
            p.grad = None
        loss.backward()
        optimizer.step(schedule.rate(state["step"]), arguments.muon_rate, arguments.adam_rate)
        state["step"] += 1
        state["tokens"] += batch.tokens
        state["pool"], state["offset"] = pool, k + 1
        state["seconds"] = before + time.time() - begun
        total, count = total + float(loss.detach()), count + 1
        if state["step"] % 50 == 0:
            print(f"{progress(state)}, loss {total / count:.4f}", flush=True)
            total, count = 0.0, 0
        if state["step"] % arguments.eval_every == 0:
            judge()
        if time.time() - last_save > 240:
            save()
            last_save = time.time()
    if not asked_to_stop:
        judge()
    save()


def progress(state: dict[str, Any]) -> str:
    million, minutes = state["tokens"] / 1e6, state["seconds"] / 60
    return f"step {state['step']} of {state['steps']}, {million:.2f} M tokens, {minutes:.1f} min"


def status(run: Path) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=False)
    print(progress(state))
    for step, accuracies in state["evals"]:
        print(step, ", ".join(f"{task} {value:.2f}" for task, value in accuracies.items()))


def checkpoint_config(config: dict[str, Any], e: Encoder, name: str) -> dict[str, Any]:
    """`config.json` in the released layout, special ids by their strings."""
    ids = {s: e.sp.piece_to_id(s) for s in corpus.SPECIAL_TOKENS}
    stops = [ids["<eos>"], ids["<turn|>"]]
    text = config | {"pad_token_id": ids["<pad>"], "bos_token_id": ids["<bos>"], "eos_token_id": stops}
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "boi_token_id": ids["<|image>"],
        "eoi_token_id": ids["<image|>"],
        "image_token_id": ids["<|image|>"],
        "boa_token_id": ids["<|audio>"],
        "eoa_token_id": ids["<audio|>"],
        "audio_token_id": ids["<|audio|>"],
        "video_token_id": ids["<|video|>"],
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": stops,
        "text_config": text,
        "vision_config": None,
        "audio_config": None,
        "gemmantle": {
            "name": name,
            "description": f"{corpus.DESCRIPTION} trained on synthetic conversations; not a Gemma 4 release",
            "series": template(config),
        },
    }


def framework_model(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """transformers' own model in f32 with these weights; embedding scales rounded to bf16, as in the release."""
    import transformers

    fields = {k: v for k, v in config.items() if k not in ("model_type", "dtype")}
    text = transformers.Gemma4TextConfig(**fields)
    text._attn_implementation = "eager"
    text._experts_implementation = "eager"
    model = transformers.Gemma4ForCausalLM(text).float()
    missing, extra = model.load_state_dict({f"model.{k}": v.float() for k, v in weights.items()}, strict=False)
    if extra or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"transformers: missing {missing}, not known {extra}; the names of the two models differ")
    model.tie_weights()
    for module in model.modules():
        if hasattr(module, "embed_scale"):
            module.embed_scale = module.embed_scale.to(torch.bfloat16).float()
    return model.eval()


def check_gradients(config: dict[str, Any], e: Encoder) -> None:
    """Refuses to train unless loss and every gradient of an untrained model are those of transformers' classes."""
    model = Nano(config)
    framework = framework_model(config, {n.replace("/", "."): p.detach() for n, p in model.table.items()})
    row = encode_conversation(corpus.eval_items("result", 1)[0].conversation, template(config), e, random.Random(0))
    batch = make_batch([row])
    theirs = framework(input_ids=batch.ids, use_cache=False).logits[0].index_select(0, batch.at)
    losses = [functional.cross_entropy(logits, batch.target) for logits in (model(batch), theirs)]
    for loss in losses:
        loss.backward()
    worst = abs(losses[0].item() - losses[1].item())
    named = dict(model.table.items())
    for name, parameter in framework.named_parameters():  # the layer scalars are none there
        p, expected = named[name.removeprefix("model.").replace(".", "/")], parameter.grad
        worst = max(worst, float((p.grad - expected).abs().max() / expected.abs().max().clamp(min=1e-6)))
    print(f"loss and gradients differ from transformers by at most {worst:.1e} of the largest", flush=True)
    if worst > 1e-3:
        raise SystemExit("the training model and transformers disagree; nothing is trained")


def lead(logits: Tensor) -> float:
    """By how much the best logit leads, at the place where it leads least."""
    best = logits.topk(2, -1).values
    return float((best[..., 0] - best[..., 1]).min())


def golden_arrays(framework: Any, e: Encoder, series: str, count: int = 64) -> dict[str, Any]:
    """A prompt, transformers' logits and its greedy continuation; the first prompt where nothing hangs on rounding."""
    for item in corpus.eval_items("result", 40):
        prompt = e.encode(corpus.prompt_and_answer(item.conversation, series, with_call=True)[0])
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                ids.append(int(framework(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            logits = framework(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        if lead(logits) > 5e-3:
            arrays = {"ids": torch.tensor(prompt), "greedy": torch.tensor(ids[len(prompt) :])}
            return {k: v.int().numpy() for k, v in arrays.items()} | {"logits": logits[: len(prompt)].numpy()}
    raise SystemExit("golden: of 40 prompts each has a near tie somewhere; train on, or take other prompts")


def export(run: Path, folder: Path, golden: Path | None) -> None:
    """Writes the checkpoint folder; refuses when transformers computes other logits from it."""
    import numpy as np
    from safetensors.torch import save_file

    state = torch.load(run / "checkpoint.pt", weights_only=False)
    config, e = state["config"], Encoder(run / "tokenizer.model")
    model = Nano(config)
    model.load_state_dict(state["model"])
    model.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    weights = {n.replace("/", "."): p.detach().bfloat16().contiguous() for n, p in model.table.items()}
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"model.language_model.{n}": w for n, w in weights.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.model").write_bytes((run / "tokenizer.model").read_bytes())
    whole = checkpoint_config(config, e, folder.name)
    generation = {
        "bos_token_id": whole["bos_token_id"],
        "pad_token_id": whole["pad_token_id"],
        "eos_token_id": [*whole["eos_token_id"], e.sp.piece_to_id("<|tool_response>")],
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 64,
        "top_p": 0.95,
    }
    for name, content in (("config.json", whole), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")

    framework = framework_model(config, weights)
    worst = 0.0
    for task in corpus.EVAL_TASKS:
        item = corpus.eval_items(task, 1)[0]
        prompt, answer = corpus.prompt_and_answer(item.conversation, template(config), with_call=task == "result")
        x = e.encode(prompt) + e.encode(answer)
        few = make_batch([(x, [False] + [True] * (len(x) - 1))])
        with torch.no_grad():
            theirs = framework(input_ids=torch.tensor([x]), use_cache=False).logits[0]
            worst = max(worst, float((model(few) - theirs[:-1]).abs().max()))
    print(f"{folder}: step {state['step']}, {sum(f.stat().st_size for f in folder.iterdir())} bytes, "
          f"largest difference from transformers {worst:.1e}")  # fmt: skip
    if worst > 2e-3:
        raise SystemExit("the training model and transformers disagree; do not use this export")
    if golden is not None:
        golden.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(golden, **golden_arrays(framework, e, template(config)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    t = commands.add_parser("train")
    t.add_argument("run")
    t.add_argument("--series", choices=("e", "moe"), required=True)
    t.add_argument("--tokens", type=int, default=3072, help="ids of a batch, padding included")
    t.add_argument("--threads", type=int, default=1)
    t.add_argument("--muon-rate", type=float, default=0.02)
    t.add_argument("--adam-rate", type=float, default=3e-3)
    t.add_argument("--eval-every", type=int, default=1000)
    t.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    t.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 products, f32 elsewhere")
    a = commands.add_parser("status")
    a.add_argument("run", type=Path)
    x = commands.add_parser("export")
    x.add_argument("run", type=Path)
    x.add_argument("folder", type=Path)
    x.add_argument("--golden", type=Path, help="also write ids, f32 logits and a greedy continuation, as .npz")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments)
    elif arguments.command == "status":
        status(arguments.run)
    else:
        export(arguments.run, arguments.folder, arguments.golden)


if __name__ == "__main__":
    main()
