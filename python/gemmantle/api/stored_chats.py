"""The routes of stored chats: list them, look at one or at its messages, change its metadata, delete it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from gemmantle.api.chat_store import ChatStore, StoredChat
from gemmantle.api.fields import check_metadata, show
from gemmantle.api.protocol import ModelSource, Request
from gemmantle.api.queries import page, read_query
from gemmantle.api.schemas import parse_body
from gemmantle.errors import RequestError

__all__ = ["serve"]

_PAGING = ("after", "limit", "order")
_METADATA = re.compile(r"metadata\[(.+)\]\Z")


def serve(request: Request, path: str, chats: ChatStore, models: ModelSource) -> dict[str, Any]:
    """`path` is what follows /chat/completions/; empty for the list itself."""
    name, _, action = path.partition("/")
    method = request.method.upper()
    if action not in ("", "messages"):
        raise RequestError(f"no route /chat/completions/{path[:200]}", code="unknown_url")
    verbs = ("GET",) if action or not name else ("GET", "POST", "DELETE")
    if method not in verbs:
        raise RequestError(
            f"/chat/completions/{path[:200]} answers {' and '.join(verbs)}, not {method}", code="method_not_allowed"
        )
    if not name:
        return _list(request, chats, models)
    if method == "DELETE":
        if not chats.delete(name):
            raise _unknown(name)
        return {"id": name, "object": "chat.completion.deleted", "deleted": True}
    chat = chats.get(name)
    if chat is None:
        raise _unknown(name)
    if action:
        return page(_messages(chat), read_query(request, _PAGING), "asc")
    if method == "POST":
        return _change(request, chat, chats)
    read_query(request, ())
    return chat.completion


def _list(request: Request, chats: ChatStore, models: ModelSource) -> dict[str, Any]:
    wanted = {}
    for name, value in parse_qsl(request.query, keep_blank_values=True, max_num_fields=64):
        key = _METADATA.match(name)
        if key is not None:
            wanted[key[1]] = value
    query = read_query(request, (*_PAGING, "model", *(f"metadata[{key}]" for key in wanted)))
    model = query.get("model")
    engine = None if model is None else models.find(model)
    names = (model, None if engine is None else engine.profile.name)
    found = [
        chat.completion
        for chat in chats
        if (model is None or chat.completion["model"] in names)
        and all(chat.completion["metadata"].get(key) == value for key, value in wanted.items())
    ]
    return page(found, query, "asc")


def _change(request: Request, chat: StoredChat, chats: ChatStore) -> dict[str, Any]:
    body = parse_body(request.body)
    for field in body:
        if field != "metadata":
            raise RequestError(
                f"`{field[:100]}` cannot be changed; `metadata` can", code="unknown_parameter", param=field[:100]
            )
    chat.completion["metadata"] = check_metadata(body.get("metadata") or {})
    chats.put(chat)
    return chat.completion


def _messages(chat: StoredChat) -> list[dict[str, Any]]:
    """The messages of the request. Content in parts is told as its text, and as the parts."""
    found = []
    for position, message in enumerate(chat.messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else None
        if parts is not None:
            content = "".join(part.get("text", "") for part in parts if isinstance(part, dict))
        name = f"{chat.completion['id']}-{position}"
        found.append({"refusal": None, **message, "id": name, "content": content, "content_parts": parts})
    return found


def _unknown(name: str) -> RequestError:
    return RequestError(
        f"chat {show(name[:100])} is not stored here: it was not made with `store`: true, it was deleted, or newer "
        "ones took its place",
        code="completion_not_found",
    )
