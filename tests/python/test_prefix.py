"""What earlier requests computed is found again, changes no bit, and is counted; on every golden checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmantle
from gemmantle.api.protocol import Sampling
from gemmantle.errors import RequestError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDERS = sorted(file.parent.relative_to(GOLDEN).as_posix() for file in GOLDEN.glob("*/*/golden.npz"))
BLOCK = 16


def golden_ids(name: str) -> list[int]:
    with np.load(GOLDEN / name / "golden.npz") as golden:
        ids: list[int] = golden["ids"].tolist()
    return ids


@pytest.fixture(
    params=[
        (name, device) for name in FOLDERS for device in ("reference", "cpu") if device == "cpu" or name == "odd/e2b"
    ],
    ids="-".join,
)
def fresh(request: pytest.FixtureRequest) -> Iterator[tuple[gemmantle.Engine, list[int]]]:
    name, device = request.param
    with gemmantle.load(GOLDEN / name, device=device, mode="exact") as engine:
        yield engine, golden_ids(name)


@pytest.fixture
def engine() -> Iterator[gemmantle.Engine]:
    with gemmantle.load(GOLDEN / "odd/e2b", device="cpu", mode="exact") as opened:
        yield opened


def growth(engine: gemmantle.Engine, before: dict[str, Any], key: str) -> int:
    return int(engine.stats()[key]) - int(before[key])


def greedy(prompt: list[int], count: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "temperature": 0,
        "max_completion_tokens": count,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 5,
    }


def test_logits_are_the_same_bits_with_and_without_a_hit(fresh: tuple[gemmantle.Engine, list[int]]) -> None:
    engine, ids = fresh
    lengths = [*range(1, len(ids), 7), BLOCK, BLOCK + 1, 2 * BLOCK + 1, len(ids)]
    computed = [engine.logits(ids[:n], last_only=True) for n in lengths]
    before = engine.stats()

    found = [engine.logits(ids[:n], last_only=True, reuse=True) for n in lengths]

    for n, one, other in zip(lengths, computed, found, strict=True):
        assert np.array_equal(one, other), n
    hits = sum((n - 1) // BLOCK * BLOCK for n in lengths)
    assert growth(engine, before, "cached_tokens") == hits
    assert growth(engine, before, "prompt_tokens") == sum(lengths) - hits


def test_a_turn_finds_the_turns_before_it(fresh: tuple[gemmantle.Engine, list[int]]) -> None:
    engine, ids = fresh
    [first] = engine.generate([greedy(ids, 21)])
    assert first.usage.cached_tokens == 0
    turn = [*ids, *first.ids, *ids[:9]]

    [hit] = engine.generate([greedy(turn, 12)])

    # The last answer token was drawn, its row was never run.
    assert hit.usage.cached_tokens == (len(ids) + len(first.ids) - 1) // BLOCK * BLOCK
    whole = engine.logits(turn + hit.ids)[len(turn) - 1 : -1]
    assert whole.argmax(-1).tolist() == hit.ids


def test_a_changed_token_ends_the_hit(engine: gemmantle.Engine) -> None:
    ids = golden_ids("odd/e2b")
    list(engine.generate([greedy(ids, 1)]))
    for position in (0, BLOCK - 1, BLOCK, 40):
        other = list(ids)
        other[position] += 1
        [result] = engine.generate([greedy(other, 3)])
        assert result.usage.cached_tokens == position // BLOCK * BLOCK
        assert result.ids[0] == int(engine.logits(other, last_only=True).argmax())


def test_choices_of_one_request_share_their_prompt(engine: gemmantle.Engine) -> None:
    ids = golden_ids("odd/e2b")
    reply = engine.client().completions.create(model=engine.name, prompt=ids, n=3, max_tokens=4, seed=5)

    assert len(reply.choices) == 3
    rest = len(ids) - (len(ids) - 1) // BLOCK * BLOCK
    assert engine.stats()["prompt_tokens"] == len(ids) + 2 * rest
    assert engine.stats()["hit_rate"] == pytest.approx(2 * (len(ids) - rest) / (3 * len(ids)))


def test_stats_say_what_was_done_and_how_long_it_took(engine: gemmantle.Engine) -> None:
    ids = golden_ids("odd/e2b")
    list(engine.generate([greedy(ids, 5)]))

    stats = engine.stats()
    assert (stats["prompt_tokens"], stats["decode_rows"], stats["logit_rows"]) == (len(ids), 4, 5)
    assert stats["repeated_rows"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]
    assert stats["blocks_kept"] > 0
    for name, count in (("queue_time", 1), ("time_to_first_token", 1), ("time_between_tokens", 4)):
        times = stats[name]
        assert times["count"] == count
        assert times["sum"] >= 0
        assert len(times["counts"]) == len(times["le"])
        assert times["counts"] == sorted(times["counts"])
    generation = engine.submit(ids, Sampling(max_tokens=1, priority=1))
    while (delta := generation.next()) is not None and delta.finish_reason is None:
        pass
    assert delta is not None
    assert delta.queue_ms >= 0
    with pytest.raises(RequestError, match="priority"):
        engine.submit(ids, Sampling(priority=1000))


def test_endings_of_one_context_compute_it_once_and_score_as_alone(engine: gemmantle.Engine) -> None:
    """As many items as make an evaluation: 200 contexts with four endings each."""
    rng = random.Random(6)
    vocabulary = engine.info()["vocabulary"]

    def some(n: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(n)]

    items = [(some(rng.randrange(20, 70)), [some(rng.randrange(1, 8)) for _ in range(4)]) for _ in range(200)]
    before = engine.stats()

    choices = engine.score(items, mode="choice")

    once = sum(len(context) for context, _ in items)
    endings = sum(len(ending) for _, endings in items for ending in endings)
    computed = growth(engine, before, "prompt_tokens")
    assert computed <= once + endings + 3 * len(items) * BLOCK
    assert growth(engine, before, "cached_tokens") >= 3 * (once - len(items) * BLOCK)
    # Rows of the context end below the head.
    assert growth(engine, before, "logit_rows") == endings
    some_items = rng.sample(range(len(items)), 20)
    for number in some_items:
        context, endings_of = items[number]
        for ending, score in zip(endings_of, choices[number], strict=True):
            ids = context + ending
            rows = engine.logits(ids)[len(context) - 1 : -1].astype(np.float64)
            expected = [
                row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
                for row, token in zip(rows, ending, strict=True)
            ]
            assert np.abs(np.array(score.token_logprobs) - expected).max() < 1e-4
    with gemmantle.load(GOLDEN / "odd/e2b", device="cpu", mode="exact", deterministic=True, threads=1) as alone:
        for number in some_items:
            context, endings_of = items[number]
            singles = []
            for ending in endings_of:
                noise = [rng.randrange(3, vocabulary)] * 3
                alone.score([(noise, noise)])
                singles += alone.score([(context, ending)])
            assert singles == choices[number]  # the same bits
    shuffled = list(enumerate(items))
    rng.shuffle(shuffled)
    again = engine.score([item for _, item in shuffled], mode="choice")
    assert again == [choices[number] for number, _ in shuffled]


def test_rolling_scores_of_many_texts_are_those_of_each(engine: gemmantle.Engine) -> None:
    rng = random.Random(7)
    texts = [[rng.randrange(3, 90) for _ in range(rng.randrange(1, 60))] for _ in range(12)]

    together = engine.score(texts, mode="rolling")

    assert together == [engine.score([text], mode="rolling")[0] for text in texts]
