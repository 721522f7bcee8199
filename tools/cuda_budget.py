#!/usr/bin/env python3
"""Holds every CUDA kernel to the registers written beside it, and to no stack, no spills, no local memory.

    python tools/cuda_budget.py [--arch 80,90] [--counts] [kernels/cuda/product.cu ...]

A kernel's limit stands in its source file as `// budget: NAME REGISTERS`, for all its instances; a kernel without one
is an error, as is a limit without a kernel. Limits on shared memory are static_asserts beside the launchers. `--counts`
prints, of the PTX for the first architecture, how many tensor-core, ldmatrix, asynchronous-copy and 16-byte global
load instructions each instance has. Exits with 77 where there is no nvcc.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "89", "90", "120")
NO_COMPILER = 77

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
LIMIT = re.compile(r"^// budget: (\w+) (\d+)$", re.MULTILINE)
COUNTED = {
    "mma": r"\bmma\.sync",
    "ldmatrix": r"\bldmatrix",
    "cp.async": r"\bcp\.async\.c[ag]",
    "16-byte loads": r"\bld\.global(?:\.\w+)*\.v4",
}


@dataclass
class Kernel:
    """What ptxas says of one instance of a kernel."""

    name: str  # without arguments, with template arguments
    registers: int
    wasted: int  # bytes of stack and spills

    @property
    def plain_name(self) -> str:
        return self.name.split("<")[0]


def demangle(names: list[str]) -> list[str]:
    """`kernel<template arguments>` of each mangled name."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for line in text.splitlines():
        line = line.removeprefix("void ").replace("(anonymous namespace)::", "").replace("gemmantle::cuda::", "")
        line = re.sub(r"\((?:int|bool|Plane)\)", "", line)
        depth, end = 0, len(line)
        for i, c in enumerate(line):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                end = i
                break
        short.append(line[:end])
    return short


def run(command: list[str], what: str) -> str:
    """What a compiler said; its errors end the program."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{what}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_file(compiler: str, source: Path, arch: str) -> tuple[str, list[Kernel]]:
    """The PTX of a file, and what ptxas makes of it. Warnings are errors."""
    what = f"{source.name}, sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        command = [compiler, "-std=c++20", f"-arch=sm_{arch}", "-O3", "-Werror=all-warnings", "-I", str(ROOT)]
        command += ["-I", str(ROOT / "csrc"), "-Xcompiler=-Wall,-Wextra,-Wshadow", "-ptx", str(source), "-o", str(ptx)]
        run(command, what)
        assembler = Path(compiler).resolve().parent / "ptxas"
        log = run([str(assembler), "-O3", f"-arch=sm_{arch}", "-v", str(ptx), "-o", f"{ptx}.cubin"], what)
        text = ptx.read_text()
    found = list(ENTRY.finditer(log))
    names = demangle([m["name"] for m in found]) if found else []
    kernels = [
        Kernel(name, int(m["registers"]), int(m["stack"]) + int(m["stores"]) + int(m["loads"]))
        for name, m in zip(names, found, strict=True)
    ]
    return text, kernels


def check(compiler: str, source: Path, arch: str, counts: bool) -> list[str]:
    """What is wrong with the kernels of one file on one architecture."""
    limits = {name: int(most) for name, most in LIMIT.findall(source.read_text())}
    text, kernels = compile_file(compiler, source, arch)
    wrong = []
    highest: dict[str, int] = {}
    for kernel in kernels:
        where = f"{source.name}, sm_{arch}, {kernel.name}"
        highest[kernel.plain_name] = max(highest.get(kernel.plain_name, 0), kernel.registers)
        most = limits.get(kernel.plain_name)
        if most is None:
            wrong.append(f"{where}: no `// budget: {kernel.plain_name} REGISTERS` in the file")
        elif kernel.registers > most:
            wrong.append(f"{where}: {kernel.registers} registers, at most {most}")
        if kernel.wasted:
            wrong.append(f"{where}: {kernel.wasted} bytes of stack or spills")
    for name in limits.keys() - highest.keys():
        wrong.append(f"{source.name}: a budget for {name}, which is no kernel here")
    for name, registers in sorted(highest.items()):
        print(f"{source.name:14} sm_{arch:4} {name:24} registers {registers:3} of {limits.get(name, 0)}")
    wrong += check_ptx(source, text, counts)
    return wrong


def check_ptx(source: Path, text: str, counts: bool) -> list[str]:
    """Local memory in the PTX is wrong; the counts are for reading."""
    entries = text.split(".entry ")[1:]
    names = demangle([e.split("(")[0].strip() for e in entries]) if entries else []
    wrong = []
    for name, body in zip(names, entries, strict=True):
        if re.search(r"\.local\b", body):
            wrong.append(f"{source.name}, {name}: local memory")
        if counts:
            found = ", ".join(f"{what} {len(re.findall(pattern, body))}" for what, pattern in COUNTED.items())
            print(f"{source.name:14} {name}: {found}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="default: all of kernels/cuda")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: %(default)s")
    parser.add_argument("--counts", action="store_true")
    args = parser.parse_args()
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc", path=search)
    if compiler is None:
        print("skipped: no nvcc")
        return NO_COMPILER
    architectures = args.arch.split(",")
    wrong = []
    for source in args.sources or sorted((ROOT / "kernels" / "cuda").glob("*.cu")):
        for arch in architectures:
            wrong += check(compiler, source, arch, args.counts and arch == architectures[0])
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
