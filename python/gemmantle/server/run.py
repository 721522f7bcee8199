"""`gemmantle serve`: the application on uvicorn. The only module that imports uvicorn (extra `server`).

It owns the socket, the signals and the order of things: bind, answer 503 while models load, serve, drain, leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemmantle.api.protocol import ServingEngine
from gemmantle.errors import GemmantleError
from gemmantle.server.application import Application
from gemmantle.server.served import ServedModels

if TYPE_CHECKING:
    from gemmantle.arms.remote import Remote

__all__ = ["LOOPBACK", "Server", "bind", "serve"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_CONNECTIONS = 4096
HEAD_S = 20.0  # for the head of a request to arrive
_WAITING = 256  # connections that the system keeps until they are accepted: who comes last waits for all of them
# Connections accepted in one go of the event loop. More of them would hold up everyone who is connected already.
ACCEPTED_AT_ONCE = 8
_KEEP_ALIVE_S = 75  # longer than HTTP clients keep idle connections, so that they do not send into a closed one


class Server(uvicorn.Server):
    """Serves an application on a bound socket until told to stop, then drains it; a second signal cuts the drain."""

    def __init__(
        self, application: Application, *, drain_s: float = 30.0, on_started: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            application,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._application = application
        self._drain_s = drain_s
        self._on_started = on_started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)  # asyncio has one number for both
        self._loop = asyncio.get_running_loop()
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """From any thread, and from a signal handler; nothing happens where it has stopped already."""
        if self._loop is None:
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drain_and_exit())
        else:
            self.should_exit = True

    async def _drain_and_exit(self) -> None:
        await self._application.drain(self._drain_s)
        self.should_exit = True


class Connection(H11Protocol):
    """Closes connections that are one too many, or whose request head does not arrive."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; ValueError, in words, where the address is taken or is not this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With the protocol named, asyncio sends small parts of answers at once; else each waits for the one before.
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ValueError(f"cannot listen on {host!r}: {exc.strerror or exc}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_WAITING)
    except OSError as exc:
        listener.close()
        raise ValueError(
            f"cannot listen on {host} port {port}: {exc.strerror or exc} (choose another one with --port, or 0 for any)"
        ) from exc
    return listener


def serve(
    models: Sequence[str],
    load: Callable[[str], ServingEngine],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_s: float = 30.0,
    hosts: Sequence[str] = (),
    fallback: Remote | None = None,
    **options: Any,
) -> None:
    """Load `models` and serve them until SIGTERM or Ctrl-C. `options` are those of `Application`.

    Answers 503 until all models are there. What `load` raises ends the server and is raised here, unless `fallback` is
    given and has the model.
    """
    _allow_many_files()
    is_loopback = host in ("localhost", "::1") or host.startswith("127.")
    served = ServedModels()
    application = Application(
        served,
        hosts=[*LOOPBACK, host, *hosts] if is_loopback or hosts else None,
        loading=True,
        fallback=fallback,
        **options,
    )
    listener = bind(host, port)
    if not is_loopback and not options.get("keys"):
        _tell(f"anyone who reaches {host} can use this server: set --api-key or GEMMANTLE_API_KEY to ask for a key")
    failures: list[Exception] = []

    def add(model: str) -> None:
        try:
            served.add(load(model))
        except GemmantleError as exc:
            if fallback is None or not fallback.stands_in_for(model, exc):
                raise
            served.add_absent(model, exc)
            _tell(f"{model} cannot be loaded and is answered by {fallback!r}: {exc}")

    async def load_all() -> None:
        try:
            for model in models:
                await asyncio.to_thread(add, model)
            application.loading = False
            names = ", ".join(card["id"] for card in served.cards()) or "no model of its own"
            _tell(f"serving {names} on {_address(listener)}")
        except Exception as exc:
            failures.append(exc)
            server.should_exit = True

    tasks: list[asyncio.Task[None]] = []
    server = Server(
        application,
        drain_s=drain_s,
        on_started=lambda: tasks.append(asyncio.get_running_loop().create_task(load_all())),
    )
    with listener:
        server.run(sockets=[listener])
    for engine in served.engines:
        close = getattr(engine, "close", None)
        if close is not None:
            close()
    if failures:
        raise failures[0]


def _allow_many_files() -> None:
    """A stream takes two descriptors, and the usual soft limit of 1024 is soon full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _tell(text: str) -> None:
    print(f"gemmantle: {text}", file=sys.stderr, flush=True)
