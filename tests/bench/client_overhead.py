"""What the in-process client costs on top of an engine that takes no time (spec api A-5).

Run:  PYTHONPATH=python python tests/bench/client_overhead.py
Prints the median of a plain call (goal 1.2 ms) and of a streamed chunk (goal 110 us), with the SDK's version and, for
comparison, what the SDK alone needs over a transport that replays recorded bytes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai

from gemmantle._http import library
from gemmantle.api.protocol import Profile, Sampling
from gemmantle.client import client_for

USER = [{"role": "user", "content": "Hi"}]


@dataclass
class NullToken:
    id: int = 5
    channel: str = "content"
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    text: bytes = b"word "


@dataclass
class NullDelta:
    pieces: list[tuple[str, str]]
    tokens: list[NullToken]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: tuple[int, int, int, int] | None = None
    thought_cut: bool = False
    queue_ms: float | None = None


class NullGeneration:
    """Gives one token a look, at once."""

    prompt_logprobs: list[Any] = []  # noqa: RUF012

    def __init__(self, tokens: int) -> None:
        self._left = tokens
        self._tokens = tokens

    def next(self, timeout: float | None = None) -> NullDelta:
        if self._left == 0:
            return NullDelta([], [], "stop", None, (10, self._tokens, 0, 0))
        self._left -= 1
        return NullDelta([("content", "word ")], [NullToken()])

    def try_next(self) -> None:
        return None

    def fileno(self) -> int:
        return -1

    def cancel(self) -> None:
        pass


class NullPrompt:
    text = ""
    starts_in_thought = False

    def ids(self, tokenizer: Any = None) -> list[int]:
        return [2, 3, 4]


class NullEngine:
    """An engine that takes no time: every request gives the same number of tokens."""

    profile = Profile(name="null", fingerprint="fp_null", max_context=1 << 20, vocab_size=1000)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def submit(self, ids: Any, sampling: Sampling) -> NullGeneration:
        return NullGeneration(self.tokens)

    def render_chat(self, messages: Any, tools: Any, thinking: bool) -> NullPrompt:
        return NullPrompt()

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        return [2, 3, 4]

    def token_bytes(self, token_id: int) -> bytes:
        return b"word "


def replaying_client(plain: bytes, chunks: list[bytes]) -> openai.OpenAI:
    """The SDK over a transport that only hands out bytes: the floor."""
    http = library()

    class Stream(http.sync_stream):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Any:
            return iter(chunks)

    class Replay(http.sync_transport):  # type: ignore[misc,name-defined]
        def handle_request(self, request: Any) -> Any:
            if b'"stream":true' in request.read():
                return http.response(200, headers={"content-type": "text/event-stream"}, stream=Stream())
            return http.response(200, headers={"content-type": "application/json"}, content=plain)

    return openai.OpenAI(base_url="http://x/v1", api_key="k", http_client=http.client(transport=Replay()))


def measure(make: Callable[[int], openai.OpenAI], repeat: int, chunks: int) -> tuple[float, float]:
    """Median seconds of a plain call of one token, and between two chunks of a stream.

    Both are short against a scheduler's slice, so that a median over many holds on a busy machine too.
    """
    client = make(1)
    calls = []
    for _ in range(20 + repeat):
        started = time.perf_counter()
        client.chat.completions.create(model="null", messages=USER)  # type: ignore[arg-type]
        calls.append(time.perf_counter() - started)
    client = make(chunks)
    gaps = []
    for _ in range(10):
        stream = client.chat.completions.create(model="null", messages=USER, stream=True)  # type: ignore[arg-type]
        times = [time.perf_counter() for _ in stream]
        gaps += [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(calls[20:]), statistics.median(gaps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=500)
    parser.add_argument("--chunks", type=int, default=500)
    options = parser.parse_args()

    def floor(tokens: int) -> openai.OpenAI:
        raw = client_for(NullEngine(tokens)).chat.completions
        plain = raw.with_raw_response.create(model="null", messages=USER).http_response.content  # type: ignore[arg-type]
        with raw.with_streaming_response.create(model="null", messages=USER, stream=True) as response:  # type: ignore[arg-type]
            chunks = list(response.iter_bytes())
        return replaying_client(plain, chunks)

    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"openai {openai.__version__}, Python {platform.python_version()}, {machine}")
    call, chunk = measure(lambda tokens: client_for(NullEngine(tokens)), options.repeat, options.chunks)
    floor_call, floor_chunk = measure(floor, options.repeat, options.chunks)
    print(f"plain call {call * 1e3:7.3f} ms  (SDK alone {floor_call * 1e3:.3f} ms, goal 1.2 ms)")
    print(f"chunk      {chunk * 1e6:7.1f} us  (SDK alone {floor_chunk * 1e6:.1f} us, goal 110 us)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
