"""Random JSON schemas in the style of OpenAPI components, and the words for what a grammar may refuse of them."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["id", "name", "kind", "tags", "owner", "count", "at", "ok", "price", "next", "meta", "Zip"]
_PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][0-9]+$", "ab|cd", "^x-", "[0-9]{3}", "^(a|b)c?$"]
_FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]


def make_schema(rng: random.Random) -> dict[str, Any]:
    """An object at the top, one to four properties, definitions that refer to each other and to themselves."""
    maker = _Maker(rng)
    schema = maker.object(0)
    if maker.uses_node:
        schema["$defs"] = {
            "Node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        }
    return schema


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.uses_node = False

    def object(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        names = rng.sample(_NAMES, rng.randint(1, 4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.any(depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
        }
        if rng.random() < 0.8:
            schema["additionalProperties"] = rng.choice([False, False, {"type": "integer"}])
        if rng.random() < 0.3:
            schema["description"] = "a component"
        return schema

    def any(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        makers = [self._string, self._integer, self._number, self._enum, self._plain, self._format, self._list_type]
        if depth < 3:
            makers += [self._array, self._union, self._all, self._node, lambda: self.object(depth)]
            makers += [self._tuple, self._unsupported] if rng.random() < 0.3 else []
        self._depth = depth
        return rng.choice(makers)()

    def _string(self) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "string"}
        if rng.random() < 0.4:
            schema["pattern"] = rng.choice(_PATTERNS)
        else:
            schema["maxLength"] = rng.randint(1, 8)
            if rng.random() < 0.5:
                schema["minLength"] = rng.randint(0, schema["maxLength"])
        return schema

    def _integer(self) -> dict[str, Any]:
        rng = self._rng
        low = rng.randint(-50, 50)
        schema: dict[str, Any] = {"type": "integer"}
        if rng.random() < 0.7:
            schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
            schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.randint(9, 999)
        if rng.random() < 0.2:
            schema["multipleOf"] = rng.randint(2, 5)
        return schema

    def _number(self) -> dict[str, Any]:
        low = self._rng.randint(-5, 5) + 0.5
        return {"type": "number", "minimum": low, "exclusiveMaximum": low + self._rng.randint(1, 9)}

    def _enum(self) -> dict[str, Any]:
        rng = self._rng
        return rng.choice([{"enum": ["red", "green", 'a "b"', None, 7]}, {"const": "v1"}, {"enum": [1, 2, 3]}])

    def _plain(self) -> dict[str, Any]:
        return {"type": self._rng.choice(["boolean", "null"])}

    def _format(self) -> dict[str, Any]:
        return {"type": "string", "format": self._rng.choice(_FORMATS)}

    def _list_type(self) -> dict[str, Any]:
        return {"type": ["integer", "null"]}

    def _array(self) -> dict[str, Any]:
        rng = self._rng
        least = rng.randint(0, 2)
        return {"type": "array", "items": self.any(self._depth + 1), "minItems": least, "maxItems": least + 2}

    def _tuple(self) -> dict[str, Any]:
        return {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False}

    def _union(self) -> dict[str, Any]:
        key = self._rng.choice(["anyOf", "oneOf"])
        return {key: [{"type": "string", "maxLength": 4}, {"type": "integer", "minimum": 0, "maximum": 99}]}

    def _all(self) -> dict[str, Any]:
        base = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        return {"allOf": [base, {"properties": {"b": {"type": "integer", "minimum": 0, "maximum": 9}}}]}

    def _node(self) -> dict[str, Any]:
        self.uses_node = True
        return {"$ref": "#/$defs/Node"}

    def _unsupported(self) -> dict[str, Any]:
        rng = self._rng
        return rng.choice(
            [
                {"type": "array", "uniqueItems": True},
                {"not": {"type": "string"}},
                {"type": "string", "format": "regex"},
                {"type": "number", "multipleOf": 0.1},
                {"type": "string", "pattern": "a(?=b)"},
                {"type": "object", "propertyNames": {"pattern": "^a"}},
                {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 5}]},
            ]
        )
