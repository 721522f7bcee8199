"""The server door: an ASGI application in front of the same handler as the in-process transports.

It owns what only a network needs: keys, limits on size, time and number, disconnects, keep-alive comments, draining,
health, metrics and the chat page. It depends on no server library (`run` runs it on uvicorn) and knows no
route of the API: those are the handler's. It answers only the models it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import importlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemmantle.api.handler import Handler
from gemmantle.api.problems import Expired, Problem, problem_of
from gemmantle.api.protocol import ByteStream, Reply, Request, RequestHandler
from gemmantle.errors import RequestError
from gemmantle.server.exchange import Exchange, Gone, Headers, Message, keep_alive
from gemmantle.server.metrics import CONTENT_TYPE, Metrics
from gemmantle.server.page import page
from gemmantle.server.served import ServedModels

if TYPE_CHECKING:
    from gemmantle.arms.remote import Remote

__all__ = ["Application", "Limits"]

_OPEN = ("/", "/health", "/ready")  # answered without a key: the page asks for one, and probes have none
_DRAINING = Problem("engine_draining", "the server is stopping; try again on another one or after its restart")
_LOADING = Problem("model_loading", "the model is being loaded; try again in a moment")


@dataclass(frozen=True)
class Limits:
    """What one caller, and all callers together, may take."""

    body_bytes: int = 64 << 20
    bodies_bytes: int = 512 << 20  # of all bodies being received or answered
    body_s: float = 60.0  # for the whole body to arrive
    requests: int = 1024  # answered at once
    answer_s: float | None = None  # for a plain answer, or between two chunks of a stream
    reader_s: float = 120.0  # a stream whose reader takes nothing
    keep_alive_s: float = 10.0


class Application:
    """An ASGI application for asyncio servers. `loading` is True until its models are there."""

    def __init__(
        self,
        models: ServedModels,
        *,
        keys: Collection[str] = (),
        hosts: Collection[str] | None = None,
        origins: Collection[str] = (),
        limits: Limits | None = None,
        loading: bool = False,
        state_path: str | os.PathLike[str] | None = None,
        fallback: Remote | None = None,
    ) -> None:
        """state_path: a file that keeps stored responses, chats, files and batches. fallback: what answers where the
        models cannot; data then leaves the machine.
        keys: one of them must come as a bearer token; none for no check. hosts: the names a Host header may hold,
        None for any; a server on this machine only needs them, since a page elsewhere can point its own name here.
        origins: pages of other origins that may call (CORS); a page without leave is refused.
        """
        self.limits = limits or Limits()
        self.loading = loading
        self._models = models
        local = Handler(models, state_path)
        self.handler: RequestHandler = local
        if fallback is not None:
            pair = importlib.import_module("gemmantle.arms.pair")
            self.handler = pair.FallbackHandler(local, models, fallback)
        self._keys = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = frozenset(origins)
        self._metrics = Metrics()
        self._active: set[Exchange] = set()
        self._idle: asyncio.Event | None = None
        self._draining = False
        self._held_bytes = 0
        self._answering = 0  # requests whose body is here: who sends half a body takes no other caller's place

    @property
    def draining(self) -> bool:
        return self._draining

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a server does not pickle; pickle the engine and call its asgi() there")

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, let running ones end; after `limit_s` the rest is ended with an error that says so."""
        self._draining = True
        self._idle = asyncio.Event()
        if self._active:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), limit_s)
        for exchange in list(self._active):
            exchange.stop()
        if self._active:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), 1.0)

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000, "reason": "there are no WebSockets here"})
        else:
            await self._exchange(Exchange(scope, receive, send))

    async def _exchange(self, exchange: Exchange) -> None:
        """One request from head to last byte; whatever happens, it is counted and gives back what it held."""
        started = time.perf_counter()
        self._active.add(exchange)
        try:
            await self._answer(exchange)
        except asyncio.CancelledError:
            if not (exchange.gone or exchange.stopped):
                raise
            if exchange.stopped and not exchange.gone:
                exchange.task.uncancel()
                await exchange.fail(_DRAINING)
        except Gone:
            pass
        except OSError:  # how a server library may tell that the connection broke
            exchange.gone = True
        finally:
            exchange.unwatch()
            self._held_bytes -= exchange.held_bytes
            self._answering -= exchange.is_whole
            self._active.discard(exchange)
            if self._idle is not None and not self._active:
                self._idle.set()
            status = 499 if exchange.gone else exchange.status
            self._metrics.observe(exchange.path, status, time.perf_counter() - started)

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.origin in self._origins:
            exchange.allow_origin()
        refusal = self._refusal(exchange)
        if refusal is not None:
            await exchange.refuse(refusal, linger=True)
            return
        own = self._own_routes().get(exchange.path)
        if own is not None and exchange.method not in ("GET", "HEAD", "OPTIONS"):
            wrong = Problem("method_not_allowed", f"{exchange.path} answers GET, not {exchange.method}")
            await exchange.refuse(wrong, linger=True)
            return
        if own is not None or (exchange.method == "OPTIONS" and exchange.origin in self._origins):
            await exchange.finish(*(own or _preflight)(exchange))
            return
        if self.loading or self._draining:
            await exchange.refuse(_DRAINING if self._draining else _LOADING, linger=True)
            return
        try:
            self._check_room()
            body = await self._body(exchange)
            self._check_room()  # others may have come first
        except RequestError as exc:
            await exchange.refuse(problem_of(exc), linger=True)
            return
        exchange.is_whole = True
        self._answering += 1
        exchange.watch()
        request = Request(
            exchange.method, exchange.path, exchange.headers, body, self.limits.answer_s, query=exchange.query
        )
        del body
        try:
            reply = await self.handler.ahandle(request)
        except Expired:
            await exchange.refuse(_expired(self.limits.answer_s))
            return
        if isinstance(reply.body, bytes):
            await exchange.finish(reply.status, reply.headers, reply.body)
        else:
            await self._stream(exchange, reply, reply.body)

    def _refusal(self, exchange: Exchange) -> Problem | None:
        """Why this caller gets no answer at all, or None."""
        if self._hosts is not None and _host_name(exchange.headers.get("host", "")) not in self._hosts:
            host = exchange.headers.get("host", "")[:100]
            return Problem(
                "permission_denied",
                f"the Host header is '{host}'; this server answers {', '.join(sorted(self._hosts))} "
                "(start it with --allow-host NAME to answer to another name)",
            )
        origin = exchange.origin
        if origin is not None and origin not in self._origins and not _is_same_origin(origin, exchange.headers):
            return Problem(
                "permission_denied",
                f"a page of {origin[:100]} may not call this server (start it with --allow-origin ORIGIN to let it)",
            )
        if not self._keys or exchange.path in _OPEN or exchange.method == "OPTIONS":
            return None
        scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
        found = hashlib.sha256(key.strip(" \t").encode("latin-1")).digest()  # the bytes that came
        # Every key is compared, in time that does not tell how near a guess came.
        if scheme.lower() == "bearer" and sum(hmac.compare_digest(found, known) for known in self._keys):
            return None
        what = "the API key is wrong" if key else "an API key is needed"
        return Problem("invalid_api_key", f"{what}; send 'Authorization: Bearer KEY' with the key of this server")

    def _own_routes(self) -> dict[str, Callable[[Exchange], tuple[int, Headers, bytes]]]:
        return {
            "/": lambda exchange: page(),
            "/health": lambda exchange: _state(503 if self.loading else 200, "loading" if self.loading else "ok"),
            "/ready": lambda exchange: self._readiness(),
            "/version": lambda exchange: _json(200, {"version": importlib.import_module("gemmantle").__version__}),
            "/metrics": lambda exchange: self._measured(),
        }

    def _readiness(self) -> tuple[int, Headers, bytes]:
        if self._draining or self.loading:
            return _state(503, "draining" if self._draining else "loading")
        return _state(200, "ready")

    def _measured(self) -> tuple[int, Headers, bytes]:
        gauges = {
            "http_requests_running": len(self._active) - 1,  # without the one that asks
            "http_streams_running": sum(exchange.is_stream for exchange in self._active),
            "http_body_bytes_held": self._held_bytes,
        }
        stats = []
        for engine in self._models.engines:
            read = getattr(engine, "stats", None)
            if read is not None:
                with contextlib.suppress(Exception):  # a closed or failed engine has no numbers; the others still do
                    stats.append((engine.profile.name, read()))
        return 200, [("content-type", CONTENT_TYPE)], self._metrics.text(gauges, stats).encode()

    async def _body(self, exchange: Exchange) -> bytes:
        """The whole body within its limits. RequestError names the limit; Gone where the caller left."""
        encoding = exchange.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise RequestError(
                f"content-encoding is '{encoding[:40]}'; send the body uncompressed", code="unsupported_media_type"
            )
        length = exchange.headers.get("content-length", "")
        if len(length) < 16 and length.isdigit():
            self._check_size(int(length))
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        exchange.gone = True
                        raise Gone
                    part = message.get("body", b"")
                    self._hold(exchange, len(part))
                    body += part
                    if not message.get("more_body", False):
                        exchange.has_body_left = False
                        return bytes(body)
        except TimeoutError:
            raise RequestError(
                f"{len(body)} bytes of the body came in {self.limits.body_s:g} s, and no more: send it faster",
                code="request_timeout",
            ) from None

    def _check_room(self) -> None:
        if self._answering >= self.limits.requests:
            raise RequestError(
                f"{self.limits.requests} requests are being answered; try again later", code="engine_busy"
            )

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise RequestError(
                f"the request body has {size} bytes or more; the limit is {self.limits.body_bytes}",
                code="request_too_large",
            )

    def _hold(self, exchange: Exchange, more: int) -> None:
        """Count bytes that came: those only announced would let a few callers hold the room without filling it."""
        self._check_size(exchange.held_bytes + more)
        if self._held_bytes + more > self.limits.bodies_bytes:
            raise RequestError(
                f"the bodies of all running requests would hold over {self.limits.bodies_bytes} bytes; try again later",
                code="engine_busy",
            )
        exchange.held_bytes += more
        self._held_bytes += more

    async def _stream(self, exchange: Exchange, reply: Reply, events: ByteStream) -> None:
        comments: asyncio.Task[None] | None = None
        try:
            await exchange.begin(reply.status, [*reply.headers, ("x-accel-buffering", "no")], stream=True)
            comments = asyncio.create_task(keep_alive(exchange, self.limits.keep_alive_s))
            async for chunk in events:
                if comments is not None:
                    comments.cancel()
                    comments = None
                async with asyncio.timeout(self.limits.reader_s):
                    await exchange.write(chunk)
        except Expired:
            await exchange.fail(_expired(self.limits.answer_s))
            return
        except TimeoutError:  # nobody reads: there is nobody to tell either
            exchange.gone = True
            raise Gone from None
        finally:
            if comments is not None:
                comments.cancel()
            await events.aclose()
        await exchange.end()


def _host_name(host: str) -> str:
    return re.sub(r":\d*$", "", host.strip().lower())


def _is_same_origin(origin: str, headers: dict[str, str]) -> bool:
    return origin.partition("://")[2].lower() == headers.get("host", "").lower()


def _json(status: int, value: dict[str, Any]) -> tuple[int, Headers, bytes]:
    return status, [("content-type", "application/json")], json.dumps(value).encode()


def _state(status: int, word: str) -> tuple[int, Headers, bytes]:
    return _json(status, {"status": word})


def _preflight(exchange: Exchange) -> tuple[int, Headers, bytes]:
    asked = exchange.headers.get("access-control-request-headers", "authorization, content-type")
    headers = [
        ("access-control-allow-methods", "GET, POST, DELETE"),
        ("access-control-allow-headers", asked),
        ("access-control-max-age", "600"),
    ]
    return 204, headers, b""


def _expired(seconds: float | None) -> Problem:
    return Problem("request_timeout", f"no answer within {seconds or 0:g} s; the work was cancelled")
