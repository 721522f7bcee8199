"""Batches: every line answered once, whatever happens in between (A-21)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_engine import HELLO, FakeEngine

from gemmantle import batch
from gemmantle.client import handler_for
from gemmantle.errors import DeviceError


def line(name, text="Hi", url="/v1/chat/completions", **body):
    content = {"input": text} if url.endswith("responses") else {"messages": [{"role": "user", "content": text}]}
    if url.endswith("/completions") and "chat" not in url:
        content = {"prompt": text}
    return {"custom_id": name, "method": "POST", "url": url, "body": {**content, **body}}


def run(engine, src, dst, **options):
    return batch.run(handler_for(engine), src, dst, model="fake", workers=4, **options)


def written(path):
    values = map(json.loads, path.read_text().splitlines())
    return {value.get("custom_id") or value["recordId"]: value for value in values}


def test_every_line_gets_an_answer_under_its_id(tmp_path):
    lines = [
        line("chat"),
        line("plain", url="/v1/completions", max_tokens=5),
        line("items", url="/v1/responses"),
        line("named", model="fake/model"),
        line("wrong", temperature=9),
        line("lost", url="/v1/audio"),
        line("streamed", stream=True),
        {"recordId": "bedrock", "modelInput": {"messages": [{"role": "user", "content": "Hi"}]}},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    summary = run(FakeEngine(HELLO), source, tmp_path / "out.jsonl")
    assert (summary.total, summary.succeeded, summary.failed, summary.skipped) == (8, 5, 3, 0)
    assert "8 requests, 0 done before, 5 answered, 3 failed" in str(summary)
    assert summary.output_tokens == 5 * 7 - 2
    out = written(tmp_path / "out.jsonl")
    assert out["chat"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello, world!"
    assert out["chat"]["response"]["status_code"] == 200
    assert out["chat"]["response"]["request_id"].startswith("req_")
    assert out["chat"]["error"] is None
    assert out["items"]["response"]["body"]["output"][0]["content"][0]["text"] == "Hello, world!"
    assert out["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    assert out["wrong"]["error"]["code"] == "invalid_value"
    assert "/audio" in out["lost"]["error"]["message"]
    assert out["lost"]["response"]["status_code"] == out["streamed"]["response"]["status_code"] == 400
    assert out["bedrock"]["modelOutput"]["choices"][0]["message"]["content"] == "Hello, world!"


def test_a_second_run_does_only_what_is_missing(tmp_path):
    out = tmp_path / "out.jsonl"
    engine = FakeEngine(HELLO)
    run(engine, [line("a"), line("b")], out)
    with out.open("ab") as file:
        file.write(b'{"custom_id":"c","response":{"status_co')
    summary = run(engine, [line("a"), line("b"), line("c")], out)
    assert (summary.skipped, summary.succeeded) == (2, 1)
    assert len(engine.submitted) == 3
    assert set(written(out)) == {"a", "b", "c"}
    assert len(out.read_bytes().splitlines()) == 3
    assert run(engine, [line("a")], out, resume=False).succeeded == 1
    assert set(written(out)) == {"a"}


def test_failures_that_may_pass_run_again(tmp_path):
    out = tmp_path / "out.jsonl"
    assert run(FakeEngine([DeviceError("lost")]), [line("a"), line("b", temperature=9)], out).failed == 2
    summary = run(FakeEngine(HELLO), [line("a"), line("b", temperature=9)], out)
    assert (summary.skipped, summary.succeeded, summary.failed) == (1, 1, 0)
    assert {name: value["response"]["status_code"] for name, value in written(out).items()} == {"a": 200, "b": 400}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line("a"), line("a")], "line 2 has the id 'a' of line 1"),
        ([{"body": {}}], "line 1 has no `custom_id`"),
        (["{"], "line 1 is not valid JSON"),
        (["[]"], "line 1 must be an object"),
    ],
)
def test_lines_that_could_be_lost_or_doubled_are_refused_first(tmp_path, lines, words):
    engine = FakeEngine(HELLO)
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        run(engine, lines, tmp_path / "out.jsonl")
    assert engine.submitted == []


def test_two_runs_never_share_an_output(tmp_path):
    out = tmp_path / "out.jsonl"
    with out.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run"):
            run(FakeEngine(HELLO), [line("a")], out)


WORKER = """
import sys, time
from fake_engine import FakeEngine, HELLO
from test_batch import line, run
class Slow(FakeEngine):
    def submit(self, *arguments):
        time.sleep(0.004)
        return super().submit(*arguments)
run(Slow(HELLO), [line(str(number), f"question {number}") for number in range(400)], sys.argv[1])
"""


def test_a21_a_killed_run_is_started_again_and_loses_and_doubles_nothing(tmp_path):
    out = tmp_path / "out.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", WORKER, str(out)]
    for share in (100, 200):
        worker = subprocess.Popen(command, env=environment)
        end = time.monotonic() + 60
        while (not out.exists() or out.read_bytes().count(b"\n") < share) and time.monotonic() < end:
            time.sleep(0.002)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert share <= out.read_bytes().count(b"\n") < 400
    before = out.read_bytes().count(b"\n")
    engine = FakeEngine(HELLO)
    summary = run(engine, [line(str(number), f"question {number}") for number in range(400)], out)
    assert before - 1 <= summary.skipped <= before
    assert len(engine.submitted) == 400 - summary.skipped
    names = [json.loads(raw)["custom_id"] for raw in out.read_text().splitlines()]
    assert sorted(names, key=int) == [str(number) for number in range(400)]
