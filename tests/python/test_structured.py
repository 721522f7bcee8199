"""Grammars from outside: random weights must speak valid JSON, valid calls, and think no longer than they may."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import re
import sys
import threading

import numpy as np
import openai
import pydantic
import pytest
from json_prefix import is_prefix_of_json
from random_speaker import GOLDEN, LETTERS, make_speaker

import gemmantle
from gemmantle import _core
from gemmantle.chat.call_stream import CallStream
from gemmantle.errors import RequestError
from gemmantle.json_schema import read_schema

jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
pytest.importorskip("llguidance", reason="grammars need the extra: pip install 'gemmantle[structured]'")

LONGER = ["th", "ou", '":', '",', "}}"]
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Random weights over printable characters and a few longer pieces."""
    folder = make_speaker(tmp_path_factory, [*LETTERS, *LONGER])
    with gemmantle.load(folder, device="cpu", max_context=2048) as loaded:
        yield loaded


# Random weights seldom close a string: what closes something is made likelier.
CLOSERS = ['"', "}", "]", ",", '",', "}}", '<|"|>', "<tool_call|>"]


def fields_for(engine, **fields):
    special = {piece: token for token in range(256) if (piece := engine.token_bytes(token).decode()) in CLOSERS}
    body = {
        "model": engine.name,
        "messages": USER,
        "temperature": 1.5,
        "max_completion_tokens": 400,
        "logit_bias": {str(token): 3 for token in special.values()},
        **fields,
    }
    body["extra_body"] = {"top_k": 0, "top_p": 1, **fields.get("extra_body", {})}
    return body


def ask(engine, **fields):
    return engine.client(max_retries=0).chat.completions.create(**fields_for(engine, **fields))


def schema_format(schema, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": strict, "schema": schema}}


def test_streamed_and_plain_documents_are_the_same(speaker):
    fields = {"response_format": {"type": "json_object"}, "seed": 4, "max_completion_tokens": 60}
    plain = ask(speaker, **fields).choices[0]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(speaker, stream=True, **fields))
    assert streamed == plain.message.content
    assert plain.message.content.startswith("{")


def test_a_document_ends_at_its_last_brace(speaker):
    schema = {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"], "additionalProperties": False}
    for seed in range(5):
        choice = ask(speaker, response_format=schema_format(schema), seed=seed).choices[0]
        assert (choice.message.content, choice.finish_reason) == ('{"k":1}', "stop")


def test_blanks_in_json_are_a_pattern_beside_either_field(speaker):
    schema = {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"], "additionalProperties": False}
    blank = {"whitespace_pattern": "[ ]"}
    for fields in (
        {"response_format": schema_format(schema), "extra_body": {"structured_outputs": blank}},
        {"extra_body": {"structured_outputs": {"json": schema, **blank}}},
    ):
        texts = [ask(speaker, seed=seed, **fields).choices[0].message.content for seed in range(4)]
        assert all(json.loads(text) == {"k": 1} for text in texts)
        assert any(" " in text for text in texts)
    with pytest.raises(openai.BadRequestError, match="whitespace_pattern"):
        ask(
            speaker, response_format=schema_format(schema), extra_body={"structured_outputs": {"whitespace_pattern": 3}}
        )
    with pytest.raises(openai.BadRequestError, match="both constrain"):
        ask(speaker, response_format=schema_format(schema), extra_body={"structured_outputs": {"regex": "a"}})


def test_the_sdk_parses_into_pydantic(speaker):
    class Reply(pydantic.BaseModel):
        kind: str = pydantic.Field(max_length=4)
        count: int = pydantic.Field(ge=0, le=50)
        more: list[bool] = pydantic.Field(max_length=2)

    client = speaker.client(max_retries=0)
    parsed = client.chat.completions.parse(**fields_for(speaker, response_format=Reply, seed=3)).choices[0].message
    assert isinstance(parsed.parsed, Reply)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**fields_for(speaker, response_format=Reply, seed=3, max_completion_tokens=3))


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"guided_regex": "[ab]{3}/x"}, r"[ab]{3}/x\Z"),
        ({"structured_outputs": {"choice": ["yes", 'no "q"']}}, r'(yes|no "q")\Z'),
        ({"grammar": 'start: "a" B\nB: /[0-9]{2}/'}, r"a[0-9]{2}\Z"),
        ({"guided_grammar": 'root ::= "yes" | "no" [0-9]'}, r"(yes|no[0-9])\Z"),
        ({"structured_outputs": {"json": {"enum": [1, "x"]}}}, r'(1|"x")\Z'),
    ],
)
def test_extension_formats_hold(speaker, extra, wanted):
    for seed in range(4):
        text = ask(speaker, seed=seed, extra_body=extra).choices[0].message.content
        assert re.match(wanted, text), text
    completion = speaker.client().completions.create(
        model=speaker.name, prompt="ab", max_tokens=20, seed=1, extra_body=extra
    )
    assert re.match(wanted, completion.choices[0].text), completion.choices[0].text


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F", None]},
        "spots": {"type": "array", "items": {"type": "string", "pattern": "^[ab]+$"}, "minItems": 1, "maxItems": 2},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["city", "spots"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "strict": True, "parameters": WEATHER}},
    {
        "type": "function",
        "function": {"name": "look-up", "parameters": {"type": "object", "properties": {"q": {"type": "integer"}}}},
    },
]
NAMED = {"type": "function", "function": {"name": "weather"}}


