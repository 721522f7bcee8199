"""`OpenAI` and `AsyncOpenAI`: genuine SDK objects whose HTTP transport answers in this process. Nothing else.

The callables return the SDK's own classes (no subclass), so everything that takes a client takes these. The model named
in a request is loaded on first use and shared with every other client that asks for it with the same options.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from gemmantle import engines, hub
from gemmantle._http import library
from gemmantle.api.handler import Handler
from gemmantle.api.models import absent_card, card
from gemmantle.api.protocol import RequestHandler, ServingEngine
from gemmantle.errors import ModelNotFound
from gemmantle.options import NAMES, Options
from gemmantle.transport import async_transport, sync_transport

if TYPE_CHECKING:
    import openai

    from gemmantle.arms.remote import Remote

__all__ = ["AsyncOpenAI", "OpenAI", "async_client_for", "async_client_over", "client_for", "client_over", "handler_for"]

BASE_URL = "http://local.invalid/v1"
_API_KEY = "local"

_SDK_OPTIONS = {
    "timeout", "max_retries", "default_headers", "default_query", "organization", "project", "webhook_secret",
    "_strict_response_validation",
}  # fmt: skip
_REFUSED = {
    "base_url": "requests are answered in this process; use openai.OpenAI(base_url=...) for another server",
    "http_client": "the transport is ours; build your own with openai.OpenAI(http_client=...) and engine.transport()",
    "provider": "requests are answered in this process; use openai.OpenAI(provider=...) for a remote service",
    "workload_identity": "no credentials are needed in this process",
    "data_residency": "requests do not leave this process",
    "websocket_base_url": "there are no WebSockets in this process",
    "mounts": "a mount would lead requests past the in-process transport",
    "proxy": "a proxy would lead requests past the in-process transport",
}


def OpenAI(**options: Any) -> openai.OpenAI:
    """A genuine `openai.OpenAI` that answers from local models.

    The keywords of `gemmantle.load` are ours: device, threads, mode, max_context, deterministic and the rest.
    fallback: a `gemmantle.remote(...)` for what cannot be answered here; data then leaves the machine.
    timeout, max_retries, default_headers, default_query, organization and project go to the SDK. `api_key` is accepted
    and ignored. TypeError, in words, for base_url, http_client and what is neither's.
    """
    return client_over(*_handler_and_rest(options))


def AsyncOpenAI(**options: Any) -> openai.AsyncOpenAI:
    """A genuine `openai.AsyncOpenAI`, for any number of loops in turn; the arguments are those of `OpenAI`."""
    return async_client_over(*_handler_and_rest(options))


def client_for(engine: ServingEngine, **options: Any) -> openai.OpenAI:
    """An SDK client that answers from one engine."""
    return client_over(handler_for(engine), options)


def async_client_for(engine: ServingEngine, **options: Any) -> openai.AsyncOpenAI:
    return async_client_over(handler_for(engine), options)


def handler_for(engine: ServingEngine) -> Handler:
    return Handler(OneModel(engine), getattr(engine, "state_path", None))


class OneModel:
    """The models of `engine.client()`: one, under its name and aliases."""

    def __init__(self, engine: ServingEngine) -> None:
        self._engine = engine

    def find(self, name: str) -> ServingEngine | None:
        profile = self._engine.profile
        return self._engine if name == profile.name or name in profile.aliases else None

    def load(self, name: str) -> ServingEngine:
        profile = self._engine.profile
        known = ", ".join([profile.name, *profile.aliases])
        raise ModelNotFound(f"model '{name[:200]}' is not here; this client answers as: {known}")

    def cards(self) -> list[dict[str, Any]]:
        return [card(self._engine.profile)]


class LocalModels:
    """The models of `OpenAI()`: whatever `hub.resolve` finds, loaded on first use with one set of options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.state_path: str | None = options.get("state_path")
        self._engines: dict[str, ServingEngine] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> ServingEngine | None:
        return self._engines.get(name)

    def load(self, name: str) -> ServingEngine:
        """Two first requests load a model once: `engines.load` shares. Its canonical name works from then on."""
        engine = engines.load(name, **self._options)
        with self._lock:
            for known in (engine.profile.name, *engine.profile.aliases):
                self._engines.setdefault(known, engine)
            self._engines[name] = engine
        return engine

    def cards(self) -> list[dict[str, Any]]:
        loaded = {engine.profile.name: engine.profile for engine in list(self._engines.values())}
        cards = [card(profile) for profile in loaded.values()]
        for name in hub.names_on_disk():
            if name not in loaded:
                cards.append(absent_card(name))
        return cards


def _handler_and_rest(options: dict[str, Any]) -> tuple[RequestHandler, dict[str, Any]]:
    """What answers, and the options that are the SDK's.

    Ours are checked now, so that a wrong device name fails here and not in the first request.
    """
    fallback: Remote | None = options.pop("fallback", None)
    ours = {name: options.pop(name) for name in NAMES & options.keys()}
    Options(**ours)
    source = LocalModels(ours)
    local = Handler(source, source.state_path)
    if fallback is None:
        return local, options
    return importlib.import_module("gemmantle.arms.pair").FallbackHandler(local, source, fallback), options


def _sdk_arguments(options: dict[str, Any]) -> dict[str, Any]:
    options.pop("api_key", None)
    for name in options:
        if name in _REFUSED:
            raise TypeError(f"{name} cannot be given here: {_REFUSED[name]}")
        if name not in _SDK_OPTIONS:
            known = ", ".join(sorted(option for option in _SDK_OPTIONS if not option.startswith("_")))
            raise TypeError(f"unknown argument {name}; the SDK's are {known}, the rest are those of gemmantle.load")
    return {**options, "base_url": BASE_URL, "api_key": _API_KEY}


def client_over(handler: RequestHandler, options: dict[str, Any]) -> openai.OpenAI:
    arguments = _sdk_arguments(options)
    http = library()
    sdk = importlib.import_module("openai")
    http_client = http.client(transport=sync_transport(handler), trust_env=False, follow_redirects=True)
    client: openai.OpenAI = sdk.OpenAI(http_client=http_client, **_admin_key(sdk.OpenAI), **arguments)
    return client


def async_client_over(handler: RequestHandler, options: dict[str, Any]) -> openai.AsyncOpenAI:
    arguments = _sdk_arguments(options)
    http = library()
    sdk = importlib.import_module("openai")
    http_client = http.async_client(transport=async_transport(handler), trust_env=False, follow_redirects=True)
    client: openai.AsyncOpenAI = sdk.AsyncOpenAI(http_client=http_client, **_admin_key(sdk.AsyncOpenAI), **arguments)
    return client


def _admin_key(sdk_class: Any) -> dict[str, str]:
    """An empty admin key keeps the SDK from reading the variable of the real service, where it knows such a key."""
    return {"admin_api_key": ""} if "admin_api_key" in sdk_class.__init__.__code__.co_varnames else {}
