"""Engines: loaded models that generate, score and serve. Load, share, pickle, close.

`load` with equal arguments gives the same `Engine` within a process; every `load` wants its own `close`, the last one
frees the model. An engine pickles as its arguments and opens again on first use where it is unpickled. After fork() the
child gets a ForkedEngineError, in words: the engine's threads did not come along.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from gemmantle import hub
from gemmantle.api.protocol import Generation, Profile, RequestHandler, Sampling
from gemmantle.cells import loaded_here
from gemmantle.doors import HasDoors
from gemmantle.errors import EngineClosed, ForkedEngineError
from gemmantle.opened import OpenModel, id_array
from gemmantle.options import NAMES, Options, Settings
from gemmantle.words import HasWords, Words

if TYPE_CHECKING:
    import numpy as np

    from gemmantle.arms.remote import Remote
    from gemmantle.batch import BatchSummary
    from gemmantle.bulk import Result
    from gemmantle.progress import Show

__all__ = ["Engine", "load"]


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    mode: str = "auto",
    kv: str = "auto",
    max_context: int | None = None,
    kv_budget: int | str = "auto",
    deterministic: bool = False,
    max_concurrency: int | None = None,
    max_queue: int = 1024,
    max_queue_ms: int | None = None,
    idle_stream_timeout: float = 120.0,
    stream_interval_ms: int | None = None,
    default_sampling: str = "model",
    default_reasoning: str = "none",
    unknown_fields: str = "error",
    fallback: Remote | None = None,
    state_path: str | os.PathLike[str] | None = None,
) -> Engine:
    """Open a model: a folder, a .gguf file, an embedded name, or a name that is already on disk.

    device: auto, cpu, reference, cuda, or CUDA devices by number: cuda:1, or cuda:0,1 to split the layers.
    threads: None for one per core.
    mode: exact (f32 throughout) or fast (on the CPU: 8-bit activations where weights are packed, bf16 where they are
    bf16, see docs/decisions/0006 and 0018); "auto" is fast for a checkpoint with packed weights, else exact (0017).
    kv: what K and V are kept as: f32, bf16 or q8 (bytes with scales); "auto" takes f32 in mode exact, which takes no
    other, and bf16 in mode fast.
    max_context: tokens of prompt plus answer, None for what the checkpoint and memory allow.
    kv_budget: bytes of KV cache; "auto" takes what max_concurrency sequences of max_context need, at most half of the
    free memory.
    deterministic: the same bits alone and in a batch.
    max_concurrency: sequences that run at once, 16 where it is left out.
    max_queue, max_queue_ms: how many requests wait, and how long; others are refused with engine_busy (429).
    idle_stream_timeout: seconds. A stream with 4,096 tokens unread stands still, and is cancelled after this time.
    stream_interval_ms: the least time between two chunks of a stream, its text merged meanwhile; None grows with the
    number of streams, 0 merges nothing but what is there already.
    default_sampling: "model" takes omitted sampling fields from the checkpoint, "openai" samples plainly.
    default_reasoning: none or high. unknown_fields: error or report.
    fallback: a `gemmantle.remote(...)` for what clients ask and this engine cannot do; data then leaves the machine.
    state_path: a file (SQLite) that keeps stored responses, files and batches; None keeps them in this process.

    Raises LoadError (see `gemmantle.errors`), or ValueError for an argument out of range.
    """
    given = {name: value for name, value in locals().items() if name in NAMES}
    if fallback is not None:
        # The pair calls this function again without `fallback`.
        paired: Engine = importlib.import_module("gemmantle.arms.fallback_engine").load_with_fallback(
            model, given, fallback
        )
        return paired
    options = Options(**given)
    found = hub.resolve(model)
    settings = Settings(str(found.path.absolute()), found.name, found.aliases, options)
    engine = _shared(settings)
    loaded_here(engine)
    try:
        engine.profile  # noqa: B018 - opens the model now, so that errors belong to this call
    except BaseException:
        engine.close()
        raise
    return engine


class Engine(HasDoors, HasWords):
    """A loaded model. All methods may be called from any thread. Made by `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._references = 1
        self._closed = False
        self._opened: OpenModel | None = None

    # -- generating

    def generate(
        self,
        requests: Iterable[dict[str, Any]],
        *,
        ordered: bool = True,
        on_result: Callable[[Result], object] | None = None,
        progress: Show = "auto",
    ) -> Iterator[Result]:
        """Answer requests; many run at once, and only as many are taken from the iterable as keep the engine full.

        A request is a dict with `prompt` (text, which gets one BOS, or ids, taken as they are) or `messages`, and
        sampling fields under their API names; a prompt without max_tokens gets 16, as in the API. RequestError, at its
        turn, names the request and the field.

        ordered: results come in the order of the requests; False gives each as soon as it has ended, and its `index`
        says which it is. on_result: all requests run in this call, each result goes to it, and the iterator is empty.
        progress: "auto" shows a bar after two seconds (terminal, notebook) or writes to the log "gemmantle"; False
        shows nothing; a function gets a `gemmantle.progress.Standing`.
        """
        bulk, shows = importlib.import_module("gemmantle.bulk"), importlib.import_module("gemmantle.progress")
        total = len(requests) if isinstance(requests, Sized) else None
        shown = shows.Progress("generate", total, progress)
        results: Iterator[Result] = bulk.watched(bulk.generate(self, requests, self._ahead, ordered), shown)
        if on_result is None:
            return results
        for result in results:
            on_result(result)
        return iter(())

    def score(self, items: Iterable[Any], *, mode: str = "pair", progress: Show = "auto") -> list[Any]:
        """Log-likelihoods (spec api 11.1).

        mode "pair": items are (context, continuation), both text or both ids; gives a list of Score.
        mode "choice": items are (context, [continuation, ...]); gives a list of lists of Score.
        mode "rolling": items are texts or ids; gives a list of Score over all tokens, the first conditioned on BOS.
        progress: as in `generate`.
        """
        evaluate, shows = importlib.import_module("gemmantle.evaluate"), importlib.import_module("gemmantle.progress")
        with contextlib.closing(shows.Progress("score", None, progress)) as shown:
            scores: list[Any] = evaluate.score(self, items, mode, self._ahead, shown)
            return scores

    def run_batch(self, src: Any, dst: str | os.PathLike[str], *, resume: bool = True) -> BatchSummary:
        """Answer JSONL requests into a JSONL file (spec api 7.3), many at once, and print one summary to stderr.

        src: a file, or an iterable of lines or dicts: {custom_id, method, url, body} or {recordId, modelInput}. dst
        gets one line for each, in the order they end, failures beside successes. resume: ids that dst already answers
        are left alone, so a run that was killed is simply started again; False empties dst first. ValueError, before
        anything runs, for a line without an id of its own.
        """
        batch = importlib.import_module("gemmantle.batch")
        summary: BatchSummary = batch.run(
            self._handler(), src, dst, model=self.name, workers=self._ahead, resume=resume
        )
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
            id_array(ids), chunks=chunks, last_only=last_only, reuse=reuse
        )
        return array

    # -- facts

    def info(self) -> dict[str, Any]:
        """What is loaded: model, files, device, mode, sizes, bytes of weights, KV and work, defaults, fingerprint."""
        opened = self._use()
        profile = opened.profile
        stats = opened.engine.stats()
        return {
            "name": profile.name,
            "path": self._settings.path,
            "max_context": profile.max_context,
            "vocabulary": profile.vocab_size,
            "is_chat": profile.is_chat,
            "tokenizer": opened.words.file,
            "fingerprint": profile.fingerprint,
            "defaults": {
                "temperature": profile.default_temperature,
                "top_p": profile.default_top_p,
                "top_k": profile.default_top_k,
            },
            "kv": {
                "bytes": stats["kv_bytes"],
                "budget_bytes": stats["kv_budget"],
                "max_context": stats["max_context"],
                "max_concurrency": stats["max_sequences"],
            },
            "memory": {
                "weights": opened.model.info()["weight_bytes"],
                "kv": stats["kv_bytes"],
                "work": stats["work_bytes"],
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
        path = self._settings.options.state_path
        return None if path is None else str(path)

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
        return f"<gemmantle.Engine {self._settings.name!r} device={self._settings.options.device!r} {state}>"

    # -- what the API layer uses (gemmantle.api.protocol.ServingEngine)

    @property
    def profile(self) -> Profile:
        return self._use().profile

    def submit(self, ids: Sequence[int], sampling: Sampling) -> Generation:
        opened = self._use()
        generation: Generation = opened.engine.submit(id_array(ids), opened.core.SamplingParams(**vars(sampling)))
        return generation

    # -- inside

    @property
    def words(self) -> Words:
        """Tokenizer and grammars; they stay usable when the engine is closed."""
        return self._use().words

    def _handler(self) -> RequestHandler:
        handler: RequestHandler = importlib.import_module("gemmantle.client").handler_for(self)
        return handler

    def _served(self) -> Any:
        return importlib.import_module("gemmantle.server").ServedModels([self])

    @property
    def _ahead(self) -> int:
        """Requests that bulk work has submitted at once: those that run, and as many that wait behind them."""
        return 2 * int(self._settings.native()["max_sequences"])

    def _use(self) -> OpenModel:
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
                self._opened = OpenModel(self._settings)
                _open_engines.add(self)
            return self._opened

    def _release(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if opened.pid != os.getpid():
            # Destroying it here would join threads that fork() did not copy.
            _left_by_parent.append(opened)
            return
        trim = opened.core.trim_memory
        opened.engine.close()
        del opened
        trim()


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
