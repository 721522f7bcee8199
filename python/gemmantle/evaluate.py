"""`Engine.score`: log-likelihoods of continuations and of whole texts (spec api 11.1).

A score is one pass over the prompt: the engine returns the log-probabilities of the tokens behind the context, and they
are summed. Nothing is sampled. Sequences are submitted in the order of their ids, so that those with a shared beginning
are neighbours and the engine computes it once; results come back in the order of the items.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemmantle.api.protocol import Generation, Sampling, ServingEngine
from gemmantle.errors import RequestError
from gemmantle.progress import Progress

__all__ = ["Score", "ScoringEngine", "score"]


class ScoringEngine(ServingEngine, Protocol):
    """A serving engine that also knows its words."""

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    @property
    def bos_id(self) -> int: ...


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a continuation, or of a whole text in mode "rolling"; natural logarithms."""

    logprob: float
    is_greedy: bool  # every token was the likeliest one
    token_logprobs: list[float]
    n_tokens: int
    n_bytes: int
    n_chars: int


_BUSY_S = 0.02  # before another try where the engine has no place in its queue and nothing of ours runs

# (ids, how many of them are context, text of the rest)
_Sequence = tuple[list[int], int, str]


def score(
    engine: ScoringEngine, items: Iterable[Any], mode: str, ahead: int, progress: Progress | None = None
) -> list[Any]:
    """Modes pair, choice and rolling, as documented at `Engine.score`.

    ahead: how many sequences are submitted at once. progress: counts sequences.
    """
    run = _Run(engine, ahead, progress or Progress("score", show=False))
    if mode == "pair":
        pairs = [_pair(item, number) for number, item in enumerate(items)]
        return run.scores([_join(engine, *pair) for pair in pairs])
    if mode == "choice":
        groups = [_pair(item, number) for number, item in enumerate(items)]
        flat = [_join(engine, context, continuation) for context, rest in groups for continuation in rest]
        scores = iter(run.scores(flat))
        return [[next(scores) for _ in rest] for _, rest in groups]
    if mode == "rolling":
        return _score_rolling(run, list(items))
    raise ValueError(f"mode is {mode!r}; it must be pair, rolling or choice")


def _pair(item: Any, number: int) -> tuple[Any, Any]:
    if isinstance(item, dict) and "context" in item:
        return item["context"], item.get("continuation", item.get("continuations"))
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise RequestError(f"items[{number}] must be a pair of context and continuation", param=f"items[{number}]")


def _join(engine: ScoringEngine, context: Any, continuation: Any) -> _Sequence:
    """Text is encoded together, blanks that end the context as part of the continuation (V-1); ids are as they are."""
    if isinstance(context, str) and isinstance(continuation, str):
        bare = context.rstrip()
        whole = engine.encode_prompt(bare + context[len(bare) :] + continuation)
        prefix = engine.encode_prompt(bare)
        common = 0
        while common < min(len(whole), len(prefix)) and whole[common] == prefix[common]:
            common += 1
        return whole, max(1, min(common, len(whole) - 1)), continuation
    if isinstance(context, str) or isinstance(continuation, str):
        raise RequestError("context and continuation must both be text or both be ids", param="items")
    ids = list(continuation)
    if not ids:
        raise RequestError("a continuation has no tokens", param="items")
    prefix = list(context) or [engine.bos_id]
    return prefix + ids, len(prefix), _text(engine, ids)


def _score_rolling(run: _Run, items: list[Any]) -> list[Score]:
    """Disjoint windows, each conditioned on the token before it: BOS, later the end of the window before."""
    engine = run.engine
    size = engine.profile.max_context - 1
    texts: list[str] = []
    windows: list[list[_Sequence]] = []
    for item in items:
        ids = engine.tokenize(item) if isinstance(item, str) else list(item)
        texts.append(item if isinstance(item, str) else _text(engine, ids))
        sequence = [engine.bos_id, *ids]
        windows.append([(sequence[start : start + size + 1], 1, "") for start in range(0, len(ids), size)])
    scores = iter(run.scores([window for of_item in windows for window in of_item]))
    results = []
    for text, of_item in zip(texts, windows, strict=True):
        parts = [next(scores) for _ in of_item]
        logprobs = [value for part in parts for value in part.token_logprobs]
        results.append(_make(logprobs, all(part.is_greedy for part in parts), text))
    return results


@dataclass(frozen=True)
class _Run:
    """Sequences through the engine, those that begin alike next to each other."""

    engine: ScoringEngine
    ahead: int
    progress: Progress

    def scores(self, sequences: Sequence[_Sequence]) -> list[Score]:
        """In the order of the sequences."""
        self._check(sequences)
        self.progress.total = len(sequences)
        waiting = deque(sorted(range(len(sequences)), key=lambda number: sequences[number][0]))
        running: deque[tuple[int, Generation]] = deque()
        scores: dict[int, Score] = {}
        try:
            while waiting or running:
                if waiting and len(running) < self.ahead:
                    submitted = self._submit(sequences[waiting[0]])
                    if submitted is not None:
                        running.append((waiting.popleft(), submitted))
                        continue
                if not running:
                    time.sleep(_BUSY_S)
                    continue
                number, generation = running[0]
                try:
                    scores[number] = _read(generation, sequences[number])
                    self.progress.add(1, scores[number].n_tokens)
                except RequestError as exc:
                    if exc.code != "engine_busy":
                        raise
                    waiting.append(number)
                running.popleft()
        finally:
            for _, generation in running:
                generation.cancel()
        return [scores[number] for number in range(len(sequences))]

    def _submit(self, sequence: _Sequence) -> Generation | None:
        """None where the engine's queue is full."""
        ids, context, _ = sequence
        sampling = Sampling(max_tokens=0, prompt_logprobs=1, prompt_logprobs_start=context)
        try:
            return self.engine.submit(ids, sampling)
        except RequestError as exc:
            if exc.code != "engine_busy":
                raise
            return None

    def _check(self, sequences: Sequence[_Sequence]) -> None:
        window = self.engine.profile.max_context
        for ids, _, _ in sequences:
            if len(ids) > window:
                raise RequestError(
                    f"context and continuation have {len(ids)} tokens; the model's context holds {window}: shorten the "
                    "context, or load with a larger max_context",
                    code="context_length_exceeded",
                    param="items",
                )


def _read(generation: Generation, sequence: _Sequence) -> Score:
    ids, context, text = sequence
    while True:
        delta = generation.next(0.05)  # a slice short enough for Ctrl-C
        if delta is not None and delta.finish_reason is not None:
            break
    entries = generation.prompt_logprobs[context : len(ids)]
    greedy = all(entry.top and entry.top[0][0] == token for entry, token in zip(entries, ids[context:], strict=True))
    return _make([float(entry.logprob) for entry in entries], greedy, text)


def _make(logprobs: list[float], is_greedy: bool, text: str) -> Score:
    return Score(
        logprob=float(sum(logprobs)),
        is_greedy=is_greedy,
        token_logprobs=logprobs,
        n_tokens=len(logprobs),
        n_bytes=len(text.encode("utf-8", "replace")),
        n_chars=len(text),
    )


def _text(engine: ScoringEngine, ids: list[int]) -> str:
    return engine.detokenize(ids) if engine.profile.has_tokenizer else ""
