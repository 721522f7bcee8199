"""The server door over a real socket: the SDK's view, then limits, keys, hostile callers, draining, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time

import openai
import pytest
import test_client
from fake_engine import HELLO, HOLD, FakeEngine, content

pytest.importorskip("uvicorn", reason="the server door runs on uvicorn: pip install 'gemmantle[server]'")

from serving import serving

from gemmantle import cli
from gemmantle.server import Limits, ServedModels

USER = [{"role": "user", "content": "Hi"}]
BODY = json.dumps({"model": "fake", "messages": USER}).encode()
STREAM = json.dumps({"model": "fake", "messages": USER, "stream": True}).encode()

# The same tests as over the in-process transport.
CONFORMANCE = [
    test_client.test_a_plain_call_gives_text_usage_and_ids,
    test_client.test_a_stream_gives_the_text_in_order_and_the_usage_last,
    test_client.test_a_stream_that_is_read_late_is_merged_and_says_the_same,
    test_client.test_the_stream_helper_accumulates,
    test_client.test_raw_responses_show_headers,
    test_client.test_streaming_responses_give_raw_lines,
    test_client.test_parse_without_a_format_works,
    test_client.test_logprobs_list_one_entry_a_token_plain_and_streamed,
    test_client.test_reasoning_is_its_own_field,
    test_client.test_a_tool_call_plain,
    test_client.test_tool_calls_streamed_come_whole_and_in_order,
    test_client.test_a_whole_tool_loop_can_be_sent_back,
    test_client.test_models_are_listed_and_found_by_name_with_a_slash,
    test_client.test_completions_plain_and_streamed,
    test_client.test_echo_scores_the_prompt,
    test_client.test_a_failure_during_a_plain_call_is_an_answer,
    test_client.test_a_failure_in_a_stream_ends_it_with_an_error,
    test_client.test_a_prompt_that_is_too_long_says_the_numbers,
    test_client.test_an_unknown_model_is_not_found,
    test_client.test_an_unknown_field_suggests_the_nearest,
]


@pytest.fixture
def over_the_socket(monkeypatch):
    """Clients of `test_client` talk to a server instead."""
    with contextlib.ExitStack() as stack:

        def client_for(engine, **options):
            door = stack.enter_context(serving(engine))
            return stack.enter_context(door.client(**options))

        monkeypatch.setattr(test_client, "client_for", client_for)
        yield


@pytest.mark.parametrize("test", CONFORMANCE, ids=lambda test: test.__name__.removeprefix("test_"))
@pytest.mark.usefixtures("over_the_socket")
def test_the_sdk_sees_the_same_as_in_process(test):
    test()


def test_the_async_client_streams_over_the_socket():
    async def main(door):
        async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    with serving(FakeEngine(HELLO)) as door:
        assert asyncio.run(main(door)) == "Hello, world!"


def get(door, path, method="GET", body=None, headers=None):
    """Status, headers and text of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def post(door, body=BODY, path="/v1/chat/completions", headers=None):
    status, head, text = get(door, path, "POST", body, headers)
    return status, head, json.loads(text)


def raw(door, data, *, until=b"}}"):
    """What comes back for bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        while until not in answer and (part := connection.recv(65536)):
            answer += part
    return answer


def wait_for(condition):
    """Threads of the server do the work; the condition is theirs to reach."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def head_of(length, extra=""):
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{extra}Content-Length: {length}\r\n\r\n".encode()


# -- own routes


def test_stored_responses_are_paged_over_the_socket():
    with serving(FakeEngine(content("Yes."))) as door:
        client = door.client()
        asked = [{"role": "user", "content": word} for word in ("one", "two", "three")]
        stored = client.responses.create(model="fake", input=asked)
        page = client.responses.input_items.list(stored.id, limit=2, order="asc")
        assert [item.content[0].text for item in page.data] == ["one", "two"]
        assert page.has_more


