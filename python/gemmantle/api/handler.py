"""The OpenAI surface as one handler: request -> reply, with or without an event loop.

The in-process transports, and later a server, stand in front of the same `Handler`. It knows routes, not HTTP
libraries; every failure leaves it as an answer (spec api T-8), save `Expired`, which each door turns into its own
timeout, and what interrupts the caller itself.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

from gemmantle.api import chat, completions, embeddings, files, models, responses, stored, stored_chats
from gemmantle.api.background import State, state_at
from gemmantle.api.chat_store import StoredChat
from gemmantle.api.common import new_id
from gemmantle.api.helpers import HELPERS, tokenizer_info
from gemmantle.api.problems import Expired, Problem, problem_of
from gemmantle.api.protocol import ByteStream, ModelSource, Profile, Reply, Request, ServingEngine
from gemmantle.api.repeats import Repeats
from gemmantle.api.schemas import parse_body
from gemmantle.api.stream import Answer, EventStream, Pace, Work, encode_json
from gemmantle.errors import RequestError

__all__ = ["Handler"]

_LARGE_BODY = 32 << 10  # above this, validating and encoding is moved off the event loop
# Fields that may make a grammar, which takes milliseconds, and a second the first time.
_HEAVY = {
    "tools", "response_format", "structured_outputs", "grammar", "json_schema", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar",
}  # fmt: skip

_Start = Callable[[dict[str, Any], ServingEngine, Callable[[], State]], tuple[Work, Answer]]
_GENERATING: dict[str, _Start] = {
    "/chat/completions": lambda body, engine, state: chat.start(body, engine, _keeper(state)),
    "/completions": lambda body, engine, _: completions.start(body, engine),
    "/responses": lambda body, engine, state: responses.start(body, engine, state()),
}
_BATCH_WORKERS = 32
_COUNTING = "/responses/input_tokens"
_CHATS = "/chat/completions"
_STORED_CHATS = f"{_CHATS}/"
# Routes that look something up, and what they answer; their own subroutes check their verbs themselves.
_LOOKUPS = {
    **dict.fromkeys((*HELPERS, _COUNTING, "/embeddings"), ("POST",)),
    "/models": ("GET",),
    "/tokenizer_info": ("GET",),
    "/files": ("GET", "POST"),
    "/batches": ("GET", "POST"),
}
_FOLDERS = ("/files/", "/batches/", "/responses/", _STORED_CHATS)


class Handler:
    """Answers requests with the models of one source. Safe from any thread; bound to no loop."""

    def __init__(self, source: ModelSource, state_path: str | os.PathLike[str] | None = None) -> None:
        """state_path: a file that keeps stored responses; None for the store of this process. ValueError, now and not
        at the first request, where it is no such file."""
        self._source = source
        self._state_path = state_path
        if state_path is not None:
            state_at(state_path)
        self._pace = Pace()
        self._repeats = Repeats()

    def handle(self, request: Request) -> Reply:
        """Blocks until the answer, or the head of the stream, is there."""
        started = time.perf_counter()
        try:
            start = _route(request)
            if start is None:
                return _found(started, self._look_up(request))
            return self._repeats.run(request, lambda: self._generate(request, start, started))
        except Expired:
            raise
        except Exception as exc:
            return _failed(started, problem_of(exc))

    async def ahandle(self, request: Request) -> Reply:
        """The same without blocking the running loop: loading and large prompts go to a thread."""
        started = time.perf_counter()
        try:
            start = _route(request)
            if start is None:
                if request.method.upper() == "GET":
                    return _found(started, self._look_up(request))
                from anyio import to_thread

                return _found(started, await to_thread.run_sync(self._look_up, request))
            return await self._repeats.arun(request, lambda: self._agenerate(request, start, started))
        except Expired:
            raise
        except Exception as exc:
            return _failed(started, problem_of(exc))

    def _generate(self, request: Request, start: _Start, started: float) -> Reply:
        try:
            deadline = _deadline(request)
            body = parse_body(request.body)
            work, answer, profile = self._begin(body, _model_name(body), start)
            while answer.stream and work.queued:  # a refusal belongs before the head (spec api T-21)
                for choice, delta in work.collect(deadline):
                    answer.feed(choice, delta)
            reply = self._at_once(request, work, answer, profile, started)
            if reply is not None:
                return reply
            while work.running:
                for choice, delta in work.collect(deadline):
                    answer.feed(choice, delta)
            return _done(started, answer.body(), profile.name)
        except Expired:
            raise
        except Exception as exc:
            return _failed(started, problem_of(exc))

    async def _agenerate(self, request: Request, start: _Start, started: float) -> Reply:
        try:
            deadline = _deadline(request)
            body = parse_body(request.body)
            model = _model_name(body)
            if len(request.body) > _LARGE_BODY or body.keys() & _HEAVY or self._source.find(model) is None:
                from anyio import to_thread

                work, answer, profile = await to_thread.run_sync(self._begin, body, model, start)
            else:
                work, answer, profile = self._begin(body, model, start)
            while answer.stream and work.queued:
                for choice, delta in await work.acollect(deadline):
                    answer.feed(choice, delta)
            reply = self._at_once(request, work, answer, profile, started)
            if reply is not None:
                return reply
            while work.running:
                for choice, delta in await work.acollect(deadline):
                    answer.feed(choice, delta)
            return _done(started, answer.body(), profile.name)
        except Expired:
            raise
        except Exception as exc:
            return _failed(started, problem_of(exc))

    def _begin(self, body: dict[str, Any], model: str, start: _Start) -> tuple[Work, Answer, Profile]:
        engine = self._source.find(model) or self._source.load(model)
        work, answer = start(body, engine, self._state)
        return work, answer, engine.profile

    def _at_once(self, request: Request, work: Work, answer: Answer, profile: Profile, started: float) -> Reply | None:
        """The reply that need not wait for the end: of an answer that goes on by itself, or of a stream."""
        detached = answer.detached(work, request.timeout)
        if detached is not None:
            return _found(started, detached, profile.name)
        if answer.stream:
            stream = EventStream(work, answer, self._pace, request.timeout, profile.stream_interval_ms)
            return _found(started, stream, profile.name)
        return None

    def _look_up(self, request: Request) -> dict[str, Any] | bytes | ByteStream:
        path = request.route
        if path == "/embeddings":
            raise embeddings.refuse(parse_body(request.body))
        if path.startswith("/files"):
            return files.serve(request, path.removeprefix("/files").removeprefix("/"), self._state().folder)
        if path.startswith("/batches"):
            name = path.removeprefix("/batches").removeprefix("/")
            return self._state().batches.serve(request, name, self._run_lines)
        if path == _COUNTING:
            body = parse_body(request.body)
            model = _model_name(body)
            return responses.count_tokens(body, self._source.find(model) or self._source.load(model), self._state())
        if path == _CHATS or path.startswith(_STORED_CHATS):
            name = path.removeprefix(_CHATS).removeprefix("/")
            return stored_chats.serve(request, name, self._state().chats, self._source)
        if path.startswith("/responses/"):
            return stored.serve(request, path.removeprefix("/responses/"), self._state())
        if path in HELPERS:
            body = parse_body(request.body)
            model = _model_name(body)
            return HELPERS[path](body, self._source.find(model) or self._source.load(model))
        if path == "/tokenizer_info":
            return tokenizer_info(request, self._source)
        if path == "/models":
            return models.list_models(self._source)
        return models.retrieve(self._source, path.removeprefix("/models/"))

    def _run_lines(self, src: str, dst: str, endpoint: str, progress: Callable[[int, int, int], bool]) -> None:
        """Answer the lines of a batch (see `batches.Runner`)."""
        batch = importlib.import_module("gemmantle.batch")
        batch.run(
            self,
            src,
            dst,
            workers=_BATCH_WORKERS,
            url=endpoint.removeprefix("/v1"),
            on_line=lambda s: progress(s.total, s.skipped + s.succeeded, s.failed),
        )

    def _state(self) -> State:
        """Looked up each time: a child of fork() has none of its parent's."""
        return state_at(self._state_path)


