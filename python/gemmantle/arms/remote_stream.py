"""The body of a streamed remote answer, for both kinds of doors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from gemmantle._http import library
from gemmantle.api.problems import Expired
from gemmantle.arms.wire import Rewriter

__all__ = ["RemoteStream"]


class RemoteStream:
    """Bytes of an inner response, rewritten as they come; closing it closes the connection behind it."""

    def __init__(self, response: Any, asynchronous: bool, rewriter: Rewriter, note_id: Callable[[str], None]) -> None:
        self._response = response
        self._asynchronous = asynchronous
        self._rewriter = rewriter
        self._note_id = note_id
        self._bytes: Any = None
        self._done = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._bytes = self._bytes or self._response.iter_bytes()
        while not self._done:
            try:
                data = next(self._bytes, None)
            except Exception as exc:
                self.close()
                return self._broken(exc)
            except BaseException:
                self.close()
                raise
            chunk = self._rewritten(data)
            if chunk:
                return chunk
        self.close()
        raise StopIteration

    async def __anext__(self) -> bytes:
        self._bytes = self._bytes or self._response.aiter_bytes()
        while not self._done:
            try:
                data = await anext(self._bytes, None)
            except Exception as exc:
                await self.aclose()
                return self._broken(exc)
            except BaseException:
                self._done = True
                raise
            chunk = self._rewritten(data)
            if chunk:
                return chunk
        raise StopAsyncIteration

    def close(self) -> None:
        self._done = True
        if not self._asynchronous:  # the other kind of connection closes on its loop only: `aclose`
            self._response.close()

    async def aclose(self) -> None:
        self._done = True
        await self._response.aclose()

    def _rewritten(self, data: bytes | None) -> bytes:
        if data is None:
            self._done = True
            return self._rewriter.finish()
        chunk = self._rewriter.feed(data)
        if self._rewriter.response_id is not None:
            self._note_id(self._rewriter.response_id)
        return chunk

    def _broken(self, exc: Exception) -> bytes:
        if isinstance(exc, library().read_timeout):
            raise Expired from None
        return self._rewriter.failure(f"the remote stream broke off ({type(exc).__name__})", "remote_error")
