"""`gemmantle.show`: an answer on the screen while it is written, in a notebook or a terminal (spec api N-1, N-2).

It reads what the SDK's calls return: streams of chat completions, completions and responses, the helpers of
`.stream(...)`, and whole answers. In a notebook one output is updated at most ten times a second, as escaped text, and
becomes Markdown at the end; thoughts fold away. Text of a model is never run and never loads anything: no HTML of its
own, no links, no pictures.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from gemmantle.kernel import running_kernel

__all__ = ["show"]

UPDATE_S = 0.1  # between two updates of a notebook's output


def show(answer: Any, *, thoughts: bool = False) -> Any:
    """Show an answer while it comes; gives the whole object at its end, as the plain call would have.

    answer: what `create(..., stream=True)`, `.stream(...)` or a plain `create(...)` of a sync client returned.
    thoughts: unfold them. Ctrl-C, or interrupting the kernel, cancels the work and raises KeyboardInterrupt; what came
    stays on the screen. Raises TypeError for anything else, an async stream for one.
    """
    if hasattr(answer, "__enter__") and not hasattr(answer, "__iter__"):  # the manager of `.stream(...)`
        with answer as opened:
            return show(opened, thoughts=thoughts)
    screen = _screen(thoughts)
    if not hasattr(answer, "__iter__") or hasattr(answer, "model_dump"):
        for part in _parts_of_whole(answer):
            screen.add(part)
        screen.end()
        return answer
    reader = _Reader(answer)
    try:
        for item in answer:
            for part in reader.read(item):
                screen.add(part)
    except BaseException as exc:
        with contextlib.suppress(Exception):
            answer.close()
        screen.end("stopped" if isinstance(exc, KeyboardInterrupt) else f"{type(exc).__name__}: {exc}")
        raise
    screen.end()
    return reader.final()


# -- what comes


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of one choice. kind: reasoning, content, name (of a function, which opens a call) or arguments."""

    kind: str
    text: str
    choice: int = 0


