"""Requests as typed values: what /chat/completions and /completions honour, validated against the answering model."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from gemmantle.api import legacy
from gemmantle.api.constraints import Thinking, ToolChoice, read_format, read_thinking, read_tool_choice
from gemmantle.api.fields import INT64, Fields, show
from gemmantle.api.messages import read_messages, read_tools
from gemmantle.api.protocol import Profile, Sampling
from gemmantle.errors import RequestError
from gemmantle.structured import Format

__all__ = [
    "CHAT_FIELDS",
    "ChatRequest",
    "CompletionRequest",
    "choice_sampling",
    "parse_body",
    "read_chat",
    "read_completion",
]

MAX_BODY_BYTES = 64 << 20

_SAMPLING_FIELDS = {
    "model", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "logit_bias", "n", "seed", "stop", "stop_token_ids", "ignore_eos",
    "min_tokens", "include_stop_str_in_output", "logprobs", "stream", "stream_options", "return_token_ids",
    "return_details", "service_tier", "prompt_logprobs", "truncate_prompt_tokens", "allowed_token_ids",
}  # fmt: skip
# Switches of the chat template, and what they are where nobody speaks of them.
_TEMPLATE_SWITCHES = {"add_generation_prompt": True, "continue_final_message": False, "allow_special_tokens": False}
_CHAT_FIELDS = _SAMPLING_FIELDS | set(_TEMPLATE_SWITCHES) | {
    "messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort",
    "chat_template_kwargs", "enable_thinking", "include_reasoning", "response_format", "structured_outputs",
    "thinking_token_budget", "store", "metadata", "reasoning_field",
}  # fmt: skip
_COMPLETION_FIELDS = _SAMPLING_FIELDS | {
    "prompt", "echo", "best_of", "add_special_tokens", "response_format", "structured_outputs",
}  # fmt: skip
CHAT_FIELDS = frozenset(_CHAT_FIELDS)


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
    asks_prompt_logprobs: bool = False
    truncate_prompt_tokens: int | None = None
    form: Format | None = None  # what the text of the reply must be
    ignored: list[str] = field(default_factory=list)  # unknown fields, where the engine was told to report them

    @property
    def service_tier(self) -> str:
        """The tier that is applied, which is nothing but the priority in the engine."""
        return next(tier for tier, priority in _PRIORITIES.items() if priority == self.sampling.priority)

    @service_tier.setter
    def service_tier(self, tier: str) -> None:
        self.sampling.priority = _PRIORITIES[tier]


@dataclass
class ChatRequest(CommonRequest):
    """POST /chat/completions."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    thinking: Thinking = field(default_factory=lambda: Thinking(False))
    template: dict[str, bool] = field(default_factory=dict)  # switches of `chat.render` that were asked for
    include_reasoning: bool = True
    reasoning_names: tuple[str, ...] = ("reasoning",)
    legacy_functions: bool = False  # asked in the shape of before `tools`, and answered in it
    store: bool = False
    metadata: dict[str, str] = field(default_factory=dict)


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
    if not legacy.is_legacy(body):
        return _read_chat(body, profile)
    try:
        request = _read_chat(legacy.modern(body), profile)
    except RequestError as exc:
        raise legacy.renamed(exc) from None
    request.legacy_functions = True
    request.sampling.single_call = True
    return request


def _read_chat(body: dict[str, Any], profile: Profile) -> ChatRequest:
    fields = Fields(body, _CHAT_FIELDS, profile)
    sampling = _read_sampling(fields, profile)
    sampling.logprobs = _chat_logprobs(fields)
    tools = read_tools(fields)
    choice = read_tool_choice(fields, tools)
    sampling.single_call = not fields.boolean("parallel_tool_calls", True)
    request = ChatRequest(
        model=fields.text("model"),
        sampling=sampling,
        messages=read_messages(fields.required("messages")),
        tools=tools,
        tool_choice=choice,
        thinking=read_thinking(fields, profile),
        form=read_format(fields),
        include_reasoning=fields.boolean("include_reasoning", True),
        reasoning_names=_reasoning_names(fields),
        store=fields.boolean("store", False),
        metadata=fields.metadata(),
        template=_read_template(fields),
    )
    _read_common(fields, request)
    sampling.max_tokens = fields.integer("max_completion_tokens", -1, 1, INT64 - 1)
    sampling.channels = True
    sampling.suppress = list(profile.chat_suppress)
    if choice.mode == "none" and profile.call_id is not None:
        sampling.suppress.append(profile.call_id)
    _suppress_others(fields, sampling, profile)
    return request


def read_completion(body: dict[str, Any], profile: Profile) -> CompletionRequest:
    """Validate a plain completion request."""
    fields = Fields(body, _COMPLETION_FIELDS, profile)
    sampling = _read_sampling(fields, profile)
    echo = fields.boolean("echo", False)
    sampling.logprobs = fields.integer("logprobs", -1, 0, 20)
    sampling.max_tokens = fields.integer("max_completion_tokens", 16, 0 if echo else 1, INT64 - 1)
    if echo:
        sampling.prompt_logprobs = sampling.logprobs
    sampling.suppress = list(profile.raw_suppress)
    _suppress_others(fields, sampling, profile)
    request = CompletionRequest(
        model=fields.text("model"),
        sampling=sampling,
        prompts=_read_prompts(fields.required("prompt"), profile),
        echo=echo,
        add_bos=fields.boolean("add_special_tokens", True),
        form=read_format(fields),
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
        seed=fields.integer("seed", -INT64 - 1, -INT64, INT64 - 1),
        stop=_read_stop(fields),
        stop_token_ids=_read_ids(fields, "stop_token_ids", profile),
        ignore_eos=fields.boolean("ignore_eos", False),
        min_tokens=fields.integer("min_tokens", 0, 0, 2**31 - 1),
        include_stop=fields.boolean("include_stop_str_in_output", False),
    )
    if sampling.seed < -INT64:
        sampling.seed = secrets.randbits(32)
    return sampling


