"""Many streams at once over the server door (spec api A-6): processor time, chunks, memory and errors.

Run:  PYTHONPATH=python python tests/bench/server_streams.py [--streams 200] [--rate 50] [--seconds 30]
A server process answers from an engine that gives every stream `rate` tokens a second; readers on raw sockets in this
process start a new stream when one ends, until the time is over. The server's part is everything but the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from client_overhead import NullDelta, NullPrompt, NullToken

from gemmantle.api.protocol import Profile, Sampling

TICK_S = 0.02
CLOCK = os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class PacedGeneration:
    """Tokens appear as the engine's clock says, and the descriptor is readable while there are any."""

    prompt_logprobs: list[Any] = []  # noqa: RUF012

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self._tokens = tokens
        self._ready: deque[NullDelta] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._fd)

    def push(self) -> None:
        self.left -= 1
        self._ready.append(NullDelta([("content", "word ")], [NullToken()]))
        if self.left == 0:
            self._ready.append(NullDelta([], [], "stop", None, (10, self._tokens, 0, 0)))
        os.eventfd_write(self._fd, 1)

    def try_next(self) -> NullDelta | None:
        if self._ready:
            return self._ready.popleft()
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return None
        return self._ready.popleft() if self._ready else None

    def next(self, timeout: float | None = None) -> NullDelta | None:
        raise NotImplementedError("the server waits on descriptors")

    def fileno(self) -> int:
        return self._fd

    def cancel(self) -> None:
        self.left = 0


class PacedEngine:
    """Gives all running streams their tokens, `rate` a second each."""

    profile = Profile(name="paced", fingerprint="fp_paced", max_context=1 << 20, vocab_size=1000)

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._running: set[PacedGeneration] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, ids: Any, sampling: Sampling) -> PacedGeneration:
        generation = PacedGeneration(sampling.max_tokens)
        with self._lock:
            self._running.add(generation)
        return generation

    def render_chat(self, messages: Any, tools: Any, thinking: bool) -> NullPrompt:
        return NullPrompt()

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        return [2, 3, 4]

    def token_bytes(self, token_id: int) -> bytes:
        return b"word "

    def _run(self) -> None:
        owed = 0.0
        before = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            owed += (now - before) * self._rate
            before = now
            whole, owed = int(owed), owed % 1
            with self._lock:
                for generation in list(self._running):
                    for _ in range(min(whole, generation.left)):
                        generation.push()
                    if generation.left <= 0:
                        self._running.discard(generation)


def serve(rate: float, pipe: Any) -> None:
    from gemmantle.server import Application, ServedModels
    from gemmantle.server.run import Server, bind

    listener = bind("127.0.0.1", 0)
    server = Server(
        Application(ServedModels([PacedEngine(rate)])),
        on_started=lambda: pipe.send(listener.getsockname()[1]),
    )
    server.run(sockets=[listener])


class Readers:
    """The callers: raw sockets, so that this process keeps up."""

    def __init__(self, port: int, tokens: int) -> None:
        self._port = port
        body = {"model": "paced", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": tokens}
        data = json.dumps(body).encode()
        self._request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        self._request += b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
        self._expected = tokens
        self.streams = 0
        self.chunks = 0
        self.errors: list[str] = []
        self.first: list[float] = []

    async def read(self, until: float) -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(self._request)
                text = b""
                while part := await reader.read(1 << 16):
                    if not text.count(b"data: ") and b"data: " in part:
                        self.first.append(time.perf_counter() - started)
                    text += part
                writer.close()
                await writer.wait_closed()
            except OSError as exc:
                self.errors.append(repr(exc))
                continue
            if text.count(b"word") != self._expected or b"data: [DONE]" not in text:
                self.errors.append(text[-200:].decode())
            self.streams += 1
            self.chunks += text.count(b"data: ") - 1


def usage(pid: int) -> tuple[float, float]:
    """Processor seconds and resident MiB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK, int(fields[21]) * PAGE_MIB


async def measure(options: argparse.Namespace, port: int, pid: int) -> int:
    readers = Readers(port, options.tokens)
    warm = time.monotonic() + 2 * options.tokens / options.rate
    until = warm + options.seconds
    tasks = []
    for _ in range(options.streams):
        tasks.append(asyncio.create_task(readers.read(until)))
        await asyncio.sleep(options.tokens / options.rate / options.streams)  # so that they do not move in step
    await asyncio.sleep(max(0.0, warm - time.monotonic()))
    chunks, (busy, memory) = readers.chunks, usage(pid)
    started = time.monotonic()
    peak = memory
    while time.monotonic() < until:
        await asyncio.sleep(min(1.0, max(0.0, until - time.monotonic())))
        peak = max(peak, usage(pid)[1])
    seconds = time.monotonic() - started
    chunks = readers.chunks - chunks
    busy_end, memory_end = usage(pid)
    await asyncio.gather(*tasks)
    share = (busy_end - busy) / seconds
    print(f"{readers.streams} streams of {options.tokens} tokens, {len(readers.errors)} errors, in {seconds:.0f} s")
    print(f"server     {share * 100:7.1f} % of a core  (goal 40 %, engine clock included)")
    print(f"chunks     {chunks / seconds:7.0f} /s for {options.streams * options.rate:.0f} tokens/s")
    print(
        f"first      {statistics.median(readers.first) * 1e3:7.1f} ms median, {max(readers.first) * 1e3:.1f} ms worst"
    )
    print(f"memory     {memory:7.1f} MiB at the start, {peak:.1f} at most, {memory_end:.1f} at the end")
    for error in readers.errors[:3]:
        print("error:", error)
    return 1 if readers.errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(options.rate, sender), daemon=True)
    process.start()
    try:
        port = receiver.recv()
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
        return asyncio.run(measure(options, port, process.pid or 0))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    raise SystemExit(main())
