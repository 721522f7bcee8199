"""How far bulk work has come: a bar in a terminal or a notebook, lines in the log elsewhere, or a function's business.

Nothing is shown of work that is over within two seconds. A notebook's bar needs IPython, which is there where one runs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from gemmantle.kernel import running_kernel

__all__ = ["Progress", "Show", "Standing"]

_QUIET_S = 2.0  # before anything is shown
_BAR_S = 0.1  # between two looks of a bar
_LOG_S = 10.0  # between two lines of a log
_CELLS = 24

_log = logging.getLogger("gemmantle")


@dataclass(frozen=True)
class Standing:
    """What a function that replaces the bar is told. `total` is None where the work came from an iterator."""

    done: int
    total: int | None
    tokens: int
    seconds: float
    is_over: bool = False


Show = bool | str | Callable[[Standing], object]


class Progress:
    """Counts items of one piece of work. Make it, `add` as they end, `close` it in any case.

    show: "auto" picks terminal, notebook or log; False shows nothing; a function gets a `Standing` ten times a second
    at most, and one at the end. ValueError for anything else.
    """

    def __init__(self, work: str, total: int | None = None, show: Show = "auto") -> None:
        self.total = total
        self._done = 0
        self._tokens = 0
        self._started = time.monotonic()
        self._view = _view(work, show)
        self._next = self._started + (self._view.quiet_s if self._view else 0.0)
        self._is_open = True

    def add(self, items: int, tokens: int = 0) -> None:
        self._done += items
        self._tokens += tokens
        if self._view is None:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._view.gap_s
            self._view.show(self._standing(now))

    def close(self) -> None:
        """Idempotent. Ends the bar, whether all is done or not."""
        if self._is_open and self._view is not None:
            self._view.end(self._standing(time.monotonic(), is_over=True))
        self._is_open = False

    def _standing(self, now: float, is_over: bool = False) -> Standing:
        return Standing(self._done, self.total, self._tokens, now - self._started, is_over)


class _View:
    """Where progress is shown. `end` comes last, also where `show` never came."""

    quiet_s = _QUIET_S
    gap_s = _BAR_S

    def __init__(self, work: str) -> None:
        self._work = work
        self._is_shown = False

    def show(self, standing: Standing) -> None:
        self._is_shown = True
        self._draw(standing)

    def end(self, standing: Standing) -> None:
        if self._is_shown:
            self._draw(standing)

    def _draw(self, standing: Standing) -> None:
        raise NotImplementedError


class _Terminal(_View):
    def __init__(self, work: str, stream: TextIO) -> None:
        super().__init__(work)
        self._stream = stream
        self._width = 0

    def _draw(self, standing: Standing) -> None:
        line = f"{self._work} {_cells(standing)}{_numbers(standing)}"
        self._stream.write("\r" + line.ljust(self._width) + ("\n" if standing.is_over else ""))
        self._stream.flush()
        self._width = len(line)


class _Notebook(_View):
    def __init__(self, work: str, html: Callable[[str], Any], display: Callable[..., Any]) -> None:
        super().__init__(work)
        self._html = html
        self._display = display
        self._handle: Any = None

    def _draw(self, standing: Standing) -> None:
        value = "" if standing.total is None else f' value="{standing.done}" max="{standing.total}"'
        page = self._html(f"{self._work} <progress{value}></progress> {_numbers(standing)}")
        if self._handle is None:
            self._handle = self._display(page, display_id=True)
        else:
            self._handle.update(page)


class _Log(_View):
    quiet_s = gap_s = _LOG_S

    def _draw(self, standing: Standing) -> None:
        _log.info("%s: %s", self._work, _numbers(standing))


class _Told(_View):
    quiet_s = 0.0

    def __init__(self, tell: Callable[[Standing], object]) -> None:
        super().__init__("")
        self._tell = tell

    def end(self, standing: Standing) -> None:
        self._tell(standing)

    def _draw(self, standing: Standing) -> None:
        self._tell(standing)


def _view(work: str, show: Show) -> _View | None:
    if callable(show):
        return _Told(show)
    if show is False:
        return None
    if show != "auto" and show is not True:
        raise ValueError(f"progress is {show!r}; it must be 'auto', True, False or a function")
    display = _notebook_display()
    if display is not None:
        return _Notebook(work, display.HTML, display.display)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Terminal(work, sys.stderr)
    return _Log(work)


def _notebook_display() -> Any:
    """IPython's display module where a notebook is what runs this, and None elsewhere."""
    if running_kernel() is None:
        return None
    import IPython.display

    return IPython.display


def _cells(standing: Standing) -> str:
    if not standing.total:
        return ""
    full = _CELLS * min(standing.done, standing.total) // standing.total
    return f"[{'#' * full}{'.' * (_CELLS - full)}] "


def _numbers(standing: Standing) -> str:
    """For example "120/1000, 12 %, 34.5 a second, 812 tokens a second, 0:25 left"."""
    rate = standing.done / standing.seconds if standing.seconds > 0 else 0.0
    parts = [str(standing.done) if standing.total is None else f"{standing.done}/{standing.total}"]
    if standing.total:
        parts.append(f"{100 * standing.done // standing.total} %")
    parts.append(f"{rate:.1f} a second")
    if standing.tokens:
        parts.append(f"{standing.tokens / standing.seconds:.0f} tokens a second")
    if standing.is_over:
        parts.append(f"{_clock(standing.seconds)} in all")
    elif standing.total and rate > 0:
        parts.append(f"{_clock((standing.total - standing.done) / rate)} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
