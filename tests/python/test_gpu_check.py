"""tools/gpu_check as a program: a stage that cannot run says why, all is written down, unknown ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "gpu_check"
PACKAGES = {"eigen3", "gtest", "nlohmann", "pybind11"}  # what the core needs, and a bare machine has not


def check(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": os.environ["PATH"] if path is None else path}
    return subprocess.run([sys.executable, str(TOOL), *arguments], env=environment, capture_output=True, text=True)


def test_a_skipped_stage_says_why_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    done = check("--on-host", "--stages", "sanitizer", "--out", str(report))

    assert done.returncode == 0, done.stderr
    assert "skipped: on the host the address sanitizer does this" in done.stdout
    stages = json.loads(report.read_text())["stages"]
    assert stages["sanitizer"]["outcome"].startswith("skipped: ")


def test_without_a_compiler_the_build_is_skipped_in_words(tmp_path: Path) -> None:
    done = check("--stages", "build", "--out", str(tmp_path / "report.json"), path="")

    assert done.returncode == 0, done.stderr
    assert "skipped: no nvcc on the path" in done.stdout


def test_an_unknown_stage_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    done = check("--stages", "kernels,tea", "--out", str(tmp_path / "report.json"))

    assert done.returncode == 2
    assert "tea; there are build, probe, kernels, sanitizer, models, behaviour, speed" in done.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_its_programs_include_no_library_but_that_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOL))
    from check import Programs

    programs = Programs(Path(), on_host=True, package=None)
    sources = {str(source) for of_program in programs.sources().values() for source in of_program}

    done = subprocess.run(
        ["c++", "-x", "c++", *programs.flags(), "-M", *sorted(sources)], capture_output=True, text=True, check=True
    )

    headers = [Path(word) for word in done.stdout.split() if word.startswith("/")]
    assert len(headers) > 100
    assert [header for header in headers if PACKAGES & set(header.parts)] == []
