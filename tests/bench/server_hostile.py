"""What others wait while a hostile caller opens and drops connections at the server door.

Run:  PYTHONPATH=python python tests/bench/server_hostile.py [--connections 10000] [--at-once 200]
A server process answers from an engine of no cost. One process opens connections and drops them: at once, in the
middle of a head, in the middle of a body, with a reset. Meanwhile this process asks for a chat answer again and again,
over a kept connection and over new ones, and counts what each waits.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import platform
import resource
import socket
import statistics
import struct
import threading
import time
from typing import Any

from server_streams import serve, usage

BODY = json.dumps({"model": "paced", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
RESET = struct.pack("ii", 1, 0)


async def drop(port: int, manner: int) -> None:
    """One connection: opened, used a little, and dropped."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        if manner:
            await loop.sock_sendall(connection, HEAD[: 20 if manner == 1 else None])
        if manner == 3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def attack_all(port: int, connections: int, at_once: int) -> int:
    refused = 0
    left = iter(range(connections))

    async def one_after_another() -> None:
        nonlocal refused
        for number in left:
            try:
                await drop(port, number % 4)
            except OSError:
                refused += 1

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return refused


def attack(port: int, connections: int, at_once: int, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    started = time.perf_counter()
    refused = asyncio.run(attack_all(port, connections, at_once))
    pipe.send((time.perf_counter() - started, refused))


class Caller(threading.Thread):
    """Asks until told to stop; what each answer took."""

    def __init__(self, port: int, *, keeps: bool) -> None:
        super().__init__()
        self._port = port
        self._keeps = keeps
        self.waits: list[float] = []
        self.errors: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self.done.is_set():
            started = time.perf_counter()
            try:
                connection.connect() if connection.sock is None else None
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.request("POST", "/v1/chat/completions", BODY)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.errors.append(str(answer.status))
            except OSError as exc:
                self.errors.append(repr(exc))
                connection.close()
            self.waits.append(time.perf_counter() - started)
            if not self._keeps:
                connection.close()
        connection.close()

    def told(self) -> str:
        waits = sorted(self.waits)
        near_all = waits[int(len(waits) * 0.99)]
        wait = [f"{1e3 * found:.1f} {name}" for name, found in
                (("median", statistics.median(waits)), ("p99", near_all), ("worst", waits[-1]))]  # fmt: skip
        return f"{len(waits)} answers, {len(self.errors)} errors; ms waited: {', '.join(wait)}"


def measure(port: int, options: argparse.Namespace, hostile: bool, context: Any) -> list[Caller]:
    callers = [Caller(port, keeps=True), Caller(port, keeps=False)]
    for caller in callers:
        caller.start()
    if hostile:
        receiver, sender = context.Pipe(duplex=False)
        attacker = context.Process(target=attack, args=(port, options.connections, options.at_once, sender))
        attacker.start()
        seconds, refused = receiver.recv()
        attacker.join()
        print(f"{options.connections} connections opened and dropped in {seconds:.1f} s, {refused} refused")
    else:
        time.sleep(options.seconds)
    for caller in callers:
        caller.done.set()
    for caller in callers:
        caller.join()
    for name, caller in zip(("kept connection", "new connections"), callers, strict=True):
        print(f"  {name}: {caller.told()}")
        for error in caller.errors[:3]:
            print("    error:", error)
    return callers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3, help="of the quiet measurement before")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(1e4, sender), daemon=True)
    server.start()
    try:
        port = receiver.recv()
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
        print("quiet")
        callers = measure(port, options, False, context)
        before = usage(server.pid or 0)[1]
        callers += measure(port, options, True, context)
        print(f"memory of the server: {before:.1f} MiB before, {usage(server.pid or 0)[1]:.1f} MiB after")
        return 1 if any(caller.errors for caller in callers) else 0
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    raise SystemExit(main())
