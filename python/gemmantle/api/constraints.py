"""What a request wants its reply to be: formats, tool choice, budgets of thoughts; and the grammar that holds it there.

Fields become a `structured.Format` and a `ToolChoice` here, both become a grammar once the engine is known. Requests
that ask for nothing of the kind get no grammar and run as fast as ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from gemmantle.api.fields import Fields, show
from gemmantle.api.protocol import Profile, Sampling, ServingEngine
from gemmantle.chat.tools import read_tools as declared
from gemmantle.errors import RequestError
from gemmantle.structured import CallableTool, Format, Grammar

__all__ = ["Thinking", "ToolChoice", "build_grammar", "read_format", "read_thinking", "read_tool_choice", "set_budget"]

LEVELS: dict[str, int | None] = {  # tokens of thoughts; None: off, -1: as many as the limit allows
    "none": None,
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": -1,
    "xhigh": -1,
    "max": -1,
}
MIN_ANSWER_TOKENS = 256

_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """mode: none, auto or required; names: the functions that may be called, None for all."""

    mode: str = "auto"
    names: tuple[str, ...] | None = None
    single: bool = False  # one function was named: one call


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether the model thinks, and for how many tokens at most (-1: free)."""

    on: bool
    budget: int = -1


# --- formats


def read_format(fields: Fields) -> Format | None:
    """`response_format`, or `structured_outputs` with its aliases; of both only the blanks that JSON may have."""
    standard = _response_format(fields)
    value = fields.values.get("structured_outputs")
    if value is None:
        return standard
    param = fields.written["structured_outputs"]
    if standard is not None:
        if standard.kind == "json" and isinstance(value, dict) and set(value) == {"whitespace_pattern"}:
            return replace(standard, whitespace=_blanks(value["whitespace_pattern"], param))
        raise RequestError(f"`response_format` and `{param}` both constrain the reply; send one of them", param=param)
    return _structured_outputs(value, param)


def _response_format(fields: Fields) -> Format | None:
    value = fields.values.get("response_format")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError(f"`response_format` is {show(value)}; it must be an object", param="response_format")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Format("json", {"type": "object"}, "response_format")
    if kind != "json_schema":
        raise RequestError(
            f"`response_format.type` is {show(kind)}; it must be text, json_object or json_schema",
            param="response_format.type",
        )
    inner, param = value.get("json_schema"), "response_format.json_schema"
    if not isinstance(inner, dict):
        raise RequestError(f"`{param}` is {show(inner)}; it must be an object with a `schema`", param=param)
    schema = inner.get("schema", {})
    strict = inner.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"`{param}.strict` is {show(strict)}; it must be true or false", param=f"{param}.strict")
    if not isinstance(schema, dict):
        raise RequestError(f"`{param}.schema` is {show(schema)}; it must be an object", param=f"{param}.schema")
    return Format("json", schema, f"{param}.schema", strict=bool(strict))


def _structured_outputs(value: Any, param: str) -> Format:
    if not isinstance(value, dict):
        raise RequestError(f"`{param}` is {show(value)}; it must be an object", param=param)
    given = {key: inner for key, inner in value.items() if inner is not None and inner is not False}
    is_shown = given.pop("show_schema", False)
    if not isinstance(is_shown, bool):
        where = f"{param}.show_schema"
        raise RequestError(f"`{where}` is {show(is_shown)}; it must be true or false", param=where)
    if is_shown and "json" not in given:
        where = f"{param}.show_schema"
        raise RequestError(f"`{where}` needs `{param}.json`, a schema to be shown", param=where)
    blanks = _blanks(given.pop("whitespace_pattern", None), param)
    for key in given:
        if key not in _KINDS:
            where = f"{param}.{key}"[:120]
            raise RequestError(
                f"unknown field `{where}`; there are {', '.join(_KINDS)}", code="unknown_parameter", param=where
            )
    if len(given) != 1:
        found = ", ".join(given) or "nothing"
        raise RequestError(f"`{param}` has {found}; it must have one of {', '.join(_KINDS)}", param=param)
    [(kind, inner)] = given.items()
    # An alias was written by itself: the path of a fault is its name.
    where = f"{param}.{kind}" if param == "structured_outputs" else param
    if kind == "json_object":
        return Format("json", {"type": "object"}, where, whitespace=blanks)
    if kind == "json":
        if isinstance(inner, str):
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"`{where}` is no JSON: {error}", param=where) from None
        if not isinstance(inner, dict):
            raise RequestError(f"`{where}` is {show(inner)}; it must be a schema", param=where)
        return Format("json", inner, where, whitespace=blanks, is_shown=is_shown)
    if kind == "choice":
        if not isinstance(inner, list) or not inner or not all(isinstance(text, str) and text for text in inner):
            raise RequestError(
                f"`{where}` is {show(inner)}; it must be a list of strings, none of them empty", param=where
            )
    elif not isinstance(inner, str) or not inner:
        raise RequestError(f"`{where}` is {show(inner)}; it must be a string, not empty", param=where)
    return Format(kind, inner, where)


