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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmantle import bulk, evaluate, hub
from gemmantle.api.protocol import Generation, Profile, Sampling
from gemmantle.bulk import Result, TokenLogprob, Usage
from gemmantle.cells import loaded_here
from gemmantle.errors import EngineClosed, ForkedEngineError, RequestError, UnsupportedHardware
from gemmantle.evaluate import Score

if TYPE_CHECKING:
    import numpy as np
    import openai

    from gemmantle.arms.remote import Remote
    from gemmantle.batch import BatchSummary
    from gemmantle.chat import Prompt
    from gemmantle.chat.tokenizer import Tokenizer
    from gemmantle.structured import Compiler

__all__ = ["Engine", "Result", "Score", "TokenLogprob", "Usage", "check_options", "load"]

EXTRA_OPTIONS = ("max_concurrency", "default_sampling", "default_reasoning", "unknown_fields", "state_path")

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
    state_path: str


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
    fallback: Remote | None = None,
    state_path: str | os.PathLike[str] | None = None,
) -> Engine:
    """Open a model: a folder, a .gguf file, an embedded name, or a name that is already on disk.

    device: auto, cpu, reference or cuda. threads: None for one per core. mode: exact (f32 throughout) or fast (on the
    CPU: 8-bit activations where weights are packed, see docs/decisions/0006). max_context: tokens of prompt plus
    answer, None for what the checkpoint allows. deterministic: the same bits alone and in a batch. max_concurrency:
    sequences that run at once. default_sampling: "model" takes omitted sampling fields from the checkpoint, "openai"
    samples plainly. default_reasoning: none or high. unknown_fields: error or report.
    fallback: a `gemmantle.remote(...)` for what clients ask and this engine cannot do; data then leaves the machine.
    state_path: a file (SQLite) that keeps stored responses, files and batches; None keeps them in this process.
    Raises LoadError (see `gemmantle.errors`), or ValueError for an argument out of range.
    """
    if fallback is not None:
        # Every other argument, whatever there is: the pair calls this function again without `fallback`.
        options = {name: value for name, value in locals().items() if name not in ("model", "fallback")}
        paired: Engine = importlib.import_module("gemmantle.arms.pair").load_with_fallback(model, options, fallback)
        return paired
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
        state_path=state_path,
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
        state_path="" if state_path is None else os.path.abspath(state_path),
    )
    engine = _shared(settings)
    loaded_here(engine)
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
    state_path: str | os.PathLike[str] | None = None,
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
    if state_path is not None and (not isinstance(state_path, (str, os.PathLike)) or not os.fspath(state_path)):
        raise ValueError(f"state_path is {state_path!r}; it must be the path of a file or None")


