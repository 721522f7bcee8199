"""The server door on a real socket of 127.0.0.1, in a thread of the test, and SDK clients that talk to it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai

from gemmantle.api.protocol import ServingEngine
from gemmantle.server import Application, ServedModels


class Door:
    """A running server: where it listens, its application, and how to stop it."""

    def __init__(self, application: Application, drain_s: float, send_buffer: int | None) -> None:
        from gemmantle.server.run import Server, bind

        self.application = application
        self._listener = bind("127.0.0.1", 0)
        if send_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        started = threading.Event()
        self.server = Server(application, drain_s=drain_s, on_started=started.set)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        assert started.wait(30)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._sdk_options(options))

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._sdk_options(options))

    def _sdk_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options}

    def stop(self) -> None:
        self.server.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listener.close()


@contextlib.contextmanager
def serving(
    *engines: ServingEngine,
    application: Application | None = None,
    drain_s: float = 0.0,
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Door]:
    """Serve engines, or an application, until the block ends; what still runs then is ended at once.

    send_buffer: bytes that the system holds for a caller who does not read; None for the system's own limit.
    """
    door = Door(application or Application(ServedModels(engines), **options), drain_s, send_buffer)
    try:
        yield door
    finally:
        door.stop()
