"""A-1: what the SDK's own examples do, unchanged, on every way in; and both families of HTTP libraries."""

from __future__ import annotations

import json

import pydantic
import pytest

MODEL = "gemma-4-nano-e"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
THERE = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a01_create(client):
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == THERE
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_a01_stream(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert text_of(chunks) == THERE
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1


def test_a01_parse(client):
    pytest.importorskip("llguidance")

    class Sum(pydantic.BaseModel):
        total: int

    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "What is 12 + 30?"}], response_format=Sum, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Sum)


def test_a01_raw_and_streaming_responses(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=FRANCE, temperature=0)
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-gemmantle-arm"] == "local"
    assert raw.headers["x-gemmantle-model"] == MODEL
    assert raw.parse().choices[0].message.content == THERE
    streaming = client.chat.completions.with_streaming_response
    with streaming.create(model=MODEL, messages=FRANCE, temperature=0, stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(pieces) == THERE


def test_a01_a_tool_loop(client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert "sunny" in second.choices[0].message.content


def test_a01_responses(client):
    answer = client.responses.create(model=MODEL, input=FRANCE[0]["content"], temperature=0)
    assert answer.output_text == THERE
    assert client.responses.retrieve(answer.id).output_text == THERE
    follow = client.responses.create(
        model=MODEL, input="Thank you.", previous_response_id=answer.id, temperature=0, max_output_tokens=4
    )
    assert follow.usage.input_tokens > answer.usage.input_tokens
    kinds = [event.type for event in client.responses.create(model=MODEL, input="Hi", stream=True)]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


def test_a01_completions_and_models(client):
    answer = client.completions.create(model=MODEL, prompt="The capital of", max_tokens=3, temperature=0)
    assert answer.usage.completion_tokens == 3
    stream = client.completions.create(model=MODEL, prompt="The capital of", max_tokens=3, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_a01_both_families_of_http_clients(engine, family):
    http = pytest.importorskip(family)
    with http.Client(transport=engine.transport(family=family)) as bare:
        reply = bare.post(
            "http://local.invalid/v1/chat/completions", json={"model": MODEL, "messages": FRANCE, "temperature": 0}
        )
    assert reply.json()["choices"][0]["message"]["content"] == THERE
    assert isinstance(engine.transport(family=family), http.BaseTransport)
