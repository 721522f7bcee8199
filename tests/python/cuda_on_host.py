"""Runs a checkpoint with device "cuda" and writes what came out to an .npz file: `cuda_on_host.py FOLDER OUT`.

A program of its own, because a process asks for the CUDA plugin once: GEMMANTLE_CUDA_LIBRARY names the plugin whose
kernels run on the host.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import gemmantle

DECODED = 8


def greedy(prompt: list[int], count: int) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_completion_tokens": count, "ignore_eos": True}


def run(folder: Path) -> dict[str, Any]:
    """Logits of the golden prompt read in several ways; greedy ids alone, in a batch and after a prefix hit."""
    with np.load(folder / "golden.npz") as golden:
        ids = golden["ids"].tolist()
    n = len(ids)
    with gemmantle.load(folder, device="cuda") as engine:
        out: dict[str, Any] = {
            "device": engine.info()["device"],
            "whole": engine.logits(ids),
            "chunked": engine.logits(ids, chunks=[17, 1, 16, n - 34]),
            "by_token": engine.logits(ids[:24], chunks=[1] * 24),
            "last": engine.logits(ids, last_only=True),
        }
        [alone] = engine.generate([greedy(ids, DECODED)])
        [hit] = engine.generate([greedy(ids, DECODED)])
        together = list(engine.generate([greedy(ids, DECODED), greedy(ids[:31], DECODED), greedy(ids[::-1], 3)]))
        out |= {"alone": alone.ids, "hit": hit.ids, "batched": together[0].ids}
        out["read"] = engine.logits([*ids, *alone.ids])[n - 1 : -1]
        out["cached"] = [result.usage.cached_tokens for result in (alone, hit)]
    return out


if __name__ == "__main__":
    np.savez(sys.argv[2], **run(Path(sys.argv[1])))
