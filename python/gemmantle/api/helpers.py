"""POST /tokenize, /detokenize, /apply-template, GET /tokenizer_info (spec api 7.2): words to ids and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmantle.api.common import shortened
from gemmantle.api.fields import Fields, show
from gemmantle.api.protocol import ModelSource, Profile, Request, ServingEngine
from gemmantle.api.queries import read_query
from gemmantle.api.schemas import read_chat
from gemmantle.errors import RequestError

__all__ = ["HELPERS", "tokenizer_info"]


def tokenize(body: dict[str, Any], engine: ServingEngine) -> dict[str, Any]:
    """Ids of `prompt` (one BOS with add_special_tokens), or of a whole conversation in `messages`."""
    profile = engine.profile
    if "messages" in body:
        return apply_template(body, engine)
    fields = Fields(body, {"model", "prompt", "add_special_tokens"}, profile)
    _need_tokenizer(profile, "prompt")
    ids = engine.encode_prompt(fields.text("prompt"), fields.boolean("add_special_tokens", False))
    return {"model": profile.name, "tokens": ids, "count": len(ids), "max_context": profile.max_context}


def detokenize(body: dict[str, Any], engine: ServingEngine) -> dict[str, Any]:
    """The text of `tokens`; control ids give their spelling, bytes that are no UTF-8 give U+FFFD."""
    profile = engine.profile
    tokens = Fields(body, {"model", "tokens"}, profile).required("tokens")
    _need_tokenizer(profile, "tokens")
    if not isinstance(tokens, list):
        raise RequestError(f"`tokens` is {show(tokens)}; it must be a list of token ids", param="tokens")
    for position, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token < profile.vocab_size:
            raise RequestError(
                f"`tokens[{position}]` is {show(token)}; it must be a token id from 0 to {profile.vocab_size - 1}",
                param=f"tokens[{position}]",
            )
    return {"model": profile.name, "prompt": b"".join(map(engine.token_bytes, tokens)).decode("utf-8", "replace")}


def apply_template(body: dict[str, Any], engine: ServingEngine) -> dict[str, Any]:
    """Text and ids of the prompt that /chat/completions would run for the same body."""
    profile = engine.profile
    request = read_chat(body, profile)
    _need_tokenizer(profile, "messages")
    prompt = engine.render_chat(request.messages, request.tools, request.thinking.on)
    ids = shortened(prompt.ids(), request.truncate_prompt_tokens)
    return {
        "model": profile.name,
        "prompt": prompt.text,
        "tokens": ids,
        "count": len(ids),
        "max_context": profile.max_context,
    }


def tokenizer_info(request: Request, models: ModelSource) -> dict[str, Any]:
    """What the vocabulary of `model` is; of the only loaded one where none is named."""
    name = read_query(request, ("model",)).get("model")
    if name is None:
        loaded = [card["id"] for card in models.cards() if card.get("loaded")]
        if len(loaded) != 1:
            there = ", ".join(loaded) or "none is loaded"
            raise RequestError(
                f"`model` is missing ({there}): /tokenizer_info?model=NAME",
                code="missing_required_parameter",
                param="model",
            )
        name = loaded[0]
    profile = (models.find(name) or models.load(name)).profile
    _need_tokenizer(profile, "model")
    return {
        "model": profile.name,
        "vocabulary": profile.vocab_size,
        "max_context": profile.max_context,
        "is_chat": profile.is_chat,
        "bos_token_id": profile.bos_id,
        "eos_token_ids": list(profile.eos_ids),
        "special_tokens": dict(profile.special),
    }


def _need_tokenizer(profile: Profile, param: str) -> None:
    if not profile.has_tokenizer:
        raise RequestError(profile.missing_tokenizer, code="unsupported_value", param=param)


HELPERS: dict[str, Callable[[dict[str, Any], ServingEngine], dict[str, Any]]] = {
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/apply-template": apply_template,
}
