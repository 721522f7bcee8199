"""`functions` and `function_call`, the shape of before `tools`: read as tools, answered in the old shape (api 5.1).

One call at most is made and told, for the old shape has room for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gemmantle.api.fields import show
from gemmantle.errors import RequestError

__all__ = ["is_legacy", "modern", "renamed"]

_NAMES = {"functions": "tools", "function_call": "tool_choice"}


def is_legacy(body: Mapping[str, Any]) -> bool:
    return any(body.get(name) is not None for name in _NAMES)


def modern(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request with `tools` and `tool_choice`."""
    for old, new in _NAMES.items():
        if body.get(old) is not None and body.get(new) is not None:
            raise RequestError(f"`{old}` and `{new}` mean the same; send `{new}` alone", param=old)
    found = {name: value for name, value in body.items() if name not in _NAMES}
    functions, choice = body.get("functions"), body.get("function_call")
    if functions is not None:
        if not isinstance(functions, list):
            raise RequestError(f"`functions` is {show(functions)}; it must be a list of functions", param="functions")
        found["tools"] = [{"type": "function", "function": function} for function in functions]
    if choice is not None:
        if isinstance(choice, dict):
            found["tool_choice"] = {"type": "function", "function": choice}
        elif choice in ("auto", "none"):
            found["tool_choice"] = choice
        else:
            raise RequestError(
                f"`function_call` is {show(choice)}; it must be 'none', 'auto' or an object with a `name`",
                param="function_call",
            )
    return found


def renamed(error: RequestError) -> RequestError:
    """A refusal in the words of the caller."""

    def old(text: str) -> str:
        text = re.sub(r"\btools\[(\d+)\](\.function)?", r"functions[\1]", text)
        text = re.sub(r"\btool_choice(\.function)?", "function_call", text)
        return re.sub(r"\btools\b", "functions", text)

    words = re.sub(r"`[^`]*`", lambda match: old(match[0]), str(error))
    param = None if error.param is None else old(error.param)
    return RequestError(words, code=error.code, param=param, status=error.status)
