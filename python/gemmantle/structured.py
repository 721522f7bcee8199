"""Grammars: what a reply may be, compiled by `llguidance` (optional extra `structured`), and the masks that hold it.

`Compiler` belongs to one vocabulary and keeps what it compiled. A `Guide` follows one reply: it says which ids may come
next and is told what came. `Guided` puts it around a native generation: whoever reads the generation hands in its next
mask, in the same thread, before the token is passed on. A reader that does not read holds up nothing but its own reply.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gemmantle.chat.call_grammar import CallRules
from gemmantle.chat.tools import Tool
from gemmantle.errors import RequestError
from gemmantle.json_schema import ReadSchema, read_schema
from gemmantle.schema_faults import find_fault, first_words

if TYPE_CHECKING:
    from gemmantle.api.protocol import Delta

__all__ = ["CallableTool", "Compiler", "Format", "Grammar", "Guide", "Guided"]

_KEPT = 256  # compiled grammars of a vocabulary
_UNUSED = re.compile(rb"<unused\d+>\Z")
_LEFT_OUT = ("pattern", "format", "oneOf", "multipleOf")  # of a schema that is not strict
SLOW_S = 0.001  # a mask that takes longer is no work for an event loop


@dataclass(frozen=True, slots=True)
class Format:
    """What the text of a reply must be. `kind`: json (a schema), regex, choice (a list) or grammar (Lark, GBNF)."""

    kind: str
    value: Any
    param: str
    strict: bool = True
    whitespace: str | None = None  # pattern of the blanks in JSON; None: there are none
    is_shown: bool = False  # the prompt tells the model the schema


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A function that may be called; strict: its arguments follow its schema."""

    tool: Tool
    strict: bool
    param: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar and its end; `guide` makes a follower for one reply."""

    matcher: Any
    words: int
    ends: tuple[int, ...]
    warnings: list[str] = field(default_factory=list)

    def guide(
        self, opening: Sequence[int] = (), banned: Sequence[int] = (), *, starts_in_thought: bool = False
    ) -> Guide:
        """opening: ids that may come first, as a whole. banned: ids that are never drawn, whatever the grammar says."""
        return Guide(self, opening, banned, starts_in_thought)


class Compiler:
    """Grammars over one vocabulary. Safe from any thread; made once per engine, on first use."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Mapping[str, int],
        control: Iterable[int],
        ends: Sequence[int],
        encode: Callable[[str], list[int]],
        size: int,
    ) -> None:
        self._library = _library()
        self._special = dict(special)
        response = self._special.get("<|tool_response>")
        self._text_ends = tuple(token for token in ends if token != response)
        self._call_ends = tuple(ends)
        table = [*pieces[:size], *[b""] * (size - len(pieces))]
        unused = [token for token, piece in enumerate(table) if _UNUSED.match(piece)]

        class Vocabulary:
            eos_token_id = self._text_ends[0] if self._text_ends else 1
            bos_token_id = special.get("<bos>")
            tokens = table
            special_token_ids = sorted({*control, *special.values(), *ends, *unused})

            def __call__(self, text: str | bytes) -> list[int]:
                return encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))

        self._words = (size + 31) // 32
        self._tokenizer = self._library.LLTokenizer(
            self._library.TokenizerWrapper(Vocabulary()), n_vocab=size, eos_token=list(self._text_ends) or None
        )
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Grammar] = OrderedDict()

    def compile(
        self, form: Format | None, calls: Sequence[CallableTool] = (), *, must_call: bool = False, single: bool = False
    ) -> Grammar:
        """The grammar of a reply: text of a form (None: any text), calls, or either.

        must_call: a call and nothing else; single: one call at most. Raises RequestError (invalid_json_schema with the
        pointer of the fault, invalid_value for a regex or a grammar that the library refuses).
        """
        warnings: list[str] = []
        param = form.param if form else calls[0].param if calls else ""
        if not calls:
            assert form is not None
            text = self._of_form(form, warnings)
        else:
            text = self._of_calls(form, calls, must_call, single, warnings)
        key = hashlib.sha256(f"{len(calls) > 0}\0{text}".encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found = self._kept[key]
                return Grammar(found.matcher, found.words, found.ends, warnings)
        matcher = self._matcher(text)
        if matcher.is_error():
            self._refuse(form, param, matcher.get_error())
        grammar = Grammar(matcher, self._words, self._call_ends if calls else self._text_ends, warnings)
        with self._lock:
            self._kept[key] = grammar
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _matcher(self, text: str) -> Any:
        return self._library.LLMatcher(self._tokenizer, text, log_level=0)

    def _of_form(self, form: Format, warnings: list[str]) -> str:
        grammars = self._library.LLMatcher
        if form.kind == "json":
            text: str = grammars.grammar_from_json_schema(
                json.dumps(self._schema(form, warnings)), overrides=self._json_options(form)
            )
        elif form.kind == "regex":
            text = grammars.grammar_from_regex(form.value)
        elif form.kind == "choice":
            text = grammars.grammar_from_lark(f"start: {_choice(form.value)}")
        else:
            text = grammars.grammar_from_lark(self._lark_of(form))
        return text

    def _of_calls(
        self, form: Format | None, calls: Sequence[CallableTool], must_call: bool, single: bool, warnings: list[str]
    ) -> str:
        for spelling in ("<|tool_call>", "<tool_call|>", '<|"|>'):
            if spelling not in self._special:
                raise RequestError(
                    f"the vocabulary of this model has no {spelling}, so calls cannot be forced; leave `tools` out",
                    code="unsupported_value",
                    param="tools",
                )
        rules = CallRules(self._special)
        for entry in calls:
            rules.add(entry.tool, strict=entry.strict, param=entry.param)
        many = "call" if single else "call+"
        if must_call:
            start = many
        elif form is None:
            start = "ANYTEXT? call?" if single else "ANYTEXT? (call ANYTEXT?)*"
        elif form.kind == "json":
            schema = {**self._schema(form, warnings), "x-guidance": self._json_options(form)}
            start = f"{many} | answer\nanswer: %json {json.dumps(schema)}"
        elif form.kind == "regex":
            start = f"{many} | ANSWER\nANSWER: /{_slashed(form.value)}/"
        elif form.kind == "choice":
            start = f"{many} | {_choice(form.value)}"
        else:
            raise RequestError(
                f"`{form.param}` and `tools` cannot be combined; leave one of them out, or send tool_choice='none'",
                code="unsupported_value",
                param=form.param,
            )
        text: str = self._library.LLMatcher.grammar_from_lark(f"start: {start}\n{rules.lark()}\nANYTEXT: /(.|\\n)+/")
        return text

    def _schema(self, form: Format, warnings: list[str]) -> dict[str, Any]:
        read = self._read(form)
        warnings += read.warnings
        if form.strict:
            return read.schema
        # What the library alone refuses is left out as well, place by place.
        schema = read.schema
        for _ in range(64):
            fault = find_fault(schema, self._error_of(form)) if self._error_of(form)(schema) else None
            if fault is None or fault.keyword not in _LEFT_OUT:
                break
            value = fault.node.pop(fault.keyword)
            if fault.keyword == "oneOf":
                fault.node["anyOf"] = value
            where = read.pointer_of(fault.pointer)
            warnings.append(f"{where}: {fault.told(where)}; left out")
        return schema

    def _read(self, form: Format) -> ReadSchema:
        read = read_schema(form.value, strict=form.strict, param=form.param)
        read.spell_formats()
        return read

    def _json_options(self, form: Format) -> dict[str, Any]:
        if form.whitespace is None:
            return {"whitespace_flexible": False}
        return {"whitespace_pattern": form.whitespace}

    def _error_of(self, form: Format) -> Callable[[dict[str, Any]], str]:
        """What the library says of a schema, "" where it takes it."""

        def error_of(schema: dict[str, Any]) -> str:
            text = self._library.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides=self._json_options(form)
            )
            return first_words(self._matcher(text).get_error())

        return error_of

    def _refuse(self, form: Format | None, param: str, error: str) -> None:
        if form is not None and form.kind == "json":
            read = self._read(form)
            fault = find_fault(read.schema, self._error_of(form))
            where = read.pointer_of(fault.pointer) if fault else "#"
            what = fault.told(where) if fault else first_words(error)
            raise RequestError(f"`{form.param}` at '{where}': {what}", code="invalid_json_schema", param=form.param)
        kind = form.kind if form is not None else "parameters"
        code = "invalid_json_schema" if form is None else "invalid_value"
        raise RequestError(f"`{param}`: this {kind} cannot be enforced: {first_words(error)}", code=code, param=param)

    def _lark_of(self, form: Format) -> str:
        if "::=" not in form.value:
            return str(form.value)
        try:
            lark: str = self._library.gbnf_to_lark.gbnf_to_lark(form.value)
        except Exception as error:  # the converter raises what its parser meets
            raise RequestError(f"`{form.param}`: this GBNF cannot be read: {error}", param=form.param) from None
        return lark


