"""The SDK's own surfaces, unchanged, over the in-process transport: what a user of the synchronous client sees."""

from __future__ import annotations

import gc
import json
import pickle
import signal
import threading
import time

import openai
import pytest
from fake_engine import CALL, HELLO, HOLD, FakeEngine, content

from gemmantle._http import family_of_sdk, library
from gemmantle.client import OpenAI, client_for, handler_for
from gemmantle.errors import DeviceError
from gemmantle.transport import sync_transport

USER = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def ask(engine: FakeEngine, client_options=None, **fields):
    client = client_for(engine, **(client_options or {}))
    return client.chat.completions.create(**{"model": "fake/model", "messages": USER, **fields})


def test_a_client_is_a_genuine_sdk_object():
    client = client_for(FakeEngine(HELLO), max_retries=7, timeout=3.0, default_headers={"x-mine": "1"})
    assert type(client) is openai.OpenAI
    assert client.max_retries == 7
    assert client.timeout == 3.0


def test_a_plain_call_gives_text_usage_and_ids():
    engine = FakeEngine(HELLO)
    answer = ask(engine)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "fake/model"
    assert answer.system_fingerprint == "fp_fake"
    assert answer.usage.completion_tokens == 7  # six pieces and the end token
    assert answer.usage.prompt_tokens == len(engine.submitted[0][0])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert answer._request_id.startswith("req_")


