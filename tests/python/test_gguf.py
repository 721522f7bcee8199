"""GGUF files: every stored format in every variant against the oracle, on weights that `gguf` dequantised."""

from __future__ import annotations

from pathlib import Path

import gguf_checkpoint
import numpy as np
import oracle
import pytest
from gguf import GGMLQuantizationType as Kind
from random_checkpoint import Shape

import gemmantle

DENSE = [Kind.F32, Kind.F16, Kind.BF16]
OLD = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.IQ4_NL]
K = [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]

# Widths are multiples of 256 where K-quants shall fit, and 704-like ones where they cannot.
SHAPES = {
    "e": Shape(
        is_full=(False, True, False, True),
        hidden=256,
        heads=4,
        kv_heads=1,
        head_dim=64,
        mlp=256,
        vocab=300,
        window=9,
        global_head_dim=128,
        ple=32,
        kv_shared=2,
        double_wide=True,
    ),
    "moe": Shape(
        is_full=(False, True),
        hidden=256,
        heads=4,
        kv_heads=2,
        head_dim=64,
        mlp=96,
        vocab=300,
        window=9,
        global_head_dim=128,
        global_kv_heads=1,
        k_eq_v=True,
        experts=6,
        experts_per_token=2,
        expert_mlp=32,
    ),
    "gemma3": Shape(
        is_full=(False, False, False, False, False, True),
        hidden=256,
        heads=4,
        kv_heads=1,
        head_dim=64,
        mlp=256,
        vocab=300,
        window=9,
        gemma=3,
        softcap=None,
        query_scalar=64,
        rope_factor=8.0,
    ),
}


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("kinds", [DENSE, OLD, K], ids=["dense", "blocks of 32", "K"])
@pytest.mark.parametrize("family", SHAPES)
def test_every_format_is_read_exactly(family: str, kinds: list[Kind], device: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    path = tmp_path / "model.gguf"
    gguf_checkpoint.write(path, SHAPES[family], rng, kinds, split_experts=kinds is OLD)
    ids = np.concatenate([[2], rng.integers(5, 300, 39)]).astype(np.int32)
    if family == "moe" and kinds is OLD:
        path_whole = tmp_path / "whole.gguf"  # the oracle reads the fused form; the same bytes otherwise
        gguf_checkpoint.write(path_whole, SHAPES[family], np.random.default_rng(11), kinds)
        config, weights = oracle.load(path_whole)
    else:
        config, weights = oracle.load(path)
    want = oracle.forward(config, weights, ids)
    with gemmantle.load(str(path), device=device, mode="exact") as engine:
        got = engine.logits(ids)
    assert np.abs(got - want).max() <= 1e-4
    assert (got.argmax(1) == want.argmax(1)).all()


def test_the_mode_is_chosen_by_the_weights(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed.gguf", tmp_path / "plain.gguf"
    family = next(iter(SHAPES))
    gguf_checkpoint.write(packed, SHAPES[family], np.random.default_rng(11), OLD)
    gguf_checkpoint.write(plain, SHAPES[family], np.random.default_rng(11), [Kind.BF16])

    def mode_of(path: Path, **options: str) -> object:
        with gemmantle.load(str(path), **options) as engine:
            assert engine.info()["mode"] == engine.profile.mode
            return engine.profile.mode

    assert mode_of(packed) == "fast"
    assert mode_of(packed, mode="exact") == "exact"
    assert mode_of(packed, device="reference") == "exact"
    assert mode_of(plain) == "exact"
    assert mode_of(plain, mode="fast") == "fast"
    with gemmantle.load(str(packed)) as chosen, gemmantle.load(str(packed), mode="fast") as asked:
        assert chosen.profile.fingerprint == asked.profile.fingerprint
