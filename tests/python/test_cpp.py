"""Each C++ test program of the build folder, as one pytest item.

The folder is build/dev, or GEMMANTLE_BUILD_DIR; CTest says which programs are in it. Building is not done here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("GEMMANTLE_BUILD_DIR", ROOT / "build" / "dev"))


def find_programs() -> dict[str, list[str]]:
    """Command by name of every CTest test labelled cpp; empty when there is no build."""
    if shutil.which("ctest") is None or not (BUILD / "CTestTestfile.cmake").exists():
        return {}
    listing = subprocess.run(
        ["ctest", "--show-only=json-v1"], cwd=BUILD, check=True, capture_output=True, text=True
    ).stdout

    def labels(test: dict[str, Any]) -> list[str]:
        return next((p["value"] for p in test.get("properties", []) if p["name"] == "LABELS"), [])

    return {test["name"]: test.get("command", []) for test in json.loads(listing)["tests"] if "cpp" in labels(test)}


PROGRAMS = find_programs()
NOT_BUILT = f"no C++ tests under {BUILD}: build with cmake --preset dev && cmake --build --preset dev"


@pytest.mark.parametrize("name", sorted(PROGRAMS) or [pytest.param("none", marks=pytest.mark.skip(reason=NOT_BUILT))])
def test_cpp(name: str):
    command = PROGRAMS[name]
    assert command, f"{name} is registered with CTest but not built: cmake --build --preset dev"
    result = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, errors="replace", check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-20000:]
