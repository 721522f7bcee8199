"""Lark rules for calls in the model's own syntax (spec prompting 6, 11.10; api C-13, C-14).

A strict function's arguments follow its schema; of any other function the names of its parameters are held, and the
schemas of those that can be. Keys come sorted by name, as the declaration shows them and as the model was trained. What
the syntax or these rules cannot hold in a strict one is refused with the JSON pointer of its place, never left open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from gemmantle.chat.schema_merge import Conflict, merged
from gemmantle.chat.tools import Tool
from gemmantle.errors import RequestError
from gemmantle.json_schema import DAY, TIME, read_schema

__all__ = ["CallRules"]

_KEY = re.compile(r"""[^\s:=,{}\[\]<>"']{1,200}\Z""")  # what a bare key can be
_ANY_KEY = r"/[A-Za-z_][A-Za-z0-9_]{0,60}/"
# No string holds the spelling of its own delimiter: a reader of text could not tell them apart.
_TEXT = r'/(.|\n)*/ & ~/(.|\n)*<\|"\|>(.|\n)*/'
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_FORMATS = {
    "date": DAY,
    "time": TIME,
    "date-time": f"{DAY}T{TIME}",
    "duration": r"P([0-9]{1,4}D(T[0-9]{1,4}H)?|T[0-9]{1,4}[HMS]|[0-9]{1,4}[YMW])",
    "email": rf"[A-Za-z0-9_.+-]{{1,40}}@{_LABEL}(\.{_LABEL}){{1,3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,3}}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": r"[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}",
    "uri": rf"https?://{_LABEL}(\.{_LABEL}){{0,3}}(/[A-Za-z0-9._~-]{{0,40}}){{0,4}}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


class CallRules:
    """Collects the rules of all callable functions; `lark()` is the text of them and `call` their start."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._open = f"<[{special['<|tool_call>']}]>"
        self._close = f"<[{special['<tool_call|>']}]>"
        self._quote = f"<[{special[chr(60) + '|' + chr(34) + '|' + chr(62)]}]>"
        self._rules: list[str] = []
        self._names: dict[str, str] = {}  # of what was made already
        self._calls: list[str] = []

    def add(self, tool: Tool, *, strict: bool, param: str) -> None:
        """One function."""
        schema: Any = tool.schema or {"type": "object", "properties": {}}
        if strict:
            clean = read_schema(schema, strict=True, param=param).schema
            arguments = _Schema(self, clean, param).value(clean, "#", objects_only=True)
        else:
            names = schema.get("properties") if isinstance(schema, Mapping) else None
            arguments = self._loose(names if isinstance(names, Mapping) else {}, schema, param)
        self._calls.append(f"{self._open} {_literal('call:' + tool.name)} {arguments} {self._close}")

    def lark(self) -> str:
        return "\n".join([f"call: {' | '.join(self._calls)}", *self._rules])

    def rule(self, key: str, body: str) -> str:
        """The name of the rule with this body, made once."""
        if key not in self._names:
            self._names[key] = f"r{len(self._names)}"
            self._rules.append(f"{self._names[key]}: {body}")
        return self._names[key]

    def text(self, terminal: str) -> str:
        """A string whose text matches a terminal expression."""
        key = f"text {terminal}"
        if key not in self._names:
            name = f"T{len(self._names)}"
            self._names[key] = name
            self._rules.append(f"{name}: {terminal}")
        return f"{self._quote} {self._names[key]} {self._quote}"

    def anything(self) -> str:
        if "anything" not in self._names:
            self._names["anything"] = "anything"
            self._rules.append(
                f'anything: {self.any_text()} | {self.json({"type": "number"})} | "true" | "false" | "null"'
                ' | "[" [anything ("," anything)*] "]" | anyobject'
            )
            self._rules.append('anyobject: "{" [anypair ("," anypair)*] "}"')
            self._rules.append(f'anypair: ANYKEY ":" anything\nANYKEY: {_ANY_KEY}')
        return "anything"

    def any_text(self) -> str:
        """Any string. An empty one has no token between its delimiters, and a terminal wants one."""
        return f"({self.text(_TEXT)} | {self._quote} {self._quote})"

    def any_object(self) -> str:
        self.anything()
        return "anyobject"

    def json(self, schema: dict[str, Any]) -> str:
        """Numbers are written as in JSON."""
        text = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}}, sort_keys=True)
        return self.rule(f"json {text}", f"%json {text}")

    def members(self, pairs: list[tuple[str, str, bool]]) -> str:
        """An object of (key, value rule, required) pairs in this order."""
        first = rest = '""'
        for key, value, required in reversed(pairs):
            pair = f"{_literal(key + ':')} {value}"
            key_ = f"members {pair} {required} "
            new_rest = f'"," {pair} {rest}' if required else f'("," {pair})? {rest}'
            new_first = f"{pair} {rest}" if required else f"({pair} {rest} | {first})"
            rest = self.rule(key_ + "rest " + rest, new_rest)
            first = self.rule(key_ + "first " + first + rest, new_first)
        return f'"{{" {first} "}}"'

    def _loose(self, properties: Mapping[str, Any], root: Mapping[str, Any], param: str) -> str:
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        pairs = []
        for key in sorted((str(name) for name in properties), key=str.lower):
            if not _KEY.match(key):
                continue
            try:
                part = read_schema({"properties": {key: properties[key]}, **shared}, strict=True, param=param).schema
                value = _Schema(self, part, param).value(part["properties"][key], "#")
            except RequestError:
                value = self.anything()
            pairs.append((key, value, False))
        return self.members(pairs)


class _Schema:
    """Rules of one strict schema."""

    def __init__(self, rules: CallRules, root: dict[str, Any], param: str) -> None:
        self._rules = rules
        self._root = root
        self._param = param
        self._following: dict[str, str] = {}  # rules of references

    def _refuse(self, pointer: str, what: str) -> NoReturn:
        raise RequestError(f"`{self._param}` at '{pointer}': {what}", code="invalid_json_schema", param=self._param)

    def value(self, node: Any, pointer: str, *, objects_only: bool = False) -> str:
        """An expression for values of this schema."""
        if node is False:
            self._refuse(pointer, "allows nothing, and arguments must be something")
        if node == {} or node is True:
            return self._rules.any_object() if objects_only else self._rules.anything()
        beside = set(node) - {"$defs", "definitions"}
        if "allOf" in node or (len(beside) > 1 and beside & {"$ref", "anyOf", "oneOf"}):
            return self._combined(node, pointer, objects_only=objects_only)
        if "$ref" in node:
            return self._reference(node["$ref"], pointer, objects_only=objects_only)
        for key in ("anyOf", "oneOf"):
            if key in node:
                branches = [
                    self.value(branch, f"{pointer}/{key}/{position}", objects_only=objects_only)
                    for position, branch in enumerate(node[key])
                ]
                return f"({' | '.join(dict.fromkeys(branches))})"
        if "enum" in node or "const" in node:
            return self._constants(node, pointer)
        kinds = node.get("type", ["object"] if objects_only or "properties" in node else list(_TYPES))
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        if "number" in kinds and "integer" in kinds:
            kinds.remove("integer")
        if objects_only and kinds != ["object"]:
            self._refuse(f"{pointer}/type", "parameters must be of type object")
        return f"({' | '.join(self._of_kind(kind, node, pointer) for kind in kinds)})"

    def _of_kind(self, kind: str, node: dict[str, Any], pointer: str) -> str:
        if kind == "object":
            return self._object(node, pointer)
        if kind == "array":
            return self._array(node, pointer)
        if kind == "string":
            return self._string(node, pointer)
        numeric = {key: value for key, value in node.items() if key in _NUMERIC} if kind != "boolean" else {}
        return self._rules.json({"type": kind, **(numeric if kind in ("integer", "number") else {})})

    def _combined(self, node: dict[str, Any], pointer: str, *, objects_only: bool) -> str:
        """A schema that several others say together."""
        try:
            whole = merged(node, self._target)
        except Conflict as conflict:
            self._refuse(pointer, f"{conflict}, which function parameters need: write one schema that says both")
        if not isinstance(whole, dict):
            return self.value(whole, pointer, objects_only=objects_only)
        return self._named(
            f"merged {json.dumps(whole, sort_keys=True)} {objects_only}",
            lambda: self.value(whole, pointer, objects_only=objects_only),
        )

    def _reference(self, ref: str, pointer: str, *, objects_only: bool = False) -> str:
        return self._named(
            f"{ref} {objects_only}", lambda: self.value(self._target(ref), ref, objects_only=objects_only)
        )

    def _target(self, ref: str) -> Any:
        target: Any = self._root
        for part in ref.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target[int(part)] if isinstance(target, list) else target[part]
        return target

    def _named(self, key: str, make: Callable[[], str]) -> str:
        """A rule of its own, named before it is made: a recursive type refers to itself."""
        if key not in self._following:
            name = f"ref{len(self._rules._names)}"
            self._following[key] = name
            self._rules._names[f"ref {name}"] = name
            self._rules._rules.append(f"{name}: {make()}")
        return self._following[key]

    def _object(self, node: dict[str, Any], pointer: str) -> str:
        for key in ("minProperties", "maxProperties", "patternProperties"):
            if key in node:
                self._refuse(f"{pointer}/{key}", f"`{key}` is not supported in function parameters")
        properties = node.get("properties", {})
        required = set(node.get("required", []))
        if missing := sorted(required - set(properties)):
            self._refuse(f"{pointer}/required", f"'{missing[0]}' is required and not among the properties")
        extra = node.get("additionalProperties", True)
        if not properties and extra is not False:
            if isinstance(extra, dict) and extra:
                value = self.value(extra, f"{pointer}/additionalProperties")
                pair = self._rules.rule(f"pair {value}", f'ANYKEY ":" {value}')
                self._rules.anything()
                return f'"{{" [{pair} ("," {pair})*] "}}"'
            return self._rules.any_object()
        pairs = []
        for key in sorted(properties, key=str.lower):
            where = f"{pointer}/properties/{key}"
            if properties[key] is False:
                continue
            if not _KEY.match(key):
                self._refuse(where, "the name cannot be written in a call: use letters, digits, '_', '-' or '.'")
            pairs.append((key, self.value(properties[key], where), key in required))
        return self._rules.members(pairs)

    def _array(self, node: dict[str, Any], pointer: str) -> str:
        places = [self.value(p, f"{pointer}/prefixItems/{i}") for i, p in enumerate(node.get("prefixItems", []))]
        more = node.get("items", True)
        least, most = node.get("minItems", 0), node.get("maxItems")
        item = None if more is False else self.value(more, f"{pointer}/items")
        if most is None and item is None:
            most = len(places)
        most_places = len(places) if most is None else min(len(places), most)
        if least > (most if most is not None else least) or (item is None and least > len(places)):
            self._refuse(pointer, "no list has that many items")
        rule = '""'  # what may follow the places
        if item is not None and (most is None or most > len(places)):
            low = max(0, least - len(places))
            high = "" if most is None else str(most - len(places))
            rule = self._rules.rule(f"more {item} {low} {high}", f'("," {item}){{{low},{high}}}')
            if not places:
                low_ = max(0, low - 1)
                high_ = "" if most is None else str(int(high) - 1)
                tail = self._rules.rule(f"tail {item} {low_} {high_}", f'{item} ("," {item}){{{low_},{high_}}}')
                return f'"[" {tail} "]"' if least > 0 else f'"[" {tail}? "]"'
        for position in range(most_places - 1, -1, -1):
            comma = '"," ' if position else ""
            body = f"{comma}{places[position]} {rule}"
            rule = self._rules.rule(f"place {body} {position < least}", body if position < least else f"({body})?")
        return f'"[" {rule} "]"'

    def _string(self, node: dict[str, Any], pointer: str) -> str:
        terms = []
        if "pattern" in node:
            terms.append(f"/{_searched(node['pattern'])}/")
        if "format" in node:
            terms.append(f"/{_FORMATS[node['format']].replace('/', chr(92) + '/')}/")
        least, most = node.get("minLength", 0), node.get("maxLength")
        if least or most is not None:
            terms.append(f"/(.|\\n){{{least},{'' if most is None else most}}}/")
        if not terms:
            return self._rules.any_text()
        if not least and most == 0:
            return f"{self._rules._quote} {self._rules._quote}"
        text = self._rules.text(" & ".join([*terms, _TEXT]))
        may_be_empty = not least and "format" not in node and re.search(node.get("pattern", ""), "") is not None
        return f"({text} | {self._rules._quote} {self._rules._quote})" if may_be_empty else text

    def _constants(self, node: dict[str, Any], pointer: str) -> str:
        if set(node) - {"enum", "const", "type", "$defs", "definitions"}:
            self._refuse(pointer, "keywords beside `enum` and `const` are not supported in function parameters")
        values = node.get("enum", [node.get("const")])
        kinds = node.get("type")
        if kinds is not None:
            listed = [kinds] if isinstance(kinds, str) else kinds
            values = [value for value in values if _is_of(value, listed)]
        if "const" in node:
            values = [value for value in values if value == node["const"]]
        if not values:
            self._refuse(pointer, "no value is left")
        return f"({' | '.join(self._constant(value, pointer) for value in values)})"

    def _constant(self, value: Any, pointer: str) -> str:
        if isinstance(value, str):
            if value == "":
                return f"{self._rules._quote} {self._rules._quote}"
            return f"{self._rules._quote} {_literal(value)} {self._rules._quote}"
        if isinstance(value, list):
            return f'"[" {self._joined(self._constant(v, pointer) for v in value)} "]"'
        if isinstance(value, dict):
            for key in value:
                if not _KEY.match(key):
                    self._refuse(pointer, f"the name {key!r} cannot be written in a call")
            pairs = (f"{_literal(k + ':')} {self._constant(value[k], pointer)}" for k in sorted(value, key=str.lower))
            return f'"{{" {self._joined(pairs)} "}}"'
        return _literal(json.dumps(value))

    @staticmethod
    def _joined(parts: Iterable[str]) -> str:
        return ' "," '.join(parts)


def _is_of(value: Any, kinds: list[str]) -> bool:
    if value is None:
        return "null" in kinds
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float):
        return "number" in kinds or ("integer" in kinds and float(value).is_integer())
    kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return kind in kinds


def _searched(pattern: str) -> str:
    """A JSON Schema pattern is found anywhere unless it anchors itself; a terminal matches from end to end."""
    body = pattern
    head, tail = r"(.|\n)*", r"(.|\n)*"
    if body.startswith("^"):
        body, head = body[1:], ""
    if body.endswith("$") and not body.endswith("\\$"):
        body, tail = body[:-1], ""
    if not head or not tail:
        # An anchor binds to its own branch only: "^a|b$" says something else than "^(a|b)$".
        body = body if not _has_branch(body) else pattern
        if body is pattern:
            head = tail = r"(.|\n)*"
    return re.sub(r"(?<!\\)/", r"\\/", f"{head}({body}){tail}")


def _has_branch(pattern: str) -> bool:
    depth = 0
    skip = False
    for char in pattern:
        if skip:
            skip = False
        elif char == "\\":
            skip = True
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == "|" and depth == 0:
            return True
    return False


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
