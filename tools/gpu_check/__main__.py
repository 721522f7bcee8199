"""Checks the CUDA backend on the machine at hand and measures it: `python tools/gpu_check [--stages ...] [--out FILE]`.

Stages, each with a time limit, each of which can be run alone:

    probe    device, driver, compiler; bandwidth, measured: the ceiling of every share below
    build    kernels and program.cpp for this device's architecture, with nvcc alone
    kernels  products and attention at real sizes against double
    models   the golden checkpoints against the framework's stored logits; needs the package with the CUDA plugin
    speed    products and attention: time, floor and their ratio

Prints a table and writes all of it as JSON. A stage that cannot run says why and is skipped; exits with 1 where one
fails. `--on-host` compiles the kernels for the host and shrinks every size: a test of this program, no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "program.cpp"
GOLDEN = ROOT / "tests" / "golden" / "true"
ALLOWED = 1.5  # times the distance of the framework's own bf16 run


class Skipped(Exception):
    """Why a stage cannot run here."""


class Check:
    """The stages, and what they share."""

    def __init__(self, folder: Path, on_host: bool) -> None:
        self.on_host = on_host
        self.binary = folder / "gpu_check"

    def run(self, stage: str, limit: float) -> list[dict[str, Any]]:
        """The JSON objects the program prints for one of its stages."""
        if not self.binary.exists():
            self.build(600)
        command = [str(self.binary), stage, *(["small"] if self.on_host else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0 and not any(line.get("ok") is False for line in lines):
            raise RuntimeError(done.stderr.strip()[-2000:])
        return lines

    def probe(self, limit: float) -> list[dict[str, Any]]:
        """What is there."""
        found: list[dict[str, Any]] = []
        for name, command in {
            "driver": ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            "compiler": ["nvcc", "--version"],
        }.items():
            if shutil.which(command[0]):
                out = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
                found.append({name: out.splitlines()[-1] if out else "no answer"})
            else:
                found.append({name: f"no {command[0]}"})
        return found + self.run("probe", limit)

    def build(self, limit: float) -> list[dict[str, Any]]:
        """One program of all kernels; no library but the CUDA run time."""
        kernels = [str(file) for file in sorted((ROOT / "kernels" / "cuda").glob("*.cu"))]
        sources = [str(PROGRAM), str(ROOT / "csrc/core/error.cpp")]
        common = ["-std=c++20", "-O3", "-I", str(ROOT), "-I", str(ROOT / "csrc"), "-o", str(self.binary)]
        if self.on_host:
            shim = ROOT / "tests/cpp/support/simt"
            sources += [str(file) for file in sorted(shim.glob("*.cpp"))]
            command = ["c++", *common, "-I", str(shim), "-x", "c++", *kernels, *sources]
        elif shutil.which("nvcc"):
            sources.append(str(ROOT / "csrc/backend/cuda/device_cuda.cpp"))
            command = ["nvcc", *common, "-arch=native", "-threads=0", "-x", "cu", *kernels, *sources]
        else:
            raise Skipped("no nvcc on the path: add the CUDA tool kit's bin folder to PATH")
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-4000:])
        return [{"seconds": round(time.monotonic() - start, 1), "kernels": len(kernels)}]

    def kernels(self, limit: float) -> list[dict[str, Any]]:
        """Results at real sizes against double."""
        return self.run("kernels", limit)

    def speed(self, limit: float) -> list[dict[str, Any]]:
        """Time, floor and ratio of each kernel."""
        return self.run("speed", limit)

    def models(self, limit: float) -> list[dict[str, Any]]:
        """Distance of each golden checkpoint to the framework's f32 run, over that of its bf16 run."""
        asked = subprocess.run(
            [sys.executable, "-c", "import gemmantle; print(gemmantle.devices())"], capture_output=True, text=True
        )
        if asked.returncode != 0:
            raise Skipped(f"the package is not installed here: {asked.stderr.strip().splitlines()[-1]}")
        program = ROOT / "tests" / "python" / "golden_on_cuda.py"
        results = []
        for folder in sorted(GOLDEN.iterdir()):
            with tempfile.TemporaryDirectory() as out:
                file = Path(out) / "found.npz"
                done = subprocess.run(
                    [sys.executable, str(program), str(folder), str(file)],
                    capture_output=True,
                    text=True,
                    timeout=limit,
                )
                if "is not available" in done.stderr:
                    raise Skipped(done.stderr.strip().splitlines()[-1])
                if done.returncode != 0:
                    raise RuntimeError(f"{folder.name}: {done.stderr[-2000:]}")
                with np.load(file) as found, np.load(folder / "golden.npz") as golden:
                    distance = _distance(found["whole"], golden["logits"], golden["logits_bf16"])
            results.append(
                {"check": folder.name, "error": round(distance, 3), "limit": ALLOWED, "ok": distance <= ALLOWED}
            )
        return results


def _distance(found: Any, exact: Any, bf16: Any) -> float:
    """Of the median row: a mixture may send single rows to other experts."""

    def error(of: Any) -> float:
        return float(np.median(np.linalg.norm(of.astype(np.float64) - exact, axis=1)))

    return error(found) / error(bf16)


LIMITS = {"probe": 60, "build": 300, "kernels": 120, "models": 200, "speed": 200}  # seconds


def describe(line: dict[str, Any]) -> str:
    """One result as a line of the table."""
    if "kernel" in line:
        rate = f"{line['rate']:.0f} {line['unit']}"
        times = f"{line['microseconds']:10.1f} us  floor {line['floor']:9.1f}  {line['share']:6.1%}"
        return f"{line['kernel']:32} {times}  {rate}"
    if "check" in line:
        return f"{line['check']:40} {line['error']:9.2e} of {line['limit']:g}  {'ok' if line['ok'] else 'WRONG'}"
    return ", ".join(f"{name} {value}" for name, value in line.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(LIMITS), help=f"of {','.join(LIMITS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="where the JSON goes")
    parser.add_argument("--on-host", action="store_true", help="compile for the host, small sizes, measure nothing")
    arguments = parser.parse_args()
    wanted = arguments.stages.split(",")
    if unknown := set(wanted) - set(LIMITS):
        parser.error(f"--stages names {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")

    report: dict[str, Any] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), arguments.on_host)
        for name in (stage for stage in LIMITS if stage in wanted):
            stage: Callable[[float], list[dict[str, Any]]] = getattr(check, name)
            start = time.monotonic()
            lines: list[dict[str, Any]] = []
            try:
                lines = stage(LIMITS[name])
                outcome = "failed" if any(line.get("ok") is False for line in lines) else "ok"
            except Skipped as why:
                outcome = f"skipped: {why}"
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                outcome = f"failed: {error}"
            took = time.monotonic() - start
            failed |= outcome.startswith("failed")
            report[name] = {"outcome": outcome, "seconds": round(took, 1), "results": lines}
            print(f"== {name}: {outcome} ({took:.0f} s)")
            for line in lines:
                print(f"   {describe(line)}")
    arguments.out.write_text(json.dumps({"on_host": arguments.on_host, "stages": report}, indent=2) + os.linesep)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
