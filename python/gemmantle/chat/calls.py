"""Reads a tool call the model wrote: `call:NAME{key:value,...}`, and repairs what models really write.

Strings stand between two delimiters (`<|"|>`) and hold raw text. The reader follows the grammar of spec prompting 8.1
and makes the repairs of 8.4; the numbers in comments are those of its list. It never raises on text, always moves
forward, and takes time linear in its length: what it must know about the far side of a delimiter is found once.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmantle.chat.tools import MAX_DEPTH, MAX_NODES, Tool

__all__ = ["Call", "read_call"]

QUOTE = '<|"|>'
MAX_BRANCHES = 32  # of a union in a schema


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call: the function's name and its arguments."""

    name: str
    arguments: dict[str, Any]


_HEAD = re.compile(r"\s*+(call\s*+:)?+\s*+([^{]*+)")
_NAME = re.compile(r"[\w.:/-]{1,256}\Z")
_SKIP = re.compile(r"[\s,]*+")
_BLANK = re.compile(r"\s*+")
_WORD = r"""[^\s:=,{}\[\]<>"']{1,200}+"""
_ANY_KEY = rf"""(?:<\|"\|>([^<:=]{{1,200}}+)<\|"\|>|"([^"\\\n]{{1,200}}+)"|'([^'\\\n]{{1,200}}+)'|({_WORD}))\s*+[:=]"""
_QUOTED_KEY = re.compile(r"""<\|"\|>([^<]*+)<\|"\|>|"([^"\\\n]*+)"|'([^'\\\n]*+)'""")
_BARE_KEY = re.compile(r"[^:=,{}\[\]\n]++")
_KEY_AFTER_COMMA = re.compile(rf",\s*+{_ANY_KEY}\s*+")
_STRAY_BRACE = re.compile(rf"\}}\s*+,\s*+{_ANY_KEY}")
_VALUE_START = re.compile(r"""<\|"\|>|[\[{"'0-9-]|true\b|false\b|null\b|True\b|False\b|None\b|nil\b|NULL\b""")
_KEY_IN_STRING = re.compile(rf"""(,)\s*+({_WORD})\s*+[:=]\s*+(<\|"\|>)?+""")
_QUOTE_IN_ARRAY = re.compile(r"""(,)\s*+<\|"\|>""")
_BARE_STOP = re.compile(r"""[,{}\[\]]|<\|"\|>""")
_PLAIN_QUOTE = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in ("'", '"')}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
_WORDS: dict[str, bool | None] = {
    "true": True,
    "false": False,
    "null": None,
    "True": True,
    "False": False,
    "None": None,
    "nil": None,
    "NULL": None,
}

_Context = Literal["object", "array"]


class _TooDeep(Exception):
    """Nested beyond MAX_DEPTH: not a call that any tool declared."""


def read_call(text: str, tools: Sequence[Tool] = ()) -> Call | None:
    """The call in `text`, which is what stood between the markers; None where no call can be made out.

    `tools` (may be empty) helps with names, lost delimiters and types. Unknown names are returned as they are.
    """
    head = _HEAD.match(text)
    assert head is not None
    name, body = head.group(2).strip(), text[head.end() :]
    if not _NAME.match(name) or not (head.group(1) or body):
        return None
    tool = _find_tool(name, tools)
    schema = _Schema.of(tool.schema if tool else None)
    try:
        arguments = _read_json(body, schema)
        if arguments is None:
            arguments = _Reader(body, schema).read()
    except _TooDeep:
        return None
    return Call(tool.name if tool else name, arguments)


def _find_tool(name: str, tools: Sequence[Tool]) -> Tool | None:
    """The declared tool of that name; else of the name without its leading namespaces."""
    by_name = {tool.name: tool for tool in tools}
    while name not in by_name:
        cut = re.search(r"[.:/]", name)
        if cut is None:
            return None
        name = name[cut.end() :]
    return by_name[name]


