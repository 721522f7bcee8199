"""Runs a checkpoint on CUDA and writes what came out to an .npz file: `golden_on_cuda.py FOLDER OUT [DEVICE]`.

A program of its own, because a process asks for the CUDA plugin once: GEMMANTLE_CUDA_LIBRARY may name one whose
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


def run(folder: Path, device: str) -> dict[str, Any]:
    """Logits of the golden prompt read in several ways; greedy ids alone, in a batch and after a prefix hit."""
    with np.load(folder / "golden.npz") as golden:
        ids = golden["ids"].tolist()
    n = len(ids)
    with gemmantle.load(folder, device=device) as engine:
        [alone] = engine.generate([greedy(ids, DECODED)])
        [hit] = engine.generate([greedy(ids, DECODED)])
        together = list(engine.generate([greedy(ids, DECODED), greedy(ids[:31], DECODED), greedy(ids[::-1], 3)]))
        return {
            "device": engine.info()["device"],
            "layers_per_device": engine.info().get("layers_per_device", []),
            "alone": alone.ids,
            "hit": hit.ids,
            "batched": together[0].ids,
            "cached": [result.usage.cached_tokens for result in (alone, hit)],
            "whole": engine.logits(ids),
            "chunked": engine.logits(ids, chunks=[17, 1, 16, n - 34]),
            "by_token": engine.logits(ids, chunks=[1] * n),
            "last": engine.logits(ids, last_only=True),
            "read": engine.logits([*ids, *alone.ids])[n - 1 : -1],
        }


if __name__ == "__main__":
    np.savez(sys.argv[2], **run(Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else "cuda"))
