"""What a variant is called elsewhere: the table of model_names.json (spec api 2), as lookups. Opens no model.

Context and inputs in the table are for orientation before a checkpoint is there; an open model says its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["aliases_of", "canonical", "table", "without_paths"]

_SERVICES = ("ai_studio", "bedrock", "runware", "ollama")


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Canonical name -> its names at each service, context and inputs."""
    text = Path(__file__).with_name("model_names.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


@functools.cache
def _canonical_by_name() -> dict[str, str]:
    known = {}
    for name in table():
        known[name.lower()] = name
        known.update((alias, name) for alias in aliases_of(name))
    return known


def aliases_of(name: str) -> tuple[str, ...]:
    """Other names of a canonical one; none for a model that is not in the table."""
    row = table().get(name, {})
    return (*(row[service] for service in _SERVICES if service in row), *row.get("other", ()))


def canonical(name: str) -> str:
    """The canonical name behind an alias or another spelling of itself; any other name as it is."""
    known = _canonical_by_name()
    return known.get(name) or known.get(name.lower(), name)


def without_paths(aliases: Iterable[str]) -> list[str]:
    """The aliases that may be told to everybody: a path of this machine is none of them."""
    return [alias for alias in aliases if not Path(alias).exists()]
