"""A-22: random weights on a machine without a GPU: whatever they say, every way of asking says the same."""

from __future__ import annotations

import pytest
from random_speaker import make_speaker

import gemmantle

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    with gemmantle.load(make_speaker(tmp_path_factory), device="cpu", max_context=2048, deterministic=True) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"n": 3}, id="three choices"),
        pytest.param({"reasoning_effort": "high"}, id="thoughts"),
        pytest.param({"logprobs": True, "top_logprobs": 3}, id="log-probabilities"),
        pytest.param({"stop": ["a", "e"]}, id="stops"),
        pytest.param({"presence_penalty": 1, "frequency_penalty": 0.5, "top_p": 0.9}, id="penalties"),
    ],
)
def test_a22_c04_streamed_and_plain_say_the_same(ways, speaker, fields):
    client = ways.client(speaker)
    fields = {"model": speaker.name, "messages": USER, "seed": 3, "max_completion_tokens": 40, **fields}
    plain = client.chat.completions.create(**fields)
    told, thoughts, entries = {}, {}, {}
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            told[choice.index] = told.get(choice.index, "") + (choice.delta.content or "")
            reasoning = getattr(choice.delta, "reasoning", None) or ""
            thoughts[choice.index] = thoughts.get(choice.index, "") + reasoning
            listed = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
            entries.setdefault(choice.index, []).extend(listed)
    for choice in plain.choices:
        assert told[choice.index] == (choice.message.content or "")
        assert thoughts[choice.index] == (getattr(choice.message, "reasoning", None) or "")
        if "logprobs" in fields:
            assert entries[choice.index] == (choice.logprobs.content or [])


def test_a22_r05_a_seed_repeats_whatever_else_runs(ways, speaker):
    client = ways.client(speaker)
    fields = {"model": speaker.name, "prompt": [2, 40, 41], "max_tokens": 30, "seed": 11}
    alone = client.completions.create(**fields).choices[0].text
    assert client.completions.create(**fields).choices[0].text == alone
    assert client.completions.create(**{**fields, "n": 4}).choices[0].text == alone
    assert client.completions.create(**{**fields, "seed": 12}).choices[0].text != alone


def test_a22_r03_no_temperature_is_greedy(ways, speaker):
    client = ways.client(speaker)
    extra = {"return_token_ids": True}
    answer = client.completions.create(
        model=speaker.name, prompt=[2, 40, 41], max_tokens=5, temperature=0, logprobs=1, extra_body=extra
    )
    logits = speaker.logits([2, 40, 41, *answer.choices[0].token_ids[:-1]])
    assert answer.choices[0].token_ids == logits[2:].argmax(axis=1).tolist()


def test_a22_the_device_is_this_machine(speaker):
    assert speaker.info()["device"] == "cpu"
