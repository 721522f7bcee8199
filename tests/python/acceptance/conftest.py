"""The four ways in: in process or over the server, synchronous or asynchronous; one test holds for all of them."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest
from serving import serving
from straight import Loop, Straight

import gemmantle
from gemmantle.client import async_client_over, client_over
from gemmantle.server import Application, ServedModels

MODEL = "gemma-4-nano-e"


@pytest.fixture(scope="session")
def engine():
    """The embedded model. Deterministic, so that answers can be compared whatever else runs."""
    with gemmantle.load(MODEL, deterministic=True) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def served(engine):
    """One server for all tests that only need the embedded model."""
    pytest.importorskip("uvicorn", reason="the server needs its extra: pip install 'gemmantle[server]'")
    with serving(engine) as door:
        yield door


@pytest.fixture(params=["in_process", "server"])
def door(request, engine):
    """What makes SDK clients of the embedded model by `client()` and `async_client()`, for tests with own loops."""
    return engine if request.param == "in_process" else request.getfixturevalue("served")


class Ways:
    """Makes clients that take one of the four ways, to any engine or handler."""

    def __init__(self, door: str, kind: str, stack: contextlib.ExitStack) -> None:
        self.door = door
        self.kind = kind
        self._stack = stack
        self._loop: Loop | None = None

    def __repr__(self) -> str:
        return f"{self.door}, {self.kind}"

    def client(self, engine: Any, **options: Any) -> Any:
        """An SDK client, or one that is written to like it, that is answered by an engine."""
        return self.client_of(Application(ServedModels([engine])), **options)

    def client_of(self, application: Application, **options: Any) -> Any:
        options = {"max_retries": 0, **options}
        if self.door == "server":
            return self.client_at(self._stack.enter_context(serving(application=application)).url, **options)
        if self.kind == "sync":
            client = client_over(application.handler, options)
        else:
            client = async_client_over(application.handler, options)
        return self._kept(client)

    def client_at(self, url: str, **options: Any) -> Any:
        """A client of a server that runs already."""
        sdk_class = openai.OpenAI if self.kind == "sync" else openai.AsyncOpenAI
        return self._kept(sdk_class(**{"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, **options}))

    def _kept(self, client: Any) -> Any:
        """Closed when the test ends."""
        if self.kind == "sync":
            self._stack.callback(client.close)
            return client
        if self._loop is None:
            self._loop = Loop()
            self._stack.callback(self._loop.close)
        self._stack.callback(self._loop.wait, client.close())
        return Straight(client, self._loop)


@pytest.fixture(params=["in_process-sync", "in_process-async", "server-sync", "server-async"])
def ways(request):
    door, _, kind = request.param.partition("-")
    if door == "server":
        pytest.importorskip("uvicorn", reason="the server needs its extra: pip install 'gemmantle[server]'")
    with contextlib.ExitStack() as stack:
        yield Ways(door, kind, stack)


@pytest.fixture
def client(request, ways, engine):
    """A client of the embedded model."""
    if ways.door == "server":
        return ways.client_at(request.getfixturevalue("served").url)
    return ways.client(engine)
