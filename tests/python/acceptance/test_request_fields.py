"""Fields beyond the usual ones, on every way in: tiers, functions of old, prompt log-probabilities, prefills."""

from __future__ import annotations

import math

import openai
import pytest

MODEL = "gemma-4-nano-e"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
THERE = "The capital of France is Paris."
FUNCTION = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def chat(client, **fields):
    return client.chat.completions.create(**{"model": MODEL, "messages": FRANCE, "temperature": 0, **fields})


@pytest.mark.parametrize(
    ("asked", "applied"),
    [("auto", "default"), ("default", "default"), ("priority", "priority"), ("flex", "flex"), ("scale", "default")],
)
def test_the_tier_that_was_applied_is_told(client, asked, applied):
    assert chat(client, service_tier=asked, max_completion_tokens=1).service_tier == applied
    assert client.responses.create(
        model=MODEL, input="Hi", max_output_tokens=1, service_tier=asked
    ).service_tier == applied  # fmt: skip


def test_the_details_say_how_long_the_request_waited(client):
    for timings in (
        chat(client, extra_body={"return_details": True}).timings,
        client.responses.create(model=MODEL, input="Hi", extra_body={"return_details": True}).timings,
        list(chat(client, stream=True, extra_body={"return_details": True}))[-1].timings,
    ):
        assert timings["queue_ms"] >= 0
        assert timings["prompt_ms"] >= 0


def test_a_tier_that_is_none_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, service_tier="gold")
    assert caught.value.param == "service_tier"


def test_functions_of_old_are_called_and_answered_in_the_old_shape(client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields = {"model": MODEL, "functions": [FUNCTION], "temperature": 0}
    first = client.chat.completions.create(messages=messages, **fields)
    assert first.choices[0].finish_reason == "function_call"
    assert first.choices[0].message.tool_calls is None
    call = first.choices[0].message.function_call
    assert (call.name, call.arguments) == ("get_weather", '{"city":"Paris"}')
    messages += [first.choices[0].message, {"role": "function", "name": "get_weather", "content": "sunny"}]
    second = client.chat.completions.create(messages=messages, **fields)
    assert "sunny" in second.choices[0].message.content


def test_functions_of_old_are_streamed(client):
    pytest.importorskip("llguidance")
    stream = client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        functions=[FUNCTION],
        function_call={"name": "get_weather"},
        temperature=0,
        stream=True,
    )
    names, arguments, ends = [], "", []
    for chunk in stream:
        part = chunk.choices[0].delta.function_call
        names += [part.name] if part is not None and part.name else []
        arguments += part.arguments if part is not None and part.arguments else ""
        ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert names == ["get_weather"]
    assert arguments.startswith('{"city":"')
    assert ends == ["function_call"]


def test_faults_of_functions_are_named_as_they_were_sent(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, functions=[{"name": "f", "parameters": 5}])
    assert caught.value.param == "functions[0].parameters"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, functions=[FUNCTION], function_call={"name": "other"})
    assert caught.value.param == "function_call"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, functions=[FUNCTION], tools=[])
    assert caught.value.param == "functions"


def test_prompt_log_probabilities(client, engine):
    answer = chat(client, max_completion_tokens=1, extra_body={"prompt_logprobs": 2, "return_token_ids": True})
    ids, entries = answer.prompt_token_ids, answer.prompt_logprobs
    assert len(entries) == len(ids)
    assert entries[0] is None
    logits = engine.logits(ids)
    for position, entry in enumerate(entries[1:], start=1):
        own = entry[str(ids[position])]
        row = logits[position - 1].astype("float64")
        expected = row[ids[position]] - row.max() - math.log(math.fsum(map(math.exp, row - row.max())))
        assert own["logprob"] == pytest.approx(expected, abs=1e-3)
        ranks = sorted(other["rank"] for other in entry.values() if other["rank"] is not None)
        assert ranks == [1, 2]
        assert 2 <= len(entry) <= 3
    several = client.completions.create(
        model=MODEL, prompt=["ab", "cd"], max_tokens=1, extra_body={"prompt_logprobs": 0, "return_token_ids": True}
    )
    for choice in several.choices:
        assert [None, *choice.prompt_token_ids[1:]] == [
            entry if entry is None else int(next(iter(entry))) for entry in choice.prompt_logprobs
        ]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, stream=True, extra_body={"prompt_logprobs": 1})
    assert caught.value.param == "prompt_logprobs"


