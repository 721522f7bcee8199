"""Requests and answers in Ollama's shape (spec api 10.2): /api/chat bodies, `options`, `think`, `format`.

`to_request` gives the keyword arguments of `client.chat.completions.create`, `load_options` those of `gemmantle.load`
(num_ctx belongs there: a prompt is never cut in silence), `from_completion` the answer with `message.thinking`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gemmantle.errors import RequestError
from gemmantle.names import canonical

__all__ = ["from_completion", "load_options", "to_request"]

_FIELDS = {"model", "messages", "tools", "format", "options", "stream", "think", "keep_alive"}
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_EXTRA = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
_AT_LOAD = {"num_ctx": "max_context", "num_thread": "threads"}


def to_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat body as keyword arguments of `client.chat.completions.create`. keep_alive is the engine's lifetime."""
    for name in body:
        if name not in _FIELDS:
            raise RequestError(f"unknown field `{name[:100]}`", code="unknown_parameter", param=name[:100])
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("`model` is missing", code="missing_required_parameter", param="model")
    found: dict[str, Any] = {"model": canonical(model), "messages": _messages(body.get("messages"))}
    extra: dict[str, Any] = {}
    for name, value in (body.get("options") or {}).items():
        if name in _OPTIONS:
            found[_OPTIONS[name]] = value
        elif name in _EXTRA:
            extra[_EXTRA[name]] = value
        elif name == "num_predict":
            if value is not None and value > 0:  # -1 is no limit, which is the default here
                found["max_completion_tokens"] = value
        elif name not in _AT_LOAD:
            path = f"options.{name}"[:100]
            raise RequestError(f"`{path}` has no counterpart here; leave it out", code="unknown_parameter", param=path)
    form = body.get("format")
    if form == "json":
        found["response_format"] = {"type": "json_object"}
    elif isinstance(form, Mapping):
        json_schema = {"name": "format", "schema": dict(form), "strict": True}
        found["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    elif form not in (None, ""):
        raise RequestError(f"`format` is {form!r}; it must be 'json' or a schema", param="format")
    think = body.get("think")
    if think is not None:
        if not isinstance(think, bool) and think not in ("low", "medium", "high"):
            raise RequestError(f"`think` is {think!r}; it must be true, false, low, medium or high", param="think")
        found["reasoning_effort"] = {True: "high", False: "none"}[think] if isinstance(think, bool) else think
    if body.get("tools"):
        found["tools"] = body["tools"]
    if body.get("stream"):
        found["stream"] = True
    if extra:
        found["extra_body"] = extra
    return found


def load_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a body that belong to `gemmantle.load`: num_ctx and num_thread."""
    options = body.get("options") or {}
    return {target: options[name] for name, target in _AT_LOAD.items() if options.get(name)}


def from_completion(completion: Any) -> dict[str, Any]:
    """An answer of the client as the last object of /api/chat."""
    choice = completion.choices[0]
    message: dict[str, Any] = {"role": "assistant", "content": choice.message.content or ""}
    thoughts = getattr(choice.message, "reasoning", None)
    if thoughts:
        message["thinking"] = thoughts
    if choice.message.tool_calls:
        message["tool_calls"] = [
            {"function": {"name": call.function.name, "arguments": json.loads(call.function.arguments or "{}")}}
            for call in choice.message.tool_calls
        ]
    found = {
        "model": completion.model,
        "created_at": datetime.fromtimestamp(completion.created, UTC).isoformat().replace("+00:00", "Z"),
        "message": message,
        "done": True,
        "done_reason": "length" if choice.finish_reason == "length" else "stop",
    }
    if completion.usage is not None:
        found["prompt_eval_count"] = completion.usage.prompt_tokens
        found["eval_count"] = completion.usage.completion_tokens
    return found


def _messages(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise RequestError("`messages` must be a list of at least one message", param="messages")
    messages: list[dict[str, Any]] = []
    pending: list[tuple[str, str]] = []  # calls without their results: (id, name)
    for position, source in enumerate(given):
        path = f"messages[{position}]"
        message = {key: value for key, value in source.items() if key in ("role", "content")}
        if source.get("images"):
            pictures = [
                {"type": "image_url", "image_url": {"url": f"data:image/{_kind(image)};base64,{image}"}}
                for image in source["images"]
            ]
            message["content"] = [*pictures, {"type": "text", "text": source.get("content") or ""}]
        if source.get("thinking"):
            message["reasoning"] = source["thinking"]
        if source.get("tool_calls"):
            message["tool_calls"] = []
            for number, call in enumerate(source["tool_calls"]):
                function = call["function"]
                call_id = call.get("id") or f"call_{position}_{number}"
                pending.append((call_id, function["name"]))
                arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
                entry = {"name": function["name"], "arguments": arguments}
                message["tool_calls"].append({"id": call_id, "type": "function", "function": entry})
        if source.get("role") == "tool":
            name = source.get("tool_name") or source.get("name")
            found = next((entry for entry in pending if name is None or entry[1] == name), None)
            if found is None:
                raise RequestError(f"`{path}` answers a call that was not made before it", param=path)
            pending.remove(found)
            message["tool_call_id"] = found[0]
        messages.append(message)
    return messages


def _kind(base64_text: str) -> str:
    """The image format by the first characters of its base64."""
    known = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
    return next((kind for start, kind in known.items() if base64_text.startswith(start)), "png")
