"""The command `gemmantle bench`: what is asked for, in which order, and where it is printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmantle
from gemmantle import hub
from gemmantle.bench import fidelity, footprint, machine, report, speed
from gemmantle.bench.ids import IdEngine

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the model."""
    parser.add_argument("--device", default="cpu", help="cpu or reference (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads (default: one per core)")
    parser.add_argument(
        "--mode", nargs="+", default=["exact"], choices=["exact", "fast"], help="both take turns (default exact)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="ids of a prompt (default %(default)s)")
    parser.add_argument("--decode", type=int, default=32, metavar="N", help="steps of decode (default %(default)s)")
    parser.add_argument(
        "--depth", type=int, nargs="+", default=[0], metavar="N", help="ids that are there before (default 0)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="sequences (default 1)")
    parser.add_argument("--no-footprint", action="store_true", help="leave out load time and memory")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--fidelity", metavar="TEXT", help="measure fidelity over this text file, in place of speed: see --reference"
    )
    parser.add_argument("--reference", metavar="MODEL", help="what fidelity is relative to, in mode exact (the model)")


def run(options: argparse.Namespace) -> int:
    """ValueError for a number out of range; errors of the engine as they are."""
    sizes = [options.rounds, options.prompt, options.decode, *options.batch]
    if min(sizes) < 1 or min(options.depth) < 0:
        raise ValueError("--rounds, --prompt, --decode and --batch must be at least 1, --depth at least 0")
    path = str(hub.resolve(options.model).path)
    modes = list(dict.fromkeys(options.mode))
    figures: dict[str, Any] = {"model": options.model, "version": gemmantle.__version__, "cpu": machine.processor()}
    if options.fidelity is None:
        figures.update(_speed(options, path, modes))
    else:
        figures["fidelity"] = _fidelity(options, path, modes)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _speed(options: argparse.Namespace, path: str, modes: Sequence[str]) -> dict[str, Any]:
    probe = machine.Probe(options.threads)
    limits = probe.limits()
    wanted = speed.cases(options.prompt, options.decode, options.depth, options.batch)
    with contextlib.ExitStack() as opened:
        engines = {
            mode: opened.enter_context(
                IdEngine(
                    path,
                    device=options.device,
                    threads=options.threads,
                    mode=mode,
                    max_context=speed.context_needed(wanted),
                    sequences=max(options.batch),
                )
            )
            for mode in modes
        }
        facts = engines[modes[0]].info()
        print(f"{Path(path).name} on {machine.processor()}, {facts['isa']}, {facts['threads']} threads")
        print(report.limits_line(limits))
        found = speed.measure(engines, wanted, options.rounds, probe.read, progress=_progress)
        _progress("")
    print(report.speed_table(found, limits))
    for one in found:
        if one.case.what != speed.ALL_ROWS and (one.case.depth, one.case.batch) == (options.depth[0], options.batch[0]):
            print(f"ops of {one.case.label}, mode {one.mode}, {'a step' if one.case.what == speed.DECODE else 'all'}:")
            print(report.operation_table(one, limits))
    memory = {} if options.no_footprint else _footprint(options, path, modes)
    return {
        "threads": limits.threads,
        "isa": facts["isa"],
        "limits": limits.as_dict(),
        "speed": [report.as_json(one, limits) for one in found],
        "footprint": memory,
    }


def _footprint(options: argparse.Namespace, path: str, modes: Sequence[str]) -> dict[str, dict[str, float]]:
    memory = {
        mode: footprint.measure(path, device=options.device, threads=options.threads, mode=mode) for mode in modes
    }
    rows = [
        (
            mode,
            f"{facts['load_s']:.2f} s",
            f"{facts['load_to_first_token_s']:.2f} s",
            f"{facts['resident_after_load_gb']:.2f} GB",
            f"{facts['resident_gb']:.2f} GB",
        )
        for mode, facts in memory.items()
    ]
    print(report.table(("mode", "load", "to first token", "resident then", "after a reply and a prompt"), rows))
    return memory


def _fidelity(options: argparse.Namespace, path: str, modes: Sequence[str]) -> list[dict[str, Any]]:
    text = Path(options.fidelity).read_text(encoding="utf-8")
    context = fidelity.WINDOW + 8
    with contextlib.ExitStack() as opened:

        def load(model: str, mode: str) -> gemmantle.Engine:
            engine = gemmantle.load(
                model, device=options.device, threads=options.threads, mode=mode, max_context=context, max_concurrency=1
            )
            return opened.enter_context(engine)

        reference = load(options.reference or path, "exact")
        found = fidelity.compare(reference, [load(path, mode) for mode in modes], text)
    rows = [
        (
            mode,
            str(one.tokens),
            f"{one.mean_kl:.2e}",
            f"{one.worst_kl:.2e}",
            f"{one.top1_agreement:.2%}",
            f"{one.perplexity:.3f}",
            f"{one.perplexity_ratio:.5f}",
        )
        for mode, one in zip(modes, found, strict=True)
    ]
    print(f"{Path(path).name} against {options.reference or 'itself'} in mode exact, {options.fidelity}")
    print(report.table(("mode", "tokens", "mean KL", "worst KL", "top-1", "perplexity", "ratio"), rows))
    return [{"mode": mode, **one.as_dict()} for mode, one in zip(modes, found, strict=True)]


def _progress(line: str) -> None:
    """One line that is written over, on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
