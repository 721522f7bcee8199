"""Many streams at once in one process (spec api A-6): what the loop's thread needs of a core, merging on.

Run:  PYTHONPATH=python python tests/bench/client_streams.py [--streams 200] [--rate 50] [--seconds 20]
One asynchronous SDK client reads all streams on one loop; an engine without a model gives each `rate` tokens a second
on a thread of its own, whose time is not counted. The goal is below 40 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import openai
from server_streams import PacedEngine

from gemmantle.client import async_client_for

USER = [{"role": "user", "content": "Hi"}]


async def read(client: openai.AsyncOpenAI, tokens: int, until: float) -> tuple[int, int]:
    """Streams and chunks read before the time was over."""
    streams = chunks = 0
    while time.monotonic() < until:
        stream = await client.chat.completions.create(model="paced", messages=USER, stream=True, max_tokens=tokens)  # type: ignore[arg-type]
        async for _ in stream:
            chunks += 1
        streams += 1
    return streams, chunks


async def run(options: argparse.Namespace) -> None:
    client = async_client_for(PacedEngine(options.rate), max_retries=0)
    tokens = int(options.rate * options.seconds)
    started, cpu = time.monotonic(), time.thread_time()
    found = await asyncio.gather(*[read(client, tokens, started + options.seconds / 2) for _ in range(options.streams)])
    wall, cpu = time.monotonic() - started, time.thread_time() - cpu
    streams, chunks = (sum(column) for column in zip(*found, strict=True))
    print(f"openai {openai.__version__}: {options.streams} streams of {options.rate:g} tokens a second, {wall:.1f} s")
    print(f"{streams} streams ended, {chunks / wall:.0f} chunks a second, {cpu / chunks * 1e6:.0f} us a chunk")
    print(f"loop thread {100 * cpu / wall:.1f} % of a core (goal 40 %)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