class Guide:
    """Follows one reply. `mask` is what may come next, `advance` takes what came."""

    def __init__(
        self, grammar: Grammar, opening: Sequence[int], banned: Sequence[int], starts_in_thought: bool
    ) -> None:
        import numpy

        self._fill = importlib.import_module("llguidance.numpy").fill_next_token_bitmask
        self._matcher = grammar.matcher.deep_copy()
        self._ends = grammar.ends
        self._opening = list(opening)  # may come first, as a whole
        self._prefix: list[int] = []  # what is left of it
        self._count = 0
        self._array = numpy.zeros((1, grammar.words), dtype=numpy.int32)
        self._bits = self._array[0].view(numpy.uint32)
        self._permitted = numpy.full(grammar.words, 0xFFFFFFFF, dtype=numpy.uint32)
        ids = numpy.asarray(banned, dtype=numpy.int64)
        numpy.bitwise_and.at(self._permitted, ids >> 5, ~(numpy.uint32(1) << (ids & 31).astype(numpy.uint32)))
        self.starts_free = starts_in_thought
        self.slowest = 0.0

    def mask(self) -> Any:
        started = time.perf_counter()
        if self._prefix:
            self._bits[:] = 0
            self._set(self._prefix[0])
            return self._bits
        stopped = self._matcher.is_stopped()
        if stopped:
            if not self._matcher.is_accepting() or self._matcher.is_error():
                self._dead_end()
            self._bits[:] = 0
        else:
            self._fill(self._matcher, self._array, 0)
            if self._matcher.is_error():
                self._dead_end()
        if stopped or self._matcher.is_accepting():
            for token in self._ends:
                self._set(token)
        if self._count == 0 and self._opening:
            self._set(self._opening[0])
        self._bits &= self._permitted
        if not self._bits.any():
            self._dead_end()
        self.slowest = max(self.slowest, time.perf_counter() - started)
        return self._bits

    def advance(self, token: int) -> None:
        self._count += 1
        if self._prefix:
            self._prefix.pop(0)
        elif self._count == 1 and self._opening and token == self._opening[0]:
            self._prefix = self._opening[1:]
        elif token not in self._ends and not self._matcher.consume_token(token):
            self._dead_end()

    def _set(self, token: int) -> None:
        self._bits[token >> 5] |= 1 << (token & 31)

    def _dead_end(self) -> None:
        if self._count == 0 and not self._matcher.is_error():
            raise RequestError(
                "no reply can begin: every token that the format or `tool_choice` allows first is one this model, or "
                "`allowed_token_ids`, never says; change one of them",
                code="invalid_value",
            )
        reason = first_words(self._matcher.get_error()) or "nothing may follow, and the text is not complete"
        raise RuntimeError(f"the grammar of this reply came to a dead end after {self._count} tokens: {reason}")