def _blanks(value: Any, param: str) -> str | None:
    if value is not None and not isinstance(value, str):
        where = f"{param}.whitespace_pattern"
        raise RequestError(f"`{where}` is {show(value)}; it must be a regular expression", param=where)
    return value


# --- tools


def read_tool_choice(fields: Fields, tools: list[dict[str, Any]] | None) -> ToolChoice:
    """`tool_choice` in all its forms (spec api C-13)."""
    choice = fields.values.get("tool_choice", "auto")
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            _wrong_choice(choice)
        if choice == "required" and not tools:
            raise RequestError("`tool_choice` = 'required' needs `tools` to choose from", param="tool_choice")
        return ToolChoice(choice)
    if not isinstance(choice, dict):
        _wrong_choice(choice)
    if choice.get("type") == "function":
        inner = choice.get("function", choice)
        return ToolChoice("required", _names([inner], tools, "tool_choice.function"), single=True)
    if choice.get("type") != "allowed_tools":
        _wrong_choice(choice)
    inner = choice.get("allowed_tools", choice)
    mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
    listed = inner.get("tools") if isinstance(inner, dict) else None
    if mode not in ("auto", "required"):
        where = "tool_choice.allowed_tools.mode"
        raise RequestError(f"`{where}` is {show(mode)}; it must be 'auto' or 'required'", param=where)
    where = "tool_choice.allowed_tools.tools"
    if not isinstance(listed, list) or not listed:
        raise RequestError(f"`{where}` is {show(listed)}; it must be a list of functions, not empty", param=where)
    entries = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in listed]
    return ToolChoice(mode, _names(entries, tools, where))


def _names(entries: list[Any], tools: list[dict[str, Any]] | None, where: str) -> tuple[str, ...]:
    known = [tool["function"]["name"] for tool in tools or ()]
    names: list[str] = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise RequestError(f"`{where}` names {show(name)}, which is not among `tools`: {there}", param=where)
        names.append(str(name))
    return tuple(dict.fromkeys(names))


def _wrong_choice(choice: Any) -> NoReturn:
    raise RequestError(
        f"`tool_choice` is {show(choice)}; it must be 'none', 'auto', 'required', a function "
        '({"type": "function", "function": {"name": ...}}) or allowed tools',
        param="tool_choice",
    )


# --- thoughts


def read_thinking(fields: Fields, profile: Profile) -> Thinking:
    """An explicit switch wins over the level, a budget over the level's own (spec api 5.7)."""
    level = fields.values.get("reasoning_effort")
    if level is not None:
        _check_level("reasoning_effort", level)
    switch, name = _switch(fields)
    if isinstance(switch, str):
        _check_level(name, switch)
        level = switch
    elif switch is not None and not isinstance(switch, bool):
        raise RequestError(f"`{name}` is {show(switch)}; it must be true, false or a level name", param=name)
    elif switch is False:
        level = "none"
    elif switch is True and level in (None, "none"):
        level = "high"
    budget = fields.integer("thinking_token_budget", -2, -1, 2**31 - 1)
    tokens = LEVELS[profile.default_reasoning if level is None else level]
    if tokens is None or (budget == 0 and switch is not True):
        return Thinking(False)
    return Thinking(True, tokens if budget == -2 else budget)


