"""What chat and plain completions share when they answer: ids, usage, log-probabilities, timings, admission."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from gemmantle.api.protocol import Delta, Generation, Profile, Sampling, ServingEngine, Token
from gemmantle.api.schemas import CommonRequest
from gemmantle.api.stream import Work
from gemmantle.errors import RequestError
from gemmantle.structured import Guide, Guided

__all__ = [
    "Clock",
    "admit",
    "clamp_logprob",
    "completion_usage",
    "details",
    "new_id",
    "prompt_logprobs",
    "sampled_text",
    "shortened",
    "token_entry",
    "token_text",
]

_LOWEST_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot say


def new_id(prefix: str) -> str:
    """`prefix` and 24 random hexadecimal digits."""
    return prefix + secrets.token_hex(12)


class Clock:
    """When the request came, when its first token did, when its last one did; seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first: float | None = None
        self.last = self.started

    def tick(self) -> None:
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last

    def timings(
        self, prompt_tokens: int, completion_tokens: int, cached: int, queue_ms: float | None
    ) -> dict[str, Any]:
        """The wait of the queue is no part of the prompt's time."""
        prompt_s = max((self.first or self.last) - self.started - (queue_ms or 0.0) / 1000, 0.0)
        rest_s = self.last - (self.first or self.last)
        return {
            "queue_ms": None if queue_ms is None else round(queue_ms, 3),
            "prompt_ms": round(prompt_s * 1000, 3),
            "prompt_per_second": round(prompt_tokens / prompt_s, 3) if prompt_s > 0 else None,
            "predicted_ms": round(rest_s * 1000, 3),
            "predicted_per_second": round((completion_tokens - 1) / rest_s, 3) if rest_s > 0 else None,
            "cached": cached,
        }


def admit(
    engine: ServingEngine,
    prompts: Sequence[tuple[list[int], Sequence[Sampling]]],
    param: str,
    guide: Callable[[], Guide] | None = None,
) -> tuple[Work, int]:
    """Check every prompt against the context, then submit all. Gives the work and the effective token limit.

    guide: makes what leads one constrained generation.
    """
    window = engine.profile.max_context
    effective = 0
    for ids, samplings in prompts:
        wanted = samplings[0].max_tokens
        if not ids:
            raise RequestError(f"`{param}` has no tokens; send at least one", param=param)
        if len(ids) + (0 if wanted == 0 else 1) > window:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; the context of '{engine.profile.name}' holds {window}, and one is "
                f"needed for the answer: shorten `{param}` by {len(ids) + (wanted != 0) - window} tokens or load the "
                "model with a larger max_context",
                code="context_length_exceeded",
                param=param,
            )
        room = window - len(ids)
        limit = room if wanted < 0 else min(wanted, room)
        effective = max(effective, limit)
        for sampling in samplings:
            sampling.max_tokens = limit
    generations: list[Generation] = []
    try:
        for ids, samplings in prompts:
            for sampling in samplings:
                generation = engine.submit(ids, sampling)
                generations.append(generation)  # first, so that it is cancelled where its guide fails
                if guide is not None:
                    guided: Generation = Guided(generation, guide())
                    generations[-1] = guided
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise
    return Work(generations, guided=guide is not None, queued=engine.profile.max_queue_ms > 0), effective


def completion_usage(prompt: int, completion: int, reasoning: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def details(request: CommonRequest, profile: Profile, effective: int, timings: dict[str, Any]) -> dict[str, Any]:
    """Members of `return_details`: what was really used."""
    sampling = request.sampling
    return {
        "timings": timings,
        "sampling": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": sampling.seed,
        },
        "effective_max_tokens": effective,
        "served_by": {
            "arm": "local",
            "model": profile.name,
            "device": profile.device,
            "mode": profile.mode,
            "fingerprint": profile.fingerprint,
        },
    }


def sampled_text(delta: Delta, include_stop: bool) -> list[Token]:
    """The tokens of a delta without the one that only ended the answer."""
    tokens: list[Token] = delta.tokens
    if delta.finish_reason == "stop" and not include_stop and not isinstance(delta.stop_reason, str):
        return tokens[:-1]
    return tokens


def token_text(raw: bytes) -> str:
    r"""Lossless: bytes that are no whole character become \xNN."""
    return raw.decode("utf-8", "backslashreplace")


def clamp_logprob(value: float | None) -> float:
    return _LOWEST_LOGPROB if value is None or not value >= _LOWEST_LOGPROB else value


def token_entry(engine: ServingEngine, token: Token, count: int) -> dict[str, Any]:
    """One entry of spec api 5.4 with `count` alternatives."""
    raw = token.text or engine.token_bytes(token.id)
    top = []
    for token_id, logprob in token.top[:count]:
        bytes_ = engine.token_bytes(token_id)
        top.append({"token": token_text(bytes_), "bytes": list(bytes_), "logprob": clamp_logprob(logprob)})
    return {
        "token": token_text(raw),
        "bytes": list(raw),
        "logprob": clamp_logprob(token.logprob),
        "top_logprobs": top,
    }


def prompt_logprobs(engine: ServingEngine, ids: Sequence[int], generation: Generation) -> list[Any]:
    """One entry a prompt token, null for the first: id -> {logprob, rank, decoded_token}, the token itself included.

    Ranks count from 1; a token that is not among the likeliest ones listed has none.
    """
    entries: list[Any] = []
    for token_id, token in zip(ids, generation.prompt_logprobs, strict=True):
        if token is None:
            entries.append(None)
            continue
        listed: dict[int, tuple[Any, int | None]] = {
            other: (logprob, rank) for rank, (other, logprob) in enumerate(token.top, start=1)
        }
        listed.setdefault(token_id, (token.logprob, None))
        entries.append(
            {
                str(other): {
                    "logprob": clamp_logprob(logprob),
                    "rank": rank,
                    "decoded_token": token_text(engine.token_bytes(other)),
                }
                for other, (logprob, rank) in listed.items()
            }
        )
    return entries


def shortened(ids: list[int], limit: int | None) -> list[int]:
    """The first id, which is the BOS of every text, and the last ones: `limit` in all, where a limit was asked for."""
    if limit is None or len(ids) <= limit:
        return ids
    return ids[:1] + ids[len(ids) - limit + 1 :] if limit > 1 else ids[-1:]