def _read_common(fields: Fields, request: CommonRequest) -> None:
    request.n = fields.integer("n", 1, 1, 128)
    request.stream = fields.boolean("stream", False)
    request.return_token_ids = fields.boolean("return_token_ids", False)
    request.return_details = fields.boolean("return_details", False)
    request.ignored = fields.ignored
    request.service_tier = _read_tier(fields)
    if "truncate_prompt_tokens" in fields.values:
        request.truncate_prompt_tokens = fields.integer("truncate_prompt_tokens", 1, 1, INT64 - 1)
    _read_prompt_logprobs(fields, request)
    options = fields.values.get("stream_options")
    if options is None:
        return
    if not request.stream:
        raise RequestError("`stream_options` needs `stream`: true", param="stream_options")
    if not isinstance(options, dict):
        raise RequestError(f"`stream_options` is {show(options)}; it must be an object", param="stream_options")
    for key, value in options.items():
        path = f"stream_options.{key}"
        if key not in ("include_usage", "include_obfuscation"):
            raise RequestError(
                f"unknown field `{path[:100]}`; `include_usage` is the one that counts",
                code="unknown_parameter",
                param=path[:100],
            )
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"`{path}` is {show(value)}; it must be true or false", param=path)
    request.include_usage = bool(options.get("include_usage"))


_PRIORITIES = {"priority": 1, "default": 0, "flex": -1}
_TIERS = {**{tier: tier for tier in _PRIORITIES}, **dict.fromkeys(("auto", "scale", "fast"), "default")}


def _read_tier(fields: Fields) -> str:
    """The tier that is applied: there are three of them here."""
    tier = fields.values.get("service_tier", "auto")
    if not isinstance(tier, str) or tier not in _TIERS:
        raise RequestError(
            f"`service_tier` is {show(tier)}; it must be one of {', '.join(_TIERS)}", param="service_tier"
        )
    return _TIERS[tier]


def _read_prompt_logprobs(fields: Fields, request: CommonRequest) -> None:
    wanted = fields.integer("prompt_logprobs", -1, 0, 20)
    if wanted < 0:
        return
    if request.stream:
        raise RequestError(
            "`prompt_logprobs` cannot be streamed; leave `stream` out",
            code="unsupported_value",
            param="prompt_logprobs",
        )
    request.asks_prompt_logprobs = True
    request.sampling.prompt_logprobs = max(request.sampling.prompt_logprobs, wanted)


def _reasoning_names(fields: Fields) -> tuple[str, ...]:
    """Under which names thoughts are told: `reasoning_content` is what some clients look for."""
    name = fields.values.get("reasoning_field", "reasoning")
    if name not in ("reasoning", "both"):
        raise RequestError(
            f"`reasoning_field` is {show(name)}; it must be 'reasoning' or 'both'", param="reasoning_field"
        )
    return ("reasoning", "reasoning_content") if name == "both" else ("reasoning",)


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
        raise RequestError(f"`logit_bias` is {show(value)}; it must map token ids to numbers", param="logit_bias")
    bias = {}
    for key, amount in value.items():
        path = f"logit_bias.{str(key)[:40]}"
        if isinstance(key, str) and (len(key) > 10 or not key.isascii() or not key.isdigit()):
            raise RequestError(f"`{path}`: a key must be a token id", param=path)
        if int(key) >= profile.vocab_size:
            raise RequestError(f"`{path}`: the vocabulary has {profile.vocab_size} tokens", param=path)
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not -100 <= amount <= 100:
            raise RequestError(f"`{path}` is {show(amount)}; it must be a number from -100 to 100", param=path)
        bias[int(key)] = float(amount)
    return bias


def _read_stop(fields: Fields) -> list[str]:
    value = fields.values.get("stop")
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(
            f"`stop` is {show(value)}; it must be a string or up to 16 strings, none of them empty", param="stop"
        )
    return stops


def _read_ids(fields: Fields, name: str, profile: Profile) -> list[int]:
    value = fields.values.get(name, [])
    if not isinstance(value, list):
        raise RequestError(f"`{name}` is {show(value)}; it must be a list of token ids", param=name)
    return _check_ids(value, name, profile)


def _suppress_others(fields: Fields, sampling: Sampling, profile: Profile) -> None:
    """`allowed_token_ids`: nothing else is drawn, the tokens that end a reply included."""
    if "allowed_token_ids" not in fields.values:
        return
    allowed = set(_read_ids(fields, "allowed_token_ids", profile)) - set(sampling.suppress)
    if not allowed:
        raise RequestError(
            "`allowed_token_ids` has no token that this model may say; name some, or leave it out",
            param="allowed_token_ids",
        )
    sampling.suppress = [token for token in range(profile.vocab_size) if token not in allowed]


def _read_template(fields: Fields) -> dict[str, bool]:
    switches = {}
    for name, default in _TEMPLATE_SWITCHES.items():
        if fields.boolean(name, default) is not default:
            switches[name] = not default
    return switches


def _check_ids(ids: list[Any], path: str, profile: Profile) -> list[int]:
    size = profile.vocab_size
    for position, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < size:
            where = f"{path}[{position}]"
            raise RequestError(f"`{where}` is {show(token_id)}; it must be a token id below {size}", param=where)
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
        f"`prompt` is {show(value)}; it must be a string, a list of strings, a list of token ids or a list of such "
        "lists, none of them empty",
        param="prompt",
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
