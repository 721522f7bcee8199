"""The stages of gpu_check that need the package with the CUDA plugin: whole models, and what the engine promises.

Scaled-down variants with true head widths, a window of 64, KV reuse, per-layer inputs and 16 experts, and E2B at full
size, with random weights: prefill and forced steps on CUDA against our own `reference`. Then the golden checkpoints
against the framework's stored logits.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from check import ROOT, Deadline, Result, Skipped
from numpy.typing import NDArray

sys.path.insert(0, str(ROOT / "tests" / "python"))

import random_checkpoint as rc
from near_ties import settled

GOLDEN = ROOT / "tests" / "golden" / "true"
ON_HOST = Path("build/dev/tests/cpp/libgemmantle_cuda_plugin_on_host.so")
ALLOWED = 1.5  # times the distance of the framework's own bf16 run
DISTANCE = (
    2e-2  # between CUDA and the reference, of the norm of a row's logits; bf16 inputs of products and bf16 K and V
)
PREFILL, FORCED = 40, 32

F32 = NDArray[np.float32]

_E = rc.Shape(
    (False, False, True) * 2, hidden=128, heads=4, kv_heads=1, head_dim=256, global_head_dim=512, mlp=192, vocab=512,
    window=64, ple=32, kv_shared=3,
)  # fmt: skip
_LARGE = rc.Shape(
    (False, False, True) * 2, hidden=128, heads=4, kv_heads=2, head_dim=256, global_head_dim=512, global_kv_heads=1,
    mlp=192, vocab=512, window=64, k_eq_v=True,
)  # fmt: skip
VARIANTS = {
    "E2B": replace(_E, double_wide=True),
    "E4B": replace(_E, kv_heads=2, kv_shared=2),
    "26B": replace(_LARGE, mlp=64, experts=16, experts_per_token=4, expert_mlp=64),
    "31B": _LARGE,
}

# argv: checkpoint, device, file to write, prefill, forced steps
_LOGITS = """
import sys, numpy as np, gemmantle
folder, device, out = sys.argv[1:4]
prefill, forced = int(sys.argv[4]), int(sys.argv[5])
ids = [2 + (7919 * i) % 500 for i in range(prefill + forced)]
chunks = [prefill] + [1] * forced if device == "cuda" else None
with gemmantle.load(folder, device=device, mode="exact", kv="auto", max_context=len(ids) + 8) as engine:
    np.save(out, engine.logits(ids, chunks=chunks) if chunks else engine.logits(ids))
