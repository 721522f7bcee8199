"""When a request may leave the machine, and where it may go: pure rules, no input or output (spec api 9.3).

`trigger_of` names why a local failure counts; what it does not name (a wrong request, a cancellation, a timeout, an
error of ours) never leads away. `Breaker` closes a region that fails, on a clock that is handed in.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from gemmantle import errors

__all__ = ["TRIGGERS", "Breaker", "check_triggers", "trigger_of", "trigger_of_code"]

TRIGGERS = ("no_device", "cannot_load", "loading", "busy", "too_large", "device_error", "unsupported")

_CODES = {
    "engine_busy": "busy",
    "model_loading": "loading",
    "context_length_exceeded": "too_large",
    "request_too_large_for_memory": "too_large",
    "insufficient_memory": "too_large",
    "device_error": "device_error",
    "unsupported_content_type": "unsupported",
}


def trigger_of(exc: BaseException) -> str | None:
    """The trigger behind a failed load."""
    if isinstance(exc, (errors.UnsupportedHardware, errors.DriverTooOld)):
        return "no_device"
    if isinstance(exc, errors.LoadError):
        return "cannot_load"
    if isinstance(exc, errors.DeviceError):
        return "device_error"
    return None


def trigger_of_code(code: object) -> str | None:
    """The trigger behind the error of an answer that has not begun."""
    return _CODES.get(code) if isinstance(code, str) else None


def check_triggers(triggers: Iterable[str]) -> frozenset[str]:
    """ValueError for a name that is no trigger."""
    if isinstance(triggers, str):
        raise ValueError(f"triggers is {triggers!r}; it must be a list of names: {', '.join(TRIGGERS)}")
    chosen = frozenset(triggers)
    unknown = sorted(chosen - set(TRIGGERS))
    if unknown:
        raise ValueError(f"triggers holds {unknown[0]!r}; there are {', '.join(TRIGGERS)}")
    return chosen


class Breaker:
    """One region: closed, open after `limit` failures in a row, then let in again step by step.

    Open means nothing is sent for `hold_s`. Then half of the former rate (requests a step) may pass; each step with a
    success and no failure raises that by half, until the former rate is reached and the breaker is closed. Any failure
    on the way opens it again. Safe from any thread.
    """

    def __init__(
        self,
        *,
        limit: int = 5,
        hold_s: float = 900.0,
        step_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._hold_s = hold_s
        self._step_s = step_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._recent: deque[float] = deque(maxlen=10_000)
        self._opened: float | None = None
        self._former = 1.0  # requests a step before it opened
        self._allowed = 0.0  # requests a step now; 0 while closed or open
        self._step = 0.0
        self._passed = 0
        self._good = False

    @property
    def state(self) -> str:
        with self._lock:
            return self._state(self._clock())

    def seconds_left(self) -> float:
        """Until it lets something through again; 0 where it would now."""
        with self._lock:
            now = self._clock()
            if self._state(now) == "open" and self._opened is not None:
                return self._opened + self._hold_s - now
            return 0.0

    def allow(self) -> bool:
        """Whether one request may be sent now; the yes is counted."""
        with self._lock:
            now = self._clock()
            state = self._state(now)
            if state == "open":
                return False
            if state == "half-open":
                self._advance(now)
            if self._allowed:
                if self._passed >= math.ceil(self._allowed):
                    return False
                self._passed += 1
            self._recent.append(now)
            return True

    def record(self, ok: bool) -> None:
        """How a request that was sent ended: not ok is a 429, a 5xx or no connection."""
        with self._lock:
            now = self._clock()
            if ok:
                self._failures = 0
                self._good = True
                return
            self._failures += 1
            self._good = False
            if self._state(now) == "open":
                return
            if self._allowed or self._failures >= self._limit:
                if not self._allowed:
                    self._former = max(1.0, float(sum(now - when <= self._step_s for when in self._recent)))
                self._opened = now
                self._allowed = 0.0
                self._failures = 0

    def _state(self, now: float) -> str:
        if self._opened is None:
            return "closed"
        if not self._allowed and now - self._opened < self._hold_s:
            return "open"
        return "half-open"

    def _advance(self, now: float) -> None:
        if not self._allowed:
            self._allowed = max(1.0, self._former / 2)
            self._step, self._passed, self._good = now, 0, False
            return
        if now - self._step < self._step_s:
            return
        if self._good:
            self._allowed *= 1.5
            if self._allowed >= self._former:
                self._close()
        self._step, self._passed, self._good = now, 0, False

    def _close(self) -> None:
        self._opened = None
        self._allowed = 0.0
        self._failures = 0
