"""The stages of gpu_check: what is there, and what its programs and the package find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SHIM = ROOT / "tests" / "cpp" / "support" / "simt"
BACKEND = ["cuda_backend", "cuda_ops", "deterministic_ops", "planes", "step_memory", "weight_store"]
MODEL = ["activations", "gemma4", "kv_cache", "padding", "placement"]
REFERENCE = "csrc/backend/reference/reference_backend.cpp"

Result = dict[str, Any]


class Skipped(Exception):
    """Why a stage cannot run here."""


class Deadline:
    """When a stage has to end."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.1, self.at - time.monotonic())


class Package(Protocol):
    """What is asked of the package, where it is; raises Skipped where it is not."""

    def goldens(self, until: Deadline) -> list[Result]: ...
    def suite(self, until: Deadline) -> list[Result]: ...


class Programs:
    """The programs of this folder, compiled once: `program` of kernels; `steps` and `models` of backend and graph."""

    def __init__(self, folder: Path, on_host: bool, package: Package) -> None:
        self.folder = folder
        self.on_host = on_host
        self.package = package
        self.bandwidth = 0.0  # bytes a second, once probe has run

    def probe(self, until: Deadline) -> list[Result]:
        """What is there."""
        found: list[Result] = []
        for name, command in {
            "driver": ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            "compiler": ["nvcc", "--version"],
        }.items():
            if shutil.which(command[0]):
                out = subprocess.run(command, capture_output=True, text=True, timeout=until.left()).stdout.strip()
                found.append({name: out.splitlines()[-1] if out else "no answer"})
            else:
                found.append({name: f"no {command[0]}"})
        lines = self._run("program", ["probe"], until)
        self.bandwidth = lines[-1]["bandwidth_gb_s"] * 1e9
        return found + lines

    def build(self, until: Deadline) -> list[Result]:
        """For this device's architecture, with nvcc alone; no library but the CUDA run time."""
        if not self.on_host and not shutil.which("nvcc"):
            raise Skipped("no nvcc on the path: add the CUDA tool kit's bin folder to PATH")
        start = time.monotonic()
        sources = self.sources()
        everything = sorted({source for of_program in sources.values() for source in of_program})
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: self._compile(source, until), everything))
        for name, of_program in sources.items():
            self._link(name, of_program, until)
        return [{"seconds": round(time.monotonic() - start, 1), "files": len(everything)}]

    def sources(self) -> dict[str, list[Path]]:
        """What each program is made of."""
        device = sorted(SHIM.glob("*.cpp")) if self.on_host else [ROOT / "csrc/backend/cuda/device_cuda.cpp"]
        kernels = [*sorted((ROOT / "kernels/cuda").glob("*.cu")), *device, ROOT / "csrc/core/error.cpp"]
        backend = [ROOT / f"csrc/backend/cuda/{name}.cpp" for name in BACKEND]
        graph = [ROOT / "csrc/backend/ops.cpp", *(ROOT / f"csrc/model/{name}.cpp" for name in MODEL)]
        return {
            "program": [HERE / "program.cpp", *kernels],
            "steps": [HERE / "steps.cpp", *kernels, *backend, *graph],
            "models": [HERE / "models.cpp", *kernels, *backend, *graph, ROOT / REFERENCE],
        }

    def flags(self) -> list[str]:
        folders = [ROOT, ROOT / "csrc", HERE / "without_eigen", *([SHIM] if self.on_host else [])]
        return ["-std=c++20", "-O3", *(f"-I{folder}" for folder in folders)]

    def kernels(self, until: Deadline) -> list[Result]:
        """Results at real sizes against double."""
        return self._run("program", ["kernels", *self._small()], until)

    def sanitizer(self, until: Deadline) -> list[Result]:
        """The same at small sizes under compute-sanitizer."""
        if self.on_host:
            raise Skipped("on the host the address sanitizer does this: cmake --preset asan, gemmantle_cuda_test")
        found = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if found is None:
            raise Skipped("no compute-sanitizer on the path; it comes with the CUDA tool kit")
        self._have_built()
        results = []
        for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
            command = [found, "--tool", tool, "--error-exitcode", "9", str(self.folder / "program"), "kernels", "small"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=until.left())
            said = done.stdout.strip().splitlines()
            if "not supported" in done.stdout:
                raise Skipped(f"compute-sanitizer refuses this device: {said[-1]}")
            failed = done.returncode != 0
            results.append({"check": tool, "error": float(failed), "limit": 0, "ok": not failed})
            if failed:
                results.append({"said": " | ".join(line for line in said if line.startswith("="))[-1500:]})
        return results

    def models(self, until: Deadline) -> list[Result]:
        """Whole random models against our own reference; the goldens where the package is."""
        return self._run("models", ["compare", *self._small()], until) + self._or_left_out(self.package.goldens, until)

    def behaviour(self, until: Deadline) -> list[Result]:
        """What changes no bit, and draws; the engine's suite where the package is."""
        return self._run("models", ["behaviour", *self._small()], until) + self._or_left_out(self.package.suite, until)

    def speed(self, until: Deadline) -> list[Result]:
        """Time, floor and ratio of kernels, then of whole steps of the released models."""
        if self.bandwidth == 0:
            self.probe(until)
        return [
            *self._run("program", ["speed", *self._small()], until),
            *self._run("steps", [str(self.bandwidth), *self._small()], until),
        ]

    def _small(self) -> list[str]:
        return ["small"] if self.on_host else []

    @staticmethod
    def _or_left_out(part: Callable[[Deadline], list[Result]], until: Deadline) -> list[Result]:
        """What a part found, or why it cannot run here; what ran before it stays."""
        try:
            return part(until)
        except Skipped as why:
            return [{"left_out": f"{part.__name__}: {why}"}]
        except subprocess.TimeoutExpired:
            return [{"stopped": f"{part.__name__}: out of time", "ok": False}]
        except RuntimeError as error:
            return [{"stopped": f"{part.__name__}: {error}", "ok": False}]

    def _have_built(self) -> None:
        if not (self.folder / "models").exists():
            self.build(Deadline(600))

    def _run(self, program: str, arguments: list[str], until: Deadline) -> list[Result]:
        """The JSON objects it prints; those of a program that ran out of time stay, and say so."""
        self._have_built()
        small = self._small() if arguments == ["probe"] else []
        command = [str(self.folder / program), *arguments, *small]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=until.left())
            out, code, words = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as late:
            out = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            code, words = 1, f"{program} ran out of time"
        lines: list[Result] = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
        if code != 0 and not any(line.get("ok") is False for line in lines):
            if not lines:
                raise RuntimeError(words.strip()[-2000:])
            lines.append({"stopped": words.strip()[-500:], "ok": False})
        return lines

    def _object(self, source: Path) -> Path:
        return self.folder / f"{source.parent.name}_{source.stem}.o"

    def _compile(self, source: Path, until: Deadline) -> None:
        compiler = ["c++", "-x", "c++"] if self.on_host else ["nvcc", "-arch=native", "-x", "cu"]
        command = [*compiler, *self.flags()]
        self._call([*command, "-c", str(source), "-o", str(self._object(source))], until)

    def _link(self, name: str, sources: list[Path], until: Deadline) -> None:
        compiler = ["c++", "-pthread"] if self.on_host else ["nvcc", "-arch=native"]
        objects = [str(self._object(source)) for source in sources]
        self._call([*compiler, *objects, "-o", str(self.folder / name)], until)

    def _call(self, command: list[str], until: Deadline) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=until.left())
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-4000:])
