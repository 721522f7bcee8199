"""Answers of the remote service as ours: model name, standard event names, nothing after schema-bound JSON, who served.

`Rewriter` takes a whole body or the bytes of a stream in any pieces. It never raises over what the service sent: an
event it cannot read passes as it came.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.stream import encode_json

__all__ = ["JsonEnd", "Rewriter", "Service"]

# Names seen from the service -> the standard ones (spec api S-4).
_EVENTS = {
    "response.reasoning.delta": "response.reasoning_text.delta",
    "response.reasoning.done": "response.reasoning_text.done",
    "response.reasoning_part.added": "response.content_part.added",
    "response.reasoning_part.done": "response.content_part.done",
}
_BLANK = re.compile(rb"\r?\n\r?\n")


@dataclass
class Service:
    """Who answers, and what was changed; shown on every remote answer (spec api F-10)."""

    model: str
    name: str  # canonical
    region: str
    reason: str
    ignored: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)

    def members(self, fingerprint: object) -> dict[str, Any]:
        served: dict[str, Any] = {
            "arm": "remote",
            "model": self.model,
            "region": self.region,
            "reason": self.reason,
            "fingerprint": fingerprint if isinstance(fingerprint, str) else None,
        }
        if self.converted:
            served["converted"] = list(self.converted)
        found: dict[str, Any] = {"served_by": served}
        if self.ignored:
            found["ignored_parameters"] = list(self.ignored)
        return found

    def note_cut(self) -> None:
        note = "text after the JSON cut off"
        if note not in self.converted:
            self.converted.append(note)


class JsonEnd:
    """Passes text up to the end of its first JSON value."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._plain = False  # inside a number or a word at the top
        self._over = False
        self.cut = False

    def feed(self, text: str) -> str:
        for position, char in enumerate(text):
            if self._over or self._ends_before(char):
                self._over = True
                self.cut |= bool(text[position:].strip())
                return text[:position]
        return text

    def _ends_before(self, char: str) -> bool:
        """Take one character; True where the value ended before it."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                self._over = self._depth == 0
        elif self._plain:
            return not (char.isalnum() or char in "+-.")
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._over = self._depth <= 0
        elif self._depth == 0 and not char.isspace():
            self._plain = True
        return False


class Rewriter:
    """One answer of one request. `bound`: its text is JSON by a schema or by JSON mode."""

    def __init__(self, route: str, service: Service, *, bound: bool) -> None:
        self._responses = route == "responses"
        self._service = service
        self._bound = bound
        self._ends: dict[tuple[object, object], JsonEnd] = {}
        self._buffer = b""
        self._first = True
        self._skipped = 0
        self._sequence = -1
        self._fingerprint: object = None
        self.response_id: str | None = None

    def body(self, value: dict[str, Any]) -> dict[str, Any]:
        """A whole answer; error bodies do not come here."""
        if self._responses:
            return self._response(value)
        self._fingerprint = value.get("system_fingerprint")
        for choice in _dicts(value.get("choices")):
            message = choice.get("message")
            if self._bound and isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = self._cut_whole(message["content"])
        value["model"] = self._service.name
        value.update(self._service.members(self._fingerprint))
        return value

    def feed(self, data: bytes) -> bytes:
        """Bytes of a stream; gives what can be passed on."""
        self._buffer += data
        out = []
        while (found := _BLANK.search(self._buffer)) is not None:
            event, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
            out.append(self._event(event))
        return b"".join(out)

    def finish(self) -> bytes:
        """What a service that forgot its last blank line left."""
        rest, self._buffer = self._buffer, b""
        return self._event(rest) if rest.strip() else b""

    def failure(self, message: str, code: str) -> bytes:
        """One event for a connection that broke (spec api C-3, S-2)."""
        if self._responses:
            event = {
                "type": "error",
                "code": code,
                "message": message,
                "param": None,
                "sequence_number": self._sequence + 1,
            }
            return f"event: error\ndata: {encode_json(event)}\n\n".encode()
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        return f"data: {encode_json({'error': error})}\n\n".encode()

    def _event(self, event: bytes) -> bytes:
        as_it_came = event + b"\n\n"
        lines = event.splitlines()
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data or data.strip() == b"[DONE]":
            # The format of responses has no end marker.
            return b"" if self._responses and data else as_it_came
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return as_it_came
        if not isinstance(value, dict):
            return as_it_came
        changed = self._response_event(value) if self._responses else self._chunk(value)
        if changed is None:
            return b""
        head = f"event: {changed['type']}\n" if self._responses and isinstance(changed.get("type"), str) else ""
        return f"{head}data: {encode_json(changed)}\n\n".encode("utf-8", "backslashreplace")

    def _chunk(self, value: dict[str, Any]) -> dict[str, Any] | None:
        if "error" in value and "choices" not in value:
            return value
        self._fingerprint = value.get("system_fingerprint") or self._fingerprint
        value["model"] = self._service.name
        ends = False
        dropped = 0
        choices = _dicts(value.get("choices"))
        for choice in choices:
            delta = choice.get("delta")
            ends |= choice.get("finish_reason") is not None
            if self._bound and isinstance(delta, dict) and isinstance(delta.get("content"), str):
                kept = self._cut((choice.get("index"), None), delta["content"])
                if not kept and delta["content"] and not choice.get("finish_reason") and set(delta) <= {"content"}:
                    dropped += 1
                delta["content"] = kept
        if choices and dropped == len(choices) and not value.get("usage"):
            return None
        if self._first or (ends and self._was_cut()):
            self._first = False
            value.update(self._service.members(self._fingerprint))
        return value

    def _response_event(self, value: dict[str, Any]) -> dict[str, Any] | None:
        kind = value.get("type")
        if isinstance(kind, str):
            kind = value["type"] = _EVENTS.get(kind, kind)
        if isinstance(value.get("response"), dict):
            value["response"] = self._response(value["response"])
        part = value.get("part")
        if isinstance(part, dict) and part.get("type") == "reasoning":
            part["type"] = "reasoning_text"
        if self._bound:
            place = (value.get("output_index"), value.get("content_index"))
            if kind == "response.output_text.delta" and isinstance(value.get("delta"), str):
                kept = self._cut(place, value["delta"])
                if not kept and value["delta"]:
                    self._skipped += 1
                    return None
                value["delta"] = kept
            elif kind == "response.output_text.done" and isinstance(value.get("text"), str):
                value["text"] = self._cut_whole(value["text"])
            elif kind == "response.content_part.done" and isinstance(part, dict):
                self._cut_part(part)
            elif kind == "response.output_item.done" and isinstance(value.get("item"), dict):
                self._cut_item(value["item"])
        if type(value.get("sequence_number")) is int:
            # A delta that was cut away leaves no gap.
            self._sequence = value["sequence_number"] = value["sequence_number"] - self._skipped
        return value

    def _response(self, value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value.get("id"), str):
            self.response_id = value["id"]
        if self._bound:
            for item in _dicts(value.get("output")):
                self._cut_item(item)
        if value.get("object", "response") == "response":
            value["model"] = self._service.name
        value.update(self._service.members(value.get("system_fingerprint")))
        return value

    def _cut_item(self, item: dict[str, Any]) -> None:
        if item.get("type") == "message":
            for part in _dicts(item.get("content")):
                self._cut_part(part)

    def _cut_part(self, part: dict[str, Any]) -> None:
        if part.get("type") == "output_text" and isinstance(part.get("text"), str):
            part["text"] = self._cut_whole(part["text"])

    def _cut(self, place: tuple[object, object], text: str) -> str:
        end = self._ends.setdefault(place, JsonEnd())
        kept = end.feed(text)
        if end.cut:
            self._service.note_cut()
        return kept

    def _cut_whole(self, text: str) -> str:
        end = JsonEnd()
        kept = end.feed(text)
        if end.cut:
            self._service.note_cut()
        return kept

    def _was_cut(self) -> bool:
        return any(end.cut for end in self._ends.values())


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
