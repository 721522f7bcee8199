"""A stand-in for the native module, so that loading, sharing, pickling and scoring are tested without a build.

The "model" counts: after id k comes id k + 1, with log-probability -0.5. Text of id k is the k-th piece.
"""

from __future__ import annotations

import os
import types
import weakref
from typing import Any

import numpy as np
from fake_engine import FakeDelta, FakeToken

from gemmantle.errors import EngineClosed, ModelNotFound

VOCABULARY = 300
loads: list[tuple[str, dict[str, Any]]] = []
closed: list[str] = []

_READABLE = os.eventfd(1)  # there is always something to read


class Model:
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.path = path
        self.options = options

    @staticmethod
    def load(path: str, **options: Any) -> Model:
        if "broken" in path:
            raise ModelNotFound(f"'{path}' has no weights")
        loads.append((path, options))
        return Model(path, options)

    def config(self) -> dict[str, Any]:
        return {"family": "gemma4", "vocab_size": VOCABULARY, "context_length": 64}

    def info(self) -> dict[str, Any]:
        return {"device": "cpu", "isa": "none", "formats": "f32", "weight_bytes": 0, **self.options}


class Vocabulary:
    def __init__(self, pieces: list[bytes], control: list[int], special: dict[str, int]) -> None:
        self.pieces = pieces
        self.control = set(control)


class SamplingParams:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Generation:
    def __init__(self, engine: Engine, ids: list[int], params: Any) -> None:
        self._engine = engine
        self._ids = ids
        self._params = params
        self._made = 0
        self._done = False
        self.prompt_logprobs: list[FakeToken | None] = []

    def next(self, timeout: float | None = None) -> FakeDelta | None:
        return self.try_next()

    def try_next(self) -> FakeDelta | None:
        if self._engine.is_closed:
            raise EngineClosed("closed")
        if self._done:
            return None
        if self._made >= self._params.max_tokens:
            self._done = True
            self.prompt_logprobs = [None] + [
                self._token(i, -0.5 if i == p + 1 else -3.0, p + 1) for p, i in self._pairs()
            ]
            return FakeDelta(finish_reason="length", usage=(len(self._ids), self._made, 0, 0))
        self._made += 1
        token = self._token((self._ids[-1] + self._made) % VOCABULARY, -0.5)
        return FakeDelta(pieces=[("content", token.text.decode("utf-8", "replace"))], tokens=[token])

    def fileno(self) -> int:
        return _READABLE

    def cancel(self) -> None:
        self._done = True

    @property
    def is_over(self) -> bool:
        return self._done

    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self._ids, self._ids[1:], strict=False))

    def _token(self, token_id: int, logprob: float, best: int | None = None) -> FakeToken:
        text = b""
        vocabulary = self._engine.vocabulary
        if vocabulary and token_id not in vocabulary.control and token_id < len(vocabulary.pieces):
            text = vocabulary.pieces[token_id]
        return FakeToken(token_id, "content", logprob, [(token_id if best is None else best, -0.5)], text)


class Engine:
    def __init__(self, model: Model, vocabulary: Vocabulary | None = None, **options: Any) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.options = options
        self.is_closed = False
        self.generations: weakref.WeakSet[Generation] = weakref.WeakSet()

    def submit(self, ids: np.ndarray, params: SamplingParams) -> Generation:
        assert ids.dtype == np.int32
        if self.is_closed:
            raise EngineClosed("closed")
        generation = Generation(self, ids.tolist(), params)
        self.generations.add(generation)
        return generation

    def logits(
        self, ids: np.ndarray, *, chunks: list[int] | None = None, last_only: bool = False, reuse: bool = False
    ) -> np.ndarray:
        table = np.zeros((len(ids), VOCABULARY), np.float32)
        table[np.arange(len(ids)), (ids + 1) % VOCABULARY] = 1
        return table[-1:] if last_only else table

    def stats(self) -> dict[str, Any]:
        limits = {
            "kv_bytes": 0,
            "work_bytes": 0,
            "kv_budget": 0,
            "max_context": self.max_context(),
            "max_sequences": 16,
        }
        running = sum(not generation.is_over for generation in list(self.generations))
        return {"queued": 0, "running": running, **limits}

    def max_context(self) -> int:
        return self.options["max_context"] or 64

    def close(self) -> None:
        self.is_closed = True
        closed.append(self.model.path)


def devices() -> list[dict[str, Any]]:
    return [
        {"name": "cpu", "available": True, "description": "a fake", "reason": ""},
        {"name": "cuda", "available": False, "description": "none", "reason": "no driver"},
    ]


def trim_memory() -> None:
    pass


def version() -> str:
    return "fake"


def module() -> types.ModuleType:
    """This file under the name of the native module."""
    core = types.ModuleType("gemmantle._core")
    for name in ("Model", "Vocabulary", "SamplingParams", "Engine", "devices", "trim_memory", "version"):
        setattr(core, name, globals()[name])
    return core
