"""What was measured, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmantle.bench.machine import Limits
from gemmantle.bench.speed import Measurement, share_of_limit

__all__ = ["as_json", "limits_line", "operation_table", "speed_table", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in a fixed width; the first is text, the others stand at the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def limits_line(limits: Limits) -> str:
    rates = [f"memory {limits.read:.1f} GB/s"]
    for kind in ("f32", "bf16", "i8"):
        rate = getattr(limits, kind)
        rates.append(f"{kind} {'none' if rate is None else f'{rate:.0f} Gop/s'}")
    return f"limits of {limits.threads} threads: " + ", ".join(rates) + "\n"


def speed_table(found: Sequence[Measurement], limits: Limits) -> str:
    rows = []
    for one in found:
        lowest, highest = min(one.seconds), max(one.seconds)
        rows.append(
            (
                one.case.what,
                one.mode,
                str(one.case.tokens),
                str(one.case.depth),
                str(one.case.batch),
                f"{one.median_seconds * 1e3:.2f}",
                f"{lowest * 1e3:.2f}-{highest * 1e3:.2f}",
                f"{one.tokens_per_second:.1f}",
                f"{one.bytes / 1e9 / one.median_seconds:.1f}",
                f"{one.share_of_read():.0%}",
                f"{one.gop / one.median_seconds:.0f}",
                f"{one.share_of_products(limits):.0%}",
            )
        )
    head = ("", "mode", "tokens", "depth", "batch", "ms", "range", "tokens/s", "GB/s", "of probe", "Gop/s", "of peak")
    return table(head, rows)


def operation_table(one: Measurement, limits: Limits, most: int = 14) -> str:
    """The ops of the last round that took longest."""
    total = sum(operation.seconds for operation in one.operations)
    rows = []
    for operation in one.operations[:most]:
        share, bound = share_of_limit(one.mode, operation, limits)
        shape = f"{operation.shape[0]} x {operation.shape[1]}" if operation.shape != (0, 0) else ""
        rows.append(
            (
                operation.op,
                operation.format or "",
                shape,
                f"{operation.calls:.0f}",
                f"{operation.seconds * 1e3:.3f}",
                f"{operation.seconds / total:.1%}",
                f"{operation.bytes / 1e9 / operation.seconds:.1f}" if operation.bytes else "",
                f"{operation.operations / 1e9 / operation.seconds:.0f}" if operation.operations else "",
                f"{share:.0%} {bound}" if bound else "",
            )
        )
    return table(("op", "format", "shape", "calls", "ms", "time", "GB/s", "Gop/s", "of limit"), rows)


def as_json(one: Measurement, limits: Limits) -> dict[str, Any]:
    return {
        "what": one.case.what,
        "mode": one.mode,
        "tokens": one.case.tokens,
        "depth": one.case.depth,
        "batch": one.case.batch,
        "seconds": one.seconds,
        "probe_gb_per_s": one.read,
        "median_s": one.median_seconds,
        "tokens_per_s": one.tokens_per_second,
        "bytes": one.bytes,
        "gop": one.gop,
        "share_of_read": one.share_of_read(),
        "share_of_products": one.share_of_products(limits),
        "operations": [vars(operation) for operation in one.operations],
    }
