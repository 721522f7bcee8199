"""A-4: the table of errors: status, class of the SDK, number of attempts, the wait that is asked for, ids to quote."""

from __future__ import annotations

import re

import openai
import pytest
from proxy_engine import Proxy

from gemmantle.errors import DeviceError, EngineClosed, ForkedEngineError, OutOfMemory, RequestError

MODEL = "gemma-4-nano-e"
USER = [{"role": "user", "content": "Hi"}]
BUSY = RequestError("the queue is full", code="engine_busy")
ENGINE = [
    (BUSY, openai.RateLimitError, 429, "engine_busy", "rate_limit_error", 2),
    (RequestError("bad", param="seed"), openai.BadRequestError, 400, "invalid_value", "invalid_request_error", 1),
    (DeviceError("gone"), openai.InternalServerError, 503, "device_error", "server_error", 1),
    (OutOfMemory("full"), openai.InternalServerError, 503, "insufficient_memory", "server_error", 2),
    (EngineClosed("closed"), openai.InternalServerError, 503, "engine_draining", "server_error", 1),
    (ForkedEngineError("forked"), openai.InternalServerError, 500, "internal_error", "server_error", 1),
    (ZeroDivisionError("a bug"), openai.InternalServerError, 500, "internal_error", "server_error", 1),
]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("failure", "sdk_class", "status", "code", "kind", "attempts"), ENGINE)
def test_a04_what_the_engine_refuses(ways, engine, failure, sdk_class, status, code, kind, attempts, stream):
    proxy = Proxy(engine, refuse=failure)
    client = ways.client(proxy, max_retries=1)
    with pytest.raises(sdk_class) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, stream=stream)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (status, code, kind)
    assert proxy.submitted == attempts
    assert re.fullmatch(r"req_[0-9a-f]{24}", error.request_id)
    headers = error.response.headers
    assert headers["x-should-retry"] == ("true" if attempts == 2 else "false")
    if attempts == 2:
        assert 1 <= int(headers["retry-after-ms"]) <= 60000
    else:
        assert "retry-after-ms" not in headers


CHAT = "/chat/completions"
MCP = {"type": "mcp"}
MISTAKES = [
    ("POST", CHAT, {"messages": USER, "temperature": 3}, openai.BadRequestError, 400, "invalid_value"),
    ("POST", CHAT, {}, openai.BadRequestError, 400, "missing_required_parameter"),
    ("POST", CHAT, {"messages": USER, "temprature": 1}, openai.BadRequestError, 400, "unknown_parameter"),
    ("POST", CHAT, {"messages": USER, "audio": {}}, openai.BadRequestError, 400, "unsupported_parameter"),
    ("POST", "/completions", {"prompt": [5] * 5000}, openai.BadRequestError, 400, "context_length_exceeded"),
    ("POST", "/embeddings", {"input": "Hi"}, openai.BadRequestError, 400, "model_not_embedding"),
    (
        "POST", "/responses", {"input": "Hi", "previous_response_id": "resp_none"}, openai.BadRequestError, 400,
        "previous_response_not_found",
    ),
    ("POST", "/responses", {"input": "Hi", "tools": [MCP]}, openai.BadRequestError, 400, "unsupported_tool"),
    ("POST", CHAT, {"messages": USER, "model": "no"}, openai.NotFoundError, 404, "model_not_found"),
    ("GET", "/responses/resp_none", None, openai.NotFoundError, 404, "response_not_found"),
    ("GET", "/chat/completions/chatcmpl-none", None, openai.NotFoundError, 404, "completion_not_found"),
    ("GET", "/files/file-none", None, openai.NotFoundError, 404, "file_not_found"),
    ("GET", "/nowhere", None, openai.NotFoundError, 404, "unknown_url"),
    ("GET", "/completions", None, openai.APIStatusError, 405, "method_not_allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "path", "body", "sdk_class", "status", "code"), MISTAKES)
def test_a04_what_the_caller_did_wrong_is_one_attempt(client, verb, path, body, sdk_class, status, code):
    fields = {"cast_to": object} if verb == "GET" else {"cast_to": object, "body": {"model": MODEL, **body}}
    with pytest.raises(sdk_class) as caught:
        getattr(client, verb.lower())(path, **fields)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.headers["x-request-id"].startswith("req_")
    assert caught.value.type == "invalid_request_error"


def test_a04_what_has_ended_cannot_be_cancelled(client):
    ended = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2)
    with pytest.raises(openai.ConflictError) as caught:
        client.responses.cancel(ended.id)
    assert (caught.value.status_code, caught.value.code) == (409, "response_not_cancellable")


def test_a04_the_wait_that_is_asked_for_is_waited(ways, engine):
    """The queue has room again when the second attempt comes."""
    proxy = Proxy(engine, refuse=BUSY)
    submit = proxy.submit

    def refuse_once(ids, sampling):
        try:
            return submit(ids, sampling)
        finally:
            proxy.refuse = None

    proxy.submit = refuse_once
    answer = ways.client(proxy, max_retries=1).chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].message.content
    assert proxy.submitted == 2


def test_a04_time_runs_out_once(ways, engine):
    """In process the SDK's own timeout; over the server the SDK's wait ends, and the caller's leaving ends the work."""
    proxy = Proxy(engine)
    long = {"max_completion_tokens": 4000, "extra_body": {"ignore_eos": True}}
    client = ways.client(proxy, timeout=0.1, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=MODEL, messages=USER, **long)
    assert proxy.submitted == 1
