"""Items of /responses: what may be sent, in which form it is kept, and the chat messages it stands for.

Items come in the order a conversation took; a chat message gathers what belongs together: the thoughts, the text and
the calls of one turn of the model. Each message remembers the item it came from, so that a fault found later still
names a field of the caller's request.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemmantle.api.common import new_id
from gemmantle.api.fields import show
from gemmantle.errors import RequestError

__all__ = ["Conversation", "packed", "read_items", "read_tool_choice", "read_tools", "renamed"]

_KEYS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status", "parsed_arguments"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
    "item_reference": {"type", "id"},
}
_PREFIX = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
_ROLES = ("user", "assistant", "system", "developer")
_LONGEST_THOUGHT = 16 << 20  # bytes an encrypted_content may unpack to

Item = dict[str, Any]


def read_items(value: Any, lookup: Callable[[str], Item | None]) -> list[Item]:
    """`input` as a list of items in the form they are kept and listed; `lookup` finds the item of a reference."""
    if isinstance(value, str):
        return [_kept({"type": "message", "role": "user", "content": value}, "input")]
    if not isinstance(value, list) or not value:
        raise RequestError(f"`input` is {show(value)}; it must be a string or a list of items", param="input")
    items = []
    for position, item in enumerate(value):
        path = f"input[{position}]"
        if not isinstance(item, dict):
            raise RequestError(f"`{path}` is {show(item)}; it must be an object", param=path)
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind is None and set(item) <= {"id", "type"} and "id" in item:
            kind = "item_reference"
        if not isinstance(kind, str) or kind not in _KEYS:
            raise RequestError(
                f"`{path}.type` is {show(item.get('type'))}; it must be one of {', '.join(_KEYS)}",
                code="unsupported_value",
                param=f"{path}.type",
            )
        _check_keys(item, kind, path)
        if kind == "item_reference":
            items.append(_referenced(item, path, lookup))
        else:
            items.append(_kept({**item, "type": kind}, path))
    return items


def _check_keys(item: Item, kind: str, path: str) -> None:
    """Members that are null ask for nothing: the SDK writes many of them when an answer is sent back."""
    for key, value in item.items():
        if key not in _KEYS[kind] and value is not None:
            where = f"{path}.{key}"[:120]
            near = difflib.get_close_matches(key, sorted(_KEYS[kind]), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "; remove it"
            raise RequestError(f"unknown field `{where}`{hint}", code="unknown_parameter", param=where)


def _referenced(item: Item, path: str, lookup: Callable[[str], Item | None]) -> Item:
    name = item.get("id")
    found = lookup(name) if isinstance(name, str) else None
    if found is None:
        raise RequestError(
            f"`{path}.id` is {show(name)}; no stored response has such an item, so send the item itself",
            param=f"{path}.id",
        )
    return found


def _kept(item: Item, path: str) -> Item:
    kind = item["type"]
    name = item.get("id")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"`{path}.id` is {show(name)}; it must be a string", param=f"{path}.id")
    kept: Item = {"id": name or new_id(_PREFIX[kind]), "type": kind}
    if kind == "message":
        kept.update(_kept_message(item, path))
    elif kind == "function_call":
        for key in ("call_id", "name", "arguments"):
            kept[key] = _string(item, key, path)
    elif kind == "function_call_output":
        kept["call_id"] = _string(item, "call_id", path)
        output = item.get("output")
        kept["output"] = output if isinstance(output, str) else _parts(output, f"{path}.output", "user")
    else:
        kept.update(_kept_reasoning(item, path))
    status = item.get("status")
    kept["status"] = status if status in ("in_progress", "incomplete") else "completed"
    return kept


def _kept_message(item: Item, path: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        where = f"{path}.role"
        raise RequestError(f"`{where}` is {show(role)}; it must be one of {', '.join(_ROLES)}", param=where)
    content = item.get("content")
    if isinstance(content, str):
        part = {"type": "output_text", "text": content, "annotations": []}
        return {"role": role, "content": [part if role == "assistant" else {"type": "input_text", "text": content}]}
    return {"role": role, "content": _parts(content, f"{path}.content", role)}


def _kept_reasoning(item: Item, path: str) -> Item:
    kept: Item = {"summary": _texts(item.get("summary"), f"{path}.summary", "summary_text")}
    content = _texts(item.get("content"), f"{path}.content", "reasoning_text")
    packed_text = item.get("encrypted_content")
    if packed_text is not None:
        where = f"{path}.encrypted_content"
        if not isinstance(packed_text, str):
            raise RequestError(f"`{where}` is {show(packed_text)}; it must be a string", param=where)
        text = _unpacked(packed_text, where)
        kept["encrypted_content"] = packed_text
        content = content or [{"type": "reasoning_text", "text": text}]
    kept["content"] = content
    return kept


def _texts(value: Any, path: str, kind: str) -> list[Item]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(f"`{path}` is {show(value)}; it must be a list", param=path)
    for position, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != kind or not isinstance(part.get("text"), str):
            spot = f"{path}[{position}]"
            raise RequestError(f"`{spot}` is {show(part)}; it must be {{'type': '{kind}', 'text': ...}}", param=spot)
    return [{"type": kind, "text": part["text"]} for part in value]


def _string(item: Item, key: str, path: str) -> str:
    value = item.get(key)
    where = f"{path}.{key}"
    if value is None:
        raise RequestError(f"`{where}` is missing", code="missing_required_parameter", param=where)
    if not isinstance(value, str):
        raise RequestError(f"`{where}` is {show(value)}; it must be a string", param=where)
    return value


def _parts(value: Any, path: str, role: str) -> list[Item]:
    if value is None:
        raise RequestError(f"`{path}` is missing", code="missing_required_parameter", param=path)
    if not isinstance(value, list):
        raise RequestError(f"`{path}` is {show(value)}; it must be a string or a list of parts", param=path)
    known = ("output_text", "refusal") if role == "assistant" else ("input_text", "input_image", "input_audio")
    for position, part in enumerate(value):
        spot = f"{path}[{position}]"
        if not isinstance(part, dict):
            raise RequestError(f"`{spot}` is {show(part)}; it must be an object with a `type`", param=spot)
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in known:
            raise RequestError(
                f"`{spot}.type` is {show(kind)}; in a message of role '{role}' it must be one of {', '.join(known)}",
                code="unsupported_content_type",
                param=f"{spot}.type",
            )
        key = {"refusal": "refusal", "input_image": "image_url", "input_audio": "input_audio"}.get(kind, "text")
        if not isinstance(part.get(key), dict if key == "input_audio" else str):
            raise RequestError(f"`{spot}.{key}` is {show(part.get(key))}; it must be given", param=f"{spot}.{key}")
    return [part if part["type"] != "output_text" else {"annotations": [], **part} for part in value]


@dataclass
class Conversation:
    """Items as chat messages, with the path of the item that opened each of them."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    _calls: set[str] = field(default_factory=set)

    def instruct(self, text: str) -> None:
        self._begin({"role": "system", "content": text}, "instructions")

    def extend(self, items: list[Item], origin: str | None = None) -> None:
        """Add items of this request, or with an `origin` those of an earlier one."""
        for position, item in enumerate(items):
            self._add(item, origin or f"input[{position}]")

    def closed(self) -> Conversation:
        """Without turns of the model that hold thoughts only: the chat format has no place for them."""
        for at in range(len(self.messages) - 1, -1, -1):
            message = self.messages[at]
            if message["role"] == "assistant" and message.get("content") is None and "tool_calls" not in message:
                del self.messages[at], self.origins[at]
        return self

    def drop_oldest_turn(self) -> bool:
        """Forget the oldest turn: from its user message up to the next. System text and the last turn stay."""
        users = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if len(users) < 2:
            return False
        kept = [
            at
            for at, message in enumerate(self.messages)
            if at >= users[1] or message["role"] in ("system", "developer")
        ]
        self.messages = [self.messages[at] for at in kept]
        self.origins = [self.origins[at] for at in kept]
        return True

    def _begin(self, message: dict[str, Any], origin: str) -> None:
        self.messages.append(message)
        self.origins.append(origin)

    def _add(self, item: Item, origin: str) -> None:
        kind = item["type"]
        if kind == "function_call" and item.get("status") == "incomplete":
            return  # cut within its arguments: no call came of it
        if kind == "function_call_output":
            call_id = item["call_id"]
            if call_id not in self._calls:
                raise RequestError(
                    f"`{origin}.call_id` is '{call_id[:100]}', but no function_call before it has that call_id",
                    param=f"{origin}.call_id",
                )
            output = item["output"]
            content = output if isinstance(output, str) else [_chat_part(part) for part in output]
            self._begin({"role": "tool", "tool_call_id": call_id, "content": content}, origin)
        elif kind == "message" and item["role"] != "assistant":
            self._begin({"role": item["role"], "content": [_chat_part(part) for part in item["content"]]}, origin)
        else:
            self._add_to_turn(item, origin)

    def _add_to_turn(self, item: Item, origin: str) -> None:
        last = self.messages[-1] if self.messages else {}
        is_open = last.get("role") == "assistant"
        kind = item["type"]
        if kind != "function_call" and ("tool_calls" in last or last.get("content") is not None):
            is_open = False
        if not is_open:
            last = {"role": "assistant", "content": None}
            self._begin(last, origin)
        if kind == "message":
            last["content"] = [_chat_part(part) for part in item["content"]]
        elif kind == "reasoning":
            thoughts = [last["reasoning"]] if "reasoning" in last else []
            last["reasoning"] = "\n".join([*thoughts, *(part["text"] for part in item["content"])])
        else:
            self._calls.add(item["call_id"])
            function = {"name": item["name"], "arguments": item["arguments"]}
            calls = last.setdefault("tool_calls", [])
            calls.append({"id": item["call_id"], "type": "function", "function": function})


