"""The embedded models: true Gemma 4 checkpoints with trained weights, and honest about what they are.

Goldens are transformers' f32 logits and greedy continuation of one tool conversation, embedding scales rounded to bf16;
`tools/train_nano.py export --golden` writes them together with the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gemmantle
from gemmantle import OpenAI, hub
from gemmantle.chat import Tokenizer
from gemmantle.chat.segments import SPECIAL_IDS

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nano"
MODELS = [name for name in hub.embedded_names() if name.startswith("gemma-4-nano-")]
FRAMEWORK = 1e-3  # float32 against float32 by other code; trained logits reach 30

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


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_and_greedy_continuation_match_the_framework(name: str, device: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as golden:
        ids, expected, greedy = golden["ids"].tolist(), golden["logits"], golden["greedy"].tolist()
    with gemmantle.load(name, device=device, mode="exact") as engine:
        logits = engine.logits(ids)
        request = {"prompt": ids, "temperature": 0, "max_completion_tokens": len(greedy), "ignore_eos": True}
        (result,) = engine.generate([request])

    assert np.abs(logits - expected).max() < FRAMEWORK
    assert list(result.ids) == greedy


def test_it_says_what_it_is(name: str) -> None:
    with OpenAI() as client:
        reply = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Who are you?"}], temperature=0
        )

    assert "a very small demonstration model" in (reply.choices[0].message.content or "")
