"""The ways into what answers requests: SDK clients, HTTP transports, an ASGI application."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from gemmantle.api.protocol import RequestHandler

if TYPE_CHECKING:
    import openai

__all__ = ["HasDoors"]


class HasDoors:
    """The methods that let requests in."""

    @abstractmethod
    def _handler(self) -> RequestHandler: ...

    @abstractmethod
    def _served(self) -> Any:
        """The models of a server (see `gemmantle.server.ServedModels`)."""

    def client(self, **options: Any) -> openai.OpenAI:
        """A genuine `openai.OpenAI` that answers from here. Options go to the SDK."""
        client: openai.OpenAI = importlib.import_module("gemmantle.client").client_over(self._handler(), options)
        return client

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        clients = importlib.import_module("gemmantle.client")
        client: openai.AsyncOpenAI = clients.async_client_over(self._handler(), options)
        return client

    def transport(self, family: str | None = None) -> Any:
        """An HTTP transport for `httpx2.Client` or `httpx.Client`, for people who build the client themselves."""
        return importlib.import_module("gemmantle.transport").sync_transport(self._handler(), family)

    def async_transport(self, family: str | None = None) -> Any:
        return importlib.import_module("gemmantle.transport").async_transport(self._handler(), family)

    def asgi(self, **options: Any) -> Any:
        """An ASGI application that answers from here, for any asyncio server; it needs no extra package.

        Options are those of `gemmantle.server.Application`: keys, hosts, origins, limits, state_path, fallback.
        """
        options = {"state_path": getattr(self, "state_path", None), **options}
        return importlib.import_module("gemmantle.server").Application(self._served(), **options)