def test_health_readiness_version_and_page():
    with serving(FakeEngine(HELLO)) as door:
        assert get(door, "/health")[::2] == (200, '{"status": "ok"}')
        assert get(door, "/ready")[::2] == (200, '{"status": "ready"}')
        assert "version" in json.loads(get(door, "/version")[2])
        assert get(door, "/health", "POST", b"x")[0] == 405
        status, headers, text = get(door, "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text), "the page loads nothing from elsewhere"


def test_metrics_count_requests_and_show_the_engine():
    engine = FakeEngine(HELLO, name='odd"name\\')
    engine.stats = lambda: {"queued": 1, "steps": 7, "isa": "none"}
    with serving(engine) as door:
        post(door)
        get(door, "/v1/models/nobody")
        get(door, "/any/thing/at/all")
        status, headers, text = get(door, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gemmantle_http_requests_total{route="/chat/completions",status="200"} 1\n' in text
    assert 'gemmantle_http_requests_total{route="/models/{id}",status="404"} 1\n' in text
    assert 'gemmantle_http_requests_total{route="other",status="404"} 1\n' in text
    assert 'gemmantle_http_request_seconds_bucket{route="/chat/completions",le="+Inf"} 1\n' in text
    assert 'gemmantle_engine_steps_total{model="odd\\"name\\\\"} 7\n' in text
    assert 'gemmantle_engine_queued{model="odd\\"name\\\\"} 1\n' in text
    assert "isa" not in text
    assert "gemmantle_http_requests_running 0\n" in text
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    for line in text.splitlines():
        assert re.fullmatch(r'# TYPE \w+ \w+|[a-z_]+(?:\{(?:\w+="(?:[^"\\]|\\.)*",?)*\})? [-+.\w]+', line), line


def test_words_to_ids_and_back():
    with serving(FakeEngine(HELLO)) as door:
        _, _, made = post(door, b'{"model": "fake", "prompt": "ab"}', "/tokenize")
        assert made == {"model": "fake/model", "tokens": [100, 101], "count": 2, "max_context": 2048}
        _, _, with_bos = post(door, b'{"model": "fake", "prompt": "ab", "add_special_tokens": true}', "/v1/tokenize")
        assert with_bos["tokens"] == [2, 100, 101]
        _, _, back = post(door, b'{"model": "fake", "tokens": [100, 101]}', "/detokenize")
        assert back == {"model": "fake/model", "prompt": "ab"}
        status, _, wrong = post(door, b'{"model": "fake", "tokens": [100, 99999]}', "/detokenize")
        assert (status, wrong["error"]["param"]) == (400, "tokens[1]")
        assert "99999" in wrong["error"]["message"]
        _, _, prompt = post(door, BODY, "/apply-template")
        assert "<|turn>user\nHi" in prompt["prompt"]
        assert prompt["count"] == len(prompt["tokens"]) == len(prompt["prompt"].encode())
        assert post(door, BODY, "/tokenize")[2]["tokens"] == prompt["tokens"]
        assert get(door, "/tokenize")[0] == 405


def test_only_the_models_it_was_started_with(tmp_path):
    """A path that a caller names is not opened, and the path of a served model is not told."""
    first = FakeEngine(HELLO, name="first", aliases=(str(tmp_path),))
    second = FakeEngine(content("2"), name="second", aliases=("two",))
    with serving(first, second) as door, door.client() as client:
        assert [card.id for card in client.models.list()] == ["first", "second"]
        assert client.models.retrieve("first").aliases == []
        assert client.chat.completions.create(model="two", messages=USER).choices[0].message.content == "2"
        for name in (str(tmp_path), "gemma-3-270m", "../first"):
            with pytest.raises(openai.NotFoundError, match="first, second, two"):
                client.chat.completions.create(model=name, messages=USER)


def test_a_server_whose_models_are_still_loading_says_so():
    with serving(loading=True) as door:
        assert get(door, "/health")[::2] == (503, '{"status": "loading"}')
        assert get(door, "/ready")[0] == 503
        status, headers, answer = post(door)
        assert (status, answer["error"]["code"]) == (503, "model_loading")
        assert headers["x-should-retry"] == "true"
        assert get(door, "/")[0] == 200


# -- keys, hosts, origins


def test_keys_are_asked_for_and_compared():
    with serving(FakeEngine(HELLO), keys=["one", "zwö"]) as door:
        with pytest.raises(openai.AuthenticationError) as caught, door.client(api_key="wrong") as client:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert caught.value.type == "authentication_error"
        with door.client(api_key="one") as client:
            assert client.chat.completions.create(model="fake", messages=USER).choices
        for wrong in ("", "one", "Basic one", "Bearer", "Bearer onet", "Bearer one two"):
            assert get(door, "/v1/models", headers={"Authorization": wrong})[0] == 401
        assert get(door, "/metrics")[0] == 401
        for right in ("bearer one", "Bearer zwö".encode()):
            assert get(door, "/v1/models", headers={"Authorization": right})[0] == 200
        assert [get(door, path)[0] for path in ("/", "/health", "/ready")] == [200, 200, 200]


def test_pages_of_other_origins_and_rebound_names_are_refused():
    hosts = ["localhost", "127.0.0.1"]
    with serving(FakeEngine(HELLO), hosts=hosts, origins=["https://good.example"]) as door:
        assert get(door, "/v1/models", headers={"Host": "localhost:9"})[0] == 200
        status, _, text = get(door, "/v1/models", headers={"Host": "evil.example"})
        assert status == 403
        assert "evil.example" in text
        assert "--allow-host" in text
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert post(door, headers={"Origin": origin})[0] == 403
        assert post(door, headers={"Origin": door.url})[0] == 200
        status, headers, _ = post(door, headers={"Origin": "https://good.example"})
        assert (status, headers["access-control-allow-origin"]) == (200, "https://good.example")
        assert get(door, "/v1/models", "OPTIONS", headers={"Origin": "https://good.example"})[0] == 204
        assert get(door, "/v1/models", "OPTIONS", headers={"Origin": "https://evil.example"})[0] == 403


# -- hostile callers


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes():
    with serving(FakeEngine(HELLO), limits=Limits(body_bytes=200_000)) as door:
        status, headers, answer = post(door, b" " * 1_000_000)
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        assert "200000" in answer["error"]["message"]
        assert headers["x-should-retry"] == "false"
        assert headers["x-request-id"].startswith("req_")
        chunks = iter([b" " * 50_000] * 8)
        status, _, answer = post(door, chunks)
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        assert b" 413 " in raw(door, head_of(10**14))
        assert post(door)[0] == 200


def test_a_body_that_comes_too_slowly_is_given_up():
    with serving(FakeEngine(HELLO), limits=Limits(body_s=0.05)) as door:
        answer = raw(door, head_of(100) + b'{"model"')
        assert b" 408 " in answer
        assert b"request_timeout" in answer
        assert b"8 bytes" in answer


def test_all_bodies_together_have_a_limit():
    limits = Limits(body_bytes=100_000, bodies_bytes=150_000)
    with serving(FakeEngine(HELLO), limits=limits) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as slow:
            slow.sendall(head_of(100_000) + b" " * 90_000)
            wait_for(lambda: door.application._held_bytes == 90_000)
            status, _, answer = post(door, b" " * 90_000)
            assert (status, answer["error"]["code"]) == (429, "engine_busy")
            assert post(door)[0] == 200
        wait_for(lambda: door.application._held_bytes == 0)
        assert post(door, b" " * 90_000)[0] == 400


def test_more_requests_than_allowed_wait_elsewhere():
    engine = FakeEngine([*content("a"), HOLD])
    with serving(engine, limits=Limits(requests=2)) as door, door.client() as client:
        streams = [client.chat.completions.create(model="fake", messages=USER, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="fake", messages=USER)
        assert caught.value.code == "engine_busy"
        assert int(caught.value.response.headers["retry-after-ms"]) > 0
        assert get(door, "/health")[0] == 200
        for stream in streams:
            stream.close()


def test_half_requests_take_no_place_of_whole_ones():
    with serving(FakeEngine(HELLO), limits=Limits(requests=2)) as door, contextlib.ExitStack() as stack:
        for _ in range(5):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            slow.sendall(head_of(1000) + b"{")
        wait_for(lambda: len(door.application._active) == 5)
        assert post(door)[0] == 200


def test_a_crowd_is_let_in_step_by_step(monkeypatch):
    """However many connections wait, the event loop takes few of them at a time, and looks after the others between."""
    from gemmantle.server import run

    seen = []  # how many were let in since the turn of the loop before
    made = run.Connection.connection_made

    def connection_made(self, transport):
        seen[-1:] = [seen[-1] + 1]
        made(self, transport)

    monkeypatch.setattr(run.Connection, "connection_made", connection_made)
    with serving(FakeEngine(HELLO)) as door, contextlib.ExitStack() as stack:
        loop = door.server._loop
        stopped, go = threading.Event(), threading.Event()

        def turn():
            if sum(seen) < 200:
                seen.append(0)
                loop.call_soon(turn)

        def hold():
            stopped.set()
            go.wait(30)
            turn()

        loop.call_soon_threadsafe(hold)
        assert stopped.wait(30)
        for _ in range(200):  # all of them wait in the queue of the system
            stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        go.set()
        wait_for(lambda: sum(seen) == 200)
    assert max(seen) <= 40


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\xff\xfe"}]}', {}, 400),
        (b"\x00\x01\x02", {}, 400),
        (b"", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"a":' * 100_000, {}, 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400),
        (b'{"model": "fake", "messages": ' + b"9" * 5000 + b"}", {}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 415),
    ],
)
def test_bodies_that_are_no_request_get_words(body, headers, status):
    with serving(FakeEngine(HELLO)) as door:
        found, _, answer = post(door, body, headers=headers)
        assert found == status, answer
        assert answer["error"]["message"]
        assert "internal" not in answer["error"]["message"]
        assert post(door)[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n",
    ],
)
def test_what_is_no_http_is_closed(data):
    with serving(FakeEngine(HELLO)) as door:
        with contextlib.suppress(ConnectionError):
            assert b"200 OK" not in raw(door, data, until=b"\0")
        assert post(door)[0] == 200


def test_a_head_that_never_ends_is_closed(monkeypatch):
    from gemmantle.server import run

    monkeypatch.setattr(run, "HEAD_S", 0.05)
    with serving(FakeEngine(HELLO)) as door:
        with socket.create_connection(("127.0.0.1", door.port), timeout=30) as silent:
            assert read_end(silent) == b""
        with socket.create_connection(("127.0.0.1", door.port), timeout=30) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in slow.recv(65536)
            slow.sendall(b"GET /hea")
            read_end(slow)


def read_end(connection):
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def test_connections_beyond_the_limit_are_closed_and_the_others_served(monkeypatch):
    from gemmantle.server import run

    monkeypatch.setattr(run, "MAX_CONNECTIONS", 20)
    with serving(FakeEngine(HELLO)) as door:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", door.port))) for _ in range(20)]
            wait_for(lambda: len(door.server.server_state.connections) == 20)
            with socket.create_connection(("127.0.0.1", door.port), timeout=30) as extra:
                assert read_end(extra) == b""
            held[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in held[0].recv(65536)
        wait_for(lambda: not door.server.server_state.connections)
        assert post(door)[0] == 200


def test_small_parts_of_an_answer_do_not_wait_for_each_other():
    """Nagle's algorithm would hold the body back until the head is acknowledged: 40 ms an answer or a chunk."""
    with serving(FakeEngine(HELLO)) as door, door.client() as client:
        client.models.list()
        [connection] = door.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_two_thousand_connections_opened_and_dropped_leave_nothing():
    with serving(FakeEngine(HELLO)) as door:
        for number in range(2000):
            with socket.create_connection(("127.0.0.1", door.port)) as connection:
                if number % 2:
                    connection.sendall(head_of(1000) + b"{" if number % 4 == 1 else b"POST /v1/cha")
        wait_for(lambda: not door.server.server_state.connections)
        wait_for(lambda: not door.application._active)
        assert door.application._held_bytes == 0
        assert post(door)[0] == 200


# -- disconnects, time, keep-alive


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_a_caller_who_leaves_cancels_the_work(body):
    engine = FakeEngine([HOLD, *HELLO])
    with serving(engine) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            connection.sendall(head_of(len(body)) + body)
            wait_for(lambda: engine.generations)
        wait_for(lambda: engine.cancelled == 1)
        wait_for(lambda: not door.application._active)
        assert 'status="499"} 1' in get(door, "/metrics")[2]


def test_a_stream_that_is_closed_in_the_middle_cancels_the_work():
    engine = FakeEngine([*content("a"), HOLD])
    with serving(engine) as door, door.client() as client:
        with client.chat.completions.create(model="fake", messages=USER, stream=True) as stream:
            assert next(iter(stream)).choices[0].delta.content == "a"
        wait_for(lambda: engine.cancelled == 1)


def test_a_reader_who_reads_nothing_is_given_up():
    engine = FakeEngine([("content", "x" * 100_000)] * 200)
    with serving(engine, limits=Limits(reader_s=0.1)) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            connection.sendall(head_of(len(STREAM)) + STREAM)
            wait_for(lambda: engine.cancelled == 1)
        assert post(door, b"{}")[0] == 400


def test_comments_keep_the_line_alive_until_the_first_token_only():
    engine = FakeEngine([HOLD, *HELLO])
    with serving(engine, limits=Limits(keep_alive_s=0.02)) as door:
        with socket.create_connection(("127.0.0.1", door.port), timeout=30) as connection:
            connection.sendall(head_of(len(STREAM)) + STREAM)
            text = b""
            while text.count(b": keep-alive\n\n") < 3:
                text += connection.recv(65536)
            engine.release()
            while b"[DONE]" not in text:
                text += connection.recv(65536)
        assert b": keep-alive" not in text.partition(b"data: ")[2]


def releasing(engine, after_s=0.0):
    """Lets the engine go on, from another thread, once it has work."""

    def release():
        wait_for(lambda: engine.generations)
        time.sleep(after_s)
        engine.release()

    return threading.Thread(target=release)


def test_comments_do_not_disturb_the_sdk():
    engine = FakeEngine([HOLD, *HELLO])
    with serving(engine, limits=Limits(keep_alive_s=0.01)) as door, door.client() as client:
        release = releasing(engine, after_s=0.2)
        release.start()
        stream = client.chat.completions.create(model="fake", messages=USER, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, world!"
        release.join()


def test_three_choices_first_appear_in_order():
    engine = FakeEngine(lambda choice: [HOLD, *content("a0")] if choice == 0 else content(f"a{choice}"))
    with serving(engine) as door, door.client() as client:
        release = releasing(engine, after_s=0.1)
        with client.chat.completions.stream(model="fake", messages=USER, n=3) as stream:
            release.start()
            final = stream.get_final_completion()
        release.join()
    assert [choice.message.content for choice in final.choices] == ["a0", "a1", "a2"]


def test_an_answer_that_takes_too_long_is_a_408_or_an_error_in_the_stream():
    engine = FakeEngine([HOLD, *HELLO])
    with serving(engine, limits=Limits(answer_s=0.1)) as door, door.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="fake", messages=USER)
        assert (caught.value.status_code, caught.value.code) == (408, "request_timeout")
        with pytest.raises(openai.APIError, match=r"0\.1 s"):
            list(client.chat.completions.create(model="fake", messages=USER, stream=True))
        assert engine.cancelled == 2


# -- draining


def test_draining_refuses_new_requests_and_lets_running_ones_finish():
    engine = FakeEngine([*content("a"), HOLD, *content("b")])
    with serving(engine, drain_s=60) as door, door.client() as client:
        stream = iter(client.chat.completions.create(model="fake", messages=USER, stream=True))
        assert next(stream).choices[0].delta.content == "a"
        door.server.stop()
        wait_for(lambda: door.application.draining)
        assert get(door, "/ready")[::2] == (503, '{"status": "draining"}')
        assert get(door, "/health")[0] == 200
        status, headers, answer = post(door)
        assert (status, answer["error"]["code"]) == (503, "engine_draining")
        assert headers["x-should-retry"] == "true"
        engine.release()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "b"
        door.join()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", door.port))


def test_what_outlasts_the_drain_is_told():
    engine = FakeEngine([*content("a"), HOLD])
    with serving(engine, drain_s=0.05) as door, door.client() as client:
        stream = iter(client.chat.completions.create(model="fake", messages=USER, stream=True))
        next(stream)
        answers = []
        plain = threading.Thread(target=lambda: answers.append(post(door)))
        plain.start()
        wait_for(lambda: len(engine.generations) == 2)
        door.server.stop()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        plain.join()
        assert (answers[0][0], answers[0][2]["error"]["code"]) == (503, "engine_draining")
        door.join()
        assert engine.cancelled == 2


# -- the command


def test_a_loaded_engine_is_an_asgi_application():
    """`engine.asgi()` asks nothing of a server but the protocol."""
    from gemmantle.engines import Engine

    engine = FakeEngine(HELLO)
    engine._served = lambda: ServedModels([engine])
    application = Engine.asgi(engine, keys=["k"])
    sent = []

    async def main(scope, body):
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        left = asyncio.Event()

        async def receive():
            message = next(messages, None)
            if message is None:
                await left.wait()
            return message

        async def send(message):
            sent.append(message)

        await application(scope, receive, send)

    headers = [(b"authorization", b"Bearer k"), (b"host", b"any")]
    scope = {"type": "http", "method": "POST", "root_path": "/mounted", "headers": headers}
    asyncio.run(main({**scope, "path": "/mounted/v1/chat/completions"}, BODY))
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["choices"][0]["message"]["content"] == "Hello, world!"


def test_the_command_serves_until_a_signal(monkeypatch, capfd):
    import os
    import signal

    import gemmantle

    engine = FakeEngine(HELLO)
    engine.closed = []
    engine.close = lambda: engine.closed.append(True)
    monkeypatch.setattr(gemmantle, "load", lambda model, **options: engine)
    monkeypatch.setenv("GEMMANTLE_API_KEY", "secret")
    found = {}

    def use():
        try:
            told = ""
            while not (match := re.search(r"serving fake/model on http://127.0.0.1:(\d+)", told)):
                told += capfd.readouterr().err
            url = f"http://127.0.0.1:{match[1]}/v1"
            with openai.OpenAI(base_url=url, api_key="secret") as client:
                found["text"] = client.chat.completions.create(model="fake", messages=USER).choices[0].message.content
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    assert cli.main(["serve", "some-model", "--port", "0"]) == 0
    user.join()
    assert found["text"] == "Hello, world!"
    assert engine.closed


def test_the_command_tells_what_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["serve", "no/such-model", "--port", "0"]) == 1
    assert "no/such-model" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "m", "--port", port]) == 1
    assert f"port {port}" in capsys.readouterr().err
    assert cli.main(["serve", "m", "--api-key", ""]) == 1
    assert cli.main(["serve", "m", "--max-requests", "0"]) == 1