def _switch(fields: Fields) -> tuple[Any, str]:
    switch = fields.values.get("enable_thinking")
    name = fields.written.get("enable_thinking", "enable_thinking")
    kwargs = fields.values.get("chat_template_kwargs")
    if kwargs is None:
        return switch, name
    if not isinstance(kwargs, dict):
        raise RequestError(
            f"`chat_template_kwargs` is {show(kwargs)}; it must be an object", param="chat_template_kwargs"
        )
    for key, value in kwargs.items():
        path = f"chat_template_kwargs.{key}"
        if key != "enable_thinking":
            raise RequestError(
                f"`{path[:100]}` is not supported; `enable_thinking` is the only switch the template has",
                code="unsupported_parameter",
                param=path[:100],
            )
        if switch is not None and value is not None and value != switch:
            raise RequestError(f"`{name}` and `{path}` differ; send one of them", param=path)
        switch, name = (switch if value is None else value), path
    return switch, name


def _check_level(name: str, level: Any) -> None:
    if not isinstance(level, str) or level not in LEVELS:
        raise RequestError(f"`{name}` is {show(level)}; it must be one of {', '.join(LEVELS)}", param=name)


def set_budget(sampling: Sampling, thinking: Thinking, profile: Profile, prompt_tokens: int) -> None:
    """The budget of thoughts, low enough to leave room for an answer (spec api C-19)."""
    if not thinking.on or not profile.thought_end:
        return
    room = max(profile.max_context - prompt_tokens, 0)
    limit = room if sampling.max_tokens < 0 else min(sampling.max_tokens, room)
    most = limit - min(MIN_ANSWER_TOKENS, limit // 4)
    sampling.thinking_budget = most if thinking.budget < 0 else min(thinking.budget, most)
    sampling.thought_end = list(profile.thought_end)


# --- the grammar


def build_grammar(
    engine: ServingEngine,
    sampling: Sampling,
    form: Format | None,
    tools: list[dict[str, Any]] | None = None,
    choice: ToolChoice | None = None,
) -> Grammar | None:
    """The grammar of the reply, None where it is free; the sampling is told to wait for masks."""
    choice = choice or ToolChoice("none")
    calls = [] if choice.mode == "none" else _callables(tools, choice.names)
    is_plain = choice.mode != "required" and choice.names is None and not any(entry.strict for entry in calls)
    if form is None and is_plain:
        return None
    param = form.param if form is not None else "tool_choice" if choice != ToolChoice() else "tools"
    for field, value in (("ignore_eos", sampling.ignore_eos), ("min_tokens", sampling.min_tokens)):
        if value:
            raise RequestError(
                f"`{field}` cannot be combined with `{param}`: the grammar says where the reply ends; leave it out",
                code="unsupported_value",
                param=field,
            )
    try:
        compiler = engine.structured()
    except RequestError as error:
        raise RequestError(f"`{param}`: {error}", code=error.code, param=param) from None
    grammar: Grammar = compiler.compile(
        form, calls, must_call=choice.mode == "required", single=sampling.single_call or choice.single
    )
    profile = engine.profile
    sampling.constrained = True
    # A thought ends by its own marker only: whatever else would leave it unseen by the grammar.
    sampling.suppress_in_thought = [*profile.eos_ids, *profile.thought_open[:1]]
    if profile.call_id is not None:
        sampling.suppress_in_thought.append(profile.call_id)
    return grammar


def _callables(tools: list[dict[str, Any]] | None, names: Sequence[str] | None) -> list[CallableTool]:
    entries = []
    for position, (tool, read) in enumerate(zip(tools or (), declared(tools), strict=True)):
        function = tool["function"]
        if names is None or function["name"] in names:
            path = f"tools[{position}].function.parameters"
            entries.append(CallableTool(read, bool(function.get("strict")), path))
    return entries
