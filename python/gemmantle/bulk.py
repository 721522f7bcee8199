"""`Engine.generate`: many requests without SDK objects, results in their order or as they come.

Requests are validated by the same readers as the client's; only the outside differs: dicts in, `Result` out.
"""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.chat import prepare, rendered
from gemmantle.api.common import admit
from gemmantle.api.constraints import build_grammar
from gemmantle.api.protocol import Delta, Sampling, ServingEngine
from gemmantle.api.schemas import read_chat, read_completion
from gemmantle.api.stream import SLICE_S, Work
from gemmantle.chat.parser import Call, CallPart, Content, OutputParser, Reasoning
from gemmantle.errors import RequestError
from gemmantle.progress import Progress

__all__ = ["Result", "TokenLogprob", "Usage", "generate", "watched"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one result. completion_tokens includes thoughts, calls and the end token."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """One sampled token: natural logarithm of its probability, and (id, logprob) of the likeliest ones."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Result:
    """What `Engine.generate` gives for one request."""

    ids: list[int] = field(default_factory=list)  # every sampled id, the end token included
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[Call] = field(default_factory=list)  # .name, and .arguments as a dict
    finish_reason: str = "stop"  # stop, length or tool_calls
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None  # one entry an id
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))
    index: int = 0  # of its request, from 0 on


_KEPT = 4  # results that may wait for an earlier one, in multiples of `ahead`
_GATHER_S = 0.002  # between two looks at many requests; half of those submitted wait in the engine meanwhile
_BUSY_S = 0.02  # before another try where the engine has no place in its queue and nothing of ours runs


def generate(
    engine: ServingEngine, requests: Iterable[dict[str, Any]], ahead: int, ordered: bool = True
) -> Generator[Result, None, None]:
    """Answer with up to `ahead` requests submitted; what is left is cancelled when the iterator is dropped.

    Ordered, a slow request holds back the results behind it, a bounded number of them. One that finds the queue of the
    engine full is submitted again.
    """
    numbered = enumerate(requests)
    again: deque[tuple[int, Any]] = deque()
    running: dict[int, _Pending] = {}
    done: dict[int, Result | Exception] = {}
    turn = 0
    is_over = False
    wrong: RequestError | None = None  # the request that ends the iteration, after the results of those before it
    try:
        while True:
            while (again or not is_over) and len(running) < ahead and len(running) + len(done) < _KEPT * ahead:
                number, request = again.popleft() if again else next(numbered, (-1, None))
                if number < 0:
                    is_over = True
                    break
                begun = _begin(engine, number, request)
                if not isinstance(begun, RequestError):
                    running[number] = begun
                elif _is_busy(begun):
                    again.appendleft((number, request))
                    break
                else:
                    wrong, is_over = begun, True
            while turn in done if ordered else done:
                yield _result(done.pop(turn if ordered else next(iter(done))))
                turn += 1
            if running:
                again.extend(_wait(running, done))
            elif again:
                time.sleep(_BUSY_S)
            elif wrong is not None:
                raise wrong
            elif is_over:
                return
    finally:
        for pending in running.values():
            pending.work.cancel()


def watched(results: Generator[Result, None, None], progress: Progress) -> Iterator[Result]:
    """The same results, counted; the work behind them ends with this iterator."""
    with contextlib.closing(progress), contextlib.closing(results):
        for result in results:
            progress.add(1, result.usage.completion_tokens)
            yield result


def _wait(running: dict[int, _Pending], done: dict[int, Result | Exception]) -> list[tuple[int, Any]]:
    """Move what has ended from `running` to `done`; blocks until something was said.

    Gives the numbers and requests of those that waited too long for a place.
    """
    if len(running) == 1:
        [pending] = running.values()
        _take(pending, lambda: pending.work.collect(None))
    else:
        poll = select.poll()
        for pending in running.values():
            poll.register(pending.work.generation(0).fileno(), select.POLLIN)
        poll.poll(SLICE_S * 1000)
        for pending in running.values():
            _take(pending, pending.work.ready)
    ended = [number for number, pending in running.items() if pending.error is not None or not pending.work.running]
    turned_away = []
    for number in ended:
        pending = running.pop(number)
        if _is_busy(pending.error):
            turned_away.append((number, pending.request))
        else:
            done[number] = pending.error or pending.finish(number)
    # Constrained ones only go on while they are read.
    if running and not ended and not any(pending.work.guided for pending in running.values()):
        time.sleep(_GATHER_S)
    return turned_away


def _is_busy(error: Exception | None) -> bool:
    return isinstance(error, RequestError) and error.code == "engine_busy"


