"""Conversations and tools of a request: shapes, roles, and that every tool message answers a call (spec api C-16).

What the chat format makes of them is the template's work (`gemmantle.chat`); here a fault gets the path of its field.
"""

from __future__ import annotations

import difflib
from typing import Any

from gemmantle.api.fields import Fields, show
from gemmantle.errors import RequestError

__all__ = ["read_messages", "read_tools"]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGE_KEYS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content", "parsed",
    "annotations", "audio", "function_call",
}  # fmt: skip


def read_tools(fields: Fields) -> list[dict[str, Any]] | None:
    tools = fields.values.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise RequestError(f"`tools` is {show(tools)}; it must be a list of functions", param="tools")
    for position, tool in enumerate(tools):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise RequestError(f"`{path}` is {show(tool)}; it must be an object", param=path)
        if tool.get("type") != "function":
            raise RequestError(
                f"`{path}.type` is {show(tool.get('type'))}; only 'function' tools are supported",
                code="unsupported_tool",
                param=f"{path}.type",
            )
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"`{path}.function` must be an object with a `name`", param=f"{path}.function")
        for key, kind in (("description", str), ("parameters", dict)):
            if function.get(key) is not None and not isinstance(function[key], kind):
                where = f"{path}.function.{key}"
                found = show(function[key])
                raise RequestError(f"`{where}` is {found}; it must be of type {kind.__name__}", param=where)
        if not isinstance(function.get("strict"), bool | None):
            where = f"{path}.function.strict"
            raise RequestError(f"`{where}` is {show(function['strict'])}; it must be true or false", param=where)
    return tools or None


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Shapes and roles, and that every tool message answers a call made before it (spec api C-16)."""
    if not isinstance(value, list) or not value:
        raise RequestError(f"`messages` is {show(value)}; it must be a list of at least one message", param="messages")
    messages = []
    call_ids: set[str] = set()
    called: set[str] = set()  # functions, in the shape of before `tools`
    for position, message in enumerate(value):
        path = f"messages[{position}]"
        if not isinstance(message, dict):
            raise RequestError(f"`{path}` is {show(message)}; it must be an object", param=path)
        role = message.get("role")
        if role not in _ROLES:
            raise RequestError(
                f"`{path}.role` is {show(role)}; it must be one of {', '.join(_ROLES)}", param=f"{path}.role"
            )
        for key in message:
            if key not in _MESSAGE_KEYS:
                where = f"{path}.{key}"[:120]
                near = difflib.get_close_matches(key, sorted(_MESSAGE_KEYS), n=1)
                hint = f"; did you mean `{near[0]}`?" if near else "; remove it"
                raise RequestError(f"unknown field `{where}`{hint}", code="unknown_parameter", param=where)
        if message.get("audio") is not None:
            raise RequestError(
                f"`{path}.audio` is not supported: leave it out", code="unsupported_parameter", param=f"{path}.audio"
            )
        _check_content(message, role, path)
        if role == "assistant":
            call_ids |= _check_calls(message, path)
            called |= _check_function_call(message, path)
        elif role == "function" and message.get("name") not in called:
            raise RequestError(
                f"`{path}.name` is {show(message.get('name'))}, but no assistant message before it called a "
                "function of that name",
                param=f"{path}.name",
            )
        elif role == "tool":
            call_id = message.get("tool_call_id")
            if not isinstance(call_id, str):
                raise RequestError(f"`{path}.tool_call_id` is missing", param=f"{path}.tool_call_id")
            if call_id not in call_ids:
                raise RequestError(
                    f"`{path}.tool_call_id` is '{call_id[:100]}', but no assistant message before it made that call",
                    param=f"{path}.tool_call_id",
                )
        messages.append({**message, "role": "tool"} if role == "function" else message)
    return messages


def _check_content(message: dict[str, Any], role: str, path: str) -> None:
    content = message.get("content")
    where = f"{path}.content"
    if content is None:
        if role != "assistant":
            raise RequestError(f"`{where}` is missing", code="missing_required_parameter", param=where)
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(f"`{where}` is {show(content)}; it must be a string or a list of parts", param=where)
    for position, part in enumerate(content):
        spot = f"{where}[{position}]"
        if not isinstance(part, dict):
            raise RequestError(f"`{spot}` is {show(part)}; it must be an object with a `type`", param=spot)
        kind = part.get("type")
        if kind not in ("text", "refusal") or (kind == "refusal" and role != "assistant"):
            raise RequestError(
                f"`{spot}.type` is {show(kind)}; this model answers text parts only",
                code="unsupported_content_type",
                param=f"{spot}.type",
            )
        if not isinstance(part.get(kind), str):
            raise RequestError(f"`{spot}.{kind}` must be a string", param=f"{spot}.{kind}")


def _check_calls(message: dict[str, Any], path: str) -> set[str]:
    calls = message.get("tool_calls")
    if calls is None:
        return set()
    if not isinstance(calls, list):
        raise RequestError(f"`{path}.tool_calls` is {show(calls)}; it must be a list", param=f"{path}.tool_calls")
    ids = set()
    for position, call in enumerate(calls):
        spot = f"{path}.tool_calls[{position}]"
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            raise RequestError(f"`{spot}` must be an object with `id`, `type` and `function`", param=spot)
        function = call["function"]
        if not isinstance(function.get("name"), str):
            raise RequestError(f"`{spot}.function.name` must be a string", param=f"{spot}.function.name")
        if not isinstance(function.get("arguments", "{}"), (str, dict)):
            raise RequestError(
                f"`{spot}.function.arguments` must be a string of JSON", param=f"{spot}.function.arguments"
            )
        if isinstance(call.get("id"), str):
            ids.add(call["id"])
    return ids


def _check_function_call(message: dict[str, Any], path: str) -> set[str]:
    call = message.get("function_call")
    if call is None:
        return set()
    where = f"{path}.function_call"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RequestError(f"`{where}` must be an object with `name` and `arguments`", param=where)
    if not isinstance(call.get("arguments", "{}"), str):
        raise RequestError(f"`{where}.arguments` must be a string of JSON", param=f"{where}.arguments")
    return {call["name"]}
