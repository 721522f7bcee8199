"""The handler without any HTTP library: every field of the tables, every error, and the exact shape of streams."""

from __future__ import annotations

import json

import pytest
from fake_engine import CALL, HELLO, FakeEngine, content

from gemmantle.api.problems import Problem, problem_of
from gemmantle.api.protocol import Request
from gemmantle.api.stream import Pace
from gemmantle.client import handler_for
from gemmantle.errors import CorruptFile, ModelNotFound, RequestError

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def call(engine, path="/v1/chat/completions", method="POST", raw=None, **fields):
    """Status, headers and body (bytes) of one request."""
    default = {"model": "fake", **({"messages": USER} if "chat" in path else {})}
    body = raw if raw is not None else json.dumps({**default, **fields}).encode()
    reply = handler_for(engine).handle(Request(method, path, {}, body))
    text = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
    return reply.status, dict(reply.headers), text


def error_of(engine, **request):
    status, headers, body = call(engine, **request)
    assert headers["x-should-retry"] in ("true", "false")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error


TOOLS = [{"type": "function", "function": {"name": "f"}}]


def strict_schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}}


CHAT_WRONG = [
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": True}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": 1.5}, "invalid_value", "top_p"),
    ({"top_k": -2}, "invalid_value", "top_k"),
    ({"topK": 1.5}, "invalid_value", "topK"),
    ({"min_p": 2}, "invalid_value", "min_p"),
    ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
    ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
    ({"frequency_penalty": -3}, "invalid_value", "frequency_penalty"),
    ({"logit_bias": [1]}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias.x"),
    ({"logit_bias": {"4000": 1}}, "invalid_value", "logit_bias.4000"),
    ({"logit_bias": {"4": 101}}, "invalid_value", "logit_bias.4"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 129}, "invalid_value", "n"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"seed": 0.5}, "invalid_value", "seed"),
    ({"stop": ["a"] * 17}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": [1]}, "invalid_value", "stop"),
    ({"stop_token_ids": [4000]}, "invalid_value", "stop_token_ids[0]"),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_completion_tokens"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"logprobs": 1}, "invalid_value", "logprobs"),
    ({"stream": 1}, "invalid_value", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x"),
    ({"model": 5}, "invalid_value", "model"),
    ({"model": None}, "missing_required_parameter", "model"),
    ({"messages": None}, "missing_required_parameter", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "Hi"}, "invalid_value", "messages"),
    ({"messages": ["Hi"]}, "invalid_value", "messages[0]"),
    ({"messages": [{"role": "robot", "content": ""}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "rol": 1}]}, "unknown_parameter", "messages[0].rol"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "unsupported_content_type",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_value", "messages[0].content[0].text"),
    (
        {"messages": [*USER, {"role": "tool", "tool_call_id": "call_x", "content": "1"}]},
        "invalid_value",
        "messages[1].tool_call_id",
    ),
    ({"messages": [*USER, {"role": "tool", "content": "1"}]}, "invalid_value", "messages[1].tool_call_id"),
    ({"tools": {}}, "invalid_value", "tools"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "unsupported_tool", "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "invalid_value", "tools[0].function"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
        "invalid_value",
        "tools[0].function.strict",
    ),
    ({"tools": TOOLS, "tool_choice": "required"}, "unsupported_value", "tools"),  # no markers in this vocabulary
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "invalid_value", "tool_choice.function"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}},
        "invalid_value",
        "tool_choice.function",
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "no", "tools": []}}},
        "invalid_value",
        "tool_choice.allowed_tools.mode",
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        "invalid_value",
        "tool_choice.allowed_tools.tools",
    ),
    ({"tool_choice": "maybe"}, "invalid_value", "tool_choice"),
    ({"reasoning_effort": "some"}, "invalid_value", "reasoning_effort"),
    ({"think": "much"}, "invalid_value", "think"),
    ({"thinking_token_budget": -2}, "invalid_value", "thinking_token_budget"),
    ({"chat_template_kwargs": {"other": 1}}, "unsupported_parameter", "chat_template_kwargs.other"),
    (
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
        "invalid_value",
        "chat_template_kwargs.enable_thinking",
    ),
    ({"response_format": "json"}, "invalid_value", "response_format"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
    (strict_schema({"uniqueItems": True}), "invalid_json_schema", "response_format.json_schema.schema"),
    (strict_schema({"type": "strnig"}), "invalid_json_schema", "response_format.json_schema.schema"),
    (strict_schema({"pattern": "a(?=b)"}), "invalid_json_schema", "response_format.json_schema.schema"),
    (strict_schema({"type": "object"}) | {"min_tokens": 3}, "unsupported_value", "min_tokens"),
    (strict_schema({"type": "object"}) | {"ignore_eos": True}, "unsupported_value", "ignore_eos"),
    (strict_schema({"type": "object"}) | {"guided_regex": "a"}, "invalid_value", "guided_regex"),
    ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "invalid_value", "structured_outputs"),
    ({"structured_outputs": {"xml": "a"}}, "unknown_parameter", "structured_outputs.xml"),
    ({"structured_outputs": {"json": "{"}}, "invalid_value", "structured_outputs.json"),
    ({"guided_choice": []}, "invalid_value", "guided_choice"),
    ({"guided_regex": "("}, "invalid_value", "guided_regex"),
    ({"grammar": "start: ("}, "invalid_value", "grammar"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"wholly_unknown": None}, "unknown_parameter", "wholly_unknown"),
]


