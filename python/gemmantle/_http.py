"""The only file that imports an HTTP client library: httpx2 (SDK 3 and newer) or httpx (SDK 2), by name and late.

The two libraries have the same shape and never mix: a client, its transport and its timeouts come from one of them.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

__all__ = ["HttpLibrary", "family_of_sdk", "library"]

FAMILIES = ("httpx2", "httpx")


@dataclass(frozen=True)
class HttpLibrary:
    """The classes of one family that the transports build on."""

    family: str
    client: Any
    async_client: Any
    response: Any
    sync_transport: type
    async_transport: type
    sync_stream: type
    async_stream: type
    read_timeout: Any


def family_of_sdk() -> str:
    """The family the installed openai SDK uses by default."""
    major = int(importlib.import_module("openai").__version__.split(".", 1)[0])
    return "httpx2" if major >= 3 else "httpx"


@functools.cache
def library(family: str | None = None) -> HttpLibrary:
    """Import a family. ValueError for an unknown name, ImportError with the remedy where it is not installed."""
    name = family or family_of_sdk()
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; it must be one of {', '.join(FAMILIES)}")
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        raise ImportError(f"the HTTP library {name} is not installed: pip install {name}") from exc
    return HttpLibrary(
        family=name,
        client=module.Client,
        async_client=module.AsyncClient,
        response=module.Response,
        sync_transport=module.BaseTransport,
        async_transport=module.AsyncBaseTransport,
        sync_stream=module.SyncByteStream,
        async_stream=module.AsyncByteStream,
        read_timeout=module.ReadTimeout,
    )