def check_call(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        jsonschema.validate(arguments, WEATHER)
    else:
        assert call.function.name == "look-up"
        assert set(arguments) <= {"q"}


@pytest.mark.parametrize("seed", range(4))
def test_forced_calls_parse_and_strict_arguments_are_valid(speaker, seed):
    choice = ask(speaker, tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) == 1
    check_call(choice.message.tool_calls[0])
    [call] = ask(speaker, tools=TOOLS, tool_choice=NAMED, seed=seed).choices[0].message.tool_calls
    assert call.function.name == "weather"
    check_call(call)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    for call in ask(speaker, tools=TOOLS, tool_choice=allowed, seed=seed).choices[0].message.tool_calls:
        assert call.function.name == "weather"
        check_call(call)


@pytest.mark.parametrize("seed", range(3))
def test_c2_streamed_arguments_are_json_prefixes_and_sum_to_the_plain_call(speaker, seed):
    fields = {"tools": TOOLS, "tool_choice": NAMED, "seed": seed}
    [plain] = ask(speaker, **fields).choices[0].message.tool_calls
    text, pieces, names = "", 0, []
    for chunk in ask(speaker, stream=True, **fields):
        for part in chunk.choices[0].delta.tool_calls or ():
            names += [part.function.name] if part.function.name else []
            pieces += bool(part.function.arguments)
            text += part.function.arguments or ""
            assert text == "" or is_prefix_of_json(text), text
    assert text == plain.function.arguments
    assert names == ["weather"]
    assert pieces > 1


def test_a_reply_under_a_schema_may_call_instead(speaker):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}
    seen = set()
    for seed in range(12):
        choice = ask(speaker, tools=TOOLS, response_format=schema_format(schema), seed=seed).choices[0]
        seen.add(choice.finish_reason)
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls:
                check_call(call)
        elif choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content), schema)
    assert seen & {"tool_calls", "stop"}


def thought_of(choice):
    return getattr(choice.message, "reasoning", None) or ""


@pytest.mark.parametrize("seed", range(3))
def test_thoughts_run_free_within_their_budget_and_the_document_follows(speaker, seed):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    opener = speaker.profile.thought_open[0]
    brace = next(token for token in range(256) if speaker.token_bytes(token) == b"{")
    answer = ask(
        speaker,
        response_format=schema_format(schema),
        seed=seed,
        max_completion_tokens=100,
        logit_bias={str(opener): 100, str(brace): -100},
        reasoning_effort="low",
        extra_body={"thinking_token_budget": 30, "return_details": True},
    )
    [choice] = answer.choices
    jsonschema.validate(json.loads(choice.message.content), schema)
    assert thought_of(choice)
    close = len(speaker.profile.thought_end)
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 30 + close
    if answer.usage.completion_tokens_details.reasoning_tokens == 30 + close:
        assert choice.reasoning_truncated


@pytest.mark.parametrize(("limit", "most"), [(40, 30), (2000, 128)])
def test_c18_c19_a_level_is_a_budget_that_leaves_room_for_the_answer(speaker, limit, most):
    opener = speaker.profile.thought_open[0]
    close = speaker.profile.thought_end[-1]
    answer = ask(
        speaker,
        seed=1,
        max_completion_tokens=limit,
        reasoning_effort="minimal",
        logit_bias={str(opener): 0, str(close): -100},
        extra_body={"return_details": True, "stop_token_ids": [], "guided_regex": "[a-f]{3}"},
    )
    assert answer.usage.completion_tokens_details.reasoning_tokens <= most + 2
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_schemas_that_are_not_strict_lose_keywords_and_say_so(speaker):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 1}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = ask(speaker, response_format=schema_format(schema, strict=False), seed=1)
    assert "a" in json.loads(answer.choices[0].message.content)
    assert "#/properties/a/uniqueItems" in answer.schema_warnings[0]
    with pytest.raises(openai.BadRequestError, match=r"'#/properties/a/uniqueItems'"):
        ask(speaker, response_format=schema_format(schema))