class _Reader:
    """Items of a stream to parts, and all of them to the final object."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._final: Any = None
        self._state: Any = None  # the SDK's own accumulator of chat chunks
        self._chunks: list[Any] = []  # of a completion

    def read(self, item: Any) -> Iterable[_Part]:
        kind = getattr(item, "type", None)
        if kind == "chunk":  # an event of the chat helper, which brings other events for the same text
            yield from _chat_parts(item.chunk.choices)
        elif isinstance(kind, str):
            yield from self._response_parts(kind, item)
        elif getattr(item, "object", "") == "chat.completion.chunk":
            if self._state is None:
                self._state = importlib.import_module("openai.lib.streaming.chat").ChatCompletionStreamState()
            self._state.handle_chunk(item)
            yield from _chat_parts(item.choices)
        elif getattr(item, "object", "") == "text_completion":
            self._chunks.append(item)
            yield from (_Part("content", choice.text, choice.index) for choice in item.choices if choice.text)
        else:
            raise TypeError(f"show() was given a stream of {type(item).__name__}; it shows streams of answers")

    def final(self) -> Any:
        """The whole answer; None of a stream that had no end."""
        if self._final is not None or self._chunks:
            return self._final or _joined(self._chunks)
        import openai
        from openai.types.chat import ChatCompletion

        parse = getattr(self._stream, "get_final_completion", None)
        if parse is not None:  # the helper also parses, but not what a limit cut
            with contextlib.suppress(openai.LengthFinishReasonError):
                return parse()
        state = self._state if parse is None else self._stream
        if state is None:
            return None
        snapshot = state.current_completion_snapshot
        return ChatCompletion.model_validate({**snapshot.to_dict(), "object": "chat.completion"})

    def _response_parts(self, kind: str, event: Any) -> Iterable[_Part]:
        if kind == "response.reasoning_text.delta":
            yield _Part("reasoning", event.delta)
        elif kind == "response.output_text.delta":
            yield _Part("content", event.delta)
        elif kind == "response.function_call_arguments.delta":
            yield _Part("arguments", event.delta)
        elif kind == "response.output_item.added" and event.item.type == "function_call":
            yield _Part("name", event.item.name)
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            self._final = event.response


def _chat_parts(choices: Iterable[Any]) -> Iterable[_Part]:
    """Of a chunk (`delta`) or of a whole answer (`message`)."""
    for choice in choices:
        said = getattr(choice, "delta", None) or choice.message
        for kind in ("reasoning", "content"):
            if text := getattr(said, kind, None):
                yield _Part(kind, text, choice.index)
        for call in said.tool_calls or ():
            if call.function.name:
                yield _Part("name", call.function.name, choice.index)
            if call.function.arguments:
                yield _Part("arguments", call.function.arguments, choice.index)


def _parts_of_whole(answer: Any) -> Iterable[_Part]:
    kind = getattr(answer, "object", None)
    if kind == "chat.completion":
        yield from _chat_parts(answer.choices)
    elif kind == "text_completion":
        yield from (_Part("content", choice.text, choice.index) for choice in answer.choices)
    elif kind == "response":
        for item in answer.output:
            if item.type == "function_call":
                yield _Part("name", item.name)
                yield _Part("arguments", item.arguments)
            elif item.type in ("message", "reasoning"):
                for part in item.content or ():
                    yield _Part("content" if item.type == "message" else "reasoning", getattr(part, "text", ""))
    else:
        is_async = hasattr(answer, "__aiter__") or hasattr(answer, "__aenter__")
        hint = " (read async streams with `async for`)" if is_async else ""
        raise TypeError(f"show() was given {type(answer).__name__}{hint}; it shows answers and streams of the client")


def _joined(chunks: list[Any]) -> Any:
    """The completion that the chunks of a stream make."""
    choices: dict[int, Any] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        known = choices.get(choice.index)
        if known is None:
            choices[choice.index] = choice.model_copy(deep=True)
            continue
        known.text += choice.text
        known.finish_reason = choice.finish_reason or known.finish_reason
        if choice.logprobs is not None and known.logprobs is not None:
            for name, more in choice.logprobs:
                listed = getattr(known.logprobs, name)
                setattr(known.logprobs, name, [*(listed or []), *more] if more else listed)
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return chunks[0].model_copy(update={"choices": [choices[index] for index in sorted(choices)], "usage": usage})


# -- where it goes


class _Screen(Protocol):
    def add(self, part: _Part) -> None: ...

    def end(self, problem: str = "") -> None: ...


def _screen(thoughts: bool) -> _Screen:
    """A notebook's output where this runs in a kernel, else standard output."""
    if running_kernel() is not None:
        return _Notebook(importlib.import_module("IPython.display").display, thoughts)
    return _Terminal(sys.stdout, thoughts)


class _Terminal:
    """Plain text. The first choice is printed while it comes, the others behind it."""

    def __init__(self, out: TextIO, thoughts: bool) -> None:
        self._out = out
        self._thoughts = thoughts
        self._last = ""  # kind of the part before
        self._others: dict[int, list[_Part]] = {}

    def add(self, part: _Part) -> None:
        if part.choice:
            self._others.setdefault(part.choice, []).append(part)
            return
        if self._last and part.kind != self._last and part.kind != "arguments":
            self._out.write("\n")
        if part.kind == "reasoning" and not self._thoughts:
            if self._last != "reasoning":
                self._out.write("(thinking)")
        elif part.kind == "name":
            self._out.write(f"-> {_printable(part.text)} ")
        else:
            self._out.write(_printable(part.text))
        self._last = part.kind
        self._out.flush()

    def end(self, problem: str = "") -> None:
        for choice, parts in sorted(self._others.items()):
            self._out.write(f"\n\n[{choice}]\n")
            self._last = ""
            for part in parts:
                self.add(_Part(part.kind, part.text))
        self._out.write(f"\n({problem})\n" if problem else "\n")
        self._out.flush()


