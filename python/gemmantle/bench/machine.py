"""The limits of this machine, measured: what a speed can be a share of."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Limits", "Probe", "processor"]


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together. GB/s read from memory; Gop/s are multiplications and additions of products.

    None where the instruction set in use has no products of that kind.
    """

    threads: int
    read: float
    f32: float | None
    bf16: float | None
    i8: float | None

    def products(self, mode: str, weight_format: str | None) -> float | None:
        """Gop/s of the products that a mode uses for a weight format; None for attention."""
        if mode == "exact" or weight_format in (None, "f32", "f16"):
            return self.f32
        return (self.bf16 or self.f32) if weight_format == "bf16" else (self.i8 or self.f32)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Probe:
    """Loops that only read and only multiply, on the threads that an engine would use."""

    def __init__(self, threads: int | None = None) -> None:
        self._probe: Any = importlib.import_module("gemmantle._core").MachineProbe(threads or 0)

    @property
    def threads(self) -> int:
        return int(self._probe.threads)

    def read(self, seconds: float = 0.2) -> float:
        """GB/s, the median of passes; it changes from second to second on a shared host."""
        return float(self._probe.read_rate(seconds)) / 1e9

    def limits(self, seconds: float = 0.2) -> Limits:
        kinds = {kind: self._probe.product_rate(kind, seconds) for kind in ("f32", "bf16", "i8")}
        gops = {kind: None if rate is None else float(rate) / 1e9 for kind, rate in kinds.items()}
        return Limits(threads=self.threads, read=self.read(seconds), **gops)


def processor() -> str:
    """The name of the processor, as the system gives it; empty where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
