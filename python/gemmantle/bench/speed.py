"""Prefill and decode of one model in several modes, taking turns, beside the memory rate of the same moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from gemmantle.bench.ids import IdEngine, Ids, fresh_prompt
from gemmantle.bench.machine import Limits

__all__ = ["Case", "Measurement", "Operation", "cases", "measure"]

FIRST_TOKEN = "first token"
ALL_ROWS = "all rows"
DECODE = "decode"


@dataclass(frozen=True)
class Case:
    """What is measured.

    first token: a fresh prompt of `tokens` ids behind `depth` kept ones, to the first sampled id. all rows: the
    log-probability of every id of a fresh prompt, so that no row may be left out anywhere. decode: `tokens` steps of
    `batch` sequences, each behind `depth` ids of its own.
    """

    what: str
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def rows(self) -> int:
        """Tokens that one timed unit (a prompt, or a step of decode) works on."""
        return self.batch if self.what == DECODE else self.tokens

    @property
    def label(self) -> str:
        return f"{self.what} at depth {self.depth}, {self.batch} at once"


@dataclass(frozen=True)
class Operation:
    """An op of one shape, for one timed unit."""

    op: str
    format: str | None
    shape: tuple[int, int]
    calls: float
    seconds: float
    bytes: float
    operations: float


@dataclass
class Measurement:
    """All rounds of a case in one mode: seconds of a unit, and the GB/s that the probe read just before."""

    mode: str
    case: Case
    seconds: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)  # of the last round

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.case.rows / self.median_seconds

    @property
    def bytes(self) -> float:
        """Of weights and KV that a unit has to read."""
        return sum(operation.bytes for operation in self.operations)

    @property
    def gop(self) -> float:
        return sum(operation.operations for operation in self.operations) / 1e9

    def share_of_read(self) -> float:
        """Of the memory rate: GB/s of a round over the probe's in the same round, the median."""
        return median(self.bytes / 1e9 / took / read for took, read in zip(self.seconds, self.read, strict=True))

    def share_of_products(self, limits: Limits) -> float:
        """Of the products' rate: what the products of a unit would take at the limit, over what it took."""
        at_limit = sum(_product_seconds(self.mode, operation, limits) for operation in self.operations)
        return at_limit / self.median_seconds


def share_of_limit(mode: str, operation: Operation, limits: Limits) -> tuple[float, str]:
    """How near an op is to the limit that binds it, and which that is: "memory", "products" or neither."""
    if operation.seconds <= 0 or (operation.bytes == 0 and operation.operations == 0):
        return 0.0, ""
    memory = operation.bytes / 1e9 / limits.read / operation.seconds
    products = _product_seconds(mode, operation, limits) / operation.seconds
    return (memory, "memory") if memory >= products else (products, "products")


def _product_seconds(mode: str, operation: Operation, limits: Limits) -> float:
    return operation.operations / 1e9 / (limits.products(mode, operation.format) or float("inf"))


def cases(prompt: int, decode: int, depths: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """First tokens at every depth, all rows, and decode for every depth and batch."""
    found = [Case(FIRST_TOKEN, prompt, depth) for depth in depths]
    found.append(Case(ALL_ROWS, prompt))
    found.extend(Case(DECODE, decode, depth, batch) for batch in batches for depth in depths)
    return found


def context_needed(wanted: Sequence[Case]) -> int:
    """Tokens of context that every case fits into."""
    return max(case.depth + 2 * case.tokens + case.batch * (case.depth // 64 + 8) + 256 for case in wanted)


def measure(
    engines: Mapping[str, IdEngine],
    wanted: Sequence[Case],
    rounds: int,
    read_rate: Callable[[], float],
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Every case `rounds` times in every mode, the modes taking turns. One short run of each before does not count."""
    rng = np.random.default_rng(seed)
    found = [Measurement(mode, case) for case in wanted for mode in engines]
    depths = {case: _prefixes(rng, engines, case) for case in wanted}
    for engine in engines.values():  # pages of the map, threads and buffers come into being here
        engine.first_token(fresh_prompt(rng, engine.vocabulary, 16))
        engine.decode([fresh_prompt(rng, engine.vocabulary, 4)], 2)
    for turn in range(rounds):
        for measurement in found:
            case, engine = measurement.case, engines[measurement.mode]
            progress(f"round {turn + 1} of {rounds}: {case.label}, mode {engine.mode}")
            for prefix in depths[case]:
                engine.first_token(prefix)  # kept from the round before, where there is room
            measurement.read.append(read_rate())
            measurement.seconds.append(_run(engine, case, depths[case], rng))
            measurement.operations = _operations(engine.take_profile(), measurement.case)
    return found


def _prefixes(rng: np.random.Generator, engines: Mapping[str, IdEngine], case: Case) -> list[Ids]:
    """What lies before the timed tokens, a prompt of its own for every sequence of the batch."""
    vocabulary = min(engine.vocabulary for engine in engines.values())
    if case.depth == 0:
        return []
    return [fresh_prompt(rng, vocabulary, case.depth) for _ in range(case.batch)]


def _run(engine: IdEngine, case: Case, prefixes: Sequence[Ids], rng: np.random.Generator) -> float:
    if case.what == DECODE:
        prompts = prefixes or [fresh_prompt(rng, engine.vocabulary, 4) for _ in range(case.batch)]
        return engine.decode(list(prompts), case.tokens)
    prompt = fresh_prompt(rng, engine.vocabulary, case.tokens)
    if case.what == ALL_ROWS:
        return engine.score(prompt)
    return engine.first_token(np.concatenate([*prefixes, prompt]))


def _operations(profile: Sequence[dict[str, Any]], case: Case) -> list[Operation]:
    """The profile of a measurement, divided by its units: the steps of decode, or the one prompt."""
    steps = sum(int(entry["calls"]) for entry in profile if entry["op"] == "sample")
    units = max(1, steps) if case.what == DECODE else 1
    return [
        Operation(
            op=entry["op"],
            format=entry["format"],
            shape=(entry["rows"], entry["cols"]),
            calls=entry["calls"] / units,
            seconds=entry["seconds"] / units,
            bytes=entry["bytes"] / units,
            operations=entry["operations"] / units,
        )
        for entry in profile
    ]
