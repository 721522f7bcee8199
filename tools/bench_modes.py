"""Speed of mode "fast" against mode "exact" on one model: both in one process, taking turns.

    python tools/bench_modes.py model.gguf [--rounds 5] [--prompt 512] [--decode 32] [--threads N]

First token: a fresh prompt of random ids until its first sampled id. Decode: time between later tokens. Wall and CPU
seconds (all threads) are given, since on a machine that others use too only the second means something.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import gemmantle
from gemmantle.engines import Engine

MODES = ("exact", "fast")
COLUMNS = ("first token, wall", "first token, CPU", "decode a token, wall", "decode a token, CPU")


def seconds(engine: Engine, rng: np.random.Generator, prompt: int, tokens: int) -> tuple[float, float]:
    """Wall and CPU seconds of one request."""
    ids = [2, *(int(i) for i in rng.integers(300, engine.info()["vocabulary"], prompt - 1))]
    wall, cpu = time.perf_counter(), time.process_time()
    list(engine.generate([{"prompt": ids, "temperature": 0, "max_completion_tokens": tokens, "ignore_eos": True}]))
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(engine: Engine, rng: np.random.Generator, prompt: int, decode: int) -> list[float]:
    first, first_cpu = seconds(engine, rng, prompt, 1)
    short, short_cpu = seconds(engine, rng, 16, 1)
    longer, longer_cpu = seconds(engine, rng, 16, decode + 1)
    return [first, first_cpu, (longer - short) / decode, (longer_cpu - short_cpu) / decode]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    context = max(options.prompt, 16 + options.decode) + 8
    engines = {
        mode: gemmantle.load(
            options.model, device="cpu", mode=mode, threads=options.threads, max_context=context, max_concurrency=1
        )
        for mode in MODES
    }
    rows: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    for engine in engines.values():  # pages of the map, pools and buffers come into being here
        seconds(engine, np.random.default_rng(0), 16, 2)
    for turn in range(options.rounds):
        for mode, engine in engines.items():
            rows[mode].append(measure(engine, np.random.default_rng(turn), options.prompt, options.decode))
    facts = engines["fast"].info()
    print(f"{facts['name']}, {facts['isa']}, {facts['threads']} threads, {options.rounds} rounds, medians in seconds")
    for i, column in enumerate(COLUMNS):
        exact, fast = ([row[i] for row in rows[mode]] for mode in MODES)
        ratio = statistics.median(a / b for a, b in zip(exact, fast, strict=True))
        print(
            f"{column:22} exact {statistics.median(exact):8.4f}   fast {statistics.median(fast):8.4f}   x {ratio:.2f}"
        )
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
