"""Tools in Gemma 4's own syntax: declarations, calls and results (spec prompting 5 to 7).

The released template loses parts of a JSON schema or prints them as Python lists (prompting 5.4). `read_tools` brings
schemas into the shape that survives: references resolved, null types as `nullable`, unions as their first branch with
a note, bounds and defaults in the description. A schema that needs none of this is declared as the template does it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmantle.chat.segments import Segments
from gemmantle.errors import RequestError

__all__ = ["Tool", "read_tools", "write_call", "write_declaration", "write_result", "write_value"]

MAX_DEPTH = 64  # of a schema or of arguments
MAX_NODES = 20_000  # of a schema after its references are resolved

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
# Keywords that the declaration of a property cannot carry. They go into its description.
_NOTES = (
    "default",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
_DROPPED = ("additionalProperties", "$defs", "definitions", "$schema", "$id", "title", "strict", "examples")


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `parameters` and `response` are schemas as they are declared, None where there is none."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    schema: Mapping[str, Any] | None = None  # of the parameters, as the caller gave it


def read_tools(tools: Iterable[Any] | None, *, param: str = "tools") -> list[Tool]:
    """Tools of a request, `{"type": "function", "function": {...}}` or the inner mapping alone.

    Raises RequestError with the path of the field that is wrong.
    """
    result: list[Tool] = []
    for i, entry in enumerate(tools or ()):
        path = f"{param}[{i}]"
        if hasattr(entry, "model_dump"):
            entry = entry.model_dump(exclude_none=True)
        if not isinstance(entry, Mapping):
            raise RequestError(f"{path} is {_kind(entry)}; give an object with type and function", param=path)
        function: Any = entry
        if "function" in entry:
            function, path = entry["function"], f"{path}.function"
        elif entry.get("type", "function") != "function":
            raise RequestError(f"{path}.type is {entry['type']!r}; only 'function' is known", param=f"{path}.type")
        if not isinstance(function, Mapping):
            raise RequestError(f"{path} is {_kind(function)}; give an object with a name", param=path)
        result.append(_read_function(function, path))
    return result


def _read_function(function: Mapping[str, Any], path: str) -> Tool:
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise RequestError(
            f"{path}.name is {name!r}; use 1 to 128 letters, digits, '_', '-', '.' or ':'", param=f"{path}.name"
        )
    description = function.get("description")
    if description is None:
        description = ""
    if not isinstance(description, str):
        raise RequestError(f"{path}.description is {_kind(description)}; give a string", param=f"{path}.description")
    schemas: dict[str, dict[str, Any] | None] = {"parameters": None, "response": None}
    for key in schemas:
        schema = function.get(key)
        if not schema:
            continue
        if not isinstance(schema, Mapping):
            raise RequestError(f"{path}.{key} is {_kind(schema)}; give a JSON schema", param=f"{path}.{key}")
        schemas[key] = _Normaliser(schema, f"{path}.{key}").run()
    return Tool(name, description, schemas["parameters"], schemas["response"], function.get("parameters") or None)


@dataclass(slots=True)
class _Normaliser:
    """Rewrites one schema into what a declaration can say."""

    root: Mapping[str, Any]
    param: str
    nodes: int = 0
    open_refs: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        schema = self._schema(self.root, 0, in_items=False, top=True)
        schema.setdefault("type", "object")
        return schema

    def _schema(self, schema: Any, depth: int, *, in_items: bool, top: bool = False) -> dict[str, Any]:
        if not isinstance(schema, Mapping):  # true and false are schemas too
            return {}
        opened = len(self.open_refs)
        merged = self._merge(dict(schema), depth)
        notes: list[str] = []
        result: dict[str, Any] = {}
        self._types(merged, notes)
        for key, value in merged.items():
            if key in _DROPPED:
                continue
            if key == "properties" and isinstance(value, Mapping):
                result[key] = {str(k): self._schema(v, depth + 1, in_items=False) for k, v in value.items()}
            elif key == "items" and isinstance(value, Mapping):
                result[key] = self._schema(value, depth + 1, in_items=True)
            elif key in _NOTES and not in_items:
                notes.append(f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}")
            elif key == "enum" and not in_items and merged.get("type") != "string":
                notes.append("one of: " + json.dumps(value, ensure_ascii=False, default=str))
            else:
                result[key] = value
        if notes and not top:
            said = result.get("description") or ""
            result["description"] = f"{said} ({'; '.join(notes)})" if said else "; ".join(notes)
        del self.open_refs[opened:]
        return result

    def _count(self, depth: int) -> None:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_NODES} parts"
            raise RequestError(f"{self.param} is larger than {limit}; flatten the schema", param=self.param)

    def _merge(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Follows `$ref`, folds `allOf`, and takes the first branch of a union. Own keywords win."""
        self._count(depth)
        for _ in range(MAX_DEPTH):
            if isinstance(schema.get("$ref"), str):
                ref: str = schema.pop("$ref")
                if ref in self.open_refs:
                    schema.setdefault("type", "object")  # a recursive type is declared one level deep
                    continue
                self.open_refs.append(ref)
                schema = {**self._resolve(ref), **schema}
            elif isinstance(schema.get("allOf"), Sequence) and schema["allOf"]:
                parts = [p for p in schema.pop("allOf") if isinstance(p, Mapping)]
                own = schema
                schema = {}
                for part in [*(self._merge(dict(p), depth + 1) for p in parts), own]:
                    properties = {**schema.get("properties", {}), **part.get("properties", {})}
                    required = list(dict.fromkeys([*schema.get("required", []), *part.get("required", [])]))
                    schema.update(part)
                    if properties:
                        schema["properties"] = properties
                    if required:
                        schema["required"] = required
            else:
                union = next((k for k in ("anyOf", "oneOf") if isinstance(schema.get(k), Sequence)), None)
                if union is None:
                    return schema
                schema = self._first_branch(schema, schema.pop(union))
        raise RequestError(f"{self.param} nests more than {MAX_DEPTH} references; flatten the schema", param=self.param)

    def _first_branch(self, schema: dict[str, Any], branches: Sequence[Any]) -> dict[str, Any]:
        known = [dict(b) for b in branches if isinstance(b, Mapping)]
        useful = [b for b in known if b.get("type") != "null"]
        if len(useful) < len(known):
            schema["nullable"] = True
        if not useful:
            return schema
        others = [str(b.get("title") or b.get("type") or b.get("$ref", "").rsplit("/", 1)[-1]) for b in useful[1:]]
        result = {**useful[0], **schema}
        if others := [o for o in others if o]:
            said = str(result.get("description") or "")
            result["description"] = f"{said} (or {', '.join(others)})".strip()
        return result

    def _resolve(self, ref: str) -> dict[str, Any]:
        target: Any = self.root
        if not ref.startswith("#"):
            raise RequestError(
                f"{self.param} refers to {ref!r}; only '#/...' inside the schema is known", param=self.param
            )
        for key in ref[1:].split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            else:
                raise RequestError(f"{self.param} refers to {ref!r}, which is not there", param=self.param)
        return dict(target) if isinstance(target, Mapping) else {}

    @staticmethod
    def _types(schema: dict[str, Any], notes: list[str]) -> None:
        kinds = schema.get("type")
        if isinstance(kinds, Sequence) and not isinstance(kinds, str):
            names = [str(k) for k in kinds if k != "null"]
            if len(names) < len(kinds):
                schema["nullable"] = True
            schema["type"] = names[0] if names else "null"
            if names[1:]:
                notes.append("or " + ", ".join(names[1:]))
        if "const" in schema and "enum" not in schema:
            schema["enum"] = [schema.pop("const")]
        if "type" not in schema:
            enum = schema.get("enum")
            if "properties" in schema:
                schema["type"] = "object"
            elif "items" in schema:
                schema["type"] = "array"
            elif isinstance(enum, Sequence) and enum and all(isinstance(v, str) for v in enum):
                schema["type"] = "string"


