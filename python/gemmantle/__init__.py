"""gemmantle: Gemma 4 in this process, behind the real OpenAI SDK.

    from gemmantle import OpenAI
    client = OpenAI()
    answer = client.completions.create(model="gemma-3-270m", prompt="The capital of France is", max_tokens=8)
    print(answer.choices[0].text)

Importing this package does no work: every public name is looked up on first use, so neither the native module nor the
SDK nor numpy is loaded before something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemmantle import chat as chat
    from gemmantle.arms.remote import Remote as Remote
    from gemmantle.arms.remote import remote as remote
    from gemmantle.bulk import Result as Result
    from gemmantle.chat.tokenizer import Tokenizer as Tokenizer
    from gemmantle.client import AsyncOpenAI as AsyncOpenAI
    from gemmantle.client import OpenAI as OpenAI
    from gemmantle.display import show as show
    from gemmantle.engines import Engine as Engine
    from gemmantle.engines import load as load
    from gemmantle.errors import CorruptFile as CorruptFile
    from gemmantle.errors import DeviceError as DeviceError
    from gemmantle.errors import DriverTooOld as DriverTooOld
    from gemmantle.errors import EngineClosed as EngineClosed
    from gemmantle.errors import ForkedEngineError as ForkedEngineError
    from gemmantle.errors import GatedModel as GatedModel
    from gemmantle.errors import GemmantleError as GemmantleError
    from gemmantle.errors import InternalError as InternalError
    from gemmantle.errors import LoadError as LoadError
    from gemmantle.errors import ModelNotFound as ModelNotFound
    from gemmantle.errors import OutOfMemory as OutOfMemory
    from gemmantle.errors import RequestError as RequestError
    from gemmantle.errors import UnsupportedHardware as UnsupportedHardware
    from gemmantle.errors import UnsupportedModel as UnsupportedModel
    from gemmantle.evaluate import Score as Score
    from gemmantle.pools import Pool as Pool
    from gemmantle.pools import pool as pool

_HOMES = {
    "AsyncOpenAI": "client",
    "OpenAI": "client",
    "Engine": "engines",
    "Remote": "arms.remote",
    "remote": "arms.remote",
    "Pool": "pools",
    "pool": "pools",
    "Result": "bulk",
    "Score": "evaluate",
    "load": "engines",
    "show": "display",
    "Tokenizer": "chat.tokenizer",
    "CorruptFile": "errors",
    "DeviceError": "errors",
    "DriverTooOld": "errors",
    "EngineClosed": "errors",
    "ForkedEngineError": "errors",
    "GatedModel": "errors",
    "GemmantleError": "errors",
    "InternalError": "errors",
    "LoadError": "errors",
    "ModelNotFound": "errors",
    "OutOfMemory": "errors",
    "RequestError": "errors",
    "UnsupportedHardware": "errors",
    "UnsupportedModel": "errors",
}

__all__ = [
    "AsyncOpenAI",
    "CorruptFile",
    "DeviceError",
    "DriverTooOld",
    "Engine",
    "EngineClosed",
    "ForkedEngineError",
    "GatedModel",
    "GemmantleError",
    "InternalError",
    "LoadError",
    "ModelNotFound",
    "OpenAI",
    "OutOfMemory",
    "Pool",
    "Remote",
    "RequestError",
    "Result",
    "Score",
    "Tokenizer",
    "UnsupportedHardware",
    "UnsupportedModel",
    "__version__",
    "chat",
    "devices",
    "load",
    "pool",
    "remote",
    "show",
]


def devices() -> list[dict[str, object]]:
    """The backends of this build and machine: name, available, description, and why not where not."""
    found: list[dict[str, object]] = importlib.import_module("gemmantle._core").devices()
    return found


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"gemmantle.{_HOMES[name]}"), name)
    elif name == "chat":
        value = importlib.import_module("gemmantle.chat")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'gemmantle' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        version: str = metadata.version("gemmantle")
    except metadata.PackageNotFoundError:
        return "0+unknown"
    return version
