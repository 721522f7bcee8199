"""A-8: a stream that nobody reads stands still, is cancelled after the idle time, and harms nobody."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

import gemmantle
from gemmantle.options import Settings

MODEL = "gemma-4-nano-e"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
LONG = {"max_completion_tokens": 4000, "logit_bias": {"1": -100, "9": -100, "16": -100}}
BUFFER = 64  # tokens; the usual 4,096 are as many as the embedded model's context


@pytest.fixture
def engine(monkeypatch):
    native = Settings.native
    monkeypatch.setattr(Settings, "native", lambda settings: {**native(settings), "stream_buffer": BUFFER})
    with gemmantle.load(MODEL, idle_stream_timeout=0.5) as loaded:
        yield loaded


def test_a08_an_abandoned_stream_is_freed_and_others_go_on(engine):
    client = engine.client()
    stream = client.chat.completions.create(model=MODEL, messages=FRANCE, stream=True, **LONG)
    assert next(stream).choices
    answered = 0
    end = time.monotonic() + 60
    while engine.stats()["running"] and time.monotonic() < end:
        answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        answered += 1
    stats = engine.stats()
    assert answered > 0
    assert stats["running"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]
    assert stats["generated_tokens"] < LONG["max_completion_tokens"]
    with pytest.raises(openai.APIError, match="cancelled"):
        list(stream)


def test_a08_an_abandoned_asynchronous_stream_is_freed(engine):
    client = engine.async_client()

    async def main():
        stream = await client.chat.completions.create(model=MODEL, messages=FRANCE, stream=True, **LONG)
        await anext(stream)
        end = time.monotonic() + 60
        while engine.stats()["running"] and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert engine.stats()["running"] == 0
        with pytest.raises(openai.APIError, match="cancelled"):
            [chunk async for chunk in stream]

    asyncio.run(main())


def test_a08_a_slow_reader_gets_all_of_it(engine):
    stream = engine.client().chat.completions.create(
        model=MODEL, messages=FRANCE, stream=True, **{**LONG, "max_completion_tokens": 300}
    )
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        time.sleep(0.02)
    assert chunks[-1].choices[0].finish_reason == "length"
