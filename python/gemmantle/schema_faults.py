"""Where a schema cannot be enforced: the innermost place that the grammar library refuses, and the keyword there.

The library says what is wrong but not where. So each subschema is tried on its own, the innermost first, and at the
first that is refused each keyword is left out in turn: the one whose absence helps is the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gemmantle.json_schema import escape, nodes

__all__ = ["Fault", "find_fault", "first_words"]

MAX_TRIED = 2000  # subschemas: each costs a compilation

# Tried in this order: where a pair contradicts each other, the rarer word says more.
_SUSPECTS = [
    "pattern", "patternProperties", "format", "multipleOf", "oneOf", "allOf", "enum", "const", "$ref", "anyOf",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "prefixItems", "items", "required", "additionalProperties", "properties",
    "type",
]  # fmt: skip
_HINTS = {"oneOf": "its branches must exclude each other; use anyOf", "allOf": "its branches must agree"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One keyword that cannot be enforced, the subschema it stands in, and why."""

    pointer: str
    keyword: str
    node: dict[str, Any]
    reason: str

    def told(self, pointer: str) -> str:
        """In words, where the caller's own schema has the keyword at this pointer."""
        keyword = pointer.rpartition("/")[2]
        hint = _HINTS.get(keyword)
        return f"`{keyword}` cannot be enforced: {self.reason}" + (f" ({hint})" if hint else "")


def find_fault(schema: dict[str, Any], error_of: Callable[[dict[str, Any]], str]) -> Fault | None:
    """The fault of a clean schema, or None. error_of: what is wrong with a schema, "" if nothing."""
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for pointer, node in _places(schema):
        if node is schema:
            shared = {}
        error = error_of({**node, **shared})
        if not error:
            continue
        suspects = [key for key in _SUSPECTS if key in node]
        for keyword in suspects:
            rest = {key: value for key, value in node.items() if key != keyword}
            if not error_of({**rest, **shared}):
                break
        else:
            keyword = next(iter(suspects), "type")
        return Fault(f"{pointer}/{escape(keyword)}", keyword, node, error)
    return None


def first_words(error: str) -> str:
    """What the library says, on one line: its first sentence, and of a bad regular expression the reason too."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if not lines:
        return ""
    first = lines[0].removeprefix("Unsatisfiable schema: ").partition(". ")[0]
    if first.startswith("Regex is empty"):
        return "no text fits"
    reason = next((line for line in lines[1:] if line.startswith("error: ")), "")
    return f"{first} {reason.removeprefix('error: ')}".strip()[:300]


def _places(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    places = nodes(schema)
    yield from places[: MAX_TRIED - 1]
    if len(places) >= MAX_TRIED:
        yield "#", schema