def _chat_part(part: Item) -> dict[str, Any]:
    kind = part["type"]
    if kind == "input_image":
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    return {"type": "text", "text": part["text"]}


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Tools of a request in the form of chat requests, which check the rest."""
    if not isinstance(value, list):
        raise RequestError(f"`tools` is {show(value)}; it must be a list of functions", param="tools")
    tools = []
    for position, tool in enumerate(value):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise RequestError(f"`{path}` is {show(tool)}; it must be an object", param=path)
        if tool.get("type") != "function":
            raise RequestError(
                f"`{path}.type` is {show(tool.get('type'))}; only 'function' tools run here",
                code="unsupported_tool",
                param=f"{path}.type",
            )
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            raise RequestError(f"`{path}.name` is {show(tool.get('name'))}; it must be a name", param=f"{path}.name")
        kept = ("name", "description", "parameters", "strict")
        tools.append({"type": "function", "function": {key: tool[key] for key in kept if tool.get(key) is not None}})
    return tools


def read_tool_choice(value: Any) -> Any:
    """`tool_choice` in the form of chat requests."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    if kind == "allowed_tools":
        listed = value.get("tools")
        tools = [
            {"type": tool.get("type"), "function": {"name": tool.get("name")}} if isinstance(tool, dict) else tool
            for tool in (listed if isinstance(listed, list) else [])
        ]
        return {"type": "allowed_tools", "allowed_tools": {"mode": value.get("mode"), "tools": tools}}
    raise RequestError(
        f"`tool_choice.type` is {show(kind)}; only functions can be chosen",
        code="unsupported_tool",
        param="tool_choice",
    )


