"""A-10: 32 threads with 100 mixed requests each, and 32 tasks: no deadlock, and every answer is the one given alone."""

from __future__ import annotations

import asyncio
import threading

MODEL = "gemma-4-nano-e"
CALLERS, REQUESTS_OF_A_THREAD, REQUESTS_OF_A_TASK = 32, 100, 25


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


def alone(engine):
    """The answers to all kinds of requests, one after the other."""
    client = engine.client(max_retries=0)
    return [received(client, number) for number in range(28)]


def test_a10_threads(engine):
    expected = alone(engine)
    client = engine.client(max_retries=0, timeout=300)
    wrong = []

    def work(first):
        try:
            for number in range(first, first + REQUESTS_OF_A_THREAD):
                answer = received(client, number)
                if answer != expected[number % 28]:
                    wrong.append((number, answer))
        except Exception as exc:
            wrong.append((first, exc))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a10_tasks(engine):
    expected = alone(engine)
    client = engine.async_client(max_retries=0, timeout=300)

    async def work(first):
        for number in range(first, first + REQUESTS_OF_A_TASK):
            assert await areceived(client, number) == expected[number % 28]

    async def main():
        await asyncio.gather(*[work(first) for first in range(CALLERS)])

    asyncio.run(main())
