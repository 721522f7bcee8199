"""How near a mode or a format comes to exact f32: divergence, agreement and perplexity over a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fidelity", "compare"]

WINDOW = 512  # tokens that see each other; 0.54 GB of logits at the released vocabulary


class _LogitsEngine(Protocol):
    def tokenize(self, text: str) -> list[int]: ...

    @property
    def bos_id(self) -> int: ...

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Fidelity:
    """Over `tokens` predictions: of the engine that was measured, against the reference."""

    tokens: int
    mean_kl: float  # nats, of the reference's distribution to this one's
    worst_kl: float
    top1_agreement: float  # share of predictions with the same likeliest token
    perplexity: float
    perplexity_ratio: float  # to the reference's

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(reference: _LogitsEngine, measured: Sequence[_LogitsEngine], text: str) -> list[Fidelity]:
    """One result for each measured engine. All must have the reference's vocabulary.

    ValueError for a text of fewer than two tokens.
    """
    divergences: list[list[float]] = [[] for _ in measured]
    agreements: list[list[bool]] = [[] for _ in measured]
    losses: list[list[float]] = [[] for _ in measured]
    reference_losses: list[float] = []
    for ids in _windows(reference, text):
        targets = ids[1:]
        wanted = reference.logits(ids[:-1])
        found = [engine.logits(ids[:-1]) for engine in measured]
        for row, target in enumerate(targets):
            p = _log_softmax(wanted[row])
            reference_losses.append(-float(p[target]))
            for number, logits in enumerate(found):
                q = _log_softmax(logits[row])
                divergences[number].append(float((np.exp(p) * (p - q)).sum()))
                agreements[number].append(int(p.argmax()) == int(q.argmax()))
                losses[number].append(-float(q[target]))
    mean_loss = float(np.mean(reference_losses))
    return [
        Fidelity(
            tokens=len(reference_losses),
            mean_kl=float(np.mean(kl)),
            worst_kl=float(np.max(kl)),
            top1_agreement=float(np.mean(same)),
            perplexity=float(np.exp(np.mean(loss))),
            perplexity_ratio=float(np.exp(np.mean(loss) - mean_loss)),
        )
        for kl, same, loss in zip(divergences, agreements, losses, strict=True)
    ]


def _windows(engine: _LogitsEngine, text: str) -> Iterator[list[int]]:
    """Runs of ids, a BOS in front of each; every id of the text is predicted once."""
    ids = engine.tokenize(text)
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens; fidelity needs at least 2")
    for start in range(0, len(ids), WINDOW):
        yield [engine.bos_id, *ids[start : start + WINDOW]]


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    x = row.astype(np.float64)
    x -= x.max()
    y: NDArray[np.float64] = x - np.log(np.exp(x).sum())
    return y