def _printable(text: str) -> str:
    """Without the control characters that would steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


class _Notebook:
    """One output, updated at most every UPDATE_S seconds; Markdown at the end."""

    def __init__(
        self, display: Callable[..., Any], thoughts: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._display = display
        self._thoughts = thoughts
        self._clock = clock
        self._choices: dict[int, list[_Part]] = {}  # neighbours of one kind joined
        self._shown_at: float | None = None
        self._handle: Any = None

    def add(self, part: _Part) -> None:
        parts = self._choices.setdefault(part.choice, [])
        if parts and parts[-1].kind == part.kind != "name":
            parts[-1] = _Part(part.kind, parts[-1].text + part.text, part.choice)
        else:
            parts.append(part)
        if self._shown_at is None or self._clock() - self._shown_at >= UPDATE_S:
            self._show({"text/html": self._running(), "text/plain": self._plain()})
            self._shown_at = self._clock()

    def end(self, problem: str = "") -> None:
        tail = f"\n\n<b>{html.escape(problem)}</b>" if problem else ""
        self._show({"text/markdown": self._written(_markdown, "\n\n") + tail, "text/plain": self._plain() + problem})

    def _show(self, bundle: dict[str, str]) -> None:
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _running(self) -> str:
        return f'<div style="white-space: pre-wrap">{self._written(html.escape, "<br>")}</div>'

    def _written(self, text_of: Callable[[str], str], gap: str) -> str:
        lines: list[str] = []
        for choice, parts in sorted(self._choices.items()):
            if len(self._choices) > 1:
                lines.append(f"<b>{choice}</b>")
            for part in parts:
                if part.kind == "reasoning":
                    is_open = " open" if self._thoughts else ""
                    body = f'<div style="white-space: pre-wrap">{_html_line(part.text)}</div>'
                    lines.append(f"<details{is_open}><summary>Thoughts</summary>{body}</details>")
                elif part.kind == "name":
                    lines.append(f"&rarr; <code>{_code(part.text)}</code>")
                elif part.kind == "arguments":
                    lines[-1] += f" <code>{_code(part.text)}</code>"
                else:
                    lines.append(text_of(part.text))
        return gap.join(lines)

    def _plain(self) -> str:
        """For readers that show neither HTML nor Markdown; thoughts are left out."""
        return "\n".join(
            part.text for _, parts in sorted(self._choices.items()) for part in parts if part.kind != "reasoning"
        )


_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)(`+)(?!`)([^\n]+?)(?<!`)\1(?!`)")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_LINKING_TEX = re.compile(r"\\(?=(?:href|url|class|style|cssId|require)\b)")


def _markdown(text: str) -> str:
    """Markdown that shows text and nothing else, in a notebook that trusts its outputs.

    Code becomes elements of its own, every other `<` an entity; links, pictures and their definitions stay as written.
    """
    out: list[str] = []
    at = 0
    for fence in _FENCE.finditer(text):
        out.append(_prose(text[at : fence.start()]))
        out.append(f"<pre><code>{html.escape(fence[2])}</code></pre>\n")
        at = fence.end()
    return "".join([*out, _prose(text[at:])])


def _prose(text: str) -> str:
    out: list[str] = []
    at = 0
    for code in _INLINE.finditer(text):
        out += [_inert(text[at : code.start()]), f"<code>{_code(code[2])}</code>"]
        at = code.end()
    return "".join([*out, _inert(text[at:])])


def _inert(text: str) -> str:
    """Nothing of HTML, no bracket that a link could hang on, no formula that makes one."""
    text = _LINKING_TEX.sub("&#92;", text.replace("<", "&lt;"))
    return re.sub(r"\](?=[(:\[])", "&#93;", text)


def _code(text: str) -> str:
    """Text inside an element within Markdown: no character of it means anything."""
    return _PUNCTUATION.sub(lambda match: f"&#{ord(match[0])};", text)


def _html_line(text: str) -> str:
    """Text inside a block of HTML, which an empty line would end."""
    return _code(text).replace("\n", "&#10;")
