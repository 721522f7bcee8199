"""Run the notebooks and store what they show: python tools/run_notebooks.py [notebooks/01_first_answer.ipynb ...]

The stored outputs are there for readers who run nothing; tests only ask that every cell runs. What differs from run to
run without a meaning (times, counts, versions of the kernel) is left out, so that a difference in a commit means
something.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def run(path: Path) -> Any:
    """The executed notebook, in the form in which it is stored. Raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
    return notebook


def main() -> int:
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        nbformat.write(run(path), path)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
