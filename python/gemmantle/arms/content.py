"""Messages and input items as the remote service takes them: no thoughts of earlier turns, images as data (spec F-4).

An image named by an http(s) address is read only through a function the caller gave; a path never leaves the machine.
Images are made smaller only where the whole body would be over the service's limit.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
from collections.abc import Callable
from typing import Any

from gemmantle.api.fields import show
from gemmantle.arms.capabilities import Fitted
from gemmantle.errors import RequestError

__all__ = ["Fetch", "fit_content"]

Fetch = Callable[[str], bytes]

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}
_SMALLEST = 64  # pixels of the longer side below which an image is not made smaller


def fit_content(route: str, fitted: Fitted, inputs: list[str], limits: dict[str, int], fetch: Fetch | None) -> None:
    """Change the body in place; RequestError names the part that cannot be sent."""
    images: list[tuple[dict[str, Any], str]] = []  # the object that holds an address, and its key
    if route == "responses":
        items = fitted.body.get("input")
        if isinstance(items, list):
            kept = [item for item in items if not (isinstance(item, dict) and item.get("type") == "reasoning")]
            if len(kept) < len(items):
                fitted.converted.append("input: reasoning items left out")
            fitted.body["input"] = items = kept
            for position, item in enumerate(items):
                _walk(item, f"input[{position}]", inputs, fitted.model, images)
    else:
        messages = fitted.body.get("messages")
        for position, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                thoughts = [message.pop(key, None) for key in ("reasoning", "reasoning_content")]
                if any(thoughts):
                    fitted.converted.append(f"messages[{position}]: reasoning left out")
                for key in ("parsed", "refusal", "tool_calls"):
                    if message.get(key, 0) is None:
                        del message[key]
                _walk(message, f"messages[{position}]", inputs, fitted.model, images)
    if len(images) > limits["image_limit"]:
        raise RequestError(
            f"the request has {len(images)} images; the remote model {fitted.model} takes {limits['image_limit']}",
            code="unsupported_value",
            param="input" if route == "responses" else "messages",
        )
    for holder, key in images:
        holder[key] = _as_data(holder[key], fetch, fitted)
    _shrink(fitted, images, limits["body_limit"])


def _walk(message: Any, path: str, inputs: list[str], model: str, images: list[tuple[dict[str, Any], str]]) -> None:
    parts = message.get("content") if isinstance(message, dict) else None
    for position, part in enumerate(parts if isinstance(parts, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        where = f"{path}.content[{position}]"
        if kind in _TEXT_PARTS:
            continue
        if kind not in ("image_url", "input_image") or "image" not in inputs:
            raise RequestError(
                f"`{where}.type` is {show(kind)}; the remote model {model} takes {' and '.join(inputs)}",
                code="unsupported_content_type",
                param=f"{where}.type",
            )
        holder, key = (part.get("image_url"), "url") if kind == "image_url" else (part, "image_url")
        address = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(address, str):
            raise RequestError(f"`{where}.image_url` has no address", code="invalid_image", param=f"{where}.image_url")
        if not address.startswith(("data:", "s3://", "http://", "https://")):
            raise RequestError(
                f"`{where}.image_url` is neither a data: nor an s3:// address; paths of this machine are never sent",
                code="invalid_image",
                param=f"{where}.image_url",
            )
        images.append((holder, key))


def _as_data(address: str, fetch: Fetch | None, fitted: Fitted) -> str:
    if not address.startswith(("http://", "https://")):
        return address
    if fetch is None:
        raise RequestError(
            "the remote model takes images as data: or s3:// only; send the image itself, or give "
            "gemmantle.remote(fetch_image=...) a function that reads an address",
            code="failed_to_download_image",
            param="image_url",
        )
    try:
        data = fetch(address)
    except Exception as exc:
        raise RequestError(
            f"an image address could not be read ({type(exc).__name__})",
            code="failed_to_download_image",
            param="image_url",
        ) from exc
    kind = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise RequestError(
            "what an image address gave is no PNG, JPEG, WebP, GIF or BMP file",
            code="invalid_image_format",
            param="image_url",
        )
    fitted.converted.append("image_url: address to data")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _shrink(fitted: Fitted, images: list[tuple[dict[str, Any], str]], limit: int) -> None:
    """Halve the largest image until the body fits."""
    size = _size(fitted.body)
    count = 0
    while size > limit:
        data = [(len(holder[key]), holder, key) for holder, key in images if holder[key].startswith("data:")]
        longest, holder, key = max(data, key=lambda entry: entry[0], default=(0, {}, ""))
        smaller = _halved(holder[key]) if longest > 4096 else None
        if smaller is None or len(smaller) >= longest:
            raise RequestError(
                f"the request has {size} bytes; the remote service takes {limit}: send fewer or smaller images",
                code="request_too_large",
            )
        holder[key] = smaller
        count += 1
        size = _size(fitted.body)
    if count:
        fitted.converted.append(f"images: made smaller to fit {limit} bytes")


def _size(body: dict[str, Any]) -> int:
    return len(json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def _halved(address: str) -> str | None:
    """A JPEG of half the width and height; None where it cannot be made."""
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError:
        raise RequestError(
            "an image is too large for the remote service and making it smaller needs Pillow: "
            "pip install 'gemmantle[remote]'",
            code="image_too_large",
        ) from None
    head, _, text = address.partition(",")
    try:
        image = pillow.open(io.BytesIO(base64.b64decode(text, validate=True)))
        if not head.endswith(";base64") or max(image.size) < _SMALLEST:
            return None
        turned = importlib.import_module("PIL.ImageOps").exif_transpose(image).convert("RGB")
        half = turned.resize((max(1, turned.width // 2), max(1, turned.height // 2)))
        out = io.BytesIO()
        half.save(out, "JPEG", quality=85)
    except (OSError, ValueError, pillow.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
