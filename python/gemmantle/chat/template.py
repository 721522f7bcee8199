"""Messages to prompts: the released chat template of July 2026, rendered natively (spec prompting 3).

`render` takes every message shape of OpenAI clients and gives a `Prompt`: segments, their text, their ids. Where the
released template forgets to open a model turn (prompting 3.2, defect) the turn is opened; calls in the middle of a
history that nobody answered get an error text as their result. Everything else is the template, character by character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from gemmantle.chat.segments import Control, Segment, Segments
from gemmantle.chat.tools import read_tools, write_call, write_declaration, write_result
from gemmantle.errors import RequestError

if TYPE_CHECKING:
    from gemmantle.chat.tokenizer import Tokenizer

__all__ = ["Prompt", "render"]

Series = Literal["e", "large"]

NO_RESULT = "error: no result was returned for this call"

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = (
    "image_url",
    "input_image",
    "image",
    "input_audio",
    "audio",
    "video",
    "video_url",
    "file",
    "input_file",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads before it writes."""

    segments: tuple[Segment, ...]
    starts_in_thought: bool = False  # generation begins inside a thought that the prompt has opened
    reads_control: bool = False  # control strings spelled in text count as such: only where the caller asked for it
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """All segments as one string, control strings spelled out."""
        return "".join(s.spelling if isinstance(s, Control) else s for s in self.segments)

    def ids(self, tokenizer: Tokenizer | None = None) -> list[int]:
        """Token ids; `tokenizer` defaults to the one of the engine that made the prompt.

        Raises RequestError without a tokenizer, or where the vocabulary lacks a control string of the chat format.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise RequestError("this prompt was rendered without an engine; pass a gemmantle.Tokenizer to ids()")
        ids: list[int] = []
        for segment in self.segments:
            if not isinstance(segment, Control):
                ids += _encoded(segment, tokenizer) if self.reads_control else tokenizer.encode(segment)
                continue
            special = tokenizer.special.get(segment.spelling)
            if special is None:
                raise RequestError(
                    f"the vocabulary of this model has no {segment.spelling!r}, so it cannot follow the chat format of "
                    "Gemma 4; use a plain text prompt",
                    param="messages",
                )
            ids.append(special)
        return ids

    def with_tokenizer(self, tokenizer: Tokenizer) -> Prompt:
        """The same prompt, knowing its tokenizer."""
        return replace(self, tokenizer=tokenizer)


def render(
    messages: Iterable[Any],
    tools: Iterable[Any] | None = None,
    thinking: bool = False,
    series: Series = "e",
    add_generation_prompt: bool = True,
    *,
    preserve_thinking: bool = False,
    continue_final_message: bool = False,
    allow_special_tokens: bool = False,
) -> Prompt:
    """The prompt of a conversation.

    messages, tools: as in the chat completions API. series: "e" for E2B and E4B; "large" for 12B, 26B-A4B and 31B,
    which are given an empty thought when thinking is off. preserve_thinking keeps the thoughts of older calls.
    continue_final_message leaves the last message, an assistant's, open. allow_special_tokens reads control strings
    spelled in texts as control tokens.
    Raises RequestError whose `param` is the path of the field, for example `messages[2].content[0].text`.
    """
    if series not in ("e", "large"):
        raise RequestError(f"series is {series!r}; use 'e' or 'large'", param="series")
    conversation = _read_messages(messages)
    declared = read_tools(tools)
    out = Segments()
    out.control("<bos>")

    first = conversation[0]
    leads = first.role == "system"
    if thinking or declared or leads:
        out.control("<|turn>")
        out.text("system\n")
        if thinking:
            out.control("<|think|>")
            out.text("\n")
        if leads:
            for part in first.parts:
                out.text(part.strip(), " " if first.is_list else "")
        for tool in declared:
            out.control("<|tool>")
            write_declaration(out, tool)
            out.control("<tool|>")
        out.control("<turn|>")
        out.text("\n")

    turns = conversation[1:] if leads else conversation
    empty_thought = series == "large" and not thinking
    if continue_final_message and (not turns or turns[-1].role != "assistant" or turns[-1].calls):
        raise RequestError(
            "continue_final_message needs an assistant message without calls at the end; leave it out",
            param="continue_final_message",
        )
    last = _write_turns(
        out,
        turns,
        preserve_thinking=preserve_thinking,
        empty_thought=empty_thought,
        leaves_open=continue_final_message,
    )
    if add_generation_prompt and not continue_final_message:
        _open_model_turn(out, last, thinking=thinking, empty_thought=empty_thought)
    in_thought = out.ends_with(Control("<|channel>"), "thought\n")
    return Prompt(out.take(), starts_in_thought=in_thought, reads_control=allow_special_tokens)


# What the last message left behind: a closed turn, a tool result in an open turn, or a call that waits for its result.
_Left = Literal["closed", "result", "call"]


def _write_turns(
    out: Segments,
    turns: Sequence[_Message],
    *,
    preserve_thinking: bool,
    empty_thought: bool,
    leaves_open: bool = False,
) -> _Left:
    spoken = [m for m in turns if m.role != "tool"]
    last_user = max((m.index for m in spoken if m.role == "user"), default=-1)
    left: _Left = "closed"
    for position, message in enumerate(spoken):
        before = spoken[position - 1] if position else None
        after = spoken[position + 1] if position + 1 < len(spoken) else None
        is_model = message.role == "assistant"
        opens = not (is_model and before is not None and before.role == "assistant")
        if opens:
            out.control("<|turn>")
            out.text("model" if is_model else message.role, "\n")
        if message.reasoning and (message.index > last_user or (preserve_thinking and message.calls)):
            out.control("<|channel>")
            out.text("thought\n", message.reasoning, "\n")
            out.control("<channel|>")
        elif opens and is_model and empty_thought and not message.reasoning:
            _write_empty_thought(out)
        for call in message.calls:
            write_call(out, call.name, call.arguments)
        results = _results(message, is_last=after is None)
        for name, result in results:
            write_result(out, name, result)

        content = [(_without_thoughts(p) if is_model else p).strip() for p in message.parts]
        if leaves_open and after is None:
            blanks = message.parts[-1][len(message.parts[-1].rstrip()) :] if message.parts else ""
            out.text(*content, blanks)
            return "closed"
        out.text(*content)

        left = "closed"
        if message.calls and not results:
            out.control("<|tool_response>")
            left = "call"
        elif after is not None and after.role == "assistant" and is_model:
            pass
        elif results and not any(content) and after is None:
            left = "result"
        else:
            out.control("<turn|>")
            out.text("\n")
    return left


def _open_model_turn(out: Segments, left: _Left, *, thinking: bool, empty_thought: bool) -> None:
    if left == "call":
        return
    if left == "result":
        if thinking:
            out.control("<|channel>")
            out.text("thought\n")
        return
    out.control("<|turn>")
    out.text("model\n")
    if empty_thought:
        _write_empty_thought(out)


def _write_empty_thought(out: Segments) -> None:
    # Large models with thinking off: in front of every model turn, history included, that carries no reasoning of its
    # own, whether that was rendered or not.
    out.control("<|channel>")
    out.text("thought\n")
    out.control("<channel|>")


def _encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text whose control strings are control tokens."""
    spellings = sorted(tokenizer.special, key=len, reverse=True)
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, spellings))})", text):
        special = tokenizer.special.get(piece)
        ids += tokenizer.encode(piece) if special is None else [special]
    return ids


