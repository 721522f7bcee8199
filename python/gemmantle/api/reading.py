"""The deltas of chat choices as reasoning, text, calls and log-probability entries.

`Reading` takes each choice through the same steps whether it is streamed or not: the parser turns channel pieces into
parts of an answer, tokens become entries. What is written of them, chat chunks, a body or response items, is the
route's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.choices import ChoiceState, Totals
from gemmantle.api.common import Clock, new_id, sampled_text, token_entry
from gemmantle.api.protocol import Delta, ServingEngine
from gemmantle.api.schemas import ChatRequest
from gemmantle.api.stream import Answer, encode_json
from gemmantle.chat.parser import Call, CallPart, Content, OutputParser, Reasoning
from gemmantle.structured import Grammar

__all__ = ["Admitted", "Choice", "Logprobs", "Reading"]


@dataclass
class Logprobs:
    """Entries waiting for the next chunk, or for the body."""

    content: list[dict[str, Any]] = field(default_factory=list)
    reasoning: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    def wire(self) -> dict[str, Any] | None:
        if not (self.content or self.reasoning or self.tool_calls):
            return None
        value: dict[str, Any] = {"content": self.content or None, "refusal": None}
        if self.reasoning:
            value["reasoning"] = self.reasoning
        if self.tool_calls:
            value["tool_calls"] = self.tool_calls
        return value


class Choice(ChoiceState):
    """One choice: parser state, and what has been produced but not written yet."""

    def __init__(self, index: int, tools: list[dict[str, Any]] | None, constrained: bool) -> None:
        super().__init__(index)
        self.parser = OutputParser(tools, constrained=constrained)
        self.logprobs = Logprobs()
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.call_is_open = False  # the last one, under a grammar
        self.has_role = False
        self.has_content = False
        self.held: list[str] = []  # chunks that wait until the choices before this one have appeared


@dataclass(frozen=True)
class Admitted:
    """A conversation that the engine has taken in."""

    request: ChatRequest
    engine: ServingEngine
    prompt_ids: list[int]
    effective: int  # tokens the answer may have
    clock: Clock
    grammar: Grammar | None = None


class Reading(Answer):
    """Deltas of chat choices as reasoning, text, calls and log-probability entries. What becomes of them, `_write`
    and `_write_end` of the route decide."""

    def __init__(self, admitted: Admitted) -> None:
        request, grammar = admitted.request, admitted.grammar
        self.stream = request.stream
        self._request = request
        self._engine = admitted.engine
        self._prompt_ids = admitted.prompt_ids
        self._clock = admitted.clock
        self._totals = Totals(request, admitted.engine.profile, admitted.effective, admitted.clock)
        self._warnings: list[str] = [] if grammar is None else grammar.warnings
        self._choices = [Choice(index, request.tools, grammar is not None) for index in range(request.n)]
        self._alternatives = request.sampling.logprobs

    def feed(self, choice: int, delta: Delta) -> None:
        self._clock.tick()
        repeated = self._request.sampling.temperature == 0
        for target in self._choices if repeated else (self._choices[choice],):
            self._advance(target, delta)

    def _advance(self, choice: Choice, delta: Delta) -> None:
        if self._alternatives >= 0:
            self._note_logprobs(choice, delta)
        choice.note(delta, self._request)
        events: list[Any] = []
        for channel, text in delta.pieces:
            events.extend(choice.parser.feed(channel, text))
        if delta.finish_reason is not None:
            events.extend(choice.parser.finish(delta.finish_reason))
        position = 0
        while position < len(events):
            position = self._merge(choice, events, position)
        if delta.finish_reason is not None:
            if choice.call_is_open:  # cut by the limit: no call came of it
                choice.calls.pop()
            if choice.calls:
                choice.finish_reason = "tool_calls"
            self._write_end(choice)

    def _merge(self, choice: Choice, events: list[Any], position: int) -> int:
        """Write one event, neighbours of its kind joined; gives the position after them."""
        first = events[position]
        position += 1
        if isinstance(first, Call):
            call = {
                "id": new_id("call_"),
                "type": "function",
                "function": {"name": first.name, "arguments": encode_json(first.arguments)},
            }
            choice.calls.append(call)
            self._write(choice, "call", call)
            return position
        if isinstance(first, CallPart) and (first.name or first.is_end):
            choice.call_is_open = not first.is_end
            if first.name:
                call = {
                    "id": new_id("call_"),
                    "type": "function",
                    "function": {"name": first.name, "arguments": ""},
                }
                choice.calls.append(call)
                self._write(choice, "open", call)
            return position
        text = first.text
        while position < len(events) and type(events[position]) is type(first) and events[position].text:
            text += events[position].text
            position += 1
        if isinstance(first, CallPart):
            choice.calls[-1]["function"]["arguments"] += text
            self._write(choice, "arguments", text)
        elif isinstance(first, Content):
            self._write(choice, "content", text)
        elif isinstance(first, Reasoning) and self._request.include_reasoning:
            self._write(choice, "reasoning", text)
        return position

    def _note_logprobs(self, choice: Choice, delta: Delta) -> None:
        for token in sampled_text(delta, self._request.sampling.include_stop):
            if not token.text:
                continue  # a control token: it moved the channel and gave no text
            entry = token_entry(self._engine, token, self._alternatives)
            if token.channel == "content":
                choice.logprobs.content.append(entry)
            elif token.channel == "thought":
                if self._request.include_reasoning:
                    choice.logprobs.reasoning.append(entry)
            else:
                choice.logprobs.tool_calls.append(entry)

    def _write(self, choice: Choice, kind: str, value: Any) -> None:
        """Text of one kind ("content", "reasoning"), or a call: whole ("call"), or under a grammar its beginning
        ("open") and pieces of its arguments ("arguments")."""
        raise NotImplementedError

    def _write_end(self, choice: Choice) -> None:
        raise NotImplementedError