@pytest.mark.parametrize(("fields", "code", "param"), CHAT_WRONG)
def test_a_wrong_chat_field_is_named(fields, code, param):
    engine = FakeEngine(HELLO)
    status, error = error_of(engine, **fields)
    assert (status, error["code"], error["param"]) == (400, code, param), error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.submitted == []


REFUSED = {
    "prompt_cache_options": {}, "verbosity": "low", "prediction": {}, "moderation": {}, "web_search_options": {},
    "modalities": ["text", "audio"], "audio": {}, "repetition_window": 5, "repeat_last_n": 5, "bad_words": ["x"],
    "logprobs_mode": "processed", "documents": [{}], "cache_salt": "s", "cache_prompt": False, "priority": 1,
    "image_token_budget": 70, "max_soft_tokens": 70, "fallback": "allow", "use_beam_search": True,
    "length_penalty": 1, "logits_processors": [], "id_slot": 0, "samplers": [], "mirostat": 1, "mirostat_tau": 1,
    "dry_multiplier": 1, "xtc_threshold": 1, "typical_p": 1, "echo": True,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a24_a_field_that_is_not_honoured_is_refused_by_name(name):
    status, error = error_of(FakeEngine(HELLO), **{name: REFUSED[name]})
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", name)
    assert ": " in error["message"]  # a remedy follows


NEUTRAL = {
    "user": "me", "safety_identifier": "x", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
    "verbosity": "medium", "modalities": ["text"], "response_format": {"type": "text"}, "n": 1, "logit_bias": None,
    "skip_special_tokens": False, "spaces_between_special_tokens": True, "cache_prompt": True, "priority": 0,
    "thinking_token_budget": -1, "fallback": "never", "tools": [], "tool_choice": "auto", "stop": None,
    "continue_final_message": False, "add_generation_prompt": True, "functions": None, "include_reasoning": True,
    "prompt_cache_key": "k", "prompt_cache_retention": "24h",
    "logprobs_mode": "raw", "bad_words": [], "top_k": -1, "seed": -5, "temperature": 0, "max_tokens": 7.0,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_value_that_asks_for_nothing_passes(name):
    status, _, body = call(FakeEngine(HELLO), **{name: NEUTRAL[name]})
    assert status == 200, body


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "minimal"}, True),
        ({"reasoning_effort": "high", "thinking_token_budget": 0}, False),
        ({"think": "max"}, True),
        ({"enable_thinking": True}, True),
        ({"think": "high"}, True),
        ({"think": False, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, True),
    ],
)
def test_the_switch_for_thoughts_reaches_the_template(fields, thinks):
    engine = FakeEngine(HELLO)
    assert call(engine, **fields)[0] == 200
    assert ("<|think|>" in engine.prompts[0].text) is thinks


@pytest.mark.parametrize("unpaired", ['"\\ud800"', '"a\\udfffb"'])
def test_half_characters_in_a_request_are_refused(unpaired):
    raw = f'{{"model":"fake","messages":[{{"role":"user","content":{unpaired}}}]}}'.encode()
    status, error = error_of(FakeEngine(HELLO), raw=raw)
    assert (status, error["code"]) == (400, "invalid_value")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(raw):
    status, error = error_of(FakeEngine(HELLO), raw=raw)
    assert status == 400
    assert error["code"] == "invalid_value"


def test_a_body_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr("gemmantle.api.schemas.MAX_BODY_BYTES", 10)
    assert error_of(FakeEngine(HELLO))[0] == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages", 404, "completion_not_found"),
        ("POST", "/v1/images/generations", 404, "unknown_url"),
        ("POST", "/", 404, "unknown_url"),
        ("POST", "/v1/v1/completions", 404, "unknown_url"),
    ],
)
def test_routes_that_are_not_there(method, path, status, code):
    found, error = error_of(FakeEngine(HELLO), path=path, method=method)
    assert (found, error["code"]) == (status, code)


