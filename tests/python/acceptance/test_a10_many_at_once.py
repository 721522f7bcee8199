"""A-10: 32 threads with 100 mixed requests each, and 32 tasks: no deadlock, and every answer is the one given alone.

Over the server, whose side of each request takes its time in the same interpreter, a thread or task sends fewer.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

MODEL = "gemma-4-nano-e"
CALLERS, KINDS = 32, 28
REQUESTS_OF_A_THREAD = {"in_process": 100, "server": 10}
REQUESTS_OF_A_TASK = {"in_process": 25, "server": 5}


def sent(client, number):
    """One of a few kinds of requests, all short; gives what does not change from run to run."""
    kind, seed = number % 4, number % 7
    message = [{"role": "user", "content": f"What is {10 + seed} + 4?"}]
    if kind == 0:
        return client.chat.completions.create(model=MODEL, messages=message, seed=seed, max_completion_tokens=6)
    if kind == 1:
        return client.completions.create(model=MODEL, prompt=[2, 100 + seed], seed=seed, max_tokens=6)
    if kind == 2:
        return client.chat.completions.create(
            model=MODEL, messages=message, seed=seed, max_completion_tokens=6, stream=True
        )
    return client.responses.create(model=MODEL, input=message[0]["content"], temperature=0, max_output_tokens=6)


def told(answer):
    if hasattr(answer, "output_text"):
        return answer.output_text
    choice = answer.choices[0]
    return choice.text if hasattr(choice, "text") else choice.message.content


def received(client, number):
    answer = sent(client, number)
    if number % 4 == 2:
        with answer as stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    return told(answer)


async def areceived(client, number):
    answer = await sent(client, number)
    if number % 4 == 2:
        async with answer as stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    return told(answer)


@pytest.fixture(scope="module")
def alone(engine):
    """The answers to all kinds of requests, one after the other."""
    with engine.client(max_retries=0) as client:
        return [received(client, number) for number in range(KINDS)]


def test_a10_threads(request, door, alone):
    share = REQUESTS_OF_A_THREAD[request.node.callspec.params["door"]]
    wrong = []

    def work(client, first):
        try:
            for number in range(first, first + share):
                answer = received(client, number)
                if answer != alone[number % KINDS]:
                    wrong.append((number, answer))
        except Exception as exc:
            wrong.append((first, exc))

    with door.client(max_retries=0, timeout=300) as client:
        threads = [threading.Thread(target=work, args=(client, first)) for first in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a10_tasks(request, door, alone):
    share = REQUESTS_OF_A_TASK[request.node.callspec.params["door"]]

    async def work(client, first):
        for number in range(first, first + share):
            assert await areceived(client, number) == alone[number % KINDS]

    async def main():
        async with door.async_client(max_retries=0, timeout=300) as client:
            await asyncio.gather(*[work(client, first) for first in range(CALLERS)])

    asyncio.run(main())
