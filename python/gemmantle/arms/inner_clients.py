"""The SDK clients behind the remote arm: one for each region, address and event loop.

They are the SDK's own: its bedrock provider signs or adds the bearer key, its retries apply, and it obeys proxy
variables. An SDK that is older than the provider sends bearer keys to the same address.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import re
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from gemmantle.arms.credentials import Credentials

__all__ = ["InnerClients", "sdk"]

_ADDRESS_VARIABLE = "AWS_BEDROCK_BASE_URL"


class InnerClients:
    """Made when they are first needed. Safe from any thread.

    listing: the client that lists models, which the service does under another address (spec api 9.1).
    """

    def __init__(self, config: Mapping[str, Any], credentials: Credentials, regions: int) -> None:
        self._config = config
        self._credentials = credentials
        self._has_one_region = regions == 1
        self._lock = threading.Lock()
        self._sync: dict[tuple[str, bool], Any] = {}
        self._async: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], Any]] = weakref.WeakKeyDictionary()

    def sync(self, region: str, *, listing: bool = False) -> Any:
        with self._lock:
            client = self._sync.get((region, listing))
            if client is None:
                client = self._sync[region, listing] = self.make(region, listing, asynchronous=False)
            return client

    def asynchronous(self, region: str, *, listing: bool = False) -> Any:
        """One for each loop: the connections of a client belong to the loop they were opened on."""
        loop = _running_loop()
        with self._lock:
            clients = self._async.setdefault(loop, {})
            client = clients.get((region, listing))
            if client is None:
                client = clients[region, listing] = self.make(region, listing, asynchronous=True)
            return client

    def make(self, region: str, listing: bool, *, asynchronous: bool) -> Any:
        """A new client. ValueError or an error of the SDK where there are no credentials."""
        client_class = sdk().AsyncOpenAI if asynchronous else sdk().OpenAI
        options = {"max_retries": self._config["max_retries"], "project": self._config["project"]}
        if self._config["timeout"] is not None:
            options["timeout"] = self._config["timeout"]
        address = self._address(region, listing)
        provider = bedrock()
        if provider is None:
            return client_class(base_url=address, api_key=self._credentials.for_bearer(asynchronous), **options)
        arguments = {"region": region, "base_url": address, **self._credentials.for_provider()}
        if "endpoint" in inspect.signature(provider).parameters:
            arguments["endpoint"] = "mantle"
        return client_class(provider=provider(**arguments), **options)

    def _address(self, region: str, listing: bool) -> str:
        address: str = self._config["base_url"] or f"https://bedrock-mantle.{region}.api.aws/openai/v1"
        if not self._config["base_url"] and self._has_one_region:
            address = os.environ.get(_ADDRESS_VARIABLE) or address
        return re.sub(r"/openai/v1/?$", "/v1", address) if listing else address


@functools.cache
def sdk() -> Any:
    return importlib.import_module("openai")


def bedrock() -> Any:
    """The SDK's provider; None where the SDK is older than it."""
    try:
        return importlib.import_module("openai.providers").bedrock
    except (ImportError, AttributeError):
        return None


def _running_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return importlib.import_module("trio").lowlevel.current_trio_token()
