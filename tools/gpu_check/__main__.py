"""Checks the CUDA backend on the machine at hand and measures it: `python tools/gpu_check [--stages ...] [--out FILE]`.

Stages, each with a time limit, each of which can be run alone:

    build      kernels, backend and graph for this device's architecture, with nvcc alone
    probe      device, driver, compiler; bandwidth, measured: the ceiling of every share below
    kernels    products and attention at real sizes against double
    sanitizer  the same, small, under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
    models     random models of every family and E2B against our own reference; goldens against the framework
    behaviour  rows alone, in batches and in chunks, bit for bit, and draws; the suite of the engine
    speed      kernels, then whole steps of the released shapes: time, floor and their ratio

Needs a GPU, nvcc, Python and this repository. Goldens and the engine's suite need the package with its CUDA plugin,
too, and are left out in words where it is not. Prints results as they come and a table at the end, and writes all of it
as JSON after each stage. A stage that cannot run says why and is skipped; exits with 1 where one fails. `--on-host`
compiles the kernels for the host and shrinks every size: a test of this program, no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check import Deadline, Programs, Result, Skipped
from package import Package

Stage = Callable[[Deadline], list[Result]]

LIMITS = {  # seconds; ten minutes together
    "build": 100,
    "probe": 30,
    "kernels": 50,
    "sanitizer": 80,
    "models": 140,
    "behaviour": 50,
    "speed": 150,
}
SLOWER_ON_HOST = 10


def describe(line: Result) -> str:
    """One result as a line of the table."""
    if "kernel" in line:
        rate = f"{line['rate']:.0f} {line['unit']}"
        times = f"{line['microseconds']:12.1f} us  floor {line['floor']:11.1f}  {line['share']:6.1%}"
        return f"{line['kernel']:36} {times}  {rate}"
    if "check" in line:
        return f"{line['check']:64} {line['error']:9.2e} of {line['limit']:g}  {'ok' if line['ok'] else 'WRONG'}"
    return ", ".join(f"{name} {value}" for name, value in line.items())


def run(stage: Stage, seconds: float) -> tuple[str, list[Result]]:
    """How it ended, and what it found."""
    try:
        lines = stage(Deadline(seconds))
    except Skipped as why:
        return f"skipped: {why}", []
    except subprocess.TimeoutExpired:
        return f"failed: not done within {seconds:.0f} s", []
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"failed: {error}", []
    return "failed" if any(line.get("ok") is False for line in lines) else "ok", lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(LIMITS), help=f"of {','.join(LIMITS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="where the JSON goes")
    parser.add_argument("--on-host", action="store_true", help="compile for the host, small sizes, measure nothing")
    arguments = parser.parse_args()
    wanted = arguments.stages.split(",")
    if unknown := set(wanted) - set(LIMITS):
        parser.error(f"--stages names {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")

    report: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        package = Package(Path(folder), arguments.on_host)
        programs = Programs(Path(folder), arguments.on_host, package)
        for name in (stage for stage in LIMITS if stage in wanted):
            stage: Stage = getattr(programs, name)
            start = time.monotonic()
            outcome, lines = run(stage, LIMITS[name] * (SLOWER_ON_HOST if arguments.on_host else 1))
            took = time.monotonic() - start
            report[name] = {"outcome": outcome, "seconds": round(took, 1), "results": lines}
            print(f"== {name}: {outcome} ({took:.0f} s)", flush=True)
            for line in lines:
                print(f"   {describe(line)}", flush=True)
            everything = {"on_host": arguments.on_host, "stages": report}
            arguments.out.write_text(json.dumps(everything, indent=2) + os.linesep)
    print(f"\n{'stage':10} {'seconds':>8}  outcome")
    for name, entry in report.items():
        print(f"{name:10} {entry['seconds']:8.1f}  {entry['outcome'].splitlines()[0]}")
    return 1 if any(entry["outcome"].startswith("failed") for entry in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
