"""A-8: a stream that nobody reads stands still, is cancelled after the idle time, and harms nobody."""

from __future__ import annotations

import time

import openai
import pytest
from serving import serving

import gemmantle
from gemmantle.options import Settings

MODEL = "gemma-4-nano-e"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
# An answer that says something until it is cut, for it draws no control token, and says much of it, so that the
# system's buffers for a connection fill.
LONG = {
    "max_completion_tokens": 4000,
    "logit_bias": {str(control): -100 for control in range(24)},
    "logprobs": True,
    "top_logprobs": 5,
}
BUFFER = 64  # tokens; the usual 4,096 are as many as the embedded model's context
CONNECTION = 4096  # bytes; by itself the system holds megabytes


@pytest.fixture
def engine(monkeypatch):
    native = Settings.native
    monkeypatch.setattr(Settings, "native", lambda settings: {**native(settings), "stream_buffer": BUFFER})
    with gemmantle.load(MODEL, idle_stream_timeout=0.5) as loaded:
        yield loaded


@pytest.fixture
def client(ways, engine):
    if ways.door == "in_process":
        yield ways.client(engine)
        return
    with serving(engine, send_buffer=CONNECTION) as door:
        yield ways.client_at(door.url)


def test_a08_an_abandoned_stream_is_freed_and_others_go_on(client, engine):
    stream = client.chat.completions.create(model=MODEL, messages=FRANCE, stream=True, **LONG)
    assert next(stream).choices
    answered = 0
    end = time.monotonic() + 60
    while engine.stats()["running"] and time.monotonic() < end:
        answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        answered += answer.usage.completion_tokens
    stats = engine.stats()
    assert answered > 0
    assert stats["running"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]
    assert stats["generated_tokens"] - answered < LONG["max_completion_tokens"]
    with pytest.raises(openai.APIError, match="cancelled"):
        list(stream)


def test_a08_a_slow_reader_gets_all_of_it(client):
    """The reader rests for less than the idle time, and the stream stands still meanwhile."""
    stream = client.chat.completions.create(
        model=MODEL, messages=FRANCE, stream=True, **{**LONG, "max_completion_tokens": 300}
    )
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        time.sleep(0.1 if len(chunks) <= 5 else 0)
    assert chunks[-1].choices[0].finish_reason == "length"
