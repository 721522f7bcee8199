"""Whether a notebook's kernel is what runs this. IPython is never imported for it: it is there where one runs."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["running_kernel"]


def running_kernel() -> Any:
    """The kernel of this process, and None in a script, a terminal or IPython's own."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)
