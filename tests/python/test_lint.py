"""The checks of the source itself: layers, symbols, formatting, types, and that importing the package stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import check_layers
import check_symbols
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("GEMMANTLE_BUILD_DIR", ROOT / "build" / "dev"))


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_includes_and_imports_follow_the_layer_table():
    assert check_layers.problems() == []


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("kernels/cpu/gemv.h", "<vector>"),
        ("kernels/formats/q4.h", "core/error.h"),
        ("csrc/core/error.h", "<nlohmann/json.hpp>"),
        ("csrc/model/gemma4.cpp", "backend/cpu/cpu_backend.h"),
        ("csrc/backend/ops.cpp", "backend/cpu/cpu_backend.h"),
        ("csrc/text/detokenizer.cpp", "model/config.h"),
        ("csrc/engine/engine.cpp", "<pybind11/pybind11.h>"),
        ("csrc/bindings/module.cpp", "kernels/formats/format.h"),
        ("csrc/core/error.h", "error.cpp"),
    ],
)
def test_the_layer_check_refuses_a_wrong_arrow(path: str, include: str):
    exists = {
        "csrc/core/error.h",
        "csrc/model/config.h",
        "csrc/backend/cpu/cpu_backend.h",
        "kernels/formats/format.h",
    }
    system = include.strip("<>") if include.startswith("<") else None
    assert check_layers.check_include(path, None if system else include, system, exists)


def test_the_layer_check_refuses_the_native_module_elsewhere_and_at_import(tmp_path: Path):
    package = tmp_path / "python" / "gemmantle"
    package.mkdir(parents=True)
    (package / "client.py").write_text(
        "import importlib\n\n\ndef f():\n    importlib.import_module('gemmantle._core')\n"
    )
    (package / "opened.py").write_text("from gemmantle import _core\n\n\ndef f():\n    from gemmantle import _core\n")
    problems = check_layers.python_problems(tmp_path)
    assert len(problems) == 2
    assert "client.py:5" in problems[0]
    assert "opened.py:1" in problems[1]


def test_each_instruction_set_exports_one_function():
    objects = sorted(BUILD.glob("CMakeFiles/gemmantle_kernels_*.dir/**/*.o"))
    if not objects:
        pytest.skip(f"no kernel objects under {BUILD}: build with cmake --preset dev && cmake --build --preset dev")
    assert any("_unoptimised" in str(path) for path in objects)
    assert [problem for path in objects for problem in check_symbols.problems(path)] == []


def test_the_symbol_check_finds_a_weak_symbol(tmp_path: Path):
    source = tmp_path / "leak.cpp"
    source.write_text("inline int twice(int x) { return 2 * x; }\nint one(int x) { return twice(x); }\n")
    subprocess.run(["g++", "-O0", "-c", str(source), "-o", str(tmp_path / "leak.o")], check=True)
    problems = check_symbols.problems(tmp_path / "leak.o")
    assert len(problems) == 1
    assert "twice" in problems[0]


def test_cpp_sources_are_formatted():
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "lint" / "check_format.py")], capture_output=True, text=True, check=False
    )
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr


def test_python_sources_pass_ruff():
    run(sys.executable, "-m", "ruff", "check", ".")


def test_python_sources_are_formatted():
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_python_package_passes_mypy():
    run(sys.executable, "-m", "mypy")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, gemmantle; heavy = {'gemmantle._core', 'numpy', 'openai', 'httpx', 'httpx2', 'sentencepiece', "
        "'tokenizers', 'google.protobuf'}; print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
