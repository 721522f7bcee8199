"""The oracle against the golden logits of an independent framework: it may judge the backends only if this holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest

import gemmantle
from gemmantle import hub

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDERS = sorted(file.parent.relative_to(GOLDEN).as_posix() for file in GOLDEN.glob("*/*/golden.npz"))


def test_both_sets_hold_every_family() -> None:
    families = ["12b", "26b", "31b", "e2b", "e4b", "gemma3"]
    assert [f"{kind}/{family}" for kind in ("odd", "true") for family in families] == FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_oracle_matches_the_framework(name: str) -> None:
    with np.load(GOLDEN / name / "golden.npz") as golden:
        ids, logits, greedy = golden["ids"], golden["logits"], golden["greedy"]
    config, weights = oracle.load(GOLDEN / name)

    ours = oracle.forward(config, weights, np.concatenate([ids, greedy[:-1]]))

    # The framework ran in float32; 1e-4 is about 100 roundings of a logit of order one.
    assert np.abs(ours[: len(ids)] - logits).max() <= 1e-4
    assert ours[len(ids) - 1 :].argmax(-1).tolist() == greedy.tolist()
    assert ids[0] == 2
    assert len(ids) > config.window


@pytest.mark.parametrize("name", hub.embedded_names())
def test_oracle_matches_the_framework_on_trained_weights(name: str) -> None:
    with np.load(GOLDEN / "nano" / f"{name}.npz") as golden:
        ids, logits, greedy = golden["ids"], golden["logits"], golden["greedy"]
    config, weights = oracle.load(Path(gemmantle.__file__).parent / "models" / name)

    ours = oracle.forward(config, weights, np.concatenate([ids, greedy[:-1]]))

    # As above, of logits that reach 30.
    assert np.abs(ours[: len(ids)] - logits).max() <= 1e-3
    assert ours[len(ids) - 1 :].argmax(-1).tolist() == greedy.tolist()
    assert len(ids) > config.window


@pytest.mark.parametrize("name", FOLDERS)
def test_bf16_logits_are_the_same_model(name: str) -> None:
    """The framework's own bf16 run is kept to measure against; it must at least rank like the f32 run."""
    with np.load(GOLDEN / name / "golden.npz") as golden:
        logits, rounded = golden["logits"], golden["logits_bf16"]

    agreement = float((logits.argmax(-1) == rounded.argmax(-1)).mean())

    assert rounded.shape == logits.shape
    assert agreement >= 0.75
    assert np.median(np.abs(rounded - logits)) <= 0.05