def _without_thoughts(text: str) -> str:
    """Drops raw thoughts that a caller left in assistant content; an unterminated one takes the rest with it."""
    return "".join(piece.split("<|channel>", 1)[0] for piece in text.split("<channel|>"))


@dataclass(slots=True)
class _Call:
    name: str
    arguments: dict[str, Any]
    id: str | None


@dataclass(slots=True)
class _Message:
    index: int  # in the request
    role: str  # system, user, assistant, tool
    parts: list[str] = field(default_factory=list)  # text, one entry a part
    is_list: bool = False  # the content came as a list of parts
    reasoning: str = ""
    calls: list[_Call] = field(default_factory=list)
    responses: list[tuple[str, str | dict[str, Any]]] = field(default_factory=list)  # Google's own layout
    answers: list[_Message] = field(default_factory=list)  # tool messages that follow
    name: str | None = None
    call_id: str | None = None


def _results(message: _Message, *, is_last: bool) -> list[tuple[str, str | dict[str, Any]]]:
    """Name and result of every answer, in message order; in mid-history every call has one."""
    if message.responses or not message.calls:
        return message.responses
    names: dict[str | None, str] = {call.id: call.name for call in message.calls if call.id is not None}
    results: list[tuple[str, str | dict[str, Any]]] = [
        (names.get(answer.call_id) or answer.name or "unknown", "".join(answer.parts)) for answer in message.answers
    ]
    if results or not is_last:
        answered = {answer.call_id for answer in message.answers}
        open_calls = [call for call in message.calls if call.id is None or call.id not in answered]
        missing = max(0, len(message.calls) - len(results))
        results += [(call.name, NO_RESULT) for call in open_calls[:missing]]
    return results


def _read_messages(messages: Iterable[Any]) -> list[_Message]:
    if isinstance(messages, str | Mapping):
        raise RequestError(f"messages is of type {type(messages).__name__}; give a list of messages", param="messages")
    result: list[_Message] = []
    for i, raw in enumerate(messages):
        message = _read_message(raw, i)
        if message.role == "tool":
            asker = next((m for m in reversed(result) if m.role != "tool"), None)
            if asker is None or not asker.calls:
                raise RequestError(
                    f"messages[{i}] is a tool result, but the message before it made no tool call; put it after the "
                    "assistant message whose tool_calls it answers",
                    param=f"messages[{i}]",
                )
            asker.answers.append(message)
        result.append(message)
    if not result:
        raise RequestError("messages is empty; give at least one message", param="messages")
    return result


