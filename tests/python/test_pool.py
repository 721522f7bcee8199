"""Several models behind one client: which are in memory, who waits for whom, what is given back."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import gemmantle
from gemmantle.api.protocol import Sampling
from gemmantle.errors import EngineClosed, ForkedEngineError, ModelNotFound

pytestmark = pytest.mark.usefixtures("_native")


@pytest.fixture
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake native module, in which every model counts and generations end when they are read."""
    import sys

    import fake_core

    core = fake_core.module()
    monkeypatch.setitem(sys.modules, "gemmantle._core", core)
    monkeypatch.setattr(gemmantle, "_core", core, raising=False)
    fake_core.loads.clear()
    fake_core.closed.clear()


@pytest.fixture
def folders(tmp_path: Any) -> list[str]:
    """Three checkpoint folders: a, b and c."""
    paths = []
    for name in "abc":
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        paths.append(str(folder))
    return paths


@pytest.fixture
def pool(folders: list[str]) -> Iterator[gemmantle.Pool]:
    with gemmantle.pool(folders, max_resident=2) as made:
        yield made


def resident(pool: gemmantle.Pool) -> list[str]:
    return [engine.name for engine in pool.engines]


def ask(pool: gemmantle.Pool, name: str) -> list[int]:
    extra = {"return_token_ids": True}
    reply = pool.client().completions.create(model=name, prompt=[5], max_tokens=3, extra_body=extra)
    assert reply.model == name
    ids: list[int] = reply.choices[0].token_ids  # type: ignore[attr-defined]
    return ids


def test_the_model_of_a_request_is_opened_and_the_least_recently_used_one_closed(pool: gemmantle.Pool) -> None:
    assert resident(pool) == []
    for name, expected in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc")):
        assert ask(pool, name) == [6, 7, 8]
        assert resident(pool) == list(expected)
    assert set(pool.stats()) == {"b", "c"}


def test_all_models_are_listed_and_only_those_of_the_pool_answer(pool: gemmantle.Pool) -> None:
    ask(pool, "b")
    listed = {model.id: model.loaded for model in pool.client().models.list()}  # type: ignore[attr-defined]
    assert listed == {"a": False, "b": True, "c": False}
    with pytest.raises(ModelNotFound, match=r"answers as: a, b, c$"):
        pool.load("d")
    assert resident(pool) == ["b"]


def test_what_is_known_of_a_model_outlives_its_engine(pool: gemmantle.Pool, folders: list[str]) -> None:
    member = pool.load("a")
    ask(pool, "b")
    ask(pool, "c")
    assert resident(pool) == ["b", "c"]
    assert member.profile.name == "a"
    assert member.submit([5], Sampling(max_tokens=1)).next().tokens[0].id == 6  # type: ignore[union-attr]
    assert "a" in resident(pool)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths of models whose engines say that they are at work."""
    import fake_core

    paths: set[str] = set()
    monkeypatch.setattr(fake_core.Engine, "stats", lambda self: {"queued": 0, "running": int(self.model.path in paths)})
    return paths


def test_a_model_at_work_is_never_closed(pool: gemmantle.Pool, folders: list[str], busy: set[str]) -> None:
    ask(pool, "a")
    ask(pool, "b")
    busy.add(folders[0])
    assert ask(pool, "c") == [6, 7, 8]
    assert resident(pool) == ["a", "c"]  # b was used later than a, but a is at work


def test_who_finds_all_at_work_waits_and_newcomers_wait_behind_it(
    pool: gemmantle.Pool, folders: list[str], busy: set[str]
) -> None:
    ask(pool, "a")
    ask(pool, "b")
    busy.update(folders)
    order: list[str] = []
    waiting = threading.Thread(target=lambda: order.append(pool.load("c").profile.name))
    waiting.start()
    while pool.find("a") is not None:  # the one that was used least recently has to leave
        time.sleep(0.001)
    newcomer = threading.Thread(target=lambda: order.append(pool.load("a").profile.name))
    newcomer.start()
    assert pool.find("b") is not None
    assert order == []
    assert resident(pool) == ["a", "b"]
    busy.discard(folders[0])
    waiting.join()
    busy.clear()
    newcomer.join()
    assert order == ["c", "a"]


def test_a_model_stays_where_nobody_waits_for_its_place_any_longer(
    pool: gemmantle.Pool, folders: list[str], busy: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(pool, "a")
    ask(pool, "b")
    busy.update(folders)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool._changed, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.load("c")
    assert pool.find("a") is not None
    assert pool.load("a").profile.name == "a"


def test_many_threads_over_three_models_in_two_places(pool: gemmantle.Pool) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(12):
                assert ask(pool, "abc"[(seed + turn * (seed % 2 + 1)) % 3]) == [6, 7, 8]
                assert len(resident(pool)) <= 2
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_load_that_fails_leaves_its_place_to_others(pool: gemmantle.Pool, tmp_path: Any) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with gemmantle.pool([str(broken), str(tmp_path / "a")]) as small:
        for _ in range(2):
            with pytest.raises(ModelNotFound, match="no weights"):
                small.load("broken")
        assert ask(small, "a") == [6, 7, 8]


def test_a_closed_pool_has_closed_its_models_and_refuses(pool: gemmantle.Pool) -> None:
    import fake_core

    ask(pool, "a")
    member = pool.load("b")
    pool.close()
    pool.close()
    assert len(fake_core.closed) == 2
    for call in (lambda: pool.find("a"), lambda: pool.load("a"), lambda: member.submit([5], Sampling())):
        with pytest.raises(EngineClosed, match="closed"):
            call()


def test_a_pool_pickles_as_its_arguments(folders: list[str]) -> None:
    with gemmantle.pool(folders, max_resident=2, max_context=48) as pool:
        ask(pool, "a")
        copy = pickle.loads(pickle.dumps(pool))
    assert resident(copy) == []
    assert ask(copy, "a") == [6, 7, 8]
    assert copy.load("a").profile.max_context == 48
    copy.close()


@pytest.mark.filterwarnings("ignore:This process.*fork")
def test_a_forked_child_is_told_what_to_do(pool: gemmantle.Pool) -> None:
    ask(pool, "a")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pool.load("a")
        except ForkedEngineError as exc:
            os.write(writer, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert "gemmantle.pool in the child" in pipe.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_resident": 0}, "max_resident"),
        ({"devise": "cpu"}, "devise"),
        ({"mode": "quick"}, "mode"),
    ],
)
def test_arguments_are_checked_before_anything_is_opened(
    folders: list[str], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        gemmantle.pool(folders, **arguments)
    with pytest.raises(ValueError, match="'a'"):
        gemmantle.pool([folders[0], folders[0]])
    with pytest.raises(ModelNotFound):
        gemmantle.pool(["no/such"])
