"""What every device owes the engine: `GEMMANTLE_SUITE_DEVICE=cuda pytest tests/python/engine_suite.py`.

Nothing a request gets may hang on its neighbours, its chunks, kept blocks, preemption or cancelling: on a model that
was loaded with `deterministic=True` all of it is the same bits. A file of its own, because a process asks for the CUDA
plugin once; `test_engine_suite.py` runs it for the devices there are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmantle import _core, errors

DEVICE = os.environ.get("GEMMANTLE_SUITE_DEVICE", "cpu")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "true"
WAIT = 300  # seconds: kernels that run on the host are slow

Answer = list[tuple[int, float]]


@pytest.fixture(scope="module", params=["e2b", "26b"])
def folder(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> _core.Model:
    return _core.Model.load(str(folder), device=DEVICE, deterministic=True)


@pytest.fixture(scope="module")
def ids(folder: Path) -> NDArray[np.int32]:
    with np.load(folder / "golden.npz") as golden:
        found: NDArray[np.int32] = golden["ids"].astype(np.int32)
    return found


@pytest.fixture
def engine(model: _core.Model) -> Iterator[_core.Engine]:
    opened = _core.Engine(model, max_context=256, deterministic=True)
    yield opened
    opened.close()


def params(**fields: Any) -> _core.SamplingParams:
    return _core.SamplingParams(**{"ignore_eos": True, "logprobs": 0, **fields})


def answer(generation: _core.Generation) -> Answer:
    """Ids and log-probabilities, which show a last bit that ids would hide."""
    out: Answer = []
    while (delta := generation.next(WAIT)) is not None:
        out += [(token.id, token.logprob) for token in delta.tokens]
    return out


def ask(engine: _core.Engine, prompt: NDArray[np.int32], **fields: Any) -> Answer:
    return answer(engine.submit(prompt, params(**fields)))


def assert_all_free(engine: _core.Engine) -> None:
    stats = engine.stats()
    assert stats["running"] == stats["queued"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]


def test_the_suite_runs_on_the_device_that_was_asked_for(model: _core.Model) -> None:
    assert model.info()["device"] == DEVICE


def test_chunks_change_no_bit(engine: _core.Engine, ids: NDArray[np.int32]) -> None:
    n = len(ids)
    whole = engine.logits(ids)
    for chunks in ([n - 1, 1], [1, n - 1], [17, 1, 16, n - 34], [20] * (n // 20) + [n % 20]):
        assert np.array_equal(engine.logits(ids, chunks=chunks), whole), chunks


def test_kept_blocks_change_no_bit(engine: _core.Engine, ids: NDArray[np.int32]) -> None:
    cold = {n: engine.logits(ids[:n], last_only=True) for n in (16, 17, 50, len(ids))}
    list(ask(engine, ids, max_tokens=1, temperature=0))
    before = int(engine.stats()["cached_tokens"])

    for n, logits in cold.items():
        assert np.array_equal(engine.logits(ids[:n], last_only=True, reuse=True), logits), n

    assert int(engine.stats()["cached_tokens"]) - before == sum((n - 1) // 16 * 16 for n in cold)


def test_a_crowd_gets_what_each_gets_alone(model: _core.Model, ids: NDArray[np.int32]) -> None:
    """Different lengths, draws and penalties in one step, in a pool too small for all: some are stopped and go on."""
    requests: list[tuple[NDArray[np.int32], dict[str, Any]]] = [
        (ids[:31], {"temperature": 0, "max_tokens": 24}),
        (ids[5:9], {"seed": 1, "max_tokens": 40}),
        (ids[:50], {"seed": 2, "top_p": 0.7, "max_tokens": 20}),
        (ids[10:33], {"seed": 3, "choice": 2, "frequency_penalty": 0.7, "max_tokens": 30}),
        (ids[:40], {"seed": 4, "top_k": 5, "min_p": 0.05, "max_tokens": 25}),
    ]
    size = {"max_context": 72, "max_rows": 24, "block_size": 4, "deterministic": True}
    two = _core.Engine(model, max_sequences=2, **size)
    alone = [ask(two, prompt, **fields) for prompt, fields in requests]
    kv_bytes = int(two.stats()["kv_bytes"])
    two.close()

    small = _core.Engine(model, max_sequences=8, kv_bytes=kv_bytes, **size)
    generations = [small.submit(prompt, params(**fields)) for prompt, fields in requests]
    found = [answer(generation) for generation in generations]

    assert found == alone
    assert int(small.stats()["preemptions"]) > 0
    assert_all_free(small)
    small.close()


def test_after_a_cancel_the_same_request_gives_the_same(engine: _core.Engine, ids: NDArray[np.int32]) -> None:
    wanted = ask(engine, ids, temperature=0, max_tokens=6)
    in_decode = engine.submit(ids, params(max_tokens=150))
    assert in_decode.next(WAIT) is not None
    in_prefill = engine.submit(ids[::-1].copy(), params(max_tokens=150))
    for generation in (in_decode, in_prefill):
        generation.cancel()
        answer(generation)
    assert ask(engine, ids, temperature=0, max_tokens=6) == wanted
    assert_all_free(engine)


def test_choices_share_their_prompt_and_differ(engine: _core.Engine, ids: NDArray[np.int32]) -> None:
    generations = [engine.submit(ids[:40], params(seed=5, choice=choice, max_tokens=6)) for choice in range(3)]
    answers = [answer(generation) for generation in generations]

    assert len({tuple(token for token, _ in each) for each in answers}) == 3
    assert engine.stats()["prompt_tokens"] == 40 + 2 * 8
    assert answers[1] == ask(engine, ids[:40], seed=5, choice=1, max_tokens=6)


def test_draws_follow_the_logits(engine: _core.Engine, ids: NDArray[np.int32]) -> None:
    n = 200
    logits = engine.logits(ids[:12], last_only=True)[0].astype(np.float64) / 0.7
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    generations = [engine.submit(ids[:12], params(max_tokens=1, temperature=0.7, seed=seed)) for seed in range(n)]
    counts = Counter(answer(generation)[0][0] for generation in generations)

    large = p * n >= 5
    expected = np.append(p[large] * n, p[~large].sum() * n)
    observed = np.append([counts[i] for i in np.flatnonzero(large)], sum(counts[i] for i in np.flatnonzero(~large)))
    statistic = float(((observed - expected) ** 2 / expected).sum())
    free = len(expected) - 1
    assert statistic < free + 5 * (2 * free) ** 0.5 + 5, f"chi-square {statistic} of {free}, seeds 0..{n - 1}"


def test_every_token_is_one_of_its_mask(engine: _core.Engine, ids: NDArray[np.int32], model: _core.Model) -> None:
    vocabulary = int(model.config()["vocab_size"])  # type: ignore[call-overload]
    rng = np.random.default_rng(3)
    generation = engine.submit(ids[:20], params(constrained=True, seed=9, max_tokens=5))
    for _ in range(5):
        allowed = rng.choice(vocabulary, 3, replace=False)
        mask = np.zeros((vocabulary + 31) // 32, dtype=np.uint32)
        np.bitwise_or.at(mask, allowed // 32, np.uint32(1) << (allowed % 32).astype(np.uint32))
        generation.allow(mask)
        delta = generation.next(WAIT)
        assert delta is not None
        assert delta.tokens[0].id in allowed


@pytest.mark.skipif(DEVICE != "cuda", reason="the CPU always gives a row the same bits")
def test_an_engine_asks_for_a_deterministic_model(folder: Path) -> None:
    plain = _core.Model.load(str(folder), device=DEVICE)
    with pytest.raises(errors.RequestError, match="load the model with deterministic=True"):
        _core.Engine(plain, deterministic=True)