def write_declaration(out: Segments, tool: Tool) -> None:
    """`declaration:NAME{...}` without the markers around it (prompting 5.1)."""
    out.text("declaration:", tool.name, "{description:")
    out.quoted(tool.description)
    if tool.parameters:
        out.text(",parameters:{")
        if properties := tool.parameters.get("properties"):
            out.text("properties:{")
            _write_properties(out, properties)
            out.text("},")
        if required := tool.parameters.get("required"):
            _write_required(out, required)
            out.text(",")
        _write_type(out, tool.parameters.get("type"))
        out.text("}")
    if tool.response:
        out.text(",response:{")
        if description := tool.response.get("description"):
            out.text("description:")
            out.quoted(str(description))
            out.text(",")
        _write_type(out, tool.response.get("type"))
        out.text("}")
    out.text("}")


def _write_properties(out: Segments, properties: Mapping[str, Any]) -> None:
    for i, (key, schema) in enumerate(_by_name(properties)):
        out.text("," if i else "", key, ":{")
        _write_property(out, schema)
        out.text("}")


def _write_property(out: Segments, schema: Mapping[str, Any]) -> None:
    """The body of a property: fixed order, the type always last (prompting 5.2)."""
    kind = str(schema.get("type", "")).upper()
    if description := schema.get("description"):
        out.text("description:")
        out.quoted(str(description))
        out.text(",")
    if kind == "STRING" and schema.get("enum"):
        out.text("enum:")
        write_value(out, schema["enum"])
        out.text(",")
    items = schema.get("items")
    if kind == "ARRAY" and isinstance(items, Mapping) and items:
        out.text("items:{")
        _write_items(out, items)
        out.text("},")
    if schema.get("nullable"):
        out.text("nullable:true,")
    if kind == "OBJECT":
        out.text("properties:{")
        _write_properties(out, schema.get("properties") or {})
        out.text("},")
        if required := schema.get("required"):
            _write_required(out, required)
            out.text(",")
    _write_type(out, schema.get("type"))


