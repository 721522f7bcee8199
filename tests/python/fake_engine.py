"""An engine without a model: plays fixed scripts through the protocol the API layer talks to.

A script is a list of steps. A step is a (channel, text) pair, which is one token and one delta, an Exception, which is
raised when it is reached, or HOLD, where the generation stays silent until `FakeEngine.release` is called. Token texts
get ids from 1000 on; prompts are encoded byte by byte.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmantle import chat
from gemmantle.api.protocol import Profile, Sampling
from gemmantle.structured import Compiler

HOLD = object()
BOS = 2
END = 1
_FIRST_BYTE = 3
_FIRST_PIECE = 1000
VOCABULARY = 4000

Step = Any
Script = Sequence[Step]


@dataclass
class FakeToken:
    id: int
    channel: str
    logprob: float | None
    top: list[tuple[int, float]]
    text: bytes


@dataclass
class FakeDelta:
    pieces: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[FakeToken] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: tuple[int, int, int, int] | None = None
    thought_cut: bool = False
    queue_ms: float | None = None
    awaits_mask: bool = False


class FakePrompt:
    def __init__(self, text: str, starts_in_thought: bool) -> None:
        self.text = text
        self.starts_in_thought = starts_in_thought

    def ids(self, tokenizer: Any = None) -> list[int]:
        return [_FIRST_BYTE + byte for byte in self.text.encode()]


class FakeGeneration:
    """One script being played. `one_by_one`: a look gives one delta, so every token becomes its own chunk."""

    def __init__(self, engine: FakeEngine, ids: Sequence[int], sampling: Sampling, script: Script) -> None:
        self._engine = engine
        self._ids = list(ids)
        self._sampling = sampling
        self._steps = deque(script)
        self._lock = threading.RLock()
        self._count = 0
        self._reasoning = 0
        self._finished = False
        self._gave = False
        self._released = threading.Event()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.cancelled = False
        self.prompt_logprobs: list[FakeToken | None] = []
        self._signal()

    def __del__(self) -> None:
        os.close(self._fd)

    def next(self, timeout: float | None = None) -> FakeDelta | None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self._gave = False
            delta = self.try_next()
            if delta is not None or (until is not None and time.monotonic() >= until):
                return delta
            self._released.wait(0.005 if until is None else max(0.0, min(0.005, until - time.monotonic())))

    def try_next(self) -> FakeDelta | None:
        with self._lock:
            if self._engine.one_by_one and self._gave:
                self._gave = False
                return None
            delta = self._step()
            self._gave = delta is not None
            self._signal()
            return delta

    def fileno(self) -> int:
        return self._fd

    def cancel(self) -> None:
        with self._lock:
            if not self._finished and not self.cancelled:
                self.cancelled = True
                self._engine.cancelled += 1
                self._signal()

    def allow(self, mask: Any) -> None:
        """Scripts say what they say: a constrained reply goes where its grammar does not."""

    def release(self) -> None:
        with self._lock:
            if self._steps and self._steps[0] is HOLD:
                self._steps.popleft()
            self._signal()
        self._released.set()

    def _signal(self) -> None:
        """The descriptor is readable exactly while there is something to take."""
        holding = bool(self._steps) and self._steps[0] is HOLD and not self.cancelled
        if self._finished or holding:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        else:
            os.eventfd_write(self._fd, 1)

    def _step(self) -> FakeDelta | None:
        if self._finished:
            return None
        if self.cancelled:
            return self._end("cancelled")
        if self._steps and self._steps[0] is HOLD:
            return None
        limit = self._sampling.max_tokens
        if 0 <= limit <= self._count:
            return self._end("length")
        if not self._steps:
            return self._end("stop")
        step = self._steps.popleft()
        if isinstance(step, BaseException):
            self._finished = True
            raise step
        channel, text = step
        self._count += 1
        self._reasoning += channel == "thought"
        return FakeDelta(pieces=[(channel, text)], tokens=[self._token(channel, text)])

    def _token(self, channel: str, text: str) -> FakeToken:
        token_id = self._engine.piece_id(text)
        logprob = -0.125 * self._count if self._sampling.logprobs >= 0 else None
        top = [(token_id + k, -0.125 * self._count - k) for k in range(max(self._sampling.logprobs, 0))]
        return FakeToken(token_id, channel, logprob, top, text.encode())

    def _end(self, reason: str) -> FakeDelta:
        self._finished = True
        self._engine.ended += 1
        tokens = []
        if reason == "stop":
            tokens = [FakeToken(END, "content", -0.5, [], b"")]
            self._count += 1
        if self._sampling.prompt_logprobs >= 0:
            top = self._sampling.prompt_logprobs
            self.prompt_logprobs = [None] + [
                FakeToken(i, "content", -1.0, [(i + k, -1.0 - k) for k in range(top)], self._engine.token_bytes(i))
                for i in self._ids[1:]
            ]
        usage = (len(self._ids), self._count, self._reasoning, 0)
        return FakeDelta(tokens=tokens, finish_reason=reason, usage=usage)


class FakeEngine:
    """Plays `script` (or what it returns, called with the choice number) for every request."""

    def __init__(
        self, script: Script | Callable[[int], Script] = (), *, one_by_one: bool = True, **profile: Any
    ) -> None:
        facts: dict[str, Any] = {
            "name": "fake/model",
            "aliases": ("fake",),
            "fingerprint": "fp_fake",
            "max_context": 2048,
            "vocab_size": VOCABULARY,
            "default_temperature": 1.0,
            "default_top_p": 0.95,
            "default_top_k": 64,
            "chat_suppress": (7, 8),
            "raw_suppress": (7,),
            "call_id": 48,
        }
        self.profile = Profile(**{**facts, **profile})
        self.script = script
        self.one_by_one = one_by_one
        self.submitted: list[tuple[list[int], Sampling]] = []
        self.generations: list[FakeGeneration] = []
        self.prompts: list[FakePrompt] = []
        self.cancelled = 0
        self.ended = 0
        self.refuse: Exception | None = None
        self._pieces: list[str] = []

    def submit(self, ids: Sequence[int], sampling: Sampling) -> FakeGeneration:
        if self.refuse is not None:
            raise self.refuse
        self.submitted.append((list(ids), sampling))
        script = self.script(sampling.choice) if callable(self.script) else self.script
        generation = FakeGeneration(self, ids, sampling, script)
        self.generations.append(generation)
        return generation

    def render_chat(self, messages: list[dict[str, Any]], tools: Any, thinking: bool, **template: bool) -> FakePrompt:
        prompt = chat.render(messages, tools=tools, thinking=thinking, **template)
        self.prompts.append(FakePrompt(prompt.text, prompt.starts_in_thought))
        return self.prompts[-1]

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        return ([BOS] if add_bos else []) + [_FIRST_BYTE + byte for byte in text.encode()]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == BOS:
            return b"<bos>"
        if _FIRST_BYTE <= token_id < _FIRST_BYTE + 256:
            return bytes([token_id - _FIRST_BYTE])
        if _FIRST_PIECE <= token_id < _FIRST_PIECE + len(self._pieces):
            return self._pieces[token_id - _FIRST_PIECE].encode()
        return f"<{token_id}>".encode()

    def structured(self) -> Compiler:
        """Grammars over the bytes; replies are scripts, so only refusals can be seen here."""
        pieces = [b"<pad>", b"<eos>", b"<bos>", *(bytes([byte]) for byte in range(256))]
        return Compiler(pieces, {}, [0, 1, 2], [END], self.encode_prompt, len(pieces))

    def piece_id(self, text: str) -> int:
        if text not in self._pieces:
            self._pieces.append(text)
        return _FIRST_PIECE + self._pieces.index(text)

    def release(self) -> None:
        """Let every held generation go on."""
        for generation in self.generations:
            generation.release()


def content(*texts: str) -> list[Step]:
    return [("content", text) for text in texts]


HELLO = content("Hel", "lo", ", ", "wor", "ld", "!")
CALL_TEXT = 'call:get_weather{city:<|"|>Paris<|"|>,days:2}'
CALL = [("call", CALL_TEXT), ("call_end", "")]
