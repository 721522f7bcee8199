"""The command: answers on standard output, everything else in words on standard error."""

from __future__ import annotations

import io
import json

import pytest
from fake_engine import HELLO, FakeEngine, content

import gemmantle
from gemmantle import cli
from gemmantle.bulk import Result
from gemmantle.client import client_for


class LoadedFake(FakeEngine):
    """A fake engine with what the command uses of a loaded one."""

    name = "fake/model"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def client(self, **options):
        return client_for(self, **options)

    def info(self):
        return {"name": self.name, "vocabulary": 4000, "device": "cpu", "isa": "none"}

    def generate(self, requests):
        return iter([Result(ids=[5]) for _ in requests])


@pytest.fixture
def engine(monkeypatch):
    fake = LoadedFake(HELLO)
    fake.loaded = []
    monkeypatch.setattr(gemmantle, "load", lambda model, **options: fake.loaded.append((model, options)) or fake)
    return fake


def test_complete_streams_the_prompt_and_its_continuation(engine, capsys):
    assert cli.main(["complete", "some-model", "Say: ", "--threads", "2", "--max-context", "100"]) == 0
    assert capsys.readouterr().out == "Say: Hello, world!\n"
    assert engine.loaded[0][0] == "some-model"
    assert engine.loaded[0][1]["threads"] == 2
    assert engine.submitted[0][1].temperature == 0


def test_complete_reads_standard_input(engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    assert cli.main(["complete", "m", "-", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().out == "pipedHel\n"


def test_chat_answers_one_message_and_thoughts_go_elsewhere(engine, capsys):
    engine.script = [("thought", "hm"), *content("Yes.")]
    assert cli.main(["chat", "m", "Is it?", "--think", "--system", "Be short."]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Yes.\n"
    assert captured.err == "hm"
    assert "Be short." in engine.prompts[0].text


def test_a_conversation_keeps_its_turns_and_ends_with_the_input(engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert cli.main(["chat", "m"]) == 0
    assert len(engine.prompts) == 2
    assert "Hello, world!" in engine.prompts[1].text
    assert capsys.readouterr().out.count("Hello, world!") == 2


def test_info_is_json(engine, capsys):
    assert cli.main(["info", "m"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "fake/model"


def test_devices_are_listed_with_reasons(capsys, monkeypatch):
    found = [
        {"name": "cpu", "available": True, "description": "this machine", "reason": ""},
        {"name": "cuda", "available": False, "description": "", "reason": "no driver"},
    ]
    monkeypatch.setattr(gemmantle, "devices", lambda: found)
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "this machine" in out
    assert "no (no driver)" in out


def test_errors_are_told_in_one_line(engine, capsys, monkeypatch, tmp_path):
    engine.profile = FakeEngine(is_chat=False).profile
    assert cli.main(["chat", "m", "Hi"]) == 1
    assert "base model" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["info", "no/such-model"]) == 1
    assert capsys.readouterr().err.startswith("gemmantle: model 'no/such-model' is not here")


def test_a_bug_is_not_hidden(engine, monkeypatch):
    monkeypatch.setattr(gemmantle, "load", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "m"])


def test_without_a_command_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "usage: gemmantle" in capsys.readouterr().err
