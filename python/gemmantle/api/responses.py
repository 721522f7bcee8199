"""POST /responses: a request in items, an answer in items, streamed in the order of spec api 6.3 or kept for polling.

A request becomes a chat request and is read, rendered and submitted like one, so that every sampling field, tool and
format means the same on both routes. `ResponseAnswer` writes what the model says as items; each change of an item is an
event with the next number. Hosted tools, conversations, prompts by id and moderation are refused by name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.background import Following, Job, State
from gemmantle.api.chat import prepare, rendered, submit
from gemmantle.api.common import Clock, new_id
from gemmantle.api.fields import INT64, Fields, show
from gemmantle.api.items import Conversation, packed, read_items, read_tool_choice, read_tools, renamed
from gemmantle.api.problems import Problem
from gemmantle.api.protocol import ByteStream, Delta, Profile, Prompt, ServingEngine
from gemmantle.api.reading import Admitted, Choice, Reading
from gemmantle.api.schemas import CHAT_FIELDS, ChatRequest, read_chat
from gemmantle.api.store import Record
from gemmantle.api.stream import Work, encode_json, event
from gemmantle.errors import RequestError

__all__ = ["ResponseAnswer", "count_tokens", "start"]

_OWN = {
    "input", "instructions", "max_output_tokens", "previous_response_id", "store", "background", "metadata", "include",
    "truncation", "text", "reasoning", "reasoning_summary", "max_tool_calls", "tools", "tool_choice", "top_logprobs",
    "user", "safety_identifier",
}  # fmt: skip
# Fields of chat requests with another name here, and the ones that belong to several choices.
_ELSEWHERE = {
    "messages": "it is `input` here",
    "max_tokens": "it is `max_output_tokens` here",
    "max_completion_tokens": "it is `max_output_tokens` here",
    "response_format": "it is `text.format` here",
    "reasoning_effort": "it is `reasoning.effort` here",
    "logprobs": "put 'message.output_text.logprobs' into `include`",
    "n": "a response has one answer; send several requests",
    "prompt_logprobs": "ask /chat/completions or /completions",
    "truncate_prompt_tokens": "it is `truncation`: 'auto' here",
    "reasoning_field": "thoughts are items of their own here",
    "continue_final_message": "a response is a message of its own",
    "add_generation_prompt": "a response is a message of its own",
}
_FOREIGN = {
    "conversation": "link the turns with `previous_response_id`",
    "prompt": "prompts are not stored here; write it into `instructions` and `input`",
    "context_management": "use `truncation`: 'auto'",
    "moderation": "answers are not moderated",
    "access_programs": "there are none here",
    "image": "images are not made here",
}
_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"
# The rest asks for results of hosted tools, of which there never are any.
_INCLUDABLE = {
    _LOGPROBS, _ENCRYPTED, "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
}  # fmt: skip
_KNOWN = set(CHAT_FIELDS - set(_ELSEWHERE)) | _OWN
_PASSED_ON = CHAT_FIELDS - set(_ELSEWHERE) - _OWN

# Codes that an error inside a response may have; everything else is a fault of the server.
_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass
class ResponseRequest:
    """POST /responses, read."""

    chat: ChatRequest
    conversation: Conversation
    items: list[dict[str, Any]]  # of this request alone
    echo: dict[str, Any]
    include: list[str] = field(default_factory=list)
    store: bool = True
    background: bool = False
    copies_thoughts: bool = False
    max_tool_calls: int = INT64
    truncates: bool = False


def start(body: dict[str, Any], engine: ServingEngine, state: State) -> tuple[Work, ResponseAnswer]:
    """Validate, render, submit: everything that can be refused is refused here (spec api T-21)."""
    clock = Clock()
    request = _read(body, engine.profile, state)
    try:
        prompt, ids, dropped = _render(request, engine)
        grammar, guide = prepare(request.chat, engine, prompt, ids)
        work, effective = submit(request.chat, engine, ids, guide)
    except RequestError as exc:
        raise renamed(exc, request.conversation.origins) from None
    if dropped:
        request.echo["truncated_turns"] = dropped
    return work, ResponseAnswer(request, Admitted(request.chat, engine, ids, effective, clock, grammar), state)


def count_tokens(body: dict[str, Any], engine: ServingEngine, state: State) -> dict[str, Any]:
    """POST /responses/input_tokens: what the prompt would count, without running it."""
    body = {key: value for key, value in body.items() if key != "personality"}
    if body.get("input") is None:
        raise RequestError("`input` is missing", code="missing_required_parameter", param="input")
    request = _read({**body, "store": False}, engine.profile, state)
    try:
        _, ids, _ = _render(request, engine)
    except RequestError as exc:
        raise renamed(exc, request.conversation.origins) from None
    return {"object": "response.input_tokens", "input_tokens": len(ids)}


def _render(request: ResponseRequest, engine: ServingEngine) -> tuple[Prompt, list[int], int]:
    """The prompt, its ids, and how many turns were dropped from its front to make it fit."""
    chat = request.chat
    prompt = rendered(chat, engine)
    ids = prompt.ids()
    window = engine.profile.max_context
    if not request.truncates or len(ids) < window:
        return prompt, ids, 0
    limit = chat.sampling.max_tokens
    room = max(1, min(256 if limit < 0 else limit, window // 4))
    dropped = 0
    while len(ids) + room > window and request.conversation.drop_oldest_turn():
        dropped += 1
        chat.messages = request.conversation.messages
        prompt = rendered(chat, engine)
        ids = prompt.ids()
    return prompt, ids, dropped


def _read(body: dict[str, Any], profile: Profile, state: State) -> ResponseRequest:
    for name in body:
        if body[name] is None or profile.unknown_fields == "report":
            continue
        if name in _ELSEWHERE:
            raise RequestError(f"unknown field `{name}`: {_ELSEWHERE[name]}", code="unknown_parameter", param=name)
        if name in _FOREIGN:
            raise RequestError(f"`{name}` is not supported: {_FOREIGN[name]}", code="unsupported_parameter", param=name)
    fields = Fields({name: value for name, value in body.items() if name not in _FOREIGN}, _KNOWN, profile)
    fields.ignored += [name for name in _FOREIGN if body.get(name) is not None]
    include = _read_include(fields)
    chat_body = _chat_body(fields, include)
    items = read_items(fields.required("input"), state.store.find_item)
    conversation = Conversation()
    instructions = fields.values.get("instructions")
    if instructions is not None:
        conversation.instruct(fields.text("instructions"))
    previous = fields.values.get("previous_response_id")
    if previous is not None:
        for record in state.chain(fields.text("previous_response_id")):
            conversation.extend(record.items, "previous_response_id")
            conversation.extend(record.response["output"], "previous_response_id")
    conversation.extend(items)
    conversation.closed()
    try:
        chat = read_chat({**chat_body, "messages": conversation.messages}, profile)
    except RequestError as exc:
        raise renamed(exc, conversation.origins) from None
    conversation.messages = chat.messages
    chat.ignored = fields.ignored
    request = ResponseRequest(
        chat=chat,
        conversation=conversation,
        items=items,
        echo={},
        include=include,
        store=fields.boolean("store", True),
        background=fields.boolean("background", False),
        max_tool_calls=fields.integer("max_tool_calls", INT64, 1, INT64),
    )
    if request.background and not request.store:
        raise RequestError("`background` needs `store`: true, for its answer is fetched later", param="background")
    if request.background and fields.values.get("service_tier", "auto") == "auto":
        chat.service_tier = "flex"  # nobody waits for it
    reasoning = _read_reasoning(fields, request, chat_body)
    request.truncates = _one_of(fields, "truncation", ("disabled", "auto")) == "auto"
    request.copies_thoughts = _one_of(fields, "reasoning_summary", ("none", "verbatim")) == "verbatim"
    request.echo = _echo(fields, request, reasoning)
    return request


def _chat_body(fields: Fields, include: list[str]) -> dict[str, Any]:
    """The chat request that asks for the same; what both routes know goes on under the caller's own spelling."""
    values = fields.values
    body = {fields.written[name]: values[name] for name in values if name in _PASSED_ON}
    if "max_output_tokens" in values:
        body["max_completion_tokens"] = fields.integer("max_output_tokens", 1, 1, INT64 - 1)
    if "tools" in values:
        body["tools"] = read_tools(values["tools"])
    if "tool_choice" in values:
        body["tool_choice"] = read_tool_choice(values["tool_choice"])
    top = fields.integer("top_logprobs", 0, 0, 20)
    if _LOGPROBS in include:
        body.update(logprobs=True, top_logprobs=top)
    text = _object(fields, "text", ("format", "verbosity"))
    if text.get("verbosity") not in (None, "medium"):
        raise RequestError(
            f"`text.verbosity` = {show(text['verbosity'])} is not supported: say in the instructions how long the "
            "answer should be",
            code="unsupported_parameter",
            param="text.verbosity",
        )
    if text.get("format") is not None:
        body["response_format"] = _response_format(text["format"])
    effort = _object(fields, "reasoning", _REASONING).get("effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    return body


def _response_format(value: Any) -> Any:
    """`text.format` in the form of chat requests, which honour or refuse it."""
    if isinstance(value, dict) and value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: value[key] for key in value if key != "type"}}
    return value


