"""`Engine.run_batch`: requests from JSONL lines, answers as JSONL lines, restarted where it stopped (spec api 7.3).

A line is {custom_id, method, url, body}, or Bedrock's {recordId, modelInput}; each goes through the handler that serves
the client. A finished answer is one write at the end of the output, so a killed run leaves whole lines and at most one
torn one. A restart removes the torn line and the failures that were not the request's fault, and runs what is missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gemmantle.api.common import new_id
from gemmantle.api.handler import Handler
from gemmantle.api.protocol import Request
from gemmantle.errors import RequestError

__all__ = ["BatchSummary", "Line", "read_lines", "run"]

URLS = ("/chat/completions", "/completions", "/responses")
_ATTEMPTS = 8  # of a request that the engine put off; after them the failure is written

Source = str | os.PathLike[str] | Iterable[Any]


@dataclass
class BatchSummary:
    """What a run did. `skipped` were answered by an earlier run; failures have their reasons in the output."""

    total: int = 0
    skipped: int = 0
    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.output_tokens / self.seconds if self.seconds > 0 else 0.0
        return (
            f"batch: {self.total} requests, {self.skipped} done before, {self.succeeded} answered, "
            f"{self.failed} failed; {self.input_tokens} tokens in, {self.output_tokens} out, "
            f"{self.seconds:.1f} s, {rate:.1f} tokens/s"
        )


@dataclass
class Line:
    """One request. `dialect` is "openai" or "bedrock": the answer is written in the same."""

    name: str
    url: str
    body: Any
    dialect: str = "openai"
    fault: str = ""  # why it cannot run

    def order(self) -> tuple[str, str, str]:
        """Requests to one model stand together, and among them those that begin alike."""
        body = self.body if isinstance(self.body, dict) else {}
        start = [body.get(key) for key in ("instructions", "messages", "prompt", "input")]
        return str(body.get("model")), self.url, json.dumps(start, sort_keys=True)


def run(
    handler: Handler,
    src: Source,
    dst: str | os.PathLike[str],
    *,
    workers: int,
    model: str | None = None,
    resume: bool = True,
    url: str | None = None,
    on_line: Callable[[BatchSummary], bool] | None = None,
) -> BatchSummary:
    """Answer every line of `src` into `dst`. See `Engine.run_batch`. `on_line` sees each line's end; True stops."""
    lines = read_lines(src, model, url)
    summary = BatchSummary(total=len(lines))
    started = time.monotonic()
    with Path(dst).open("ab+") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run writes to {os.fspath(dst)}; wait for it or name another file") from None
        done = _tidy(out) if resume else _emptied(out)
        summary.skipped = sum(line.name in done for line in lines)
        if on_line is not None and on_line(summary):
            return summary
        _Run(handler, out, summary, on_line).answer(
            sorted((line for line in lines if line.name not in done), key=Line.order), workers
        )
        out.flush()
        os.fsync(out.fileno())
    summary.seconds = time.monotonic() - started
    return summary


def read_lines(src: Source, model: str | None, url: str | None = None) -> list[Line]:
    """The requests of a file or of dicts and strings. ValueError names the line that has no id of its own."""
    raw: Iterable[Any]
    if isinstance(src, (str, os.PathLike)):
        raw = Path(src).read_bytes().split(b"\n")
    else:
        raw = src
    lines: list[Line] = []
    names: dict[str, int] = {}
    for number, text in enumerate(raw, 1):
        if isinstance(text, (str, bytes)) and not text.strip():
            continue
        line = _read_line(text, number, model, url)
        if line.name in names:
            raise ValueError(f"line {number} has the id '{line.name[:100]}' of line {names[line.name]}; ids are unique")
        names[line.name] = number
        lines.append(line)
    return lines


