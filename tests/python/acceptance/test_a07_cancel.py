"""A-7: every way out of a request frees what it held, in the prompt as well as in the answer, and leaves no thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import openai
import pytest

MODEL = "gemma-4-nano-e"
USER = [{"role": "user", "content": "Hi"}]
# An answer that says something until it is cut: what would end it is disliked.
LONG = {"max_completion_tokens": 3500, "logit_bias": {str(control): -100 for control in range(24)}}


def is_free(engine, seconds=20.0):
    """Whether the engine comes to rest with all blocks free; the limit is there for a test that fails."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stats = engine.stats()
        if stats["running"] == stats["queued"] == 0 and stats["blocks_free"] == stats["blocks_total"]:
            return True
        time.sleep(0.005)
    return False


def opened(client):
    return client.chat.completions.create(model=MODEL, messages=USER, stream=True, **LONG)


def close(stream):
    stream.close()


def leave_with(stream):
    with stream:
        pass


def break_out(stream):
    with stream:
        for _ in stream:
            break


WAYS_OUT = {"close": close, "leave with": leave_with, "break out of with": break_out}


@pytest.mark.parametrize("way", sorted(WAYS_OUT))
def test_a07_leaving_a_stream_frees_its_blocks(client, engine, way):
    before = engine.stats()["generated_tokens"]
    stream = opened(client)
    assert next(stream).choices
    WAYS_OUT[way](stream)
    assert is_free(engine)
    assert engine.stats()["generated_tokens"] - before < LONG["max_completion_tokens"]


def test_a07_dropping_a_stream_frees_its_blocks(client, engine):
    before = engine.stats()["generated_tokens"]
    stream = opened(client)
    next(stream)
    del stream
    gc.collect()
    if not is_free(engine, 0.1):  # an asynchronous stream is closed by its loop, when that runs
        client.models.list()
        gc.collect()
    assert is_free(engine)
    assert engine.stats()["generated_tokens"] - before < LONG["max_completion_tokens"]


def test_a07_a_deadline_and_a_cancelled_background_answer_free_their_blocks(client, engine):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(model=MODEL, messages=USER, **LONG)
    assert is_free(engine)
    begun = client.responses.create(
        model=MODEL, input="Hi", background=True, max_output_tokens=3500, extra_body={"ignore_eos": True}
    )
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert is_free(engine)


def test_a07_a_prompt_is_cancelled_while_it_is_read(client, engine):
    """16 prompts that share nothing: the deadline comes long before the last of them is computed."""
    prompts = [[(7 * row + 31 * position) % 1500 for position in range(4000)] for row in range(16)]
    before = engine.stats()["prompt_tokens"]
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(model=MODEL, prompt=prompts, max_tokens=1)
    assert is_free(engine)
    assert engine.stats()["prompt_tokens"] - before < sum(map(len, prompts))


def test_a07_a_cancelled_task_frees_its_blocks(door, engine):
    async def main():
        async with door.async_client(max_retries=0) as client:
            task = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=USER, **LONG))
            while not engine.stats()["running"]:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert is_free(engine)


def test_a07_no_thread_is_left(client, engine):
    client.models.list()
    before = threading.active_count()
    for _ in range(5):
        stream = opened(client)
        next(stream)
        stream.close()
    assert is_free(engine)
    assert threading.active_count() <= before
