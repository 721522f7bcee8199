"""CUDA without a GPU: the plugin whose kernels run on the host, and how a process comes to use it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("GEMMANTLE_BUILD_DIR", ROOT / "build" / "dev"))
PLUGIN = BUILD / "tests" / "cpp" / "libgemmantle_cuda_plugin_on_host.so"

needs_plugin = pytest.mark.skipif(not PLUGIN.exists(), reason=f"{PLUGIN} is not built: cmake --build --preset dev")


def run(command: list[str], limit: float = 900, **variables: str) -> str:
    """What the command prints. A process of its own: one asks for the plugin once, and the plugin for its devices.

    `variables` of its environment: GEMMANTLE_CUDA_ON_HOST_DEVICES, GEMMANTLE_CUDA_ON_HOST_MEMORY.
    """
    environment = {**os.environ, "GEMMANTLE_CUDA_LIBRARY": str(PLUGIN), **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout
