"""What a mixture may say when two experts of a router are as good as equally likely."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import oracle
from oracle import F64, I64

ROUTER_TIE = 2.0**-7  # between two logits of a router: a step of bf16 where they are 1 to 2, as in the goldens


def settled(folder: Path, ids: list[int]) -> list[F64]:
    """Logits of the oracle for every way to settle the near ties between the last expert taken and the next one.

    One way, if there is no mixture.
    """
    config, weights = oracle.load(folder)
    used = config.experts_per_token
    if used == 0:
        return [oracle.forward(config, weights, ids)]
    ties: list[tuple[int, int]] = []

    def find(layer: int, p: F64) -> I64:
        logits = np.log(-np.sort(-p, -1))
        rows = np.flatnonzero(logits[:, used - 1] - logits[:, used] < ROUTER_TIE)
        ties.extend((layer, int(row)) for row in rows)
        return oracle.likeliest(p, used)

    def take_next(tied: tuple[tuple[int, int], ...]) -> F64:
        def choose(layer: int, p: F64) -> I64:
            chosen = oracle.likeliest(p, used + 1)
            for row in (row for of, row in tied if of == layer):
                chosen[row, used - 1] = chosen[row, used]
            return chosen[:, :used]

        return oracle.forward(config, weights, ids, choose=choose)

    oracle.forward(config, weights, ids, choose=find)
    assert len(ties) <= 4, f"{len(ties)} near ties: {ties}"
    return [take_next(tied) for n in range(len(ties) + 1) for tied in combinations(ties, n)]