class Guided:
    """A constrained generation that hands in its own masks while it is read (see `api.protocol.Generation`)."""

    def __init__(self, generation: Any, guide: Guide) -> None:
        self._generation = generation
        self._guide = guide
        self._handed = False
        if not guide.starts_free:
            self._hand_in()

    @property
    def prompt_logprobs(self) -> list[Any]:
        listed: list[Any] = self._generation.prompt_logprobs
        return listed

    @property
    def is_slow(self) -> bool:
        """Whether reading it may take too long for an event loop."""
        return self._guide.slowest > SLOW_S

    def next(self, timeout: float | None = None) -> Delta | None:
        return self._seen(self._generation.next(timeout))

    def try_next(self) -> Delta | None:
        return self._seen(self._generation.try_next())

    def fileno(self) -> int:
        descriptor: int = self._generation.fileno()
        return descriptor

    def cancel(self) -> None:
        self._generation.cancel()

    def _seen(self, delta: Any) -> Delta | None:
        """Only the first token after a hand-in was drawn under its mask; what follows it is a thought."""
        if delta is None:
            return None
        try:
            if self._handed and delta.tokens:
                self._handed = False
                self._guide.advance(delta.tokens[0].id)
            if delta.awaits_mask:
                self._hand_in()
        except BaseException:
            self._generation.cancel()
            raise
        seen: Delta = delta
        return seen

    def _hand_in(self) -> None:
        self._generation.allow(self._guide.mask())
        self._handed = True


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise RequestError(
            "structured output needs the library llguidance: pip install 'gemmantle[structured]'",
            code="unsupported_parameter",
        ) from None


def _choice(values: Sequence[str]) -> str:
    return " | ".join(json.dumps(value, ensure_ascii=False) for value in values)


def _slashed(pattern: str) -> str:
    return re.sub(r"(?<!\\)/", r"\\/", pattern)
