"""Running generations as one piece of work, and its output as server-sent events.

`Work` waits for whichever of its generations has something, with or without an event loop: the thread way sleeps in
slices short enough for signals, the loop way watches the generations' file descriptors. `EventStream` is the body of
a streamed reply for both. Dropping, closing or cancelling either of them cancels the generations behind it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import operator
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gemmantle.api.problems import Expired, Problem, problem_of
from gemmantle.api.protocol import ByteStream, Delta, Generation
from gemmantle.errors import RequestError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Answer", "EventStream", "Pace", "Work", "encode_json", "event", "sleep"]

SLICE_S = 0.05  # Ctrl-C and close() from another thread are noticed within this
_DRAIN_LIMIT = 4096  # deltas taken in one visit

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def encode_json(value: Any) -> str:
    """Compact JSON on one line."""
    return _encoder(value)


def event(data: str, kind: str | None = None) -> bytes:
    """One `data:` event, with its type on a line of its own where `kind` is given. Half surrogates from a caller's own
    text become JSON escapes again."""
    head = "" if kind is None else f"event: {kind}\n"
    return f"{head}data: {data}\n\n".encode("utf-8", "backslashreplace")


class Answer(Protocol):
    """One request on its way: takes deltas, gives events (streamed) or a body (plain)."""

    stream: bool

    def opening(self) -> bytes:
        """Events that leave before anything is generated."""
        return b""

    def feed(self, choice: int, delta: Delta) -> None: ...

    def take(self) -> bytes:
        """Events ready since the last call; empty while text is held back."""

    def close_events(self) -> bytes:
        """What follows after the last choice, the end marker included."""

    def body(self) -> dict[str, Any]: ...

    def failed(self, problem: Problem) -> bytes:
        """After the first byte a failure is one error event and no end marker (spec api C-3)."""
        return event(encode_json({"error": problem.error()}))

    def detached(self, work: Work, timeout: float | None) -> dict[str, Any] | ByteStream | None:
        """The reply of a request that goes on by itself; None for one that its reader drives."""
        return None


@dataclass
class MergedDelta:
    """Several deltas of one choice as one."""

    pieces: list[tuple[str, str]]
    tokens: list[Any]
    finish_reason: str | None
    stop_reason: str | int | None
    usage: tuple[int, int, int, int] | None
    thought_cut: bool
    queue_ms: float | None


def merged(ready: list[tuple[int, Delta]]) -> list[tuple[int, Delta]]:
    """One delta a choice, so that what gathered since the last visit leaves as one chunk."""
    if len(ready) == 1:
        return ready
    groups: dict[int, list[Delta]] = {}
    for choice, delta in ready:
        groups.setdefault(choice, []).append(delta)
    return [(choice, _merge(deltas)) for choice, deltas in groups.items()]


def _merge(deltas: list[Delta]) -> Delta:
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    return MergedDelta(
        pieces=_joined([piece for delta in deltas for piece in delta.pieces]),
        tokens=[token for delta in deltas for token in delta.tokens],
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        usage=last.usage,
        thought_cut=any(delta.thought_cut for delta in deltas),
        queue_ms=last.queue_ms,
    )


def _joined(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one channel as one piece: each piece costs its reader. Ends of calls have no text to join."""
    found: list[tuple[str, str]] = []
    for channel, group in itertools.groupby(pieces, key=operator.itemgetter(0)):
        if channel == "call_end":
            found.extend(group)
        else:
            found.append((channel, "".join([text for _, text in group])))
    return found


