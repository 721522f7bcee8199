"""Progress of bulk work: what a terminal, a notebook, a log and a function see, and when nothing is to be seen."""

from __future__ import annotations

import io
import logging
import sys
import types
from typing import Any

import pytest
from fake_engine import FakeEngine, content

from gemmantle import bulk, evaluate, progress
from gemmantle.progress import Progress, Standing


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: self.now))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_terminal_shows_a_bar_after_two_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("generate", 220)
    for _ in range(10):
        clock.now += 0.1
        shown.add(5)
    assert terminal.getvalue() == ""
    clock.now += 1.5
    shown.add(50, tokens=500)
    assert terminal.getvalue() == (
        "\rgenerate [##########..............] 100/220, 45 %, 40.0 a second, 200 tokens a second, 0:03 left"
    )
    shown.add(1)  # too soon for another look
    assert terminal.getvalue().count("\r") == 1
    clock.now += 3
    shown.add(119)
    shown.close()
    shown.close()
    last = terminal.getvalue().rsplit("\r", 1)[1]
    assert last.startswith("generate [########################] 220/220, 100 %, 40.0 a second")
    assert last.rstrip().endswith("0:06 in all")
    assert last.endswith("\n")


def test_without_a_total_it_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("score")
    clock.now += 7260
    shown.add(3)
    shown.close()
    assert terminal.getvalue().splitlines()[-1].rstrip().endswith("score 3, 0.0 a second, 2:01:00 in all")


def test_short_work_shows_nothing_anywhere(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    with caplog.at_level(logging.INFO, "gemmantle"):
        Progress("generate", 3).close()
        monkeypatch.setattr(sys, "stderr", terminal)
        shown = Progress("generate", 3)
        clock.now += 1.9
        shown.add(3)
        shown.close()
    assert (terminal.getvalue(), caplog.records) == ("", [])


def test_elsewhere_it_writes_to_the_log(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shown = Progress("generate", 100)
    with caplog.at_level(logging.INFO, "gemmantle"):
        for _ in range(21):
            clock.now += 1
            shown.add(1)
        shown.close()
    assert [record.getMessage() for record in caplog.records] == [
        "generate: 10/100, 10 %, 1.0 a second, 1:30 left",
        "generate: 20/100, 20 %, 1.0 a second, 1:20 left",
        "generate: 21/100, 21 %, 1.0 a second, 0:21 in all",
    ]


def test_a_notebook_shows_one_bar_that_grows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            pages.append(page)

    def display(page: str, display_id: bool) -> Handle:
        assert display_id
        pages.append(page)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    module.display = types.ModuleType("IPython.display")  # type: ignore[attr-defined]
    module.display.HTML = lambda text: text  # type: ignore[attr-defined]
    module.display.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)  # type: ignore[attr-defined]
    shown = Progress("score", 4)
    for _ in range(4):
        clock.now += 2
        shown.add(1)
    shown.close()
    assert pages[0] == 'score <progress value="1" max="4"></progress> 1/4, 25 %, 0.5 a second, 0:06 left'
    assert pages[-1].endswith("0:08 in all")


def test_a_function_replaces_the_bar_and_false_shows_nothing(clock: Clock) -> None:
    seen: list[Standing] = []
    shown = Progress("generate", 2, seen.append)
    for _ in range(2):
        clock.now += 1
        shown.add(1, tokens=8)
    shown.close()
    assert seen == [Standing(1, 2, 8, 1.0), Standing(2, 2, 16, 2.0), Standing(2, 2, 16, 2.0, is_over=True)]
    silent = Progress("generate", 2, show=False)
    silent.add(2)
    silent.close()
    for wrong in ("always", 1.5, None):
        with pytest.raises(ValueError, match="progress is"):
            Progress("generate", show=wrong)  # type: ignore[arg-type]


def test_results_are_counted_and_what_is_left_behind_ends_the_bar() -> None:
    seen: list[Standing] = []
    engine = FakeEngine(content("a", "b"))
    requests: list[dict[str, Any]] = [{"prompt": [5], "max_tokens": 4}] * 5
    results = bulk.watched(bulk.generate(engine, requests, 2), Progress("generate", 5, seen.append))
    next(results)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert (seen[-1].done, seen[-1].tokens, seen[-1].is_over) == (2, 6, True)
    assert engine.ended + engine.cancelled == len(engine.generations)


def test_scores_are_counted_with_their_total() -> None:
    seen: list[Standing] = []
    engine: Any = FakeEngine(has_tokenizer=False)
    shown = Progress("score", None, seen.append)
    evaluate.score(engine, [([5, 6], [7]), ([5], [7, 8])], "pair", 4, shown)
    shown.close()
    assert (seen[-1].done, seen[-1].total, seen[-1].tokens) == (2, 2, 3)
