"""The remote service on 127.0.0.1, with the quirks its documentation and its users describe (spec api 9.1).

It wants a bearer key or a SigV4 signature, knows three models under /openai/v1 and the list of models under /v1, and
refuses fields, events in odd names, follows schema-bound JSON with text, and answers 429 and 503 by schedule. What it
got is in `requests`. Streams end with their connection.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ("google.gemma-4-31b", "google.gemma-4-26b-a4b", "google.gemma-4-e2b")
KEY = "bedrock-api-key-c2VjcmV0LXRva2VuLTEyMzQ1"
ACCESS = "AKIAIOSFODNN7EXAMPLE"
SIGV4 = re.compile(
    rf"AWS4-HMAC-SHA256 Credential={ACCESS}/\d{{8}}/us-east-1/bedrock-mantle/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{64}"
)
REFUSED = {"top_k", "min_p", "repetition_penalty", "logprobs", "top_logprobs", "fallback", "return_details", "echo"}
EFFORTS = ("none", "low", "medium", "high")
BODY_LIMIT = 3_500_000


class Mantle(ThreadingHTTPServer):
    """One region. `schedule`: statuses the next requests get (0: hang up, -1: wait for `gate`); then it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.requests: list[dict[str, Any]] = []
        self.schedule: deque[int] = deque()
        self.keys = {KEY}
        self.refused = set(REFUSED)
        self.text = "Hello from far"
        self.thoughts = ""
        self.break_stream = False
        self.gate = threading.Event()
        self.stored: dict[str, dict[str, Any]] = {}
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/openai/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.requests]

    def __enter__(self) -> Mantle:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Door(BaseHTTPRequestHandler):
    server: Mantle
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):  # a caller may leave at any time
            self._answer()

    do_GET = do_DELETE = do_POST

    def _answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(raw) if raw else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append({"method": self.command, "path": self.path, "headers": headers, "body": body})
        status = self.server.schedule.popleft() if self.server.schedule else 200
        if status == -1:
            self.server.gate.wait(30)
            status = 200
        if status == 0:
            self.close_connection = True
            return
        authorization = headers.get("authorization", "")
        if authorization.removeprefix("Bearer ") not in self.server.keys and not SIGV4.fullmatch(authorization):
            self._error(401, f"Invalid bearer token: {authorization}", "invalid_api_key")
        elif status == 429:
            self._error(429, "Too many tokens", "rate_limit_exceeded", extra=[("retry-after-ms", "5")])
        elif status >= 500:
            soon = [("retry-after-ms", "5")]
            self._error(status, "The service is at its capacity", "service_unavailable", extra=soon)
        elif status >= 400:
            self._error(status, "scheduled", "scheduled")
        else:
            self._route(body, len(raw))

    def _route(self, body: dict[str, Any], size: int) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self._json({"object": "list", "data": [{"id": name, "object": "model", "created": 0} for name in MODELS]})
        elif not path.startswith("/openai/v1/"):
            self._error(404, "The model is not served under this path", "not_found")
        elif path.startswith("/openai/v1/responses/"):
            self._state(path.split("/")[4])
        elif body.get("model") not in MODELS:
            self._error(404, f"no model {body.get('model')}", "model_not_found", "model")
        elif size > BODY_LIMIT:
            self._error(413, "body too large", "request_too_large")
        elif refused := sorted(set(body) & self.server.refused):
            self._error(400, f"Unsupported parameter: {refused[0]}", "unsupported_parameter", refused[0])
        elif path == "/openai/v1/chat/completions":
            self._chat(body)
        elif path == "/openai/v1/responses":
            self._responses(body)
        else:
            self._error(404, "no such path", "not_found")

    def _text(self, form: Any) -> str:
        if isinstance(form, dict) and form.get("type") in ("json_schema", "json_object"):
            return '{"city":"Par}is"}' + "\n\nHere is your JSON."
        return self.server.text

    def _chat(self, body: dict[str, Any]) -> None:
        if body.get("reasoning_effort", "none") not in EFFORTS:
            return self._error(400, "bad reasoning_effort", "invalid_value", "reasoning_effort")
        if any("reasoning" in message for message in body["messages"]):
            return self._error(400, "reasoning is not taken back", "invalid_value", "messages")
        for message in body["messages"]:
            for part in message["content"] if isinstance(message.get("content"), list) else ():
                url = part.get("image_url", {}).get("url", "data:")
                if not url.startswith(("data:", "s3://")):
                    return self._error(400, "image must be data or s3", "invalid_image", "messages")
        text = self._text(body.get("response_format"))
        call = {
            "id": "call_far",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
        }
        wants_call = bool(body.get("tools")) and body["messages"][-1]["role"] == "user"
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        tier = body.get("service_tier", "default")
        head = {"id": "chatcmpl-far", "created": 1, "model": body["model"], "service_tier": tier}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if wants_call:
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        if body.get("reasoning_effort") == "high":
            message["reasoning"] = "far thoughts"
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if wants_call else "stop"}
            return self._json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        head["object"] = "chat.completion.chunk"
        pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        pieces += [{"content": text[start : start + 5]} for start in range(0, len(text), 5)]
        chunks = [{**head, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**head, "choices": [], "usage": usage})
        self._stream([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])
        return None

    def _responses(self, body: dict[str, Any]) -> None:
        if body.get("max_output_tokens", 16) < 16:
            return self._error(400, "max_output_tokens must be at least 16", "invalid_value", "max_output_tokens")
        items = body["input"] if isinstance(body["input"], list) else []
        if any(item.get("type") == "reasoning" for item in items):
            return self._error(400, "leave reasoning items out", "invalid_value", "input")
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.server.stored:
            return self._error(400, "not found", "previous_response_not_found", "previous_response_id")
        text = self._text((body.get("text") or {}).get("format"))
        response_id = f"resp_far{len(self.server.stored)}"
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
        whole = {"type": "reasoning_text", "text": "far thoughts"}
        thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [whole], "status": "completed"}
        usage = {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 12,
        }
        done = {
            "id": response_id, "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
            "output": [thought, message], "usage": usage, "parallel_tool_calls": True, "tool_choice": "auto",
            "tools": [], "error": None, "incomplete_details": None, "instructions": None, "metadata": {},
        }  # fmt: skip
        self.server.stored[response_id] = done
        if not body.get("stream"):
            return self._json(done)
        begun = {**done, "status": "in_progress", "output": [], "usage": None}
        in_thought = {"item_id": "rs_1", "output_index": 0, "content_index": 0}
        in_message = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {**thought, "content": []}},
            {"type": "response.reasoning_part.added", **in_thought, "part": {"type": "reasoning", "text": ""}},
            {"type": "response.reasoning.delta", **in_thought, "delta": "far thoughts"},
            {"type": "response.reasoning.done", **in_thought, "text": "far thoughts"},
            {"type": "response.reasoning_part.done", **in_thought, "part": {**whole, "type": "reasoning"}},
            {"type": "response.output_item.done", "output_index": 0, "item": thought},
            {"type": "response.output_item.added", "output_index": 1, "item": {**message, "content": []}},
            {"type": "response.content_part.added", **in_message, "part": {**part, "text": ""}},
        ]
        for start in range(0, len(text), 5):
            delta = {"delta": text[start : start + 5], "logprobs": []}
            events.append({"type": "response.output_text.delta", **in_message, **delta})
        events += [
            {"type": "response.output_text.done", **in_message, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **in_message, "part": part},
            {"type": "response.output_item.done", "output_index": 1, "item": message},
            {"type": "response.completed", "response": done},
        ]
        for number, event in enumerate(events):
            event["sequence_number"] = number
        self._stream([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events])
        return None

    def _state(self, response_id: str) -> None:
        if response_id not in self.server.stored:
            self._error(404, "no such response", "response_not_found")
        elif self.command == "DELETE":
            del self.server.stored[response_id]
            self._json({"id": response_id, "object": "response.deleted", "deleted": True})
        else:
            self._json(self.server.stored[response_id])

    def _json(self, value: Any, status: int = 200, extra: Any = ()) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("x-request-id", "req_far")
        self.send_header("connection", "close")
        for name, text in extra:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, message: str, code: str, param: str | None = None, extra: Any = ()) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        self._json({"error": error}, status, extra)

    def _stream(self, events: list[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        self.end_headers()
        data = "".join(events).encode()
        if self.server.break_stream:
            data = data[: len(data) // 2]
        # Pieces that end nowhere in particular, as they come off a network.
        for start in range(0, len(data), 97):
            piece = data[start : start + 97]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if not self.server.break_stream:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
