"""A-2: the stream helpers of the SDK accept our streams, and the pieces sum to the plain answer (C-2, C-4)."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
from json_prefix import is_prefix_of_json
from proxy_engine import Proxy

from gemmantle.errors import DeviceError

MODEL = "gemma-4-nano-e"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SUM = [{"role": "user", "content": "What is 23 + 45?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": CITY}}


class Capital(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=12)


def helped(client, **fields):
    """The events and the final completion of the helper, beside the plain answer of the same request."""
    fields = {"model": MODEL, "seed": 5, **fields}
    with client.chat.completions.stream(**fields) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    return events, final


def plain(client, **fields):
    return client.chat.completions.create(**{"model": MODEL, "seed": 5, **fields})


def messages_of(completion):
    """What was said, without the ids of calls."""
    found = []
    for choice in completion.choices:
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        thoughts = getattr(choice.message, "reasoning", None)
        found.append((choice.index, choice.finish_reason, choice.message.content or "", thoughts, calls))
    return found


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"messages": FRANCE}, id="text"),
        pytest.param({"messages": SUM, "reasoning_effort": "high"}, id="thoughts"),
        pytest.param({"messages": FRANCE, "n": 3}, id="three choices"),
        pytest.param({"messages": FRANCE, "n": 3, "temperature": 0}, id="three equal choices"),
        pytest.param({"messages": FRANCE, "logprobs": True, "top_logprobs": 2}, id="log-probabilities"),
    ],
)
def test_a02_c04_text_thoughts_and_choices(client, fields):
    events, final = helped(client, **fields)
    expected = plain(client, **fields)
    assert messages_of(final) == messages_of(expected)
    told = {}
    for event in events:
        for choice in event.chunk.choices if event.type == "chunk" else ():
            told[choice.index] = told.get(choice.index, "") + (choice.delta.content or "")
    assert list(told.items()) == [(choice.index, choice.message.content) for choice in expected.choices]
    if "logprobs" in fields:
        assert final.choices[0].logprobs.content == expected.choices[0].logprobs.content


@pytest.mark.parametrize("count", [1, 3])
def test_a02_c02_calls(client, count):
    pytest.importorskip("llguidance")
    opener = 7  # <|tool_call>: liked so much that one call follows another
    fields = {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "temperature": 0,
        "parallel_tool_calls": count > 1,
        "logit_bias": {str(opener): 100},
    }
    if count > 1:
        fields["max_completion_tokens"] = enough_for(client, count, fields)
    events, final = helped(client, **fields)
    calls = final.choices[0].message.tool_calls
    assert len(calls) == count
    assert len({call.id for call in calls}) == count
    assert final.choices[0].finish_reason == "tool_calls"
    assert messages_of(final) == messages_of(plain(client, **fields))
    for event in events:
        if event.type == "tool_calls.function.arguments.delta":
            assert is_prefix_of_json(event.arguments)
    assert all(set(json.loads(call.function.arguments)) == {"city"} for call in calls)


def enough_for(client, count, fields):
    """The least limit under which so many calls are whole."""
    for limit in range(10, 400, 2):
        answer = plain(client, **fields, max_completion_tokens=limit)
        if len(answer.choices[0].message.tool_calls or ()) == count:
            return limit
    raise AssertionError("the calls never came")


def test_a02_a_schema(client):
    pytest.importorskip("llguidance")
    events, final = helped(client, messages=FRANCE, response_format=Capital, temperature=0)
    parsed = final.choices[0].message.parsed
    assert isinstance(parsed, Capital)
    [done] = [event for event in events if event.type == "content.done"]
    assert done.parsed == parsed
    assert final.choices[0].message.content.endswith("}")


def test_a02_cut_by_the_limit(client):
    with client.chat.completions.stream(model=MODEL, messages=FRANCE, max_completion_tokens=3) as stream:
        list(stream)
        with pytest.raises(openai.LengthFinishReasonError) as caught:
            stream.get_final_completion()
    assert caught.value.completion.choices[0].finish_reason == "length"
    assert plain(client, messages=FRANCE, max_completion_tokens=3).choices[0].finish_reason == "length"


def test_a02_c03_a_failure_in_the_middle(ways, engine):
    client = ways.client(Proxy(engine, fail=DeviceError("the device went away")))
    long = {"temperature": 0, "max_completion_tokens": 3000, "extra_body": {"ignore_eos": True}}
    seen = []
    with (
        pytest.raises(openai.APIError, match="the device went away"),
        client.chat.completions.stream(model=MODEL, messages=FRANCE, **long) as stream,
    ):
        seen.extend(stream)
    assert seen[0].type == "chunk"
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=FRANCE, stream=True, **long
    ) as response:
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "device_error"
    assert "data: [DONE]" not in lines
