"""The models of a server: those it was started with, by name and alias. Paths are neither told nor answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gemmantle.api.models import card
from gemmantle.api.protocol import ServingEngine
from gemmantle.errors import GemmantleError, ModelNotFound
from gemmantle.names import aliases_of, canonical, without_paths

__all__ = ["ServedModels"]


class ServedModels:
    """The models of a server: those it was started with, by name and alias. Paths are neither told nor answered."""

    def __init__(self, engines: Iterable[ServingEngine] = ()) -> None:
        self.engines: list[ServingEngine] = []
        self._named: dict[str, ServingEngine] = {}
        self._absent: dict[str, GemmantleError] = {}
        for engine in engines:
            self.add(engine)

    def add(self, engine: ServingEngine) -> None:
        self.engines.append(engine)
        for name in (engine.profile.name, *without_paths(engine.profile.aliases)):
            self._named.setdefault(name, engine)

    def add_absent(self, name: str, error: GemmantleError) -> None:
        """A model that could not be loaded: under any of its names the error is told, or another arm is asked."""
        full = canonical(name)
        for known in {name, full, *aliases_of(full)}:
            self._absent[known] = error

    def find(self, name: str) -> ServingEngine | None:
        return self._named.get(name)

    def load(self, name: str) -> ServingEngine:
        if name in self._absent:
            raise self._absent[name]
        known = ", ".join(self._named)
        raise ModelNotFound(f"model '{name[:200]}' is not served here; this server answers as: {known}")

    def cards(self) -> list[dict[str, Any]]:
        return [{**card(engine.profile), "aliases": without_paths(engine.profile.aliases)} for engine in self.engines]
