"""Many requests over one real engine: nobody notices the others, every way out frees, closing gives memory back.

GEMMANTLE_CROWD_REQUESTS: requests of each of the 32 threads, 4 where it is not set; GEMMANTLE_CROWD_SEED another crowd.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import gemmantle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gemmantle._core") is None, reason="the native module is not built"
)

MODEL = "gemma-4-nano-e"
TINY = Path(__file__).parents[1] / "golden" / "odd" / "e2b"
THREADS = 32


@pytest.fixture(scope="module")
def engine() -> Iterator[gemmantle.Engine]:
    with gemmantle.load(MODEL, device="cpu", deterministic=True) as loaded:
        yield loaded


def settled(engine: gemmantle.Engine) -> dict[str, Any]:
    """The counters once nothing runs any longer."""
    until = time.monotonic() + 20
    stats = engine.stats()
    while stats["running"] + stats["queued"] > 0:
        assert time.monotonic() < until, stats
        time.sleep(0.005)
        stats = engine.stats()
    return stats


def assert_all_free(engine: gemmantle.Engine) -> None:
    stats = settled(engine)
    assert stats["sliding_blocks_free"] == stats["sliding_blocks_total"]
    assert stats["full_blocks_free"] == stats["full_blocks_total"]


# -- a crowd

CITIES = ["Paris", "Rome", "Lima", "Oslo"]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}

Answer = tuple[Any, ...]
Call = Callable[[openai.OpenAI, gemmantle.Engine], Answer]


def said(choice: Any) -> dict[str, Any]:
    """All of a choice but for the ids of its calls, which are new each time."""
    value: dict[str, Any] = choice.model_dump()
    for call in value["message"]["tool_calls"] or []:
        del call["id"]
    return value


def chat(seed: int, **fields: Any) -> Call:
    messages = [{"role": "user", "content": f"What is the weather in {CITIES[seed % 4]}?"}]
    shape: dict[str, Any] = {"model": MODEL, "messages": messages, "seed": seed, "max_completion_tokens": 24, **fields}

    def call(client: openai.OpenAI, _: gemmantle.Engine) -> Answer:
        if "stream" not in shape:
            return tuple(said(choice) for choice in client.chat.completions.create(**shape).choices)
        with client.chat.completions.create(**shape) as chunks:
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        return ("".join(delta.content or "" for delta in deltas),)

    return call


def native(seed: int) -> Call:
    request = {"prompt": f"Number {seed % 5} and", "max_tokens": 12, "seed": seed, "logprobs": True, "ignore_eos": True}

    def call(_: openai.OpenAI, engine: gemmantle.Engine) -> Answer:
        return tuple((tuple(r.ids), tuple(p.logprob for p in r.logprobs or [])) for r in engine.generate([request]))

    return call


def scored(seed: int) -> Call:
    item = (f"The weather in {CITIES[seed % 4]} is", [" good.", " bad.", f" {seed} degrees."])
    return lambda _, engine: tuple(score.logprob for score in engine.score([item], mode="choice")[0])


def mixed(seed: int) -> Call:
    kinds: list[Callable[[], Call]] = [
        lambda: chat(seed),
        lambda: chat(seed, stream=True, temperature=0),
        lambda: chat(seed, n=3, logprobs=True),
        lambda: chat(seed, tools=[TOOL], tool_choice="required"),
        lambda: chat(seed, reasoning_effort="high", frequency_penalty=0.5),
        lambda: chat(seed, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
        lambda: native(seed),
        lambda: scored(seed),
    ]
    return kinds[seed % len(kinds)]()


def test_a_crowd_of_threads_gets_what_each_request_gets_alone(engine: gemmantle.Engine) -> None:
    pytest.importorskip("llguidance")
    count = int(os.environ.get("GEMMANTLE_CROWD_REQUESTS", "4"))
    seed = int(os.environ.get("GEMMANTLE_CROWD_SEED", "32"))
    print("seed", seed)
    client = engine.client(timeout=None)
    calls = [mixed(number) for number in range(48)]
    alone = [call(client, engine) for call in calls]
    wrong: list[str] = []
    before = engine.stats()

    def work(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        own = engine.client(timeout=None) if number % 2 else client
        for _ in range(count):
            which = rng.randrange(len(calls))
            if rng.randrange(10) == 0:  # somebody who leaves in the middle
                stream = own.completions.create(model=MODEL, prompt="Once", max_tokens=40, stream=True)
                next(stream)
                stream.close()
            try:
                answer = calls[which](own, engine)
            except Exception as exc:
                wrong.append(f"{which}: {exc!r}")
                continue
            if answer != alone[which]:
                wrong.append(f"{which}: {answer} instead of {alone[which]}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    stats = settled(engine)
    steps, rows = stats["steps"] - before["steps"], stats["decode_rows"] - before["decode_rows"]
    print(f"{THREADS * count} requests, {rows} decode rows in {steps} steps")
    assert rows > steps  # they did run together
    assert_all_free(engine)


# -- ways out (spec api T-18)

LONG: dict[str, Any] = {
    "model": "e2b",
    "prompt": [2, 5, 6, 7],
    "max_tokens": 3000,
    "n": 3,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},  # it has no words: ids are all there is to stream
}


@pytest.fixture
def tiny() -> Iterator[gemmantle.Engine]:
    if not (TINY / "config.json").is_file():
        pytest.skip(f"no golden checkpoint in {TINY}")
    with gemmantle.load(TINY, device="cpu", max_context=4096) as loaded:
        yield loaded


def _close(stream: Any) -> None:
    stream.close()


def _leave_with(stream: Any) -> None:
    with contextlib.suppress(ZeroDivisionError), stream:
        raise ZeroDivisionError


def _close_response(stream: Any) -> None:
    stream.response.close()


def _drop(_: Any) -> None:
    """The last reference goes with the caller's."""


