"""One request and its answer over the ASGI callables: disconnects, refusals that arrive, errors wherever it stands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gemmantle.api.common import new_id
from gemmantle.api.problems import Problem
from gemmantle.api.stream import event

__all__ = ["Exchange", "Gone", "Headers", "Message", "keep_alive"]

Message = MutableMapping[str, Any]
Headers = list[tuple[str, str]]

_LINGER_S = 2.0  # how long a refused body is read on, so that the refusal arrives before the connection ends
_KEEP_ALIVE = b": keep-alive\n\n"


class Gone(Exception):
    """The caller left."""


class Exchange:
    """One request and its answer over the ASGI callables."""

    def __init__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.origin = self.headers.get("origin")
        self.receive = receive
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # ASGI servers run tasks
        self.status = 0
        self.held_bytes = 0
        self.has_body_left = True
        self.is_whole = False  # all of the request came
        self.is_stream = False
        self.gone = False
        self.stopped = False
        self._send = send
        self._extra: Headers = []
        self._ended = False
        self._watcher: asyncio.Task[None] | None = None

    def allow_origin(self) -> None:
        self._extra += [("access-control-allow-origin", self.origin or ""), ("vary", "origin")]

    def watch(self) -> None:
        """From here on a caller that leaves ends the work."""
        self._watcher = asyncio.create_task(self._watch())

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self._ended:
            self.gone = True
            self.task.cancel()

    def stop(self) -> None:
        if not self._ended:
            self.stopped = True
            self.task.cancel()

    async def begin(self, status: int, headers: Headers, *, stream: bool = False) -> None:
        self.status = status
        self.is_stream = stream
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*headers, *self._extra]]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        self._ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def finish(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, ("content-length", str(len(body)))])
        self._ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, problem: Problem, *, linger: bool = False) -> None:
        """An error as the whole answer. `linger`: a body may be under way; closing on it would lose the answer."""
        body = problem.body()
        headers = [("content-type", "application/json"), ("x-request-id", new_id("req_")), *problem.headers()]
        if not (linger and self.has_body_left and self._may_have_body()):
            await self.finish(problem.status, headers, body)
            return
        await self.begin(problem.status, [*headers, ("content-length", str(len(body))), ("connection", "close")])
        await self.write(body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (message := await self.receive())["type"] != "http.disconnect" and message.get("more_body"):
                    pass
        await self.end()

    async def fail(self, problem: Problem) -> None:
        """An error, wherever the answer stands: as the answer, or as the last event of a stream (spec api C-3)."""
        if self.status == 0:
            await self.refuse(problem)
        elif self.is_stream and not self._ended:
            await self.write(event(json.dumps({"error": problem.error()}, separators=(",", ":"))))
            await self.end()

    def _may_have_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


async def keep_alive(exchange: Exchange, interval_s: float) -> None:
    """Comments while the first token is awaited (spec api T-17), so that nothing between takes the line for dead."""
    while True:
        await asyncio.sleep(interval_s)
        await exchange.write(_KEEP_ALIVE)