class Work:
    """The generations of one request, waited for together."""

    def __init__(self, generations: Sequence[Generation], *, guided: bool = False, queued: bool = False) -> None:
        """guided: constrained, reading them is what keeps them going. queued: each says first that it has a place."""
        self.guided = guided
        self._queued = set(range(len(generations))) if queued else set()
        self._open = dict(enumerate(generations))
        self._all = list(generations)
        self.cancelled = False

    @property
    def running(self) -> bool:
        return bool(self._open)

    @property
    def queued(self) -> bool:
        """Whether one of them may still be refused because no place comes free in time."""
        return bool(self._queued)

    def generation(self, choice: int) -> Generation:
        return self._all[choice]

    def cancel(self) -> None:
        """Idempotent; from any thread, finalisers included: it takes no lock of ours."""
        self.cancelled = True
        for generation in self._all:
            generation.cancel()

    def __del__(self) -> None:
        if self._open:
            self.cancel()

    def collect(self, deadline: float | None) -> list[tuple[int, Delta]]:
        """Block until something is there; `deadline` is on the monotonic clock."""
        try:
            while True:
                ready = self._wait_one(deadline) if len(self._open) == 1 else self._wait_many(deadline)
                if ready or not self._open:
                    return ready
                self._check(deadline)
        except BaseException:
            self.cancel()
            raise

    async def acollect(self, deadline: float | None) -> list[tuple[int, Delta]]:
        """The same on the running loop (asyncio or trio), which is never blocked."""
        try:
            while True:
                ready = await self._adrain()
                if ready or not self._open:
                    return ready
                self._check(deadline)
                await _readable(self.descriptors(), deadline)
        except BaseException:
            self.cancel()
            raise

    def ready(self) -> list[tuple[int, Delta]]:
        """What is there now, without waiting."""
        try:
            found = self._drain()
            if not found and self._open:
                self._check(None)
        except BaseException:
            self.cancel()
            raise
        return found

    def descriptors(self) -> list[int]:
        """Readable while `ready` has something to give."""
        return [generation.fileno() for generation in list(self._open.values())]

    async def _adrain(self) -> list[tuple[int, Delta]]:
        """Masks that take long are computed in a thread."""
        if self.guided and any(getattr(generation, "is_slow", False) for generation in self._open.values()):
            from anyio import to_thread

            return await to_thread.run_sync(self._drain)
        return self._drain()

    def _wait_one(self, deadline: float | None) -> list[tuple[int, Delta]]:
        [(choice, generation)] = self._open.items()
        delta = generation.next(_slice(deadline))
        if delta is None:
            return []
        ready = [(choice, delta)]
        self._note(choice, delta)
        if choice in self._open:
            self._drain_into(ready, choice, generation)
        return ready

    def _wait_many(self, deadline: float | None) -> list[tuple[int, Delta]]:
        ready = self._drain()
        if not ready and self._open:
            poll = select.poll()
            for generation in self._open.values():
                poll.register(generation.fileno(), select.POLLIN)
            poll.poll(_slice(deadline) * 1000)
            ready = self._drain()
        return ready

    def _drain(self) -> list[tuple[int, Delta]]:
        ready: list[tuple[int, Delta]] = []
        for choice, generation in list(self._open.items()):
            self._drain_into(ready, choice, generation)
        return ready

    def _drain_into(self, ready: list[tuple[int, Delta]], choice: int, generation: Generation) -> None:
        for _ in range(_DRAIN_LIMIT):
            delta = generation.try_next()
            if delta is None:
                return
            ready.append((choice, delta))
            self._note(choice, delta)
            if choice not in self._open:
                return

    def _note(self, choice: int, delta: Delta) -> None:
        self._queued.discard(choice)
        if delta.finish_reason is None:
            return
        del self._open[choice]
        if delta.finish_reason == "cancelled":
            self.cancel()
            raise RequestError("the request was cancelled", code="request_cancelled", status=499)

    def _check(self, deadline: float | None) -> None:
        if self.cancelled:
            raise RequestError("the request was cancelled", code="request_cancelled", status=499)
        if deadline is not None and time.monotonic() >= deadline:
            raise Expired