_REASONING = ("effort", "summary", "generate_summary", "context", "mode")


def _read_reasoning(fields: Fields, request: ResponseRequest, chat_body: dict[str, Any]) -> dict[str, Any]:
    """The member as it is echoed. A summary may be asked for: no summariser exists, so the list stays empty."""
    reasoning = _object(fields, "reasoning", _REASONING)
    for name, allowed in (
        ("summary", ("auto", "concise", "detailed")),
        ("generate_summary", ("auto", "concise", "detailed")),
        ("context", ("auto", "current_turn", "all_turns")),
    ):
        value = reasoning.get(name)
        if value is not None and value not in allowed:
            path = f"reasoning.{name}"
            raise RequestError(f"`{path}` is {show(value)}; it must be one of {', '.join(allowed)}", param=path)
    if reasoning.get("mode") not in (None, "standard"):
        raise RequestError(
            f"`reasoning.mode` = {show(reasoning['mode'])} is not supported: there is one mode, 'standard'",
            code="unsupported_parameter",
            param="reasoning.mode",
        )
    context = "all_turns" if reasoning.get("context") == "all_turns" else "current_turn"
    if context == "all_turns":
        request.chat.template["preserve_thinking"] = True
    effort = chat_body.get("reasoning_effort") or ("high" if request.chat.thinking.on else "none")
    return {"effort": effort, "summary": reasoning.get("summary"), "context": context}


