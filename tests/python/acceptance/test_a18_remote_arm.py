"""A-18: the remote arm against a mock of the service, in process and behind our own server; rule by rule, the details
are in test_remote.py and test_fallback.py."""

from __future__ import annotations

import dataclasses
import logging
import threading

import openai
import pytest
from mock_mantle import ACCESS, KEY, MODELS, Mantle
from proxy_engine import Proxy

import gemmantle
from gemmantle.errors import OutOfMemory, UnsupportedHardware
from gemmantle.server import Application, ServedModels

LOCAL = "gemma-4-nano-e"
FAR = MODELS[2]
USER = [{"role": "user", "content": "What is the capital of France?"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


@pytest.fixture
def mantle():
    with Mantle() as service:
        yield service


def arm(mantle, **options):
    return gemmantle.remote(**{"region": "us-east-1", "base_url": mantle.url, "api_key": KEY, **options})


def behind(ways, remote, *engines, absent=()):
    """A client of an application that has these engines, and the arm behind them."""
    models = ServedModels(engines)
    for name, error in absent:
        models.add_absent(name, error)
    return ways.client_of(Application(models, fallback=remote))


def test_a18_f10_a_plain_and_a_streamed_answer_say_who_gave_them(ways, mantle):
    client = behind(ways, arm(mantle))
    raw = client.chat.completions.with_raw_response.create(model=FAR, messages=USER)
    assert raw.headers["x-gemmantle-arm"] == "remote"
    assert raw.headers["x-gemmantle-region"] == "us-east-1"
    answer = raw.parse()
    assert answer.choices[0].message.content == mantle.text
    assert (answer.model, answer.served_by["arm"]) == ("google/gemma-4-E2B-it", "remote")
    with client.chat.completions.create(model=FAR, messages=USER, stream=True) as stream:
        told = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert told == mantle.text
    with client.responses.stream(model=FAR, input="Hi") as events:
        kinds = [event.type for event in events]
    assert kinds[-1] == "response.completed"
    assert not [kind for kind in kinds if kind.startswith(("response.reasoning.", "response.reasoning_part"))]  # S-4


def test_a18_a_stream_that_is_left_closes_the_connection_behind_it(ways, mantle):
    mantle.text = "word " * 2000
    client = behind(ways, arm(mantle))
    before = threading.active_count()
    for _ in range(3):
        with client.chat.completions.create(model=FAR, messages=USER, stream=True) as stream:
            assert next(stream).choices
    assert client.chat.completions.create(model=FAR, messages=USER).choices[0].finish_reason == "stop"
    assert threading.active_count() <= before + 4  # the service's own


def test_a18_f06_nothing_leaves_while_the_local_model_answers(ways, mantle, engine):
    client = behind(ways, arm(mantle), engine)
    raw = client.chat.completions.with_raw_response.create(model=LOCAL, messages=USER, temperature=0)
    assert raw.headers["x-gemmantle-arm"] == "local"
    assert raw.parse().choices[0].message.content == "The capital of France is Paris."
    assert mantle.requests == []


def test_a18_f07_a_model_that_could_not_be_loaded_is_answered_far_away(ways, mantle):
    absent = [("google/gemma-4-E2B-it", UnsupportedHardware("no device is left"))]
    client = behind(ways, arm(mantle), absent=absent)
    raw = client.chat.completions.with_raw_response.create(model="google/gemma-4-E2B-it", messages=USER)
    assert raw.headers["x-gemmantle-reason"] == "no_device"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="google/gemma-4-12B-it", messages=USER)  # the service has no such model
    assert len(mantle.requests) == 1


class Named(Proxy):
    """An engine under a name that the service knows too."""

    def __init__(self, engine, **options):
        super().__init__(engine, **options)
        self.profile = dataclasses.replace(engine.profile, name=FAR)


@pytest.mark.parametrize(("wish", "reason"), [("never", None), ("allow", "too_large"), ("only", "only")])
def test_a18_f08_9_4_a_full_engine_and_the_callers_wish(ways, mantle, engine, wish, reason):
    full = Named(engine, refuse=OutOfMemory("no blocks are left"))
    client = behind(ways, arm(mantle), full)
    fields = {"model": FAR, "messages": USER, "extra_body": {"fallback": wish}}
    if reason is None:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**fields)
        assert caught.value.code == "insufficient_memory"
        assert mantle.requests == []
        return
    raw = client.chat.completions.with_raw_response.create(**fields)
    assert raw.headers["x-gemmantle-reason"] == reason
    assert full.submitted == (wish == "allow")


def test_a18_f07_an_image_goes_where_images_are_taken(ways, mantle, engine):
    client = behind(ways, arm(mantle), Named(engine))
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "text", "text": "What is this?"},
    ]
    raw = client.chat.completions.with_raw_response.create(model=FAR, messages=[{"role": "user", "content": parts}])
    assert raw.headers["x-gemmantle-reason"] == "unsupported"


def test_a18_bearer_and_sigv4(ways, mantle):
    pytest.importorskip("openai.providers", reason="signing came with openai 2.44")
    pytest.importorskip("botocore")
    signing = arm(mantle, api_key=None, access_key_id=ACCESS, secret_access_key="c2VjcmV0")
    assert behind(ways, signing).chat.completions.create(model=FAR, messages=USER).choices
    assert mantle.requests[-1]["headers"]["authorization"].startswith("AWS4-HMAC-SHA256")
    assert behind(ways, arm(mantle)).chat.completions.create(model=FAR, messages=USER).choices
    assert mantle.requests[-1]["headers"]["authorization"] == f"Bearer {KEY}"


def test_a18_f01_the_inner_client_retries_and_the_outer_one_does_not(ways, mantle):
    mantle.schedule.extend([429, 503])
    client = behind(ways, arm(mantle))
    assert client.chat.completions.create(model=FAR, messages=USER).choices
    assert len(mantle.requests) == 3
    mantle.schedule.extend([503] * 3)
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=3).chat.completions.create(model=FAR, messages=USER)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(mantle.requests) == 6


def test_a18_f05_no_key_and_no_header_of_the_caller_is_told_or_passed_on(ways, mantle, caplog):
    caplog.set_level(logging.DEBUG)
    mantle.keys.clear()
    client = behind(ways, arm(mantle), absent=[("x", UnsupportedHardware("none"))])
    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model=FAR, messages=USER, extra_headers={"x-secret": "of the caller"})
    assert KEY not in str(caught.value)
    assert KEY not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("gemmantle"))
    assert "x-secret" not in mantle.requests[-1]["headers"]
