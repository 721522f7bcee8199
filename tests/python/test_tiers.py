"""`service_tier`: what it asks of the engine, on every route, and what the answer says about it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fake_engine import HELLO, FakeEngine

from gemmantle import bulk
from gemmantle.client import client_for

APPLIED = {
    "auto": ("default", 0),
    "default": ("default", 0),
    "scale": ("default", 0),
    "fast": ("default", 0),
    "priority": ("priority", 1),
    "flex": ("flex", -1),
}
USER: Any = [{"role": "user", "content": "Hi"}]


def priorities(engine: FakeEngine) -> set[int]:
    return {sampling.priority for _, sampling in engine.submitted}


@pytest.mark.parametrize("asked", [None, *APPLIED])
def test_a_tier_is_the_priority_in_the_engine_and_is_echoed(asked: str | None) -> None:
    tier, priority = APPLIED[asked or "auto"]
    fields: dict[str, Any] = {} if asked is None else {"extra_body": {"service_tier": asked}}
    engine = FakeEngine(HELLO)
    client = client_for(engine)

    chat = client.chat.completions.create(model="fake", messages=USER, n=2, **fields)
    text = client.completions.create(model="fake", prompt="Hi", **fields)
    answer = client.responses.create(model="fake", input="Hi", **fields)
    with client.responses.create(model="fake", input="Hi", stream=True, **fields) as events:
        streamed = [event.response.service_tier for event in events if hasattr(event, "response")]

    assert (chat.service_tier, answer.service_tier, set(streamed)) == (tier, tier, {tier})
    assert text.choices
    assert priorities(engine) == {priority}
    list(bulk.generate(engine, [{"prompt": "Hi", "service_tier": asked}], 1))
    assert priorities(engine) == {priority}


@pytest.mark.parametrize("background", [False, True])
def test_what_nobody_waits_for_is_flex_unless_it_says_otherwise(background: bool) -> None:
    for asked, tier in (("auto", "flex" if background else "default"), ("priority", "priority")):
        engine = FakeEngine(HELLO)
        answer = client_for(engine).responses.create(
            model="fake",
            input="Hi",
            background=background,
            service_tier=asked,  # type: ignore[arg-type]
        )
        assert answer.service_tier == tier
        assert priorities(engine) == {APPLIED[tier][1]}


@pytest.mark.parametrize("asked", ["express", 1, ["flex"]])
def test_any_other_tier_is_refused_with_those_there_are(asked: object) -> None:
    with pytest.raises(openai.BadRequestError, match=r"service_tier.*priority, default, flex") as caught:
        client_for(FakeEngine(HELLO)).chat.completions.create(
            model="fake", messages=USER, extra_body={"service_tier": asked}
        )
    assert caught.value.param == "service_tier"
