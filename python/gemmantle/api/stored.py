"""The routes of stored responses: look at one, follow it, delete it, cancel it, list its input (spec api 6.4, 6.5)."""

from __future__ import annotations

from typing import Any

from gemmantle.api.background import Following, State
from gemmantle.api.protocol import ByteStream, Request
from gemmantle.api.queries import flag, number, page, read_query
from gemmantle.errors import RequestError

__all__ = ["serve"]

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
    wants_stream = flag(query, "stream")
    after = number(query, "starting_after", -1, -1, 2**53)
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
