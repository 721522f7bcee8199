"""Ours against llama.cpp on one GGUF file: both in one run, taking turns, medians and ratios.

    python tools/bench_peers.py e2b-q4_0.gguf --peer-python PEERS/bin/python [--rounds 5] [--only first decode ...]

PEERS is a virtual environment with `CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python numpy`; files of true
shapes come from tools/make_random_gguf.py. What is compared, by name:

    first     first sampled id of a fresh prompt, against llama.cpp's prompt evaluation of as many ids
    prefill   all rows through all layers: without the head, against that prompt evaluation; and with the head for all
              rows, against llama.cpp with the logits of all rows
    decode    one sequence, against llama.cpp, the memory rate of the same round, and own decode behind --depth ids
    streams   --streams sequences at once, against llama.cpp with as many, and against one of our own
    busy      decode beside one process that keeps a core busy, against our own single-thread speed without it
    load      time from load to the first token, and resident memory

Nothing else may run meanwhile: a compiler beside it makes every figure worthless. --apart runs one engine after the
other, where both do not fit into memory; ratios are then less sure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gemmantle.bench import footprint, machine, report
from gemmantle.bench.ids import IdEngine, fresh_prompt

PARTS = ("first", "prefill", "decode", "streams", "busy", "load")

# Name of a series -> its values, one a round: seconds, or GB/s of the probe.
Series = dict[str, list[float]]


class Llama:
    """The process of peer_llama.py."""

    def __init__(self, options: argparse.Namespace, threads: int) -> None:
        self._options = options
        worker = Path(__file__).with_name("peer_llama.py")
        self._process = subprocess.Popen(
            [options.peer_python, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        spare = (options.rounds + 2) * (options.steps + 1) + 8
        self._load_s = self._ask(do="open", model=options.model, threads=threads, context=spare)

    def facts(self) -> dict[str, Any]:
        return {"llama_load_s": self._load_s}

    def play(self, series: Series) -> None:
        """One round, added to `series`."""
        o = self._options

        def put(name: str, **request: Any) -> None:
            series.setdefault(name, []).append(self._ask(**request))

        if "first" in o.only or "prefill" in o.only:
            put("llama prompt", do="prompt", tokens=o.prompt, all_logits=False)
        if "prefill" in o.only:
            put("llama all logits", do="prompt", tokens=o.prompt, all_logits=True)
        if "decode" in o.only:
            put("llama decode", do="decode", depth=0, sequences=1, steps=o.steps)
        if "streams" in o.only:
            put("llama streams", do="decode", depth=0, sequences=o.streams, steps=o.steps)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request: Any) -> float:
        """Seconds. RuntimeError with the worker's words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")
        return float(answer["seconds"])


class Ours:
    """Our engine at all threads, and at one for the busy neighbour."""

    def __init__(self, options: argparse.Namespace, probe: machine.Probe) -> None:
        self._options = options
        self._probe = probe
        self._rng = np.random.default_rng(2)
        self._engine = self._open(options.threads, options.streams if "streams" in options.only else 1)
        self._single = self._open(1, 1) if "busy" in options.only else None
        self._deep = self._prompt(options.depth)

    def _open(self, threads: int | None, sequences: int) -> IdEngine:
        o = self._options
        context = max(o.prompt, o.depth if "decode" in o.only else 0) + 2 * o.steps + 512
        return IdEngine(o.model, threads=threads, mode=o.mode, max_context=context, sequences=sequences)

    def _prompt(self, length: int) -> Any:
        return fresh_prompt(self._rng, self._engine.vocabulary, length)

    def facts(self) -> dict[str, Any]:
        return self._engine.info()

    def play(self, series: Series) -> None:
        """One round, added to `series`."""
        o = self._options

        def put(name: str, value: float) -> None:
            series.setdefault(name, []).append(value)

        if "first" in o.only:
            put("ours first", self._engine.first_token(self._prompt(o.prompt)))
        if "prefill" in o.only:
            took = self._engine.score(self._prompt(o.prompt))
            put("ours all logits", took)
            put("ours all layers", took - self._seconds_of_head())
        if "decode" in o.only:
            read = self._probe.read()
            took = self._decode(self._engine)
            put("ours decode", took)
            put("share of probe", self._bytes_of_step() / 1e9 / took / read)
            put("probe", read)
            self._engine.first_token(self._deep)  # kept from the round before
            put("ours decode deep", self._engine.decode([self._deep], o.steps))
        if "streams" in o.only:
            put("ours one stream", self._decode(self._engine))
            put("ours streams", self._decode(self._engine, o.streams))
        if self._single is not None:
            put("ours single thread", self._decode(self._single))
            with busy_neighbour():
                put("ours beside a neighbour", self._decode(self._engine))

    def close(self) -> None:
        for engine in filter(None, (self._engine, self._single)):
            engine.close()

    def _decode(self, engine: IdEngine, sequences: int = 1) -> float:
        """Seconds of a step."""
        return engine.decode([self._prompt(4) for _ in range(sequences)], self._options.steps)

    def _bytes_of_step(self) -> float:
        """Of weights and KV, in the decode just measured."""
        profile = self._engine.take_profile()
        steps = sum(entry["calls"] for entry in profile if entry["op"] == "sample")
        return float(sum(entry["bytes"] for entry in profile)) / max(1, steps)

    def _seconds_of_head(self) -> float:
        """Of what follows the last layer, in the prompt just measured."""
        return sum(entry["seconds"] for entry in self._engine.take_profile() if entry["op"] in ("head", "sample"))


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(options: argparse.Namespace, series: Series) -> dict[str, Any]:
    """All rounds into `series`, one more before them uncounted; facts of both engines."""
    probe = machine.Probe(options.threads)
    starts: list[Callable[[], Llama | Ours]] = [lambda: Llama(options, probe.threads), lambda: Ours(options, probe)]
    facts: dict[str, Any] = {}
    for together in [[start] for start in starts] if options.apart else [starts]:
        with contextlib.ExitStack() as opened:
            engines = [opened.enter_context(contextlib.closing(start())) for start in together]
            for engine in engines:
                facts.update(engine.facts())
            for number in range(options.rounds + 1):
                for engine in engines:
                    engine.play(series if number else {})
                print(f"round {number} of {options.rounds}", file=sys.stderr)
    return facts


