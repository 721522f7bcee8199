"""A-3: the events of /responses in the order of the contract, numbered without gaps, on every way in.

Sequences of scripts equal golden files; those of the embedded model must be sentences of the grammar of the contract.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from response_events import events_of, steady

from gemmantle.errors import DeviceError

MODEL = "gemma-4-nano-e"
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "responses"
ORDER = re.compile(
    "created (queued )?in_progress "
    "((item\\+ part\\+ (thought )+thought\\. part\\. item\\. )"
    "|(item\\+ part\\+ (text )*text\\. part\\. item\\. )"
    "|(item\\+ (args )+args\\. item\\. ))*"
    "(completed|incomplete|failed) "
)
SHORT = {
    "response.created": "created",
    "response.queued": "queued",
    "response.in_progress": "in_progress",
    "response.output_item.added": "item+",
    "response.output_item.done": "item.",
    "response.content_part.added": "part+",
    "response.content_part.done": "part.",
    "response.reasoning_text.delta": "thought",
    "response.reasoning_text.done": "thought.",
    "response.output_text.delta": "text",
    "response.output_text.done": "text.",
    "response.function_call_arguments.delta": "args",
    "response.function_call_arguments.done": "args.",
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def raw_events(client, **fields):
    with client.responses.with_streaming_response.create(**fields) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in b"".join(response.iter_bytes()).split(b"\n\n") if not line.startswith(b":")]
    return events_of(b"\n\n".join(lines))


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.json")))
def test_a03_events_equal_the_golden_sequence(ways, name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    script = [DeviceError(step) if isinstance(step, str) else tuple(step) for step in golden["script"]]
    client = ways.client(FakeEngine(script))
    assert steady(raw_events(client, model="", input="", extra_body=golden["request"])) == golden["events"]


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        pytest.param({"input": "What is the capital of France?"}, "completed", id="text"),
        pytest.param({"input": "What is 23 + 45?", "reasoning": {"effort": "high"}}, "completed", id="thoughts"),
        pytest.param({"input": "What is the weather in Paris?", "tools": [WEATHER]}, "completed", id="call"),
        pytest.param({"input": "What is the capital of France?", "max_output_tokens": 3}, "incomplete", id="cut"),
        pytest.param({"input": "What is the capital of France?", "background": True}, "completed", id="background"),
    ],
)
def test_a03_s01_s03_the_embedded_models_events_are_in_order(client, fields, ends):
    events = raw_events(client, model=MODEL, stream=True, temperature=0, **fields)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    sequence = "".join(SHORT[event["type"]] + " " for event in events)
    assert ORDER.fullmatch(sequence), sequence
    last = events[-1]["response"]
    assert last["status"] == ends
    assert last["usage"]["output_tokens"] > 0
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["output"] == done
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == list(
        range(len(done))
    )
    assert (done[-1]["status"] == "completed") == (ends == "completed")
    for index, item in enumerate(done):
        pieces = [
            event["delta"] for event in events if event["type"].endswith(".delta") and event["output_index"] == index
        ]
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(pieces) == whole
        assert {event["item_id"] for event in events if event.get("output_index") == index and "item_id" in event} == {
            item["id"]
        }


def test_a03_the_helper_of_the_sdk_reads_them(client):
    with client.responses.stream(
        model=MODEL, input="What is 23 + 45?", reasoning={"effort": "high"}, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.usage.output_tokens_details.reasoning_tokens > 0
