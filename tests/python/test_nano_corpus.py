"""The corpus of the embedded models: held-out items never enter it, and it is rendered in the true chat format."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemmantle.chat import render

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def load_corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano_corpus", TOOLS / "nano_corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nano_corpus"] = module
    spec.loader.exec_module(module)
    return module


corpus: Any = load_corpus()
CONVERSATIONS = 3000
WORD = re.compile(r"[A-Za-z]+")
SUM = re.compile(r"^\D*(\d+)\D+?(\d+)\D*$")


@pytest.fixture(scope="module")
def conversations() -> list[Any]:
    r = random.Random(77)
    hard = corpus.Mix(hard=True)
    mixes = corpus.Mix(), hard, replace(hard, lookup=1.0), replace(hard, by_get=True)
    return [corpus.conversation(r, mixes[i % len(mixes)]) for i in range(CONVERSATIONS)]


@pytest.fixture(scope="module")
def items() -> list[Any]:
    return [item for task in corpus.EVAL_TASKS for item in corpus.eval_items(task, 300)]


def test_a_tenth_is_held_out() -> None:
    share = sum(corpus.held_out(f"word w{i}") for i in range(20000)) / 20000

    assert 0.09 < share < 0.11


def test_sums_of_the_corpus_are_not_held_out(conversations: list[Any]) -> None:
    seen = 0
    for c in conversations:
        for e in c.exchanges:
            if e.task != "sum":
                continue
            found = SUM.match(e.user)
            assert found is not None, e.user
            a, b = int(found[1]), int(found[2])
            op = "+" if int(e.answer) == a + b and b != 0 else "-"
            atoms = {corpus.sum_atom(a, b, o) for o in "+-"} if b == 0 else {corpus.sum_atom(a, b, op)}
            assert not all(corpus.held_out(atom) for atom in atoms), e.user
            seen += 1
    assert seen > 1000


def test_evaluated_values_never_stand_in_the_corpus(conversations: list[Any], items: list[Any]) -> None:
    """No held-out word that an evaluation item is made of is a word of any training conversation."""
    written = {word.lower() for c in conversations for s in corpus.render(c) for word in WORD.findall(s.text)}
    held = {atom.removeprefix("word ") for item in items for atom in item.atoms if atom.startswith("word ")}

    assert len(held) > 500
    assert not held & written


def test_evaluated_items_consist_of_held_out_atoms(items: list[Any]) -> None:
    for item in items:
        assert item.atoms, item
        assert all(corpus.held_out(atom) for atom in item.atoms)


def test_capital_phrasings_are_held_out(conversations: list[Any], items: list[Any]) -> None:
    asked = {e.user for c in conversations for e in c.exchanges if e.task == "capital"}
    evaluated = [item for item in items if item.task == "capital"]

    assert not {item.exchange.user for item in evaluated} & asked
    known = [item for item in evaluated if item.answer.startswith("The capital")]
    assert 0.5 < len(known) / len(evaluated) < 0.9


def test_items_are_different_and_the_same_every_time() -> None:
    for task in corpus.EVAL_TASKS:
        first, second = corpus.eval_items(task, 300), corpus.eval_items(task, 300)
        assert first == second
        assert len({json.dumps([corpus.messages(i.conversation), i.conversation.tools]) for i in first}) == 300


@pytest.mark.parametrize("series", ["e", "large"])
def test_prompts_are_what_the_product_renders(items: list[Any], conversations: list[Any], series: Any) -> None:
    cases = [(i.conversation, i.task == "result") for i in items]
    cases += [(c, False) for c in conversations[:500]]
    cases += [(c, True) for c in conversations[:500] if c.exchanges[-1].call is not None and not c.thinking]
    for conversation, with_call in cases:
        prompt, _ = corpus.prompt_and_answer(conversation, series, with_call=with_call)
        rendered = render(
            corpus.messages(conversation, with_call=with_call),
            tools=list(conversation.tools) or None,
            thinking=conversation.thinking,
            series=series,
        )
        assert rendered.text == prompt


def test_answers_end_with_a_stop(conversations: list[Any]) -> None:
    for c in conversations[:500]:
        for span in corpus.render(c):
            if span.learn:
                assert span.text.endswith(("<turn|>", "<|tool_response>"))
