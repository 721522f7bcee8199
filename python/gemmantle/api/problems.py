"""Exceptions -> status, OpenAI error body and retry headers (spec api 8). The only place that knows the table."""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import dataclass

from gemmantle import errors

__all__ = ["Expired", "Problem", "problem_of"]

_log = logging.getLogger("gemmantle")

# Codes that are not 400 and "invalid_request_error"; the statuses of a caller's own mistakes stand with RequestError.
_STATUS = {
    **errors.REQUEST_STATUS,
    "invalid_api_key": 401,
    "permission_denied": 403,
    "internal_error": 500,
    "corrupt_file": 500,
    "model_loading": 503,
    "engine_draining": 503,
    "insufficient_memory": 503,
    "device_error": 503,
}
_TYPE = {
    "invalid_api_key": "authentication_error",
    "permission_denied": "authentication_error",
    "request_timeout": "timeout_error",
    "response_not_cancellable": "conflict",
    "batch_not_cancellable": "conflict",
    "engine_busy": "rate_limit_error",
}
_RETRY_AFTER_MS = {"engine_busy": 500, "model_loading": 1000, "engine_draining": 1000, "insufficient_memory": 1000}


class Expired(Exception):
    """The time the caller allowed is over; the work is cancelled already. Doors turn it into their own timeout."""


@dataclass(frozen=True)
class Problem:
    """An error as it goes over the wire."""

    code: str
    message: str
    param: str | None = None
    retry: bool | None = None  # None: what the table says

    @property
    def status(self) -> int:
        return _STATUS.get(self.code, 400)

    @property
    def retry_after_ms(self) -> int | None:
        return None if self.retry is False else _RETRY_AFTER_MS.get(self.code)

    def headers(self) -> list[tuple[str, str]]:
        """The SDK obeys x-should-retry over its own list of statuses; a wait of 0 would count as absent."""
        after = self.retry_after_ms
        if after is None:
            return [("x-should-retry", "false")]
        return [("x-should-retry", "true"), ("retry-after-ms", str(after))]

    def error(self) -> dict[str, str | None]:
        kind = _TYPE.get(self.code, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        return json.dumps({"error": self.error()}, separators=(",", ":")).encode("ascii")


def problem_of(exc: BaseException) -> Problem:
    """Never raises: what is not in the tree of `gemmantle.errors` is a bug and is logged under an id."""
    if isinstance(exc, errors.RequestError):
        return Problem(exc.code, str(exc), exc.param)
    if isinstance(exc, (errors.ModelNotFound, errors.GatedModel)):
        return Problem("model_not_found", str(exc), "model")
    if isinstance(exc, errors.CorruptFile):
        return Problem("corrupt_file", str(exc), "model")
    if isinstance(exc, errors.OutOfMemory):
        return Problem("insufficient_memory", str(exc))
    if isinstance(exc, errors.UnsupportedModel):
        return Problem("unsupported_value", str(exc), "model")
    if isinstance(exc, (errors.DeviceError, errors.LoadError)):
        return Problem("device_error", str(exc))
    if isinstance(exc, errors.EngineClosed):
        # A closed engine does not come back by itself, so a repeat would only wait.
        return Problem("engine_draining", str(exc), retry=False)
    if isinstance(exc, errors.ForkedEngineError):
        return Problem("internal_error", str(exc))
    if isinstance(exc, UnicodeEncodeError):
        found = exc.object[exc.start : exc.start + 1].encode("unicode_escape").decode("ascii")
        return Problem("invalid_value", f"the text holds {found}, half of a surrogate pair: send whole characters")
    if isinstance(exc, RecursionError):
        return Problem("invalid_value", "the request is nested too deeply; flatten it")
    if isinstance(exc, MemoryError):
        return Problem("insufficient_memory", "out of memory while answering; send fewer or shorter requests")
    dump = "err_" + secrets.token_hex(6)
    _log.error("internal error %s", dump, exc_info=exc)
    what = f"{type(exc).__name__}: {exc}"
    return Problem("internal_error", f"internal error {dump}: {what[:500]}; the log named 'gemmantle' has the trace")
