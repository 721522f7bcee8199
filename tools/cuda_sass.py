#!/usr/bin/env python3
"""Counts the machine instructions of the loops that use tensor cores, one line a kernel.

    python tools/cuda_sass.py [--arch 90] [--only REGEX] [kernels/cuda/product.cu ...]

A loop is what lies between a label and the last branch back to it; of a kernel's loops the one with most tensor-core
instructions is taken, of several the shortest. What the compiler put elsewhere, to jump out of a loop and back, is not
counted. Local loads and stores, of which there should be none, are counted over the whole kernel.
Needs nvcc, and nvdisasm on the path: it comes with the CUDA tool kit, or alone with `pip install nvidia-cuda-nvdisasm`.
Exits with 77 where one of them is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cuda_budget import NO_COMPILER, ROOT, demangle, run

FUNCTION = re.compile(r"^\.text\.(\S+):$")
LABEL = re.compile(r"^(\.L_x_\d+):$")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>.*)")
COUNTED = {
    "tensor-core": r"HMMA|IMMA",
    "ldmatrix": r"LDSM",
    "16-byte asynchronous copies": r"LDGSTS\S*\.128",
    "16-byte loads": r"LDG\.\S*\.128",
}


@dataclass
class Function:
    """A kernel's instructions, and where its labels stand among them."""

    name: str
    instructions: list[tuple[str, str]]  # name, operands
    labels: dict[str, int]

    def main_loop(self) -> tuple[int, int] | None:
        """[first, last] of the loop with most tensor-core instructions, None where no loop has any."""
        ends: dict[int, int] = {}
        for at, (name, rest) in enumerate(self.instructions):
            found = re.search(r"\.L_x_\d+", rest) if name.startswith("BRA") else None
            if found and self.labels.get(found[0], at + 1) <= at:
                ends[self.labels[found[0]]] = at
        best = max(ends.items(), key=lambda loop: (self.tensor_core(loop), loop[0] - loop[1]), default=None)
        return best if best and self.tensor_core(best) else None

    def tensor_core(self, loop: tuple[int, int]) -> int:
        return self.count(COUNTED["tensor-core"], *loop)

    def count(self, pattern: str, first: int, last: int) -> int:
        return sum(bool(re.match(pattern, name)) for name, _ in self.instructions[first : last + 1])


def parse(text: str) -> list[Function]:
    """The functions of a listing of `nvdisasm -c`."""
    functions: list[Function] = []
    for line in text.splitlines():
        if found := FUNCTION.match(line):
            functions.append(Function(found[1], [], {}))
        elif functions and (found := LABEL.match(line)):
            functions[-1].labels[found[1]] = len(functions[-1].instructions)
        elif functions and (found := INSTRUCTION.match(line)) and found["name"] != "NOP":
            functions[-1].instructions.append((found["name"], found["rest"]))
    for function, name in zip(functions, demangle([f.name for f in functions]), strict=True):
        function.name = name
    return functions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="default: all of kernels/cuda")
    parser.add_argument("--arch", default="90")
    parser.add_argument("--only", default="", help="kernels whose name this is found in")
    args = parser.parse_args()
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    tools = {name: shutil.which(name, path=search) for name in ("nvcc", "nvdisasm")}
    for name, path in tools.items():
        if path is None:
            print(f"skipped: no {name}")
            return NO_COMPILER
    for source in args.sources or sorted((ROOT / "kernels" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            code = str(Path(folder) / "kernels.cubin")
            command = [str(tools["nvcc"]), "-std=c++20", f"-arch=sm_{args.arch}", "-O3", "-I", str(ROOT)]
            run([*command, "-I", str(ROOT / "csrc"), "-cubin", str(source), "-o", code], source.name)
            listing = run([str(tools["nvdisasm"]), "-c", code], source.name)
        for function in parse(listing):
            if not re.search(args.only, function.name):
                continue
            local = function.count(r"LDL|STL", 0, len(function.instructions))
            if loop := function.main_loop():
                counts = ", ".join(f"{what} {function.count(p, *loop)}" for what, p in COUNTED.items())
                print(
                    f"{source.name:12} {function.name}: instructions {loop[1] - loop[0] + 1}, {counts}, local {local}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
