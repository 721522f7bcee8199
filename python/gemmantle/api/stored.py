"""The routes of stored responses: look at one, follow it, delete it, cancel it, list its input (spec api 6.4, 6.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from gemmantle.api.background import Following, State
from gemmantle.api.fields import show
from gemmantle.api.protocol import ByteStream, Request
from gemmantle.errors import RequestError

__all__ = ["page", "read_query", "serve"]

_VERBS = {"": ("GET", "DELETE"), "cancel": ("POST",), "input_items": ("GET",)}
_RETRIEVE = ("stream", "starting_after", "include", "include_obfuscation")
_LIST = ("after", "limit", "order", "include")


def serve(request: Request, path: str, state: State) -> dict[str, Any] | ByteStream:
    """`path` is what follows /responses/."""
    name, _, action = path.partition("/")
    method = request.method.upper()
    if action not in _VERBS:
        raise RequestError(f"no route /responses/{path[:200]}", code="unknown_url")
    if method not in _VERBS[action]:
        allowed = " and ".join(_VERBS[action])
        raise RequestError(f"/responses/{path[:200]} answers {allowed}, not {method}", code="method_not_allowed")
    if action == "cancel":
        return _cancel(name, state)
    if action == "input_items":
        return _input_items(name, read_query(request, _LIST), state)
    if method == "DELETE":
        return _delete(name, state)
    return _retrieve(name, request, state)


def _retrieve(name: str, request: Request, state: State) -> dict[str, Any] | ByteStream:
    query = read_query(request, _RETRIEVE)
    wants_stream = _flag(query, "stream")
    after = _number(query, "starting_after", -1, -1, 2**53)
    if not wants_stream:
        if after >= 0:
            raise RequestError("`starting_after` needs `stream`=true", param="starting_after")
        return _found(name, state)
    job = state.job(name)
    if job is not None:
        return Following(job, after + 1, request.timeout)
    record = state.store.get(name)
    if record is None:
        raise _unknown(name)
    if not record.events:
        raise RequestError(
            f"response '{name[:100]}' was not made in the background, so its events were not kept; leave `stream` out",
            code="unsupported_value",
            param="stream",
        )
    return Following(record.events, after + 1, request.timeout)


def _cancel(name: str, state: State) -> dict[str, Any]:
    job = state.job(name)
    if job is not None:
        job.cancel()
        state.wake()
    response = _found(name, state)
    if response["status"] != "cancelled":
        what = "has ended already" if response["background"] else "was not made in the background"
        raise RequestError(
            f"response '{name[:100]}' has the status '{response['status']}' and {what}; there is nothing to cancel",
            code="response_not_cancellable",
        )
    return response


def _delete(name: str, state: State) -> dict[str, Any]:
    job = state.job(name)
    if job is not None:
        job.cancel()
        state.forget(name)
    if not state.store.delete(name) and job is None:
        raise _unknown(name)
    return {"id": name, "object": "response", "deleted": True}


def _input_items(name: str, query: dict[str, str], state: State) -> dict[str, Any]:
    record = state.store.get(name)
    if record is None:
        raise _unknown(name)
    return page(record.items, query, "desc")


def page(items: Sequence[dict[str, Any]], query: dict[str, str], default_order: str) -> dict[str, Any]:
    """One page of a list that is kept oldest first."""
    order = query.get("order", default_order)
    if order not in ("asc", "desc"):
        raise RequestError(f"`order` is {show(order)}; it must be 'asc' or 'desc'", param="order")
    limit = _number(query, "limit", 20, 1, 100)
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
                f"unknown parameter `{name[:100]}`; there are {', '.join(known)}",
                code="unknown_parameter",
                param=name[:100],
            )
        query[name] = value
    return query


def _flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise RequestError(f"`{name}` is {show(value)}; it must be true or false", param=name)
    return value == "true"


def _number(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    try:
        number = int(value[:20])
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise RequestError(f"`{name}` is {show(value)}; it must be an integer from {low} to {high}", param=name)
    return number


def _found(name: str, state: State) -> dict[str, Any]:
    response = state.response(name)
    if response is None:
        raise _unknown(name)
    return response


def _unknown(name: str) -> RequestError:
    return RequestError(
        f"response '{name[:100]}' is not stored here: it never was, it was deleted, or newer ones took its place",
        code="response_not_found",
    )
