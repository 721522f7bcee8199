"""Numbers of the server in the Prometheus text format. Labels come from fixed lists: no caller makes them grow."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = re.compile(r"^(/openai)?/v1(?=/)")
_ROUTES = {
    "/", "/health", "/ready", "/version", "/metrics", "/models", "/chat/completions", "/completions", "/responses",
    "/embeddings", "/files", "/batches", "/tokenize", "/detokenize", "/apply-template",
}  # fmt: skip
_WITH_ID = ("/models/", "/chat/completions/", "/responses/", "/files/", "/batches/")
_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_COUNTERS = {"steps", "prompt_tokens", "generated_tokens", "preemptions"}


class Metrics:
    """Counts of one server; used from its event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._times: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """One request is over; 499 stands for a caller that left."""
        route = _route(path)
        self._requests[route, status] += 1
        self._times.setdefault(route, [0] * (len(_BOUNDS_S) + 1))[bisect.bisect_left(_BOUNDS_S, seconds)] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def text(self, gauges: Mapping[str, int], stats: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
        """`gauges` of the server itself, and the counters of each engine under its model's name."""
        lines = ["# TYPE gemmantle_http_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'gemmantle_http_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE gemmantle_http_request_seconds histogram")
        for route, buckets in sorted(self._times.items()):
            total = 0
            for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), buckets, strict=True):
                total += count
                lines.append(f'gemmantle_http_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}')
            lines.append(f'gemmantle_http_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
            lines.append(f'gemmantle_http_request_seconds_count{{route="{route}"}} {total}')
        for name, value in gauges.items():
            lines += [f"# TYPE gemmantle_{name} gauge", f"gemmantle_{name} {value}"]
        lines += _engine_lines(stats)
        return "\n".join(lines) + "\n"


def _engine_lines(stats: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A family's samples stand together, as the format wants."""
    families: dict[str, list[tuple[str, Any]]] = {}
    for model, values in stats:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                families.setdefault(name, []).append((model, value))
    lines = []
    for name, samples in families.items():
        counts = name in _COUNTERS
        metric = f"gemmantle_engine_{name}" + ("_total" if counts else "")
        lines.append(f"# TYPE {metric} {'counter' if counts else 'gauge'}")
        lines += [f'{metric}{{model="{_escaped(model)}"}} {float(value):.17g}' for model, value in samples]
    return lines


def _route(path: str) -> str:
    path = _PREFIX.sub("", path).rstrip("/") or "/"
    if path in _ROUTES:
        return path
    return next((f"{prefix}{{id}}" for prefix in _WITH_ID if path.startswith(prefix)), "other")


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