def _take(pending: _Pending, look: Callable[[], list[tuple[int, Delta]]]) -> None:
    """A failure is raised at the turn of its request, so that the results before it are not lost."""
    try:
        pending.take(look())
    except Exception as exc:
        pending.error = exc


def _begin(engine: ServingEngine, number: int, request: Any) -> _Pending | RequestError:
    """A wrong request is raised at its turn, so that the results before it are not lost."""
    try:
        pending = _submit(engine, request)
        pending.request = request
        return pending
    except RequestError as exc:
        path = f"requests[{number}]" + (f".{exc.param}" if exc.param else "")
        return RequestError(f"requests[{number}]: {exc}", code=exc.code, param=path, status=exc.status)


def _submit(engine: ServingEngine, request: Any) -> _Pending:
    if not isinstance(request, dict) or ("prompt" in request) == ("messages" in request):
        raise RequestError("a request is a dict with either `prompt` or `messages`")
    for name in ("n", "stream"):
        if request.get(name) not in (None, 1, False):
            raise RequestError(f"`{name}` belongs to the client; send several requests", param=name)
    body = {"model": engine.profile.name, **request}
    if "messages" in body:
        return _submit_chat(engine, body)
    return _submit_prompt(engine, body)


def _submit_chat(engine: ServingEngine, body: dict[str, Any]) -> _Pending:
    read = read_chat(body, engine.profile)
    prompt = rendered(read, engine)
    ids = prompt.ids()
    grammar, guide = prepare(read, engine, prompt, ids)
    work, _ = admit(engine, [(ids, [read.sampling])], "messages", guide)
    return _Pending(work, read.sampling, OutputParser(read.tools, constrained=grammar is not None))


def _submit_prompt(engine: ServingEngine, body: dict[str, Any]) -> _Pending:
    if isinstance(body.get("logprobs"), bool):  # as in chat requests
        top = body.pop("top_logprobs", None)
        body["logprobs"] = (top or 0) if body["logprobs"] else None
    if hasattr(body["prompt"], "tolist"):
        body["prompt"] = body["prompt"].tolist()
    read = read_completion(body, engine.profile)
    if len(read.prompts) != 1 or read.echo:
        raise RequestError("one prompt a request, without echo: send several requests", param="prompt")
    [prompt] = read.prompts
    ids = engine.encode_prompt(prompt, read.add_bos) if isinstance(prompt, str) else prompt
    grammar = build_grammar(engine, read.sampling, read.form)
    guide = None if grammar is None else (lambda: grammar.guide((), read.sampling.suppress))
    work, _ = admit(engine, [(ids, [read.sampling])], "prompt", guide)
    return _Pending(work, read.sampling, None)


class _Pending:
    """A request on its way."""

    def __init__(self, work: Work, sampling: Sampling, parser: OutputParser | None) -> None:
        self.work = work
        self.request: Any = None  # as it came
        self.error: Exception | None = None
        self._parser = parser
        self._result = Result(logprobs=[] if sampling.logprobs >= 0 else None)
        self._arguments: list[str] = []  # of the call that is open, under a grammar
        self._name = ""
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def take(self, ready: list[tuple[int, Delta]]) -> None:
        for _, delta in ready:
            self._add(delta)

    def finish(self, number: int) -> Result:
        result = self._result
        result.index = number
        result.text = "".join(self._content)
        result.reasoning = "".join(self._reasoning) or None
        if result.tool_calls:
            result.finish_reason = "tool_calls"
        return result

    def _add(self, delta: Delta) -> None:
        result = self._result
        for token in delta.tokens:
            result.ids.append(token.id)
            if result.logprobs is not None:
                result.logprobs.append(TokenLogprob(token.id, token.logprob, list(token.top)))
        if self._parser is None:
            self._content.extend(text for _, text in delta.pieces)
        else:
            for channel, text in delta.pieces:
                self._take(self._parser.feed(channel, text))
        if delta.finish_reason is not None:
            if self._parser is not None:
                self._take(self._parser.finish(delta.finish_reason))
            result.finish_reason = "length" if delta.finish_reason == "length" else "stop"
            result.stop_reason = delta.stop_reason
            if delta.usage is not None:
                result.usage = Usage(*delta.usage)

    def _take(self, events: Iterable[Any]) -> None:
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
            elif isinstance(event, Reasoning):
                self._reasoning.append(event.text)
            elif isinstance(event, CallPart):
                self._name = event.name or self._name
                self._arguments.append(event.text)
                if event.is_end:
                    self._result.tool_calls.append(Call(self._name, json.loads("".join(self._arguments))))
                    self._arguments.clear()
            else:
                self._result.tool_calls.append(event)


def _result(done: Result | Exception) -> Result:
    if isinstance(done, Exception):
        raise done
    return done