def _read_message(raw: Any, index: int) -> _Message:
    path = f"messages[{index}]"
    if hasattr(raw, "model_dump"):
        raw = raw.model_dump(exclude_none=True)
    if not isinstance(raw, Mapping):
        raise RequestError(f"{path} is of type {type(raw).__name__}; give an object with role and content", param=path)
    role = raw.get("role")
    if role not in _ROLES:
        raise RequestError(f"{path}.role is {role!r}; use one of {', '.join(_ROLES)}", param=f"{path}.role")
    message = _Message(index, {"developer": "system", "function": "tool"}.get(str(role), str(role)))
    content = raw.get("content")
    if content is None and message.role == "assistant":
        content = raw.get("refusal") or ""
    if content is None:
        if message.role != "tool":
            raise RequestError(f"{path}.content is missing; give a string or a list of parts", param=f"{path}.content")
        content = ""
    message.is_list = not isinstance(content, str)
    message.parts = [content] if isinstance(content, str) else _read_parts(content, f"{path}.content")
    message.name = _optional_string(raw, "name", path)
    message.call_id = _optional_string(raw, "tool_call_id", path)
    if message.role == "assistant":
        message.reasoning = (
            _optional_string(raw, "reasoning", path) or _optional_string(raw, "reasoning_content", path) or ""
        )
        message.calls = _read_calls(raw, path)
        message.responses = _read_responses(raw, path)
    return message


def _read_parts(content: Any, path: str) -> list[str]:
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise RequestError(f"{path} is of type {type(content).__name__}; give a string or a list of parts", param=path)
    texts: list[str] = []
    for i, part in enumerate(content):
        here = f"{path}[{i}]"
        if hasattr(part, "model_dump"):
            part = part.model_dump(exclude_none=True)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _MEDIA_PARTS:
            raise RequestError(
                f"{here} is of type {kind!r}; this version reads text only, so leave the part out",
                code="unsupported_content_type",
                param=here,
            )
        if kind not in (*_TEXT_PARTS, "refusal"):
            raise RequestError(
                f"{here} has type {kind!r}; give an object with type 'text' and a text", param=f"{here}.type"
            )
        key = "refusal" if kind == "refusal" else "text"
        text = part.get(key)
        if not isinstance(text, str):
            raise RequestError(f"{here}.{key} is {text!r}; give a string", param=f"{here}.{key}")
        texts.append(text)
    return texts


def _read_calls(raw: Mapping[str, Any], path: str) -> list[_Call]:
    entries = raw.get("tool_calls")
    if entries is None:
        legacy = raw.get("function_call")
        if legacy is None:
            return []
        return [_read_call(legacy, None, f"{path}.function_call")]
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise RequestError(
            f"{path}.tool_calls is of type {type(entries).__name__}; give a list", param=f"{path}.tool_calls"
        )
    calls: list[_Call] = []
    for i, entry in enumerate(entries):
        here = f"{path}.tool_calls[{i}]"
        if hasattr(entry, "model_dump"):
            entry = entry.model_dump(exclude_none=True)
        if not isinstance(entry, Mapping):
            raise RequestError(f"{here} is of type {type(entry).__name__}; give an object with function", param=here)
        call_id = _optional_string(entry, "id", here)
        if "function" in entry:
            calls.append(_read_call(entry["function"], call_id, f"{here}.function"))
        else:
            calls.append(_read_call(entry, call_id, here))
    return calls


def _read_call(function: Any, call_id: str | None, path: str) -> _Call:
    if hasattr(function, "model_dump"):
        function = function.model_dump(exclude_none=True)
    if not isinstance(function, Mapping):
        raise RequestError(f"{path} is of type {type(function).__name__}; give name and arguments", param=path)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{path}.name is {name!r}; give the name of the function", param=f"{path}.name")
    where = f"{path}.arguments"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is no JSON object: {error}", param=where) from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where} holds a {type(arguments).__name__}; give a JSON object", param=where)
    return _Call(name, dict(arguments), call_id)


def _read_responses(raw: Mapping[str, Any], path: str) -> list[tuple[str, str | dict[str, Any]]]:
    result: list[tuple[str, str | dict[str, Any]]] = []
    for i, entry in enumerate(raw.get("tool_responses") or ()):
        here = f"{path}.tool_responses[{i}]"
        if not isinstance(entry, Mapping):
            raise RequestError(f"{here} is of type {type(entry).__name__}; give name and response", param=here)
        response = entry.get("response")
        if not isinstance(response, str | Mapping):
            raise RequestError(f"{here}.response is {response!r}; give a string or an object", param=f"{here}.response")
        name = entry.get("name") or "unknown"
        result.append((str(name), response if isinstance(response, str) else dict(response)))
    return result


def _optional_string(raw: Mapping[str, Any], key: str, path: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{path}.{key} is of type {type(value).__name__}; give a string", param=f"{path}.{key}")
    return value
