"""A-15: prompts equal those of the released template on every way in, and another template is told.

All 200 renderings, with their ids: test_template.py. What a template file holds is told when a model is loaded, before
there is a way in.
"""

from __future__ import annotations

import logging
import shutil

import pytest
from random_speaker import make_speaker

import gemmantle
from gemmantle.chat import revisions

MODEL = "gemma-4-nano-e"
APRIL = "{{ '<|turn>system\\n' }}{{ '<|think|>' }}{{ '\\n\\n<|image|>\\n\\n' }}"
JULY = "{{ '<|turn>system\\n' }}{{ '<|think|>\\n' }}{{ '<|image|>' }}"


def test_a15_c24_prompts_are_those_of_the_released_template(client, renderings):
    rows = [row for row in renderings if row["series"] == "e"]
    assert len(rows) == 100
    for number, row in enumerate(rows):
        body = {"model": MODEL, "messages": row["messages"], "reasoning_effort": "high" if row["thinking"] else "none"}
        if row["tools"]:
            body["tools"] = row["tools"]
        assert client.post("/apply-template", cast_to=object, body=body)["prompt"] == row["text"], f"row {number}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights whose configuration ends replies with the turn, so that they chat."""
    return make_speaker(tmp_path_factory)


def warnings_of(folder, caplog, tmp_path, template, file="chat_template.jinja"):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / file).write_text(template, encoding="utf-8")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gemmantle"), gemmantle.load(copy, device="cpu", max_context=256) as engine:
        assert engine.profile.is_chat
    return [record.getMessage() for record in caplog.records]


def test_a15_c23_an_old_revision_is_told_once_with_what_differs(folder, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(revisions, "_warned", set())
    [message] = warnings_of(folder, caplog, tmp_path, APRIL)
    assert "no line break after <|think|>" in message
    assert "images and videos between empty lines" in message
    assert warnings_of(folder, caplog, tmp_path, APRIL) == []


def test_a15_c23_the_released_revision_is_not_told(folder, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(revisions, "KNOWN", {revisions._digest(JULY): "July 2026"})
    monkeypatch.setattr(revisions, "_warned", set())
    assert warnings_of(folder, caplog, tmp_path, JULY) == []


def test_a15_c23_an_unknown_and_a_foreign_template_are_told(folder, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(revisions, "_warned", set())
    [message] = warnings_of(folder, caplog, tmp_path, JULY)
    assert "its revision is not known" in message
    [message] = warnings_of(folder, caplog, tmp_path, '{"chat_template": "<|im_start|>"}', file="tokenizer_config.json")
    assert "no template of Gemma 4" in message


def test_a15_a_checkpoint_without_a_template_says_nothing(folder, caplog):
    with caplog.at_level(logging.WARNING, "gemmantle"), gemmantle.load(folder, device="cpu", max_context=256):
        pass
    assert caplog.records == []
