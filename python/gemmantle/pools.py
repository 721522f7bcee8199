"""`gemmantle.pool`: several models behind one client, of which only some are in memory at a time.

A request names its model, which is opened when it is not; for that, of the idle models the one that was used least
recently is closed. A model at work is never closed. Where all are at work, the least recently used one has to leave
when its work is done: new requests to it wait behind who needs the place, so that no model keeps others out for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gemmantle import hub
from gemmantle.api.handler import Handler
from gemmantle.api.models import absent_card, card
from gemmantle.api.protocol import Generation, Profile, Sampling
from gemmantle.doors import HasDoors
from gemmantle.engines import Engine, load
from gemmantle.errors import EngineClosed, ForkedEngineError, ModelNotFound
from gemmantle.names import without_paths
from gemmantle.options import NAMES, Options
from gemmantle.words import HasWords, Words

__all__ = ["Pool", "pool"]

_SLICE_S = 0.02  # between two looks at whether a model is idle; Ctrl-C is noticed within it


def pool(models: Sequence[str | os.PathLike[str]], *, max_resident: int = 1, **options: Any) -> Pool:
    """Several models behind one client; the field `model` of a request picks one.

    models: as in `gemmantle.load`; the files must be here, nothing is opened yet. Requests name a model by its name or
    an alias, not by its path. max_resident: how many are in memory at the same time. options: those of
    `gemmantle.load`, for every model.
    Raises ModelNotFound, and ValueError or TypeError for an argument.
    """
    return Pool(tuple(os.fspath(model) for model in models), max_resident, options)


class Pool(HasDoors):
    """Made by `pool`. All methods may be called from any thread. Pickles as its arguments."""

    def __init__(self, models: tuple[str, ...], max_resident: int, options: dict[str, Any]) -> None:
        if type(max_resident) is not int or max_resident < 1:
            raise ValueError(f"max_resident is {max_resident!r}; it must be a positive integer")
        unknown = sorted(options.keys() - NAMES)
        if unknown:
            raise TypeError(f"unknown argument {unknown[0]}; the options are those of gemmantle.load")
        if not models:
            raise ValueError("models is empty; name at least one")
        self._arguments = (models, max_resident, options)
        self.state_path = Options(**options).state_path
        self._pid = os.getpid()
        self._max_resident = max_resident
        self._closed = False
        self._changed = threading.Condition()  # guards what `_Member` says it guards
        self._wanted = 0  # places that are waited for
        self._opening = 0  # models that are being opened in a place of their own
        self._named: dict[str, _Member] = {}
        self._members: list[_Member] = []
        for model in models:
            found = hub.resolve(model)
            member = _Member(self, model, found.name, options)
            self._members.append(member)
            for name in (found.name, *without_paths(found.aliases)):
                if self._named.setdefault(name, member) is not member:
                    raise ValueError(f"models has two that answer as '{name}'; leave one out")

    # -- gemmantle.api.protocol.ModelSource

    def find(self, name: str) -> _Member | None:
        """The model where it is open and nobody waits for its place."""
        member = self._named.get(name)
        self._check_usable()
        with self._changed:
            if member is None or member.engine is None or member.must_leave:
                return None
            member.used = time.monotonic()
            return member

    def load(self, name: str) -> _Member:
        """The model, opened; waits for a place. ModelNotFound where it is none of the pool's."""
        member = self._named.get(name)
        if member is None:
            raise ModelNotFound(f"model '{name[:200]}' is not in this pool; it answers as: {', '.join(self._named)}")
        self._open(member, as_newcomer=True)
        return member

    def cards(self) -> list[dict[str, Any]]:
        return [member.card() for member in self._members]

    @property
    def engines(self) -> list[Engine]:
        """Those in memory."""
        with self._changed:
            return [member.engine for member in self._members if member.engine is not None]

    # -- facts and the end

    def stats(self) -> dict[str, dict[str, Any]]:
        """`Engine.stats` of those in memory, by name."""
        return {engine.name: engine.stats() for engine in self.engines}

    def close(self) -> None:
        """End what runs with EngineClosed and free all models."""
        with self._changed:
            self._closed = True
            leaving = [member.leave() for member in self._members if member.engine is not None]
            self._changed.notify_all()
        for close in leaving:
            close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pool, self._arguments

    def __repr__(self) -> str:
        open_ones = ", ".join(engine.name for engine in self.engines) or "none"
        return f"<gemmantle.Pool of {len(self._members)} models, in memory: {open_ones}>"

    # -- inside

    def _handler(self) -> Handler:
        return Handler(self, None if self.state_path is None else str(self.state_path))

    def _served(self) -> Pool:
        return self

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise ForkedEngineError(
                "this pool was made before fork(), and its engines do not exist in this child: start processes with "
                "the 'spawn' method, or call gemmantle.pool in the child"
            )
        if self._closed:
            raise EngineClosed("this pool is closed; make it again")

    def _open(self, member: _Member, *, as_newcomer: bool = False) -> Engine:
        """The member's engine. A newcomer does not enter one whose place somebody waits for."""
        self._check_usable()
        with self._changed:
            while True:
                self._check_usable()
                if member.engine is not None and not (as_newcomer and member.must_leave):
                    member.used = time.monotonic()
                    return member.engine
                if member.engine is None and not member.is_opening:
                    member.is_opening = True
                    break
                self._changed.wait(_SLICE_S)
        try:
            with self._place():
                engine = load(member.model, **member.options)
                self._enter(member, engine)
                return engine
        finally:
            with self._changed:
                member.is_opening = False
                self._changed.notify_all()

    def _enter(self, member: _Member, engine: Engine) -> None:
        with self._changed:
            if not self._closed:
                member.enter(engine)
                return
        engine.close()
        self._check_usable()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Wait for a place in memory, and keep it while a model is being opened."""
        with self._changed:
            self._wanted += 1
            try:
                while not self._has_place():
                    self._changed.wait(_SLICE_S)
                    self._check_usable()
            finally:
                self._wanted -= 1
                if self._wanted == 0:
                    for member in self._members:
                        member.must_leave = False
            self._opening += 1
        try:
            yield
        finally:
            with self._changed:
                self._opening -= 1

    def _has_place(self) -> bool:
        """Whether another model may be opened; closes the one that was not used for the longest where that is idle."""
        while True:
            resident = [member for member in self._members if member.engine is not None]
            if len(resident) + self._opening < self._max_resident:
                return True
            idle = [member for member in resident if member.is_idle()]
            if not idle:
                if resident and not any(member.must_leave for member in resident):
                    min(resident, key=lambda member: member.used).must_leave = True
                return False
            min(idle, key=lambda member: member.used).leave()()


class _Member(HasWords):
    """One model of a pool, as the routes see it (`gemmantle.api.protocol.ServingEngine`), in memory or not."""

    def __init__(self, owner: Pool, model: str, name: str, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        # Guarded by the owner's condition.
        self.engine: Engine | None = None
        self.is_opening = False  # somebody opens it, or waits for a place to do so
        self.must_leave = False
        self.used = 0.0
        self._owner = owner
        self._name = name
        self._known: tuple[Profile, Words] | None = None  # stays when the engine leaves

    def enter(self, engine: Engine) -> None:
        self.engine = engine
        self.used = time.monotonic()
        self._known = (engine.profile, engine.words)

    def leave(self) -> Callable[[], None]:
        """Forget the engine; gives what closes it."""
        engine = self.engine
        assert engine is not None
        self.engine = None
        self.must_leave = False
        return engine.close

    def is_idle(self) -> bool:
        if self.engine is None:
            return True
        stats = self.engine.stats()
        return int(stats["queued"]) + int(stats["running"]) == 0

    def card(self) -> dict[str, Any]:
        if self._known is None:
            return absent_card(self._name)
        profile = self._known[0]
        return {**card(profile), "aliases": without_paths(profile.aliases), "loaded": self.engine is not None}

    @property
    def profile(self) -> Profile:
        return self._facts()[0]

    @property
    def words(self) -> Words:
        return self._facts()[1]

    def _facts(self) -> tuple[Profile, Words]:
        if self._known is None:
            self._owner._open(self)
        assert self._known is not None
        return self._known

    def submit(self, ids: Sequence[int], sampling: Sampling) -> Generation:
        """Opens the model again where it had to leave since the request began."""
        while True:
            engine = self._owner._open(self)
            try:
                generation: Generation = engine.submit(ids, sampling)
                return generation
            except EngineClosed:
                if engine is self.engine:
                    raise
