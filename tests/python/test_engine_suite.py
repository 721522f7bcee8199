"""The engine suite on every device: the CPU, and CUDA whose kernels run on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("GEMMANTLE_BUILD_DIR", ROOT / "build" / "dev"))
PLUGIN = BUILD / "tests" / "cpp" / "libgemmantle_cuda_plugin_on_host.so"
LIMIT = 900  # seconds


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_engine_suite(device: str) -> None:
    if device == "cuda" and not PLUGIN.exists():
        pytest.skip(f"{PLUGIN} is not built: cmake --build --preset dev")
    environment = {**os.environ, "GEMMANTLE_SUITE_DEVICE": device, "GEMMANTLE_CUDA_LIBRARY": str(PLUGIN)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python/engine_suite.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
