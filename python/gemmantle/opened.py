"""A model that is open: its native objects, its words, and the facts that requests are checked against."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gemmantle.api.protocol import Profile
from gemmantle.errors import RequestError, UnsupportedHardware
from gemmantle.options import Settings
from gemmantle.words import Words

__all__ = ["OpenModel", "id_array", "native"]


def native() -> Any:
    """The native module, imported where it is first needed."""
    try:
        return importlib.import_module("gemmantle._core")
    except ImportError as exc:
        raise UnsupportedHardware(
            f"the native module of gemmantle cannot be loaded ({exc}); install the package with pip, which builds it"
        ) from exc


def id_array(ids: Sequence[int]) -> Any:
    """int32 [n]; refuses what is no list of ids instead of truncating it."""
    import numpy as np

    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise RequestError(f"ids have shape {array.shape} and type {array.dtype}; they must be a list of token ids")
    if array.size and (int(array.min()) < 0 or int(array.max()) > 2**31 - 1):
        raise RequestError("ids must be token ids of the vocabulary, from 0 on")
    return np.ascontiguousarray(array, dtype=np.int32)


_PLAIN_FORMATS = ("f32", "f16", "bf16")


class OpenModel:
    """The native objects of an open engine, its words and its profile. Usable in the process that made it."""

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self.core = native()
        options = settings.options
        path = Path(settings.path)
        headers = self.core.Checkpoint(settings.path) if path.is_file() else None
        self.model = self.core.Model.load(
            settings.path,
            device=options.device,
            threads=options.threads or 0,
            mode=_mode_of(headers, options.device) if options.mode == "auto" else options.mode,
            kv=options.kv,
            deterministic=options.deterministic,
        )
        config: dict[str, Any] = dict(self.model.config())
        size = int(config["vocab_size"])
        series = str(config.get("series") or "large")
        with _importing("numpy", "sentencepiece") if headers is not None else contextlib.nullcontext():
            self.words = Words(settings.name, path, _tokenizer_file(path, headers), series, size)
        tokenizer = self.words.tokenizer
        vocabulary = None
        if tokenizer is not None:
            vocabulary = self.core.Vocabulary(self.words.pieces, list(tokenizer.control), dict(tokenizer.special))
        generation = _json_file(path / "generation_config.json") if path.is_dir() else {}
        if tokenizer is not None:
            eos_ids = list(tokenizer.eos_ids)
        else:
            eos_ids = _eos_ids(generation, _json_file(path / "config.json") if path.is_dir() else {})
        self.engine = self.core.Engine(self.model, vocabulary, eos_ids=eos_ids, **settings.native())
        self.profile = self._profile(settings, headers, generation, eos_ids, size)
        if self.profile.is_chat:
            importlib.import_module("gemmantle.chat.revisions").warn_of_template(
                settings.name, _template_of(path, headers)
            )

    def _profile(
        self, settings: Settings, headers: Any, generation: dict[str, Any], eos_ids: list[int], size: int
    ) -> Profile:
        info = self.model.info()
        words, options = self.words, settings.options
        mode = str(info.get("mode", options.mode))
        tokenizer = words.tokenizer
        plain = options.default_sampling == "openai"
        listed = generation.get("suppress_tokens") or (tokenizer.suppress_tokens if tokenizer else [])
        raw_suppress = [token for token in listed if isinstance(token, int)]
        chat_suppress = set(raw_suppress)
        if tokenizer is not None:
            chat_suppress |= set(tokenizer.suppress)
        formats = info.get("formats")
        return Profile(
            name=settings.name,
            fingerprint=_fingerprint(settings, mode, self.core.version(), words.file),
            max_context=int(self.engine.max_context()),
            vocab_size=size,
            created=int(time.time()),
            aliases=settings.aliases,
            device=str(info.get("device", options.device)),
            mode=mode,
            quantization=formats if isinstance(formats, str) else ", ".join(map(str, formats or [])),
            is_chat=_follows_chat_format(headers, words.special, eos_ids),
            has_tokenizer=tokenizer is not None,
            missing_tokenizer=words.missing,
            default_temperature=1.0 if plain else float(generation.get("temperature") or 1.0),
            default_top_p=1.0 if plain else float(generation.get("top_p") or 0.95),
            default_top_k=0 if plain else int(generation.get("top_k") or 64),
            default_reasoning=options.default_reasoning,
            unknown_fields=options.unknown_fields,
            max_queue_ms=options.max_queue_ms or 0,
            stream_interval_ms=options.stream_interval_ms,
            chat_suppress=tuple(sorted(chat_suppress)),
            raw_suppress=tuple(raw_suppress),
            call_id=words.special.get("<|tool_call>"),
            eos_ids=tuple(eos_ids),
            thought_open=words.thought_ids("<|channel>", "thought\n"),
            thought_end=words.thought_ids("<channel|>", "\n"),
            bos_id=None if tokenizer is None else tokenizer.bos_id,
            special=tuple(sorted(words.special.items(), key=lambda entry: entry[1])),
        )


@contextlib.contextmanager
def _importing(*names: str) -> Iterator[None]:
    """What a first request needs is imported on a thread while native code reads the words of a file."""

    def work() -> None:
        for name in names:
            with contextlib.suppress(ImportError):  # whoever needs it will say so
                importlib.import_module(name)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# `headers` is the native Checkpoint of a GGUF file, None for a folder.


def _mode_of(headers: Any, device: str) -> str:
    """What mode "auto" stands for (decision 17)."""
    if headers is None or device == "reference":
        return "exact"
    is_packed = any(kind not in _PLAIN_FORMATS for _, kind, _, _ in headers.tensors())
    return "fast" if is_packed else "exact"


def _follows_chat_format(headers: Any, special: dict[str, int], eos_ids: list[int]) -> bool:
    """A base model has the control strings too, but its files end answers elsewhere or carry no template."""
    if "<|turn>" not in special or special.get("<turn|>") not in eos_ids:
        return False
    return headers is None or "tokenizer.chat_template" in headers.keys()  # noqa: SIM118


def _template_of(path: Path, headers: Any) -> str | None:
    """The chat template that a checkpoint carries."""
    if headers is not None:
        template = headers.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        template = _json_file(path / "tokenizer_config.json").get("chat_template")
        return template if isinstance(template, str) else None


def _tokenizer_file(path: Path, headers: Any) -> str | None:
    if headers is not None:
        return str(path) if "tokenizer.ggml.tokens" in headers.keys() else None  # noqa: SIM118
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return str(path / name)
    return None


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _eos_ids(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    """Where generation stops without a tokenizer; generation_config.json wins (spec prompting 2.1)."""
    for source in (generation, config, config.get("text_config")):
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        values = value if isinstance(value, list) else [value]
        found = [token for token in values if type(token) is int]
        if found:
            return found
    return []


def _fingerprint(settings: Settings, mode: str, build: str, tokenizer_file: str | None) -> str:
    """Short hash over build, mode, device, and samples of the weight, tokenizer and configuration files (R-6)."""
    digest = hashlib.sha256(f"{build}\0{mode}\0{settings.options.device}".encode())
    path = Path(settings.path)
    patterns = ("*.safetensors", "*.json", "*.model")
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    for file in files:
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 16))
            handle.seek(max(0, size - (1 << 16)))
            digest.update(handle.read(1 << 16))
    return "fp_" + digest.hexdigest()[:16]
