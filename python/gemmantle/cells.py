"""Loads in the cells of a notebook: a cell that is run again gives back what it loaded before (spec api N-3).

Only front ends that name their cells (JupyterLab, Notebook, VS Code) are followed; elsewhere nothing happens.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from gemmantle.kernel import running_kernel

if TYPE_CHECKING:
    from gemmantle.engines import Engine

__all__ = ["loaded_here"]

_Place = tuple[str, int]  # a cell, and which load of it

_engines: weakref.WeakValueDictionary[_Place, Engine] = weakref.WeakValueDictionary()
_run: tuple[str, int] = ("", 0)  # the run of a cell that is going on, and how many loads it made


def loaded_here(engine: Engine) -> None:
    """Note what a cell loads, before it is opened; what the same place of the cell loaded last time is closed."""
    global _run
    parent = _parent()
    cell = parent.get("metadata", {}).get("cellId")
    if not cell:
        return
    run = str(parent.get("header", {}).get("msg_id"))
    number = _run[1] + 1 if _run[0] == run else 0
    _run = (run, number)
    before = _engines.get((cell, number))
    _engines[cell, number] = engine
    if before is None or before.closed:
        return
    if before is not engine:
        print(f"gemmantle: closed {before.name}, which this cell had loaded before", flush=True)
    before.close()


def _parent() -> dict[str, Any]:
    """The message that runs the cell; empty outside of a kernel."""
    kernel = running_kernel()
    found: dict[str, Any] = kernel.get_parent() if kernel is not None else {}
    return found
