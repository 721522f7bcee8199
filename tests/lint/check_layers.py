"""Who may include whom: the table of docs/architecture.md, read against every include and import.

`LAYERS` gives, for each folder, the folders whose headers its files may include; the longest matching folder decides,
and a file may always include its own folder. `SYSTEM` gives the headers in angle brackets a folder may use, where that
is limited. Run it: it prints each arrow that is not in the table and exits with 1.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LAYERS: dict[str, tuple[str, ...]] = {
    "kernels/common": (),
    "kernels/formats": ("kernels/common",),
    "kernels/cpu": ("kernels/formats", "kernels/common"),
    "kernels/cuda": ("kernels/formats", "kernels/common"),
    "kernels/reference": ("kernels/formats", "kernels/common"),
    "csrc/core": (),
    "csrc/checkpoint": ("csrc/core", "kernels/formats"),
    "csrc/backend": ("csrc/core", "kernels/formats", "kernels/common"),
    "csrc/backend/registry.cpp": ("csrc/backend/", "csrc/core"),
    "csrc/backend/reference": ("csrc/backend", "csrc/core", "kernels/reference", "kernels/formats", "kernels/common"),
    # Sampling runs once a row, so the plain one serves both backends.
    "csrc/backend/cpu": (
        "csrc/backend",
        "csrc/core",
        "kernels/cpu",
        "kernels/reference/sample.h",
        "kernels/formats",
        "kernels/common",
    ),
    "csrc/backend/cuda": ("csrc/backend", "csrc/core", "kernels/cuda", "kernels/formats", "kernels/common"),
    "csrc/model": ("csrc/backend", "csrc/checkpoint", "csrc/core", "kernels/formats"),
    "csrc/text": ("csrc/core",),
    "csrc/engine": ("csrc/model", "csrc/text", "csrc/core", "csrc/backend"),
    "csrc/bindings": ("csrc/engine", "csrc/model", "csrc/text", "csrc/checkpoint", "csrc/backend/", "csrc/core"),
}

# Headers without inline functions: what a variant compiled for a wide instruction set may see of the C library.
C_ONLY = r"stdint\.h|stddef\.h|string\.h|float\.h|limits\.h|[a-z0-9]*mmintrin\.h|immintrin\.h|arm_neon\.h"
STANDARD = r"[a-z0-9_]+"
POSIX = r"[a-z0-9_]+\.h|sys/[a-z0-9_]+\.h|linux/[a-z0-9_]+\.h"
SYSTEM: dict[str, str] = {
    "kernels/common": C_ONLY,
    "kernels/formats": C_ONLY,
    "kernels/cpu": C_ONLY,
    "kernels/cuda": rf"{C_ONLY}|cuda[a-z0-9_]*\.h|math\.h|simt_host\.h",
    "kernels/reference": STANDARD,
    "csrc": rf"{STANDARD}|{POSIX}",
    "csrc/core/json.h": rf"{STANDARD}|nlohmann/.*",
    "csrc/core/json.cpp": rf"{STANDARD}|nlohmann/.*",
    "csrc/checkpoint": rf"{STANDARD}|{POSIX}|nlohmann/.*",
    "csrc/model": rf"{STANDARD}|{POSIX}|nlohmann/.*",
    "csrc/backend/reference": rf"{STANDARD}|Eigen/.*",
    "csrc/backend/cuda": rf"{STANDARD}|{POSIX}|cuda[a-z0-9_]*\.h",
    "csrc/bindings": rf"{STANDARD}|{POSIX}|pybind11/.*",
}

# The only Python modules that may name the native module, all inside functions: importing the package does not load it.
NATIVE = {"__init__.py", "bench/ids.py", "bench/machine.py", "opened.py", "chat/parser.py", "chat/tokenizer.py"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def longest(path: str, table: dict[str, object]) -> str | None:
    """The entry of `table` that is `path` itself or the deepest folder above it."""
    hits = [entry for entry in table if path == entry or path.startswith(entry + "/")]
    return max(hits, key=len, default=None)


def covers(entry: str, path: str) -> bool:
    """Whether an allowed entry covers a header: a folder its own files, with a final slash also its subfolders."""
    if entry == path:
        return True
    if entry.endswith("/"):
        return path.startswith(entry)
    return path.rsplit("/", 1)[0] == entry


def check_include(path: str, quoted: str | None, system: str | None, exists: set[str]) -> str | None:
    """What is wrong with one include of the file at `path` (relative to the repository), or None."""
    layer = longest(path, dict(LAYERS))
    if layer is None:
        return f"{path} lies in no layer of the table"
    if system is not None:
        rule = longest(path, dict(SYSTEM))
        if rule is not None and not re.fullmatch(SYSTEM[rule], system):
            return f"<{system}> is not for {rule}"
        return None
    assert quoted is not None
    target = next((candidate for candidate in (f"csrc/{quoted}", quoted) if candidate in exists), None)
    if target is None:
        return f'"{quoted}" is no path from csrc/ or from the root of the repository'
    own = path.rsplit("/", 1)[0]
    if target.rsplit("/", 1)[0] == own or any(covers(entry, target) for entry in LAYERS[layer]):
        return None
    return f'"{quoted}" is not for {layer}'


def cpp_problems(root: Path) -> list[str]:
    """All arrows of csrc/ and kernels/ that the table does not hold."""
    suffixes = {".h", ".cpp", ".cu", ".cuh", ".def"}
    files = [file for top in ("csrc", "kernels") for file in sorted((root / top).rglob("*")) if file.suffix in suffixes]
    exists = {file.relative_to(root).as_posix() for file in files}
    problems = []
    for file in files:
        path = file.relative_to(root).as_posix()
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if match := INCLUDE.match(line):
                problem = check_include(path, match[1], match[2], exists)
                if problem:
                    problems.append(f"{path}:{number}: {problem}")
    return problems


def names_native(node: ast.AST) -> bool:
    """Whether a node names the native module: an import of it, or its dotted name as a string."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[-1] == "_core" for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[-1] == "_core" or any(alias.name == "_core" for alias in node.names)
    return isinstance(node, ast.Constant) and node.value == "gemmantle._core"


def python_problems(root: Path) -> list[str]:
    """Uses of the native module outside the modules that may name it, or outside a function; types only are free."""
    package = root / "python" / "gemmantle"
    problems = []
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        tree = ast.parse(file.read_text(), filename=str(file))
        typing_only: set[int] = set()
        in_function: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                typing_only.update(id(child) for child in ast.walk(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                in_function.update(id(child) for child in ast.walk(node))
        for node in ast.walk(tree):
            if not names_native(node) or id(node) in typing_only:
                continue
            where = f"python/gemmantle/{name}:{getattr(node, 'lineno', 0)}"
            if name not in NATIVE:
                problems.append(f"{where}: _core is for {', '.join(sorted(NATIVE))} only")
            elif id(node) not in in_function:
                problems.append(f"{where}: _core is imported with the module; import it in the function that needs it")
    return problems


def problems(root: Path = ROOT) -> list[str]:
    return cpp_problems(root) + python_problems(root)


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "layers: every include and import is in the table")
    sys.exit(1 if found else 0)
