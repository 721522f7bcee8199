"""What a model wrote: reasoning, content and tool calls out of (channel, text) pieces.

The core splits sampled ids into channels; here their text is trimmed (spec prompting 8.2) and calls are read once they
are complete (8.4). `OutputParser` works incrementally; `parse` is its whole-text form for raw output with its control
strings. Joined, the events of a stream are what the whole text gives.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from gemmantle.chat.call_stream import CallStream
from gemmantle.chat.calls import Call, read_call
from gemmantle.chat.segments import SPECIAL_IDS
from gemmantle.chat.tools import Tool, read_tools

__all__ = ["Call", "CallPart", "Content", "Event", "OutputParser", "Parsed", "Reasoning", "parse"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of a thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of a call written under a grammar: first its name, then JSON of its arguments, then its end."""

    name: str = ""
    text: str = ""
    is_end: bool = False


Event = Reasoning | Content | Call | CallPart


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole reply."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[Call] = field(default_factory=list)


class OutputParser:
    """Turns pieces of a `Channels` machine into events. Text of one kind may come in any cut: the sum is the same.

    tools: declarations of the request (wire form or Tool), which help to repair calls. constrained: calls were written
    under a grammar, so they come in parts and need no repair.
    """

    def __init__(self, tools: Iterable[Any] | None = None, *, constrained: bool = False) -> None:
        listed = list(tools or ())
        known = [t for t in listed if isinstance(t, Tool)]
        self._tools = known if len(known) == len(listed) else read_tools(listed)
        self._thought = _Thought()
        self._content = _Content()
        self._call: list[str] | None = None  # text of the open call
        self._constrained = constrained
        self._parts: CallStream | None = None  # of the open call, under a grammar

    def feed(self, channel: str, text: str) -> list[Event]:
        """Events of one piece; channel is "content", "thought", "call" or "call_end"."""
        events: list[Event] = []
        if channel == "thought":
            self._content.pause_for_thought()
            return _reasoning(self._thought.push(text))
        events += _reasoning(self._thought.close())
        if channel == "content":
            events += _content(self._content.push(text))
        elif self._constrained and channel in ("call", "call_end"):
            events += self._call_parts(channel, text)
        elif channel == "call":
            self._call = self._call or []
            self._call.append(text)
        elif channel == "call_end":
            events += self._end_call()
        else:
            raise ValueError(f"channel {channel!r} is none of content, thought, call, call_end")
        return events

    def finish(self, reason: str = "stop") -> list[Event]:
        """The rest. reason: "length" and "cancelled" drop an open call, every other repairs it."""
        events = _reasoning(self._thought.close())
        is_cut = reason in ("length", "cancelled")
        if self._parts is not None and not is_cut:
            events += self._end_parts(self._parts)
        if self._call is not None:
            if is_cut:
                self._call = None
                self._content.pause_for_call()
            else:
                events += self._end_call()
        return [*events, *_content(self._content.finish())]

    def _call_parts(self, channel: str, text: str) -> list[Event]:
        if self._parts is None:
            self._parts = CallStream()
        if channel == "call_end":
            return self._end_parts(self._parts)
        had_name = bool(self._parts.name)
        added = self._parts.feed(text)
        events: list[Event] = []
        if self._parts.name and not had_name:
            events.append(CallPart(name=self._parts.name))
        if added:
            events.append(CallPart(text=added))
        return events

    def _end_parts(self, parts: CallStream) -> list[Event]:
        self._parts = None
        if not parts.name:  # not a call
            return _content(self._content.push(parts.head))
        self._content.pause_for_call()
        rest = parts.finish()
        return [*([CallPart(text=rest)] if rest else []), CallPart(is_end=True)]

    def _end_call(self) -> list[Event]:
        text = "".join(self._call or ())
        self._call = None
        call = read_call(text, self._tools)
        if call is None:  # not a call: nothing the model wrote is lost
            return _content(self._content.push(text))
        self._content.pause_for_call()
        return [call]


