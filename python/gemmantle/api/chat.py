"""POST /chat/completions: from a validated request to a plain reply or to chunks in the order of spec api 5.3.

`Reading` takes each choice through the same steps whether it is streamed or not: the parser turns channel pieces into
reasoning, text and calls, tokens become log-probability entries. `ChatAnswer` then either keeps them for one body or
writes chunks as they come; the answers of /responses are written from the same reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.common import Clock, admit, completion_usage, details, new_id, sampled_text, token_entry
from gemmantle.api.constraints import build_grammar, set_budget
from gemmantle.api.protocol import Delta, Profile, Prompt, ServingEngine
from gemmantle.api.schemas import ChatRequest, choice_sampling, read_chat
from gemmantle.api.stream import Answer, Work, encode_json, event
from gemmantle.chat.parser import Call, CallPart, Content, OutputParser, Reasoning
from gemmantle.errors import RequestError
from gemmantle.structured import Grammar, Guide

__all__ = ["ChatAnswer", "Choice", "Reading", "prepare", "rendered", "start", "submit"]


def start(body: dict[str, Any], engine: ServingEngine) -> tuple[Work, ChatAnswer]:
    """Validate, render, submit: everything that can be refused is refused here (spec api T-21)."""
    clock = Clock()
    request = read_chat(body, engine.profile)
    prompt = rendered(request, engine)
    ids = prompt.ids()
    grammar, guide = prepare(request, engine, prompt, ids)
    work, effective = submit(request, engine, ids, guide)
    return work, ChatAnswer(request, engine, ids, effective, clock, grammar)


def rendered(request: ChatRequest, engine: ServingEngine) -> Prompt:
    """The prompt of a conversation, where the model has words and a chat format."""
    profile = engine.profile
    if not profile.has_tokenizer:
        raise RequestError(profile.missing_tokenizer, code="unsupported_value", param="messages")
    if not profile.is_chat:
        raise RequestError(
            f"'{profile.name}' is a base model without a chat format; use /completions or an instruction-tuned model",
            code="model_not_chat",
            param="model",
        )
    keep = {"preserve_thinking": True} if request.preserve_thinking else {}
    prompt = engine.render_chat(request.messages, request.tools, request.thinking.on, **keep)
    request.sampling.start_in_thought = prompt.starts_in_thought
    return prompt


def prepare(
    request: ChatRequest, engine: ServingEngine, prompt: Prompt, ids: list[int]
) -> tuple[Grammar | None, Callable[[], Guide] | None]:
    """The budget of its thoughts; and where the reply is constrained its grammar and what leads each choice."""
    profile, sampling = engine.profile, request.sampling
    set_budget(sampling, request.thinking, profile, len(ids))
    grammar = build_grammar(engine, sampling, request.form, request.tools, request.tool_choice)
    if grammar is None:
        return None, None
    opening = profile.thought_open if request.thinking.on and not prompt.starts_in_thought else ()
    return grammar, lambda: grammar.guide(opening, starts_in_thought=prompt.starts_in_thought)


def submit(
    request: ChatRequest, engine: ServingEngine, ids: list[int], guide: Callable[[], Guide] | None = None
) -> tuple[Work, int]:
    """The choices on their way, and the effective token limit. Greedy choices are equal: one runs and is repeated."""
    distinct = 1 if request.sampling.temperature == 0 else request.n
    samplings = [choice_sampling(request.sampling, choice) for choice in range(distinct)]
    return admit(engine, [(ids, samplings)], "messages", guide)


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


class Choice:
    """One choice: parser state, and what has been produced but not written yet."""

    def __init__(self, index: int, tools: list[dict[str, Any]] | None, constrained: bool) -> None:
        self.index = index
        self.parser = OutputParser(tools, constrained=constrained)
        self.logprobs = Logprobs()
        self.ids: list[int] = []
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.call_is_open = False  # the last one, under a grammar
        self.thought_cut = False
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.usage = (0, 0, 0, 0)
        self.has_role = False
        self.has_content = False
        self.held: list[str] = []  # chunks that wait until the choices before this one have appeared


class Reading(Answer):
    """Deltas of chat choices as reasoning, text, calls and log-probability entries. What becomes of them, `_write`
    and `_write_end` of the route decide."""

    def __init__(
        self,
        request: ChatRequest,
        engine: ServingEngine,
        prompt_ids: list[int],
        effective: int,
        clock: Clock,
        grammar: Grammar | None = None,
    ) -> None:
        self.stream = request.stream
        self._request = request
        self._engine = engine
        self._prompt_ids = prompt_ids
        self._effective = effective
        self._clock = clock
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
        if self._request.return_token_ids:
            choice.ids.extend(token.id for token in delta.tokens)
        choice.thought_cut |= delta.thought_cut
        events: list[Any] = []
        for channel, text in delta.pieces:
            events.extend(choice.parser.feed(channel, text))
        if delta.finish_reason is not None:
            events.extend(choice.parser.finish(delta.finish_reason))
            choice.stop_reason = delta.stop_reason
            choice.usage = delta.usage or choice.usage
        position = 0
        while position < len(events):
            position = self._merge(choice, events, position)
        if delta.finish_reason is not None:
            length = delta.finish_reason == "length"
            if choice.call_is_open:  # cut by the limit: no call came of it
                choice.calls.pop()
            choice.finish_reason = "tool_calls" if choice.calls else "length" if length else "stop"
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

    def _usage(self) -> dict[str, Any]:
        usages = [choice.usage for choice in self._choices]
        return completion_usage(
            max(usage[0] for usage in usages),
            sum(usage[1] for usage in usages),
            sum(usage[2] for usage in usages),
            usages[0][3],
        )

    def _details(self) -> dict[str, Any]:
        usage = self._usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        timings = self._clock.timings(usage["prompt_tokens"], usage["completion_tokens"], cached)
        return details(self._request, self._engine.profile, self._effective, timings)

    def _write(self, choice: Choice, kind: str, value: Any) -> None:
        """Text of one kind ("content", "reasoning"), or a call: whole ("call"), or under a grammar its beginning
        ("open") and pieces of its arguments ("arguments")."""
        raise NotImplementedError

    def _write_end(self, choice: Choice) -> None:
        raise NotImplementedError


class ChatAnswer(Reading):
    """One chat request on its way (see `stream.Answer`)."""

    def __init__(
        self,
        request: ChatRequest,
        engine: ServingEngine,
        prompt_ids: list[int],
        effective: int,
        clock: Clock,
        grammar: Grammar | None = None,
    ) -> None:
        super().__init__(request, engine, prompt_ids, effective, clock, grammar)
        self._appeared = 0
        self._out: list[str] = []
        profile: Profile = engine.profile
        self._head: dict[str, Any] = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": profile.name,
            "system_fingerprint": profile.fingerprint,
        }
        if request.ignored:
            self._head["ignored_parameters"] = request.ignored
        if grammar is not None and grammar.warnings:
            self._head["schema_warnings"] = grammar.warnings
        self._head_text = encode_json(self._head)[:-1] + ',"choices":'
        self._tail_text = ',"usage":null}' if request.include_usage else "}"

    def take(self) -> bytes:
        if not self._out:
            return b""
        chunks = b"".join(map(event, self._out))
        self._out.clear()
        return chunks

    def close_events(self) -> bytes:
        closing = self.take()
        extra = self._closing_members()
        if extra:
            closing += event(encode_json({**self._head, "choices": [], **extra}))
        return closing + b"data: [DONE]\n\n"

    def body(self) -> dict[str, Any]:
        value = {
            **self._head,
            "choices": [self._choice_body(choice) for choice in self._choices],
            "usage": self._usage(),
            "service_tier": "default",
        }
        if self._request.return_token_ids:
            value["prompt_token_ids"] = self._prompt_ids
        if self._request.return_details:
            value.update(self._details())
        return value

    def _write(self, choice: Choice, kind: str, value: Any) -> None:
        if not self.stream:
            if kind == "content":
                choice.content.append(value)
            elif kind == "reasoning":
                choice.reasoning.append(value)
        elif kind == "call":
            self._write(choice, "open", value)
            self._write(choice, "arguments", value["function"]["arguments"])
        elif kind == "open":
            function = {"name": value["function"]["name"], "arguments": ""}
            self._chunk(choice, {"tool_calls": [{**value, "index": len(choice.calls) - 1, "function": function}]})
        elif kind == "arguments":
            index = len(choice.calls) - 1
            self._chunk(choice, {"tool_calls": [{"index": index, "function": {"arguments": value}}]})
        else:
            choice.has_content |= kind == "content"
            self._chunk(choice, {kind: value})

    def _write_end(self, choice: Choice) -> None:
        if not self.stream:
            return
        if not choice.has_content and not choice.calls:
            self._chunk(choice, {"content": ""})
        self._chunk(choice, {}, choice.finish_reason)

    def _chunk(self, choice: Choice, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        extra = ""
        if not choice.has_role:
            delta = {"role": "assistant", **delta}
            choice.has_role = True
            if self._request.return_token_ids:
                extra = f',"prompt_token_ids":{encode_json(self._prompt_ids)}'
        logprobs = None
        if self._alternatives >= 0:
            logprobs, choice.logprobs = choice.logprobs.wire(), Logprobs()
        wire: dict[str, Any] = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        if choice.ids:
            wire["token_ids"], choice.ids = choice.ids, []
        if finish_reason is not None and self._request.return_details:
            wire["stop_reason"] = choice.stop_reason
            wire["reasoning_truncated"] = choice.thought_cut
        chunk = f"{self._head_text}[{encode_json(wire)}]{extra}{self._tail_text}"
        if choice.index <= self._appeared:
            self._out.append(chunk)
            if choice.index == self._appeared:
                self._release(choice.index)
        else:
            choice.held.append(chunk)

    def _release(self, index: int) -> None:
        """Choices appear first in the order 0, 1, 2, ...: the SDK's helper counts on it."""
        self._appeared = index + 1
        while self._appeared < len(self._choices) and self._choices[self._appeared].held:
            choice = self._choices[self._appeared]
            self._out.extend(choice.held)
            choice.held.clear()
            self._appeared += 1

    def _choice_body(self, choice: Choice) -> dict[str, Any]:
        content = "".join(choice.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
        }
        if choice.reasoning:
            message["reasoning"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = None
        if self._alternatives >= 0:
            logprobs = choice.logprobs.wire() or {"content": [], "refusal": None}
        value: dict[str, Any] = {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if self._request.return_token_ids:
            value["token_ids"] = choice.ids
        if self._request.return_details:
            value["stop_reason"] = choice.stop_reason
            value["reasoning_truncated"] = choice.thought_cut
        return value

    def _closing_members(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._request.include_usage:
            members["usage"] = self._usage()
        if self._request.return_details:
            members.update(self._details())
        return members