@dataclass(frozen=True, slots=True)
class _Schema:
    """A place in the schema of the parameters; `node` is empty where nothing is known."""

    root: Mapping[str, Any]
    node: Mapping[str, Any]

    @staticmethod
    def of(schema: Mapping[str, Any] | None) -> _Schema:
        return _Schema(schema or {}, schema or {})

    def branches(self) -> Iterator[Mapping[str, Any]]:
        """This node, or what its references and unions lead to; at most MAX_BRANCHES nodes are looked at."""
        todo: list[Any] = [self.node]
        for _ in range(MAX_BRANCHES):
            if not todo:
                break
            node = todo.pop(0)
            if not isinstance(node, Mapping):
                continue
            leads: list[Any] = []
            ref = node.get("$ref")
            if isinstance(ref, str) and ref.startswith("#/"):
                target: Any = self.root
                for key in ref[2:].split("/"):
                    key = key.replace("~1", "/").replace("~0", "~")
                    target = target.get(key) if isinstance(target, Mapping) else None
                leads.append(target)
            for key in ("anyOf", "oneOf", "allOf"):
                nodes = node.get(key)
                if isinstance(nodes, list | tuple):
                    leads.extend(nodes[:MAX_BRANCHES])
            todo.extend(leads)
            if not leads or "type" in node or "properties" in node:
                yield node

    def is_only(self, kind: str) -> bool:
        """Whether this type is the only one, null aside."""
        kinds: set[str] = set()
        for node in self.branches():
            value = node.get("type")
            values = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ["unknown"]
            kinds.update(str(v).lower() for v in values)
        return kinds - {"null"} == {kind}

    def property(self, key: str) -> _Schema:
        for node in self.branches():
            properties = node.get("properties")
            if isinstance(properties, Mapping) and isinstance(properties.get(key), Mapping):
                return _Schema(self.root, properties[key])
        return _Schema({}, {})

    def items(self) -> _Schema:
        for node in self.branches():
            items = node.get("items")
            if isinstance(items, Mapping):
                return _Schema(self.root, items)
        return _Schema({}, {})

    def declared(self) -> set[str]:
        """Names of all parameters, at any level."""
        names: set[str] = set()
        todo: list[Any] = [self.root]
        for _ in range(MAX_NODES):
            if not todo:
                break
            node = todo.pop()
            if isinstance(node, Mapping):
                properties = node.get("properties")
                if isinstance(properties, Mapping):
                    names.update(str(k) for k in properties)
                todo.extend(node.values())
            elif isinstance(node, list):
                todo.extend(node)
        return names


class _SourceFloat(float):
    """A float of a JSON body that remembers how it was written."""

    source: str


