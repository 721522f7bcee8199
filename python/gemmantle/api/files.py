"""/files: input and output of batches, in a folder of their own (spec api 7.3). Purpose `batch` only.

A file is its bytes under its id, and a JSON of what is known about it beside them. Ids are ours and checked, so no
name that a caller chose ever becomes part of a path.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from gemmantle.api.common import new_id
from gemmantle.api.fields import show
from gemmantle.api.protocol import Request
from gemmantle.api.queries import page, read_query
from gemmantle.api.schemas import MAX_BODY_BYTES
from gemmantle.errors import RequestError

__all__ = ["Folder", "read_form", "serve"]

_ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")
_DISPOSITION = re.compile(rb'[; ]name="([^"]*)"')
_FILENAME = re.compile(rb'filename="([^"]*)"')
_MAX_PARTS = 16


class Folder:
    """Files and their facts. `path` None: a temporary folder that goes with the process."""

    def __init__(self, path: str | None) -> None:
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="gemmantle-")
            path = self._temporary.name
        self.path = Path(path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, data: bytes, filename: str, purpose: str) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "id": new_id("file-"),
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        self.content_path(facts["id"]).write_bytes(data)
        self.write_facts(facts)
        return facts

    def content_path(self, name: str) -> Path:
        return self.path / name

    def write_facts(self, facts: dict[str, Any]) -> None:
        """In one step, so that a reader and a killed process leave no half."""
        target = self.path / f"{facts['id']}.json"
        fresh = target.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps(facts), encoding="ascii")
        fresh.replace(target)

    def facts(self, name: str) -> dict[str, Any] | None:
        if not _ID.fullmatch(name):
            return None
        try:
            facts: dict[str, Any] = json.loads((self.path / f"{name}.json").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        return facts

    def all_facts(self, prefix: str) -> list[dict[str, Any]]:
        """Oldest first."""
        found = [self.facts(path.stem) for path in self.path.glob(f"{prefix}*.json")]
        return sorted((facts for facts in found if facts), key=lambda facts: (facts["created_at"], facts["id"]))

    def delete(self, name: str) -> None:
        for path in (self.content_path(name), self.path / f"{name}.json"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def serve(request: Request, path: str, folder: Folder) -> dict[str, Any] | bytes:
    """`path` is what follows /files, without its slash."""
    method = request.method.upper()
    name, _, action = path.partition("/")
    if not name:
        if method == "POST":
            return _upload(request, folder)
        if method == "GET":
            query = read_query(request, ("after", "limit", "order", "purpose"))
            wanted = query.get("purpose")
            return page([f for f in folder.all_facts("file-") if wanted in (None, f["purpose"])], query, "desc")
        raise RequestError(f"/files answers GET and POST, not {method}", code="method_not_allowed")
    if action not in ("", "content"):
        raise RequestError(f"no route /files/{path[:200]}", code="unknown_url")
    facts = folder.facts(name) if name.startswith("file-") else None
    if facts is None:
        raise RequestError(f"file '{name[:100]}' is not stored here", code="file_not_found")
    if method == "GET":
        return folder.content_path(name).read_bytes() if action else facts
    if method == "DELETE" and not action:
        folder.delete(name)
        return {"id": name, "object": "file", "deleted": True}
    raise RequestError(f"/files/{path[:200]} does not answer {method}", code="method_not_allowed")


def _upload(request: Request, folder: Folder) -> dict[str, Any]:
    parts = read_form(request)
    for field in parts:
        if field not in ("file", "purpose"):
            raise RequestError(
                f"`{field[:100]}` is not supported: files stay until they are deleted; leave it out",
                code="unsupported_parameter",
                param=field[:100],
            )
    for field in ("purpose", "file"):
        if field not in parts:
            raise RequestError(f"`{field}` is missing", code="missing_required_parameter", param=field)
    purpose = parts["purpose"][1].decode("utf-8", "replace")
    if purpose != "batch":
        raise RequestError(
            f"`purpose` is {show(purpose)}; files serve batches here, so it must be 'batch'",
            code="unsupported_value",
            param="purpose",
        )
    filename, data = parts["file"]
    return folder.add(data, filename or "upload.jsonl", purpose)


def read_form(request: Request) -> dict[str, tuple[str, bytes]]:
    """A multipart/form-data body as name -> (filename, bytes). Bounded in size and in parts."""
    if len(request.body) > MAX_BODY_BYTES:
        raise RequestError(
            f"the request body has {len(request.body)} bytes; the limit is {MAX_BODY_BYTES}", code="request_too_large"
        )
    kind = request.headers.get("content-type") or ""
    boundary = re.search(r'boundary="?([^";,]{1,200})"?', kind)
    if not kind.startswith("multipart/form-data") or boundary is None:
        raise RequestError(
            f"a file is sent as multipart/form-data; found content type {show(kind[:100])}",
            code="unsupported_media_type",
        )
    pieces = (b"\r\n" + request.body).split(b"\r\n--" + boundary[1].encode("utf-8", "replace"))
    if len(pieces) > _MAX_PARTS + 2 or not pieces[-1].startswith(b"--"):
        raise RequestError(f"the form must have up to {_MAX_PARTS} parts and end with its boundary")
    parts = {}
    for piece in pieces[1:-1]:
        head, found, data = piece.partition(b"\r\n\r\n")
        name = _DISPOSITION.search(head)
        if not found or name is None:
            raise RequestError("a part of the form has no name")
        filename = _FILENAME.search(head)
        shown = "" if filename is None else filename[1].decode("utf-8", "replace")[:255]
        parts[name[1].decode("utf-8", "replace")] = (shown, data)
    return parts
