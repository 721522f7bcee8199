"""/responses through the SDK: items, events in order (A-3), state, background, and what is refused (A-24)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
from fake_engine import CALL, HELLO, HOLD, FakeEngine, content

from gemmantle.api.background import state_at
from gemmantle.api.items import packed
from gemmantle.api.store import MemoryStore, Record, SqliteStore
from gemmantle.client import OpenAI, async_client_for, client_for
from gemmantle.errors import DeviceError, EngineClosed

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "strict": False,
}
THINK_TALK_CALL = [("thought", "hm"), ("thought", " ok"), *content("Look", " here. "), *CALL]


def ask(engine, **fields):
    return client_for(engine, max_retries=0).responses.create(**{"model": "fake", "input": "Hi", **fields})


def until(condition, seconds=20.0):
    """Wait for another thread; the limit is there for a test that fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@contextlib.contextmanager
def releasing(engine):
    """Held generations go on, whenever they come to where they wait."""
    done = threading.Event()

    def run():
        while not done.wait(0.005):
            engine.release()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def refused(fields, engine=None, **options):
    body = {"model": "fake", "input": "Hi", **fields}
    client = client_for(engine or FakeEngine(HELLO), max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(model="", input="", extra_body=body, **options)
    return caught.value


# -- answers


def test_a_plain_answer_has_items_usage_and_the_settings_that_took_effect():
    engine = FakeEngine(THINK_TALK_CALL)
    answer = ask(engine, tools=[WEATHER], instructions="Be brief", temperature=0.5, metadata={"a": "b"}, user="me")
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    thought, message, call = answer.output
    assert thought.content[0].text == "hm ok"
    assert thought.summary == []
    assert message.content[0].text == answer.output_text == "Look here."
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris", "days": 2})
    assert [item.id.split("_")[0] for item in answer.output] == ["rs", "msg", "fc"]
    assert call.call_id.startswith("call_")
    assert {item.status for item in answer.output} == {"completed"}
    assert answer.status == "completed"
    assert answer.object == "response"
    assert answer.id.startswith("resp_")
    assert answer.completed_at >= answer.created_at
    assert (answer.error, answer.incomplete_details) == (None, None)
    assert answer.usage.output_tokens_details.reasoning_tokens == 2
    assert answer.usage.input_tokens == len(engine.submitted[0][0])
    assert answer.usage.input_tokens_details.model_dump(include={"cached_tokens", "cache_write_tokens"}) == {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
    }
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.instructions == "Be brief"
    assert (answer.temperature, answer.top_p, answer.metadata, answer.user) == (0.5, 0.95, {"a": "b"}, "me")
    assert (answer.store, answer.background, answer.truncation) == (True, False, "disabled")
    assert answer.tools[0].name == "get_weather"
    assert answer._request_id.startswith("req_")
    assert "Be brief" in engine.prompts[0].text


def test_the_body_has_no_output_text():
    raw = client_for(FakeEngine(HELLO)).responses.with_raw_response.create(model="fake", input="Hi")
    assert "output_text" not in json.loads(raw.text() if callable(raw.text) else raw.text)
    assert raw.headers["x-gemmantle-arm"] == "local"


@pytest.mark.parametrize(
    "script", [HELLO, THINK_TALK_CALL, [*CALL, *CALL], [], [("thought", "x"), *content("a\n\n", "b")]]
)
def test_merged_events_say_the_same_as_the_plain_answer(script):
    plain = ask(FakeEngine(script), tools=[WEATHER]).output
    for one_by_one in (True, False):
        stream = ask(FakeEngine(script, one_by_one=one_by_one), tools=[WEATHER], stream=True)
        events = list(stream)
        streamed = events[-1].response.output
        assert [item.model_dump(exclude={"id", "call_id"}) for item in streamed] == [
            item.model_dump(exclude={"id", "call_id"}) for item in plain
        ]
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == "".join(item.content[0].text for item in plain if item.type == "message")


def test_the_first_events_come_before_the_first_token():
    engine = FakeEngine([HOLD, *HELLO])
    stream = ask(engine, stream=True)
    assert next(stream).type == "response.created"
    assert next(stream).type == "response.in_progress"
    engine.release()
    assert [event.type for event in stream][-1] == "response.completed"


def test_the_stream_helper_accumulates():
    client = client_for(FakeEngine(THINK_TALK_CALL))
    with client.responses.stream(model="fake", input="Hi", tools=[WEATHER]) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "Look here."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_parse_without_a_format_works():
    assert client_for(FakeEngine(HELLO)).responses.parse(model="fake", input="Hi").output_text == "Hello, world!"


def test_the_limit_ends_an_answer_as_incomplete():
    answer = ask(FakeEngine(HELLO), max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert (answer.output_text, answer.max_output_tokens) == ("Hello", 2)


def test_a_whole_call_stays_whole_where_the_limit_cuts_what_follows():
    answer = ask(FakeEngine([*CALL, *content("and", " more")]), tools=[WEATHER], max_output_tokens=3)
    assert answer.status == "incomplete"
    assert [(item.type, item.status) for item in answer.output] == [
        ("function_call", "completed"),
        ("message", "incomplete"),
    ]


def test_a_failure_before_the_first_byte_is_an_http_error_and_after_it_an_event():
    with pytest.raises(openai.InternalServerError):
        ask(FakeEngine([*content("one"), DeviceError("lost")]))
    last = list(ask(FakeEngine([*content("one"), DeviceError("lost")]), stream=True))[-1]
    assert last.type == "response.failed"
    assert (last.response.error.code, last.response.error.message) == ("server_error", "lost")
    assert last.response.output[0].status == "incomplete"


def test_a_stream_that_is_left_frees_its_request():
    engine = FakeEngine([*content("one"), HOLD])
    with ask(engine, stream=True) as stream:
        assert [next(stream).type for _ in range(5)][-1] == "response.output_text.delta"
    assert engine.cancelled == 1


def test_logprobs_come_when_included_and_only_then():
    entry = ask(FakeEngine(HELLO), include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0]
    assert [token.token for token in entry.logprobs] == ["Hel", "lo", ", ", "wor", "ld", "!"]
    assert len(entry.logprobs[0].top_logprobs) == 2
    assert ask(FakeEngine(HELLO), top_logprobs=2).output[0].content[0].logprobs == []


def test_extension_fields_reach_the_engine():
    extra = {"top_k": 7, "min_p": 0.25, "seed": 5, "stop": ["x"], "return_token_ids": True, "return_details": True}
    engine = FakeEngine(HELLO)
    answer = ask(engine, extra_body=extra)
    sampling = engine.submitted[0][1]
    assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.stop) == (7, 0.25, 5, ["x"])
    assert answer.sampling["seed"] == 5
    assert len(answer.token_ids) == 7
    assert answer.served_by["arm"] == "local"


def test_effort_summary_and_hidden_thoughts():
    engine = FakeEngine([("thought", "hm"), *content("ok")])
    answer = ask(engine, reasoning={"effort": "high", "summary": "auto"})
    assert engine.prompts[0].text.count("<|think|>") == 1
    assert (answer.reasoning.effort, answer.reasoning.summary, answer.output[0].summary) == ("high", "auto", [])
    verbatim = ask(engine, extra_body={"reasoning_summary": "verbatim"})
    assert verbatim.output[0].summary[0].text == "hm"
    hidden = ask(engine, extra_body={"include_reasoning": False})
    assert [item.type for item in hidden.output] == ["message"]
    assert hidden.usage.output_tokens_details.reasoning_tokens == 1


def test_calls_beyond_max_tool_calls_are_ignored():
    answer = ask(FakeEngine([*CALL, *CALL, *CALL]), tools=[WEATHER], max_tool_calls=2)
    assert [item.type for item in answer.output] == ["function_call"] * 2
    engine = FakeEngine(CALL)
    ask(engine, tools=[WEATHER], tool_choice="none", parallel_tool_calls=False)
    assert 48 in engine.submitted[0][1].suppress
    assert engine.submitted[0][1].single_call


# -- items in


def test_a_tool_loop_without_state_sends_the_items_back():
    engine = FakeEngine(THINK_TALK_CALL)
    first = ask(engine, tools=[WEATHER], store=False, include=["reasoning.encrypted_content"])
    call = first.output[2]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    ask(engine, tools=[WEATHER], input=[{"role": "user", "content": "Hi"}, *first.output, output], store=False)
    text = engine.prompts[-1].text
    assert "<|channel>thought\nhm ok\n<channel|>" in text
    assert 'call:get_weather{city:<|"|>Paris<|"|>,days:2}' in text
    assert 'value:<|"|>sunny<|"|>' in text


def test_a_packed_thought_comes_back_as_text():
    engine = FakeEngine(HELLO)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": packed("secret 𝄞")},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    ask(engine, input=items, tools=[WEATHER])
    assert "secret 𝄞" in engine.prompts[-1].text
    assert (
        refused({"input": [{"type": "reasoning", "encrypted_content": "AAAA"}]}).param == "input[0].encrypted_content"
    )


def test_an_item_reference_finds_a_stored_item():
    engine = FakeEngine(HELLO)
    first = ask(engine)
    again = [
        {"role": "user", "content": "Hi"},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "More"},
    ]
    ask(engine, input=again)
    assert "Hello, world!" in engine.prompts[-1].text
    error = refused({"input": [{"type": "item_reference", "id": "msg_none"}]})
    assert (error.status_code, error.param) == (400, "input[0].id")