@pytest.mark.parametrize("leave", [_close, _leave_with, _close_response, _drop])
def test_leaving_a_stream_frees_every_block(tiny: gemmantle.Engine, leave: Callable[[Any], None]) -> None:
    stream = tiny.client().completions.create(stream=True, **LONG)
    next(stream)
    leave(stream)
    del stream
    gc.collect()
    assert_all_free(tiny)
    assert tiny.stats()["generated_tokens"] < 3 * 3000


def test_a_cancelled_task_and_a_deadline_free_every_block(tiny: gemmantle.Engine) -> None:
    async def main() -> None:
        client = tiny.async_client()
        task = asyncio.create_task(client.completions.create(**LONG))
        while tiny.stats()["generated_tokens"] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert_all_free(tiny)
    with pytest.raises(openai.APITimeoutError):
        tiny.client(timeout=0.02).completions.create(**LONG)
    assert_all_free(tiny)
    assert tiny.stats()["generated_tokens"] < 2 * 3 * 3000


def test_cancelling_a_background_answer_frees_every_block(engine: gemmantle.Engine) -> None:
    responses = engine.client().responses
    extra = {"ignore_eos": True}
    answer = responses.create(model=MODEL, input="Hi", background=True, max_output_tokens=3000, extra_body=extra)
    responses.cancel(answer.id)
    assert_all_free(engine)


def test_closing_the_engine_ends_what_runs(tiny: gemmantle.Engine) -> None:
    stream = tiny.client().completions.create(stream=True, **LONG)
    next(stream)
    tiny.close()
    with pytest.raises(openai.APIError, match="closed"):
        list(stream)


# -- the queue


def test_who_finds_no_place_in_time_is_told_before_its_stream_begins() -> None:
    with gemmantle.load(MODEL, device="cpu", max_concurrency=1, max_queue_ms=20) as engine:
        client = engine.client(max_retries=0)
        fields: dict[str, Any] = {"model": MODEL, "prompt": "Once", "extra_body": {"ignore_eos": True}}
        with client.completions.create(stream=True, max_tokens=4000, **fields) as busy:
            next(busy)
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError, match="20 ms") as caught:
                    client.completions.create(stream=stream, max_tokens=2, **fields)
                assert caught.value.code == "engine_busy"
                assert int(caught.value.response.headers["retry-after-ms"]) > 0

            async def ask() -> None:
                with pytest.raises(openai.RateLimitError):
                    await engine.async_client(max_retries=0).completions.create(stream=True, max_tokens=2, **fields)

            asyncio.run(ask())
        text = "".join(
            c.choices[0].text for c in client.completions.create(stream=True, max_tokens=5, seed=1, **fields)
        )
        [native] = engine.generate([{"prompt": "Once", "max_tokens": 5, "seed": 1, "ignore_eos": True}])
        assert text == native.text
        assert engine.stats()["max_queue_ms"] == 20