def _route(request: Request) -> _Start | None:
    """The route that generates, None for the ones that look something up; raises for everything else."""
    path, method = request.route, request.method.upper()
    if path in _GENERATING:
        if method == "POST":
            return _GENERATING[path]
        if method == "GET" and path == _CHATS:
            return None
        raise _wrong_verb(path, "POST", method)
    verbs = _LOOKUPS.get(path, ("GET",) if path.startswith("/models/") else None)
    if verbs is not None:
        if method in verbs:
            return None
        raise _wrong_verb(path, " and ".join(verbs), method)
    if path.startswith(_FOLDERS) and path != "/responses/compact":
        return None
    known = ", ".join(sorted({*_GENERATING, *_LOOKUPS}))
    raise RequestError(f"no route {path[:200]}; there are {known}", code="unknown_url")


def _wrong_verb(path: str, verbs: str, found: str) -> RequestError:
    return RequestError(f"{path[:200]} answers {verbs}, not {found}", code="method_not_allowed")


def _keeper(state: Callable[[], State]) -> chat.Keep:
    """The store is opened when there is something to keep."""
    return lambda completion, messages: state().chats.put(StoredChat(completion, messages))


def _model_name(body: dict[str, Any]) -> str:
    name = body.get("model")
    if name is None:
        raise RequestError("`model` is missing", code="missing_required_parameter", param="model")
    if not isinstance(name, str):
        raise RequestError("`model` must be a string: a name, a folder or a .gguf file", param="model")
    return name


def _deadline(request: Request) -> float | None:
    return None if request.timeout is None else time.monotonic() + request.timeout


def _common_headers(started: float, model: str | None = None) -> list[tuple[str, str]]:
    headers = [
        ("x-request-id", new_id("req_")),
        ("openai-processing-ms", str(int((time.perf_counter() - started) * 1000))),
        ("x-gemmantle-arm", "local"),
    ]
    if model is not None:
        headers.append(("x-gemmantle-model", model.encode("ascii", "backslashreplace").decode("ascii")))
    return headers


def _found(started: float, found: dict[str, Any] | bytes | ByteStream, model: str | None = None) -> Reply:
    if isinstance(found, dict):
        return _done(started, found, model)
    if isinstance(found, bytes):
        return Reply(200, [("content-type", "application/octet-stream"), *_common_headers(started)], found)
    headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
    return Reply(200, headers + _common_headers(started, model), found)


def _done(started: float, value: dict[str, Any], model: str | None = None) -> Reply:
    headers = [("content-type", "application/json"), *_common_headers(started, model)]
    ignored = value.get("ignored_parameters")
    if ignored:
        headers.append(("x-gemmantle-ignored", json.dumps(ignored)))
    return Reply(200, headers, encode_json(value).encode("utf-8", "backslashreplace"))


def _failed(started: float, problem: Problem) -> Reply:
    headers = [("content-type", "application/json"), *_common_headers(started), *problem.headers()]
    return Reply(problem.status, headers, problem.body())
