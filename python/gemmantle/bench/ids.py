"""An engine of the native core that is driven by ids alone, with a clock on it.

Prompts are ids, so that any model can be measured, with or without a tokenizer; nothing stops at an end token.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["IdEngine", "Ids", "fresh_prompt"]

Ids = NDArray[np.int32]

_FIRST_PLAIN_ID = 300  # behind the control tokens and the bytes of every Gemma vocabulary
_PATIENCE_S = 0.5  # of one wait, so that Ctrl-C is heard


def fresh_prompt(rng: np.random.Generator, vocabulary: int, length: int) -> Ids:
    """Random ids, int32 [length], that no engine has seen before."""
    return rng.integers(min(_FIRST_PLAIN_ID, vocabulary - 1), vocabulary, length).astype(np.int32)


class IdEngine:
    """One model, opened for measuring. Times are wall seconds."""

    def __init__(
        self,
        path: str,
        *,
        device: str = "cpu",
        threads: int | None = None,
        mode: str = "exact",
        max_context: int = 0,
        sequences: int = 1,
        profile: bool = True,
    ) -> None:
        """max_context: 0 for the model's. sequences: how many run at once. profile: time every op.

        Raises LoadError, RequestError (see `gemmantle.errors`).
        """
        self._core: Any = importlib.import_module("gemmantle._core")
        self._model = self._core.Model.load(path, device=device, threads=threads or 0, mode=mode, profile=profile)
        context = int(self._model.config()["context_length"])
        self._engine = self._core.Engine(
            self._model, max_context=min(max_context, context) or context, max_sequences=sequences
        )
        self._is_profiled = profile
        self.mode = mode

    @property
    def vocabulary(self) -> int:
        return int(self._model.config()["vocab_size"])

    @property
    def max_context(self) -> int:
        return int(self._engine.max_context())

    def info(self) -> dict[str, Any]:
        return {**self._model.info(), "config": self._model.config()}

    def take_profile(self) -> list[dict[str, Any]]:
        """What each op took in the last measurement (see `_core.Model.take_profile`)."""
        profile: list[dict[str, Any]] = self._model.take_profile()
        return profile

    def first_token(self, ids: Ids) -> float:
        """Seconds from a prompt to its first sampled id. What earlier prompts share with it is not computed again."""
        self._drop_profile()
        started = time.perf_counter()
        self._read(self._submit(ids, max_tokens=1), 1)
        return time.perf_counter() - started

    def score(self, ids: Ids) -> float:
        """Seconds for the log-probability of every id of a prompt: all rows go through all layers and the head."""
        self._drop_profile()
        started = time.perf_counter()
        self._read(self._submit(ids, max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=1), 1)
        return time.perf_counter() - started

    def decode(self, prompts: Sequence[Ids], steps: int) -> float:
        """Seconds a step, over at least `steps` steps of one token for each prompt.

        The clock starts when the last prompt has its first token: from there on all of them decode.
        """
        running = [self._submit(prompt, max_tokens=steps + self.head_start(prompts)) for prompt in prompts]
        try:
            before = self._read(running[-1], 1)
            self._drop_profile()
            started = time.perf_counter()
            after = self._read(running[-1], steps, before)
            return (time.perf_counter() - started) / max(1, after - before)
        finally:
            for generation in running:
                generation.cancel()
            self._wait_until_idle()

    @staticmethod
    def head_start(prompts: Sequence[Ids]) -> int:
        """Tokens that a reply may have before the clock of `decode` runs.

        Prompts that are done early decode while the others are read, and the engine runs ahead of its reader.
        """
        return 128 + sum(len(prompt) for prompt in prompts) // 64 + 4 * len(prompts)

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> IdEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, ids: Ids, **fields: Any) -> Any:
        return self._engine.submit(ids, self._core.SamplingParams(temperature=0.0, ignore_eos=True, **fields))

    def _read(self, generation: Any, tokens: int, seen: int = 0) -> int:
        """Waits for that many tokens behind the `seen` ones, or the end; how many there are then in all."""
        wanted = seen + tokens
        while seen < wanted:
            delta = generation.next(_PATIENCE_S)
            if delta is None:
                continue
            seen += len(delta.tokens)
            if delta.finish_reason is not None:
                break
        return seen

    def _drop_profile(self) -> None:
        if self._is_profiled:
            self._model.take_profile()

    def _wait_until_idle(self) -> None:
        while self._engine.stats()["running"]:
            time.sleep(0.001)