def _read_include(fields: Fields) -> list[str]:
    include = fields.values.get("include", [])
    if not isinstance(include, list) or not all(isinstance(name, str) and name in _INCLUDABLE for name in include):
        raise RequestError(
            f"`include` is {show(include)}; it must be a list of {', '.join(sorted(_INCLUDABLE))}", param="include"
        )
    return include


def _object(fields: Fields, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    value = fields.values.get(name, {})
    if not isinstance(value, dict):
        raise RequestError(f"`{name}` is {show(value)}; it must be an object", param=name)
    for key in value:
        if key not in keys:
            path = f"{name}.{key}"[:100]
            raise RequestError(
                f"unknown field `{path}`; there are {', '.join(keys)}", code="unknown_parameter", param=path
            )
    return value


def _one_of(fields: Fields, name: str, allowed: tuple[str, ...]) -> str:
    """The first of the allowed values is the default."""
    value = fields.values.get(name, allowed[0])
    if value not in allowed:
        raise RequestError(f"`{name}` is {show(value)}; it must be one of {', '.join(allowed)}", param=name)
    return str(value)


def _echo(fields: Fields, request: ResponseRequest, reasoning: dict[str, Any]) -> dict[str, Any]:
    """Settings as they took effect (spec api 6.2)."""
    values = fields.values
    sampling = request.chat.sampling
    text = values.get("text") or {}
    return {
        "instructions": values.get("instructions"),
        "max_output_tokens": None if "max_output_tokens" not in values else sampling.max_tokens,
        "max_tool_calls": values.get("max_tool_calls"),
        "metadata": fields.metadata(),
        "parallel_tool_calls": not sampling.single_call,
        "previous_response_id": values.get("previous_response_id"),
        "reasoning": reasoning,
        "service_tier": request.chat.service_tier,
        "store": request.store,
        "temperature": sampling.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": values.get("tool_choice", "auto"),
        "tools": [_echo_tool(tool) for tool in values.get("tools") or []],
        "top_logprobs": values.get("top_logprobs", 0),
        "top_p": sampling.top_p,
        "truncation": "auto" if request.truncates else "disabled",
        "user": values.get("user"),
        "safety_identifier": values.get("safety_identifier"),
        "background": request.background,
    }


def _echo_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": False, **tool}


class ResponseAnswer(Reading):
    """One response on its way. Items open, grow and close; each change is an event where somebody may want it."""

    _request: ChatRequest

    def __init__(self, request: ResponseRequest, admitted: Admitted, state: State) -> None:
        super().__init__(admitted)
        self._asked = request
        self._state = state
        self._wants_events = request.chat.stream or request.background
        self._events: list[bytes] = []
        self._number = 0
        self._open: _OpenItem | None = None
        self._calls = 0
        self._has_opened = False
        self._is_cut = False
        profile = admitted.engine.profile
        self.name = new_id("resp_")
        self._response: dict[str, Any] = {
            "id": self.name,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "queued" if request.background else "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": profile.name,
            "output": [],
            "usage": None,
            **request.echo,
            "system_fingerprint": profile.fingerprint,
        }
        if request.chat.ignored:
            self._response["ignored_parameters"] = request.chat.ignored
        if self._warnings:
            self._response["schema_warnings"] = self._warnings
        if request.chat.return_token_ids:
            self._response["prompt_token_ids"] = admitted.prompt_ids
        self._output: list[dict[str, Any]] = self._response["output"]

    # -- what the doors use (see `stream.Answer`)

    def opening(self) -> bytes:
        if not self._has_opened:
            self._has_opened = True
            self._emit("response.created", response=self._response)
            if self._asked.background:
                self._emit("response.queued", response=self._response)
            else:
                self._emit("response.in_progress", response=self._response)
        return self.take()

    def feed(self, choice: int, delta: Delta) -> None:
        if self._response["status"] == "queued":
            self._response["status"] = "in_progress"
            self._emit("response.in_progress", response=self._response)
        self._is_cut = delta.finish_reason == "length"
        super().feed(choice, delta)

    def take(self) -> bytes:
        """Background answers keep every event for readers to come (spec api section 0, 6.4)."""
        if self._asked.background:
            return b""
        taken, self._events = self._events, []
        return b"".join(taken)

    def close_events(self) -> bytes:
        self.save()
        return self.take()

    def body(self) -> dict[str, Any]:
        self.save()
        return self._response

    def failed(self, problem: Problem) -> bytes:
        code = _ERROR_CODES.get(problem.status, "server_error")
        error = {"code": code, "message": problem.message}
        self._finish("failed", error=error)
        if not self._asked.background:
            self.save()
        return self.take()

    def detached(self, work: Work, timeout: float | None) -> dict[str, Any] | ByteStream | None:
        """In the background the answer goes on by itself; a stream is one of its readers."""
        if not self._asked.background:
            return None
        self.opening()
        self.save()
        queued = self.snapshot()
        job = Job(work, self)
        self._state.drive(job)
        return Following(job, 0, timeout) if self.stream else queued

    # -- what the background uses (see `background.BackgroundAnswer`)

    def snapshot(self) -> dict[str, Any]:
        return {**self._response, "output": list(self._output)}

    def events_from(self, position: int) -> list[bytes]:
        return self._events[position:]

    def cancelled(self) -> None:
        self._finish("cancelled")

    def save(self) -> None:
        if self._asked.store:
            events = self._events if self._asked.background else []
            self._state.store.put(Record(self._response, self._asked.items, events))

    # -- what the reading writes

    def _write(self, choice: Choice, kind: str, value: Any) -> None:
        if kind == "call":
            self._write(choice, "open", value)
            self._write(choice, "arguments", value["function"]["arguments"])
            if self._calls <= self._asked.max_tool_calls:
                self._close("completed")  # it is whole, whatever cuts the answer after it
            return
        if kind in ("open", "arguments"):
            self._calls += kind == "open"
            if self._calls <= self._asked.max_tool_calls:  # further ones are ignored, as the field says
                self._write_call(kind, value)
            return
        if self._open is None or self._open.kind != kind:
            self._close("completed")
            self._open = self._begin_text(kind)
        entries: list[dict[str, Any]] = []
        if kind == "content":
            entries, choice.logprobs.content = choice.logprobs.content, []
        self._open.add(value, entries)
        members: dict[str, Any] = {"content_index": 0, "delta": value}
        if kind == "content":
            members["logprobs"] = entries
        self._emit_item(self._open.delta_event, **members)

    def _write_end(self, choice: Choice) -> None:
        if self._open is not None and self._open.kind == "content":
            self._open.add("", choice.logprobs.content)
        if self._open is not None and self._open.kind == "call" and not choice.call_is_open:
            self._close("completed")  # the last one, made under a grammar
        if not self._output and self._open is None:
            self._open = self._begin_text("content")
        self._finish("incomplete" if self._is_cut else "completed")

    def _write_call(self, kind: str, value: Any) -> None:
        """A call opens, or its arguments grow; what is written next closes it."""
        if kind == "arguments":
            assert self._open is not None
            self._open.add(value, [])
            self._emit_item("response.function_call_arguments.delta", delta=value)
            return
        self._close("completed")
        item = {
            "id": new_id("fc_"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": value["id"],
            "name": value["function"]["name"],
            "arguments": "",
        }
        self._open = _OpenItem("call", item)
        self._emit("response.output_item.added", output_index=len(self._output), item=item)

    def _begin_text(self, kind: str) -> _OpenItem:
        if kind == "content":
            own: dict[str, Any] = {"id": new_id("msg_"), "type": "message", "role": "assistant"}
        else:
            own = {"id": new_id("rs_"), "type": "reasoning", "summary": []}
        opened = _OpenItem(kind, {**own, "status": "in_progress", "content": []})
        self._open = opened
        self._emit("response.output_item.added", output_index=len(self._output), item=opened.item)
        self._emit_item("response.content_part.added", content_index=0, part=opened.part())
        return opened

    def _close(self, status: str) -> None:
        """Finish the open item, so that an `added` is followed by its `done` whatever happened (spec api S-1)."""
        opened = self._open
        if opened is None:
            return
        text = opened.text
        item = opened.item
        item["status"] = status
        if opened.kind == "call":
            item["arguments"] = text
            self._emit_item("response.function_call_arguments.done", arguments=text, name=item["name"])
        else:
            part = opened.part()
            extra = {"logprobs": opened.logprobs} if opened.kind == "content" else {}
            self._emit_item(opened.done_event, content_index=0, text=text, **extra)
            self._emit_item("response.content_part.done", content_index=0, part=part)
            item["content"] = [part]
            if opened.kind == "reasoning":
                self._complete_thought(item, text)
        self._emit("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None

    def _complete_thought(self, item: dict[str, Any], text: str) -> None:
        if self._asked.copies_thoughts:
            part = {"type": "summary_text", "text": text}
            self._emit_item("response.reasoning_summary_part.added", summary_index=0, part={**part, "text": ""})
            self._emit_item("response.reasoning_summary_text.delta", summary_index=0, delta=text)
            self._emit_item("response.reasoning_summary_text.done", summary_index=0, text=text)
            self._emit_item("response.reasoning_summary_part.done", summary_index=0, part=part)
            item["summary"] = [part]
        if _ENCRYPTED in self._asked.include:
            item["encrypted_content"] = packed(text)

    def _finish(self, status: str, error: dict[str, Any] | None = None) -> None:
        """The end, exactly once. There is no event of its own for `cancelled`."""
        if self._response["completed_at"] is not None:
            return
        self._close("completed" if status == "completed" else "incomplete")
        response = self._response
        response.update(status=status, error=error, completed_at=int(time.time()))
        choice = self._choices[0]
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if status in ("completed", "incomplete"):
            response["usage"] = _usage(*choice.usage)
            if self._request.return_token_ids:
                response["token_ids"] = choice.ids
            if self._request.return_details:
                response["stop_reason"] = choice.stop_reason
                response.update(self._totals.members([choice], self._totals.usage([choice], 1)))
        self._emit(f"response.{'incomplete' if status == 'cancelled' else status}", response=response)

    def _emit_item(self, kind: str, **members: Any) -> None:
        if self._wants_events and self._open is not None:
            self._emit(kind, item_id=self._open.item["id"], output_index=len(self._output), **members)

    def _emit(self, kind: str, **members: Any) -> None:
        if self._wants_events:
            data = encode_json({"type": kind, "sequence_number": self._number, **members})
            self._events.append(event(data, kind))
            self._number += 1


class _OpenItem:
    """The item that grows; its text is joined when it closes."""

    def __init__(self, kind: str, item: dict[str, Any]) -> None:
        self.kind = kind
        self.item = item
        self.logprobs: list[dict[str, Any]] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def delta_event(self) -> str:
        return "response.output_text.delta" if self.kind == "content" else "response.reasoning_text.delta"

    @property
    def done_event(self) -> str:
        return "response.output_text.done" if self.kind == "content" else "response.reasoning_text.done"

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._pieces.append(text)
        self.logprobs.extend(logprobs)

    def part(self) -> dict[str, Any]:
        if self.kind != "content":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


def _usage(prompt: int, completion: int, reasoning: int, cached: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
