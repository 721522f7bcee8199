"""What an answer of /responses looks like without what changes from run to run: ids, times, the parts of a stream."""

from __future__ import annotations

import json
import re
from typing import Any

_IDS = re.compile(r"\b(resp|msg|rs|fc|fco|call)_[0-9a-f]{24}\b")
_TIMES = re.compile(r'"(created_at|completed_at)":\d+')


def events_of(lines: bytes) -> list[dict[str, Any]]:
    """The events of a body, each checked to stand under its own type."""
    events = []
    for block in lines.decode().removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        events.append(event)
    return events


def steady(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ids numbered in the order they appear, times as 0."""
    names: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        kind = match[1]
        known = sum(value.startswith(f"{kind}_") for value in names.values())
        return names.setdefault(match[0], f"{kind}_{known + 1}")

    text = json.dumps(events, separators=(",", ":"))
    return json.loads(_TIMES.sub(r'"\1":0', _IDS.sub(name, text)))
