"""Requests and answers in the Gemini API's shape (spec api 10.2), either spelling of names (snake or camel case).

`to_request` gives the keyword arguments of `client.chat.completions.create`, `from_completion` the answer in Gemini's
parts, `schema` the JSON Schema of a response_schema, `call_arguments` the dict of a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gemmantle.errors import RequestError
from gemmantle.names import canonical

__all__ = ["call_arguments", "from_completion", "schema", "to_request"]

_TYPES = {"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"}
_NESTED = ("properties", "$defs", "defs")
_LISTS = ("anyOf", "any_of", "oneOf", "allOf", "prefixItems")
_CONFIG = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_output_tokens": "max_completion_tokens",
    "candidate_count": "n",
    "stop_sequences": "stop",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}


def schema(dialect: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of Gemini's dialect: upper-case types, `nullable`, `propertyOrdering`, counts written as text."""
    found: dict[str, Any] = {}
    for name, value in dialect.items():
        key = _camel(name)
        if key == "type" and isinstance(value, str):
            found[key] = value.lower() if value in _TYPES else value
        elif key in _NESTED and isinstance(value, Mapping):
            found["$defs" if key == "defs" else key] = {inner: schema(part) for inner, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            found[key] = [schema(part) for part in value]
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            found[key] = schema(value)
        elif key in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"):
            found[key] = int(value)
        elif key not in ("nullable", "propertyOrdering"):
            found[key] = value
    order = dialect.get("propertyOrdering", dialect.get("property_ordering"))
    if order and "properties" in found:
        places = {name: place for place, name in enumerate(order)}
        ordered = sorted(found["properties"], key=lambda name: places.get(name, len(places)))
        found["properties"] = {name: found["properties"][name] for name in ordered}
    if dialect.get("nullable"):
        if "enum" in found and None not in found["enum"]:
            found["enum"] = [*found["enum"], None]
        if isinstance(found.get("type"), str):
            found["type"] = [found["type"], "null"]
        elif "type" not in found:
            found = {"anyOf": [found, {"type": "null"}]}
    return found


def call_arguments(call: Any) -> dict[str, Any]:
    """The arguments of a tool call of the client as a dict."""
    function = call["function"] if isinstance(call, Mapping) else call.function
    text = function["arguments"] if isinstance(function, Mapping) else function.arguments
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise RequestError(f"the arguments of a call are {text[:100]!r}; they must be an object")
    return value


def to_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A generateContent request as keyword arguments of `client.chat.completions.create`."""
    body = _snake_keys(request)
    for name in body:
        if name not in ("model", "contents", "system_instruction", "generation_config", "config", "tools",
                        "tool_config"):  # fmt: skip
            raise _unknown(name)
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("`model` is missing", code="missing_required_parameter", param="model")
    config = _snake_keys(body.get("generation_config") or body.get("config") or {})
    # The Python package of that API puts these into one object.
    system = body.get("system_instruction", config.pop("system_instruction", None))
    tools = body.get("tools", config.pop("tools", None))
    tool_config = body.get("tool_config", config.pop("tool_config", None))
    messages = _messages(body.get("contents"))
    if system is not None:
        messages.insert(0, {"role": "system", "content": _system_text(system)})
    found: dict[str, Any] = {"model": canonical(model.removeprefix("models/")), "messages": messages}
    found.update(_config(config))
    if tools:
        found["tools"] = _tools(tools)
    if tool_config is not None:
        found["tool_choice"] = _tool_choice(_snake_keys(tool_config))
    return found


def from_completion(completion: Any) -> dict[str, Any]:
    """An answer of the client as a generateContent answer: thoughts are parts with `thought`, calls have `args`."""
    candidates = []
    for choice in completion.choices:
        parts: list[dict[str, Any]] = []
        thoughts = getattr(choice.message, "reasoning", None)
        if thoughts:
            parts.append({"text": thoughts, "thought": True})
        if choice.message.content:
            parts.append({"text": choice.message.content})
        for call in choice.message.tool_calls or ():
            parts.append({"functionCall": {"id": call.id, "name": call.function.name, "args": call_arguments(call)}})
        candidates.append(
            {
                "index": choice.index,
                "content": {"role": "model", "parts": parts},
                "finishReason": _REASONS.get(choice.finish_reason, "OTHER"),
            }
        )
    found: dict[str, Any] = {"candidates": candidates, "modelVersion": completion.model, "responseId": completion.id}
    usage = completion.usage
    if usage is not None:
        details = usage.completion_tokens_details
        thought_tokens = (details.reasoning_tokens or 0) if details is not None else 0
        found["usageMetadata"] = {
            "promptTokenCount": usage.prompt_tokens,
            "candidatesTokenCount": usage.completion_tokens - thought_tokens,
            "thoughtsTokenCount": thought_tokens,
            "totalTokenCount": usage.total_tokens,
        }
    return found


def _config(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    response_schema = config.pop("response_schema", None)
    json_schema = config.pop("response_json_schema", None)
    mime = config.pop("response_mime_type", None)
    if mime not in (None, "text/plain", "application/json"):
        raise RequestError(
            f"`response_mime_type` is {mime!r}; it must be 'application/json' or 'text/plain'",
            param="response_mime_type",
        )
    if response_schema is not None or json_schema is not None:
        given = schema(response_schema) if response_schema is not None else json_schema
        found["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": given, "strict": True},
        }
    elif mime == "application/json":
        found["response_format"] = {"type": "json_object"}
    thinking = config.pop("thinking_config", None)
    if thinking is not None:
        found.update(_thinking(_snake_keys(thinking)))
    for name, value in config.items():
        if name == "top_k":
            found.setdefault("extra_body", {})["top_k"] = int(value)
        elif name in _CONFIG:
            found[_CONFIG[name]] = value
        else:
            raise _unknown(f"generation_config.{name}")
    return found


def _thinking(config: dict[str, Any]) -> dict[str, Any]:
    level = str(config.get("thinking_level", "high")).lower()
    if level not in ("minimal", "high"):
        raise RequestError(
            f"`thinking_level` is {level!r}; this model knows 'minimal' and 'high'", param="thinking_config"
        )
    found: dict[str, Any] = {"reasoning_effort": "high" if level == "high" else "none"}
    if level == "high" and config.get("include_thoughts") is False:
        found["extra_body"] = {"include_reasoning": False}
    return found


def _messages(contents: Any) -> list[dict[str, Any]]:
    if isinstance(contents, str):
        return [{"role": "user", "content": contents}]
    if not isinstance(contents, list) or not contents:
        raise RequestError("`contents` must be a text or a list of contents", param="contents")
    messages: list[dict[str, Any]] = []
    pending: list[tuple[str, str]] = []  # calls without their results: (id, name)
    for position, content in enumerate(contents):
        path = f"contents[{position}]"
        if isinstance(content, str):
            messages.append({"role": "user", "content": content})
            continue
        role = content.get("role", "user")
        if role not in ("user", "model", "function"):
            raise RequestError(f"`{path}.role` is {role!r}; it must be 'user' or 'model'", param=f"{path}.role")
        messages.extend(_content(content.get("parts") or [], role, path, pending))
    return messages


def _content(parts: list[Any], role: str, path: str, pending: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """One content is one message, and one more for each function response in it."""
    texts: list[dict[str, Any]] = []
    thoughts = ""
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, given in enumerate(parts):
        where = f"{path}.parts[{number}]"
        part: dict[str, Any] = {"text": given} if isinstance(given, str) else _snake_keys(given)
        if "text" in part:
            if part.get("thought"):
                thoughts += part["text"]
            else:
                texts.append({"type": "text", "text": part["text"]})
        elif "inline_data" in part:
            data = _snake_keys(part["inline_data"])
            url = f"data:{data.get('mime_type', 'image/png')};base64,{data.get('data', '')}"
            texts.append({"type": "image_url", "image_url": {"url": url}})
        elif "file_data" in part:
            address = _snake_keys(part["file_data"]).get("file_uri")
            texts.append({"type": "image_url", "image_url": {"url": address}})
        elif "function_call" in part:
            call = part["function_call"]
            call_id = call.get("id") or f"call_{path}.{number}"
            pending.append((call_id, call["name"]))
            function = {"name": call["name"], "arguments": json.dumps(call.get("args") or {}, ensure_ascii=False)}
            calls.append({"id": call_id, "type": "function", "function": function})
        elif "function_response" in part:
            answer = part["function_response"]
            found = next(
                (entry for entry in pending if entry[0] == answer.get("id")),
                next((entry for entry in pending if entry[1] == answer.get("name")), None),
            )
            if found is None:
                raise RequestError(f"`{where}` answers a call that was not made before it", param=where)
            pending.remove(found)
            text = json.dumps(answer.get("response"), ensure_ascii=False)
            results.append({"role": "tool", "tool_call_id": found[0], "content": text})
        else:
            raise RequestError(f"`{where}` has none of the known kinds of parts", param=where)
    messages = list(results)
    if texts or calls or (thoughts and role == "model"):
        plain = all(part["type"] == "text" for part in texts)
        content = "".join(part["text"] for part in texts) if plain else texts
        message: dict[str, Any] = {"role": "assistant" if role == "model" else "user", "content": content}
        if thoughts and role == "model":
            message["reasoning"] = thoughts
        if calls:
            message["tool_calls"] = calls
            message["content"] = content or None
        messages.append(message)
    return messages


def _system_text(system: Any) -> str:
    if isinstance(system, str):
        return system
    parts = system.get("parts", []) if isinstance(system, Mapping) else system
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


def _tools(tools: Any) -> list[dict[str, Any]]:
    found = []
    for position, given in enumerate(tools):
        tool = _snake_keys(given)
        if set(tool) != {"function_declarations"}:
            raise RequestError(
                f"`tools[{position}]` holds {', '.join(tool)}; only function_declarations are offered",
                code="unsupported_tool",
                param=f"tools[{position}]",
            )
        for declaration in tool["function_declarations"]:
            function = _snake_keys(declaration)
            entry = {"name": function["name"]}
            if "description" in function:
                entry["description"] = function["description"]
            if "parameters_json_schema" in function:
                entry["parameters"] = function["parameters_json_schema"]
            elif function.get("parameters") is not None:
                entry["parameters"] = schema(function["parameters"])
            found.append({"type": "function", "function": entry})
    return found


def _tool_choice(config: Mapping[str, Any]) -> Any:
    calling = _snake_keys(config.get("function_calling_config") or {})
    mode = str(calling.get("mode", "AUTO")).upper()
    names = calling.get("allowed_function_names") or []
    if mode in ("AUTO", "NONE"):
        return mode.lower()
    if mode != "ANY":
        raise RequestError(f"`mode` is {mode!r}; it must be AUTO, ANY or NONE", param="tool_config")
    if len(names) == 1:
        return {"type": "function", "function": {"name": names[0]}}
    if names:
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    return "required"


def _unknown(name: str) -> RequestError:
    return RequestError(f"unknown field `{name[:100]}`", code="unknown_parameter", param=name[:100])


def _snake_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    return {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): item for name, item in value.items()}


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
