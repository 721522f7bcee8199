"""A-18, second half: when a request leaves the machine, when it never does, and what can be seen of it (F-6..F-11)."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import threading
import time

import openai
import pytest
from fake_engine import HELLO, FakeEngine
from mock_mantle import KEY, Mantle

import gemmantle
from gemmantle import engines
from gemmantle.api.handler import Handler
from gemmantle.arms import fallback
from gemmantle.arms.pair import FallbackHandler
from gemmantle.client import OneModel, async_client_over, client_over
from gemmantle.errors import (
    DeviceError,
    DriverTooOld,
    EngineClosed,
    GatedModel,
    ModelNotFound,
    OutOfMemory,
    RequestError,
    UnsupportedHardware,
)

USER = [{"role": "user", "content": "Hi"}]
NAME = "google/gemma-4-31B-it"


@pytest.fixture
def mantle():
    with Mantle() as server:
        yield server


@pytest.fixture
def no_network(monkeypatch):
    """Any connection to anywhere fails the test."""
    tried = []

    def refuse(self, address, *rest):
        tried.append(address)
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    yield
    assert tried == []


class Models:
    """A source of one model that is there, loads, or fails to."""

    def __init__(self, engine=None, error=None, wait=None):
        self.engine = engine
        self.error = error
        self.wait = wait
        self.loads = 0
        self.there = engine is not None and error is None and wait is None

    def find(self, name):
        return self.engine if self.there and name == NAME else None

    def load(self, name):
        self.loads += 1
        if self.wait is not None:
            self.wait.wait(30)
        if self.error is not None:
            raise self.error
        if name != NAME or self.engine is None:
            raise ModelNotFound(f"{name} is not here")
        self.there = True
        return self.engine

    def cards(self):
        return []


def fake(*script, **profile):
    return FakeEngine(script or HELLO, name=NAME, aliases=("gemma4:31b",), **profile)


def pair(mantle, source, clock=time.monotonic, **options):
    remote = gemmantle.remote(
        **{"region": "us-east-1", "base_url": mantle.url, "api_key": KEY, "max_retries": 0, **options}
    )
    return FallbackHandler(Handler(source), source, remote, clock=clock), remote


def ask(handler, **fields):
    client = client_over(handler, {"max_retries": 0})
    return client.chat.completions.with_raw_response.create(**{"model": NAME, "messages": USER, **fields})


def arm_of(handler, **fields):
    """(arm, reason) of an answer; an asynchronous client must see the same."""
    raw = ask(handler, **fields)
    seen = raw.headers["x-gemmantle-arm"], raw.headers.get("x-gemmantle-reason")

    async def main():
        client = async_client_over(handler, {"max_retries": 0})
        create = client.chat.completions.with_raw_response.create
        again = await create(**{"model": NAME, "messages": USER, **fields})
        return again.headers["x-gemmantle-arm"], again.headers.get("x-gemmantle-reason")

    assert asyncio.run(main()) == seen
    return seen


def test_f6_nothing_is_sent_without_fallback(no_network, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    engine = fake()
    monkeypatch.setattr(engines, "load", lambda name, **_: engine if name == NAME else _raise(ModelNotFound("no")))
    client = gemmantle.OpenAI(max_retries=0)
    assert client.chat.completions.create(model=NAME, messages=USER).choices[0].message.content == "Hello, world!"
    assert len(list(client.chat.completions.create(model=NAME, messages=USER, stream=True))) > 1
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="google.gemma-4-e2b", messages=USER)
    with pytest.raises(openai.BadRequestError, match=r"fallback=gemmantle\.remote"):
        client.chat.completions.create(model=NAME, messages=USER, extra_body={"fallback": "only"})
    engine.refuse = DeviceError("gone")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=NAME, messages=USER)


def _raise(exc):
    raise exc


def test_f6_nothing_is_sent_while_the_local_arm_answers(no_network):
    remote = gemmantle.remote(region="us-east-1", api_key=KEY)
    source = OneModel(fake())
    handler = FallbackHandler(Handler(source), source, remote)
    raw = ask(handler)
    assert raw.headers["x-gemmantle-arm"] == "local"
    assert raw.parse().choices[0].message.content == "Hello, world!"
    assert not hasattr(raw.parse(), "served_by")
    assert ask(handler, extra_body={"return_details": True}).parse().served_by["arm"] == "local"


def test_the_public_way_in(mantle, monkeypatch):
    monkeypatch.setattr(engines, "load", lambda *_, **__: _raise(ModelNotFound("not on disk")))
    remote = gemmantle.remote(region="us-east-1", base_url=mantle.url, api_key=KEY)
    client = gemmantle.OpenAI(fallback=remote)
    assert type(client) is openai.OpenAI
    answer = client.chat.completions.create(model=NAME, messages=USER)
    assert answer.served_by["reason"] == "cannot_load"
    assert answer.choices[0].message.content == "Hello from far"
    chunks = list(client.chat.completions.create(model=NAME, messages=USER, stream=True))
    assert chunks[0].served_by["arm"] == "remote"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnsupportedHardware("no such device"), "no_device"),
        (DriverTooOld("too old"), "no_device"),
        (OutOfMemory("weights do not fit"), "cannot_load"),
        (GatedModel("licence"), "cannot_load"),
        (ModelNotFound("not here"), "cannot_load"),
    ],
)
def test_f7_failed_loads(mantle, error, reason):
    source = Models(error=error)
    handler, _ = pair(mantle, source)
    assert arm_of(handler) == ("remote", reason)
    assert source.loads == 1  # a failure is remembered
    others = [trigger for trigger in fallback.TRIGGERS if trigger != reason]
    handler, _ = pair(mantle, Models(error=error), triggers=others)
    before = len(mantle.requests)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(handler)
    assert caught.value.response.headers["x-gemmantle-arm"] == "local"
    assert str(error) in str(caught.value)
    assert len(mantle.requests) == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceError("the device is gone"), "device_error"),
        (OutOfMemory("no room"), "too_large"),
        (RequestError("too long", code="context_length_exceeded"), "too_large"),
        (RequestError("never fits", code="request_too_large_for_memory"), "too_large"),
        (RequestError("queue full", code="engine_busy"), "busy"),
    ],
)
def test_f7_refused_by_the_engine(mantle, error, reason):
    engine = fake()
    engine.refuse = error
    handler, _ = pair(mantle, Models(engine))
    assert arm_of(handler) == ("remote", reason)
    assert arm_of(handler, stream=True) == ("remote", reason)
    handler, _ = pair(mantle, Models(engine), triggers=[])
    with pytest.raises(openai.APIStatusError):
        ask(handler)


def test_f7_an_image_goes_where_images_are_taken(mantle):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    handler, _ = pair(mantle, Models(fake()))
    assert arm_of(handler, messages=[{"role": "user", "content": [part]}]) == ("remote", "unsupported")
    wrong = [{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(handler, messages=wrong)
    assert caught.value.response.headers["x-gemmantle-arm"] == "local"
    assert "does not take it either" in caught.value.response.headers["x-gemmantle-fallback"]


def test_f7_loading_longer_than_allowed(mantle):
    gate = threading.Event()
    source = Models(fake(), wait=gate)
    handler, _ = pair(mantle, source, loading_s=0)
    assert arm_of(handler) == ("remote", "loading")
    assert source.loads == 1  # it goes on behind
    gate.set()
    handler, _ = pair(mantle, Models(fake(), wait=gate))
    assert arm_of(handler) == ("local", None)


def test_f7_a_queue_that_stays(mantle):
    engine = fake()
    engine.stats = lambda: {"queued": 3}
    handler, _ = pair(mantle, Models(engine), busy_s=0)
    assert arm_of(handler) == ("remote", "busy")
    assert engine.submitted == []
    handler, _ = pair(mantle, Models(engine), busy_s=0)
    handler._remote.capabilities.data["models"] = {"other": {}}
    assert arm_of(handler) == ("local", None)  # the service lacks the model, so there is nothing to wait for
    left = [2, 1, 0]
    engine.stats = lambda: {"queued": left.pop(0) if left else 0}
    handler, _ = pair(mantle, Models(engine), busy_s=30)
    assert arm_of(handler) == ("local", None)


@pytest.mark.parametrize(
    "error",
    [
        RequestError("temperature is wrong", param="temperature"),
        RequestError("cancelled", code="request_cancelled"),
        EngineClosed("closed"),
        KeyError("a bug"),
    ],
)
def test_f7_never_for_mistakes_cancellation_and_bugs(mantle, error):
    engine = fake()
    engine.refuse = error
    handler, _ = pair(mantle, Models(engine))
    with pytest.raises(openai.APIStatusError) as caught:
        ask(handler)
    assert caught.value.response.headers["x-gemmantle-arm"] == "local"
    assert mantle.requests == []


def test_f8_no_switch_after_the_first_byte(mantle):
    handler, _ = pair(mantle, Models(fake(("content", "Hel"), DeviceError("gone"))))
    client = client_over(handler, {"max_retries": 0})
    stream = client.chat.completions.create(model=NAME, messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="gone"):
        list(stream)
    assert mantle.requests == []


def test_f8_no_return_to_local(mantle):
    engine = fake()
    engine.refuse = DeviceError("gone")
    handler, _ = pair(mantle, Models(engine))
    mantle.schedule.append(503)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(handler)
    assert caught.value.response.headers["x-gemmantle-arm"] == "remote"
    assert len(mantle.requests) == 1
    with pytest.raises(openai.BadRequestError, match="top_k"):
        ask(handler, extra_body={"top_k": 3})


def test_a_model_the_service_does_not_have_stays_local(mantle):
    handler, _ = pair(mantle, Models())
    with pytest.raises(openai.NotFoundError) as caught:
        ask(handler, model="google/gemma-4-12B-it")
    assert "does not have this model" in caught.value.response.headers["x-gemmantle-fallback"]
    assert mantle.requests == []


def test_9_4_wishes_in_the_body_and_in_the_header(mantle):
    handler, _ = pair(mantle, Models(fake()))
    assert arm_of(handler, extra_body={"fallback": "only"}) == ("remote", "only")
    assert arm_of(handler, extra_headers={"x-gemmantle-fallback": "only"}) == ("remote", "only")
    assert arm_of(handler, extra_body={"fallback": "allow"}) == ("local", None)
    assert all("fallback" not in body for body in mantle.bodies)
    broken, _ = pair(mantle, Models(error=DriverTooOld("old")))
    count = len(mantle.requests)
    for wish in ({"extra_body": {"fallback": "never"}}, {"extra_headers": {"x-gemmantle-fallback": "never"}}):
        with pytest.raises(openai.APIStatusError, match="old"):
            ask(broken, **wish)
    assert len(mantle.requests) == count
    for wish in (
        {"extra_body": {"fallback": "maybe"}},
        {"extra_headers": {"x-gemmantle-fallback": "maybe"}},
        {"extra_body": {"fallback": "never"}, "extra_headers": {"x-gemmantle-fallback": "only"}},
    ):
        with pytest.raises(openai.BadRequestError, match="fallback"):
            ask(handler, **wish)


def test_f9_an_open_breaker_keeps_requests_here(mantle):
    engine = fake()
    engine.refuse = DeviceError("gone")
    handler, remote = pair(mantle, Models(engine))
    mantle.schedule.extend([503] * 5)
    for _ in range(6):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(handler)
    assert "left alone" in caught.value.response.headers["x-gemmantle-fallback"]
    assert len(mantle.requests) == 5
    assert not remote.reachable()


def test_f9_the_breaker_by_an_injected_clock():
    now = [0.0]
    breaker = fallback.Breaker(clock=lambda: now[0])
    for _ in range(8):  # eight requests in the minute before it opens
        assert breaker.allow()
        breaker.record(True)
    for failures in range(5):
        assert breaker.state == "closed", failures
        assert breaker.allow()
        breaker.record(False)
    assert breaker.state == "open"
    assert not breaker.allow()
    assert breaker.seconds_left() == 900
    now[0] = 899.9
    assert not breaker.allow()
    now[0] = 900.0
    assert breaker.state == "half-open"
    steps = []
    while breaker.state == "half-open":
        passed = 0
        while breaker.state == "half-open" and breaker.allow() and passed < 50:
            breaker.record(True)
            passed += 1
        steps.append(passed)
        now[0] += 60
    # Thirteen a minute before: half of it, then half more with each step.
    assert steps[:2] == [7, 10]
    assert breaker.state == "closed"
    assert breaker.allow()


def test_f9_a_failure_on_the_way_back_opens_it_again():
    now = [0.0]
    breaker = fallback.Breaker(limit=2, clock=lambda: now[0])
    for _ in range(2):
        breaker.allow()
        breaker.record(False)
    now[0] = 1000.0
    assert breaker.allow()
    assert not breaker.allow()  # one at a time: half of two a minute
    breaker.record(False)
    assert breaker.state == "open"
    now[0] = 1899.0
    assert not breaker.allow()
    now[0] = 1900.0
    assert breaker.allow()
    breaker.record(True)
    now[0] = 1960.0
    assert breaker.allow()
    breaker.record(True)
    now[0] = 2020.0
    assert breaker.allow()
    assert breaker.state == "closed"


def test_f9_failures_must_be_consecutive():
    breaker = fallback.Breaker(clock=lambda: 0.0)
    for _ in range(20):
        breaker.record(False)
        breaker.record(False)
        breaker.record(True)
    assert breaker.state == "closed"


def test_f11_ids_of_the_remote_service_stay_with_it(mantle):
    handler, _ = pair(mantle, Models(fake()))
    client = client_over(handler, {"max_retries": 0})
    first = client.responses.create(model=NAME, input="Hi", extra_body={"fallback": "only"})
    second = client.responses.create(model=NAME, input="And?", previous_response_id=first.id)
    assert second.served_by["reason"] == "state"
    assert client.responses.retrieve(first.id).id == first.id
    streamed = list(client.responses.create(model=NAME, input="Hi", stream=True, extra_body={"fallback": "only"}))
    assert client.responses.retrieve(streamed[0].response.id).id == streamed[0].response.id
    with pytest.raises(openai.BadRequestError, match="kept by the remote service"):
        client.responses.create(
            model=NAME, input="And?", previous_response_id=first.id, extra_body={"fallback": "never"}
        )
    client.responses.delete(first.id)


def test_f11_what_builds_on_a_local_answer_does_not_leave(mantle):
    handler, _ = pair(mantle, Models(error=DriverTooOld("old")))
    client = client_over(handler, {"max_retries": 0})
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(model=NAME, input="And?", previous_response_id="resp_local")
    assert "kept here" in caught.value.response.headers["x-gemmantle-fallback"]
    assert mantle.requests == []


def test_a_closed_engine_is_an_answer_and_no_reason_to_leave(mantle, monkeypatch):
    source = Models(fake())
    monkeypatch.setattr(source, "find", lambda name: _raise(EngineClosed("the engine is closed")))
    handler, _ = pair(mantle, source)
    with pytest.raises(openai.InternalServerError, match="the engine is closed"):
        ask(handler)

    async def main():
        await async_client_over(handler, {"max_retries": 0}).chat.completions.create(model=NAME, messages=USER)

    with pytest.raises(openai.InternalServerError, match="the engine is closed"):
        asyncio.run(main())
    assert mantle.requests == []


def test_the_time_spent_waiting_counts(mantle):
    gate = threading.Event()
    handler, _ = pair(mantle, Models(fake(), wait=gate))
    with pytest.raises(openai.APITimeoutError):
        ask(handler, timeout=0.1)
    gate.set()
    assert mantle.requests == []


def test_load_with_fallback(mantle, monkeypatch):
    options = {"region": "us-east-1", "base_url": mantle.url, "api_key": KEY}
    engine = gemmantle.load("gemma4:31b", fallback=gemmantle.remote(**options), device="reference")
    assert "no engine for 'gemma4:31b'" in repr(engine)
    assert KEY not in repr(engine)
    answer = engine.client().chat.completions.create(model="gemma4:31b", messages=USER)
    assert answer.served_by["reason"] == "cannot_load"

    async def main():
        return await engine.async_client().chat.completions.create(model=NAME, messages=USER)

    assert asyncio.run(main()).choices
    with pytest.raises(openai.NotFoundError):  # another model than the one that was asked for
        engine.client().chat.completions.create(model="google.gemma-4-e2b", messages=USER)
    count = len(mantle.requests)
    with pytest.raises(ModelNotFound):
        engine.generate([{"prompt": "Hi"}])
    with pytest.raises(ModelNotFound):
        engine.score([("a", "b")])
    assert len(mantle.requests) == count
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    with pickle.loads(pickle.dumps(engine)) as again:
        assert again.client().chat.completions.create(model="gemma4:31b", messages=USER).served_by
    with pytest.raises(ModelNotFound):  # the service does not have it either
        gemmantle.load("google/gemma-4-12B-it", fallback=gemmantle.remote(**options))
    with pytest.raises(ValueError, match="device"):
        gemmantle.load("gemma4:31b", fallback=gemmantle.remote(**options), device="toaster")


def test_load_with_fallback_answers_here_where_it_can(mantle, monkeypatch):
    engine = fake()
    real = engines.load
    monkeypatch.setattr(engines, "load", lambda model, **_: engine)
    remote = gemmantle.remote(region="us-east-1", base_url=mantle.url, api_key=KEY)
    paired = real("gemma4:31b", fallback=remote)
    raw = paired.client().chat.completions.with_raw_response.create(model="gemma4:31b", messages=USER)
    assert raw.headers["x-gemmantle-arm"] == "local"
    assert paired.profile.name == NAME
    assert [card["id"] for card in json.loads(json.dumps(paired.cards()))] == [NAME]
    assert mantle.requests == []
