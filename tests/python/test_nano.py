"""The embedded models: true Gemma 4 checkpoints with trained weights, and honest about what they are.

Their logits are held to transformers' in `test_golden.py`, like those of any checkpoint; `tools/train_nano.py export
--golden` writes these goldens together with the weights.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import gemmantle
import gemmantle.cli
from gemmantle import OpenAI, hub
from gemmantle.chat import Tokenizer
from gemmantle.chat.segments import SPECIAL_IDS

MODELS = [name for name in hub.embedded_names() if name.startswith("gemma-4-nano-")]

pytestmark = pytest.mark.parametrize("name", MODELS)


def folder_of(name: str) -> Path:
    return Path(gemmantle.__file__).parent / "models" / name


def test_folder_is_small_and_in_the_released_layout(name: str) -> None:
    folder = folder_of(name)
    config = json.loads((folder / "config.json").read_text())

    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000
    assert config["model_type"] == "gemma4"
    assert config["text_config"]["model_type"] == "gemma4_text"
    assert "very small demonstration model" in config["gemmantle"]["description"]


def test_vocabulary_has_every_special_string(name: str) -> None:
    tokenizer = Tokenizer.from_file(folder_of(name))

    assert 1500 <= tokenizer.size <= 4000
    assert set(tokenizer.special) == set(SPECIAL_IDS)
    assert len(tokenizer.eos_ids) == 3


def test_it_says_what_it_is(name: str) -> None:
    with OpenAI() as client:
        reply = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Who are you?"}], temperature=0
        )

    assert "a very small demonstration model" in (reply.choices[0].message.content or "")


def test_info_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gemmantle.cli.main(["info", name])

    description = json.loads(capsys.readouterr().out)["config"]["description"]
    assert "a very small demonstration model" in description
    assert "not a Gemma 4 release" in description


def test_a_streamed_answer_needs_only_the_name(name: str) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with OpenAI() as client:
        chunks = list(client.chat.completions.create(model=name, messages=messages, temperature=0, stream=True))

    assert len(chunks) >= 2
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_it_chooses_and_fills_a_tool(name: str) -> None:
    def tool(title: str, argument: str) -> dict[str, object]:
        parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
        return {"type": "function", "function": {"name": title, "description": title, "parameters": parameters}}

    with OpenAI() as client:
        reply = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "What is the weather in Berlin?"}],
            tools=[tool("get_weather", "city"), tool("get_price", "item")],
            temperature=0,
        )

    (choice,) = reply.choices
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Berlin"}


def test_loading_time_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: a busy machine proves nothing. No other test has this context, so nothing is shared."""
    begun = time.perf_counter()
    with gemmantle.load(name, max_context=640) as engine:
        took = time.perf_counter() - begun
        assert engine.profile.name == name
    with capsys.disabled():
        print(f"\n{name} loaded in {1000 * took:.0f} ms")
