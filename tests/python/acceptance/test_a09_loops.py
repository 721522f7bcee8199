"""A-9: a synchronous call inside a running loop, one asynchronous client over several loops, and trio."""

from __future__ import annotations

import asyncio
import gc

import pytest

MODEL = "gemma-4-nano-e"
FRANCE = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
THERE = "The capital of France is Paris."


async def plain_and_streamed(client):
    plain = await client.chat.completions.create(**FRANCE)
    async with await client.chat.completions.create(**FRANCE, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return plain.choices[0].message.content, "".join(pieces)


def test_a09_a_synchronous_call_inside_a_running_loop(door):
    async def main():
        with door.client() as client:
            return client.chat.completions.create(**FRANCE).choices[0].message.content

    assert asyncio.run(main()) == THERE


def test_a09_one_asynchronous_client_over_three_loops(engine):
    """In process only: a client of the server has connections, which belong to the loop that opened them."""
    client = engine.async_client()
    for _ in range(3):
        assert asyncio.run(plain_and_streamed(client)) == (THERE, THERE)


async def by_a_client_of_this_loop(door):
    async with door.async_client() as client:
        return await plain_and_streamed(client)


def test_a09_three_loops_with_a_client_each(door):
    for _ in range(3):
        assert asyncio.run(by_a_client_of_this_loop(door)) == (THERE, THERE)


def test_a09_the_loop_runs_on_while_an_answer_is_made(door):
    ticks = 0

    async def main():
        nonlocal ticks

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        async with door.async_client() as client:
            await client.completions.create(
                model=MODEL, prompt="The", max_tokens=500, extra_body={"ignore_eos": True}, temperature=0
            )
        ticking.cancel()

    asyncio.run(main())
    assert ticks > 20


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a09_trio(door):
    """The SDK leaves its own generators unfinished, which trio remarks on."""
    trio = pytest.importorskip("trio")
    assert trio.run(by_a_client_of_this_loop, door) == (THERE, THERE)
    gc.collect()
