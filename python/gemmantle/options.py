"""What `gemmantle.load` may be told: names, what each is when it is left out, what it may be; and what comes of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["NAMES", "Options", "Settings"]

_CHOICES = {
    "mode": ("auto", "exact", "fast"),
    "kv": ("auto", "f32", "bf16", "q8"),
    "default_sampling": ("model", "openai"),
    "default_reasoning": ("none", "high"),
    "unknown_fields": ("error", "report"),
}
_DEVICES = re.compile(r"auto|cpu|reference|cuda(:\d+(,\d+)*)?")
_COUNTS = ("threads", "max_context", "max_concurrency", "max_queue_ms")


@dataclass(frozen=True)
class Options:
    """The arguments of `gemmantle.load` beside the model and its fallback, which documents them.

    ValueError names the argument, the value found and what it may be.
    """

    device: str = "auto"
    threads: int | None = None
    mode: str = "auto"
    kv: str = "auto"
    max_context: int | None = None
    kv_budget: int | str = "auto"
    deterministic: bool = False
    max_concurrency: int | None = None
    max_queue: int = 1024
    max_queue_ms: int | None = None
    idle_stream_timeout: float = 120.0
    stream_interval_ms: int | None = None
    default_sampling: str = "model"
    default_reasoning: str = "none"
    unknown_fields: str = "error"
    state_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not _DEVICES.fullmatch(self.device):
            wanted = "one of auto, cpu, reference, cuda, or numbers of CUDA devices: cuda:1, cuda:0,1"
            raise _wrong("device", self.device, wanted)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for name in _COUNTS:
            number = getattr(self, name)
            if number is not None and not _is_count(number):
                raise _wrong(name, number, "a positive integer or None")
        if self.kv_budget != "auto" and not _is_count(self.kv_budget):
            raise _wrong("kv_budget", self.kv_budget, "a number of bytes or 'auto'")
        if type(self.max_queue) is not int or self.max_queue < 0:
            raise _wrong("max_queue", self.max_queue, "0 or a positive integer")
        interval = self.stream_interval_ms
        if interval is not None and (type(interval) is not int or not 0 <= interval <= 10_000):
            raise _wrong("stream_interval_ms", interval, "a number of milliseconds up to 10,000, or None")
        seconds = self.idle_stream_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0.001 <= seconds <= 1e6:
            raise _wrong("idle_stream_timeout", seconds, "a number of seconds")
        if not isinstance(self.deterministic, bool):
            raise _wrong("deterministic", self.deterministic, "True or False")
        path = self.state_path
        if path is not None:
            if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
                raise _wrong("state_path", path, "the path of a file or None")
            object.__setattr__(self, "state_path", os.path.abspath(path))


NAMES = frozenset(field.name for field in fields(Options))


@dataclass(frozen=True)
class Settings:
    """A model that was found and how it is to be run: the identity of an engine, and what it pickles as."""

    path: str
    name: str
    aliases: tuple[str, ...]
    options: Options

    def native(self) -> Mapping[str, Any]:
        """The keywords of the native engine."""
        options = self.options
        return {
            "max_context": options.max_context or 0,
            "max_sequences": options.max_concurrency or 16,
            "max_queue": options.max_queue,
            "max_queue_ms": options.max_queue_ms or 0,
            "idle_stream_ms": max(1, round(options.idle_stream_timeout * 1000)),
            "kv_bytes": 0 if options.kv_budget == "auto" else options.kv_budget,
            "deterministic": options.deterministic,
        }


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _wrong(name: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"{name} is {value!r}; it must be {wanted}")