_NAMES = (
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_output_tokens"),
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"\btool_choice\.(function|allowed_tools)\b"), "tool_choice"),
)


def renamed(error: RequestError, origins: list[str]) -> RequestError:
    """A refusal of the chat reader in the words of /responses."""

    def origin(match: re.Match[str]) -> str:
        at = int(match[1])
        return origins[at] if at < len(origins) else "input"

    def renames(text: str) -> str:
        text = re.sub(r"\bmessages\[(\d+)\]", origin, text)
        for pattern, name in _NAMES:
            text = pattern.sub(name, text)
        return re.sub(r"\bmessages\b", "input", text)

    words = re.sub(r"`[^`]*`", lambda match: renames(match[0]), str(error))
    param = None if error.param is None else renames(error.param)
    return RequestError(words, code=error.code, param=param, status=error.status)


def packed(text: str) -> str:
    """The opaque form of a thought: compressed, not encrypted. Callers that keep no state send it back."""
    return base64.b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"), 6)).decode("ascii")


def _unpacked(value: str, path: str) -> str:
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(value, validate=True), _LONGEST_THOUGHT)
        if unpacker.eof:
            return raw.decode("utf-8", "surrogatepass")
    except (binascii.Error, zlib.error, ValueError):
        pass
    raise RequestError(f"`{path}` was not written by gemmantle; leave the reasoning item out", param=path)