class Pace:
    """Merging under load (spec api T-15): the more streams, the longer a reader lets text gather between chunks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams = 0

    def enter(self) -> None:
        with self._lock:
            self._streams += 1

    def leave(self) -> None:
        with self._lock:
            self._streams -= 1

    def gap_s(self) -> float:
        """0 for a handful of streams, where the sleep would cost more than the chunk it saves."""
        return min(self._streams * 0.0004, 0.1) if self._streams > 3 else 0.0


class EventStream:
    """The body of a streamed reply: an iterator of bytes for threads and for loops. Use one of the two, once."""

    def __init__(
        self, work: Work, answer: Answer, pace: Pace, timeout: float | None, interval_ms: int | None = None
    ) -> None:
        """timeout: seconds. interval_ms: the least time between two chunks; None: what `pace` says."""
        self._work = work
        self._answer = answer
        self._pace = pace
        self._timeout = timeout
        self._interval_ms = interval_ms
        self._last = 0.0
        self._paced = False
        self._done = False
        self._opened = False

    def __iter__(self) -> EventStream:
        return self

    def __aiter__(self) -> EventStream:
        return self

    def __next__(self) -> bytes:
        opening = self._open()
        if opening:
            return opening
        deadline = self._deadline()
        try:
            while not self._done:
                wait = self._gap()
                if wait > 0:
                    time.sleep(wait)
                chunk = self._absorb(self._work.collect(deadline))
                if chunk:
                    return chunk
        except Expired:
            self.close()
            raise
        except Exception as exc:
            failure = self._fail(exc)
            if failure:
                return failure
        except BaseException:
            self.close()
            raise
        raise StopIteration

    async def __anext__(self) -> bytes:
        opening = self._open()
        if opening:
            return opening
        deadline = self._deadline()
        try:
            while not self._done:
                wait = self._gap()
                if wait > 0:
                    await sleep(wait)
                chunk = self._absorb(await self._work.acollect(deadline))
                if chunk:
                    return chunk
        except Expired:
            self.close()
            raise
        except Exception as exc:
            failure = self._fail(exc)
            if failure:
                return failure
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    def close(self) -> None:
        self._done = True
        if self._work.running:
            self._work.cancel()
        if self._paced:
            self._paced = False
            self._pace.leave()

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _open(self) -> bytes:
        if self._opened or self._done:
            return b""
        self._opened = True
        return self._answer.opening() + self._answer.take()  # with what came before the head of the stream left

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _gap(self) -> float:
        """Seconds to let text gather; none before the first chunk, nor where reading makes it come."""
        if self._last == 0.0 or self._work.guided:
            return 0.0
        gap = self._pace.gap_s() if self._interval_ms is None else self._interval_ms / 1000
        return self._last + gap - time.monotonic() if gap > 0 else 0.0

    def _absorb(self, ready: list[tuple[int, Delta]]) -> bytes:
        for choice, delta in merged(ready):
            self._answer.feed(choice, delta)
        chunk = self._answer.take()
        if not self._work.running:
            chunk += self._answer.close_events()
            self.close()
        elif chunk:
            if not self._paced:
                self._paced = True
                self._pace.enter()
            self._last = time.monotonic()
        return chunk

    def _fail(self, exc: Exception) -> bytes:
        ours = self._done
        self.close()
        return b"" if ours else self._answer.failed(problem_of(exc))


def _slice(deadline: float | None) -> float:
    return SLICE_S if deadline is None else max(0.0, min(SLICE_S, deadline - time.monotonic()))


async def _readable(descriptors: list[int], deadline: float | None) -> None:
    """Return when one of the descriptors is readable or the deadline is over."""
    import asyncio  # half of what a first request would have to import

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        await _readable_trio(descriptors, deadline)
        return
    woken: asyncio.Future[None] = loop.create_future()
    for descriptor in descriptors:
        loop.add_reader(descriptor, _wake, woken)
    timer = None if deadline is None else loop.call_later(max(0.0, deadline - time.monotonic()), _wake, woken)
    try:
        await woken
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
        if timer is not None:
            timer.cancel()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


async def _readable_trio(descriptors: list[int], deadline: float | None) -> None:
    trio = importlib.import_module("trio")

    async def watch(descriptor: int, scope: Any) -> None:
        await trio.lowlevel.wait_readable(descriptor)
        scope.cancel()

    seconds = float("inf") if deadline is None else max(0.0, deadline - time.monotonic())
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for descriptor in descriptors:
                nursery.start_soon(watch, descriptor, nursery.cancel_scope)


async def sleep(seconds: float) -> None:
    """Sleep on whichever loop runs."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await importlib.import_module("trio").sleep(seconds)
        return
    await asyncio.sleep(seconds)
