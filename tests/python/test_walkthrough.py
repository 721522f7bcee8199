"""examples/walkthrough.py runs here, and with one line changed against the (mock) remote service."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from mock_mantle import KEY, Mantle

from gemmantle.engines import Engine
from gemmantle.errors import RequestError

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "walkthrough.py"


def told(path, capsys):
    """What the script printed, by the words before the colon."""
    runpy.run_path(str(path), run_name="__main__")
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_the_walk_here(capsys, monkeypatch):
    pytest.importorskip("llguidance")
    busy = [RequestError("the queue is full", code="engine_busy")] * 2
    submit = Engine.submit

    def sometimes_full(self, ids, sampling):
        if busy and sampling.max_tokens != 1:
            raise busy.pop()
        return submit(self, ids, sampling)

    monkeypatch.setattr(Engine, "submit", sometimes_full)
    lines = told(SCRIPT, capsys)
    assert busy == []
    assert lines["answer"] == lines["stream"] == lines["patient answer"] == "The capital of France is Paris."
    assert lines["call"] == 'get_weather {"city":"Paris"}'
    assert "sunny" in lines["after the call"]
    assert lines["image refused"] == "unsupported_content_type"
    assert lines["responses"].endswith("/ completed")
    assert lines["events"] == "response.created to response.completed"
    assert len(lines["thoughts"]) > 10
    assert lines["sum"] == "68"
    assert lines["same seed, same answer"] == lines["cached prefix"] == "True"
    assert lines["tiers"] == "flex, default, priority"
    assert re.fullmatch(r"\{'city': '.+'\}", lines["JSON"])


def test_the_walk_with_one_line_changed(capsys, monkeypatch, tmp_path):
    text = SCRIPT.read_text(encoding="utf-8")
    line = 'client, MODEL = gemmantle.OpenAI(), "gemma-4-nano-e"\n'
    other = re.search(r"# (client, MODEL = .*\n)", text)[1]
    assert text.count(line) == 1
    changed = tmp_path / "walkthrough.py"
    changed.write_text(text.replace(line, other), encoding="utf-8")
    with Mantle() as mantle:
        monkeypatch.setenv("AWS_BEDROCK_BASE_URL", mantle.url)
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
        mantle.schedule.extend([503, 429])  # the inner client comes again
        lines = told(changed, capsys)
        sent = mantle.bodies
    assert lines["answer"] == lines["stream"] == "Hello from far"
    assert lines["call"] == 'get_weather {"city":"Paris"}'
    assert lines["image"] == "Hello from far"
    assert lines["events"] == "response.created to response.completed"
    assert lines["thoughts"] == "far thoughts"
    assert lines["tiers"] == "flex, default, priority"
    assert lines["cached prefix"] == "True"
    assert lines["JSON"] == "{'city': 'Par}is'}"
    assert {body["model"] for body in sent} == {"google.gemma-4-e2b"}
    assert sent[0] == sent[1] == sent[2]
