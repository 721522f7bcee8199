"""What a caller is told of the remote service: headers that show who answered, and failures as error answers of ours.

No key gets into a message, whoever wrote it there. The inner client has tried again already where that made sense, so
every error says that the outer one must not (spec api F-1).
"""

from __future__ import annotations

import json
import time
from typing import Any

from gemmantle.api.common import new_id
from gemmantle.api.problems import Expired, problem_of
from gemmantle.api.protocol import Reply
from gemmantle.arms.call import Call
from gemmantle.arms.credentials import Credentials
from gemmantle.arms.inner_clients import sdk

__all__ = ["Failures", "headers_of"]


def headers_of(call: Call, response: Any, started: float, kind: str) -> list[tuple[str, str]]:
    service = call.service
    headers = [
        ("content-type", f"{kind}; charset=utf-8" if call.stream else kind),
        *common_headers(started, response.headers.get("x-request-id")),
        ("x-gemmantle-region", service.region),
        ("x-gemmantle-reason", service.reason),
    ]
    if service.name:
        headers.append(("x-gemmantle-model", service.name))
    if service.ignored:
        headers.append(("x-gemmantle-ignored", json.dumps(service.ignored)))
    if service.converted:
        headers.append(("x-gemmantle-converted", json.dumps(service.converted)))
    return headers


class Failures:
    """Error replies, without what only the credentials know."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def failure(self, exc: Exception, call: Call, started: float) -> Reply:
        errors = sdk()
        if isinstance(exc, errors.APITimeoutError):
            raise Expired from None
        if isinstance(exc, errors.APIStatusError):
            try:
                body = exc.response.json()
            except ValueError:
                body = None
            error = body.get("error") if isinstance(body, dict) else None
            error = error if isinstance(error, dict) else {}
            text = error.get("message") or (body.get("message") if isinstance(body, dict) else None)
            message = str(text or f"the remote service answered {exc.status_code}")[:2000]
            code = error.get("code") or {401: "invalid_api_key", 403: "permission_denied"}.get(exc.status_code)
            return self.error(
                exc.status_code,
                str(code or "remote_error"),
                message,
                started,
                param=error.get("param"),
                kind=error.get("type"),
                region=call.service.region,
                request_id=exc.response.headers.get("x-request-id"),
            )
        if isinstance(exc, errors.APIConnectionError):
            cause = type(exc.__cause__ or exc).__name__
            return self.error(
                502, "remote_error", f"the remote service cannot be reached ({cause})", started,
                region=call.service.region,
            )  # fmt: skip
        if isinstance(exc, errors.OpenAIError):
            return self.error(401, "invalid_api_key", str(exc), started, region=call.service.region)
        raise exc

    def refused(self, exc: Exception, started: float) -> Reply:
        """A request that was not sent."""
        if isinstance(exc, sdk().OpenAIError):
            return self.error(401, "invalid_api_key", str(exc), started)
        problem = problem_of(exc)
        error = problem.error()
        return self.error(
            problem.status, problem.code, problem.message, started, param=problem.param, kind=error["type"]
        )

    def error(
        self,
        status: int,
        code: str,
        message: str,
        started: float,
        *,
        param: object = None,
        kind: object = None,
        region: str = "",
        request_id: str | None = None,
    ) -> Reply:
        """The inner client has tried again already, so the outer one must not (spec api F-1)."""
        if not isinstance(kind, str):
            kind = "server_error" if status >= 500 else "invalid_request_error"
            kind = {401: "authentication_error", 403: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
        headers = [
            ("content-type", "application/json"),
            *common_headers(started, request_id),
            ("x-should-retry", "false"),
        ]
        if region:
            headers.append(("x-gemmantle-region", region))
        error = {
            "message": self._credentials.scrub(message),
            "type": kind,
            "param": param if isinstance(param, str) else None,
            "code": code,
        }
        return Reply(status, headers, json.dumps({"error": error}, separators=(",", ":")).encode("ascii"))


def common_headers(started: float, request_id: str | None) -> list[tuple[str, str]]:
    return [
        ("x-request-id", request_id or new_id("req_")),
        ("openai-processing-ms", str(int((time.perf_counter() - started) * 1000))),
        ("x-gemmantle-arm", "remote"),
    ]
