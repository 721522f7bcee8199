"""A local handler with a remote arm behind it: which of the two answers is settled before the first byte, once.

The rules are in `fallback`; this file asks them. What made a request leave is on its answer; where one could not leave
although it might have, the local error says so in the header x-gemmantle-fallback. An id the remote service gave stays
with the remote service.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemmantle.api.common import new_id
from gemmantle.api.handler import Handler
from gemmantle.api.problems import Expired, problem_of
from gemmantle.api.protocol import ModelSource, Reply, Request, ServingEngine
from gemmantle.api.schemas import parse_body
from gemmantle.api.stream import encode_json, sleep
from gemmantle.arms.capabilities import ROUTES
from gemmantle.arms.fallback import trigger_of, trigger_of_code
from gemmantle.errors import GemmantleError, RequestError

if TYPE_CHECKING:
    from gemmantle.arms.remote import Remote

__all__ = ["FallbackHandler"]

_WISHES = ("never", "allow", "only")
_HEADER = "x-gemmantle-fallback"
_FAILED_LOAD_S = 60.0  # a load that failed is not tried again before
_SLICE_S = 0.02
_STATE = re.compile(r"/responses/([^/]+)(?:/.*)?")


@dataclass
class _Asked:
    """A request as far as the decision needs it."""

    request: Request
    route: str
    body: dict[str, Any] | None
    wish: str
    response_id: str | None  # the state it builds on, or is about


class FallbackHandler:
    """`api.Handler` for callers who gave `fallback=`."""

    def __init__(
        self,
        local: Handler,
        source: ModelSource,
        remote: Remote,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = local
        self._source = source
        self._remote = remote
        self._clock = clock
        self._lock = threading.Lock()
        self._loads: dict[str, Future[ServingEngine]] = {}
        self._failed: dict[str, tuple[float, GemmantleError]] = {}

    def handle(self, request: Request) -> Reply:
        try:
            steps = self._decide(_read(request))
            step = _next_step(steps, None)
            while not isinstance(step, Reply):
                if step is None:
                    time.sleep(_SLICE_S)
                    step = _next_step(steps, None)
                else:
                    step = _next_step(steps, step.run(self))
            return step
        except Expired:
            raise
        except Exception as exc:
            return _refusal(exc)

    async def ahandle(self, request: Request) -> Reply:
        try:
            steps = self._decide(_read(request))
            step = _next_step(steps, None)
            while not isinstance(step, Reply):
                if step is None:
                    await sleep(_SLICE_S)
                    step = _next_step(steps, None)
                else:
                    step = _next_step(steps, await step.arun(self))
            return step
        except Expired:
            raise
        except Exception as exc:
            return _refusal(exc)

    def _decide(self, asked: _Asked) -> Generator[_Step | None, Reply | None, Reply]:
        """Yields None to wait a little, or a step to run, whose reply it is sent; returns the answer."""
        until = None if asked.request.timeout is None else time.monotonic() + asked.request.timeout
        if asked.response_id is not None and self._remote.owns(asked.response_id):
            if asked.wish == "never":
                return _refusal(_other_arm(asked.response_id))
            return _taken((yield _Step(asked, until, "state")))
        if asked.wish == "only":
            return _taken((yield _Step(asked, until, "only")))
        if asked.wish == "never" or asked.body is None or asked.route not in ROUTES:
            return _taken((yield _Step(asked, until)))
        reason = yield from self._before(asked, until)
        local: Reply | None = None
        if reason is None:
            local = yield _Step(asked, until)
            reason = _reason_of(local)
        elif isinstance(reason, Reply):
            local, reason = reason, _reason_of(reason)
        if reason is None or reason not in self._remote.triggers:
            return _taken(local) if local is not None else _taken((yield _Step(asked, until)))
        obstacle = self._obstacle(asked, reason)
        if obstacle is not None:
            kept = local or _taken((yield _Step(asked, until)))
            kept.headers.append((_HEADER, f"not taken ({reason}): {obstacle}"))
            return kept
        return _taken((yield _Step(asked, until, reason)))

    def _before(self, asked: _Asked, until: float | None) -> Generator[None, None, Any]:
        """Load the model and wait out a queue: gives the reason to leave, a local error reply, or None."""
        name = asked.body.get("model") if asked.body else None
        if not isinstance(name, str):
            return None
        # Nobody waits for a way out that is not there.
        may = self._remote.triggers if self._remote.capabilities.remote_name(name) else frozenset()
        engine = self._source.find(name)
        if engine is None:
            started = self._clock()
            future = self._load(name)
            while not future.done():
                _check(until)
                if "loading" in may and self._clock() - started >= self._remote.loading_s:
                    return "loading"
                yield
            failure = future.exception()
            if failure is not None:
                reason = trigger_of(failure)
                reply = _refusal(failure)
                return reply if reason is None else _Refused(reply, reason)
            engine = future.result()
        stats = getattr(engine, "stats", None)
        if stats is None or "busy" not in may:
            return None
        started = self._clock()
        while self._waiting(stats):
            _check(until)
            if self._clock() - started >= self._remote.busy_s:
                return "busy"
            yield
        return None

    def _waiting(self, stats: Callable[[], dict[str, Any]]) -> bool:
        try:
            return int(stats().get("queued", 0)) > 0
        except GemmantleError:
            return False  # the request itself will say it better

    def _load(self, name: str) -> Future[ServingEngine]:
        """Off this thread, once for all who wait; a failure is remembered for a while."""
        with self._lock:
            future = self._loads.get(name)
            if future is not None:
                return future
            future = Future()
            known = self._failed.get(name)
            if known is not None and self._clock() - known[0] < _FAILED_LOAD_S:
                future.set_exception(known[1])
                return future
            self._loads[name] = future
        threading.Thread(target=self._run_load, args=(name, future), name="gemmantle-load", daemon=True).start()
        return future

    def _run_load(self, name: str, future: Future[ServingEngine]) -> None:
        try:
            engine = self._source.load(name)
        except BaseException as exc:
            with self._lock:
                self._loads.pop(name, None)
                if isinstance(exc, GemmantleError) and len(self._failed) < 1000:
                    self._failed[name] = (self._clock(), exc)
            future.set_exception(exc)
            return
        with self._lock:
            self._loads.pop(name, None)
            self._failed.pop(name, None)
        future.set_result(engine)

    def _obstacle(self, asked: _Asked, reason: str) -> str | None:
        """Why a request that might leave cannot."""
        if asked.response_id is not None:
            return "it builds on an answer that is kept here"
        if self._remote.capabilities.remote_name((asked.body or {}).get("model")) is None:
            return "the remote service does not have this model"
        if not self._remote.reachable():
            return "the remote service failed before, and is left alone for now"
        if reason == "unsupported":
            try:
                self._remote.check(asked.route, asked.body or {})
            except RequestError:
                return "the remote model does not take it either"
        return None


class _Refused(Reply):
    """A local failure with the trigger it is."""

    def __init__(self, reply: Reply, reason: str) -> None:
        super().__init__(reply.status, reply.headers, reply.body)
        self.reason = reason


@dataclass
class _Step:
    """One arm to be asked; `reason` None is the local one."""

    asked: _Asked
    until: float | None
    reason: str | None = None

    def run(self, handler: FallbackHandler) -> Reply:
        request = self._request()
        if self.reason is None:
            return handler._local.handle(request)
        return handler._remote.answer(request, self.reason)

    async def arun(self, handler: FallbackHandler) -> Reply:
        request = self._request()
        if self.reason is None:
            return await handler._local.ahandle(request)
        return await handler._remote.aanswer(request, self.reason)

    def _request(self) -> Request:
        if self.until is None:
            return self.asked.request
        _check(self.until)
        return replace(self.asked.request, timeout=self.until - time.monotonic())


def _read(request: Request) -> _Asked:
    """Take the wish out of the request: the arms do not see it."""
    path = request.route
    wish = _wish(request.headers.get(_HEADER), _HEADER)
    found = _STATE.fullmatch(path)
    if request.method.upper() != "POST" or found is not None:
        return _Asked(request, "", None, wish or "allow", found[1] if found else None)
    route = path.strip("/")
    if route not in (*ROUTES, "completions"):
        return _Asked(request, route, None, wish or "allow", None)
    try:
        body = parse_body(request.body)
    except RequestError:
        return _Asked(request, route, None, wish or "allow", None)  # the arm says what is wrong with it
    if "fallback" in body:
        own = _wish(body.pop("fallback"), "fallback")
        if own is not None and wish is not None and own != wish:
            raise RequestError(f"`fallback` and the header {_HEADER} differ; send one of them", param="fallback")
        wish = own or wish
        request = replace(request, body=encode_json(body).encode("utf-8", "backslashreplace"))
    previous = body.get("previous_response_id")
    return _Asked(request, route, body, wish or "allow", previous if isinstance(previous, str) else None)


def _wish(value: object, name: str) -> str | None:
    if value is not None and value not in _WISHES:
        raise RequestError(f"`{name}` is {value!r}; it must be one of {', '.join(_WISHES)}", param=name)
    return str(value) if value is not None else None


def _reason_of(reply: Reply | None) -> str | None:
    if isinstance(reply, _Refused):
        return reply.reason
    if reply is None or reply.status < 400 or not isinstance(reply.body, bytes):
        return None
    try:
        error = json.loads(reply.body).get("error", {})
    except (ValueError, AttributeError):
        return None
    return trigger_of_code(error.get("code")) if isinstance(error, dict) else None


def _refusal(exc: BaseException) -> Reply:
    problem = problem_of(exc)
    headers = [("content-type", "application/json"), ("x-request-id", new_id("req_")), ("x-gemmantle-arm", "local")]
    headers += problem.headers()
    return Reply(problem.status, headers, problem.body())


def _other_arm(response_id: str) -> RequestError:
    return RequestError(
        f"'{response_id[:100]}' is kept by the remote service and `fallback` is 'never'; send 'allow' or 'only', or "
        "the whole conversation",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _taken(reply: Reply | None) -> Reply:
    assert reply is not None
    return reply


def _next_step(steps: Generator[_Step | None, Reply | None, Reply], reply: Reply | None) -> _Step | Reply | None:
    """The end of a decision is its answer."""
    try:
        return steps.send(reply)
    except StopIteration as end:
        answer: Reply = end.value
        return answer


def _check(until: float | None) -> None:
    if until is not None and time.monotonic() >= until:
        raise Expired