def _write_items(out: Segments, items: Mapping[str, Any]) -> None:
    """The schema of an array's elements: keys sorted, unknown keys printed as values (prompting 5.3)."""
    first = True
    for key, value in _by_name(items):
        if value is None:
            continue
        out.text("" if first else ",")
        first = False
        if key == "properties" and isinstance(value, Mapping):
            out.text("properties:{")
            _write_properties(out, value)
            out.text("}")
        elif key == "required":
            _write_required(out, value)
        elif key == "type":
            _write_type(out, value)
        else:
            out.text(key, ":")
            write_value(out, value, quote_keys=True)


def _write_required(out: Segments, required: Any) -> None:
    out.text("required:")
    write_value(out, [str(name) for name in required])


def _write_type(out: Segments, kind: Any) -> None:
    out.text("type:")
    out.quoted(str(kind or "").upper())


def write_value(out: Segments, value: Any, *, quote_keys: bool = False, depth: int = 0) -> None:
    """A value in the call syntax (prompting 6): strings raw between delimiters, floats as repr, keys sorted and bare.

    A string that holds the delimiter's spelling keeps it: it is encoded as ordinary characters.
    """
    if depth > MAX_DEPTH:
        raise RequestError(f"arguments nest deeper than {MAX_DEPTH} levels; flatten them")
    if isinstance(value, str):
        out.quoted(value)
    elif value is None:
        out.text("null")
    elif isinstance(value, bool):
        out.text("true" if value else "false")
    elif isinstance(value, int | float):
        out.text(repr(value))
    elif isinstance(value, Mapping):
        out.text("{")
        for i, (key, inner) in enumerate(_by_name(value)):
            out.text("," if i else "")
            if quote_keys:
                out.quoted(key)
            else:
                out.text(key)
            out.text(":")
            write_value(out, inner, quote_keys=quote_keys, depth=depth + 1)
        out.text("}")
    elif isinstance(value, Sequence):
        out.text("[")
        for i, inner in enumerate(value):
            out.text("," if i else "")
            write_value(out, inner, quote_keys=quote_keys, depth=depth + 1)
        out.text("]")
    else:
        raise RequestError(f"a value of type {type(value).__name__} has no JSON form; use plain JSON values")


def write_call(out: Segments, name: str, arguments: Mapping[str, Any]) -> None:
    """One whole call with its markers."""
    out.control("<|tool_call>")
    out.text("call:", name)
    write_value(out, arguments)
    out.control("<tool_call|>")


def write_result(out: Segments, name: str, result: str | Mapping[str, Any]) -> None:
    """One whole result with its markers: text as `value`, a mapping by its keys (prompting 7)."""
    out.control("<|tool_response>")
    out.text("response:", name)
    write_value(out, {"value": result} if isinstance(result, str) else result)
    out.control("<tool_response|>")


def _by_name(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Case-insensitive order, as the template's dictsort."""
    return sorted(((str(k), v) for k, v in mapping.items()), key=lambda item: item[0].lower())


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