def test_async_and_sync_replies_are_the_same_and_run_side_by_side(speaker):
    fields = {"response_format": {"type": "json_object"}, "max_completion_tokens": 40}
    sync = [ask(speaker, seed=seed, **fields).choices[0].message.content for seed in range(6)]

    async def all_of():
        client = speaker.async_client(max_retries=0)
        calls = [client.chat.completions.create(**fields_for(speaker, seed=seed, **fields)) for seed in range(6)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert asyncio.run(all_of()) == sync


def test_a_reader_that_stops_reading_holds_up_nobody(speaker):
    fields = {"response_format": {"type": "json_object"}, "max_completion_tokens": 60}
    idle = [ask(speaker, stream=True, seed=seed, **fields) for seed in range(20)]  # more than run at once
    for stream in idle[:5]:
        next(stream)
    done = threading.Event()

    def others():
        for seed in range(3):
            ask(speaker, seed=seed, max_completion_tokens=30)
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    assert done.wait(60)
    thread.join()
    rest = "".join(chunk.choices[0].delta.content or "" for chunk in idle[7])
    assert rest == ask(speaker, seed=7, **fields).choices[0].message.content
    for stream in idle:
        stream.close()


def test_bulk_requests_are_constrained_too(speaker):
    special = {str(token): 3 for token in range(256) if speaker.token_bytes(token).decode() in CLOSERS}
    requests = [
        {"messages": USER, "tools": TOOLS, "tool_choice": NAMED, "seed": seed, "logit_bias": special, "top_k": 0,
         "max_tokens": 400, "parallel_tool_calls": False}
        for seed in range(8)
    ]  # fmt: skip
    for result in speaker.generate(requests):
        assert result.finish_reason == "tool_calls"
        jsonschema.validate(result.tool_calls[0].arguments, WEATHER)


SMALL = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "k": {"const": 1}},
    "required": ["a", "k"],
    "additionalProperties": False,
}
FUNCTIONS = [{"type": "function", **tool["function"]} for tool in TOOLS]
ONE_FUNCTION = {"type": "function", "name": "weather"}


def respond(engine, **fields):
    body = fields_for(engine, **fields)
    body["input"] = body.pop("messages")
    body["max_output_tokens"] = body.pop("max_completion_tokens")
    body["extra_body"].update(logit_bias=body.pop("logit_bias"), seed=body.pop("seed", 0))
    return engine.client(max_retries=0).responses.create(**body)


