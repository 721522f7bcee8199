"""The native core. Written by hand; tests/python/test_core.py compares it with the module."""

from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

def version() -> str:
    """Version of the native core."""

def devices() -> list[dict[str, object]]:
    """Devices that `device=` can name: name, available, description, and the reason of each that is not available."""

def isas() -> list[dict[str, object]]:
    """Kernel tables of the CPU in this build, best first: name, needs, available, active."""

def trim_memory() -> None:
    """Gives memory that was freed back to the system where the allocator keeps it."""

class MachineProbe:
    """How fast this machine reads memory and multiplies."""

    def __init__(self, threads: int = 0) -> None: ...
    @property
    def threads(self) -> int: ...
    def read_rate(self, seconds: float = 0.2) -> float: ...
    def product_rate(self, kind: str, seconds: float = 0.2) -> float | None: ...

class Checkpoint:
    """The headers of a folder of safetensors or of a GGUF file. Maps files, reads no weights."""

    def __init__(self, path: str) -> None: ...
    @property
    def container(self) -> str: ...
    @property
    def files(self) -> list[str]: ...
    def get(self, key: str) -> object | None: ...
    def keys(self) -> list[str]: ...
    def config_json(self) -> str: ...
    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int]]: ...

class Model:
    """A configuration, its placed weights and a device."""

    @staticmethod
    def load(
        path: str,
        *,
        device: str = "auto",
        threads: int = 0,
        mode: str = "exact",
        kv: str = "auto",
        deterministic: bool = False,
        profile: bool = False,
    ) -> Model: ...
    def config(self) -> dict[str, object]: ...
    def info(self) -> dict[str, object]: ...
    def take_profile(self) -> list[dict[str, object]]: ...

class Vocabulary:
    """What every id stands for, for text that comes out of an engine."""

    def __init__(self, pieces: Sequence[bytes], control: Sequence[int], special: Mapping[str, int]) -> None: ...
    def __len__(self) -> int: ...

def model_of_merges(checkpoint: Checkpoint, control: Set[str]) -> tuple[bytes, list[bytes], list[int]] | None:
    """The words of a GGUF file with merges as (SentencePiece model, bytes of every id, control ids), or None."""

class Channels:
    """Follows control ids: which text is content, thought or tool call."""

    def __init__(self, special: Mapping[str, int], start_in_thought: bool = False) -> None: ...
    def feed(self, id: int, text: bytes) -> list[tuple[str, bytes]]: ...
    def finish(self) -> list[tuple[str, bytes]]: ...

class SamplingParams:
    """How a reply is sampled and where it ends."""

    def __init__(
        self,
        *,
        priority: int = 0,
        prompt_logprobs_start: int = 0,
        max_tokens: int = -1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] = {},
        seed: int = 0,
        choice: int = 0,
        stop: Sequence[str] = [],
        stop_token_ids: Sequence[int] = [],
        ignore_eos: bool = False,
        min_tokens: int = 0,
        logprobs: int = -1,
        prompt_logprobs: int = -1,
        suppress: Sequence[int] = [],
        include_stop: bool = False,
        channels: bool = False,
        start_in_thought: bool = False,
        single_call: bool = False,
        constrained: bool = False,
        suppress_in_thought: Sequence[int] = [],
        thinking_budget: int = -1,
        thought_end: Sequence[int] = [],
    ) -> None: ...

class Token:
    """One token of a reply or a prompt."""

    @property
    def id(self) -> int: ...
    @property
    def channel(self) -> str: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def top(self) -> list[tuple[int, float]]: ...
    @property
    def text(self) -> bytes: ...

class Delta:
    """What came since the last one."""

    @property
    def pieces(self) -> list[tuple[str, str]]: ...
    @property
    def tokens(self) -> list[Token]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def stop_reason(self) -> str | int | None: ...
    @property
    def awaits_mask(self) -> bool: ...
    @property
    def thought_cut(self) -> bool: ...
    @property
    def usage(self) -> tuple[int, int, int, int] | None: ...
    @property
    def queue_ms(self) -> float | None: ...

class Generation:
    """A running request. Dropping it cancels it."""

    def next(self, timeout: float | None = None) -> Delta | None: ...
    def try_next(self) -> Delta | None: ...
    def fileno(self) -> int: ...
    def allow(self, mask: NDArray[np.int32] | NDArray[np.uint32] | None) -> None: ...
    def cancel(self) -> None: ...
    @property
    def prompt_logprobs(self) -> list[Token | None]: ...

class Engine:
    """Many requests over one model, on a thread of its own."""

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary | None = None,
        *,
        eos_ids: Sequence[int] = [],
        max_context: int = 0,
        max_sequences: int = 16,
        max_queue: int = 1024,
        max_rows: int = 512,
        block_size: int = 16,
        kv_bytes: int = 0,
        deterministic: bool = False,
        max_queue_ms: int = 0,
        stream_buffer: int = 4096,
        idle_stream_ms: int = 120000,
    ) -> None: ...
    def submit(self, ids: NDArray[np.int32], params: SamplingParams) -> Generation: ...
    def logits(
        self,
        ids: NDArray[np.int32],
        *,
        chunks: Sequence[int] | None = None,
        last_only: bool = False,
        reuse: bool = False,
    ) -> NDArray[np.float32]: ...
    def stats(self) -> dict[str, object]: ...
    def max_context(self) -> int: ...
    def close(self) -> None: ...