class Engine:
    """A loaded model. All methods may be called from any thread. Made by `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._references = 1
        self._closed = False
        self._opened: _Opened | None = None

    # -- generating

    def generate(
        self,
        requests: Iterable[dict[str, Any]],
        *,
        ordered: bool = True,
        on_result: Callable[[Result], object] | None = None,
    ) -> Iterator[Result]:
        """Answer requests; many run at once, and only as many are taken from the iterable as keep the engine full.

        A request is a dict with `prompt` (text, which gets one BOS, or ids, taken as they are) or `messages`, and
        sampling fields under their API names; a prompt without max_tokens gets 16, as in the API. RequestError, at its
        turn, names the request and the field.

        ordered: results come in the order of the requests; False gives each as soon as it has ended, and its `index`
        says which it is. on_result: all requests run in this call, each result goes to it, and the iterator is empty.
        """
        results = bulk.generate(self, requests, 2 * self._settings.max_concurrency, ordered)
        if on_result is None:
            return results
        for result in results:
            on_result(result)
        return iter(())

    def score(self, items: Iterable[Any], *, mode: str = "pair") -> list[Any]:
        """Log-likelihoods (spec api 11.1).

        mode "pair": items are (context, continuation), both text or both ids; gives a list of Score.
        mode "choice": items are (context, [continuation, ...]); gives a list of lists of Score.
        mode "rolling": items are texts or ids; gives a list of Score over all tokens, the first conditioned on BOS.
        """
        return evaluate.score(self, items, mode, 2 * self._settings.max_concurrency)

    def run_batch(self, src: Any, dst: str | os.PathLike[str], *, resume: bool = True) -> BatchSummary:
        """Answer JSONL requests into a JSONL file (spec api 7.3), many at once, and print one summary to stderr.

        src: a file, or an iterable of lines or dicts: {custom_id, method, url, body} or {recordId, modelInput}. dst
        gets one line for each, in the order they end, failures beside successes. resume: ids that dst already answers
        are left alone, so a run that was killed is simply started again; False empties dst first. ValueError, before
        anything runs, for a line without an id of its own.
        """
        batch = importlib.import_module("gemmantle.batch")
        handler = _clients().handler_for(self)
        workers = 2 * self._settings.max_concurrency
        summary: BatchSummary = batch.run(handler, src, dst, model=self.name, workers=workers, resume=resume)
        batch.report(summary)
        return summary

    def logits(
        self,
        ids: Sequence[int],
        *,
        chunks: list[int] | None = None,
        last_only: bool = False,
        reuse: bool = False,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits after the final softcap, float32 [n, vocabulary] ([1, vocabulary] with last_only).

        chunks: sizes in which the prompt is run, summing to n; the result does not depend on them. reuse, with
        last_only: the K and V of positions before may come from earlier requests; otherwise all is computed.
        """
        opened = self._use()
        array: np.ndarray[Any, np.dtype[np.float32]] = opened.engine.logits(
            _id_array(ids), chunks=chunks, last_only=last_only, reuse=reuse
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

    def asgi(self, **options: Any) -> Any:
        """An ASGI application that answers from this engine, for any asyncio server; it needs no extra package.

        Options are those of `gemmantle.server.Application`: keys, hosts, origins, limits.
        """
        server = importlib.import_module("gemmantle.server")
        return server.Application(server.ServedModels([self]), **options)

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
        """Counters of the running engine: queued, running, blocks, steps, tokens, hit rate, times as histograms."""
        return dict(self._use().engine.stats())

    @property
    def name(self) -> str:
        return self._settings.name

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def state_path(self) -> str | None:
        """Where stored responses, files and batches are kept; None for this process alone."""
        return self._settings.state_path or None

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
    def bos_id(self) -> int:
        return self._use().bos_id()

    @property
    def profile(self) -> Profile:
        return self._use().profile

    def submit(self, ids: Sequence[int], sampling: Sampling) -> Generation:
        opened = self._use()
        generation: Generation = opened.engine.submit(_id_array(ids), opened.core.SamplingParams(**vars(sampling)))
        return generation

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        thinking: bool,
        *,
        preserve_thinking: bool = False,
    ) -> Prompt:
        opened = self._use()
        render = importlib.import_module("gemmantle.chat").render
        prompt: Prompt = render(
            messages, tools=tools, thinking=thinking, series=opened.series, preserve_thinking=preserve_thinking
        )
        return prompt.with_tokenizer(opened.words())

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        """Ids of a text prompt: exactly one BOS, also where the text spells one already (spec api R-8)."""
        return self._use().encode_prompt(text, add_bos)

    def token_bytes(self, token_id: int) -> bytes:
        pieces = self._use().pieces
        return pieces[token_id] if token_id < len(pieces) else b""

    def structured(self) -> Compiler:
        return self._use().structured()

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
        eos_ids = _eos_ids(generation, config) if self.tokenizer is None else list(self.tokenizer.eos_ids)
        self.engine = self.core.Engine(
            self.model,
            vocabulary,
            eos_ids=eos_ids,
            max_context=settings.max_context,
            max_sequences=settings.max_concurrency,
            deterministic=settings.deterministic,
        )
        self.series = str(self.config.get("series") or "large")  # prompts of the E series differ (prompting 3.3)
        self.profile = self._profile(settings, generation, eos_ids)
        self._structured: Compiler | None = None
        self._structured_lock = threading.Lock()

    def structured(self) -> Compiler:
        """Made on first use: it takes a second at the released vocabulary."""
        with self._structured_lock:
            if self._structured is None:
                tokenizer = self.words()
                compiler = importlib.import_module("gemmantle.structured").Compiler
                self._structured = compiler(
                    tokenizer.pieces(),
                    tokenizer.special,
                    tokenizer.control,
                    tokenizer.eos_ids,
                    tokenizer.encode,
                    self.profile.vocab_size,
                )
            return self._structured

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

    def _thought_ids(self, marker: str, text: str) -> tuple[int, ...]:
        if self.tokenizer is None or marker not in self.tokenizer.special:
            return ()
        written, control = self.tokenizer.encode(text), self.tokenizer.special[marker]
        return (control, *written) if text != "\n" else (*written, control)

    def _follows_chat_format(self, path: Path, special: dict[str, int], eos_ids: list[int]) -> bool:
        """A base model has the control strings too, but its files end answers elsewhere or carry no template."""
        if "<|turn>" not in special or special.get("<turn|>") not in eos_ids:
            return False
        return path.is_dir() or "tokenizer.chat_template" in self.core.Checkpoint(str(path)).keys()  # noqa: SIM118

    def _profile(self, settings: Settings, generation: dict[str, Any], eos_ids: list[int]) -> Profile:
        info = self.model.info()
        special = {} if self.tokenizer is None else self.tokenizer.special
        plain = settings.default_sampling == "openai"
        listed = generation.get("suppress_tokens") or (self.tokenizer.suppress_tokens if self.tokenizer else [])
        raw_suppress = [token for token in listed if isinstance(token, int)]
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
            is_chat=self._follows_chat_format(Path(settings.path), special, eos_ids),
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
            eos_ids=tuple(eos_ids),
            thought_open=self._thought_ids("<|channel>", "thought\n"),
            thought_end=self._thought_ids("<channel|>", "\n"),
        )


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
        keys: list[str] = _core().Checkpoint(str(path)).keys()
        return str(path) if "tokenizer.ggml.tokens" in keys else None
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


def _eos_ids(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    """Where generation stops without a tokenizer; generation_config.json wins (spec prompting 2.1)."""
    for source in (generation, config, config.get("text_config")):
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        values = value if isinstance(value, list) else [value]
        found = [token for token in values if type(token) is int]
        if found:
            return found
    return []


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