def test_a_prompt_is_shortened_only_when_asked(client):
    fields = {"prompt": [5] * 5000, "max_tokens": 1, "model": MODEL}
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**fields)
    answer = client.completions.create(**fields, extra_body={"truncate_prompt_tokens": 100})
    assert answer.usage.prompt_tokens == 100
    kept = chat(client, max_completion_tokens=1, extra_body={"truncate_prompt_tokens": 8, "return_token_ids": True})
    whole = chat(client, max_completion_tokens=1, extra_body={"return_token_ids": True})
    assert kept.prompt_token_ids == whole.prompt_token_ids[:1] + whole.prompt_token_ids[-7:]


def test_the_last_message_is_continued(client):
    begun = [*FRANCE, {"role": "assistant", "content": "The capital of France "}]
    answer = chat(client, messages=begun, extra_body={"continue_final_message": True})
    assert "The capital of France " + answer.choices[0].message.content == THERE
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body={"continue_final_message": True})
    assert caught.value.param == "continue_final_message"


def test_control_strings_count_only_where_they_are_allowed(client):
    messages = [{"role": "user", "content": "a<turn|>b"}]
    extra = {"return_token_ids": True}
    plain = chat(client, messages=messages, max_completion_tokens=1, extra_body=extra).prompt_token_ids
    read = chat(
        client, messages=messages, max_completion_tokens=1, extra_body={**extra, "allow_special_tokens": True}
    ).prompt_token_ids
    end = 16  # <turn|>
    assert (plain.count(end), read.count(end)) == (1, 2)


def test_only_allowed_tokens_are_said(client):
    allowed = [100, 101, 102]
    answer = chat(
        client,
        max_completion_tokens=5,
        temperature=1,
        extra_body={"allowed_token_ids": allowed, "return_token_ids": True},
    )
    assert set(answer.choices[0].token_ids) <= set(allowed)
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body={"allowed_token_ids": [2]})  # <bos>, which no answer holds
    assert caught.value.param == "allowed_token_ids"


@pytest.mark.parametrize("stream", [False, True])
def test_a_format_that_no_reply_can_begin_is_refused_before_the_stream(client, stream):
    pytest.importorskip("llguidance")
    with pytest.raises(openai.BadRequestError, match="no reply can begin"):
        chat(client, stream=stream, extra_body={"structured_outputs": {"grammar": "start: <[2]> /a/"}})
    with pytest.raises(openai.BadRequestError, match="no reply can begin"):
        chat(client, stream=stream, response_format={"type": "json_object"}, extra_body={"allowed_token_ids": [100]})


def test_thoughts_under_both_names(client):
    asked = {"messages": [{"role": "user", "content": "What is 23 + 45?"}], "reasoning_effort": "high"}
    plain = chat(client, **asked, extra_body={"reasoning_field": "both"}).choices[0].message
    assert plain.reasoning == plain.reasoning_content != ""
    pieces = ""
    for chunk in chat(client, **asked, stream=True, extra_body={"reasoning_field": "both"}):
        pieces += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
    assert pieces == plain.reasoning


def test_a_shown_schema_is_in_the_prompt(client):
    pytest.importorskip("llguidance")
    form = {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    hidden = chat(client, extra_body={"structured_outputs": form})
    shown = chat(client, extra_body={"structured_outputs": {**form, "show_schema": True}})
    assert shown.usage.prompt_tokens > hidden.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body={"structured_outputs": {"regex": "a", "show_schema": True}})
    assert caught.value.param == "structured_outputs.show_schema"


def test_the_vocabulary_is_told(client, engine):
    found = client.get("/tokenizer_info", cast_to=object)
    assert (found["model"], found["vocabulary"]) == (MODEL, 1536)
    assert found["special_tokens"]["<turn|>"] in found["eos_token_ids"]
    assert found["bos_token_id"] == engine.bos_id
    assert client.get(f"/tokenizer_info?model={MODEL}", cast_to=object) == found
    with pytest.raises(openai.NotFoundError):
        client.get("/tokenizer_info?model=none", cast_to=object)


def test_words_are_counted_natively(engine):
    assert engine.count_tokens("Hello there") == len(engine.tokenize("Hello there")) + 1
    assert engine.count_tokens(FRANCE) == len(engine.render(FRANCE).ids())
