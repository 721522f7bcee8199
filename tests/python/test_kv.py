"""What K and V are kept as: the option `kv`, its bytes, and how near the logits stay."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import gemmantle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gemmantle._core") is None, reason="the native module is not built"
)

MODEL = "gemma-4-nano-e"
PROMPT = [2, *range(300, 380)]


def test_every_type_takes_its_bytes_and_stays_near() -> None:
    bytes_of, logits_of = {}, {}
    for kv in ("f32", "bf16", "q8"):
        with gemmantle.load(MODEL, device="cpu", mode="fast", kv=kv, max_concurrency=2, max_context=1024) as engine:
            logits_of[kv] = engine.logits(PROMPT)
            info = engine.info()
            assert info["kv_type"] == kv
            assert min(info["memory"].values()) > 0
            bytes_of[kv] = info["memory"]["kv"]
    assert bytes_of["bf16"] == bytes_of["f32"] // 2
    assert bytes_of["bf16"] // 2 < bytes_of["q8"] < bytes_of["bf16"] * 0.6
    spread = float(np.std(logits_of["f32"]))
    for kv, most in (("bf16", 0.02), ("q8", 0.03)):
        apart = np.abs(logits_of[kv] - logits_of["f32"]).mean() / spread
        assert 0 < apart < most, f"{kv}: {apart}"


@pytest.mark.parametrize(("mode", "wanted"), [("exact", "f32"), ("fast", "bf16")])
def test_the_mode_chooses(mode: str, wanted: str) -> None:
    with gemmantle.load(MODEL, device="cpu", mode=mode) as engine:
        assert engine.info()["kv_type"] == wanted


def test_a_wrong_type_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="kv is 'f8'; it must be one of auto, f32, bf16, q8"):
        gemmantle.load(MODEL, device="cpu", kv="f8")
