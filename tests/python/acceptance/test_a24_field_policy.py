"""A-24: a field that is not honoured is a 400 that names it; a field that is not known suggests the nearest one."""

from __future__ import annotations

import openai
import pytest

import gemmantle

MODEL = "gemma-4-nano-e"
CHAT_REFUSED = {
    "verbosity": "high", "prediction": {"type": "content", "content": "x"}, "moderation": {}, "web_search_options": {},
    "modalities": ["text", "audio"], "audio": {"voice": "x", "format": "wav"}, "use_beam_search": True,
    "length_penalty": 1.5, "logits_processors": ["x"], "id_slot": 1, "samplers": ["top_k"], "mirostat": 2,
    "dry_multiplier": 0.5, "xtc_probability": 0.5, "typical_p": 0.9, "echo": True, "documents": [{"text": "x"}],
    "bad_words": ["x"], "cache_salt": "x", "logprobs_mode": "processed", "repetition_window": 8,
}  # fmt: skip
RESPONSES_REFUSED = {
    "conversation": "conv_1", "prompt": {"id": "x"}, "context_management": [], "moderation": {}, "access_programs": [],
    "image": {},
}  # fmt: skip
TYPOS = {
    "temprature": "temperature",
    "max_complet_tokens": "max_completion_tokens",
    "streem": "stream",
    "respose_format": "response_format",
    "parallel_tool_call": "parallel_tool_calls",
}


def refused(client, path, body):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(path, cast_to=object, body={"model": MODEL, **body})
    return caught.value


@pytest.mark.parametrize("name", sorted(CHAT_REFUSED))
def test_a24_chat_refuses_by_name(client, name):
    error = refused(
        client, "/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], name: CHAT_REFUSED[name]}
    )
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"`{name}` is not supported: " in str(error)


@pytest.mark.parametrize("name", sorted(RESPONSES_REFUSED))
def test_a24_responses_refuse_by_name(client, name):
    error = refused(client, "/responses", {"input": "Hi", name: RESPONSES_REFUSED[name]})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_a24_completions_refuse_what_belongs_to_conversations(client):
    for name, value in {"suffix": "x", "store": True, "functions": [{"name": "f"}], "documents": [{}]}.items():
        error = refused(client, "/completions", {"prompt": "Hi", name: value})
        assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", sorted(TYPOS))
def test_a24_an_unknown_field_suggests_the_nearest(client, name):
    error = refused(client, "/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], name: 1})
    assert (error.param, error.code) == (name, "unknown_parameter")
    assert f"`{TYPOS[name]}`" in str(error)


def test_a24_r01_unknown_fields_are_reported_where_the_engine_was_told_to(ways):
    with gemmantle.load(MODEL, unknown_fields="report") as engine:
        raw = ways.client(engine).chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_completion_tokens=1,
            extra_body={"colour": "red"},
        )
        assert raw.headers["x-gemmantle-ignored"] == '["colour"]'
        assert raw.parse().ignored_parameters == ["colour"]
