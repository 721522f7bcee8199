"""What the API layer needs of an engine and of an HTTP door, and nothing more.

The real engine (`gemmantle.engines.Engine`), the fake one of the tests and the null one of the benchmarks all fit
these protocols, so no route knows the native module. `Request` and `Reply` belong to no HTTP library.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = [
    "ByteStream",
    "Delta",
    "Generation",
    "ModelSource",
    "Profile",
    "Prompt",
    "Reply",
    "Request",
    "RequestHandler",
    "Sampling",
    "ServingEngine",
    "Token",
]


class Token(Protocol):
    """One sampled id. `top` holds (id, logprob) in falling order; `text` the token's own bytes."""

    id: int
    channel: str
    logprob: float | None
    top: list[tuple[int, float]]
    text: bytes


class Delta(Protocol):
    """What a generation produced since the last look; pieces are (channel, text) in whole UTF-8."""

    pieces: list[tuple[str, str]]
    tokens: list[Any]
    finish_reason: str | None
    stop_reason: str | int | None
    usage: tuple[int, int, int, int] | None  # prompt, completion, reasoning, cached tokens; at the end only
    thought_cut: bool  # a thought was closed because its budget was used up

    @property
    def queue_ms(self) -> float | None:
        """At the end: how long the request waited for its first step."""


class Generation(Protocol):
    """One running sequence. `next` blocks without the interpreter lock and gives None when the time is over."""

    @property
    def prompt_logprobs(self) -> list[Any]: ...

    def next(self, timeout: float | None = None) -> Delta | None: ...

    def try_next(self) -> Delta | None: ...

    def fileno(self) -> int: ...

    def cancel(self) -> None: ...


class Prompt(Protocol):
    """A rendered conversation."""

    @property
    def text(self) -> str: ...

    @property
    def starts_in_thought(self) -> bool: ...

    def ids(self, tokenizer: Any = None) -> list[int]: ...


@dataclass
class Sampling:
    """Sampling fields of one generation; names and meanings are those of the native SamplingParams."""

    priority: int = 0  # the higher is admitted first
    prompt_logprobs_start: int = 0  # the first prompt token that has one
    max_tokens: int = -1  # -1: up to the context, 0: prompt work only
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    choice: int = 0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int = -1  # -1: off, else how many alternatives a token lists
    prompt_logprobs: int = -1
    suppress: list[int] = field(default_factory=list)
    include_stop: bool = False
    channels: bool = False
    start_in_thought: bool = False
    single_call: bool = False
    constrained: bool = False  # every token outside thoughts waits for a mask
    suppress_in_thought: list[int] = field(default_factory=list)
    thinking_budget: int = -1  # tokens of thoughts, -1: free
    thought_end: list[int] = field(default_factory=list)  # ids that close a thought at its budget


@dataclass(frozen=True)
class Profile:
    """The facts about a loaded model that requests are checked against and replies report."""

    name: str
    fingerprint: str
    max_context: int
    vocab_size: int
    created: int = 0
    aliases: tuple[str, ...] = ()
    device: str = "cpu"
    mode: str = "exact"
    quantization: str = ""
    is_chat: bool = True
    has_tokenizer: bool = True
    missing_tokenizer: str = ""  # what to say when text is asked of a model without a tokenizer
    default_temperature: float = 1.0
    default_top_p: float = 1.0
    default_top_k: int = 0
    default_reasoning: str = "none"
    unknown_fields: str = "error"  # or "report"
    max_queue_ms: int = 0  # that requests wait; then the first delta says, empty, that one has its place. 0: no limit
    stream_interval_ms: int | None = None  # least time between two chunks of a stream; None: by the number of streams
    chat_suppress: tuple[int, ...] = ()  # ids a chat answer never contains
    raw_suppress: tuple[int, ...] = ()  # the checkpoint's own suppress_tokens
    call_id: int | None = None  # <|tool_call>
    eos_ids: tuple[int, ...] = ()  # ids that end a reply
    thought_open: tuple[int, ...] = ()  # ids that open a thought; empty: the vocabulary knows none
    thought_end: tuple[int, ...] = ()  # ids that close one
    bos_id: int | None = None
    special: tuple[tuple[str, int], ...] = ()  # control strings and their ids


class ServingEngine(Protocol):
    """An engine as the routes see it."""

    @property
    def profile(self) -> Profile: ...

    def submit(self, ids: Sequence[int], sampling: Sampling) -> Generation: ...

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        thinking: bool,
        **template: bool,
    ) -> Prompt:
        """template: the switches of `gemmantle.chat.render`."""

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def structured(self) -> Any:
        """The grammars of this vocabulary (`gemmantle.structured.Compiler`)."""


class ModelSource(Protocol):
    """Which models answer. `find` never loads; `load` may take seconds and raises ModelNotFound."""

    def find(self, name: str) -> ServingEngine | None: ...

    def load(self, name: str) -> ServingEngine: ...

    def cards(self) -> list[dict[str, Any]]: ...


@dataclass
class Request:
    """One request at the door. `timeout` is in seconds, None for no limit (spec api T-6)."""

    method: str
    path: str  # decoded, with or without the /v1 prefix
    headers: Mapping[str, str]  # looked up by lower-case names
    body: bytes = b""
    timeout: float | None = None
    query: str = ""  # as it stands in the address, without the question mark

    @property
    def route(self) -> str:
        """The path without its prefix: /v1, /openai/v1 and none are equal (spec api T-3)."""
        path = self.path
        for prefix in ("/openai/v1", "/v1"):
            if path.startswith(prefix + "/"):
                path = path[len(prefix) :]
                break
        return path.rstrip("/") or "/"


class ByteStream(Protocol):
    """A body that is still being made; closing it, or dropping it, ends the work behind it."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass
class Reply:
    """One answer: body is bytes, or a ByteStream of server-sent events."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | ByteStream


class RequestHandler(Protocol):
    """What stands behind a door: the local handler, the remote arm, or both with the rules between them."""

    def handle(self, request: Request) -> Reply: ...

    async def ahandle(self, request: Request) -> Reply: ...
