"""Engines: loaded models that generate, score and serve. Load, share, pickle, close.

`load` with equal arguments gives the same `Engine` within a process; every `load` wants its own `close`, the last one
frees the model. An engine pickles as its arguments and opens again on first use where it is unpickled. After fork() the
child gets a ForkedEngineError, in words: the engine's threads did not come along.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmantle import hub
from gemmantle.api.protocol import Delta, Generation, Profile, Sampling
from gemmantle.errors import EngineClosed, ForkedEngineError, RequestError, UnsupportedHardware

if TYPE_CHECKING:
    import numpy as np
    import openai

    from gemmantle.chat import Prompt
    from gemmantle.chat.tokenizer import Tokenizer

__all__ = ["Engine", "Result", "Score", "TokenLogprob", "ToolCall", "Usage", "check_options", "load"]

EXTRA_OPTIONS = ("max_concurrency", "default_sampling", "default_reasoning", "unknown_fields")

_DEVICES = ("auto", "cpu", "reference", "cuda")
_MODES = ("exact", "fast")


@dataclass(frozen=True)
class Settings:
    """The arguments of `load`, resolved: the identity of an engine, and what it pickles as."""

    path: str
    name: str
    aliases: tuple[str, ...]
    device: str
    threads: int
    mode: str
    max_context: int
    deterministic: bool
    max_concurrency: int
    default_sampling: str
    default_reasoning: str
    unknown_fields: str


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


@dataclass(frozen=True)
class ToolCall:
    """A call the model made; `arguments` is a dict."""

    name: str
    arguments: dict[str, Any]


@dataclass
class Result:
    """What `Engine.generate` gives for one request."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str = "stop"  # stop, length or tool_calls
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None  # one entry a sampled token, the end token included
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a continuation (or of a whole text, in mode "rolling"), in nats."""

    logprob: float
    is_greedy: bool  # every token was the likeliest one
    token_logprobs: list[float]
    n_tokens: int
    n_bytes: int
    n_chars: int


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    mode: str = "exact",
    max_context: int | None = None,
    deterministic: bool = False,
    max_concurrency: int | None = None,
    default_sampling: str = "model",
    default_reasoning: str = "none",
    unknown_fields: str = "error",
) -> Engine:
    """Open a model: a folder, a .gguf file, an embedded name, or a name that is already on disk.

    device: auto, cpu, reference or cuda. threads: None for one per core. mode: exact (f32 throughout) or fast.
    max_context: tokens of prompt plus answer, None for what the checkpoint allows. deterministic: the same bits alone
    and in a batch. max_concurrency: sequences that run at once. default_sampling: "model" takes omitted sampling fields
    from the checkpoint, "openai" samples plainly. default_reasoning: none or high. unknown_fields: error or report.
    Raises LoadError (see `gemmantle.errors`), or ValueError for an argument out of range.
    """
    check_options(
        device=device,
        threads=threads,
        mode=mode,
        max_context=max_context,
        deterministic=deterministic,
        max_concurrency=max_concurrency,
        default_sampling=default_sampling,
        default_reasoning=default_reasoning,
        unknown_fields=unknown_fields,
    )
    found = hub.resolve(model)
    settings = Settings(
        path=str(found.path.absolute()),
        name=found.name,
        aliases=found.aliases,
        device=device,
        threads=threads or 0,
        mode=mode,
        max_context=max_context or 0,
        deterministic=deterministic,
        max_concurrency=max_concurrency or 16,
        default_sampling=default_sampling,
        default_reasoning=default_reasoning,
        unknown_fields=unknown_fields,
    )
    engine = _shared(settings)
    try:
        engine.profile  # noqa: B018 - opens the model now, so that errors belong to this call
    except BaseException:
        engine.close()
        raise
    return engine


def check_options(
    *,
    device: str = "auto",
    threads: int | None = None,
    mode: str = "exact",
    max_context: int | None = None,
    deterministic: bool = False,
    max_concurrency: int | None = None,
    default_sampling: str = "model",
    default_reasoning: str = "none",
    unknown_fields: str = "error",
) -> None:
    """ValueError naming the argument, the value found and what it may be."""
    for name, value, allowed in (
        ("device", device, _DEVICES),
        ("mode", mode, _MODES),
        ("default_sampling", default_sampling, ("model", "openai")),
        ("default_reasoning", default_reasoning, ("none", "high")),
        ("unknown_fields", unknown_fields, ("error", "report")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    for name, number in (("threads", threads), ("max_context", max_context), ("max_concurrency", max_concurrency)):
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{name} is {number!r}; it must be a positive integer or None")
    if not isinstance(deterministic, bool):
        raise ValueError(f"deterministic is {deterministic!r}; it must be True or False")


class Engine:
    """A loaded model. All methods may be called from any thread. Made by `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._references = 1
        self._closed = False
        self._opened: _Opened | None = None

    # -- generating

    def generate(self, requests: Iterable[dict[str, Any]]) -> Iterator[Result]:
        """Answer requests, in order; many run at once.

        A request is a dict with `prompt` (text, which gets one BOS, or ids, taken as they are) or `messages`, and
        sampling fields under their API names. RequestError, at its turn, names the request and the field.
        """
        opened = self._use()
        ahead = 2 * self._settings.max_concurrency
        waiting: deque[_Pending | RequestError] = deque()
        try:
            for number, request in enumerate(requests):
                waiting.append(self._begin(opened, number, request))
                if len(waiting) >= ahead:
                    yield _finish(waiting.popleft())
            while waiting:
                yield _finish(waiting.popleft())
        finally:
            for pending in waiting:
                if isinstance(pending, _Pending):
                    pending.generation.cancel()

    def score(self, items: Iterable[Any], *, mode: str = "pair") -> list[Any]:
        """Log-likelihoods (spec api 11.1).

        mode "pair": items are (context, continuation), both text or both ids; gives a list of Score.
        mode "choice": items are (context, [continuation, ...]); gives a list of lists of Score.
        mode "rolling": items are texts or ids; gives a list of Score over all tokens, the first conditioned on BOS.
        """
        opened = self._use()
        if mode == "pair":
            return self._score_pairs(opened, [_pair(item, number) for number, item in enumerate(items)])
        if mode == "choice":
            groups = [_pair(item, number) for number, item in enumerate(items)]
            flat = [(context, continuation) for context, continuations in groups for continuation in continuations]
            scores = iter(self._score_pairs(opened, flat))
            return [[next(scores) for _ in continuations] for _, continuations in groups]
        if mode == "rolling":
            return [self._score_rolling(opened, item) for item in items]
        raise ValueError(f"mode is {mode!r}; it must be pair, rolling or choice")

    def logits(
        self, ids: Sequence[int], *, chunks: list[int] | None = None, last_only: bool = False
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits after the final softcap, float32 [n, vocabulary] ([1, vocabulary] with last_only).

        chunks: sizes in which the prompt is run, summing to n; the result does not depend on them.
        """
        opened = self._use()
        array: np.ndarray[Any, np.dtype[np.float32]] = opened.engine.logits(
            _id_array(ids), chunks=chunks, last_only=last_only
        )
        return array

    # -- words

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without BOS; control strings in it stay text."""
        return self._use().words().encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._use().words().decode(list(ids))

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        reasoning_effort: str = "none",
    ) -> Prompt:
        """The prompt of a conversation; its `ids()` knows this engine's tokenizer."""
        if reasoning_effort not in ("none", "high"):
            raise RequestError(
                f"reasoning_effort is {reasoning_effort!r}; it must be 'none' or 'high'", param="reasoning_effort"
            )
        return self.render_chat(messages, tools, reasoning_effort == "high")

    # -- the OpenAI surface

    def client(self, **options: Any) -> openai.OpenAI:
        """A genuine `openai.OpenAI` that answers from this engine. Options go to the SDK."""
        client: openai.OpenAI = _clients().client_for(self, **options)
        return client

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        client: openai.AsyncOpenAI = _clients().async_client_for(self, **options)
        return client

    def transport(self, family: str | None = None) -> Any:
        """An HTTP transport for `httpx2.Client` or `httpx.Client`, for people who build the client themselves."""
        return _transports().sync_transport(_clients().handler_for(self), family)

    def async_transport(self, family: str | None = None) -> Any:
        return _transports().async_transport(_clients().handler_for(self), family)

    # -- facts

    def info(self) -> dict[str, Any]:
        """What is loaded: model, files, device, mode, sizes, defaults, fingerprint."""
        opened = self._use()
        profile = opened.profile
        return {
            "name": profile.name,
            "path": self._settings.path,
            "max_context": profile.max_context,
            "vocabulary": profile.vocab_size,
            "is_chat": profile.is_chat,
            "tokenizer": opened.tokenizer_file,
            "fingerprint": profile.fingerprint,
            "defaults": {
                "temperature": profile.default_temperature,
                "top_p": profile.default_top_p,
                "top_k": profile.default_top_k,
            },
            **opened.model.info(),
            "config": opened.model.config(),
        }

    def stats(self) -> dict[str, Any]:
        """Counters of the running engine: queued, running, blocks, steps, tokens."""
        return dict(self._use().engine.stats())

    @property
    def name(self) -> str:
        return self._settings.name

    def close(self) -> None:
        """Give back one `load`; the last one ends running requests with EngineClosed and frees the model."""
        with _registry_lock:
            if self._closed:
                return
            self._references -= 1
            if self._references > 0:
                return
            self._closed = True
            if _registry.get(self._settings) is self:
                del _registry[self._settings]
        self._release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared, (self._settings,)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._opened else "not opened yet"
        return f"<gemmantle.Engine {self._settings.name!r} device={self._settings.device!r} {state}>"

    # -- what the API layer uses (gemmantle.api.protocol.ServingEngine)

    @property
    def profile(self) -> Profile:
        return self._use().profile

    def submit(self, ids: Sequence[int], sampling: Sampling) -> Generation:
        opened = self._use()
        generation: Generation = opened.engine.submit(_id_array(ids), opened.core.SamplingParams(**vars(sampling)))
        return generation

    def render_chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, thinking: bool) -> Prompt:
        opened = self._use()
        render = importlib.import_module("gemmantle.chat").render
        prompt: Prompt = render(messages, tools=tools, thinking=thinking, series=opened.series)
        return prompt.with_tokenizer(opened.words())

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        """Ids of a text prompt: exactly one BOS, also where the text spells one already (spec api R-8)."""
        return self._use().encode_prompt(text, add_bos)

    def token_bytes(self, token_id: int) -> bytes:
        pieces = self._use().pieces
        return pieces[token_id] if token_id < len(pieces) else b""

    # -- inside

    def _use(self) -> _Opened:
        """The open engine; opens it where this object came out of a pickle."""
        opened = self._opened
        if opened is not None:
            if opened.pid != os.getpid():
                raise ForkedEngineError(
                    f"engine '{self._settings.name}' was opened before fork(), and its threads do not exist in this "
                    "child: start processes with the 'spawn' method, or call gemmantle.load in the child"
                )
            return opened
        with self._lock:
            if self._closed:
                raise EngineClosed(f"engine '{self._settings.name}' is closed; load it again")
            if self._opened is None:
                self._opened = _Opened(self._settings)
                _open_engines.add(self)
            return self._opened

    def _release(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if opened.pid == os.getpid():
            opened.engine.close()
        else:
            # Destroying it here would join threads that fork() did not copy.
            _left_by_parent.append(opened)

    def _begin(self, opened: _Opened, number: int, request: Any) -> _Pending | RequestError:
        try:
            return self._submit_native(opened, request)
        except RequestError as exc:
            path = f"requests[{number}]" + (f".{exc.param}" if exc.param else "")
            return RequestError(f"requests[{number}]: {exc}", code=exc.code, param=path, status=exc.status)

    def _submit_native(self, opened: _Opened, request: Any) -> _Pending:
        schemas = importlib.import_module("gemmantle.api.schemas")
        common = importlib.import_module("gemmantle.api.common")
        if not isinstance(request, dict) or ("prompt" in request) == ("messages" in request):
            raise RequestError("a request is a dict with either `prompt` or `messages`")
        body = {"model": self._settings.name, **request}
        parser = None
        if "messages" in body:
            read = schemas.read_chat(body, opened.profile)
            prompt = self.render_chat(read.messages, read.tools, read.thinking)
            read.sampling.start_in_thought = prompt.starts_in_thought
            ids = prompt.ids()
            parser = importlib.import_module("gemmantle.chat.parser").OutputParser(read.tools)
        else:
            if isinstance(body.get("logprobs"), bool):
                top = body.pop("top_logprobs", None)
                body["logprobs"] = (top or 0) if body["logprobs"] else None
            if hasattr(body["prompt"], "tolist"):
                body["prompt"] = body["prompt"].tolist()
            read = schemas.read_completion(body, opened.profile)
            if len(read.prompts) != 1 or read.echo:
                raise RequestError("one prompt a request, without echo: send several requests", param="prompt")
            [prompt_value] = read.prompts
            ids = opened.encode_prompt(prompt_value) if isinstance(prompt_value, str) else list(prompt_value)
        if read.n != 1 or read.stream:
            raise RequestError("n and stream belong to the client; send several requests", param="n")
        work, _ = common.admit(self, [(ids, [read.sampling])], "messages" if parser else "prompt")
        return _Pending(work.generation(0), parser, work, read.sampling.logprobs >= 0)

    def _score_pairs(self, opened: _Opened, pairs: Sequence[tuple[Any, Any]]) -> list[Score]:
        sequences = []
        for context, continuation in pairs:
            if isinstance(context, str) and isinstance(continuation, str):
                sequences.append(_split_text(opened, context, continuation))
            elif not isinstance(context, str) and not isinstance(continuation, str):
                prefix = list(context) or [opened.bos_id()]
                text = opened.text_of(list(continuation))
                sequences.append((prefix + list(continuation), len(prefix), text))
            else:
                raise RequestError("context and continuation must both be text or both be ids")
        return self._score_ids(sequences)

    def _score_rolling(self, opened: _Opened, item: Any) -> Score:
        """Disjoint windows, each conditioned on the token before it: BOS, later the end of the window before."""
        ids = opened.words().encode(item) if isinstance(item, str) else list(item)
        text = item if isinstance(item, str) else opened.text_of(ids)
        size = opened.profile.max_context - 1
        sequence = [opened.bos_id(), *ids]
        windows = [(sequence[start : start + size + 1], 1, "") for start in range(0, len(ids), size)]
        parts = self._score_ids(windows)
        logprobs = [value for part in parts for value in part.token_logprobs]
        return _score(logprobs, all(part.is_greedy for part in parts), text)

    def _score_ids(self, sequences: Sequence[tuple[list[int], int, str]]) -> list[Score]:
        """Sequences are (ids, how many of them are context, text of the rest)."""
        running: deque[Generation] = deque()
        scores: list[Score] = []
        position = 0
        try:
            for ids, _, _ in sequences:
                self._check_score_length(ids)
                running.append(self.submit(ids, Sampling(max_tokens=0, prompt_logprobs=1)))
                if len(running) >= 2 * self._settings.max_concurrency:
                    scores.append(_read_score(running.popleft(), sequences[position]))
                    position += 1
            while running:
                scores.append(_read_score(running.popleft(), sequences[position]))
                position += 1
        finally:
            for generation in running:
                generation.cancel()
        return scores

    def _check_score_length(self, ids: list[int]) -> None:
        window = self.profile.max_context
        if len(ids) > window:
            raise RequestError(
                f"context and continuation have {len(ids)} tokens; the model's context holds {window}: shorten the "
                "context, or load with a larger max_context",
                code="context_length_exceeded",
                param="items",
            )


class _Opened:
    """The native objects of an open engine, its tokenizer and its profile."""

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self.core = _core()
        self.model = self.core.Model.load(
            settings.path, device=settings.device, threads=settings.threads, mode=settings.mode
        )
        path = Path(settings.path)
        self.tokenizer_file = _tokenizer_file(path)
        self.tokenizer: Tokenizer | None = None
        self.pieces: list[bytes] = []
        vocabulary = None
        if self.tokenizer_file is not None:
            tokenizer_class = importlib.import_module("gemmantle.chat.tokenizer").Tokenizer
            self.tokenizer = tokenizer_class.from_file(self.tokenizer_file)
            self.pieces = self.tokenizer.pieces()
            vocabulary = self.core.Vocabulary(self.pieces, list(self.tokenizer.control), dict(self.tokenizer.special))
        self.missing_tokenizer = (
            f"'{settings.name}' has no tokenizer: no tokenizer.json and no tokenizer.model in {path}; send token ids"
        )
        generation = _json_file(path / "generation_config.json") if path.is_dir() else {}
        self.config: dict[str, Any] = dict(self.model.config())
        config = _json_file(path / "config.json") if path.is_dir() else {}
        eos_ids = _eos_ids(generation, config, self.tokenizer)
        self.engine = self.core.Engine(
            self.model,
            vocabulary,
            eos_ids=eos_ids,
            max_context=settings.max_context,
            max_sequences=settings.max_concurrency,
            deterministic=settings.deterministic,
        )
        self.series = "e" if _has_per_layer_inputs(self.config) else "large"
        self.profile = self._profile(settings, generation, eos_ids)

    def words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(self.missing_tokenizer, code="unsupported_value", param="prompt")
        return self.tokenizer

    def bos_id(self) -> int:
        bos = None if self.tokenizer is None else self.tokenizer.bos_id
        return 2 if bos is None else int(bos)

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        if not add_bos:
            return self.words().encode(text)
        return [self.bos_id(), *self.words().encode(text.removeprefix("<bos>"))]

    def text_of(self, ids: list[int]) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode(ids)

    def _profile(self, settings: Settings, generation: dict[str, Any], eos_ids: list[int]) -> Profile:
        info = self.model.info()
        special = {} if self.tokenizer is None else self.tokenizer.special
        plain = settings.default_sampling == "openai"
        raw_suppress = [token for token in generation.get("suppress_tokens") or [] if isinstance(token, int)]
        chat_suppress = set(raw_suppress)
        if self.tokenizer is not None:
            chat_suppress |= set(self.tokenizer.suppress)
        formats = info.get("formats")
        return Profile(
            name=settings.name,
            fingerprint=_fingerprint(settings, self.core.version(), self.tokenizer_file),
            max_context=int(self.engine.max_context()),
            vocab_size=int(self.config["vocab_size"]),
            created=int(time.time()),
            aliases=settings.aliases,
            device=str(info.get("device", settings.device)),
            mode=settings.mode,
            quantization=formats if isinstance(formats, str) else ", ".join(map(str, formats or [])),
            # A base model has the control strings in its vocabulary, but does not end with the end of a turn.
            is_chat="<|turn>" in special and special.get("<turn|>") in eos_ids,
            has_tokenizer=self.tokenizer is not None,
            missing_tokenizer=self.missing_tokenizer,
            default_temperature=1.0 if plain else float(generation.get("temperature") or 1.0),
            default_top_p=1.0 if plain else float(generation.get("top_p") or 0.95),
            default_top_k=0 if plain else int(generation.get("top_k") or 64),
            default_reasoning=settings.default_reasoning,
            unknown_fields=settings.unknown_fields,
            chat_suppress=tuple(sorted(chat_suppress)),
            raw_suppress=tuple(raw_suppress),
            call_id=special.get("<|tool_call>"),
        )


class _Pending:
    """A native request on its way."""

    def __init__(self, generation: Generation, parser: Any, work: Any, wants_logprobs: bool) -> None:
        self.generation = generation
        self.result = Result(logprobs=[] if wants_logprobs else None)
        self._parser = parser
        self._work = work  # cancels the generation when this object is dropped
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def finish(self) -> Result:
        while self._work.running:
            for _, delta in self._work.collect(None):
                self._add(delta)
        result = self.result
        result.text = "".join(self._content)
        result.reasoning = "".join(self._reasoning) or None
        if result.tool_calls:
            result.finish_reason = "tool_calls"
        return result

    def _add(self, delta: Delta) -> None:
        result = self.result
        for token in delta.tokens:
            result.ids.append(token.id)
            if result.logprobs is not None:
                result.logprobs.append(TokenLogprob(token.id, float(token.logprob), list(token.top)))
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

    def _take(self, events: list[Any]) -> None:
        parser = importlib.import_module("gemmantle.chat.parser")
        for event in events:
            if isinstance(event, parser.Content):
                self._content.append(event.text)
            elif isinstance(event, parser.Reasoning):
                self._reasoning.append(event.text)
            elif isinstance(event, parser.Call):
                self.result.tool_calls.append(ToolCall(event.name, event.arguments))


def _finish(pending: _Pending | RequestError) -> Result:
    if isinstance(pending, RequestError):
        raise pending
    return pending.finish()


_registry_lock = threading.RLock()
_registry: weakref.WeakValueDictionary[Settings, Engine] = weakref.WeakValueDictionary()
_registry_pid = os.getpid()
_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_left_by_parent: list[object] = []


def _shared(settings: Settings) -> Engine:
    """The engine of these settings in this process; made, but not opened, where there is none."""
    global _registry_pid
    with _registry_lock:
        if _registry_pid != os.getpid():
            _left_by_parent.extend(_registry.values())
            _registry.clear()
            _registry_pid = os.getpid()
        engine = _registry.get(settings)
        if engine is not None:
            engine._references += 1
            return engine
        engine = Engine(settings)
        _registry[settings] = engine
        return engine


@atexit.register
def _close_all() -> None:
    """The worker threads end before the interpreter does."""
    for engine in list(_open_engines):
        with contextlib.suppress(Exception):
            engine._release()


def _core() -> Any:
    try:
        return importlib.import_module("gemmantle._core")
    except ImportError as exc:
        raise UnsupportedHardware(
            f"the native module of gemmantle cannot be loaded ({exc}); install the package with pip, which builds it"
        ) from exc


def _clients() -> Any:
    return importlib.import_module("gemmantle.client")


def _transports() -> Any:
    return importlib.import_module("gemmantle.transport")


def _id_array(ids: Sequence[int]) -> Any:
    """int32 [n]; refuses what is no list of ids instead of truncating it."""
    import numpy as np

    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise RequestError(f"ids have shape {array.shape} and type {array.dtype}; they must be a list of token ids")
    if array.size and (int(array.min()) < 0 or int(array.max()) > 2**31 - 1):
        raise RequestError("ids must be token ids of the vocabulary, from 0 on")
    return np.ascontiguousarray(array, dtype=np.int32)


def _tokenizer_file(path: Path) -> str | None:
    if path.is_file():
        return str(path)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return str(path / name)
    return None


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _eos_ids(generation: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer | None) -> list[int]:
    """generation_config.json wins: config.json of the released models lacks one (spec prompting 2.1)."""
    for source in (generation, config, config.get("text_config") or {}):
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return [value]
        if isinstance(value, list) and value:
            return [token for token in value if isinstance(token, int)]
    return [] if tokenizer is None else list(tokenizer.eos_ids)


def _has_per_layer_inputs(config: dict[str, Any]) -> bool:
    """What tells the E series, whose prompts differ (spec prompting 3.3)."""
    return any(bool(config.get(key)) for key in ("hidden_size_per_layer_input", "per_layer_width", "per_layer_size"))


def _fingerprint(settings: Settings, build: str, tokenizer_file: str | None) -> str:
    """Short hash over build, mode, device, and samples of the weight, tokenizer and configuration files (R-6)."""
    digest = hashlib.sha256(f"{build}\0{settings.mode}\0{settings.device}".encode())
    path = Path(settings.path)
    patterns = ("*.safetensors", "*.json", "*.model")
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    for file in files:
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 16))
            handle.seek(max(0, size - (1 << 16)))
            digest.update(handle.read(1 << 16))
    return "fp_" + digest.hexdigest()[:16]


def _pair(item: Any, number: int) -> tuple[Any, Any]:
    if isinstance(item, dict) and "context" in item:
        return item["context"], item.get("continuation", item.get("continuations"))
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise RequestError(f"items[{number}] must be a pair of context and continuation", param=f"items[{number}]")


def _split_text(opened: _Opened, context: str, continuation: str) -> tuple[list[int], int, str]:
    """Encoded together; trailing blanks of the context belong to the continuation (V-1)."""
    bare = context.rstrip()
    moved = context[len(bare) :] + continuation
    whole = opened.encode_prompt(bare + moved)
    prefix = opened.encode_prompt(bare)
    common = 0
    for left, right in zip(whole, prefix, strict=False):
        if left != right:
            break
        common += 1
    return whole, max(1, min(common, len(whole) - 1)), continuation


def _read_score(generation: Generation, sequence: tuple[list[int], int, str]) -> Score:
    ids, context, text = sequence
    while True:
        delta = generation.next(0.05)
        if delta is not None and delta.finish_reason is not None:
            break
    entries = generation.prompt_logprobs[context : len(ids)]
    logprobs = [float(entry.logprob) for entry in entries]
    greedy = all(entry.top and entry.top[0][0] == token for entry, token in zip(entries, ids[context:], strict=True))
    return _score(logprobs, greedy, text)


def _score(logprobs: list[float], is_greedy: bool, text: str) -> Score:
    return Score(
        logprob=float(sum(logprobs)),
        is_greedy=is_greedy,
        token_logprobs=logprobs,
        n_tokens=len(logprobs),
        n_bytes=len(text.encode("utf-8", "replace")),
        n_chars=len(text),
    )
