"""/embeddings: reserved. Chat models give no embeddings, and the answer says so (spec api 7.4)."""

from __future__ import annotations

from typing import Any

from gemmantle.api.fields import show
from gemmantle.errors import RequestError

__all__ = ["refuse"]

_FIELDS = ("model", "input", "dimensions", "encoding_format", "user")


def refuse(body: dict[str, Any]) -> RequestError:
    """The refusal of a request, of its first wrong field before that."""
    for field in body:
        if field not in _FIELDS:
            return RequestError(f"unknown field `{field[:100]}`", code="unknown_parameter", param=field[:100])
    if not body.get("input"):
        return RequestError("`input` is missing", code="missing_required_parameter", param="input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        return RequestError(
            f"`encoding_format` is {show(encoding)}; it must be 'float' or 'base64'", param="encoding_format"
        )
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        return RequestError(f"`dimensions` is {show(dimensions)}; it must be a positive integer", param="dimensions")
    return RequestError(
        f"model {show(body.get('model'))} writes text and gives no embeddings; its hidden states would not make good "
        "ones, and no embedding model is supported",
        code="model_not_embedding",
        param="model",
    )