"""


class Package:
    """The package, in processes of its own: one asks for the CUDA plugin once."""

    def __init__(self, folder: Path, on_host: bool) -> None:
        self.folder = folder
        self.on_host = on_host
        self.environment = dict(os.environ)
        if on_host:
            self.environment["GEMMANTLE_CUDA_LIBRARY"] = str(ROOT / ON_HOST)

    def models(self, until: Deadline) -> list[Result]:
        """Distances to the reference, and of the goldens to the framework."""
        self._need_cuda(until)
        results = []
        for name, shape in VARIANTS.items():
            checkpoint = self._random(shape, len(shape.is_full))
            error = self._distance(checkpoint, until, PREFILL, FORCED)
            results.append(_result(f"{name}, scaled down", error, DISTANCE))
            if error > DISTANCE:
                results.append({"departs": f"{name}: {self._first_departure(shape, until)}"})
        results += self._goldens(until)
        return [*results, self._whole_e2b(until)]

    def behaviour(self, until: Deadline) -> list[Result]:
        """Prefix hits, chunks, crowds and preemption change no bit; masks hold; draws follow the logits."""
        self._need_cuda(until)
        if importlib.util.find_spec("pytest") is None:
            raise Skipped("no pytest here: pip install pytest")
        report = self.folder / "suite.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = self._call([*command, str(ROOT / "tests/python/engine_suite.py")], until, GEMMANTLE_SUITE_DEVICE="cuda")
        if not report.exists():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        results = []
        for case in ElementTree.parse(report).iter("testcase"):
            failed = any(child.tag in ("failure", "error") for child in case)
            name = case.get("name", "").removeprefix("test_").replace("_", " ")
            results.append(_result(name, float(failed), 0))
        return results

    def _need_cuda(self, until: Deadline) -> None:
        if self.on_host and not (ROOT / ON_HOST).exists():
            raise Skipped(f"{ON_HOST} is not built: cmake --build --preset dev --target gemmantle_cuda_plugin_on_host")
        ask = "import gemmantle; print([d['reason'] for d in gemmantle.devices() if d['name'] == 'cuda'][0])"
        done = self._call([sys.executable, "-c", ask], until)
        if done.returncode != 0:
            raise Skipped(f"the package is not installed here: {done.stderr.strip().splitlines()[-1]}")
        if reason := done.stdout.strip():
            raise Skipped(reason)

    def _call(self, command: list[str], until: Deadline, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**self.environment, **variables}, capture_output=True, text=True, timeout=until.left()
        )

    def _random(self, shape: rc.Shape, layers: int) -> Path:
        """A checkpoint of the first layers of a shape; a layer has the same weights whatever their number."""
        weights = rc.random_weights(shape, np.random.default_rng(8))
        shared = max(0, layers - (len(shape.is_full) - shape.kv_shared))
        cut = replace(shape, is_full=shape.is_full[:layers], kv_shared=shared)
        kept = {name: value for name, value in weights.items() if _layer_of(name) < layers}
        if shape.ple:
            width = layers * shape.ple
            kept["embed_tokens_per_layer.weight"] = kept["embed_tokens_per_layer.weight"][:, :width]
            kept["per_layer_model_projection.weight"] = kept["per_layer_model_projection.weight"][:width]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        rc.write(folder, cut, kept, layout="released", dtype="BF16")
        return folder

    def _distance(self, checkpoint: Path, until: Deadline, prefill: int, forced: int) -> float:
        """Between the devices, of the median row: a mixture may send single rows to other experts."""
        found: list[F32] = []
        for device in ("reference", "cuda"):
            out = self.folder / f"{device}.npy"
            command = [sys.executable, "-c", _LOGITS, str(checkpoint), device, str(out), str(prefill), str(forced)]
            done = self._call(command, until)
            if done.returncode != 0:
                raise RuntimeError(f"{checkpoint.name} on {device}: {done.stderr[-2000:]}")
            found.append(np.load(out))
        exact, ours = (logits.astype(np.float64) for logits in found)
        each = np.linalg.norm(ours - exact, axis=1) / np.linalg.norm(exact, axis=1)
        return float(np.median(each)) if np.isfinite(each).all() else float("inf")

    def _first_departure(self, shape: rc.Shape, until: Deadline) -> str:
        for layers in range(1, len(shape.is_full)):
            if self._distance(self._random(shape, layers), until, PREFILL, FORCED) > DISTANCE:
                return f"layer {layers - 1}"
        return f"layer {len(shape.is_full) - 1}"

    def _goldens(self, until: Deadline) -> list[Result]:
        program = ROOT / "tests" / "python" / "golden_on_cuda.py"
        results = []
        for golden in sorted(GOLDEN.iterdir()):
            out = self.folder / "found.npz"
            done = self._call([sys.executable, str(program), str(golden), str(out)], until)
            if done.returncode != 0:
                raise RuntimeError(f"{golden.name}: {done.stderr[-2000:]}")
            with np.load(out) as found, np.load(golden / "golden.npz") as stored:
                whole, exact, bf16 = found["whole"], stored["logits"].astype(np.float64), stored["logits_bf16"]
                ids = stored["ids"].tolist()
            ours = min(float(np.linalg.norm(whole - wanted)) for wanted in settled(golden, ids))
            results.append(_result(f"golden {golden.name}", ours / float(np.linalg.norm(bf16 - exact)), ALLOWED))
        return results

    def _whole_e2b(self, until: Deadline) -> Result:
        if self.on_host:
            return {"left_out": "E2B at full size: hours on the host"}
        if importlib.util.find_spec("gguf") is None:
            return {"left_out": "E2B at full size: its file is made with gguf (pip install gguf sentencepiece)"}
        file = self.folder / "e2b.gguf"
        tool = [sys.executable, str(ROOT / "tools/make_random_gguf.py"), "--model", "e2b", "--recipe", "bf16"]
        done = self._call([*tool, "--out", str(file)], until)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        error = self._distance(file, until, 8, 4)
        file.unlink()
        return _result("E2B at full size", error, 2 * DISTANCE)


def _layer_of(name: str) -> int:
    """-1 where it belongs to none."""
    return int(name.split(".")[1]) if name.startswith("layers.") else -1


def _result(name: str, error: float, limit: float) -> Result:
    return {"check": name, "error": error, "limit": limit, "ok": error <= limit}
