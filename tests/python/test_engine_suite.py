"""The engine suite on every device: the CPU, and CUDA whose kernels run on the host."""

from __future__ import annotations

import sys

import pytest
from cuda_on_host import needs_plugin, run


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_plugin)])
def test_the_engine_suite(device: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python/engine_suite.py"]
    run(command, GEMMANTLE_SUITE_DEVICE=device)
