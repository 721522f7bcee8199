"""Schemas that must hold at the same time, as one schema: `allOf`, and keywords beside `$ref`, `anyOf` or `oneOf`.

What is merged means what its parts mean together. Two keywords of which nobody can say one that means both (two
patterns, say) are a `Conflict`, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["Conflict", "merged"]

Node = dict[str, Any]
Resolve = Callable[[str], Any]

_DEPTH = 32
_BRANCHES = 64
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_HOMES = ("$defs", "definitions")


class Conflict(Exception):
    """No schema means both; the message says which keywords and why."""


def merged(node: Node, resolve: Resolve, depth: int = 0) -> Any:
    """A schema without `allOf`, and with nothing beside `$ref`, `anyOf` and `oneOf`: False where nothing is left.

    node: as `read_schema` gives it. resolve: the target of a reference.
    """
    if depth > _DEPTH:
        raise Conflict("a schema is merged with itself without end")
    beside = {key: value for key, value in node.items() if key not in ("allOf", *_HOMES)}
    if "allOf" not in node and not _stands_beside(beside):
        return beside
    parts = [beside, *node.get("allOf", [])]
    whole: Any = {}
    for part in parts:
        whole = _both(whole, part, resolve, depth + 1)
        if whole is False:
            return False
    return whole


def _stands_beside(node: Node) -> bool:
    return len(node) > 1 and any(key in node for key in ("$ref", "anyOf", "oneOf"))


def _both(first: Any, second: Any, resolve: Resolve, depth: int) -> Any:
    """What holds where both hold. `True` and `{}` hold everywhere."""
    if first is False or second is False:
        return False
    if first is True or first == {}:
        return _single(second, resolve, depth)
    if second is True or second == {}:
        return _single(first, resolve, depth)
    first, second = _opened(first, resolve, depth), _opened(second, resolve, depth)
    if any(node in (True, False) or node == {} for node in (first, second)):
        return _both(first, second, resolve, depth + 1)
    for one, other in ((first, second), (second, first)):
        for key in ("anyOf", "oneOf"):
            if key in one:
                return _branches(key, one[key], other, resolve, depth)
    return _joined(first, second)


def _single(node: Any, resolve: Resolve, depth: int) -> Any:
    """One part alone: what it combines in itself is merged; a lone reference stays one."""
    return node if node in (True, False) else merged(node, resolve, depth)


def _opened(node: Node, resolve: Resolve, depth: int) -> Any:
    """Without a reference at its top."""
    node = _single(node, resolve, depth)
    if isinstance(node, dict) and "$ref" in node:
        if depth > _DEPTH:
            raise Conflict("a schema is merged with itself without end")
        return _opened(resolve(node["$ref"]), resolve, depth + 1)
    return node


def _branches(key: str, branches: list[Any], other: Node, resolve: Resolve, depth: int) -> Any:
    if len(branches) > _BRANCHES:
        raise Conflict(f"`{key}` has {len(branches)} branches; {_BRANCHES} can be merged")
    found = [_both(branch, other, resolve, depth + 1) for branch in branches]
    left = [branch for branch in found if branch is not False]
    if not left:
        return False
    return left[0] if len(left) == 1 else {key: left}


def _joined(first: Node, second: Node) -> Any:
    whole: Node = {}
    for key in {**first, **second}:
        if key in _HOMES or key in ("properties", "additionalProperties"):
            continue
        if key not in first or key not in second:
            whole[key] = first.get(key, second.get(key))
            continue
        value = _keyword(key, first[key], second[key])
        if value is None:
            return False
        whole[key] = value
    if "properties" in first or "properties" in second:
        whole["properties"] = _properties(first, second)
    extra = _held(first.get("additionalProperties", True), second.get("additionalProperties", True))
    if extra is not True:
        whole["additionalProperties"] = extra
    return whole


def _keyword(key: str, first: Any, second: Any) -> Any:
    """One value that means both; None where no value meets both."""
    if _is_same(first, second):
        return first
    if key in _LOWER:
        return max(first, second)
    if key in _UPPER:
        return min(first, second)
    if key == "type":
        return _types(first, second)
    if key == "required":
        return list(dict.fromkeys([*first, *second]))
    if key == "enum":
        return [value for value in first if any(_is_same(value, other) for other in second)] or None
    if key == "const":
        return None
    if key == "multipleOf":
        return math.lcm(first, second)
    if key == "items":
        return _held(first, second)
    raise Conflict(f"two different `{key}` cannot be merged into one")


def _types(first: Any, second: Any) -> list[str] | None:
    one = [first] if isinstance(first, str) else first
    other = [second] if isinstance(second, str) else second
    found = [kind for kind in one if kind in other]
    if "integer" not in found and {"integer", "number"} <= {*one, *other}:
        found.append("integer")  # an integer is a number
    return found or None


def _properties(first: Node, second: Node) -> Node:
    """A property that one part does not name is held by that part's `additionalProperties`."""
    found = {}
    for name in {**first.get("properties", {}), **second.get("properties", {})}:
        held = [
            part.get("properties", {}).get(name, part.get("additionalProperties", True)) for part in (first, second)
        ]
        found[name] = _held(*held)
    return found


def _held(first: Any, second: Any) -> Any:
    """Both, merged when its turn comes."""
    if first is False or second is False:
        return False
    if first is True or first == {}:
        return second
    if second is True or second == {} or _is_same(first, second):
        return first
    return {"allOf": [first, second]}


def _is_same(first: Any, second: Any) -> bool:
    """Equality of JSON: true is not 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_same(first[key], second[key]) for key in first)
    return bool(first == second)
