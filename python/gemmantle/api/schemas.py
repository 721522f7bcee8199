"""Requests as typed values: every field of spec api 5.1 and 7.1 is honoured, neutral, or refused by name.

A field is looked up in four tables: aliases, honoured, neutral, and later (refused unless at a value that asks for
nothing). What is in none of them is unknown. Messages name the field, the value found and the remedy.
"""

from __future__ import annotations

import difflib
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from gemmantle.api.protocol import Profile, Sampling
from gemmantle.errors import RequestError

__all__ = ["ChatRequest", "CompletionRequest", "parse_body", "read_chat", "read_completion"]

MAX_BODY_BYTES = 64 << 20
_INT64 = 1 << 63

_ALIASES = {
    "max_tokens": "max_completion_tokens",
    "topK": "top_k",
    "minP": "min_p",
    "repeat_penalty": "repetition_penalty",
    "repetitionPenalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "return_tokens": "return_token_ids",
    "grammar": "structured_outputs",
    "json_schema": "structured_outputs",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "think": "enable_thinking",
    "thinking_budget_tokens": "thinking_token_budget",
    "reasoning_budget": "thinking_token_budget",
    "max_soft_tokens": "image_token_budget",
    "timings_per_token": "return_details",
}

_SAMPLING_FIELDS = {
    "model", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "logit_bias", "n", "seed", "stop", "stop_token_ids", "ignore_eos",
    "min_tokens", "include_stop_str_in_output", "logprobs", "stream", "stream_options", "return_token_ids",
    "return_details",
}  # fmt: skip
_CHAT_FIELDS = _SAMPLING_FIELDS | {
    "messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort",
    "chat_template_kwargs", "enable_thinking", "include_reasoning", "response_format",
}  # fmt: skip
_COMPLETION_FIELDS = _SAMPLING_FIELDS | {"prompt", "echo", "best_of", "add_special_tokens"}

# Accepted without effect: identifiers kept by servers only, and switches that cannot matter because output is parsed
# by token ids and nothing is cached between requests.
_NEUTRAL = {
    "user", "safety_identifier", "metadata", "skip_special_tokens", "spaces_between_special_tokens", "cache_prompt",
}  # fmt: skip

