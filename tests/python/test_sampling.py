"""Sampling through a whole engine: seeds, cuts, penalties, masks, and the distribution that is drawn from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmantle import _core

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "odd" / "12b"


@pytest.fixture(scope="module")
def engine():
    engine = _core.Engine(_core.Model.load(str(FOLDER), device="cpu"), max_sequences=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    with np.load(FOLDER / "golden.npz") as arrays:
        return arrays["ids"][:12]


def run(engine: _core.Engine, ids: np.ndarray, **fields: Any) -> list[int]:
    generation = engine.submit(ids, _core.SamplingParams(**{"ignore_eos": True, **fields}))
    out: list[int] = []
    while (delta := generation.next(60)) is not None:
        out += [token.id for token in delta.tokens]
        if delta.finish_reason:
            break
    return out


def first_tokens(engine: _core.Engine, ids: np.ndarray, n: int, **fields: Any) -> Counter[int]:
    generations = [
        engine.submit(ids, _core.SamplingParams(max_tokens=1, seed=seed, ignore_eos=True, **fields))
        for seed in range(n)
    ]
    counts: Counter[int] = Counter()
    for generation in generations:
        delta = generation.next(60)
        assert delta is not None
        counts[delta.tokens[0].id] += 1
    return counts


def probabilities(engine: _core.Engine, ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    logits = engine.logits(ids, last_only=True)[0].astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(engine: _core.Engine, ids: np.ndarray):
    alone = run(engine, ids, seed=11, max_tokens=20)
    strangers = [engine.submit(ids, _core.SamplingParams(seed=i, max_tokens=30)) for i in range(8)]
    assert run(engine, ids, seed=11, max_tokens=20) == alone
    assert run(engine, ids, seed=12, max_tokens=20) != alone
    assert run(engine, ids, seed=11, choice=1, max_tokens=20) != alone
    del strangers


def test_draws_follow_the_logits(engine: _core.Engine, ids: np.ndarray):
    n, temperature = 1000, 0.7
    p = probabilities(engine, ids, temperature)
    counts = first_tokens(engine, ids, n, temperature=temperature)
    large = p * n >= 5
    expected = np.append(p[large] * n, p[~large].sum() * n)
    observed = np.append([counts[i] for i in np.flatnonzero(large)], sum(counts[i] for i in np.flatnonzero(~large)))
    kept = expected > 0
    statistic = float(((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    free = int(kept.sum()) - 1
    assert statistic < free + 5 * (2 * free) ** 0.5 + 5, f"seeds 0..{n - 1}"


def test_cuts_leave_the_most_probable(engine: _core.Engine, ids: np.ndarray):
    p = probabilities(engine, ids)
    order = np.argsort(-p, kind="stable")
    assert set(first_tokens(engine, ids, 60, top_k=3)) <= set(order[:3].tolist())
    reach = int(np.searchsorted(np.cumsum(p[order]), 0.3)) + 1
    assert set(first_tokens(engine, ids, 60, top_p=0.3)) <= set(order[:reach].tolist())
    assert set(first_tokens(engine, ids, 60, min_p=0.5)) <= set(np.flatnonzero(p >= 0.5 * p.max()).tolist())
    for only in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 0.0}):
        assert set(first_tokens(engine, ids, 5, **only)) == {int(order[0])}


def test_bias_and_suppression_come_before_the_greedy_choice(engine: _core.Engine, ids: np.ndarray):
    best = run(engine, ids, temperature=0.0, max_tokens=1)[0]
    other = (best + 1) % 200
    assert run(engine, ids, temperature=0.0, max_tokens=1, logit_bias={other: 100.0}) == [other]
    suppressed = run(engine, ids, temperature=0.0, max_tokens=10, suppress=[best])
    assert best not in suppressed


def test_penalties_keep_a_greedy_output_from_repeating(engine: _core.Engine, ids: np.ndarray):
    for fields in ({"presence_penalty": 100.0}, {"frequency_penalty": 100.0}, {"repetition_penalty": 100.0}):
        out = run(engine, ids, temperature=0.0, max_tokens=25, **fields)
        assert len(set(out)) == len(out), fields
