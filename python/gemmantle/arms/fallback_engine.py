"""`gemmantle.load(..., fallback=...)`: an engine, or the reason why there is none, and a remote arm behind it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gemmantle.api.handler import Handler
from gemmantle.api.protocol import RequestHandler, ServingEngine
from gemmantle.arms.pair import FallbackHandler
from gemmantle.doors import HasDoors
from gemmantle.errors import GemmantleError, RequestError
from gemmantle.names import aliases_of, canonical

if TYPE_CHECKING:
    from gemmantle.arms.remote import Remote
    from gemmantle.engines import Engine

__all__ = ["FallbackEngine", "load_with_fallback"]


class FallbackEngine(HasDoors):
    """What `gemmantle.load(..., fallback=...)` gives: the engine, or why there is none, and a remote arm.

    Clients and transports may fall back. Everything else (generate, score, logits, tokenize, info) is the local
    engine's own and never leaves the machine; where it could not be loaded, that error is raised.
    """

    def __init__(self, model: str, options: dict[str, Any], remote: Remote) -> None:
        self._model = model
        self._options = options
        self._remote = remote
        self._engine: Engine | None = None
        self.load_error: GemmantleError | None = None
        try:
            self._engine = _module("engines").load(model, **options)
        except GemmantleError as exc:
            if not remote.stands_in_for(model, exc):
                raise
            self.load_error = exc
        local = Handler(self, options.get("state_path"))
        self._pair = FallbackHandler(local, self, remote)

    def asgi(self, **options: Any) -> Any:
        """An ASGI application with the same rules (see `Engine.asgi`)."""
        return super().asgi(**{"fallback": self._remote, **options})

    @property
    def state_path(self) -> Any:
        """Where stored answers are kept, as it was given; None for this process alone."""
        return self._options.get("state_path")

    def _handler(self) -> RequestHandler:
        return self._pair

    def _served(self) -> Any:
        models = _module("server").ServedModels([] if self._engine is None else [self._engine])
        if self.load_error is not None:
            models.add_absent(self._model, self.load_error)
        return models

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> FallbackEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return FallbackEngine, (self._model, self._options, self._remote)

    def __repr__(self) -> str:
        here = repr(self._engine) if self._engine is not None else f"no engine for {self._model!r}"
        return f"<gemmantle.FallbackEngine {here}, else {self._remote!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._engine is None:
            assert self.load_error is not None
            raise self.load_error
        return getattr(self._engine, name)

    # -- gemmantle.api.protocol.ModelSource

    def find(self, name: str) -> ServingEngine | None:
        if self._engine is None:
            return None
        profile = self._engine.profile
        return self._engine if name == profile.name or name in profile.aliases else None

    def load(self, name: str) -> ServingEngine:
        """Another model than the one of this engine is a mistake, not a reason to fall back."""
        known = canonical(self._model)
        names = (self._model, known, *aliases_of(known))
        if self.load_error is not None and name in names:
            raise self.load_error
        if self._engine is not None:
            names = (self._engine.profile.name, *self._engine.profile.aliases)
        raise RequestError(
            f"model '{name[:200]}' is not here; this client answers as: {', '.join(names)}",
            code="model_not_found",
            param="model",
        )

    def cards(self) -> list[dict[str, Any]]:
        if self._engine is None:
            return []
        cards: list[dict[str, Any]] = _module("client").OneModel(self._engine).cards()
        return cards


def load_with_fallback(model: str, options: dict[str, Any], remote: Remote) -> Any:
    """The rest of `gemmantle.load` where `fallback` is given."""
    return FallbackEngine(model, options, remote)


def _module(name: str) -> Any:
    """Late: these modules know this one."""
    return importlib.import_module(f"gemmantle.{name}")
