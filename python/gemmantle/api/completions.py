"""POST /completions: raw text or ids in, text out, for base models and for scoring (spec api 7.1).

Choices are numbered prompt by prompt: choice = prompt * n + repetition. Log-probabilities keep the old dictionary
shape; with `echo` they begin with the prompt's own tokens, the first of them null.
"""

from __future__ import annotations

from typing import Any

from gemmantle.api.choices import ChoiceState, Chunks, Totals, head
from gemmantle.api.common import (
    Clock,
    admit,
    clamp_logprob,
    prompt_logprobs,
    sampled_text,
    shortened,
    token_text,
)
from gemmantle.api.constraints import build_grammar
from gemmantle.api.protocol import Delta, Generation, ServingEngine, Token
from gemmantle.api.schemas import CompletionRequest, choice_sampling, read_completion
from gemmantle.api.stream import Answer, Work
from gemmantle.errors import RequestError

__all__ = ["CompletionAnswer", "start"]

_MAX_CHOICES = 2048


def start(body: dict[str, Any], engine: ServingEngine) -> tuple[Work, CompletionAnswer]:
    """Validate, encode, submit."""
    profile = engine.profile
    clock = Clock()
    request = read_completion(body, profile)
    if request.stream and request.echo and request.sampling.logprobs >= 0:
        raise RequestError(
            "`echo` with `logprobs` cannot be streamed; leave `stream` out", code="unsupported_value", param="echo"
        )
    total = len(request.prompts) * request.n
    if total > _MAX_CHOICES:
        raise RequestError(f"{total} choices in one request; the limit is {_MAX_CHOICES}", param="prompt")
    grammar = build_grammar(engine, request.sampling, request.form)
    distinct = 1 if request.sampling.temperature == 0 else request.n
    prompts = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            if not profile.has_tokenizer:
                raise RequestError(profile.missing_tokenizer, code="unsupported_value", param="prompt")
            ids = engine.encode_prompt(prompt, request.add_bos)
        else:
            ids = prompt
        ids = shortened(ids, request.truncate_prompt_tokens)
        prompts.append((ids, [choice_sampling(request.sampling, choice) for choice in range(distinct)]))
    guide = None if grammar is None else (lambda: grammar.guide((), request.sampling.suppress))
    work, effective = admit(engine, prompts, "prompt", guide)
    warnings = grammar.warnings if grammar else []
    return work, CompletionAnswer(request, engine, work, [ids for ids, _ in prompts], effective, clock, warnings)


class Choice(ChoiceState):
    """One choice: its text so far and the columns of its log-probability table."""

    def __init__(self, index: int, prompt: str | list[int], prompt_ids: list[int]) -> None:
        super().__init__(index)
        self.prompt = prompt
        self.prompt_ids = prompt_ids
        self.text: list[str] = []
        self.tokens: list[Token] = []
        self.offset = 0  # characters of the token texts listed so far
        self.echoed = False


