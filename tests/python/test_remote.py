"""A-18, first half: the remote arm against a mock that enforces the documented quirks of the service (F-1..F-5)."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import json
import logging
import pickle
import random
from urllib.parse import parse_qsl

import openai
import pytest
from mock_mantle import ACCESS, KEY, SIGV4, Mantle

import gemmantle
from gemmantle.api.protocol import Request
from gemmantle.arms.capabilities import ROUTES, Capabilities
from gemmantle.arms.inner_clients import bedrock
from gemmantle.arms.wire import JsonEnd, Rewriter, Service
from gemmantle.errors import RequestError

USER = [{"role": "user", "content": "Hi"}]
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEDROCK_BASE_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mantle():
    with Mantle() as server:
        yield server


def arm(mantle, **options):
    return gemmantle.remote(**{"region": "us-east-1", "base_url": mantle.url, "api_key": KEY, **options})


def ask(mantle, arm_options=None, **fields):
    client = arm(mantle, **(arm_options or {})).client()
    return client.chat.completions.create(**{"model": "google/gemma-4-31B-it", "messages": USER, **fields})


def error_of(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value


def test_a_plain_answer_says_who_gave_it(mantle):
    client = arm(mantle).client()
    assert type(client) is openai.OpenAI
    raw = client.chat.completions.with_raw_response.create(model="gemma4:31b", messages=USER)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello from far"
    assert answer.model == "google/gemma-4-31B-it"
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id == "req_far"
    assert answer.served_by == {
        "arm": "remote",
        "model": "google.gemma-4-31b",
        "region": "us-east-1",
        "reason": "asked",
        "fingerprint": None,
    }
    assert raw.headers["x-gemmantle-arm"] == "remote"
    assert raw.headers["x-gemmantle-model"] == "google/gemma-4-31B-it"
    assert raw.headers["x-gemmantle-region"] == "us-east-1"
    assert mantle.requests[0]["path"] == "/openai/v1/chat/completions"
    assert mantle.bodies[0]["model"] == "google.gemma-4-31b"


def test_a_stream_and_its_helper(mantle):
    client = arm(mantle).client()
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="google.gemma-4-e2b", messages=USER, stream=True, stream_options=options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello from far"
    assert chunks[0].served_by["arm"] == "remote"
    assert chunks[-1].usage.completion_tokens == 3
    assert {c.model for c in chunks} == {"google/gemma-4-E2B-it"}
    with client.chat.completions.stream(model="google.gemma-4-e2b", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello from far"
    assert final.served_by["region"] == "us-east-1"


def test_the_async_client_over_three_loops(mantle):
    client = arm(mantle).async_client()
    assert type(client) is openai.AsyncOpenAI

    async def once():
        plain = await client.chat.completions.create(model="google.gemma-4-e2b", messages=USER)
        stream = await client.chat.completions.create(model="google.gemma-4-e2b", messages=USER, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return plain.choices[0].message.content, streamed

    for _ in range(3):
        assert asyncio.run(once()) == ("Hello from far", "Hello from far")


def test_closing_a_stream_early(mantle):
    mantle.text = "long " * 20_000
    client = arm(mantle).client()
    with client.chat.completions.create(model="google.gemma-4-e2b", messages=USER, stream=True) as stream:
        assert next(iter(stream)).choices

    async def early():
        async_client = arm(mantle).async_client()
        stream = await async_client.chat.completions.create(model="google.gemma-4-e2b", messages=USER, stream=True)
        async with stream:
            return await anext(aiter(stream))

    assert asyncio.run(early()).choices


def test_a_token_provider_is_called_for_every_attempt(mantle):
    calls = []

    def provider():
        calls.append(f"token-{len(calls)}-abcdefgh")
        mantle.keys.add(calls[-1])
        return calls[-1]

    mantle.schedule.extend([503, 429])
    answer = ask(mantle, {"api_key": None, "token_provider": provider})
    assert answer.choices[0].message.content == "Hello from far"
    assert [r["headers"]["authorization"] for r in mantle.requests] == [f"Bearer {token}" for token in calls]
    assert len(calls) == 3


def test_the_bearer_key_of_the_environment(mantle, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_BEDROCK_BASE_URL", mantle.url)
    client = gemmantle.remote().client()
    assert client.chat.completions.create(model="google.gemma-4-e2b", messages=USER).choices
    assert mantle.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"


def test_sigv4(mantle):
    pytest.importorskip("botocore", reason="signing needs botocore: pip install 'gemmantle[remote]'")
    if bedrock() is None:
        pytest.skip(f"signing needs openai>=2.44; this is {openai.__version__}")
    keys = {"api_key": None, "access_key_id": ACCESS, "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
    assert ask(mantle, keys).choices[0].message.content == "Hello from far"
    assert SIGV4.fullmatch(mantle.requests[0]["headers"]["authorization"])
    assert "x-amz-date" in mantle.requests[0]["headers"]

    async def main():
        client = arm(mantle, **keys).async_client()
        return await client.chat.completions.create(model="google.gemma-4-e2b", messages=USER)

    assert asyncio.run(main()).choices


def test_an_sdk_without_the_provider_sends_the_bearer_key(mantle, monkeypatch):
    monkeypatch.setattr("gemmantle.arms.inner_clients.bedrock", lambda: None)
    mantle.schedule.append(503)
    assert ask(mantle).choices[0].message.content == "Hello from far"
    assert {r["headers"]["authorization"] for r in mantle.requests} == {f"Bearer {KEY}"}

    async def main():
        client = arm(mantle).async_client()
        return await client.chat.completions.create(model="google.gemma-4-e2b", messages=USER)

    assert asyncio.run(main()).choices
    keys = {"api_key": None, "access_key_id": "a", "secret_access_key": "b"}
    with pytest.raises(openai.AuthenticationError, match="signing needs"):
        ask(mantle, keys)


def test_endpoint_is_passed_only_where_the_provider_has_it(monkeypatch):
    seen = []

    def older(*, region=None, base_url=None, api_key=None):
        seen.append((region, base_url, api_key))
        return "provider"

    monkeypatch.setattr("gemmantle.arms.inner_clients.bedrock", lambda: older)
    made = []
    monkeypatch.setattr("openai.OpenAI", lambda **options: made.append(options))
    gemmantle.remote(region="us-west-2", api_key=KEY)._clients.sync("us-west-2")
    assert seen == [("us-west-2", "https://bedrock-mantle.us-west-2.api.aws/openai/v1", KEY)]
    assert made[0]["provider"] == "provider"
    real = pytest.importorskip("openai.providers").bedrock
    assert "region" in inspect.signature(real).parameters


def test_models_are_listed_under_the_bare_prefix(mantle):
    listed = arm(mantle).client().models.list()
    assert [model.id for model in listed] == ["google.gemma-4-31b", "google.gemma-4-26b-a4b", "google.gemma-4-e2b"]
    assert mantle.requests[0]["path"] == "/v1/models"


# -- what is sent (F-2..F-5)


def test_f3_a_field_the_service_refuses_is_refused_here_by_name(mantle):
    error = error_of(lambda: ask(mantle, extra_body={"top_k": 40}))
    assert error.status_code == 400
    assert error.param == "top_k"
    assert error.code == "unsupported_parameter"
    assert "drop" in str(error)
    assert mantle.requests == []


def test_f3_drop_leaves_it_out_and_says_so(mantle):
    client = arm(mantle, on_unsupported="drop").client()
    raw = client.chat.completions.with_raw_response.create(
        model="google.gemma-4-31b", messages=USER, logprobs=True, extra_body={"min_p": 0.1, "nonsense": 1}
    )
    assert raw.parse().ignored_parameters == ["logprobs", "min_p", "nonsense"]
    assert json.loads(raw.headers["x-gemmantle-ignored"]) == ["logprobs", "min_p", "nonsense"]
    assert set(mantle.bodies[0]) == {"model", "messages"}


def test_fields_that_ask_for_nothing_are_left_out(mantle):
    ask(mantle, logprobs=False, verbosity="medium", extra_body={"top_k": 0, "return_details": True})
    assert set(mantle.bodies[0]) == {"model", "messages"}


def test_f2_a_400_that_names_a_field_is_remembered_and_logged_once(mantle, caplog):
    mantle.refused.add("presence_penalty")
    remote = arm(mantle)
    client = remote.client()
    for _ in range(3):
        error = error_of(
            lambda: client.chat.completions.create(model="google.gemma-4-31b", messages=USER, presence_penalty=1)
        )
        assert error.param == "presence_penalty"
    assert len(mantle.requests) == 1
    assert [r.message for r in caplog.records if "presence_penalty" in r.message] != []
    assert sum("refuses `presence_penalty`" in r.message for r in caplog.records) == 1


def test_f2_with_drop_the_request_goes_again_without_the_field(mantle):
    mantle.refused.update(["presence_penalty", "seed"])
    answer = ask(mantle, {"on_unsupported": "drop"}, presence_penalty=1, seed=3, temperature=0.5)
    assert sorted(answer.ignored_parameters) == ["presence_penalty", "seed"]
    assert mantle.bodies[-1]["temperature"] == 0.5
    assert len(mantle.requests) == 3


def test_f2_a_wrong_value_does_not_poison_the_table():
    table = Capabilities()
    wrong = {"param": "temperature", "code": "invalid_value", "message": "temperature is 5; at most 2"}
    assert table.learn("chat/completions", "google.gemma-4-31b", wrong) is None
    for param in ("model", "messages", "messages[0].content", None):
        error = {"param": param, "message": "unsupported", "code": None}
        assert table.learn("chat/completions", "google.gemma-4-31b", error) is None
    assert table.fit("chat/completions", {"model": "gemma4:31b", "temperature": 1.5}, drop=False).body["temperature"]


def test_f2_the_table_can_be_overridden(mantle):
    over = {"routes": {"chat/completions": {"top_k": "allowed", "temperature": {"rule": "clamp", "min": 0.7}}}}
    mantle.refused.discard("top_k")
    answer = ask(mantle, {"capabilities": over}, temperature=0.1, extra_body={"top_k": 5})
    assert mantle.bodies[0]["top_k"] == 5
    assert mantle.bodies[0]["temperature"] == 0.7
    assert answer.served_by["converted"] == ["temperature: 0.1 to 0.7"]
    with pytest.raises(ValueError, match=r"routes\.responses\.input is 'maybe'"):
        gemmantle.remote(region="us-east-1", capabilities={"routes": {"responses": {"input": "maybe"}}})


def test_f2_every_shipped_rule_is_used_as_written():
    table = Capabilities()
    for route in ROUTES:
        for name, rule in table.data["routes"][route].items():
            kind = rule if isinstance(rule, str) else rule["rule"]
            if kind != "refused" or "." in name:
                continue
            with pytest.raises(RequestError) as caught:
                table.fit(route, {"model": "gemma4:31b", name: "something"}, drop=False)
            assert caught.value.param == name
            for passing in rule.get("neutral", ()):
                assert table.fit(route, {"model": "gemma4:31b", name: passing}, drop=False).body.keys() == {"model"}


@pytest.mark.parametrize(
    ("given", "sent"), [("minimal", "low"), ("xhigh", "high"), ("none", "none"), ("medium", "medium")]
)
def test_f4_reasoning_levels(mantle, given, sent):
    ask(mantle, reasoning_effort=given)
    assert mantle.bodies[0]["reasoning_effort"] == sent
    arm(mantle).client().responses.create(model="google.gemma-4-31b", input="Hi", reasoning={"effort": given})
    assert mantle.bodies[1]["reasoning"]["effort"] == sent


def test_f4_template_switches_and_names(mantle):
    answer = ask(mantle, max_tokens=7, extra_body={"enable_thinking": True})
    assert mantle.bodies[0]["reasoning_effort"] == "high"
    assert mantle.bodies[0]["max_completion_tokens"] == 7
    assert "max_tokens" not in mantle.bodies[0]
    assert answer.choices[0].message.reasoning == "far thoughts"
    ask(mantle, reasoning_effort="high", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert mantle.bodies[1]["reasoning_effort"] == "none"
    error = error_of(lambda: ask(mantle, max_tokens=7, max_completion_tokens=8))
    assert "mean the same" in str(error) or "twice" in str(error)


def test_f4_history_goes_without_thoughts(mantle):
    messages = [*USER, {"role": "assistant", "content": "Yes", "reasoning": "hm", "tool_calls": None}, *USER]
    answer = ask(mantle, messages=messages)
    assert mantle.bodies[0]["messages"][1] == {"role": "assistant", "content": "Yes"}
    assert answer.served_by["converted"] == ["messages[1]: reasoning left out"]
    items = [{"type": "reasoning", "id": "rs_0", "summary": []}, {"role": "user", "content": "Hi"}]
    arm(mantle).client().responses.create(model="google.gemma-4-31b", input=items)
    assert mantle.bodies[1]["input"] == [{"role": "user", "content": "Hi"}]


def test_f4_images(mantle):
    def with_image(url):
        part = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]

    data = "data:image/png;base64," + base64.b64encode(PNG).decode()
    ask(mantle, messages=with_image(data))
    error = error_of(lambda: ask(mantle, messages=with_image("https://example.com/a.png")))
    assert error.code == "failed_to_download_image"
    asked = []
    fetch = {"fetch_image": lambda url: asked.append(url) or PNG}
    answer = ask(mantle, fetch, messages=with_image("https://example.com/a.png"))
    assert asked == ["https://example.com/a.png"]
    assert mantle.bodies[-1]["messages"][0]["content"][0]["image_url"]["url"] == data
    assert answer.served_by["converted"] == ["image_url: address to data"]
    for path in ("file:///etc/passwd", "/etc/passwd", "picture.png"):
        error = error_of(lambda path=path: ask(mantle, messages=with_image(path)))
        assert error.code == "invalid_image"
        assert "passwd" not in str(error)
    audio = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
    assert error_of(lambda: ask(mantle, messages=audio)).code == "unsupported_content_type"
    many = [{"role": "user", "content": with_image(data)[0]["content"][:1] * 33}]
    assert "takes 32" in str(error_of(lambda: ask(mantle, messages=many)))
    assert len(mantle.requests) == 2


def test_f4_large_images_are_made_smaller_until_the_body_fits(mantle):
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow")
    noise = random.Random(7)
    image = pillow.frombytes("RGB", (1400, 1200), noise.randbytes(1400 * 1200 * 3))
    out = io.BytesIO()
    image.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    assert len(url) > 3_500_000
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    answer = ask(mantle, messages=[{"role": "user", "content": content}])
    assert answer.served_by["converted"] == ["images: made smaller to fit 3500000 bytes"]
    sent = mantle.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    small = pillow.open(io.BytesIO(base64.b64decode(sent.partition(",")[2])))
    assert small.size[0] in (700, 350)
    huge = [{"role": "user", "content": "x" * 3_600_000}]
    assert error_of(lambda: ask(mantle, messages=huge)).status_code == 413


def test_f5_no_header_of_the_caller_is_passed_on(mantle):
    client = arm(mantle, project="proj_1").client(default_headers={"x-mine": "private"}, organization="org-private")
    client.chat.completions.create(model="google.gemma-4-31b", messages=USER)
    sent = mantle.requests[0]["headers"]
    assert "x-mine" not in sent
    assert "private" not in json.dumps(sent)
    assert sent["openai-project"] == "proj_1"


def test_f5_keys_are_in_no_log_repr_pickle_or_message(mantle, caplog):
    caplog.set_level(logging.DEBUG)
    remote = arm(mantle)
    remote.client().chat.completions.create(model="google.gemma-4-31b", messages=USER)
    mantle.keys.clear()
    error = error_of(lambda: remote.client().chat.completions.create(model="google.gemma-4-31b", messages=USER))
    assert error.status_code == 401
    assert isinstance(error, openai.AuthenticationError)
    seen = "".join([caplog.text, repr(remote), str(error), str(error.body), repr(vars(remote)["_credentials"])])
    assert KEY not in seen
    assert KEY.encode() not in pickle.dumps(remote)


def test_f5_a_pickle_keeps_the_configuration_and_takes_keys_from_the_environment(mantle, monkeypatch):
    again = pickle.loads(pickle.dumps(arm(mantle, on_unsupported="drop")))
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    answer = again.client().chat.completions.create(model="gemma4:31b", messages=USER, logprobs=True)
    assert answer.ignored_parameters == ["logprobs"]


# -- what comes back (F-1, F-4, S-4)


def test_f1_the_inner_retries_apply_and_the_outer_client_sees_one_answer(mantle):
    mantle.schedule.extend([503, 429])
    assert ask(mantle).choices[0].message.content == "Hello from far"
    assert len(mantle.requests) == 3
    mantle.schedule.extend([503] * 9)
    error = error_of(lambda: ask(mantle))
    assert isinstance(error, openai.InternalServerError)
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.headers["x-gemmantle-arm"] == "remote"
    assert len(mantle.requests) == 6
    mantle.schedule.clear()
    mantle.schedule.extend([429] * 3)
    assert isinstance(error_of(lambda: ask(mantle)), openai.RateLimitError)
    assert len(mantle.requests) == 9


def test_a_hung_up_connection_is_502(mantle):
    mantle.schedule.append(0)
    error = error_of(lambda: ask(mantle, {"max_retries": 0}))
    assert error.status_code == 502
    assert error.code == "remote_error"


def test_a_timeout_is_the_timeout_of_the_sdk(mantle):
    mantle.schedule.extend([-1] * 2)
    with pytest.raises(openai.APITimeoutError):
        ask(mantle, {"max_retries": 0}, timeout=0.2)

    async def main():
        client = arm(mantle, max_retries=0).async_client()
        await client.chat.completions.create(model="gemma4:31b", messages=USER, timeout=0.2)

    with pytest.raises(openai.APITimeoutError):
        asyncio.run(main())
    assert len(mantle.requests) == 2


def test_regions_in_order(mantle):
    """The first region is over its capacity, so the second answers, and says so."""
    with Mantle() as second:
        remote = gemmantle.remote(region=["us-east-1", "us-west-2"], api_key=KEY, max_retries=0)
        remote._clients.make = _at({"us-east-1": mantle.url, "us-west-2": second.url}, max_retries=0)
        mantle.schedule.append(503)
        answer = remote.client().chat.completions.create(model="google.gemma-4-31b", messages=USER)
        assert answer.served_by["region"] == "us-west-2"
        mantle.schedule.append(400)
        error = error_of(lambda: remote.client().chat.completions.create(model="gemma4:31b", messages=USER))
        assert error.status_code == 400
        assert len(second.requests) == 1


def test_f9_a_region_that_fails_five_times_is_left_alone(mantle):
    remote = arm(mantle, max_retries=0)
    client = remote.client()
    mantle.schedule.extend([503] * 5)
    for _ in range(5):
        error_of(lambda: client.chat.completions.create(model="gemma4:31b", messages=USER))
    assert remote.breakers["us-east-1"].state == "open"
    error = error_of(lambda: client.chat.completions.create(model="gemma4:31b", messages=USER))
    assert error.status_code == 503
    assert "nothing is sent for another" in str(error)
    assert len(mantle.requests) == 5


def _at(addresses, **options):
    def inner(region, listing, *, asynchronous):
        return openai.OpenAI(base_url=addresses[region], api_key=KEY, **options)

    return inner


def test_f4_text_after_schema_bound_json_is_cut_off(mantle):
    plain = ask(mantle, response_format=SCHEMA)
    assert plain.choices[0].message.content == '{"city":"Par}is"}'
    assert plain.served_by["converted"] == ["text after the JSON cut off"]
    chunks = list(ask(mantle, response_format=SCHEMA, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == '{"city":"Par}is"}'
    assert chunks[-1].served_by["converted"] == ["text after the JSON cut off"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    client = arm(mantle).client()
    text = {"format": {"type": "json_object"}}
    response = client.responses.create(model="gemma4:31b", input="Hi", text=text)
    assert response.output_text == '{"city":"Par}is"}'
    with client.responses.stream(model="gemma4:31b", input="Hi", text=text) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == '{"city":"Par}is"}'
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == '{"city":"Par}is"}'
    assert [e.sequence_number for e in events] == list(range(len(events)))
    untouched = ask(mantle)
    assert "converted" not in untouched.served_by


def test_s4_event_names_are_the_standard_ones(mantle):
    events = list(arm(mantle).client().responses.create(model="gemma4:31b", input="Hi", stream=True))
    kinds = [event.type for event in events]
    assert kinds[3:7] == [
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
    ]
    assert events[3].part.type == "reasoning_text"
    assert not [kind for kind in kinds if "reasoning_part" in kind or "response.reasoning." in kind]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.model == "google/gemma-4-31B-it"
    assert events[-1].response.served_by["arm"] == "remote"


def test_responses_and_their_state(mantle):
    client = arm(mantle).client()
    first = client.responses.create(model="gemma4:31b", input="Hi", max_output_tokens=4)
    assert first.output_text == "Hello from far"
    assert mantle.bodies[0]["max_output_tokens"] == 16
    assert first.served_by["converted"] == ["max_output_tokens: 4 to 16"]
    client.responses.create(model="gemma4:31b", input="And?", previous_response_id=first.id)
    assert client.responses.retrieve(first.id).output_text == "Hello from far"
    client.responses.retrieve(first.id, include=["a", "b"], starting_after=3)
    client.responses.with_raw_response.retrieve(first.id, extra_query={"limit": 2})
    paths = [request["path"].partition("?")[2] for request in mantle.requests[-2:]]
    assert sorted(parse_qsl(paths[0])) == [("include[]", "a"), ("include[]", "b"), ("starting_after", "3")]
    assert paths[1] == "limit=2"
    client.responses.delete(first.id)
    assert error_of(lambda: client.responses.retrieve(first.id)).status_code == 404
    assert error_of(lambda: client.embeddings.create(model="gemma4:31b", input="x")).code == "unknown_url"


def test_a_stream_that_breaks_off_says_so(mantle):
    mantle.break_stream = True
    mantle.text = "long " * 100
    stream = ask(mantle, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    events = list(arm(mantle).client().responses.create(model="gemma4:31b", input="Hi", stream=True))
    assert events[-1].type == "error"
    assert events[-1].code == "remote_error"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_the_json_end_is_found_at_every_split():
    rng = random.Random(5)
    values = ['{"a":[1,{"b":"}]\\""}]}', "[1,2]", '"te\\\\xt"', "-12.5e3", "true", ' \n{"ü":"🌍"}']
    for value in values:
        for rest in ("", "\n", " more", '\n{"a":1}'):
            for _ in range(50):
                text = value + rest
                end = JsonEnd()
                cuts = sorted(rng.randrange(len(text) + 1) for _ in range(4))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                assert "".join(map(end.feed, pieces)) == value, (value, rest, pieces)
                assert end.cut == bool(rest.strip())


def test_the_rewriter_never_raises_over_what_the_service_sends():
    print("seed 11")
    rng = random.Random(11)
    pieces = [b"data: ", b"\n\n", b"\r\n\r\n", b"{", b"[]", b'{"choices":', b"null}", b'{"choices":[{"delta":3}]}']
    pieces += [b'{"type":5}', b"event: x\n", b"\xff", b": ping\n", b"[DONE]"]
    pieces += [b'{"type":"response.created","response":1}']
    for _ in range(3000):
        route = rng.choice(ROUTES)
        rewriter = Rewriter(route, Service("m", "n", "r", "asked"), bound=rng.random() < 0.5)
        for _ in range(rng.randrange(8)):
            rewriter.feed(b"".join(rng.choices(pieces, k=rng.randrange(5))))
        rewriter.finish()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"region": None}, "region is missing"),
        ({"region": "Frankfurt"}, "region is 'Frankfurt'"),
        ({"region": ["us-east-1", "us-west-2"], "base_url": "http://x"}, "one address"),
        ({"api_key": "a", "token_provider": str}, "one kind"),
        ({"access_key_id": "a"}, "belong together"),
        ({"api_key": " "}, "api_key is empty"),
        ({"on_unsupported": "ignore"}, "on_unsupported is 'ignore'"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"triggers": ["bored"]}, "triggers holds 'bored'"),
        ({"triggers": "busy"}, "triggers is 'busy'"),
        ({"busy_s": -1}, "busy_s is -1"),
    ],
)
def test_wrong_arguments_are_told_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        gemmantle.remote(**{"region": "us-east-1", **options})


def test_no_credentials_is_an_authentication_error(mantle, monkeypatch):
    monkeypatch.setattr("gemmantle.arms.inner_clients.bedrock", lambda: None)
    reply = arm(mantle, api_key=None).handle(
        Request("POST", "/v1/chat/completions", {}, json.dumps({"model": "gemma4:31b", "messages": USER}).encode())
    )
    assert b"AWS_BEARER_TOKEN_BEDROCK" in reply.body
    assert mantle.requests == []
