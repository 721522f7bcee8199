"""A caller's JSON schema, read before the grammar library sees it (spec api C-5, C-6).

The library ignores what it does not know, so every keyword is looked at here: what is enforced passes, what only
describes is dropped, everything else is a fault with the JSON pointer of its place. Strict schemas are refused at the
first fault; others lose the keyword, and the answer says so. `nullable` is rewritten, since it is a dialect of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gemmantle.errors import RequestError

__all__ = ["DAY", "FORMATS", "TIME", "ReadSchema", "escape", "nodes", "read_schema"]

MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_BYTES = 1 << 20

FORMATS = {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
_LONG = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(0[1-9]|1[0-9]|2[0-8])"
_YEAR = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
DAY = f"({_YEAR}-({_LONG}|{_SHORT}|{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_SPELLED = {"date": DAY, "time": TIME, "date-time": f"{DAY}T{TIME}"}
_HOST_BYTES = 253
_SHOWN = {"password"}  # formats that tell a form how to show a field
_TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}

_DESCRIBING = {
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment", "$anchor", "discriminator", "externalDocs", "xml",
}  # fmt: skip
_REFUSED = {
    "uniqueItems": "nothing keeps count of the items",
    "propertyNames": "list the names under properties",
    "not": "say what is allowed",
    "if": "use anyOf",
    "then": "use anyOf",
    "else": "use anyOf",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "contains": "use items",
    "minContains": "use minItems",
    "maxContains": "use maxItems",
    "unevaluatedItems": "use items",
    "unevaluatedProperties": "use additionalProperties",
    "additionalItems": "use items beside prefixItems",
    "contentEncoding": "use pattern",
    "contentMediaType": "use pattern",
    "contentSchema": "use pattern",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $ref and $defs",
    "$recursiveRef": "use $ref",
}


@dataclass(slots=True)
class ReadSchema:
    """A schema of enforced keywords only, and what a schema that is not strict lost on the way."""

    schema: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    nullable: frozenset[str] = frozenset()  # pointers of what became an alternative to null
    spelled: dict[str, str] = field(default_factory=dict)  # pointers of what stands for a format, to that format

    def spell_formats(self) -> None:
        """Hold what the library takes too lightly: days and hours that are none, hosts beyond 253 bytes.

        Formats become patterns where that says it all.
        """
        for pointer, node in nodes(self.schema):
            name = node.get("format")
            if name == "hostname":
                if node.get("maxLength", math.inf) > _HOST_BYTES:
                    node["maxLength"] = _HOST_BYTES
                    self.spelled[f"{pointer}/maxLength"] = f"{pointer}/format"
            elif name in _SPELLED:
                del node["format"]
                pattern = f"^({_SPELLED[name]})$"
                if "pattern" in node:
                    node["allOf"] = [*node.get("allOf", []), {"pattern": pattern}]
                else:
                    node["pattern"] = pattern
                key = "allOf" if node["pattern"] != pattern else "pattern"
                self.spelled[f"{pointer}/{key}"] = f"{pointer}/format"

    def pointer_of(self, pointer: str) -> str:
        """Where the caller's own schema has what a pointer of `schema` finds."""
        there = "#"
        parts = self.spelled.get(pointer, pointer).split("/")[1:]
        while parts:
            if there in self.nullable and parts[0] == "anyOf":
                parts = parts[2:]
            else:
                there = f"{there}/{parts.pop(0)}"
        return there


def read_schema(schema: Any, *, strict: bool, param: str) -> ReadSchema:
    """Raises RequestError (invalid_json_schema) naming `param`, the pointer, what was found and what to do."""
    reader = _Reader(schema, strict, param)
    if not isinstance(schema, dict):
        reader.wrong("#", f"a schema is an object; this is {_show(schema)}")
    if len(json.dumps(schema)) > MAX_BYTES:
        reader.wrong("#", f"the schema is larger than {MAX_BYTES} bytes; split it")
    clean = reader.node(schema, "#", 0)
    return ReadSchema(clean, reader.warnings, frozenset(reader.nullable))


def nodes(schema: Any, pointer: str = "#") -> list[tuple[str, dict[str, Any]]]:
    """Every subschema of a clean schema with its pointer, the innermost first."""
    found: list[tuple[str, dict[str, Any]]] = []
    if not isinstance(schema, dict):
        return found
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for name, inner in schema.get(key, {}).items():
            found += nodes(inner, f"{pointer}/{key}/{escape(name)}")
    for key in ("items", "additionalProperties"):
        found += nodes(schema.get(key), f"{pointer}/{key}")
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for position, inner in enumerate(schema.get(key, [])):
            found += nodes(inner, f"{pointer}/{key}/{position}")
    return [*found, (pointer, schema)]


