"""Parameters that stand in an address, and lists that are given a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from gemmantle.api.fields import show
from gemmantle.api.protocol import Request
from gemmantle.errors import RequestError

__all__ = ["flag", "number", "page", "read_query"]


def page(items: Sequence[dict[str, Any]], query: dict[str, str], default_order: str) -> dict[str, Any]:
    """One page of a list that is kept oldest first."""
    order = query.get("order", default_order)
    if order not in ("asc", "desc"):
        raise RequestError(f"`order` is {show(order)}; it must be 'asc' or 'desc'", param="order")
    limit = number(query, "limit", 20, 1, 100)
    ordered = list(items) if order == "asc" else list(items)[::-1]
    after = query.get("after")
    if after is not None:
        names = [item["id"] for item in ordered]
        if after not in names:
            raise RequestError(f"`after` is {show(after)}; the list has no such item", param="after")
        ordered = ordered[names.index(after) + 1 :]
    data = ordered[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(ordered) > limit,
    }


def read_query(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of an address; lists are written `name[]` or repeated, the last one counts."""
    query = {}
    for name, value in parse_qsl(request.query, keep_blank_values=True, max_num_fields=64):
        name = name.removesuffix("[]")
        if name not in known:
            raise RequestError(
                f"unknown parameter `{name[:100]}`; there are {', '.join(known) or 'none here'}",
                code="unknown_parameter",
                param=name[:100],
            )
        query[name] = value
    return query


def flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise RequestError(f"`{name}` is {show(value)}; it must be true or false", param=name)
    return value == "true"


def number(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    try:
        found = int(value[:20])
    except ValueError:
        found = low - 1
    if not low <= found <= high:
        raise RequestError(f"`{name}` is {show(value)}; it must be an integer from {low} to {high}", param=name)
    return found
