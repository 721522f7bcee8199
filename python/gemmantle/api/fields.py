"""The fields of a request body: aliases resolved, later ones refused by name, types and ranges checked (spec api 5.1).

A field is looked up in four tables: aliases, honoured (given by the route), neutral, and later (refused unless at a
value that asks for nothing). What is in none of them is unknown. Messages name the field, the value found, the remedy.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from gemmantle.api.protocol import Profile
from gemmantle.errors import RequestError

__all__ = ["INT64", "Fields", "check_metadata", "show"]

INT64 = 1 << 63

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

# Aliases that name one part of `structured_outputs`.
_PARTS = {
    "grammar": "grammar",
    "json_schema": "json",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}

# Accepted without effect: identifiers kept by servers only, and switches that cannot matter because output is parsed
# by token ids, and prompts that begin alike share their KV under whatever key.
_NEUTRAL = {
    "user", "safety_identifier", "skip_special_tokens", "spaces_between_special_tokens", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip

# Fields of later work: the values listed ask for nothing and pass, every other one is refused.
_LATER: dict[str, tuple[object, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "prompt_cache_options": ({"mode": "implicit"},),
    "cache_prompt": (True,),
    "store": (False,),
    "metadata": ({},),
    "reasoning_field": ("reasoning",),
    "verbosity": ("medium",),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "modalities": (["text"],),
    "audio": (),
    "repetition_window": (),
    "bad_words": ([],),
    "logprobs_mode": ("raw",),
    "structured_outputs": (),
    "thinking_token_budget": (-1,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "cache_salt": (),
    "priority": (0,),
    "image_token_budget": (),
    "fallback": ("never",),
    "allow_special_tokens": (False,),
    "return_tokens_as_token_ids": (False,),
    "suffix": ("",),
}

_REMEDY = {
    "functions": "only conversations call functions: use /chat/completions",
    "function_call": "only conversations call functions: use /chat/completions",
    "suffix": "the model was not trained to fill in the middle; put the whole text in `prompt`",
    "store": "only conversations and responses are kept: use /chat/completions or /responses",
    "metadata": "it belongs to what is kept: use /chat/completions or /responses",
    "reasoning_field": "only conversations have thoughts: use /chat/completions",
    "prompt_cache_options": "prompts that begin alike share their KV by themselves",
    "cache_prompt": "prompts that begin alike share their KV by themselves",
    "repetition_window": "the penalty looks at the whole text",
    "verbosity": "say in the messages how long the answer should be",
    "modalities": "answers are text",
    "audio": "answers are text",
    "continue_final_message": "a prompt of /completions is continued as it is",
    "add_generation_prompt": "a prompt of /completions is taken as it is",
    "documents": "the chat template has no place for them; put their text into a message",
    "bad_words": "give logit_bias a token id",
    "cache_salt": "use an engine of its own",
    "logprobs_mode": "log-probabilities are those of the model itself",
    "fallback": "give the client fallback=gemmantle.remote(...) first",
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
                self._accept(canonical, name, {_PARTS[name]: value} if name in _PARTS else value)
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
                f"({show(self.values[canonical])} and {show(value)}); send one of them",
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
            limits = f"from {low} to {high}" if high < INT64 - 1 else f">= {low}"
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

    def metadata(self) -> dict[str, str]:
        """What a caller wants kept beside an answer."""
        return check_metadata(self.values.get("metadata", {}))

    def _wrong(self, name: str, value: Any, wanted: str) -> NoReturn:
        written = self.written.get(name, name)
        raise RequestError(f"`{written}` is {show(value)}; it must be {wanted}", param=written)


def _refuse(name: str) -> NoReturn:
    remedy = _REMEDY.get(name) or _REMEDY.get(_ALIASES.get(name, name), "leave it out")
    raise RequestError(f"`{name[:100]}` is not supported: {remedy}", code="unsupported_parameter", param=name[:100])


def check_metadata(value: Any) -> dict[str, str]:
    """A copy of `metadata`; RequestError says what it may be."""
    fits = isinstance(value, dict) and len(value) <= 16
    if not fits or not all(len(key) <= 64 and isinstance(v, str) and len(v) <= 512 for key, v in value.items()):
        raise RequestError(
            f"`metadata` is {show(value)}; it must map up to 16 names of up to 64 characters to strings of up to 512 "
            "characters",
            param="metadata",
        )
    return dict(value)


def show(value: Any) -> str:
    """A value in a message: short, and printable whatever it holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