def test_the_time_between_two_chunks_is_the_callers_to_set() -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    ask |= {"max_completion_tokens": 60, "extra_body": {"ignore_eos": True}}
    with gemmantle.load(MODEL, device="cpu", stream_interval_ms=300) as engine, engine.client() as client:
        whole = client.chat.completions.create(**ask).choices[0].message.content
        started = time.monotonic()
        chunks = [c for c in client.chat.completions.create(stream=True, **ask) if c.choices]
        most = 4 + (time.monotonic() - started) / 0.3  # the role, the first token, one an interval, the end
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert len(chunks) <= most


@pytest.mark.parametrize("limits", [{"max_queue": 1}, {"max_queue_ms": 1}])
def test_bulk_work_waits_where_the_queue_is_short(limits: dict[str, int]) -> None:
    requests = [{"prompt": f"Number {n}", "max_tokens": 6, "seed": n, "ignore_eos": True} for n in range(30)]
    items = [(f"Number {n}", " and so on") for n in range(30)]
    with gemmantle.load(MODEL, device="cpu") as engine:
        results, scores = list(engine.generate(requests)), engine.score(items)
    with gemmantle.load(MODEL, device="cpu", max_concurrency=2, **limits) as engine:
        stream = engine.client().completions.create(model=MODEL, prompt="Once", max_tokens=50, stream=True)
        assert [result.ids for result in engine.generate(requests)] == [result.ids for result in results]
        assert engine.score(items) == scores
        stream.close()


# -- several models


def test_models_of_a_pool_take_turns_and_no_stream_is_cut() -> None:
    if not (TINY / "config.json").is_file():
        pytest.skip(f"no golden checkpoint in {TINY}")
    with gemmantle.pool([MODEL, str(TINY)], max_resident=1, device="cpu") as pool:
        client = pool.client()
        fields: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
        whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=300, **fields).choices[0]
        with client.completions.create(model=MODEL, prompt="Once", max_tokens=300, stream=True, **fields) as stream:
            ids = list(next(stream).choices[0].token_ids)  # type: ignore[attr-defined]
            other = []
            thread = threading.Thread(
                target=lambda: other.append(
                    client.completions.create(model="e2b", prompt=[2, 5], max_tokens=3, **fields)
                )
            )
            thread.start()
            for chunk in stream:
                ids += chunk.choices[0].token_ids  # type: ignore[attr-defined]
        thread.join()
        assert ids == whole.token_ids  # type: ignore[attr-defined]
        assert [reply.model for reply in other] == ["e2b"]
        assert [engine.name for engine in pool.engines] == ["e2b"]
        again = client.completions.create(model=MODEL, prompt="Once", max_tokens=300, **fields).choices[0]
        assert again.text == whole.text
        assert [engine.name for engine in pool.engines] == [MODEL]


# -- memory

CYCLES = """
import gemmantle
def rss():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024
prompts = [{"prompt": [2] + [5 + (i * 7 + j) % 900 for j in range(500)], "max_tokens": 4} for i in range(3)]
levels = []
for cycle in range(20):
    engine = gemmantle.load("gemma-4-nano-e", device="cpu")
    before = rss()
    assert len(list(engine.generate(prompts))) == 3
    used = rss() - before
    stream = engine.client().completions.create(model=engine.name, prompt="Once", max_tokens=500, stream=True)
    next(stream)
    engine.close()
    stream.close()
    levels.append(rss())
    assert used > 2, f"a cycle touches {used} MiB: twenty of them would not show"
print(*(round(level - levels[0], 1) for level in levels))
assert max(levels[1:]) - levels[0] <= 16, levels
"""


def test_closing_gives_memory_back_twenty_times() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", CYCLES], env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_the_budget_of_the_cache_is_kept_and_reported() -> None:
    with gemmantle.load(MODEL, device="cpu") as engine:
        auto = engine.info()["kv"]
        assert auto["budget_bytes"] >= auto["bytes"] > 0
        assert (auto["max_context"], auto["max_concurrency"]) == (4096, 16)
    with gemmantle.load(MODEL, device="cpu", kv_budget=auto["bytes"] // 4) as engine:
        small = engine.info()["kv"]
        assert small["budget_bytes"] == auto["bytes"] // 4
        assert auto["bytes"] // 8 < small["bytes"] <= small["budget_bytes"]
        assert small["max_context"] == 4096
        assert engine.stats()["kv_budget"] == small["budget_bytes"]
    with gemmantle.load(MODEL, device="cpu", kv_budget=auto["bytes"] // 64) as engine:
        assert 16 <= engine.info()["max_context"] < 4096
    with pytest.raises(gemmantle.OutOfMemory, match="set max_context to"):
        gemmantle.load(MODEL, device="cpu", kv_budget=auto["bytes"] // 64, max_context=4096)