class _Thought:
    """Reasoning without the newlines around it: all in front, one at the end, which the chat format adds again."""

    def __init__(self) -> None:
        self._held: list[str] = []  # blanks that are not emitted yet
        self._has_text = False  # in the thought that is open
        self._needs_newline = False  # an earlier thought was emitted

    def push(self, text: str) -> str:
        if not self._has_text:
            text = text.lstrip("\n")
            if not text:
                return ""
            self._has_text = True
            if self._needs_newline:
                self._held.append("\n")
        return _hold_blanks(self._held, text)

    def close(self) -> str:
        if not self._has_text:
            return ""
        self._has_text = False
        self._needs_newline = True
        held = "".join(self._held)
        self._held.clear()
        return held.removesuffix("\n")


class _Content:
    """Content without newlines in front of it and without blanks before a call."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._at_border = True  # at the start, or directly after a thought: newlines are dropped
        self._before_call = False  # a call came after the last visible character

    def push(self, text: str) -> str:
        if self._at_border:
            text = text.lstrip("\n")
            if not text:
                return ""
            self._at_border = False
        out = _hold_blanks(self._held, text)
        if out:
            self._before_call = False
        return out

    def pause_for_thought(self) -> None:
        self._at_border = True

    def pause_for_call(self) -> None:
        self._before_call = True

    def finish(self) -> str:
        held = "" if self._before_call else "".join(self._held)
        self._held.clear()
        return held


def _hold_blanks(held: list[str], text: str) -> str:
    """What can be emitted: everything up to the last visible character. The blanks behind it stay in `held`."""
    visible = text.rstrip()
    if not visible:
        held.append(text)
        return ""
    out = "".join(held) + visible
    held.clear()
    held.append(text[len(visible) :])
    return out


def _reasoning(text: str) -> list[Event]:
    return [Reasoning(text)] if text else []


def _content(text: str) -> list[Event]:
    return [Content(text)] if text else []


_MARKER = re.compile("|".join(re.escape(s) for s in sorted(SPECIAL_IDS, key=len, reverse=True)))
_ENDS = ("<eos>", "<turn|>", "<|tool_response>")
_ORDINARY = 1 << 30  # stands for every ordinary token


def parse(
    text: str,
    tools: Iterable[Any] | None = None,
    *,
    starts_in_thought: bool = False,
    finish_reason: Literal["stop", "length"] = "stop",
) -> Parsed:
    """Reads raw output, control strings spelled out.

    starts_in_thought: the prompt had opened the thought (`Prompt.starts_in_thought`). finish_reason "length" drops a
    call that is not complete; "stop" repairs it. Text behind the end of the turn is not read.
    """
    channels: Any = importlib.import_module("gemmantle._core").Channels(SPECIAL_IDS, starts_in_thought)
    parser = OutputParser(tools)
    events: list[Event] = []

    def feed(pieces: Iterable[tuple[str, bytes]]) -> None:
        for channel, piece in pieces:
            events.extend(parser.feed(channel, piece.decode("utf-8", "replace")))

    at = 0
    for match in _MARKER.finditer(text):
        if match.start() > at:
            feed(channels.feed(_ORDINARY, text[at : match.start()].encode("utf-8", "replace")))
        at = match.end()
        feed(channels.feed(SPECIAL_IDS[match.group()], match.group().encode()))
        if match.group() in _ENDS:
            at = len(text)
            break
    if at < len(text):
        feed(channels.feed(_ORDINARY, text[at:].encode("utf-8", "replace")))
    feed(channels.finish())
    events.extend(parser.finish(finish_reason))
    return Parsed(
        content="".join(e.text for e in events if isinstance(e, Content)),
        reasoning="".join(e.text for e in events if isinstance(e, Reasoning)),
        tool_calls=[e for e in events if isinstance(e, Call)],
    )