class _Reader:
    def __init__(self, root: Any, strict: bool, param: str) -> None:
        self._root = root
        self._strict = strict
        self._param = param
        self._nodes = 0
        self.warnings: list[str] = []
        self.nullable: list[str] = []

    def wrong(self, pointer: str, what: str) -> NoReturn:
        raise RequestError(f"`{self._param}` at '{pointer}': {what}", code="invalid_json_schema", param=self._param)

    def unsupported(self, pointer: str, what: str) -> None:
        """A keyword that cannot be enforced: refused, or left out with a word about it."""
        if self._strict:
            self.wrong(pointer, what)
        self.warnings.append(f"{pointer}: {what}; left out")

    def node(self, schema: Any, pointer: str, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            limit = f"{MAX_DEPTH} levels deep" if depth > MAX_DEPTH else f"of {MAX_NODES} parts"
            self.wrong(pointer, f"the schema is more than {limit}; use $ref or flatten it")
        if isinstance(schema, bool):
            return {} if schema else False
        if not isinstance(schema, dict):
            self.wrong(pointer, f"a schema is an object, true or false; this is {_show(schema)}")
        clean: dict[str, Any] = {}
        for key, value in schema.items():
            where = f"{pointer}/{escape(key)}"
            if key in _DESCRIBING or key.startswith("x-") or key == "nullable":
                continue
            if key == "const":
                clean[key] = value
                continue
            read = _KEYWORDS.get(key)
            if read is not None:
                kept = read(self, key, value, where, depth, schema)
                if kept is not None:
                    clean[key] = kept
            elif key in _REFUSED:
                if key != "uniqueItems" or value is not False:
                    self.unsupported(where, f"`{key}` cannot be enforced: {_REFUSED[key]}")
            else:
                self.unsupported(where, f"`{key}` is no keyword that can be enforced: remove it")
        nullable = schema.get("nullable", False)
        if not isinstance(nullable, bool):
            self.wrong(f"{pointer}/nullable", f"must be true or false; it is {_show(nullable)}")
        if nullable:
            self.nullable.append(pointer)
            shared: dict[str, Any] = {key: clean.pop(key) for key in ("$defs", "definitions") if key in clean}
            clean = {"anyOf": [clean, {"type": "null"}], **shared}
        return clean

    def _type(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        kinds = value if isinstance(value, list) else [value]
        for kind in kinds:
            if not isinstance(kind, str) or kind not in _TYPES:
                self.wrong(where, f"{_show(kind)} is no type; there are {', '.join(sorted(_TYPES))}")
        if not kinds:
            self.wrong(where, "names no type")
        return value

    def _schemas(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, dict):
            self.wrong(where, f"must map names to schemas; it is {_show(value)}")
        return {name: self.node(inner, f"{where}/{escape(name)}", depth + 1) for name, inner in value.items()}

    def _list(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, list) or not value:
            self.wrong(where, f"must be a list of schemas, not empty; it is {_show(value)}")
        return [self.node(inner, f"{where}/{position}", depth + 1) for position, inner in enumerate(value)]

    def _schema(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if key == "items" and isinstance(value, list):
            self.wrong(where, "is a list; fixed places belong into prefixItems")
        if isinstance(value, bool):
            return value
        return self.node(value, where, depth + 1)

    def _required(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self.wrong(where, f"must be a list of names; it is {_show(value)}")
        return value

    def _values(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, list) or not value:
            self.wrong(where, f"must be a list of values, not empty; it is {_show(value)}")
        return value

    def _ref(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            self.wrong(where, f"is {_show(value)}; only '#/...' inside the schema can be followed")
        target: Any = self._root
        for part in value.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and part.isdigit() and int(part) < len(target):
                target = target[int(part)]
            elif isinstance(target, dict) and part in target:
                target = target[part]
            else:
                self.wrong(where, f"is {_show(value)}, which is not there")
        return value

    def _count(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.wrong(where, f"must be a number of 0 or more; it is {_show(value)}")
        return value

    def _bound(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if isinstance(value, bool) and key.startswith("exclusive"):
            self.wrong(where, f"is {_show(value)}; it must be the number itself")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(where, f"must be a number; it is {_show(value)}")
        return value

    def _multiple(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self.wrong(where, f"must be a number above 0; it is {_show(value)}")
        kinds = schema.get("type")
        whole = kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds and "number" not in kinds)
        if not whole or float(value) != int(value):
            self.unsupported(where, "multiples are enforced for integers only: set type to integer")
            return None
        return int(value)

    def _pattern(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        if not isinstance(value, str):
            self.wrong(where, f"must be a regular expression; it is {_show(value)}")
        return value

    def _format(self, key: str, value: Any, where: str, depth: int, schema: Any) -> Any:
        kinds = schema.get("type", "string")
        if not isinstance(value, str):
            self.wrong(where, f"must be a name; it is {_show(value)}")
        if "string" not in (kinds if isinstance(kinds, list) else [kinds]):
            return None  # of numbers: a width, which describes only
        if value in _SHOWN:
            return None
        if value not in FORMATS:
            self.unsupported(where, f"format {_show(value)} is not known; there are {', '.join(sorted(FORMATS))}")
            return None
        return value


_Read = Callable[[_Reader, str, Any, str, int, Any], Any]
_KEYWORDS: dict[str, _Read] = {
    "type": _Reader._type,
    "properties": _Reader._schemas,
    "patternProperties": _Reader._schemas,
    "$defs": _Reader._schemas,
    "definitions": _Reader._schemas,
    "required": _Reader._required,
    "additionalProperties": _Reader._schema,
    "items": _Reader._schema,
    "prefixItems": _Reader._list,
    "anyOf": _Reader._list,
    "allOf": _Reader._list,
    "oneOf": _Reader._list,
    "enum": _Reader._values,
    "$ref": _Reader._ref,
    "minItems": _Reader._count,
    "maxItems": _Reader._count,
    "minLength": _Reader._count,
    "maxLength": _Reader._count,
    "minProperties": _Reader._count,
    "maxProperties": _Reader._count,
    "minimum": _Reader._bound,
    "maximum": _Reader._bound,
    "exclusiveMinimum": _Reader._bound,
    "exclusiveMaximum": _Reader._bound,
    "multipleOf": _Reader._multiple,
    "pattern": _Reader._pattern,
    "format": _Reader._format,
}


def escape(key: str) -> str:
    """A name as a part of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
