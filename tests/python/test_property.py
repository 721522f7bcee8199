"""Fresh random configurations against the oracle: sizes, layouts, dtypes and chunks that nobody chose.

GEMMANTLE_TEST_SEED shifts the seeds; every failure names its own in the test's id and in the printed line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import random_checkpoint as rc
from numpy.typing import NDArray

import gemmantle

FIRST = int(os.environ.get("GEMMANTLE_TEST_SEED", "1"))
SEEDS = range(FIRST, FIRST + 12)


@dataclass(frozen=True)
class Sample:
    folder: Path
    ids: list[int]
    expected: NDArray[np.float64]  # (n, vocabulary)
    chunks: list[int]


def is_sound(config: oracle.Config, weights: oracle.Weights, ids: list[int], logits: NDArray[Any]) -> bool:
    """Whether float32 can reproduce these logits: experts not tied, and a nudge of one rounding stays one."""
    margins: list[float] = []
    nudged = dict(weights)
    table = weights["embed_tokens.weight"]
    nudge = np.random.default_rng(0).choice([-1.0, 1.0], table.shape) * 2.0**-22
    nudged["embed_tokens.weight"] = (table * (1 + nudge)).astype(np.float32)
    moved = float(np.abs(oracle.forward(config, nudged, ids, margins=margins) - logits).max())
    return moved <= 1e-5 and min(margins, default=1.0) > 1e-4


@pytest.fixture(scope="module", params=SEEDS, ids="seed{}".format)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    seed: int = request.param
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        shape = rc.random_shape(rng, rc.KINDS[seed % 4])
        layouts: list[rc.Layout] = ["released", "resaved", *(["nested"] if shape.gemma == 3 else [])]  # type: ignore[list-item]
        layout = layouts[int(rng.integers(len(layouts)))]
        dtypes: list[rc.Dtype] = ["BF16", "F32", "F16", "MIXED"]
        dtype = dtypes[int(rng.integers(4))]
        shards, unused, towers = int(rng.integers(1, 4)), bool(rng.integers(2)), bool(rng.integers(2))
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        weights = rc.random_weights(shape, rng, unused=unused)
        rc.write(folder, shape, weights, layout=layout, dtype=dtype, shards=shards, towers=towers)
        n = int(rng.integers(20, 60))
        ids = [2, *(int(t) for t in rng.integers(0, shape.vocab, n - 1))]
        cuts = sorted(int(c) for c in rng.choice(np.arange(1, n), int(rng.integers(1, 6)), replace=False))
        chunks = np.diff([0, *cuts, n]).tolist()
        config, read = oracle.load(folder)
        logits = oracle.forward(config, read, ids)
        if is_sound(config, read, ids, logits):
            print(f"seed {seed}, attempt {attempt}: {layout} {dtype}, {shards} files, chunks {chunks}, {shape}")
            return Sample(folder, ids, logits, chunks)
    raise AssertionError(f"seed {seed}: 20 configurations and none well-conditioned; look at random_checkpoint.py")


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_random_configuration_matches_the_oracle(sample: Sample, device: str) -> None:
    with gemmantle.load(sample.folder, device=device, mode="exact") as engine:
        whole = engine.logits(sample.ids)
        chunked = engine.logits(sample.ids, chunks=sample.chunks)
        last = engine.logits(sample.ids, chunks=sample.chunks, last_only=True)

    assert np.abs(whole - sample.expected).max() <= 1e-4
    assert np.abs(chunked - whole).max() <= 1e-5
    assert np.abs(last[0] - whole[-1]).max() <= 1e-5
