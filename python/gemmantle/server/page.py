"""The chat page and the policy it runs under: its own script and style, this server, and nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from gemmantle.server.exchange import Headers

__all__ = ["page"]


@functools.cache
def page() -> tuple[int, Headers, bytes]:
    """Status, headers and body of `GET /`."""
    html = Path(__file__).with_name("page.html").read_bytes()
    sources = []
    for tag in (b"script", b"style"):
        match = re.search(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
        digest = hashlib.sha256(match[1] if match else b"").digest()
        sources.append(f"{tag.decode()}-src 'sha256-{base64.b64encode(digest).decode()}'")
    policy = [
        "default-src 'none'",
        *sources,
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", "; ".join(policy)),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ]
    return 200, headers, html
