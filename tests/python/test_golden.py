"""Every golden checkpoint and every embedded model on every device in exact mode, through the public surface.

The logits of an independent framework at every position, its greedy continuation, and the promise that they do not
depend on how a prompt is cut, on neighbours, or on what ran before (spec architecture 1.6, 2.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemmantle
from gemmantle import hub
from gemmantle.api.protocol import Sampling

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDERS = sorted(file.parent.relative_to(GOLDEN).as_posix() for file in GOLDEN.glob("*/*/golden.npz"))
EMBEDDED = [f"nano/{name}" for name in hub.embedded_names()]
DEVICES = ("reference", "cpu")

FRAMEWORK = 1e-4  # float32 against float32 by other code, of logits up to 4
OURSELVES = 1e-5  # the same code on the same rows in another order, likewise


@dataclass(frozen=True)
class Case:
    engine: gemmantle.Engine
    ids: list[int]
    expected: NDArray[np.float32]  # (n, vocabulary), the framework's
    greedy: list[int]
    whole: NDArray[np.float32]  # (n, vocabulary), ours in one piece

    @property
    def scale(self) -> float:
        """What tolerances are multiplied by: logits of trained weights are larger, and so is their last bit."""
        return max(1.0, float(np.abs(self.expected).max()) / 4)


@pytest.fixture(scope="module", params=[(name, d) for name in FOLDERS + EMBEDDED for d in DEVICES], ids="-".join)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    name, device = request.param
    embedded = name in EMBEDDED
    with np.load(GOLDEN / (f"{name}.npz" if embedded else f"{name}/golden.npz")) as golden:
        ids, expected, greedy = golden["ids"].tolist(), golden["logits"], golden["greedy"].tolist()
    model = name.removeprefix("nano/") if embedded else GOLDEN / name
    with gemmantle.load(model, device=device, mode="exact") as engine:
        yield Case(engine, ids, expected, greedy, engine.logits(ids))


def greedy_request(prompt: list[int], count: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "temperature": 0,
        "max_completion_tokens": count,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 5,
    }


def logprobs(result: Any) -> list[float]:
    """Of every sampled token and its alternatives, in one flat list."""
    out: list[float] = []
    for entry in result.logprobs:
        out += [entry.logprob, *(value for _, value in entry.top)]
    return out


def log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y = y - y.max(-1, keepdims=True)
    z: NDArray[np.float64] = y - np.log(np.exp(y).sum(-1, keepdims=True))
    return z


def test_device_is_the_one_asked_for(case: Case, request: pytest.FixtureRequest) -> None:
    device = request.node.callspec.params["case"][1]

    assert case.engine.info()["device"] == device
    assert case.engine.info()["mode"] == "exact"


def test_logits_match_the_framework(case: Case) -> None:
    assert case.whole.dtype == np.float32
    assert case.whole.shape == case.expected.shape
    assert np.abs(case.whole - case.expected).max() <= FRAMEWORK * case.scale
    assert case.whole.argmax(-1).tolist() == case.expected.argmax(-1).tolist()


def test_greedy_continuation_is_the_frameworks(case: Case) -> None:
    [result] = case.engine.generate([greedy_request(case.ids, len(case.greedy))])

    assert result.ids == case.greedy
    assert result.finish_reason == "length"
    assert result.usage.prompt_tokens == len(case.ids)
    assert result.usage.completion_tokens == len(case.greedy)


def test_logprobs_are_those_of_the_logits(case: Case) -> None:
    [result] = case.engine.generate([greedy_request(case.ids, 1)])
    expected = log_softmax(case.expected[-1])

    [first] = result.logprobs or []
    assert abs(first.logprob - expected[case.greedy[0]]) <= FRAMEWORK * case.scale
    assert first.top[0][0] == case.greedy[0]
    top = np.array([value for _, value in first.top])
    assert np.abs(top - np.sort(expected)[::-1][:5]).max() <= FRAMEWORK * case.scale


def test_prompt_logprobs_are_those_of_the_logits(case: Case) -> None:
    generation = case.engine.submit(case.ids, Sampling(max_tokens=0, prompt_logprobs=0))
    drain(generation)
    first, *rest = generation.prompt_logprobs
    expected = log_softmax(case.expected)[np.arange(len(case.ids) - 1), case.ids[1:]]

    assert first is None
    assert np.abs(np.array([token.logprob for token in rest]) - expected).max() <= FRAMEWORK * case.scale


def test_token_by_token(case: Case) -> None:
    ours = case.engine.logits(case.ids, chunks=[1] * len(case.ids))

    assert np.abs(ours - case.whole).max() <= OURSELVES * case.scale


def test_cut_at_every_border(case: Case) -> None:
    n = len(case.ids)
    worst = {
        cut: float(np.abs(case.engine.logits(case.ids, chunks=[cut, n - cut]) - case.whole).max())
        for cut in range(1, n)
    }

    assert {cut: error for cut, error in worst.items() if error > OURSELVES * case.scale} == {}


@pytest.mark.parametrize("size", [2, 7, 15, 16, 17, 32])
def test_equal_chunks(case: Case, size: int) -> None:
    n = len(case.ids)
    chunks = [min(size, n - start) for start in range(0, n, size)]

    assert np.abs(case.engine.logits(case.ids, chunks=chunks) - case.whole).max() <= OURSELVES * case.scale


def test_last_row_alone(case: Case) -> None:
    """Layers that reuse K/V run only for the last row of a prompt; its logits may not notice."""
    for n in (1, 2, 15, 16, 17, 18, 40, len(case.ids)):
        ours = case.engine.logits(case.ids[:n], last_only=True)

        assert ours.shape == (1, case.whole.shape[1])
        assert np.abs(ours[0] - case.whole[n - 1]).max() <= OURSELVES * case.scale


def test_last_row_alone_after_chunks(case: Case) -> None:
    n = len(case.ids)
    for chunks in ([n - 1, 1], [1, n - 1], [33, n - 33], [16, 16, 16, n - 48]):
        ours = case.engine.logits(case.ids, chunks=chunks, last_only=True)

        assert np.abs(ours[0] - case.whole[-1]).max() <= OURSELVES * case.scale


def test_interleaved_requests_do_not_disturb_each_other(case: Case) -> None:
    count = 24
    requests = [
        greedy_request(case.ids, count),
        greedy_request(case.ids[:31], count),
        greedy_request(case.ids[::-1], 5),
    ]
    alone = [next(iter(case.engine.generate([request]))) for request in requests]

    together = list(case.engine.generate(requests))

    for one, other in zip(alone, together, strict=True):
        assert other.ids == one.ids
        assert np.abs(np.array(logprobs(other)) - np.array(logprobs(one))).max() <= OURSELVES * case.scale
    assert together[0].ids == case.greedy[:count]


def test_logits_while_a_generation_runs(case: Case) -> None:
    generation = case.engine.submit(case.ids, Sampling(max_tokens=len(case.greedy), temperature=0, ignore_eos=True))

    ours = case.engine.logits(case.ids, chunks=[20, len(case.ids) - 20])

    assert np.abs(ours - case.whole).max() <= OURSELVES * case.scale
    assert [token.id for token in drain(generation)] == case.greedy


def test_after_cancel_and_resubmit(case: Case) -> None:
    sampling = Sampling(max_tokens=len(case.greedy), temperature=0, ignore_eos=True, logprobs=5)
    before = drain(case.engine.submit(case.ids, sampling))
    cancelled = case.engine.submit(case.ids, sampling)
    cancelled.next()
    cancelled.cancel()

    after = drain(case.engine.submit(case.ids, sampling))

    assert [token.id for token in before] == [token.id for token in after] == case.greedy
    assert max(abs(a.logprob - b.logprob) for a, b in zip(before, after, strict=True)) <= OURSELVES * case.scale
    assert np.abs(case.engine.logits(case.ids) - case.whole).max() <= OURSELVES * case.scale


def test_decoding_equals_reading(case: Case) -> None:
    """The logits of generated positions, one row at a time, are those of a prompt that holds the same ids."""
    [result] = case.engine.generate([greedy_request(case.ids, len(case.greedy))])
    rows = case.engine.logits(case.ids + case.greedy)[len(case.ids) - 1 : -1]
    expected = log_softmax(rows)[np.arange(len(case.greedy)), case.greedy]

    ours = np.array([entry.logprob for entry in result.logprobs or []])
    assert np.abs(ours - expected).max() <= OURSELVES * case.scale


def drain(generation: Any) -> list[Any]:
    """All tokens of a generation."""
    tokens: list[Any] = []
    while True:
        delta = generation.next(timeout=60)
        assert delta is not None, "no delta for 60 seconds"
        tokens += delta.tokens
        if delta.finish_reason is not None:
            return tokens
