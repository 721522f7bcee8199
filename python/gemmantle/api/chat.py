"""POST /chat/completions: from a validated request to a plain reply or to chunks in the order of spec api 5.3.

What the model says is read by `Reading`; `ChatAnswer` either keeps it for one body or writes chunks as it comes. The
routes /responses and `Engine.generate` render and submit their conversations here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmantle.api.choices import Chunks, head
from gemmantle.api.common import Clock, admit, prompt_logprobs, shortened
from gemmantle.api.constraints import build_grammar, set_budget
from gemmantle.api.protocol import Prompt, ServingEngine
from gemmantle.api.reading import Admitted, Choice, Logprobs, Reading
from gemmantle.api.schemas import ChatRequest, choice_sampling, read_chat
from gemmantle.api.stream import Work, encode_json
from gemmantle.errors import RequestError
from gemmantle.structured import Format, Grammar, Guide

__all__ = ["ChatAnswer", "Keep", "prepare", "rendered", "start", "submit"]

Keep = Callable[[dict[str, Any], list[dict[str, Any]]], None]


def start(body: dict[str, Any], engine: ServingEngine, keep: Keep | None = None) -> tuple[Work, ChatAnswer]:
    """Validate, render, submit: everything that can be refused is refused here (spec api T-21).

    keep: takes a finished reply and its messages where the request asks for them to be stored.
    """
    clock = Clock()
    request = read_chat(body, engine.profile)
    prompt = rendered(request, engine)
    ids = shortened(prompt.ids(), request.truncate_prompt_tokens)
    grammar, guide = prepare(request, engine, prompt, ids)
    work, effective = submit(request, engine, ids, guide)
    return work, ChatAnswer(Admitted(request, engine, ids, effective, clock, grammar), work, keep)


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
    messages = request.messages
    if request.form is not None and request.form.is_shown:
        messages = _with_schema(messages, request.form)
    prompt = engine.render_chat(messages, request.tools, request.thinking.on, **request.template)
    request.sampling.start_in_thought = prompt.starts_in_thought
    return prompt


def _with_schema(messages: list[dict[str, Any]], form: Format) -> list[dict[str, Any]]:
    """The schema of the reply as a system message, in front of what the first one says."""
    text = f"Answer with JSON that follows this schema:\n{encode_json(form.value)}"
    return [{"role": "system", "content": text}, *messages]


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
    banned = sampling.suppress
    return grammar, lambda: grammar.guide(opening, banned, starts_in_thought=prompt.starts_in_thought)


def submit(
    request: ChatRequest, engine: ServingEngine, ids: list[int], guide: Callable[[], Guide] | None = None
) -> tuple[Work, int]:
    """The choices on their way, and the effective token limit. Greedy choices are equal: one runs and is repeated."""
    distinct = 1 if request.sampling.temperature == 0 else request.n
    samplings = [choice_sampling(request.sampling, choice) for choice in range(distinct)]
    return admit(engine, [(ids, samplings)], "messages", guide)


class ChatAnswer(Reading):
    """One chat request on its way (see `stream.Answer`)."""

    def __init__(self, admitted: Admitted, work: Work, keep: Keep | None) -> None:
        super().__init__(admitted)
        request = admitted.request
        self._work = work
        self._keep = keep if request.store else None
        self._appeared = 0
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        self._head = head("chatcmpl-", kind, request, admitted.engine.profile, self._warnings)
        self._chunks = Chunks(self._head, request)
        self._keeps_parts = not request.stream or request.store

    def take(self) -> bytes:
        return self._chunks.take()

    def close_events(self) -> bytes:
        usage = self._usage()
        self._save()
        return self._chunks.close(usage, self._totals.members(self._choices, usage))

    def body(self) -> dict[str, Any]:
        value = self._body()
        self._save()
        return value

    def _body(self) -> dict[str, Any]:
        usage = self._usage()
        value = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice_body(choice) for choice in self._choices],
            "usage": usage,
            "service_tier": self._request.service_tier,
        }
        if self._request.return_token_ids:
            value["prompt_token_ids"] = self._prompt_ids
        if self._request.asks_prompt_logprobs:
            value["prompt_logprobs"] = prompt_logprobs(self._engine, self._prompt_ids, self._work.generation(0))
        value.update(self._totals.members(self._choices, usage))
        return value

    def _usage(self) -> dict[str, Any]:
        return self._totals.usage(self._choices, self._request.n)

    def _save(self) -> None:
        if self._keep is not None:
            self._keep({**self._body(), "metadata": self._request.metadata}, self._request.messages)

    def _write(self, choice: Choice, kind: str, value: Any) -> None:
        if self._keeps_parts:
            if kind == "content":
                choice.content.append(value)
            elif kind == "reasoning":
                choice.reasoning.append(value)
        if not self.stream:
            return
        if kind == "call":
            self._write(choice, "open", value)
            self._write(choice, "arguments", value["function"]["arguments"])
        elif kind in ("open", "arguments"):
            self._chunk(choice, self._call_delta(choice, kind, value))
        elif kind == "reasoning":
            self._chunk(choice, dict.fromkeys(self._request.reasoning_names, value))
        else:
            choice.has_content = True
            self._chunk(choice, {kind: value})

    def _call_delta(self, choice: Choice, kind: str, value: Any) -> dict[str, Any]:
        """A call that begins, or the next piece of its arguments."""
        function = {"arguments": value} if kind == "arguments" else {**value["function"], "arguments": ""}
        if self._request.legacy_functions:
            return {"function_call": function}
        call = {"index": len(choice.calls) - 1, "function": function}
        return {"tool_calls": [call if kind == "arguments" else {**value, **call}]}

    def _write_end(self, choice: Choice) -> None:
        if choice.calls and self._request.legacy_functions:
            choice.finish_reason = "function_call"
        if not self.stream:
            return
        if not choice.has_content and not choice.calls:
            self._chunk(choice, {"content": ""})
        self._chunk(choice, {}, choice.finish_reason)

    def _chunk(self, choice: Choice, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        beside = ""
        if not choice.has_role:
            delta = {"role": "assistant", **delta}
            choice.has_role = True
            if self._request.return_token_ids:
                beside = f',"prompt_token_ids":{encode_json(self._prompt_ids)}'
        logprobs = None
        if self._alternatives >= 0:
            logprobs, choice.logprobs = choice.logprobs.wire(), Logprobs()
        wire: dict[str, Any] = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            **choice.take_ids(),
        }
        if finish_reason is not None:
            wire.update(self._end_members(choice))
        chunk = self._chunks.framed(wire, beside)
        if choice.index <= self._appeared:
            self._chunks.add(chunk)
            if choice.index == self._appeared:
                self._release(choice.index)
        else:
            choice.held.append(chunk)

    def _release(self, index: int) -> None:
        """Choices appear first in the order 0, 1, 2, ...: the SDK's helper counts on it."""
        self._appeared = index + 1
        while self._appeared < len(self._choices) and self._choices[self._appeared].held:
            choice = self._choices[self._appeared]
            self._chunks.add(*choice.held)
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
            message.update(dict.fromkeys(self._request.reasoning_names, "".join(choice.reasoning)))
        if choice.calls and self._request.legacy_functions:
            message["function_call"] = choice.calls[0]["function"]
        elif choice.calls:
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
        return {**value, **self._end_members(choice)}

    def _end_members(self, choice: Choice) -> dict[str, Any]:
        if not self._request.return_details:
            return {}
        return {"stop_reason": choice.stop_reason, "reasoning_truncated": choice.thought_cut}
