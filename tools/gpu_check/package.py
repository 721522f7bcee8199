"""What gpu_check asks of the installed package with its CUDA plugin: goldens, and the suite of the engine.

Where there is no such package both are left out in words: `models.cpp` beside this file needs none.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from check import ROOT, Deadline, Result, Skipped

TESTS = ROOT / "tests" / "python"
GOLDEN = ROOT / "tests" / "golden" / "true"
ON_HOST = Path("build/dev/tests/cpp/libgemmantle_cuda_plugin_on_host.so")
ALLOWED = 1.5  # times the distance of the framework's own bf16 run


class Package:
    """The package, in processes of its own: one asks for the CUDA plugin once."""

    def __init__(self, folder: Path, on_host: bool) -> None:
        self.folder = folder
        self.on_host = on_host
        self.environment = dict(os.environ)
        if on_host:
            self.environment["GEMMANTLE_CUDA_LIBRARY"] = str(ROOT / ON_HOST)

    def goldens(self, until: Deadline) -> list[Result]:
        """Distances of the golden checkpoints to the framework's stored logits."""
        self._need_cuda(until)
        # The package brings numpy; a bare machine has none.
        import numpy as np

        sys.path.insert(0, str(TESTS))
        from near_ties import settled

        results = []
        for golden in sorted(GOLDEN.iterdir()):
            out = self.folder / "found.npz"
            done = self._call([sys.executable, str(TESTS / "golden_on_cuda.py"), str(golden), str(out)], until)
            if done.returncode != 0:
                raise RuntimeError(f"{golden.name}: {done.stderr[-2000:]}")
            with np.load(out) as found, np.load(golden / "golden.npz") as stored:
                whole, exact, bf16 = found["whole"], stored["logits"].astype(np.float64), stored["logits_bf16"]
                ids = stored["ids"].tolist()
            ours = min(float(np.linalg.norm(whole - wanted)) for wanted in settled(golden, ids))
            results.append(_result(f"golden {golden.name}", ours / float(np.linalg.norm(bf16 - exact)), ALLOWED))
        return results

    def suite(self, until: Deadline) -> list[Result]:
        """Prefix hits, chunks, crowds and preemption change no bit; masks hold; draws follow the logits."""
        self._need_cuda(until)
        if importlib.util.find_spec("pytest") is None:
            raise Skipped("no pytest here: pip install pytest")
        report = self.folder / "suite.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = self._call([*command, str(TESTS / "engine_suite.py")], until, GEMMANTLE_SUITE_DEVICE="cuda")
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


def _result(name: str, error: float, limit: float) -> Result:
    return {"check": name, "error": error, "limit": limit, "ok": error <= limit}