def lines_of(series: Series, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Lines of the table: what, ours, against what, and the median of the rounds' ratios."""
    lines: list[tuple[str, ...]] = []

    def line(what: str, ours: str, other: str, tokens: int, other_tokens: int | None = None) -> None:
        if ours not in series:
            return
        per_other = tokens if other_tokens is None else other_tokens
        ratios = [(tokens / a) / (per_other / b) for a, b in zip(series[ours], series[other], strict=True)]
        lines.append(
            (
                what,
                f"{tokens / median(series[ours]):.1f}",
                f"{per_other / median(series[other]):.1f}",
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
            )
        )

    prompt, streams = options.prompt, options.streams
    line(f"first token of {prompt}", "ours first", "llama prompt", prompt)
    line("prefill, all layers", "ours all layers", "llama prompt", prompt)
    line("prefill, all layers and all logits", "ours all logits", "llama all logits", prompt)
    line("decode", "ours decode", "llama decode", 1)
    if shares := series.get("share of probe"):
        read = f"{median(series['probe']):.1f} GB/s"
        lines.append(
            ("decode, of the memory rate", "", read, f"{median(shares):.2f}", f"{min(shares):.2f}-{max(shares):.2f}")
        )
    line(f"decode behind {options.depth}, own", "ours decode deep", "ours decode", 1)
    line(f"{streams} streams", "ours streams", "llama streams", streams)
    line(f"{streams} streams, own single one", "ours streams", "ours one stream", streams, 1)
    line("decode beside a neighbour, own single thread", "ours beside a neighbour", "ours single thread", 1)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with llama-cpp-python (default: this)")
    parser.add_argument("--mode", default="fast", choices=("exact", "fast"))
    parser.add_argument("--threads", type=int, help="of both (default: one per physical core)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32, help="of decode, in a round")
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--apart", action="store_true", help="one engine after the other")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    series: Series = {}
    facts = measure(options, series)
    turns = "one engine after the other" if options.apart else "taking turns"
    print(
        f"{Path(options.model).name}, mode {options.mode}, {machine.processor()}, {facts['isa']}, {facts['threads']} "
        f"threads, {options.rounds} rounds {turns}; tokens/s"
    )
    print(report.table(("", "ours", "against", "ratio", "range"), lines_of(series, options)))
    memory: dict[str, float] = {}
    if "load" in options.only:
        memory = footprint.measure(options.model, device="cpu", threads=options.threads, mode=options.mode)
        print(
            f"load to first token {memory['load_to_first_token_s']:.2f} s (llama.cpp loads in "
            f"{facts['llama_load_s']:.2f} s), resident {memory['resident_gb']:.2f} GB"
        )
    if options.json:
        figures = {"options": vars(options), "facts": facts, "series": series, "footprint": memory}
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
