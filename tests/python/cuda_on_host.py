"""Runs a checkpoint with device "cuda" and writes what came out to an .npz file: `cuda_on_host.py FOLDER IDS OUT`.

A program of its own, because a process asks for the CUDA plugin once: GEMMANTLE_CUDA_LIBRARY must name the plugin that
runs on the host before anything else happens.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import gemmantle

DECODED = 12


def greedy(prompt: list[int], count: int) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_completion_tokens": count, "ignore_eos": True}


def run(folder: str, ids: list[int]) -> dict[str, Any]:
    """Logits of the prompt read in several ways, and greedy continuations alone, in a batch and after a prefix hit."""
    n = len(ids)
    with gemmantle.load(folder, device="cuda") as engine:
        whole = engine.logits(ids)
        out: dict[str, Any] = {
            "device": engine.info()["device"],
            "whole": whole,
            "again": engine.logits(ids),
            "chunked": engine.logits(ids, chunks=[17, 1, 16, n - 34]),
            "by_token": engine.logits(ids, chunks=[1] * n),
            "last": engine.logits(ids, last_only=True),
        }
        [alone] = engine.generate([greedy(ids, DECODED)])
        together = list(engine.generate([greedy(ids, DECODED), greedy(ids[:31], DECODED), greedy(ids[::-1], 5)]))
        [hit] = engine.generate([greedy(ids, DECODED)])
        out |= {"alone": alone.ids, "batched": together[0].ids, "hit": hit.ids}
        out["cached"] = hit.usage.cached_tokens
    return out


if __name__ == "__main__":
    folder, ids_file, out_file = sys.argv[1:]
    np.savez(out_file, **run(folder, np.load(ids_file)["ids"].tolist()))