# Fields of later work: the values listed ask for nothing and pass, every other one is refused.
_LATER: dict[str, tuple[object, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "service_tier": ("auto", "default"),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "store": (False,),
    "verbosity": ("medium",),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "modalities": (["text"],),
    "audio": (),
    "repetition_window": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "logprobs_mode": ("raw",),
    "structured_outputs": (),
    "thinking_token_budget": (-1,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "cache_salt": (),
    "priority": (0,),
    "truncate_prompt_tokens": (),
    "image_token_budget": (),
    "fallback": ("never",),
    "allow_special_tokens": (False,),
    "return_tokens_as_token_ids": (False,),
    "suffix": ("",),
}

_REMEDY = {
    "functions": "send them as `tools`",
    "function_call": "send `tools` and `tool_choice`",
    "suffix": "the model was not trained to fill in the middle; put the whole text in `prompt`",
    "store": "nothing is kept here; send store=false or leave it out",
    "verbosity": "say in the messages how long the answer should be",
    "modalities": "answers are text",
    "audio": "answers are text",
    "use_beam_search": "use n with temperature > 0",
    "length_penalty": "it belongs to beam search",
    "logits_processors": "use logit_bias",
    "id_slot": "requests share the engine; there are no slots",
    "samplers": "the order is fixed: bias, penalties, temperature, top_k, top_p, min_p",
    "typical_p": "use top_p or min_p",
    "echo": "only /completions can echo its prompt",
}

# Refused for good: named here so that the message explains instead of guessing at a spelling.
_NEVER = {"use_beam_search", "length_penalty", "logits_processors", "id_slot", "samplers", "typical_p"}
_NEVER_PREFIXES = ("mirostat", "dry_", "xtc_")

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGE_KEYS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content", "parsed",
    "annotations", "audio", "function_call",
}  # fmt: skip
_LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass
class CommonRequest:
    """What chat and plain completions share."""

    model: str
    sampling: Sampling
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    return_details: bool = False
    ignored: list[str] = field(default_factory=list)  # unknown fields, where the engine was told to report them


@dataclass
class ChatRequest(CommonRequest):
    """POST /chat/completions."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    calls_allowed: bool = True
    thinking: bool = False
    include_reasoning: bool = True


@dataclass
class CompletionRequest(CommonRequest):
    """POST /completions. Every prompt is a text or a list of ids."""

    prompts: list[str | list[int]] = field(default_factory=list)
    echo: bool = False
    add_bos: bool = True


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Size and depth are bounded; NaN and Infinity are no JSON."""
    if len(body) > MAX_BODY_BYTES:
        raise RequestError(
            f"the request body has {len(body)} bytes; the limit is {MAX_BODY_BYTES}", code="request_too_large"
        )
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise RequestError("the request body is nested too deeply; flatten it") from None
    except ValueError as exc:
        raise RequestError(f"the request body is not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object; found {_kind(value)}")
    return value


def read_chat(body: dict[str, Any], profile: Profile) -> ChatRequest:
    """Validate a chat request against the model that will answer it."""
    fields = Fields(body, _CHAT_FIELDS, profile)
    sampling = _read_sampling(fields, profile)
    sampling.logprobs = _chat_logprobs(fields)
    fields.tolerate("response_format", lambda value: value == {"type": "text"}, "only {'type': 'text'} is honoured")
    tools = _read_tools(fields)
    calls_allowed = _tool_choice(fields)
    sampling.single_call = not fields.boolean("parallel_tool_calls", True)
    request = ChatRequest(
        model=fields.text("model"),
        sampling=sampling,
        messages=_read_messages(fields.required("messages")),
        tools=tools,
        calls_allowed=calls_allowed,
        thinking=_read_thinking(fields, profile),
        include_reasoning=fields.boolean("include_reasoning", True),
    )
    _read_common(fields, request)
    sampling.max_tokens = fields.integer("max_completion_tokens", -1, 1, _INT64 - 1)
    sampling.channels = True
    sampling.suppress = list(profile.chat_suppress)
    if not calls_allowed and profile.call_id is not None:
        sampling.suppress.append(profile.call_id)
    return request


def read_completion(body: dict[str, Any], profile: Profile) -> CompletionRequest:
    """Validate a plain completion request."""
    fields = Fields(body, _COMPLETION_FIELDS, profile)
    sampling = _read_sampling(fields, profile)
    echo = fields.boolean("echo", False)
    sampling.logprobs = fields.integer("logprobs", -1, 0, 20)
    sampling.max_tokens = fields.integer("max_completion_tokens", 16, 0 if echo else 1, _INT64 - 1)
    if echo:
        sampling.prompt_logprobs = sampling.logprobs
    sampling.suppress = list(profile.raw_suppress)
    request = CompletionRequest(
        model=fields.text("model"),
        sampling=sampling,
        prompts=_read_prompts(fields.required("prompt"), profile),
        echo=echo,
        add_bos=fields.boolean("add_special_tokens", True),
    )
    _read_common(fields, request)
    best_of = fields.integer("best_of", request.n, 1, 128)
    if best_of != request.n:
        raise RequestError(
            f"best_of is {best_of}, n is {request.n}; only best_of = n is answered, so leave best_of out",
            code="unsupported_value",
            param="best_of",
        )
    return request


def choice_sampling(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one choice: same seed, its own stream of random numbers."""
    return sampling if choice == 0 else replace(sampling, choice=choice)


class Fields:
    """The body with aliases resolved and refusals made; the readers below check types and ranges."""

    def __init__(self, body: Mapping[str, Any], known: set[str], profile: Profile) -> None:
        self.values: dict[str, Any] = {}
        self.written: dict[str, str] = {}
        self.ignored: list[str] = []
        for name, value in body.items():
            canonical = _ALIASES.get(name, name)
            if value is None:
                if canonical not in known and canonical not in _LATER and canonical not in _NEUTRAL:
                    self._unknown(name, known, profile)
                continue
            if canonical in known:
                self._accept(canonical, name, value)
            elif canonical in _NEUTRAL:
                continue
            elif canonical in _LATER:
                if not any(type(value) is type(passing) and value == passing for passing in _LATER[canonical]):
                    _refuse(name)
            elif name in _NEVER or name.startswith(_NEVER_PREFIXES) or (name == "echo"):
                _refuse(name)
            else:
                self._unknown(name, known, profile)

    def _accept(self, canonical: str, name: str, value: Any) -> None:
        if canonical in self.values and self.values[canonical] != value:
            raise RequestError(
                f"`{self.written[canonical]}` and `{name}` mean the same and differ "
                f"({_show(self.values[canonical])} and {_show(value)}); send one of them",
                param=name,
            )
        self.values[canonical] = value
        self.written[canonical] = name

    def _unknown(self, name: str, known: set[str], profile: Profile) -> None:
        if profile.unknown_fields == "report":
            self.ignored.append(name)
            return
        near = difflib.get_close_matches(name, sorted(known | set(_ALIASES) | _NEUTRAL), n=1, cutoff=0.6)
        hint = f"; did you mean `{near[0]}`?" if near else "; remove it"
        raise RequestError(f"unknown field `{name[:100]}`{hint}", code="unknown_parameter", param=name[:100])

    def required(self, name: str) -> Any:
        if name not in self.values:
            raise RequestError(f"`{name}` is missing", code="missing_required_parameter", param=name)
        return self.values[name]

    def text(self, name: str) -> str:
        value = self.required(name)
        if not isinstance(value, str):
            self._wrong(name, value, "a string")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        if name not in self.values:
            return default
        value = self.values[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            limits = f"from {low} to {high}" if high < _INT64 - 1 else f">= {low}"
            self._wrong(name, value, f"an integer {limits}")
        return value

    def number(self, name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        """`above`: the lower end itself is excluded."""
        if name not in self.values:
            return default
        value = self.values[name]
        fits = not isinstance(value, bool) and isinstance(value, (int, float)) and low <= value <= high
        if not fits or (above and value == low):
            limits = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
            self._wrong(name, value, f"a number {limits}")
        return float(value)

    def tolerate(self, name: str, passes: Any, remark: str) -> None:
        """Refuse a field of later work unless its value asks for nothing."""
        if name in self.values and not passes(self.values[name]):
            raise RequestError(
                f"`{name}` = {_show(self.values[name])} is not supported: {remark}",
                code="unsupported_parameter",
                param=name,
            )

    def _wrong(self, name: str, value: Any, wanted: str) -> NoReturn:
        written = self.written.get(name, name)
        raise RequestError(f"`{written}` is {_show(value)}; it must be {wanted}", param=written)


def _read_sampling(fields: Fields, profile: Profile) -> Sampling:
    sampling = Sampling(
        temperature=fields.number("temperature", profile.default_temperature, 0, 2),
        top_p=fields.number("top_p", profile.default_top_p, 0, 1, above=True),
        top_k=max(fields.integer("top_k", profile.default_top_k, -1, 2**31 - 1), 0),
        min_p=fields.number("min_p", 0.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_read_logit_bias(fields, profile),
        # A draw of 32 bits is enough for an absent seed and short enough to be typed back in.
        seed=fields.integer("seed", -_INT64 - 1, -_INT64, _INT64 - 1),
        stop=_read_stop(fields),
        stop_token_ids=_read_ids(fields, "stop_token_ids", profile),
        ignore_eos=fields.boolean("ignore_eos", False),
        min_tokens=fields.integer("min_tokens", 0, 0, 2**31 - 1),
        include_stop=fields.boolean("include_stop_str_in_output", False),
    )
    if sampling.seed < -_INT64:
        sampling.seed = secrets.randbits(32)
    return sampling


def _read_common(fields: Fields, request: CommonRequest) -> None:
    request.n = fields.integer("n", 1, 1, 128)
    request.stream = fields.boolean("stream", False)
    request.return_token_ids = fields.boolean("return_token_ids", False)
    request.return_details = fields.boolean("return_details", False)
    request.ignored = fields.ignored
    options = fields.values.get("stream_options")
    if options is None:
        return
    if not request.stream:
        raise RequestError("`stream_options` needs `stream`: true", param="stream_options")
    if not isinstance(options, dict):
        raise RequestError(f"`stream_options` is {_show(options)}; it must be an object", param="stream_options")
    for key, value in options.items():
        path = f"stream_options.{key}"
        if key not in ("include_usage", "include_obfuscation"):
            raise RequestError(
                f"unknown field `{path[:100]}`; `include_usage` is the one that counts",
                code="unknown_parameter",
                param=path[:100],
            )
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"`{path}` is {_show(value)}; it must be true or false", param=path)
    request.include_usage = bool(options.get("include_usage"))


def _chat_logprobs(fields: Fields) -> int:
    wanted = fields.boolean("logprobs", False)
    top = fields.integer("top_logprobs", -1, 0, 20)
    if top >= 0 and not wanted:
        raise RequestError("`top_logprobs` needs `logprobs`: true", param="top_logprobs")
    return max(top, 0) if wanted else -1


def _read_logit_bias(fields: Fields, profile: Profile) -> dict[int, float]:
    value = fields.values.get("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"`logit_bias` is {_show(value)}; it must map token ids to numbers", param="logit_bias")
    bias = {}
    for key, amount in value.items():
        path = f"logit_bias.{str(key)[:40]}"
        if isinstance(key, str) and (len(key) > 10 or not key.isascii() or not key.isdigit()):
            raise RequestError(f"`{path}`: a key must be a token id", param=path)
        if int(key) >= profile.vocab_size:
            raise RequestError(f"`{path}`: the vocabulary has {profile.vocab_size} tokens", param=path)
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not -100 <= amount <= 100:
            raise RequestError(f"`{path}` is {_show(amount)}; it must be a number from -100 to 100", param=path)
        bias[int(key)] = float(amount)
    return bias


def _read_stop(fields: Fields) -> list[str]:
    value = fields.values.get("stop")
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(
            f"`stop` is {_show(value)}; it must be a string or up to 16 strings, none of them empty", param="stop"
        )
    return stops


def _read_ids(fields: Fields, name: str, profile: Profile) -> list[int]:
    value = fields.values.get(name, [])
    if not isinstance(value, list):
        raise RequestError(f"`{name}` is {_show(value)}; it must be a list of token ids", param=name)
    return _check_ids(value, name, profile)


def _check_ids(ids: list[Any], path: str, profile: Profile) -> list[int]:
    size = profile.vocab_size
    for position, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < size:
            where = f"{path}[{position}]"
            raise RequestError(f"`{where}` is {_show(token_id)}; it must be a token id below {size}", param=where)
    return ids


def _read_thinking(fields: Fields, profile: Profile) -> bool:
    """An explicit switch wins over the level (spec api 5.7)."""
    level = fields.values.get("reasoning_effort", profile.default_reasoning)
    _check_level("reasoning_effort", level)
    switch = fields.values.get("enable_thinking")
    name = fields.written.get("enable_thinking", "enable_thinking")
    kwargs = fields.values.get("chat_template_kwargs")
    if kwargs is not None:
        if not isinstance(kwargs, dict):
            raise RequestError(
                f"`chat_template_kwargs` is {_show(kwargs)}; it must be an object", param="chat_template_kwargs"
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
    if switch is None:
        return bool(level != "none")
    if isinstance(switch, str):
        _check_level(name, switch)
        return switch != "none"
    if not isinstance(switch, bool):
        raise RequestError(f"`{name}` is {_show(switch)}; it must be true, false or a level name", param=name)
    return switch


def _check_level(name: str, level: Any) -> None:
    if level not in _LEVELS:
        raise RequestError(f"`{name}` is {_show(level)}; it must be one of {', '.join(_LEVELS)}", param=name)
    if level not in ("none", "high"):
        raise RequestError(
            f"`{name}` = '{level}' is not supported: thoughts are off ('none') or free ('high')",
            code="unsupported_value",
            param=name,
        )


def _read_tools(fields: Fields) -> list[dict[str, Any]] | None:
    tools = fields.values.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise RequestError(f"`tools` is {_show(tools)}; it must be a list of functions", param="tools")
    for position, tool in enumerate(tools):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise RequestError(f"`{path}` is {_show(tool)}; it must be an object", param=path)
        if tool.get("type") != "function":
            raise RequestError(
                f"`{path}.type` is {_show(tool.get('type'))}; only 'function' tools are supported",
                code="unsupported_tool",
                param=f"{path}.type",
            )
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"`{path}.function` must be an object with a `name`", param=f"{path}.function")
        for key, kind in (("description", str), ("parameters", dict)):
            if function.get(key) is not None and not isinstance(function[key], kind):
                where = f"{path}.function.{key}"
                found = _show(function[key])
                raise RequestError(f"`{where}` is {found}; it must be of type {kind.__name__}", param=where)
        if function.get("strict"):
            raise RequestError(
                f"`{path}.function.strict` = true is not supported: arguments are not constrained; leave it out",
                code="unsupported_parameter",
                param=f"{path}.function.strict",
            )
    return tools or None


def _tool_choice(fields: Fields) -> bool:
    """Whether calls may be produced."""
    choice = fields.values.get("tool_choice", "auto")
    if choice in ("auto", "none"):
        return bool(choice == "auto")
    if choice == "required" or isinstance(choice, dict):
        raise RequestError(
            f"`tool_choice` = {_show(choice)} is not supported: calls cannot be forced; use 'auto' or 'none'",
            code="unsupported_parameter",
            param="tool_choice",
        )
    raise RequestError(f"`tool_choice` is {_show(choice)}; it must be 'auto' or 'none'", param="tool_choice")


def _read_messages(value: Any) -> list[dict[str, Any]]:
    """Shapes and roles, and that every tool message answers a call made before it (spec api C-16)."""
    if not isinstance(value, list) or not value:
        raise RequestError(f"`messages` is {_show(value)}; it must be a list of at least one message", param="messages")
    messages = []
    call_ids: set[str] = set()
    for position, message in enumerate(value):
        path = f"messages[{position}]"
        if not isinstance(message, dict):
            raise RequestError(f"`{path}` is {_show(message)}; it must be an object", param=path)
        role = message.get("role")
        if role not in _ROLES:
            raise RequestError(
                f"`{path}.role` is {_show(role)}; it must be one of {', '.join(_ROLES)}", param=f"{path}.role"
            )
        for key in message:
            if key not in _MESSAGE_KEYS:
                where = f"{path}.{key}"[:120]
                near = difflib.get_close_matches(key, sorted(_MESSAGE_KEYS), n=1)
                hint = f"; did you mean `{near[0]}`?" if near else "; remove it"
                raise RequestError(f"unknown field `{where}`{hint}", code="unknown_parameter", param=where)
        for key in ("audio", "function_call"):
            if message.get(key) is not None:
                raise RequestError(
                    f"`{path}.{key}` is not supported", code="unsupported_parameter", param=f"{path}.{key}"
                )
        _check_content(message, role, path)
        if role == "assistant":
            call_ids |= _check_calls(message, path)
        elif role == "tool":
            call_id = message.get("tool_call_id")
            if not isinstance(call_id, str):
                raise RequestError(f"`{path}.tool_call_id` is missing", param=f"{path}.tool_call_id")
            if call_id not in call_ids:
                raise RequestError(
                    f"`{path}.tool_call_id` is '{call_id[:100]}', but no assistant message before it made that call",
                    param=f"{path}.tool_call_id",
                )
        messages.append({**message, "role": "tool"} if role == "function" else message)
    return messages


def _check_content(message: dict[str, Any], role: str, path: str) -> None:
    content = message.get("content")
    where = f"{path}.content"
    if content is None:
        if role != "assistant":
            raise RequestError(f"`{where}` is missing", code="missing_required_parameter", param=where)
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(f"`{where}` is {_show(content)}; it must be a string or a list of parts", param=where)
    for position, part in enumerate(content):
        spot = f"{where}[{position}]"
        if not isinstance(part, dict):
            raise RequestError(f"`{spot}` is {_show(part)}; it must be an object with a `type`", param=spot)
        kind = part.get("type")
        if kind not in ("text", "refusal") or (kind == "refusal" and role != "assistant"):
            raise RequestError(
                f"`{spot}.type` is {_show(kind)}; this model answers text parts only",
                code="unsupported_content_type",
                param=f"{spot}.type",
            )
        if not isinstance(part.get(kind), str):
            raise RequestError(f"`{spot}.{kind}` must be a string", param=f"{spot}.{kind}")


def _check_calls(message: dict[str, Any], path: str) -> set[str]:
    calls = message.get("tool_calls")
    if calls is None:
        return set()
    if not isinstance(calls, list):
        raise RequestError(f"`{path}.tool_calls` is {_show(calls)}; it must be a list", param=f"{path}.tool_calls")
    ids = set()
    for position, call in enumerate(calls):
        spot = f"{path}.tool_calls[{position}]"
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            raise RequestError(f"`{spot}` must be an object with `id`, `type` and `function`", param=spot)
        function = call["function"]
        if not isinstance(function.get("name"), str):
            raise RequestError(f"`{spot}.function.name` must be a string", param=f"{spot}.function.name")
        if not isinstance(function.get("arguments", "{}"), (str, dict)):
            raise RequestError(
                f"`{spot}.function.arguments` must be a string of JSON", param=f"{spot}.function.arguments"
            )
        if isinstance(call.get("id"), str):
            ids.add(call["id"])
    return ids


def _read_prompts(value: Any, profile: Profile) -> list[str | list[int]]:
    """A text, several texts, ids, or several lists of ids (spec api 7.1)."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(type(item) is int for item in value):
            return [_check_ids(value, "prompt", profile)]
        if all(isinstance(item, list) and item for item in value):
            return [_check_ids(item, f"prompt[{position}]", profile) for position, item in enumerate(value)]
    raise RequestError(
        f"`prompt` is {_show(value)}; it must be a string, a list of strings, a list of token ids or a list of such "
        "lists, none of them empty",
        param="prompt",
    )


def _refuse(name: str) -> NoReturn:
    remedy = _REMEDY.get(name) or _REMEDY.get(_ALIASES.get(name, name), "leave it out")
    raise RequestError(f"`{name[:100]}` is not supported: {remedy}", code="unsupported_parameter", param=name[:100])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )


def _show(value: Any) -> str:
    """A value in a message: short, and printable whatever it holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
