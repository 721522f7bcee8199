"""A real engine with one thing wrong: it refuses requests, or breaks in the middle of its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Proxy"]


class Proxy:
    """An engine over an engine. `refuse` is raised at submissions, `fail` after some deltas of each answer.

    `submitted` counts what was asked.
    """

    def __init__(
        self, engine: Any, *, refuse: Exception | None = None, fail: Exception | None = None, after: int = 2
    ) -> None:
        self._engine = engine
        self.refuse = refuse
        self.fail = fail
        self.after = after
        self.submitted = 0

    def submit(self, ids: Any, sampling: Any) -> Any:
        self.submitted += 1
        if self.refuse is not None:
            raise self.refuse
        generation = self._engine.submit(ids, sampling)
        return generation if self.fail is None else _Breaking(generation, self.fail, self.after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _Breaking:
    def __init__(self, generation: Any, failure: Exception, after: int) -> None:
        self._generation = generation
        self._failure = failure
        self._left = after

    def next(self, timeout: float | None = None) -> Any:
        return self._counted(lambda: self._generation.next(timeout))

    def try_next(self) -> Any:
        return self._counted(self._generation.try_next)

    def _counted(self, look: Callable[[], Any]) -> Any:
        if self._left == 0:
            self._generation.cancel()
            raise self._failure
        delta = look()
        self._left -= delta is not None
        return delta

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generation, name)