# -- state


def test_a_chain_replays_items_but_not_instructions():
    engine = FakeEngine(HELLO)
    client = client_for(engine)
    first = client.responses.create(model="fake", input="One", instructions="Speak Latin")
    second = client.responses.create(model="fake", input="Two", previous_response_id=first.id)
    third = client_for(FakeEngine(HELLO)).responses.create(model="fake", input="Three", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    engine.script = content("x")
    client.responses.create(model="fake", input="Four", previous_response_id=third.id)
    text = engine.prompts[-1].text
    assert "Latin" not in text
    assert [text.count(word) for word in ("One", "Two", "Three", "Four", "Hello, world!")] == [1, 1, 1, 1, 3]
    assert text.index("One") < text.index("Two") < text.index("Three") < text.index("Four")


def test_stored_responses_are_found_listed_and_deleted():
    client = client_for(FakeEngine(HELLO))
    made = client.responses.create(model="fake", input=[{"role": "user", "content": f"m{k}"} for k in range(5)])
    assert client.responses.retrieve(made.id).model_dump() == made.model_dump()
    pages = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert [item.content[0].text for item in pages] == [f"m{k}" for k in range(5)]
    newest = client.responses.input_items.list(made.id, limit=2)
    assert [item.content[0].text for item in newest.data] == ["m4", "m3"]
    assert newest.has_more
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as caught:
            call(made.id)
        assert caught.value.code == "response_not_found"
    error = refused({"previous_response_id": made.id})
    assert (error.status_code, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")


def test_nothing_is_kept_where_store_is_false():
    client = client_for(FakeEngine(HELLO))
    made = client.responses.create(model="fake", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    assert made.store is False


def record(number, size=0):
    return Record(
        {"id": f"resp_{number}", "output": [], "status": "completed"}, [{"id": f"msg_{number}", "x": "x" * size}]
    )


def test_the_memory_store_forgets_what_was_not_used_longest():
    store = MemoryStore(max_responses=3)
    for number in range(3):
        store.put(record(number))
    assert store.get("resp_0") is not None
    store.put(record(3))
    assert [number for number in range(4) if store.get(f"resp_{number}")] == [0, 2, 3]
    assert store.find_item("msg_1") is None
    assert store.find_item("msg_2") == {"id": "msg_2", "x": ""}
    small = MemoryStore(max_bytes=1000)
    for number in range(3):
        small.put(record(number, 400))
    assert [number for number in range(3) if small.get(f"resp_{number}")] == [1, 2]


def test_a_file_keeps_responses_for_the_next_process(tmp_path):
    path = tmp_path / "state.db"
    script = (
        "import sys; from fake_engine import *; from gemmantle.client import client_for\n"
        "engine = FakeEngine(HELLO); engine.state_path = sys.argv[1]; client = client_for(engine)\n"
        "print(client.responses.create(model='fake', input='Remember the heron').id)\n"
        "engine.script = [HOLD]\n"
        "print(client.responses.create(model='fake', input='Wait', background=True).id, flush=True)\n"
        "import os; os._exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 9, run.stderr
    done, unfinished = run.stdout.split()
    assert path.stat().st_mode & 0o077 == 0
    engine = FakeEngine(HELLO)
    engine.state_path = str(path)
    client = client_for(engine)
    assert client.responses.retrieve(done).output_text == "Hello, world!"
    failed = client.responses.retrieve(unfinished)
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    client.responses.create(model="fake", input="What bird?", previous_response_id=done)
    assert "heron" in engine.prompts[-1].text
    client.responses.delete(done)
    assert SqliteStore(str(path)).get(done) is None


def test_a_state_path_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("just some notes, long enough to be no database at all" * 20)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        OpenAI(state_path=path)
    with pytest.raises(ValueError, match="cannot be opened"):
        OpenAI(state_path=tmp_path / "absent" / "state.db")
    assert path.read_text().startswith("just")


def test_both_clients_of_a_process_share_a_file(tmp_path):
    engine = FakeEngine(HELLO)
    engine.state_path = str(tmp_path / "state.db")
    name = client_for(engine).responses.create(model="fake", input="Hi").id
    assert OpenAI(state_path=tmp_path / "state.db").responses.retrieve(name).output_text == "Hello, world!"
    with pytest.raises(openai.NotFoundError):
        client_for(FakeEngine(HELLO)).responses.retrieve(name)


# -- background


def test_a_background_answer_is_polled():
    engine = FakeEngine([HOLD, *HELLO])
    client = client_for(engine)
    queued = client.responses.create(model="fake", input="Hi", background=True)
    assert (queued.status, queued.output, queued.background) == ("queued", [], True)
    assert client.responses.retrieve(queued.id).status in ("queued", "in_progress")
    error = refused({"previous_response_id": queued.id}, engine)
    assert "has not ended yet" in error.message
    engine.release()
    until(lambda: client.responses.retrieve(queued.id).status == "completed")
    assert client.responses.retrieve(queued.id).output_text == "Hello, world!"


def test_a_background_stream_is_resumed_from_any_event():
    engine = FakeEngine([*content("one", " two"), HOLD, *content(" three")])
    client = client_for(engine)
    seen = []
    with client.responses.create(model="fake", input="Hi", background=True, stream=True) as stream:
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    name = seen[0].response.id
    assert engine.cancelled == 0
    rest = client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number)
    with releasing(engine):
        seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].response.output_text == "one two three"
    until(lambda: state_at(None).job(name) is None)
    again = list(client.responses.retrieve(name, stream=True))
    assert [event.model_dump() for event in again] == [event.model_dump() for event in seen]
    with client.responses.stream(response_id=name, starting_after=4) as stream:
        assert [event.sequence_number for event in stream] == list(range(5, len(seen)))


def test_a_background_answer_is_cancelled_once_and_for_all():
    engine = FakeEngine([*content("one"), HOLD])
    client = client_for(engine)
    name = client.responses.create(model="fake", input="Hi", background=True).id
    stream = client.responses.retrieve(name, stream=True)
    until(lambda: next(stream).type == "response.output_text.delta")
    cancelled = client.responses.cancel(name)
    assert cancelled.status == client.responses.cancel(name).status == "cancelled"
    assert (cancelled.output[0].status, cancelled.output_text) == ("incomplete", "one")
    assert engine.cancelled == 1
    last = list(stream)[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "cancelled")
    until(lambda: state_at(None).job(name) is None)
    assert client.responses.retrieve(name).status == "cancelled"


def test_what_has_ended_or_never_ran_in_the_background_cannot_be_cancelled():
    client = client_for(FakeEngine(HELLO), max_retries=0)
    name = client.responses.create(model="fake", input="Hi").id
    with pytest.raises(openai.ConflictError) as caught:
        client.responses.cancel(name)
    assert caught.value.code == "response_not_cancellable"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.retrieve(name, stream=True)
    assert caught.value.param == "stream"


def test_an_engine_that_closes_fails_its_background_answers():
    client = client_for(FakeEngine([*content("one"), EngineClosed("engine closed")]))
    name = client.responses.create(model="fake", input="Hi", background=True).id
    until(lambda: client.responses.retrieve(name).status == "failed")
    error = client.responses.retrieve(name).error
    assert (error.code, error.message) == ("server_error", "engine closed")


def test_deleting_a_running_answer_cancels_it():
    engine = FakeEngine([HOLD])
    client = client_for(engine)
    name = client.responses.create(model="fake", input="Hi", background=True).id
    client.responses.delete(name)
    assert engine.cancelled == 1
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(name)


def test_many_background_answers_share_one_thread():
    engine = FakeEngine([*content("one"), HOLD, *content(" two")])
    client = client_for(engine)
    names = [client.responses.create(model="fake", input=f"{k}", background=True).id for k in range(20)]
    assert [thread.name for thread in threading.enumerate()].count("gemmantle-background") == 1
    with releasing(engine):
        for name in names:
            until(lambda name=name: client.responses.retrieve(name).status == "completed")
            assert client.responses.retrieve(name).output_text == "one two"


# -- the asynchronous client


def test_the_asynchronous_client_does_the_same():
    engine = FakeEngine([*content("one"), HOLD, *content(" two")])
    client = async_client_for(engine)

    async def main():
        plain = await client.responses.create(model="fake", input="Hi")
        streamed = [event async for event in await client.responses.create(model="fake", input="Hi", stream=True)]
        async with client.responses.stream(model="fake", input="Hi") as stream:
            final = await stream.get_final_response()
        job = await client.responses.create(model="fake", input="Hi", background=True)
        followed = [event async for event in await client.responses.retrieve(job.id, stream=True)]
        silent = async_client_for(FakeEngine([HOLD]))
        held = await silent.responses.create(model="fake", input="Hi", background=True)
        cancelled = await client.responses.cancel(held.id)
        items = [item async for item in client.responses.input_items.list(job.id)]
        counted = await client.responses.input_tokens.count(model="fake", input="Hi")
        await client.responses.delete(plain.id)
        return plain, streamed, final, followed, cancelled, items, counted

    with releasing(engine):
        plain, streamed, final, followed, cancelled, items, counted = asyncio.run(main())
    assert plain.output_text == final.output_text == streamed[-1].response.output_text == "one two"
    assert followed[-1].response.output_text == "one two"
    assert [event.sequence_number for event in followed] == list(range(len(followed)))
    assert cancelled.status == "cancelled"
    assert items[0].content[0].text == "Hi"
    assert counted.input_tokens == plain.usage.input_tokens


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "unsupported_parameter", "context_management"),
        ({"moderation": {}}, "unsupported_parameter", "moderation"),
        ({"access_programs": {}}, "unsupported_parameter", "access_programs"),
        ({"image": {}}, "unsupported_parameter", "image"),
        ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
        ({"reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning.mode"),
        ({"reasoning": {"effort": "extreme"}}, "invalid_value", "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "invalid_value", "reasoning.summary"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
        ({"n": 2}, "unknown_parameter", "n"),
        ({"instrucions": "x"}, "unknown_parameter", "instrucions"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_tool", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0].name"),
        ({"tools": [{**WEATHER, "parameters": 5}]}, "invalid_value", "tools[0].parameters"),
        ({"tool_choice": {"type": "web_search"}}, "unsupported_tool", "tool_choice"),
        ({"background": True, "store": False}, "invalid_value", "background"),
        ({"include": ["everything"]}, "invalid_value", "include"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata"),
        ({"truncation": "middle"}, "invalid_value", "truncation"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"previous_response_id": "resp_none"}, "previous_response_not_found", "previous_response_id"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": [{"type": "computer_call"}]}, "unsupported_value", "input[0].type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user", "contnt": "x"}]}, "unknown_parameter", "input[0].contnt"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "unsupported_content_type",
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "invalid_value",
         "input[0].call_id"),
        ({"input": "x" * 5000}, "context_length_exceeded", "input"),
    ],
)  # fmt: skip
def test_a24_a_wrong_request_is_refused_and_the_field_named(fields, code, param):
    error = refused(fields)
    assert (error.status_code, error.code, error.param) == (400, code, param)
    assert "messages" not in error.message or "messages" in fields


def test_a_format_is_passed_on_under_its_own_name():
    """Structured text is the chat route's to honour or to refuse; here only the shape differs."""
    format_ = {"type": "wizardry"}
    assert refused({"text": {"format": format_}}).param.startswith("text.format")


def test_unknown_fields_are_reported_where_the_engine_was_told_to():
    answer = ask(FakeEngine(HELLO, unknown_fields="report"), extra_body={"conversation": "c", "wizardry": 1})
    assert sorted(answer.ignored_parameters) == ["conversation", "wizardry"]


def test_null_fields_ask_for_nothing():
    nulls = dict.fromkeys(
        ("conversation", "prompt", "instructions", "reasoning", "tools", "text", "metadata", "include")
    )
    assert ask(FakeEngine(HELLO), extra_body=nulls).output_text == "Hello, world!"


def test_truncation_drops_the_oldest_turns_and_says_how_many():
    engine = FakeEngine(HELLO, max_context=700)
    turns = [{"role": role, "content": f"{role} {k} " + "x" * 80} for k in range(5) for role in ("user", "assistant")]
    items = [{"role": "system", "content": "Rules"}, *turns, {"role": "user", "content": "Last"}]
    assert refused({"input": items}, engine).code == "context_length_exceeded"
    answer = ask(engine, input=items, truncation="auto")
    text = engine.prompts[-1].text
    assert "Rules" in text
    assert "Last" in text
    assert "user 0" not in text
    assert answer.truncated_turns == sum(f"user {k}" not in text for k in range(5)) > 0
    assert refused({"input": "x" * 900, "truncation": "auto"}, engine).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/responses/compact", 404),
        ("GET", "/responses", 405),
        ("POST", "/responses/resp_1", 405),
        ("GET", "/responses/resp_1/cancel", 405),
        ("GET", "/responses/resp_1/wizardry", 404),
        ("GET", "/responses/input_tokens", 405),
        ("GET", "/responses/resp_1?wizardry=1", 400),
        ("GET", "/responses/resp_1/input_items?limit=0", 404),
    ],
)
def test_wrong_addresses_are_answered_in_words(method, path, status):
    client = client_for(FakeEngine(HELLO), max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        client.get(path, cast_to=object) if method == "GET" else client.post(path, cast_to=object, body={})
    assert caught.value.status_code == status