def _read_json(body: str, schema: _Schema) -> dict[str, Any] | None:
    """Repair 1: a body that is a JSON object is taken as it is."""

    def source_float(text: str) -> float:
        value = _SourceFloat(text)
        value.source = text
        return value

    def refuse(text: str) -> Any:
        raise ValueError(text)  # NaN and Infinity are no JSON

    if not re.match(r'\{\s*+["}]', body):
        return None
    try:
        value = json.loads(body, parse_float=source_float, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    result: dict[str, Any] = _coerced(value, schema, 0)
    return result


def _coerced(value: Any, schema: _Schema, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _TooDeep
    if isinstance(value, dict):
        return {k: _coerced(v, schema.property(k), depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        items = schema.items()
        return [_coerced(v, items, depth + 1) for v in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    source = value.source if isinstance(value, _SourceFloat) else str(value)
    number = _number(source, schema)
    return source if number is None else number


def _number(source: str, schema: _Schema) -> int | float | str | None:
    """The number written as `source`, in the type the schema wants; None where it is none that JSON can carry."""
    match = _NUMBER.match(source)
    if match is None:
        return None
    if schema.is_only("string"):
        return source
    if match.group(1) is None and match.group(2) is None:
        try:
            return int(source)
        except ValueError:  # more digits than Python converts
            return None
    value = float(source)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and schema.is_only("integer") else value


class _Reader:
    """The body of a call in Gemma's syntax, read in one pass."""

    def __init__(self, text: str, schema: _Schema) -> None:
        self._text = text
        self._schema = schema
        self._at = 0
        self._open: list[str] = []  # brackets around the current place
        self._declared = schema.declared()
        self._quotes = [m.start() for m in re.finditer(re.escape(QUOTE), text)]
        # next_close[context][i]: index of the first delimiter from i on that can end a string there.
        self._next_close: dict[_Context, list[int]] = {"object": [], "array": []}
        for context, table in self._next_close.items():
            table.append(len(self._quotes))
            for i in range(len(self._quotes) - 1, -1, -1):
                table.append(i if self._closes(self._quotes[i] + len(QUOTE), context) else table[-1])
            table.reverse()
        self._unclosed: set[tuple[str, _Context]] = set()  # plain quotes for which a search found no end

    def read(self) -> dict[str, Any]:
        if not self._text.startswith("{"):
            return {}
        return self._object(self._schema, 0)

    def _closes(self, after: int, context: _Context) -> bool:
        """Repair 4: whether a string can end before `after`: the object or array around it goes on or ends there."""
        at = self._visible(after)
        if at == len(self._text) or self._text[at] in "}]":
            return True
        if self._text[at] != ",":
            return False
        if context == "array":
            return True
        key = _KEY_AFTER_COMMA.match(self._text, at)
        if key is None:
            behind = self._visible(at + 1)
            return behind == len(self._text) or self._text[behind] == "}"
        name = next(g for g in key.groups() if g is not None)
        # Prose may hold ", word:" too. A real key is declared, or something that begins like a value follows it.
        return name.strip() in self._declared or _VALUE_START.match(self._text, key.end()) is not None

    def _visible(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        assert match is not None
        return match.end()

    def _object(self, schema: _Schema, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self._enter("{")
        while True:
            skipped = _SKIP.match(self._text, self._at)
            assert skipped is not None
            self._at = skipped.end()
            if self._at == len(self._text):  # repair 9: closing braces that are missing
                break
            c = self._text[self._at]
            if c == "}":
                is_stray = depth == 0 and _STRAY_BRACE.match(self._text, self._at) is not None
                self._at += 1
                if is_stray:
                    continue
                break
            if c == "]":
                if "[" in self._open:
                    break  # the array around this object ends
                self._at += 1
                continue
            key = self._key()
            if key is not None:
                result[key] = self._value(schema.property(key), "object", depth + 1)  # repair 11: the last one wins
        self._open.pop()
        return result

    def _array(self, schema: _Schema, depth: int) -> list[Any]:
        result: list[Any] = []
        items = schema.items()
        self._enter("[")
        while True:
            skipped = _SKIP.match(self._text, self._at)
            assert skipped is not None
            self._at = skipped.end()
            if self._at == len(self._text):
                break
            c = self._text[self._at]
            if c == "]":
                self._at += 1
                break
            if c == "}":
                if not self._is_stray_brace():
                    break  # the object around this array ends
                self._at += 1
                continue
            before = self._at
            result.append(self._value(items, "array", depth + 1))
            self._at = max(self._at, before + 1)
        self._open.pop()
        return result

    def _enter(self, bracket: str) -> None:
        if len(self._open) > MAX_DEPTH:
            raise _TooDeep
        self._open.append(bracket)
        self._at += 1

    def _is_stray_brace(self) -> bool:
        """Repair 9: a `}` inside an array after which the array goes on."""
        at = self._visible(self._at + 1)
        follows = self._text[at : at + 1]
        return follows == "]" or (follows == "," and _KEY_AFTER_COMMA.match(self._text, at) is None)

    def _key(self) -> str | None:
        """A key and its colon, or None after something that is neither, which is skipped (at least one character)."""
        quoted = _QUOTED_KEY.match(self._text, self._at)  # repair 2
        if quoted is not None:
            key = next(g for g in quoted.groups() if g is not None)
            end = quoted.end()
        else:
            bare = _BARE_KEY.match(self._text, self._at)
            end = bare.end() if bare else self._at
            key = self._text[self._at : end].replace(QUOTE, "").strip().strip("\"'")
        at = self._visible(end)
        follows = self._text[at : at + 1]
        if key and follows in (":", "=") and follows:  # repair 8
            self._at = at + 1
            return key.strip()
        if key and follows in ("{", "[") and follows:
            self._at = at
            return key.strip()
        self._at = max(end, self._at + 1)
        return None

    def _value(self, schema: _Schema, context: _Context, depth: int) -> Any:
        self._at = self._visible(self._at)
        c = self._text[self._at : self._at + 1]
        if c == "{":
            return self._object(schema, depth)
        if c == "[":
            return self._array(schema, depth)
        if self._text.startswith(QUOTE, self._at):
            return self._string(context)
        if c in ('"', "'") and c:
            text = self._quoted(c, context)
            if text is not None:
                return text
        return self._bare(schema, context)

    def _string(self, context: _Context) -> str:
        """Raw text between two delimiters."""
        index = bisect_left(self._quotes, self._at)
        start = self._at + len(QUOTE)
        close = self._next_close[context][index + 1]
        is_closed = close < len(self._quotes)
        end = self._quotes[close] if is_closed else len(self._text)
        # Delimiters that are part of the text come in pairs. An odd number says that an end was lost: repair 5.
        if not is_closed or (close - index - 1) % 2:
            cut = self._lost_end(start, end, context)
            if cut is not None:
                self._at = cut
                return self._text[start:cut]
        if is_closed:
            self._at = end + len(QUOTE)
            return self._text[start:end]
        self._at = len(self._text)
        rest = self._text[start:]
        for _ in self._open:
            if not rest.rstrip().endswith(("}", "]")):
                break
            rest = rest.rstrip()[:-1]
        return rest

    def _lost_end(self, start: int, end: int, context: _Context) -> int | None:
        """Where a string without its closing delimiter ends: in front of the next declared parameter or string."""
        if context == "array":
            match = _QUOTE_IN_ARRAY.search(self._text, start, end)
            return match.start(1) if match else None
        for match in _KEY_IN_STRING.finditer(self._text, start, end + len(QUOTE)):
            if match.group(2) in self._declared or (not self._declared and match.group(3)):
                return match.start(1)
        return None

    def _quoted(self, quote: str, context: _Context) -> str | None:
        """Repair 3: a string in plain quotes; None where the quote has no end."""
        if (quote, context) in self._unclosed:
            return None
        for match in _PLAIN_QUOTE[quote].finditer(self._text, self._at + 1):
            end = match.end()
            if match.group() == quote and self._closes(end, context):
                inner = self._text[self._at + 1 : end - 1]
                self._at = end
                return _unescaped(inner, quote)
        self._unclosed.add((quote, context))
        return None

    def _bare(self, schema: _Schema, context: _Context) -> Any:
        """Text without delimiters: a number, a word, or repairs 6 and 7."""
        start = self._at
        end = after = len(self._text)
        nested = 0
        for match in _BARE_STOP.finditer(self._text, start):
            c = match.group()
            if c in ("{", "["):
                nested += 1
            elif c in ("}", "]"):
                if nested == 0:
                    end = after = match.start()
                    break
                nested -= 1
            elif nested == 0 and c == QUOTE:  # repair 6: the opening delimiter was lost
                end, after = match.start(), match.end()
                break
            elif nested == 0 and c == "," and (context == "array" or self._ends_bare(match.start())):
                end = after = match.start()
                break
        self._at = after
        text = self._text[start:end].strip()
        if text in _WORDS and (_WORDS[text] is None or not schema.is_only("string")):  # repair 10
            return _WORDS[text]
        number = _number(text, schema)
        if number is not None:
            return number
        return text if text or schema.is_only("string") else None

    def _ends_bare(self, comma: int) -> bool:
        if _KEY_AFTER_COMMA.match(self._text, comma):
            return True
        at = self._visible(comma + 1)
        return at == len(self._text) or self._text[at] in ",}"


def _unescaped(inner: str, quote: str) -> str:
    if quote == "'":
        return inner.replace("\\'", "'")
    try:
        text: str = json.loads(f'"{inner}"', strict=False)
    except ValueError:
        return inner
    return text
