"""The server door on a real socket of 127.0.0.1, in a thread of the test, and SDK clients that talk to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import openai

from gemmantle.api.protocol import ServingEngine
from gemmantle.server import Application, ServedModels


class Door:
    """A running server: where it listens, its application, and how to stop it."""

    def __init__(self, application: Application, drain_s: float) -> None:
        from gemmantle.server.run import Server, bind

        self.application = application
        self._listener = bind("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        started = threading.Event()
        self.server = Server(application, drain_s=drain_s, on_started=started.set)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        assert started.wait(30)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def stop(self) -> None:
        self.server.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listener.close()


@contextlib.contextmanager
def serving(
    *engines: ServingEngine, application: Application | None = None, drain_s: float = 0.0, **options: Any
) -> Iterator[Door]:
    """Serve engines, or an application, until the block ends; what still runs then is ended at once."""
    door = Door(application or Application(ServedModels(engines), **options), drain_s)
    try:
        yield door
    finally:
        door.stop()
