"""clang-format over the C++ and CUDA sources, with the one version whose line breaks are ours.

Exit status: 0 formatted, 1 not, 77 when clang-format 16 is not there (CTest and pytest skip then).
With --fix it rewrites the files instead.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = 16
FOLDERS = ("csrc", "kernels", "tests/cpp", "tests/fuzz", "tests/bench")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def find_clang_format() -> str | None:
    """The program of the wanted version, or None."""
    for name in (f"clang-format-{VERSION}", "clang-format"):
        path = shutil.which(name)
        if path is None:
            continue
        text = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
        if re.search(rf"version {VERSION}\.", text):
            return path
    return None


def sources(root: Path = ROOT) -> list[str]:
    return [str(file) for folder in FOLDERS for file in sorted((root / folder).rglob("*")) if file.suffix in SUFFIXES]


def main(arguments: list[str]) -> int:
    program = find_clang_format()
    if program is None:
        print(f"clang-format {VERSION} is not installed (Debian: apt-get install clang-format-{VERSION})")
        return 77
    mode = ["-i"] if arguments == ["--fix"] else ["--dry-run", "--Werror"]
    return 1 if subprocess.run([program, *mode, "--style=file", *sources()], check=False).returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
