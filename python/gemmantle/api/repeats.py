"""Plain requests with an Idempotency-Key: same key and body, same answer, running or finished (spec api T-10).

Only answers that succeeded or will never succeed are kept, for a minute. Streams run anew: what was read is gone.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout

from gemmantle.api.problems import Expired
from gemmantle.api.protocol import Reply, Request
from gemmantle.api.stream import sleep

__all__ = ["Repeats"]

_KEEP_S = 60.0
_SLICE_S = 0.05


class Repeats:
    """Answers by key; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[bytes, tuple[float, Future[Reply]]] = {}

    def run(self, request: Request, answer: Callable[[], Reply]) -> Reply:
        key = _key(request)
        if key is None:
            return answer()
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        while True:
            future, is_ours = self._claim(key)
            if is_ours:
                with _Owner(self, key, future) as owner:
                    owner.reply = answer()
                return owner.reply
            while not future.done():
                _check(deadline)
                try:
                    return future.result(_SLICE_S)
                except (FutureTimeout, CancelledError):
                    continue
            if not future.cancelled():
                return future.result()

    async def arun(self, request: Request, answer: Callable[[], Awaitable[Reply]]) -> Reply:
        key = _key(request)
        if key is None:
            return await answer()
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        while True:
            future, is_ours = self._claim(key)
            if is_ours:
                with _Owner(self, key, future) as owner:
                    owner.reply = await answer()
                return owner.reply
            while not future.done():
                _check(deadline)
                await sleep(0.01)
            if not future.cancelled():
                return future.result()

    def _claim(self, key: bytes) -> tuple[Future[Reply], bool]:
        now = time.monotonic()
        with self._lock:
            for old, (until, _) in list(self._entries.items()):
                if until < now:
                    del self._entries[old]
            known = self._entries.get(key)
            if known is not None:
                return known[1], False
            future: Future[Reply] = Future()
            self._entries[key] = (float("inf"), future)
            return future, True

    def settle(self, key: bytes, future: Future[Reply], reply: Reply | None) -> None:
        """Keep a lasting answer; wake the others to run it themselves where there is none."""
        with self._lock:
            if reply is not None and reply.status < 429 and isinstance(reply.body, bytes):
                self._entries[key] = (time.monotonic() + _KEEP_S, future)
            else:
                self._entries.pop(key, None)
        if reply is None or not isinstance(reply.body, bytes):
            future.cancel()
        else:
            future.set_result(reply)


class _Owner:
    """Settles the entry however the answer ends: a cancelled owner must not leave the others waiting."""

    def __init__(self, repeats: Repeats, key: bytes, future: Future[Reply]) -> None:
        self._repeats = repeats
        self._key = key
        self._future = future
        self.reply: Reply = Reply(500, [], b"")
        self._empty = self.reply

    def __enter__(self) -> _Owner:
        return self

    def __exit__(self, *_: object) -> None:
        settled = None if self.reply is self._empty else self.reply
        self._repeats.settle(self._key, self._future, settled)


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Expired


def _key(request: Request) -> bytes | None:
    name = request.headers.get("idempotency-key")
    if not name:
        return None
    digest = hashlib.sha256(f"{name}\0{request.method} {request.path}\0".encode("utf-8", "backslashreplace"))
    digest.update(request.body)
    return digest.digest()