def test_responses_hold_their_text_format(speaker):
    form = {"type": "json_schema", "name": "reply", "strict": True, "schema": SMALL}
    answer = respond(speaker, text={"format": form}, seed=2)
    jsonschema.validate(json.loads(answer.output_text), SMALL)
    assert answer.text.format.type == "json_schema"
    queued = respond(speaker, text={"format": form}, seed=2, background=True)
    *_, last = speaker.client().responses.retrieve(queued.id, stream=True)
    assert last.response.output_text == answer.output_text
    assert respond(speaker, text={"format": {"type": "json_object"}}, max_completion_tokens=9).output_text[0] == "{"
    with pytest.raises(openai.BadRequestError) as caught:
        respond(speaker, text={"format": {**form, "schema": {"type": "strnig"}}})
    assert (caught.value.code, caught.value.param) == ("invalid_json_schema", "text.format.schema")
    with pytest.raises(openai.BadRequestError) as caught:
        respond(speaker, tools=FUNCTIONS, tool_choice={"type": "function", "name": "wether"})
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("seed", range(3))
def test_responses_stream_a_forced_call_as_it_grows(speaker, seed):
    fields = {"tools": FUNCTIONS, "tool_choice": ONE_FUNCTION, "seed": seed}
    [plain] = respond(speaker, **fields).output
    assert (plain.type, plain.name, plain.status) == ("function_call", "weather", "completed")
    jsonschema.validate(json.loads(plain.arguments), WEATHER)
    events = list(respond(speaker, stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == plain.arguments
    assert len(deltas) > 1
    items = [event for event in events if event.type.startswith("response.output_item.")]
    assert [event.type.rpartition(".")[2] for event in items] == ["added", "done"]
    assert items[1].item.status == "completed"


def test_a_call_cut_by_the_limit_is_incomplete_and_no_part_of_the_next_turn(speaker):
    cut = respond(speaker, tools=FUNCTIONS, tool_choice=ONE_FUNCTION, max_completion_tokens=24)
    assert cut.status == "incomplete"
    assert [(item.type, item.status) for item in cut.output] == [("function_call", "incomplete")]
    after = respond(speaker, tools=FUNCTIONS, previous_response_id=cut.id, max_completion_tokens=3)
    assert after.output


def test_without_the_library_the_extra_to_install_is_named(speaker, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(speaker.words, "_structured", None)
    with pytest.raises(openai.BadRequestError, match=r"gemmantle\[structured\]") as caught:
        ask(speaker, response_format={"type": "json_object"})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")


def test_grammars_are_kept(speaker):
    compiler = speaker.structured()
    form = importlib.import_module("gemmantle.structured").Format("json", {"type": "integer"}, "x")
    assert compiler.compile(form).matcher is compiler.compile(form).matcher


def test_call_text_becomes_the_same_json_in_every_cut():
    text = 'call:f.g{a:<|"|>x"\\\n<|{},:<|"|>,b:[1,-2.5e3,{},<|"|><|"|>],Ä:{c:true,d:null}}'
    wanted = {"a": 'x"\\\n<|{},:', "b": [1, -2.5e3, {}, ""], "Ä": {"c": True, "d": None}}
    seed = 11
    rng = random.Random(seed)
    for _ in range(300):
        stream, written, at = CallStream(), "", 0
        while at < len(text):
            step = rng.randint(1, 7)
            written += stream.feed(text[at : at + step])
            at += step
            assert written == "" or is_prefix_of_json(written), (seed, written)
        assert stream.ended
        assert stream.name == "f.g"
        assert json.loads(written) == wanted


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"properties": {"a/b": {"not": {}}}}, "#/properties/a~1b/not"),
        ({"anyOf": [{}, {"if": {}}]}, "#/anyOf/1/if"),
        ({"items": [{}]}, "#/items"),
        ({"items": {"multipleOf": 2}}, "#/items/multipleOf"),
        ({"$ref": "#/$defs/none"}, "#/$ref"),
        ({"$ref": "http://x"}, "#/$ref"),
        ({"required": "a"}, "#/required"),
        ({"minLength": -1}, "#/minLength"),
        ({"enum": []}, "#/enum"),
        ({"maximum": "3"}, "#/maximum"),
        ({"unheardOf": 1}, "#/unheardOf"),
        ({"$defs": {"x": {"contains": {}}}}, "#/$defs/x/contains"),
        ({"type": "string", "format": "regex"}, "#/format"),
    ],
)
def test_a_fault_in_a_schema_has_its_pointer(schema, pointer):
    with pytest.raises(RequestError, match=f"at '{pointer.replace('$', '[$]')}'") as caught:
        read_schema(schema, strict=True, param="schema")
    assert caught.value.code == "invalid_json_schema"


def test_nullable_is_rewritten_and_what_describes_is_dropped():
    read = read_schema({"type": "integer", "nullable": True, "title": "x", "format": "int32"}, strict=True, param="s")
    assert read.schema == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert read_schema({"const": None}, strict=True, param="s").schema == {"const": None}


def test_masks_through_the_native_module():
    model = _core.Model.load(str(GOLDEN), device="cpu")
    engine = _core.Engine(model, eos_ids=[1])
    size = int(model.config()["vocab_size"])
    generation = engine.submit(np.array([2, 5], np.int32), _core.SamplingParams(constrained=True, max_tokens=3))
    assert generation.next(0.02) is None
    for token, dtype in ((7, np.int32), (31, np.uint32), (64, np.int32)):
        mask = np.zeros((size + 31) // 32, np.uint32)
        mask[token // 32] = 1 << (token % 32)
        generation.allow(mask.view(dtype))
        mask[:] = 0  # it was copied
        delta = generation.next(60)
        assert [entry.id for entry in delta.tokens] == [token]
        assert delta.awaits_mask is (token != 64)
    with pytest.raises(RequestError, match="words") as caught:
        generation.allow(np.zeros(1, np.int32))
    assert caught.value.param == "mask"
    with pytest.raises(TypeError, match="int32"):
        generation.allow(np.zeros((size + 31) // 32, np.float32))
    empty = engine.submit(np.array([2], np.int32), _core.SamplingParams(constrained=True))
    empty.allow(np.zeros((size + 31) // 32, np.int32))
    with pytest.raises(RequestError, match="no token may be drawn"):
        empty.next(60)
    waiting = engine.submit(np.array([2], np.int32), _core.SamplingParams(constrained=True))
    engine.close()
    with pytest.raises(gemmantle.errors.EngineClosed):
        waiting.next(60)
