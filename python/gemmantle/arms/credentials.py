"""Keys of the remote service, and the tokens seen so far, so that they can be kept out of whatever is told.

Keys stay in `Credentials`: never in a log, a repr, a pickle or a message.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

from gemmantle.errors import RequestError

__all__ = ["Credentials", "Provider"]

Provider = Callable[[], "str | Awaitable[str]"]

_KEY_VARIABLE = "AWS_BEARER_TOKEN_BEDROCK"


class Credentials:
    """Keys, and the tokens seen so far, so that they can be kept out of messages."""

    def __init__(self, **given: Any) -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        modes = [name for name in self._given if name not in ("secret_access_key", "session_token")]
        if len(modes) > 1:
            raise ValueError(f"{' and '.join(modes)} are given; give one kind of credentials")
        if ("access_key_id" in self._given) != ("secret_access_key" in self._given):
            raise ValueError("access_key_id and secret_access_key belong together; give both")
        if "session_token" in self._given and "access_key_id" not in self._given:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        for name, value in self._given.items():
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} is empty; leave it out to use the environment")
        self._secrets: set[str] = {value for value in self._given.values() if isinstance(value, str)}
        self._secrets.discard(self._given.get("profile", ""))

    def __repr__(self) -> str:
        return f"<credentials: {', '.join(self._given) or 'from the environment'}>"

    def __reduce__(self) -> Any:
        raise TypeError("credentials do not pickle; in the other process the environment decides")

    def for_provider(self) -> dict[str, Any]:
        """Keywords of the SDK's bedrock provider."""
        found = dict(self._given)
        if "token_provider" in found:
            found["token_provider"] = self._token
        return found

    def for_bearer(self, asynchronous: bool) -> Any:
        """What an SDK without the provider takes as its api_key: a function it calls for each attempt."""
        if set(self._given) - {"api_key", "token_provider"}:
            raise _no_key("this openai SDK sends bearer keys only; signing needs openai>=2.44: pip install -U openai")
        if not self._given and not os.environ.get(_KEY_VARIABLE):
            raise _no_key(f"no key: give api_key or token_provider, or set {_KEY_VARIABLE}")

        async def aread() -> str:
            value = self._token()
            return value if isinstance(value, str) else await value

        return aread if asynchronous else self._token

    def scrub(self, text: str) -> str:
        """A message without keys, whoever wrote them into it."""
        for secret in (*self._secrets, os.environ.get(_KEY_VARIABLE, "")):
            if secret:
                text = text.replace(secret, "[key]")
        return text

    def _token(self) -> Any:
        provider = self._given.get("token_provider")
        if provider is None:
            return self._given.get("api_key") or os.environ.get(_KEY_VARIABLE, "")
        value = provider()
        if inspect.isawaitable(value):
            return self._seen_later(value)
        return self._seen(value)

    async def _seen_later(self, value: Awaitable[str]) -> str:
        return self._seen(await value)

    def _seen(self, value: str) -> str:
        if isinstance(value, str):
            if len(self._secrets) > 64:
                self._secrets.clear()
            self._secrets.add(value)
        return value


def _no_key(message: str) -> RequestError:
    return RequestError(message, code="invalid_api_key", status=401)
