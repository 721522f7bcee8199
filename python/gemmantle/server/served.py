"""The models of a server: those it was started with, by name and alias. Paths are neither told nor answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gemmantle.api.models import card
from gemmantle.api.protocol import ServingEngine
from gemmantle.errors import ModelNotFound
from gemmantle.names import without_paths

__all__ = ["ServedModels"]


class ServedModels:
    """The models of a server: those it was started with, by name and alias. Paths are neither told nor answered."""

    def __init__(self, engines: Iterable[ServingEngine] = ()) -> None:
        self.engines: list[ServingEngine] = []
        self._named: dict[str, ServingEngine] = {}
        for engine in engines:
            self.add(engine)

    def add(self, engine: ServingEngine) -> None:
        self.engines.append(engine)
        for name in (engine.profile.name, *without_paths(engine.profile.aliases)):
            self._named.setdefault(name, engine)

    def find(self, name: str) -> ServingEngine | None:
        return self._named.get(name)

    def load(self, name: str) -> ServingEngine:
        known = ", ".join(self._named)
        raise ModelNotFound(f"model '{name[:200]}' is not served here; this server answers as: {known}")

    def cards(self) -> list[dict[str, Any]]:
        return [{**card(engine.profile), "aliases": without_paths(engine.profile.aliases)} for engine in self.engines]