class CompletionAnswer(Answer):
    """One completion request on its way (see `stream.Answer`)."""

    def __init__(
        self,
        request: CompletionRequest,
        engine: ServingEngine,
        work: Work,
        prompt_ids: list[list[int]],
        effective: int,
        clock: Clock,
        warnings: list[str],
    ) -> None:
        self.stream = request.stream
        self._request = request
        self._engine = engine
        self._work = work
        self._clock = clock
        self._totals = Totals(request, engine.profile, effective, clock)
        self._choices = [
            Choice(index * request.n + repetition, prompt, ids)
            for index, (prompt, ids) in enumerate(zip(request.prompts, prompt_ids, strict=True))
            for repetition in range(request.n)
        ]
        self._repeats = request.n if request.sampling.temperature == 0 else 1
        self._head = head("cmpl-", "text_completion", request, engine.profile, warnings)
        self._chunks = Chunks(self._head, request)

    def feed(self, choice: int, delta: Delta) -> None:
        self._clock.tick()
        first = choice * self._repeats
        for target in self._choices[first : first + self._repeats]:
            self._advance(target, delta)

    def take(self) -> bytes:
        return self._chunks.take()

    def close_events(self) -> bytes:
        usage = self._usage()
        return self._chunks.close(usage, self._totals.members(self._choices, usage))

    def body(self) -> dict[str, Any]:
        usage = self._usage()
        return {
            **self._head,
            "choices": [self._choice_body(choice) for choice in self._choices],
            "usage": usage,
            "service_tier": self._request.service_tier,
            **self._totals.members(self._choices, usage),
        }

    def _advance(self, choice: Choice, delta: Delta) -> None:
        text = "".join([piece for channel, piece in delta.pieces])
        if self._request.sampling.logprobs >= 0:
            choice.tokens.extend(sampled_text(delta, self._request.sampling.include_stop))
        choice.note(delta, self._request)
        if not self.stream:
            choice.text.append(text)
            return
        if self._request.echo and not choice.echoed:
            choice.echoed = True
            text = self._prompt_text(choice) + text
        if text or choice.ids or choice.finish_reason is not None:
            self._chunk(choice, text)

    def _chunk(self, choice: Choice, text: str) -> None:
        wire: dict[str, Any] = {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            **choice.take_ids(),
        }
        if choice.tokens:
            wire["logprobs"] = self._table(choice, choice.tokens)
            choice.tokens = []
        if choice.finish_reason is not None and self._request.return_details:
            wire["stop_reason"] = choice.stop_reason
        self._chunks.add(self._chunks.framed(wire))

    def _choice_body(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        logprobs = None
        if self._request.sampling.logprobs >= 0:
            prompt_part = self._prompt_table(choice) if self._request.echo else None
            logprobs = self._table(choice, choice.tokens)
            if prompt_part is not None:
                logprobs = {name: prompt_part[name] + logprobs[name] for name in logprobs}
        value = {
            "index": choice.index,
            "text": self._prompt_text(choice) + text if self._request.echo else text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if self._request.return_token_ids:
            value["token_ids"] = choice.ids
            value["prompt_token_ids"] = choice.prompt_ids
        if self._request.asks_prompt_logprobs:
            generation = self._work.generation(choice.index // self._repeats)
            value["prompt_logprobs"] = prompt_logprobs(self._engine, choice.prompt_ids, generation)
        if self._request.return_details:
            value["stop_reason"] = choice.stop_reason
        return value

    def _prompt_text(self, choice: Choice) -> str:
        if isinstance(choice.prompt, str):
            return choice.prompt
        return b"".join([self._engine.token_bytes(token_id) for token_id in choice.prompt]).decode("utf-8", "replace")

    def _prompt_table(self, choice: Choice) -> dict[str, list[Any]]:
        """The prompt's columns; the generation has them after its end."""
        generation: Generation = self._work.generation(choice.index // self._repeats)
        table: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        added_bos = isinstance(choice.prompt, str) and self._request.add_bos
        for position, token_id in enumerate(choice.prompt_ids):
            token = generation.prompt_logprobs[position]
            raw = self._name(token_id)
            table["tokens"].append(raw)
            table["token_logprobs"].append(None if token is None else clamp_logprob(token.logprob))
            table["top_logprobs"].append(None if token is None else self._top(token, raw))
            table["text_offset"].append(choice.offset)
            if not (added_bos and position == 0):
                choice.offset += len(raw)
        return table

    def _table(self, choice: Choice, tokens: list[Token]) -> dict[str, list[Any]]:
        table: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            raw = token_text(token.text) or self._name(token.id)
            table["tokens"].append(raw)
            table["token_logprobs"].append(clamp_logprob(token.logprob))
            table["top_logprobs"].append(self._top(token, raw))
            table["text_offset"].append(choice.offset)
            choice.offset += len(token_text(token.text))
        return table

    def _name(self, token_id: int) -> str:
        """A token in a table; its id where no tokenizer tells its text."""
        return token_text(self._engine.token_bytes(token_id)) or f"token_id:{token_id}"

    def _top(self, token: Token, name: str) -> dict[str, float]:
        """Alternatives by text, the token itself included even where it is not among them."""
        top: dict[str, float] = {}
        for token_id, logprob in token.top[: self._request.sampling.logprobs]:
            top.setdefault(self._name(token_id), clamp_logprob(logprob))
        top.setdefault(name, clamp_logprob(token.logprob))
        return top

    def _usage(self) -> dict[str, Any]:
        return self._totals.usage(self._choices, self._request.n)
