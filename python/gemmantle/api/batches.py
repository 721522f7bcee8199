"""/batches: the lines of a file answered one by one in the background (spec api 7.3).

A batch is a JSON of facts and a working file of answered lines, both written as they change. So a batch that a process
left behind is taken up by the next one that looks at batches in the same place, and runs only what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from gemmantle.api.common import new_id
from gemmantle.api.fields import show
from gemmantle.api.files import Folder
from gemmantle.api.protocol import Request
from gemmantle.api.queries import page, read_query
from gemmantle.api.schemas import parse_body
from gemmantle.api.store import is_alive
from gemmantle.errors import RequestError

__all__ = ["Batches", "Runner"]

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata")
_WINDOW_S = 24 * 3600
_UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")

# (input file, working file, endpoint, called with answered and failed after each line) -> nothing. True stops a run.
Runner = Callable[[str, str, str, Callable[[int, int, int], bool]], None]


class Batches:
    """The batches of one folder. One thread for each that runs."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._running: dict[str, dict[str, Any]] = {}

    def serve(self, request: Request, path: str, runner: Runner) -> dict[str, Any]:
        """`path` is what follows /batches, without its slash."""
        self._take_up(runner)
        method = request.method.upper()
        name, _, action = path.partition("/")
        if not name and method == "POST":
            return self._create(request, runner)
        if not name and method == "GET":
            batches = [_shown(facts) for facts in self._folder.all_facts("batch_")]
            return page(batches, read_query(request, ("after", "limit")), "desc")
        if (action, method) not in (("", "GET"), ("cancel", "POST")):
            known = action in ("", "cancel")
            code = "method_not_allowed" if known else "unknown_url"
            raise RequestError(f"/batches/{path[:200]} does not answer {method}", code=code)
        with self._lock:
            facts = self._running.get(name) or (self._folder.facts(name) if name.startswith("batch_") else None)
            if facts is None:
                raise RequestError(f"batch '{name[:100]}' is not stored here", code="batch_not_found")
            if action:
                self._cancel(facts)
            return _shown(facts)

    def _cancel(self, facts: dict[str, Any]) -> None:
        if facts["status"] not in ("validating", "in_progress", "cancelling"):
            raise RequestError(
                f"batch '{facts['id']}' has the status '{facts['status']}'; there is nothing to cancel",
                code="batch_not_cancellable",
            )
        if facts["status"] != "cancelling":
            self._step(facts, "cancelling")

    def _create(self, request: Request, runner: Runner) -> dict[str, Any]:
        body = {key: value for key, value in parse_body(request.body).items() if value is not None}
        for field in body:
            if field not in _FIELDS:
                known = ", ".join(_FIELDS)
                raise RequestError(
                    f"unknown field `{field[:100]}`; there are {known}", code="unknown_parameter", param=field[:100]
                )
        endpoint = body.get("endpoint")
        if endpoint not in ENDPOINTS:
            raise RequestError(
                f"`endpoint` is {show(endpoint)}; it must be one of {', '.join(ENDPOINTS)}", param="endpoint"
            )
        if body.get("completion_window") != "24h":
            found = show(body.get("completion_window"))
            raise RequestError(f"`completion_window` is {found}; it must be '24h'", param="completion_window")
        source = body.get("input_file_id")
        if not isinstance(source, str) or not source.startswith("file-") or self._folder.facts(source) is None:
            raise RequestError(
                f"`input_file_id` is {show(source)}; no such file is stored here, upload it first",
                param="input_file_id",
            )
        now = int(time.time())
        facts: dict[str, Any] = {
            "id": new_id("batch_"),
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": source,
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + _WINDOW_S,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        with self._lock:
            self._start(facts, runner)
            return _shown(facts)

    def _take_up(self, runner: Runner) -> None:
        """Go on with what an ended process left behind."""
        with self._lock:
            for facts in self._folder.all_facts("batch_"):
                owner = facts.get("owner")
                is_left = facts["id"] not in self._running and (owner == os.getpid() or not is_alive(owner))
                if facts["status"] in _UNFINISHED and is_left:
                    self._start(facts, runner)

    def _start(self, facts: dict[str, Any], runner: Runner) -> None:
        facts["owner"] = os.getpid()
        self._folder.write_facts(facts)
        self._running[facts["id"]] = facts
        name = f"gemmantle-{facts['id']}"
        threading.Thread(target=self._run, args=(facts, runner), name=name, daemon=True).start()

    def _run(self, facts: dict[str, Any], runner: Runner) -> None:
        work = self._folder.content_path(facts["id"])

        def progress(total: int, completed: int, failed: int) -> bool:
            with self._lock:
                facts["request_counts"] = {"total": total, "completed": completed, "failed": failed}
                if facts["status"] == "validating":
                    self._step(facts, "in_progress")
                return bool(facts["status"] == "cancelling" or time.time() >= facts["expires_at"])

        try:
            source = self._folder.content_path(facts["input_file_id"])
            runner(str(source), str(work), facts["endpoint"], progress)
            self._finish(facts)
        except Exception as exc:
            error = {"code": "invalid_request", "message": str(exc), "line": None, "param": None}
            with self._lock:
                facts["errors"] = {"object": "list", "data": [error]}
                self._step(facts, "failed")
        finally:
            with self._lock:
                self._running.pop(facts["id"], None)

    def _finish(self, facts: dict[str, Any]) -> None:
        """Answers and failures go into files of their own; what was answered before a stop is kept."""
        with self._lock:
            was_cancelled = facts["status"] == "cancelling"
            if not was_cancelled:
                self._step(facts, "finalizing")
        answers: list[bytes] = []
        failures: list[bytes] = []
        work = self._folder.content_path(facts["id"])
        for raw in work.read_bytes().splitlines(keepends=True):
            (failures if json.loads(raw)["error"] else answers).append(raw)
        for key, kind, lines in (("output_file_id", "output", answers), ("error_file_id", "error", failures)):
            if lines:
                added = self._folder.add(b"".join(lines), f"{facts['id']}_{kind}.jsonl", "batch_output")
                facts[key] = added["id"]
        counts = facts["request_counts"]
        counts.update(completed=len(answers), failed=len(failures))
        is_whole = len(answers) + len(failures) == counts["total"]
        with self._lock:
            self._step(facts, "cancelled" if was_cancelled else "completed" if is_whole else "expired")
        with contextlib.suppress(FileNotFoundError):
            work.unlink()

    def _step(self, facts: dict[str, Any], status: str) -> None:
        facts["status"] = status
        facts[f"{status}_at"] = int(time.time())
        self._folder.write_facts(facts)


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if key == "request_counts" else value for key, value in facts.items() if key != "owner"}
