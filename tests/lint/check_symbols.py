"""The objects of one instruction set export exactly one function and no weak symbol.

A weak symbol (an inline function or template outside an unnamed namespace) compiled with wide flags may be the copy the
linker keeps for everybody, and then crashes machines without those instructions. Optimisation hides such leaks, so
the build gives this script the objects of an optimised and of an unoptimised build.

Usage: check_symbols.py object.o ...
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def symbols(path: Path) -> list[tuple[str, str]]:
    """(type letter of nm, demangled name) of each external symbol that the object defines."""
    run = subprocess.run(
        ["nm", "--defined-only", "--extern-only", "--demangle", str(path)], check=True, capture_output=True, text=True
    )
    rows = [line.split(maxsplit=2) for line in run.stdout.splitlines() if line.strip()]
    return [(row[1], row[2]) for row in rows if len(row) == 3]


def problems(path: Path) -> list[str]:
    found = symbols(path)
    functions = [name for letter, name in found if letter == "T"]
    others = [f"{letter} {name}" for letter, name in found if letter != "T"]
    out = [f"{path}: exports more than functions: {other}" for other in others]
    if len(functions) != 1:
        out.append(f"{path}: exports {len(functions)} functions, wanted 1: {', '.join(functions) or 'none'}")
    return out


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit("check_symbols.py: no object files given")
    found = [problem for name in sys.argv[1:] for problem in problems(Path(name))]
    print("\n".join(found) or f"symbols: {len(sys.argv) - 1} objects export one function each")
    sys.exit(1 if found else 0)
