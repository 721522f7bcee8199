"""`AsyncOpenAI` over the in-process transport: loops in turn, cancellation, and a loop that is never blocked."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import openai
import pytest
from fake_engine import CALL, HELLO, HOLD, FakeEngine, content

from gemmantle._http import library
from gemmantle.client import AsyncOpenAI, async_client_for, handler_for
from gemmantle.errors import DeviceError, RequestError
from gemmantle.transport import async_transport

USER = [{"role": "user", "content": "Hi"}]


def ask(client, **fields):
    return client.chat.completions.create(**{"model": "fake", "messages": USER, **fields})


async def text_of(stream):
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_helpers_of_the_sdk():
    client = async_client_for(FakeEngine([("thought", "hm"), *content("Look. "), *CALL]))

    async def main():
        async with client.chat.completions.stream(model="fake", messages=USER) as stream:
            final = await stream.get_final_completion()
        raw = await client.chat.completions.with_raw_response.create(model="fake", messages=USER)
        streaming = client.chat.completions.with_streaming_response
        async with streaming.create(model="fake", messages=USER, stream=True) as response:
            lines = [line async for line in response.iter_lines() if line]
        return final.choices[0], raw, lines

    choice, raw, lines = asyncio.run(main())
    assert choice.message.reasoning == "hm"
    assert choice.message.content == "Look."
    assert choice.message.tool_calls[0].function.name == "get_weather"
    assert raw.parse().choices[0].finish_reason == "tool_calls"
    assert lines[-1] == "data: [DONE]"


def test_three_choices():
    engine = FakeEngine(lambda choice: [HOLD, *content("a0")] if choice == 0 else content(f"a{choice}"))
    client = async_client_for(engine)

    async def main():
        asyncio.get_running_loop().call_later(0.1, engine.release)
        async with client.chat.completions.stream(model="fake", messages=USER, n=3) as stream:
            return await stream.get_final_completion()

    final = asyncio.run(main())
    assert [choice.message.content for choice in final.choices] == ["a0", "a1", "a2"]


def test_the_loop_runs_on_while_a_request_waits():
    engine = FakeEngine([HOLD, *HELLO])
    client = async_client_for(engine)
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async def release():
        while not engine.generations:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        engine.release()

    async def main():
        watcher, releaser = asyncio.create_task(watch()), asyncio.create_task(release())
        answer = await ask(client)
        await releaser
        watcher.cancel()
        return answer.choices[0].message.content

    assert asyncio.run(main()) == "Hello, world!"
    assert longest < 0.2


def test_many_requests_at_once():
    client = async_client_for(FakeEngine(HELLO))

    async def main():
        plain = [ask(client) for _ in range(20)]
        streams = await asyncio.gather(*[ask(client, stream=True) for _ in range(20)])
        answers = await asyncio.gather(*plain)
        texts = await asyncio.gather(*[text_of(stream) for stream in streams])
        return [answer.choices[0].message.content for answer in answers] + texts

    assert asyncio.run(main()) == ["Hello, world!"] * 40


@pytest.mark.parametrize("way", ["task", "task_in_stream", "close", "with", "drop"])
def test_every_way_out_cancels(way):
    engine = FakeEngine([*content("a"), HOLD])
    client = async_client_for(engine, timeout=None)

    async def main():
        if way == "task":
            task = asyncio.create_task(ask(client))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return
        stream = await ask(client, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "a"
        if way == "task_in_stream":
            task = asyncio.create_task(text_of(stream))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif way == "close":
            await stream.close()
        elif way == "with":
            async with stream:
                pass
        else:
            del stream
            gc.collect()
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert engine.cancelled == 1


def test_time_runs_out_once():
    engine = FakeEngine([*content("a"), HOLD])
    client = async_client_for(engine, timeout=0.2, max_retries=2)

    async def main():
        with pytest.raises(openai.APITimeoutError):
            await ask(client)
        stream = await ask(client, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(openai.APITimeoutError):
            await anext(stream)

    asyncio.run(main())
    assert len(engine.submitted) == 2
    assert engine.cancelled == 2


def test_errors():
    engine = FakeEngine([*content("a"), DeviceError("lost")])
    client = async_client_for(engine, max_retries=1)

    async def main():
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, temperature=3)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError):
            await ask(client, model="gpt-5")
        with pytest.raises(openai.APIError, match="lost"):
            await text_of(await ask(client, stream=True))
        engine.refuse = RequestError("queue full", code="engine_busy")
        with pytest.raises(openai.RateLimitError):
            await ask(client)
        assert [model.id async for model in client.models.list()] == ["fake/model"]

    asyncio.run(main())


def test_a_repeat_with_the_same_key_is_answered_once():
    engine = FakeEngine([HOLD, *HELLO])
    client = async_client_for(engine)

    async def main():
        asyncio.get_running_loop().call_later(0.2, engine.release)
        headers = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*[ask(client, extra_headers=headers) for _ in range(3)])
        return {answer.id for answer in answers}

    assert len(asyncio.run(main())) == 1
    assert len(engine.submitted) == 1


def test_a_large_prompt_is_prepared_off_the_loop():
    engine = FakeEngine(HELLO, max_context=10**6)
    threads = []
    render = engine.render_chat
    engine.render_chat = lambda *arguments: (threads.append(threading.current_thread()), render(*arguments))[1]
    client = async_client_for(engine)
    message = [{"role": "user", "content": "x" * 50_000}]
    answer = asyncio.run(ask(client, messages=message))
    assert answer.choices[0].message.content == "Hello, world!"
    assert threads[0] is not threading.main_thread()


def test_trio_works_too():
    trio = pytest.importorskip("trio", reason="trio is not installed")
    engine = FakeEngine(lambda choice: [HOLD, *HELLO] if choice == 0 else HELLO)
    http = library()

    async def main():
        async def release():
            await trio.sleep(0.1)
            engine.release()

        bare = http.async_client(transport=async_transport(handler_for(engine)))
        async with bare, trio.open_nursery() as nursery:
            nursery.start_soon(release)
            body = {"model": "fake", "messages": USER, "n": 2, "stream": True}
            answer = await bare.post("http://x/v1/chat/completions", json=body)
            return answer.text

    assert trio.run(main).endswith("data: [DONE]\n\n")


def test_the_callable_makes_a_genuine_client():
    client = AsyncOpenAI(device="cpu", api_key="ignored", max_retries=3)
    assert type(client) is openai.AsyncOpenAI
    assert client.max_retries == 3
