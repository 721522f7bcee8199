"""An asynchronous SDK client that can be used like a synchronous one, so that one test holds both to the contract.

What a call returns is awaited at once on a loop of its own; streams are read, and contexts entered, on the same loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import openai

__all__ = ["Loop", "Straight"]


class Loop:
    """One event loop that runs only while somebody waits for something."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def wait(self, awaitable: Any) -> Any:
        async def outcome() -> Any:
            return await awaitable

        return self._loop.run_until_complete(outcome())

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class Straight:
    """`of`, with its awaitables awaited. Attributes that hold asynchronous objects are seen the same way."""

    def __init__(self, of: Any, loop: Loop) -> None:
        self._of = of
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._of, name)
        if not callable(value) or _is_asynchronous(value):
            return self._seen(value)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._seen(value(*args, **kwargs))

        return call

    def __iter__(self) -> Iterator[Any]:
        iterator = aiter(self._of)
        while True:
            try:
                item = self._loop.wait(anext(iterator))
            except StopAsyncIteration:
                return
            yield item

    def __next__(self) -> Any:
        try:
            return self._loop.wait(anext(self._of))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Any:
        return self._seen(self._of.__aenter__())

    def __exit__(self, *exc: Any) -> Any:
        return self._loop.wait(self._of.__aexit__(*exc))

    def _seen(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            value = self._loop.wait(value)
        return Straight(value, self._loop) if _is_asynchronous(value) else value


def _is_asynchronous(value: Any) -> bool:
    """Objects of the SDK with an asynchronous side; plain values and models are none."""
    if isinstance(value, openai.AsyncOpenAI) or hasattr(value, "__aenter__") or hasattr(value, "__aiter__"):
        return True
    return type(value).__name__.startswith("Async")
