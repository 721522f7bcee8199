"""What every choice of a chat or a completion keeps, and how chunks of either are written.

The two routes differ in what a choice says; its ids, its end, its tokens and the frame of its chunks are the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gemmantle.api.common import Clock, completion_usage, details, new_id
from gemmantle.api.protocol import Delta, Profile
from gemmantle.api.schemas import CommonRequest
from gemmantle.api.stream import encode_json, event

__all__ = ["ChoiceState", "Chunks", "Totals", "head"]


def head(prefix: str, kind: str, request: CommonRequest, profile: Profile, warnings: Sequence[str]) -> dict[str, Any]:
    """The members that all chunks of an answer, or its body, begin with."""
    found: dict[str, Any] = {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": profile.name,
        "system_fingerprint": profile.fingerprint,
    }
    if request.ignored:
        found["ignored_parameters"] = request.ignored
    if warnings:
        found["schema_warnings"] = list(warnings)
    return found


class ChoiceState:
    """One choice: the ids not written yet, why it ended, and what it counted."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.usage = (0, 0, 0, 0)  # prompt, completion, reasoning, cached tokens
        self.thought_cut = False
        self.queue_ms: float | None = None

    def note(self, delta: Delta, request: CommonRequest) -> None:
        """Take everything of a delta but its text."""
        if request.return_token_ids:
            self.ids.extend(token.id for token in delta.tokens)
        self.thought_cut |= delta.thought_cut
        if delta.finish_reason is not None:
            self.finish_reason = "length" if delta.finish_reason == "length" else "stop"
            self.stop_reason = delta.stop_reason
            self.usage = delta.usage or self.usage
            self.queue_ms = delta.queue_ms

    def take_ids(self) -> dict[str, Any]:
        """The member of the ids since the last look, where there are any."""
        ids, self.ids = self.ids, []
        return {"token_ids": ids} if ids else {}


class Totals:
    """Usage and details of a whole answer."""

    def __init__(self, request: CommonRequest, profile: Profile, effective: int, clock: Clock) -> None:
        self._request = request
        self._profile = profile
        self._effective = effective
        self._clock = clock

    def usage(self, choices: Sequence[ChoiceState], n: int) -> dict[str, Any]:
        """The tokens of a prompt count once for its `n` choices, which stand together."""
        usages = [choice.usage for choice in choices]
        return completion_usage(
            sum(max(usage[0] for usage in usages[first : first + n]) for first in range(0, len(usages), n)),
            sum(usage[1] for usage in usages),
            sum(usage[2] for usage in usages),
            sum(usage[3] for usage in usages[::n]),
        )

    def members(self, choices: Sequence[ChoiceState], usage: dict[str, Any]) -> dict[str, Any]:
        """Those of `return_details`; none where nobody asked. The first choice is the one that waited least."""
        if not self._request.return_details:
            return {}
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        timings = self._clock.timings(usage["prompt_tokens"], usage["completion_tokens"], cached, choices[0].queue_ms)
        return details(self._request, self._profile, self._effective, timings)


class Chunks:
    """The frame of streamed chunks. All of them share a head; each carries one choice, the last ones none."""

    def __init__(self, head: dict[str, Any], request: CommonRequest) -> None:
        self._head = head
        self._request = request
        self._head_text = encode_json(head)[:-1] + ',"choices":'
        self._tail_text = ',"usage":null}' if request.include_usage else "}"
        self._out: list[str] = []

    def framed(self, wire: dict[str, Any], members: str = "") -> str:
        """A chunk of one choice; `members` is JSON text that stands beside it, with its leading comma."""
        return f"{self._head_text}[{encode_json(wire)}]{members}{self._tail_text}"

    def add(self, *chunks: str) -> None:
        self._out.extend(chunks)

    def take(self) -> bytes:
        chunks = b"".join(map(event, self._out))
        self._out.clear()
        return chunks

    def close(self, usage: dict[str, Any], members: dict[str, Any]) -> bytes:
        """What is left, a chunk with what counts for all choices where it was asked for, and the end marker."""
        extra = {"usage": usage, **members} if self._request.include_usage else members
        closing = self.take()
        if extra:
            closing += event(encode_json({**self._head, "choices": [], **extra}))
        return closing + b"data: [DONE]\n\n"