def test_a_stream_gives_the_text_in_order_and_the_usage_last():
    chunks = list(ask(FakeEngine(HELLO), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == "Hel"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world!"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert all(c.usage is None for c in chunks[:-1])
    assert len({(c.id, c.created, c.model, c.system_fingerprint) for c in chunks}) == 1


def test_a_stream_that_is_read_late_is_merged_and_says_the_same():
    chunks = list(ask(FakeEngine(HELLO, one_by_one=False), stream=True))
    assert len(chunks) == 2
    assert chunks[0].choices[0].delta.content == "Hello, world!"


def test_the_stream_helper_accumulates():
    with client_for(FakeEngine(HELLO)).chat.completions.stream(model="fake", messages=USER) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") == 6
    assert kinds[-1] == "content.done" or "content.done" in kinds
    assert final.choices[0].message.content == "Hello, world!"


def test_raw_responses_show_headers():
    raw = client_for(FakeEngine(HELLO)).chat.completions.with_raw_response.create(model="fake", messages=USER)
    assert raw.status_code == 200
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-gemmantle-arm"] == "local"
    assert raw.headers["x-gemmantle-model"] == "fake/model"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().choices[0].message.content == "Hello, world!"


def test_streaming_responses_give_raw_lines():
    completions = client_for(FakeEngine(HELLO)).chat.completions
    with completions.with_streaming_response.create(model="fake", messages=USER, stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_parse_without_a_format_works():
    parsed = client_for(FakeEngine(HELLO)).chat.completions.parse(model="fake", messages=USER)
    assert parsed.choices[0].message.content == "Hello, world!"


def test_three_choices_interleave_and_first_appear_in_order():
    """Choice 0 waits for its first token longest; the helper still wants to see it first."""
    engine = FakeEngine(lambda choice: [HOLD, *content("a0", "b0")] if choice == 0 else content(f"a{choice}", "b"))
    client = client_for(engine)
    timer = threading.Timer(0.1, engine.release)
    timer.start()
    with client.chat.completions.stream(model="fake", messages=USER, n=3) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["a0b0", "a1b", "a2b"]
    assert [sampling.choice for _, sampling in engine.submitted] == [0, 1, 2]
    assert len({sampling.seed for _, sampling in engine.submitted}) == 1


def test_greedy_choices_are_generated_once_and_repeated():
    engine = FakeEngine(HELLO)
    answer = ask(engine, n=3, temperature=0)
    assert [choice.message.content for choice in answer.choices] == ["Hello, world!"] * 3
    assert len(engine.submitted) == 1
    streamed = list(ask(FakeEngine(HELLO), n=3, temperature=0, stream=True))
    assert {chunk.choices[0].index for chunk in streamed} == {0, 1, 2}


def test_logprobs_list_one_entry_a_token_plain_and_streamed():
    plain = ask(FakeEngine(HELLO), logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [entry.token for entry in plain] == ["Hel", "lo", ", ", "wor", "ld", "!"]
    assert plain[1].logprob == -0.25
    assert plain[1].bytes == list(b"lo")
    assert [round(top.logprob, 3) for top in plain[1].top_logprobs] == [-0.25, -1.25]
    merged = FakeEngine(HELLO, one_by_one=False)
    streamed = [
        entry
        for chunk in ask(merged, logprobs=True, top_logprobs=2, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [(entry.token, entry.logprob) for entry in streamed] == [(entry.token, entry.logprob) for entry in plain]


def test_reasoning_is_its_own_field():
    script = [("thought", "Let me "), ("thought", "think."), *content("Four.")]
    answer = ask(FakeEngine(script), reasoning_effort="high")
    assert answer.choices[0].message.reasoning == "Let me think."
    assert answer.choices[0].message.content == "Four."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    with client_for(FakeEngine(script)).chat.completions.stream(model="fake", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.reasoning == "Let me think."
    assert final.choices[0].message.content == "Four."
    hidden = ask(FakeEngine(script), extra_body={"include_reasoning": False})
    assert "reasoning" not in hidden.choices[0].message.model_dump()


def test_an_unfinished_thought_leaves_empty_content():
    answer = ask(FakeEngine([("thought", "hmm"), ("thought", " ...")]), max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].message.reasoning == "hmm ..."
    with client_for(FakeEngine([("thought", "hmm")])).chat.completions.stream(model="fake", messages=USER) as stream:
        assert stream.get_final_completion().choices[0].message.content == ""


def test_a_tool_call_plain():
    answer = ask(FakeEngine([*content("Looking. "), *CALL]), tools=[TOOL])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Looking."
    assert message.tool_calls[0].id.startswith("call_")
    assert len(message.tool_calls[0].id) == len("call_") + 24
    assert message.tool_calls[0].function.name == "get_weather"
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris", "days": 2}


def test_tool_calls_streamed_come_whole_and_in_order():
    engine = FakeEngine([*CALL, *CALL])
    with client_for(engine).chat.completions.stream(model="fake", messages=USER, tools=[TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Paris", "days": 2}] * 2
    assert len({call.id for call in calls}) == 2
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content is None
    for event in events:
        if event.type == "chunk":
            for choice in event.chunk.choices:
                indices = [call.index for call in choice.delta.tool_calls or []]
                assert len(indices) == len(set(indices))


def test_a_whole_tool_loop_can_be_sent_back():
    engine = FakeEngine(CALL)
    first = ask(engine, tools=[TOOL]).choices[0].message
    messages = [*USER, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}]
    engine.script = content("It is sunny.")
    answer = ask(engine, messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "It is sunny."
    assert "sunny" in engine.prompts[-1].text


def test_tool_choice_none_masks_calls_and_one_call_is_enough_when_parallel_is_off():
    engine = FakeEngine(HELLO)
    ask(engine, tools=[TOOL], tool_choice="none", parallel_tool_calls=False)
    sampling = engine.submitted[0][1]
    assert 48 in sampling.suppress
    assert sampling.single_call
    ask(engine, tools=[TOOL])
    assert 48 not in engine.submitted[1][1].suppress
    assert not engine.submitted[1][1].single_call


def test_sampling_fields_arrive():
    engine = FakeEngine(HELLO)
    ask(
        engine,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -100},
        seed=42,
        stop=["\n", "END"],
        max_completion_tokens=50,
        user="me",
        extra_body={"top_k": 7, "min_p": 0.05, "repeat_penalty": 1.1, "stop_token_ids": [9], "min_tokens": 2},
    )
    sampling = engine.submitted[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.1)
    assert sampling.logit_bias == {5: -100.0}
    assert sampling.seed == 42
    assert sampling.stop == ["\n", "END"]
    assert (sampling.stop_token_ids, sampling.min_tokens, sampling.max_tokens) == ([9], 2, 50)
    assert sampling.suppress == [7, 8]
    assert sampling.channels


def test_omitted_fields_take_the_models_own_settings():
    engine = FakeEngine(HELLO)
    ask(engine)
    sampling = engine.submitted[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 0.95, 64)
    assert 0 <= sampling.seed < 2**32


def test_the_limit_is_reduced_to_what_the_context_leaves():
    engine = FakeEngine(HELLO, max_context=100)
    answer = ask(engine, max_completion_tokens=1000, extra_body={"return_details": True})
    prompt = len(engine.submitted[0][0])
    assert engine.submitted[0][1].max_tokens == 100 - prompt
    assert answer.effective_max_tokens == 100 - prompt
    assert answer.sampling["seed"] == engine.submitted[0][1].seed
    assert answer.timings["prompt_ms"] >= 0
    assert answer.served_by["arm"] == "local"


def test_token_ids_come_back_when_asked_for():
    answer = ask(FakeEngine(content("a", "b")), extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [1000, 1001, 1]
    assert answer.prompt_token_ids[0] > 0
    chunks = list(ask(FakeEngine(content("a", "b")), stream=True, extra_body={"return_token_ids": True}))
    assert chunks[0].prompt_token_ids == answer.prompt_token_ids
    streamed = [token_id for chunk in chunks for token_id in getattr(chunk.choices[0], "token_ids", [])]
    assert streamed == [1000, 1001, 1]


def test_models_are_listed_and_found_by_name_with_a_slash():
    client = client_for(FakeEngine(HELLO))
    assert [model.id for model in client.models.list()] == ["fake/model"]
    found = client.models.retrieve("fake/model")
    assert found.id == "fake/model"
    assert found.max_context == 2048
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


# -- completions


def test_completions_plain_and_streamed():
    engine = FakeEngine(HELLO)
    client = client_for(engine)
    answer = client.completions.create(model="fake", prompt="Say", max_tokens=5)
    assert answer.choices[0].text == "Hello, world"
    assert answer.choices[0].finish_reason == "length"
    assert engine.submitted[0][0][0] == 2  # one BOS
    assert engine.submitted[0][1].suppress == [7]
    assert not engine.submitted[0][1].channels
    stream = client.completions.create(model="fake", prompt="Say", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello, world!"


def test_completions_take_ids_as_they_are_and_number_choices_by_prompt():
    engine = FakeEngine(lambda choice: content(f"c{choice}"))
    client = client_for(engine)
    answer = client.completions.create(model="fake", prompt=[[5, 6], [7, 8, 9]], n=2, max_tokens=4)
    assert [ids for ids, _ in engine.submitted] == [[5, 6], [5, 6], [7, 8, 9], [7, 8, 9]]
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "c0"), (1, "c1"), (2, "c0"), (3, "c1")]
    assert answer.usage.prompt_tokens == 5


def test_echo_scores_the_prompt():
    client = client_for(FakeEngine(content("!")))
    answer = client.completions.create(model="fake", prompt="ab", echo=True, logprobs=1, max_tokens=1)
    assert answer.choices[0].text == "ab!"
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["<bos>", "a", "b", "!"]
    assert logprobs.token_logprobs == [None, -1.0, -1.0, -0.125]
    assert logprobs.top_logprobs[0] is None
    assert logprobs.text_offset == [0, 0, 1, 2]
    only_prompt = client.completions.create(model="fake", prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert only_prompt.choices[0].text == "ab"
    assert len(only_prompt.choices[0].logprobs.tokens) == 3


# -- failures


def test_a_failure_during_a_plain_call_is_an_answer():
    with pytest.raises(openai.InternalServerError) as caught:
        ask(FakeEngine([*content("a"), DeviceError("lost")]))
    assert caught.value.code == "device_error"


def test_a_failure_in_a_stream_ends_it_with_an_error():
    engine = FakeEngine([*content("a", "b"), DeviceError("lost")])
    texts = []

    def read():
        for chunk in ask(engine, stream=True):
            texts.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="lost") as caught:
        read()
    assert texts == ["a", "b"]
    assert caught.value.code == "device_error"


def test_a_prompt_that_is_too_long_says_the_numbers():
    engine = FakeEngine(HELLO, max_context=64)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(engine, messages=[{"role": "user", "content": "x" * 200}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "64" in str(caught.value)
    assert ask(engine).choices[0].message.content == "Hello, world!"


def test_an_unknown_model_is_not_found():
    with pytest.raises(openai.NotFoundError) as caught:
        ask(FakeEngine(HELLO), model="gpt-5")
    assert caught.value.code == "model_not_found"
    assert "fake/model" in str(caught.value)


def test_an_unknown_field_suggests_the_nearest():
    with pytest.raises(openai.BadRequestError) as caught:
        ask(FakeEngine(HELLO), extra_body={"temprature": 1})
    assert caught.value.code == "unknown_parameter"
    assert caught.value.param == "temprature"
    assert "`temperature`" in str(caught.value)


def test_unknown_fields_are_reported_where_the_engine_is_told_to():
    engine = FakeEngine(HELLO, unknown_fields="report")
    raw = client_for(engine).chat.completions.with_raw_response.create(
        model="fake", messages=USER, extra_body={"temprature": 1}
    )
    assert json.loads(raw.headers["x-gemmantle-ignored"]) == ["temprature"]
    assert raw.parse().ignored_parameters == ["temprature"]


def test_a_base_model_refuses_chat():
    with pytest.raises(openai.BadRequestError) as caught:
        ask(FakeEngine(HELLO, is_chat=False))
    assert caught.value.code == "model_not_chat"


# -- time and cancellation


def test_a_plain_call_that_takes_too_long_is_one_attempt_and_is_cancelled():
    engine = FakeEngine([*content("a"), HOLD, *content("b")])
    started = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        ask(engine, {"max_retries": 2, "timeout": 0.2})
    assert time.monotonic() - started < 5  # SDKs before 2.31 repeat after a pause, and are told at once
    assert len(engine.submitted) == 1
    assert engine.cancelled == 1


def test_the_gap_between_two_chunks_is_limited():
    engine = FakeEngine([*content("a"), HOLD, *content("b")])
    stream = ask(engine, {"timeout": 0.2}, stream=True)
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(openai.APITimeoutError):
        next(stream)
    assert engine.cancelled == 1


def test_a_bare_http_client_gets_the_familys_own_timeout():
    http = library()
    engine = FakeEngine([HOLD])
    with http.client(transport=sync_transport(handler_for(engine)), timeout=0.1) as bare:
        body = {"model": "fake", "messages": USER}
        with pytest.raises(http.read_timeout):
            bare.post("http://anything.invalid/v1/chat/completions", json=body)
    assert engine.cancelled == 1


def test_no_limit_of_time_is_no_limit():
    engine = FakeEngine([HOLD, *content("late")])
    threading.Timer(0.2, engine.release).start()
    assert ask(engine, {"timeout": None}).choices[0].message.content == "late"


@pytest.mark.parametrize("way", ["close", "with", "response", "drop", "break_with"])
def test_every_way_out_of_a_stream_cancels_it(way):
    engine = FakeEngine([*content("a", "b"), HOLD])
    stream = ask(engine, stream=True)
    assert next(stream).choices[0].delta.content == "a"
    if way == "close":
        stream.close()
    elif way == "with":
        with stream:
            pass
    elif way == "response":
        stream.response.close()
    elif way == "break_with":
        with stream:
            for _ in stream:
                break
    else:
        del stream
        gc.collect()
    assert engine.cancelled == 1


def test_a_stream_that_is_never_read_is_cancelled_when_dropped():
    engine = FakeEngine([HOLD])
    stream = ask(engine, stream=True)
    del stream
    gc.collect()
    assert engine.cancelled == 1


def test_close_from_another_thread_ends_a_waiting_read():
    engine = FakeEngine([*content("a"), HOLD])
    stream = ask(engine, {"timeout": None}, stream=True)
    next(stream)
    threading.Timer(0.1, stream.response.stream._stream.close).start()
    started = time.monotonic()
    assert list(stream) == []
    assert time.monotonic() - started < 2


@pytest.fixture
def _ctrl_c_works():
    """Background jobs of a shell start with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("_ctrl_c_works")
def test_ctrl_c_cancels_and_leaves_the_engine_usable():
    engine = FakeEngine([HOLD])
    pressed = []

    def press():
        pressed.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    threading.Timer(0.2, press).start()
    with pytest.raises(KeyboardInterrupt):
        ask(engine, {"timeout": None})
    assert time.monotonic() - pressed[0] < 0.5
    assert engine.cancelled == 1
    engine.script = HELLO
    assert ask(engine).choices[0].message.content == "Hello, world!"


def test_an_engine_that_cancels_by_itself_says_so():
    engine = FakeEngine([*content("a"), HOLD])
    client = client_for(engine, timeout=None)
    threading.Timer(0.1, lambda: engine.generations[0].cancel()).start()
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="fake", messages=USER)
    assert caught.value.status_code == 499


# -- threads, sharing, families


def test_many_threads_share_one_client():
    client = client_for(FakeEngine(HELLO))
    answers = []

    def work():
        for number in range(10):
            stream = number % 2 == 1
            got = client.chat.completions.create(model="fake", messages=USER, stream=stream)
            text = "".join(c.choices[0].delta.content or "" for c in got) if stream else got.choices[0].message.content
            answers.append(text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["Hello, world!"] * 80


def test_a_repeat_with_the_same_key_is_answered_once():
    engine = FakeEngine([HOLD, *HELLO])
    client = client_for(engine, timeout=None)
    answers = []
    headers = {"Idempotency-Key": "one"}

    def work():
        answers.append(client.chat.completions.create(model="fake", messages=USER, extra_headers=headers).id)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Timer(0.2, engine.release).start()
    for thread in threads:
        thread.join()
    work()
    assert len(set(answers)) == 1
    assert len(engine.submitted) == 1


def test_both_families_of_http_clients_serve_a_bare_caller():
    for family in ("httpx2", "httpx"):
        pytest.importorskip(family)
        http = library(family)
        with http.client(transport=sync_transport(handler_for(FakeEngine(HELLO)), family)) as bare:
            body = {"model": "fake", "messages": USER, "stream": True}
            for prefix in ("/v1", "/openai/v1", ""):
                answer = bare.post(f"https://host:1{prefix}/chat/completions", json=body)
                assert answer.status_code == 200
                assert answer.text.endswith("data: [DONE]\n\n")


def test_a_client_built_by_hand_over_our_transport():
    http = library(family_of_sdk())
    transport = sync_transport(handler_for(FakeEngine(HELLO)), family_of_sdk())
    client = openai.OpenAI(base_url="http://x/v1", api_key="k", http_client=http.client(transport=transport))
    answer = client.chat.completions.create(model="fake", messages=USER)
    assert answer.choices[0].message.content == "Hello, world!"
    with pytest.raises(ValueError, match="family"):
        sync_transport(handler_for(FakeEngine(HELLO)), "requests")


def test_transports_refuse_to_pickle_in_words():
    with pytest.raises(TypeError, match="pickle the engine"):
        pickle.dumps(sync_transport(handler_for(FakeEngine(HELLO))))


@pytest.mark.parametrize("name", ["base_url", "http_client", "provider", "proxy"])
def test_arguments_that_would_lead_past_us_are_refused_in_words(name):
    with pytest.raises(TypeError, match=name):
        OpenAI(**{name: "x"})
    with pytest.raises(TypeError, match=name):
        client_for(FakeEngine(HELLO), **{name: "x"})


def test_wrong_engine_arguments_are_refused_when_the_client_is_made():
    with pytest.raises(ValueError, match="device"):
        OpenAI(device="tpu")
    with pytest.raises(TypeError, match="colour"):
        OpenAI(colour="red")


def test_no_environment_variable_of_the_real_service_is_read(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://leak.invalid")
    client = client_for(FakeEngine(HELLO))
    assert str(client.base_url) == "http://local.invalid/v1/"
    assert client.api_key == "local"
    assert getattr(client, "admin_api_key", "") == ""
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer leak")
    assert ask(FakeEngine(HELLO)).choices[0].message.content == "Hello, world!"


def test_a_model_that_is_nowhere_is_named_with_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(openai.NotFoundError) as caught:
        OpenAI(api_key="ignored").chat.completions.create(model="no/such-model", messages=USER)
    assert caught.value.code == "model_not_found"