def _read_line(text: Any, number: int, model: str | None, only: str | None) -> Line:
    try:
        value = json.loads(text) if isinstance(text, (str, bytes)) else text
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"line {number} is not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ValueError(f"line {number} must be an object with `custom_id`, `method`, `url` and `body`")
    bedrock = "recordId" in value
    name = value.get("recordId" if bedrock else "custom_id")
    if not isinstance(name, str) or not name:
        raise ValueError(f"line {number} has no `custom_id` (a string, its own on every line)")
    body = value.get("modelInput" if bedrock else "body")
    if bedrock:
        url = "/completions" if isinstance(body, dict) and "prompt" in body else "/chat/completions"
    else:
        url = str(value.get("url", "")).removeprefix("/openai").removeprefix("/v1")
    line = Line(name, url, body, "bedrock" if bedrock else "openai")
    if not isinstance(body, dict):
        line.fault = "`body` must be an object: the body of a request"
    elif url not in URLS:
        line.fault = f"`url` is '{url[:100]}'; it must be one of {', '.join('/v1' + known for known in URLS)}"
    elif only is not None and url != only:
        line.fault = f"`url` is '/v1{url[:100]}', but this batch is for '/v1{only}'"
    elif not bedrock and value.get("method", "POST") != "POST":
        line.fault = f"`method` is '{str(value['method'])[:100]}'; it must be POST"
    elif body.get("stream") or body.get("background"):
        line.fault = "answers of a batch come whole: leave `stream` and `background` out"
    elif model is not None:
        line.body = {"model": model, **body}
    return line


@dataclass
class _Run:
    """Workers that take lines in order, and one output."""

    handler: Handler
    out: IO[bytes]
    summary: BatchSummary
    on_line: Callable[[BatchSummary], bool] | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def answer(self, lines: list[Line], workers: int) -> None:
        with ThreadPoolExecutor(max(1, min(workers, len(lines) or 1)), "gemmantle-batch") as pool:
            try:
                for future in [pool.submit(self._one, line) for line in lines]:
                    future.result()
            except BaseException:
                self.stopped = True
                raise

    def _one(self, line: Line) -> None:
        if self.stopped:
            return
        status, request_id, body = self._ask(line)
        ok = status == 200
        error = None if ok else {key: body["error"].get(key) for key in ("code", "message")}
        if line.dialect == "bedrock":
            written: dict[str, Any] = {"recordId": line.name, "modelInput": line.body}
            written.update({"modelOutput": body} if ok else {"error": {"status": status, **(error or {})}})
        else:
            response = {"status_code": status, "request_id": request_id, "body": body}
            written = {"id": new_id("batch_req_"), "custom_id": line.name, "response": response, "error": error}
        data = json.dumps(written, separators=(",", ":")).encode("ascii") + b"\n"
        usage = body.get("usage") or {}
        with self.lock:
            self.out.write(data)
            self.out.flush()
            self.summary.succeeded += ok
            self.summary.failed += not ok
            self.summary.input_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
            self.summary.output_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))
            if self.on_line is not None and self.on_line(self.summary):
                self.stopped = True

    def _ask(self, line: Line) -> tuple[int, str | None, dict[str, Any]]:
        if line.fault:
            error = {"message": line.fault, "type": "invalid_request_error", "param": None, "code": "invalid_value"}
            return 400, None, {"error": error}
        request = Request("POST", line.url, {}, json.dumps(line.body).encode("ascii"))
        for attempt in range(_ATTEMPTS):
            reply = self.handler.handle(request)
            headers = dict(reply.headers)
            wait_ms = headers.get("retry-after-ms")
            if wait_ms is None or attempt == _ATTEMPTS - 1 or self.stopped:
                break
            time.sleep(int(wait_ms) / 1000 * (attempt + 1))
        if not isinstance(reply.body, bytes):
            raise RequestError("a batch got a stream for an answer")
        return reply.status, headers.get("x-request-id"), json.loads(reply.body)


def _emptied(out: IO[bytes]) -> set[str]:
    out.truncate(0)
    return set()


def _tidy(out: IO[bytes]) -> set[str]:
    """The ids that are answered; lines that are torn, or whose failure may pass, are taken out of the file."""
    out.seek(0)
    done: set[str] = set()
    size = kept = 0
    with tempfile.TemporaryFile() as clean:
        for raw in out:
            size += len(raw)
            name = _answered(raw)
            if name is not None and name not in done:
                done.add(name)
                kept += clean.write(raw)
        if kept != size:
            # A kill between these two costs answers, never a wrong or doubled one: what is missing runs again.
            clean.seek(0)
            out.truncate(0)
            while chunk := clean.read(1 << 20):
                out.write(chunk)
            out.flush()
    return done


def _answered(raw: bytes) -> str | None:
    try:
        value = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("custom_id", value.get("recordId"))
    error = value.get("error")
    response = value.get("response")
    status = response.get("status_code") if isinstance(response, dict) else (error or {}).get("status", 200)
    lasting = isinstance(status, int) and status < 429
    return name if isinstance(name, str) and lasting else None


def report(summary: BatchSummary) -> None:
    print(summary, file=sys.stderr)
