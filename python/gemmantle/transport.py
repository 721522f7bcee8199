"""HTTP transports that answer in process: request -> `Handler` -> response, for both families, sync and async.

A transport adds nothing to an answer. It reads the timeout, hands the request over and, when time is up, raises what
the caller understands: the SDK's own APITimeoutError where an SDK of 2.31 or newer is above (it lets its own errors
through, so the work is not repeated), the family's ReadTimeout elsewhere. Nothing else is ever raised from here. Older
SDKs repeat a request that timed out; the repeat is told at once what the first attempt found.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

from gemmantle._http import HttpLibrary, library
from gemmantle.api.problems import Expired
from gemmantle.api.protocol import Reply, Request, RequestHandler

__all__ = ["async_transport", "sync_transport"]

_REPEAT_S = 60.0  # a repeat by the SDK comes within its back-off of seconds


def sync_transport(handler: RequestHandler, family: str | None = None) -> Any:
    """A transport for `httpx2.Client` or `httpx.Client`."""
    return _classes(library(family))[0](handler)


def async_transport(handler: RequestHandler, family: str | None = None) -> Any:
    """A transport for `httpx2.AsyncClient` or `httpx.AsyncClient`; not bound to any loop."""
    return _classes(library(family))[1](handler)


class _Transport:
    """What both kinds share."""

    http: HttpLibrary

    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self._expired: dict[bytes, float] = {}  # digests of timed out requests, and when

    def __reduce__(self) -> NoReturn:
        raise TypeError("clients and transports do not pickle; pickle the engine and make a client from it there")

    def _request(self, request: Any, body: bytes) -> Request:
        timeout = (request.extensions.get("timeout") or {}).get("read")
        if request.headers.get("x-stainless-retry-count", "0") != "0" and self._has_expired(body):
            raise Expired
        query = request.url.query.decode("ascii", "replace")
        return Request(request.method, request.url.path, request.headers, body, timeout, query)

    def _has_expired(self, body: bytes) -> bool:
        return time.monotonic() - self._expired.get(_digest(body), -math.inf) < _REPEAT_S

    def _note_expired(self, body: bytes) -> None:
        now = time.monotonic()
        for digest, when in list(self._expired.items()):
            if now - when > _REPEAT_S:
                self._expired.pop(digest, None)
        self._expired[_digest(body)] = now

    def _response(self, reply: Reply, request: Any, stream_class: Any) -> Any:
        if isinstance(reply.body, bytes):
            return self.http.response(reply.status, headers=reply.headers, content=reply.body, request=request)
        stream = stream_class(reply.body, self.http, request)
        return self.http.response(reply.status, headers=reply.headers, stream=stream, request=request)


class _SyncTransport(_Transport):
    stream_class: Any

    def handle_request(self, request: Any) -> Any:
        try:
            reply = self._handler.handle(self._request(request, request.read()))
        except Expired:
            self._note_expired(request.content)
            raise _timeout(self.http, request) from None
        return self._response(reply, request, self.stream_class)

    def close(self) -> None:
        """The handler outlives its transports: other clients may share it."""


class _AsyncTransport(_Transport):
    stream_class: Any

    async def handle_async_request(self, request: Any) -> Any:
        try:
            reply = await self._handler.ahandle(self._request(request, await request.aread()))
        except Expired:
            self._note_expired(request.content)
            raise _timeout(self.http, request) from None
        return self._response(reply, request, self.stream_class)

    async def aclose(self) -> None:
        """See `_SyncTransport.close`."""


class _Stream:
    def __init__(self, events: Any, http: HttpLibrary, request: Any) -> None:
        self._events = events
        self._http = http
        self._request = request


class _SyncStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._events
        except Expired:
            raise _timeout(self._http, self._request, in_stream=True) from None
        finally:
            self._events.close()

    def close(self) -> None:
        self._events.close()


class _AsyncStream(_Stream):
    """An iterator of its own, not an async generator: those are finished by the loop, and the loop may be gone."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await self._events.__anext__()
            return chunk
        except Expired:
            raise _timeout(self._http, self._request, in_stream=True) from None

    async def aclose(self) -> None:
        await self._events.aclose()


@functools.cache
def _classes(http: HttpLibrary) -> tuple[Any, Any]:
    """Both transport classes of a family, derived from its own base classes."""
    sync_stream = type("EventByteStream", (_SyncStream, http.sync_stream), {})
    async_stream = type("AsyncEventByteStream", (_AsyncStream, http.async_stream), {})
    sync = type("LocalTransport", (_SyncTransport, http.sync_transport), {"http": http, "stream_class": sync_stream})
    async_ = type(
        "AsyncLocalTransport", (_AsyncTransport, http.async_transport), {"http": http, "stream_class": async_stream}
    )
    return sync, async_


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _timeout(http: HttpLibrary, request: Any, in_stream: bool = False) -> Exception:
    """The exception for an expired request; its work is cancelled already. Every SDK lets its own pass in a stream."""
    if "x-stainless-lang" in request.headers and (in_stream or _sdk_passes_its_errors()):
        error: Exception = importlib.import_module("openai").APITimeoutError(request=request)
        return error
    seconds = (request.extensions.get("timeout") or {}).get("read")
    timeout: Exception = http.read_timeout(f"no answer within {seconds} s; the work was cancelled", request=request)
    return timeout


@functools.cache
def _sdk_passes_its_errors() -> bool:
    major, minor = importlib.import_module("openai").__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 31)