COMPLETION_WRONG = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": 5}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": [[]]}, "invalid_value", "prompt"),
    ({"prompt": ["a", 1]}, "invalid_value", "prompt"),
    ({"prompt": [4000]}, "invalid_value", "prompt[0]"),
    ({"prompt": [[1], [-1]]}, "invalid_value", "prompt[1][0]"),
    ({"prompt": "a", "logprobs": 21}, "invalid_value", "logprobs"),
    ({"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
    ({"prompt": "a", "best_of": 2}, "unsupported_value", "best_of"),
    ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "unsupported_value", "echo"),
    ({"prompt": "a", "messages": USER}, "unknown_parameter", "messages"),
    ({"prompt": "x" * 3000}, "context_length_exceeded", "prompt"),
]


@pytest.mark.parametrize(("fields", "code", "param"), COMPLETION_WRONG)
def test_a_wrong_completion_field_is_named(fields, code, param):
    status, error = error_of(FakeEngine(HELLO), path="/v1/completions", **fields)
    assert (status, error["code"], error["param"]) == (400, code, param), error["message"]


def test_text_is_refused_without_a_tokenizer_and_ids_are_not():
    engine = FakeEngine(HELLO, has_tokenizer=False, missing_tokenizer="no tokenizer.model in /x")
    status, error = error_of(engine, path="/v1/completions", prompt="a")
    assert (status, error["param"], error["message"]) == (400, "prompt", "no tokenizer.model in /x")
    assert error_of(engine)[1]["message"] == "no tokenizer.model in /x"
    assert call(engine, path="/v1/completions", prompt=[5, 6])[0] == 200


def test_a_streamed_body_is_events_with_compact_json_and_an_end_marker():
    _, headers, body = call(FakeEngine(content("a\n", "ü")), stream=True)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    events = body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    for event in events[:-2]:
        assert event.startswith(b"data: {")
        assert b"\n" not in event
    first = json.loads(events[0][6:])
    assert first["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": "a"},
        "logprobs": None,
        "finish_reason": None,
    }
    last = json.loads(events[-3][6:])
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "ü".encode() in body


def test_a_streamed_call_opens_with_empty_arguments():
    _, _, body = call(FakeEngine(CALL), stream=True, tools=[TOOL])
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in body.split(b"\n\n")[:-2]]
    opening = deltas[0]["tool_calls"][0]
    assert (opening["index"], opening["type"], opening["function"]["arguments"]) == (0, "function", "")
    assert list(deltas[1]) == ["tool_calls"]
    assert json.loads(deltas[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "days": 2}
    assert deltas[2] == {}


def test_the_sum_of_a_stream_is_the_plain_answer():
    script = [("thought", "a\n"), ("thought", "b\n"), *content("\n x", " \n", " y "), *CALL, *content("z")]
    plain = json.loads(call(FakeEngine(script))[2])["choices"][0]["message"]
    for one_by_one in (True, False):
        body = call(FakeEngine(script, one_by_one=one_by_one), stream=True)[2]
        deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in body.split(b"\n\n")[:-2]]
        assert "".join(delta.get("content", "") for delta in deltas) == plain["content"]
        assert "".join(delta.get("reasoning", "") for delta in deltas) == plain["reasoning"]
        pieces = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", [])]
        assert "".join(pieces) == plain["tool_calls"][0]["function"]["arguments"]


def test_logprobs_of_bytes_are_lossless():
    engine = FakeEngine(content("x"))
    engine.token_bytes = lambda token_id: b"\xe2\x82"
    body = json.loads(call(engine, logprobs=True, top_logprobs=1)[2])
    top = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
    assert top["token"] == "\\xe2\\x82"
    assert top["bytes"] == [0xE2, 0x82]


def test_many_streams_are_merged_more():
    pace = Pace()
    assert pace.gap_s() == 0.0
    for _ in range(200):
        pace.enter()
    assert pace.gap_s() == pytest.approx(0.08)
    for _ in range(800):
        pace.enter()
    assert pace.gap_s() == 0.1


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (ModelNotFound("x"), 404, "model_not_found"),
        (CorruptFile("x"), 500, "corrupt_file"),
        (RequestError("x", code="engine_busy"), 429, "engine_busy"),
        (RecursionError(), 400, "invalid_value"),
        (MemoryError(), 503, "insufficient_memory"),
        (KeyError("x"), 500, "internal_error"),
    ],
)
def test_exceptions_have_their_status(exc, status, code):
    problem = problem_of(exc)
    assert (problem.status, problem.code) == (status, code)


def test_a_bug_is_logged_under_the_id_in_its_message(caplog):
    problem = problem_of(KeyError("x"))
    assert problem.message.split(":")[0].split()[-1] in caplog.text


def test_retries_are_told_by_headers():
    assert dict(Problem("engine_busy", "x").headers()) == {"x-should-retry": "true", "retry-after-ms": "500"}
    assert dict(Problem("invalid_value", "x").headers()) == {"x-should-retry": "false"}
