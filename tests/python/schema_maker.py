"""Random JSON schemas in the style of OpenAPI components.

A schema is a set of named components that refer to each other, and a root that is one of them or a combination. About
one place in sixty holds a keyword that no grammar can enforce; the rest is what people write: enumerations, patterns,
formats, bounds, nullable fields, inheritance by allOf, tagged unions, trees, awkward names. The same random generator
gives the same schema on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = [
    "id", "name", "kind", "tags", "owner", "count", "at", "ok", "price", "next", "meta", "Zip", "line_items", "é",
    "a b", "@type", "x/y", "x~y", 'quo"te', "$id", "type", "items", "properties", "0", "createdAt",
]  # fmt: skip
_COMPONENTS = ["Address", "Money", "Person", "Order", "Page", "Problem", "Pet", "Link"]
_PATTERNS = [
    "^[a-z]{2,5}$", "^[A-Z][0-9]+$", "ab|cd", "^x-", "[0-9]{3}", "^(a|b)c?$", "^\\d{3}-\\d{4}$", "^[A-Z]{3}$",
    "^(?:red|green|blue)$", "^\\S+@\\S+$", "^#[0-9a-fA-F]{6}$", "^[\\w.-]{1,10}$", "\\.(jpg|png)$", "^$|^[0-9]$",
    "^[^\"\\\\]{1,6}$", "^\\+?[1-9]\\d{1,8}$", "^v(0|[1-9]\\d*)\\.(0|[1-9]\\d*)$", "^.{2,4}$", "^a/b\\s?c$", "é+",
]  # fmt: skip
_FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]
_WORDS = [
    "red",
    "green",
    'a "b"',
    "",
    "naïve",
    "back\\slash",
    "line\nbreak",
    "tab\t",
    "x" * 40,
    "5",
    "null",
    "🙂",
    "</s>",
]
_NOTES: list[Schema] = [
    {"title": "A title"}, {"description": "What it is."}, {"default": None}, {"example": 1}, {"examples": ["a"]},
    {"deprecated": True}, {"readOnly": True}, {"writeOnly": False}, {"x-internal": {"any": "thing"}}, {"$comment": "-"},
    {"externalDocs": {"url": "https://example.org"}},
]  # fmt: skip


def make_schema(rng: random.Random) -> Schema:
    """One schema: `$defs` of one to five components, and a root that uses them."""
    return _Maker(rng).schema()


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._names = rng.sample(_COMPONENTS, rng.randint(1, 5))
        self._home = rng.choice(["$defs", "$defs", "definitions"])

    def schema(self) -> Schema:
        rng = self._rng
        components: Schema = {name: self._component(name) for name in self._names}
        components["Entity"] = self._entity()
        root: Schema = rng.choice([self._object, self._object, self._inheritance, self._tagged])(0)
        root = {**root, self._home: components}
        if rng.random() < 0.3:
            root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return root

    def _component(self, name: str) -> Schema:
        """Objects for the most part; shared strings and enumerations too. One in four is a tree of itself."""
        rng = self._rng
        if rng.random() < 0.2:
            return rng.choice([self._enum, self._string, self._integer])(1)
        made = self._object(1)
        if rng.random() < 0.25:
            itself: Schema = {"$ref": f"#/{self._home}/{name}"}
            made["properties"]["children"] = rng.choice([{"type": "array", "items": itself, "maxItems": 2}, itself])
            made["required"] = [key for key in made.get("required", []) if key != "children"]
        return made

    def _any(self, depth: int) -> Schema:
        rng = self._rng
        if rng.random() < 1 / 60:
            made = self._unenforceable()
        else:
            leaves: list[Callable[[int], Schema]] = [
                self._string, self._pattern, self._integer, self._number, self._enum, self._plain, self._format,
                self._kinds,
            ]  # fmt: skip
            branches = [self._object, self._array, self._union, self._merged, self._ref, self._map, self._tuple]
            made = rng.choice(leaves + branches if depth < 3 else leaves)(depth)
        if rng.random() < 0.2:
            made = {**rng.choice(_NOTES), **made}
        if rng.random() < 0.08:
            made = {**made, "nullable": True}
        return made

    def _entity(self) -> Schema:
        """What others inherit from: open, with names of its own."""
        made = self._object(2)
        renamed = {f"base_{name}": inner for name, inner in made["properties"].items()}
        return {"type": "object", "properties": renamed, "required": list(renamed)[:1]}

    # -- objects

    def _object(self, depth: int) -> Schema:
        rng = self._rng
        names = rng.sample(_NAMES, rng.randint(1, 5 if depth == 0 else 3))
        made: Schema = {"type": "object", "properties": {name: self._any(depth + 1) for name in names}}
        if rng.random() < 0.8:
            made["required"] = [name for name in names if rng.random() < 0.6]
        if rng.random() < 0.7:
            made["additionalProperties"] = rng.choice([False, False, False, True, {"type": "integer"}])
        return made

    def _map(self, depth: int) -> Schema:
        """Names that the data chooses."""
        rng = self._rng
        made: Schema = {"type": "object"}
        if rng.random() < 0.4:
            made["patternProperties"] = {rng.choice(["^x-", "^[a-z]{1,3}$"]): self._any(depth + 1)}
            made["additionalProperties"] = False
        else:
            made["additionalProperties"] = self._any(depth + 1)
        if rng.random() < 0.5:
            made["maxProperties"] = rng.randint(1, 3)
        if rng.random() < 0.3:
            made["minProperties"] = 1
        return made

    def _inheritance(self, depth: int) -> Schema:
        """A base by reference, and what the child adds; now and then a base that does not fit."""
        child = self._object(depth)
        child.pop("additionalProperties", None)
        base = {"$ref": f"#/{self._home}/Entity"} if self._rng.random() < 0.9 else self._ref(depth)
        return {"allOf": [base, child]}

    def _tagged(self, depth: int) -> Schema:
        rng = self._rng
        branches = []
        for tag in rng.sample(["cat", "dog", "bird"], rng.randint(2, 3)):
            extra = {"value": self._any(depth + 1)} if rng.random() < 0.7 else {}
            kind = {"const": tag} if rng.random() < 0.5 else {"type": "string", "enum": [tag]}
            branch: Schema = {"type": "object", "properties": {"kind": kind, **extra}, "required": ["kind"]}
            if rng.random() < 0.6:
                branch["additionalProperties"] = False
            branches.append(branch)
        made: Schema = {rng.choice(["anyOf", "oneOf"]): branches}
        if rng.random() < 0.5:
            made["discriminator"] = {"propertyName": "kind"}
        return made

    # -- combinations

    def _ref(self, depth: int) -> Schema:
        made: Schema = {"$ref": f"#/{self._home}/{self._rng.choice(self._names)}"}
        if self._rng.random() < 0.2:
            made["description"] = "beside a reference"
        return made

    def _union(self, depth: int) -> Schema:
        rng = self._rng
        if depth < 2 and rng.random() < 0.3:
            return self._tagged(depth)
        if rng.random() < 0.4:
            return {"anyOf": [self._any(depth + 1), {"type": "null"}]}
        if rng.random() < 0.3:
            return {"anyOf": [self._any(depth + 1) for _ in range(2)]}
        branches: list[Schema] = [{"type": "string", "maxLength": 4}, {"type": "integer", "minimum": 0, "maximum": 99}]
        return {rng.choice(["anyOf", "oneOf"]): branches}

    def _merged(self, depth: int) -> Schema:
        rng = self._rng
        low = rng.randint(-9, 9)
        return rng.choice(
            [
                lambda: {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 20}]},
                lambda: {"allOf": [{"type": "string", "minLength": 1}, {"maxLength": 5}]},
                lambda: {"type": "string", "maxLength": 8, "allOf": [{"pattern": "^[a-z]+$"}]},
                lambda: {"allOf": [self._object(depth + 1)], "description": "one alone"},
                lambda: {"allOf": [{"type": "string", "pattern": "^[a-f]+$"}, {"pattern": "^[c-z]{1,4}$"}]},
                lambda: self._inheritance(depth + 1),
            ]
        )()

    def _array(self, depth: int) -> Schema:
        rng = self._rng
        made: Schema = {"type": "array", "items": self._any(depth + 1)}
        least = rng.randint(0, 2)
        if rng.random() < 0.4:
            made["minItems"] = least
        if rng.random() < 0.8:
            made["maxItems"] = least + rng.randint(0, 3)
        return made

    def _tuple(self, depth: int) -> Schema:
        made: Schema = {"type": "array", "prefixItems": [self._any(depth + 1), {"type": "boolean"}]}
        if self._rng.random() < 0.6:
            made["items"] = False
        if self._rng.random() < 0.6:
            made["minItems"] = 2
        return made

    # -- leaves

    def _string(self, depth: int) -> Schema:
        rng = self._rng
        made: Schema = {"type": "string"}
        if rng.random() < 0.7:
            made["maxLength"] = rng.randint(1, 12)
            if rng.random() < 0.5:
                made["minLength"] = rng.randint(0, made["maxLength"])
        elif rng.random() < 0.3:
            made["minLength"] = rng.randint(1, 4)
        return made

    def _pattern(self, depth: int) -> Schema:
        rng = self._rng
        made: Schema = {"type": "string", "pattern": rng.choice(_PATTERNS)}
        if rng.random() < 0.3:
            made["maxLength"] = rng.randint(5, 20)
        return made

    def _format(self, depth: int) -> Schema:
        made: Schema = {"type": "string", "format": self._rng.choice(_FORMATS)}
        if self._rng.random() < 0.1:
            made["maxLength"] = 40
        return made

    def _integer(self, depth: int) -> Schema:
        rng = self._rng
        made: Schema = {"type": "integer"}
        low = rng.choice([rng.randint(-50, 50), 0, 1, -(2**31), 10**12])
        if rng.random() < 0.7:
            made[rng.choice(["minimum", "minimum", "exclusiveMinimum"])] = low
        if rng.random() < 0.6:
            made[rng.choice(["maximum", "maximum", "exclusiveMaximum"])] = max(low, 0) + rng.randint(9, 9999)
        if rng.random() < 0.2:
            made["multipleOf"] = rng.choice([2, 3, 5, 10, 100])
        if rng.random() < 0.3:
            made["format"] = rng.choice(["int32", "int64"])
        return made

    def _number(self, depth: int) -> Schema:
        rng = self._rng
        low = rng.choice([0, 0.5, -1.25, 1e-3, -90, 99.99, rng.randint(-5, 5) + 0.5])
        made: Schema = {"type": "number"}
        if rng.random() < 0.7:
            made[rng.choice(["minimum", "exclusiveMinimum"])] = low
        if rng.random() < 0.7:
            made[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([0.01, 1, 2.5, 180, 1e6])
        if rng.random() < 0.3:
            made["format"] = rng.choice(["float", "double"])
        return made

    def _enum(self, depth: int) -> Schema:
        rng = self._rng
        words = rng.sample(_WORDS, rng.randint(1, 4))
        return rng.choice(
            [
                {"type": "string", "enum": words},
                {"type": "string", "enum": words},
                {"enum": [*words, None, 7]},
                {"type": "integer", "enum": [1, 2, 3, -40]},
                {"enum": [1.5, True, {"a": [1, "b"]}, []]},
                {"const": rng.choice([*words, 3, 1.5, None, False, {"k": "v"}])},
                {"type": ["string", "null"], "enum": ["yes", "no", None]},
                {"type": "string", "enum": words, "maxLength": 40},
            ]
        )

    def _plain(self, depth: int) -> Schema:
        return {"type": self._rng.choice(["boolean", "boolean", "null"])}

    def _kinds(self, depth: int) -> Schema:
        return {"type": self._rng.choice([["integer", "null"], ["boolean", "integer"], ["number", "null"]])}

    # -- what no grammar enforces

    def _unenforceable(self) -> Schema:
        rng = self._rng
        return rng.choice(
            [
                {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
                {"not": {"type": "string"}},
                {"type": "string", "format": rng.choice(["regex", "byte", "binary", "uri-reference", "password"])},
                {"type": "number", "multipleOf": 0.1},
                {"type": "string", "pattern": rng.choice(["a(?=b)", "(a)\\1", "(?<!x)y", "[z-a]", "("])},
                {"type": "object", "propertyNames": {"pattern": "^a"}},
                {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 5}]},
                {"type": "array", "contains": {"const": 1}},
                {"type": "object", "dependentRequired": {"a": ["b"]}},
                {"if": {"type": "string"}, "then": {"maxLength": 3}},
                {"type": "string", "minLength": 5, "maxLength": 3},
                {"type": "integer", "minimum": 9, "maximum": 3},
                {"type": "array", "minItems": 3, "maxItems": 1},
                {"type": "string", "contentEncoding": "base64"},
                {"type": "object", "unevaluatedProperties": False},
                {"type": "string", "pattern": "^a$", "format": "uuid"},
                {"allOf": [{"type": "string"}, {"type": "integer"}]},
                {"type": "string", "maxLenght": 3},
            ]
        )
