"""Loading, sharing, closing, pickling, forking; names on disk; bulk generation and scores."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import types
from importlib.machinery import ModuleSpec

import fake_core
import numpy as np
import pytest
from fake_engine import CALL, HOLD, FakeEngine, content
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers

import gemmantle
from gemmantle import bulk, engines, hub
from gemmantle.errors import EngineClosed, ModelNotFound, RequestError


@pytest.fixture(autouse=True)
def _native(monkeypatch, tmp_path):
    """The fake native module, and an empty Hugging Face cache."""
    core = fake_core.module()
    monkeypatch.setitem(sys.modules, "gemmantle._core", core)
    monkeypatch.setattr(gemmantle, "_core", core, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fake_core.loads.clear()
    fake_core.closed.clear()


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder without a tokenizer."""
    path = tmp_path / "counting-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


TURNS = ["<|turn>", "<turn|>", "<|tool_response>", "<|tool_call>", "<|channel>", "<channel|>"]


def write_tokenizer(path, control=()):
    """One token a character, control strings after them."""
    letters = {chr(code): code for code in range(3, 256)}
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, **letters}
    vocabulary.update({spelling: 256 + number for number, spelling in enumerate(control)})
    tokenizer = LibraryTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", *control])
    tokenizer.save(str(path / "tokenizer.json"))


def test_importing_the_package_does_no_work():
    code = (
        "import sys, gemmantle\n"
        "heavy = [m for m in ('openai', 'numpy', 'httpx', 'httpx2', 'tokenizers', 'sentencepiece', 'gemmantle._core',"
        " 'gemmantle.engines', 'gemmantle.chat') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert set(gemmantle.__all__) <= set(dir(gemmantle))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_every_public_name_resolves():
    for name in gemmantle.__all__:
        assert getattr(gemmantle, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        gemmantle.nothing_like_it  # noqa: B018


def test_equal_arguments_share_one_engine_until_the_last_close(folder):
    first = gemmantle.load(folder)
    second = gemmantle.load(str(folder), device="auto", mode="auto")
    third = gemmantle.load(folder, max_context=32)
    assert first is second
    assert third is not first
    assert len(fake_core.loads) == 2
    first.close()
    assert second.logits([5]).argmax() == 6
    second.close()
    assert len(fake_core.closed) == 1
    with pytest.raises(EngineClosed, match="load it again"):
        second.logits([5])
    second.close()
    again = gemmantle.load(folder)
    assert again is not first
    again.close()
    third.close()


def test_a_context_manager_closes_and_dropping_frees(folder):
    with gemmantle.load(folder) as engine:
        assert "open" in repr(engine)
    assert len(fake_core.closed) == 1
    dropped = gemmantle.load(folder)
    del dropped, engine
    gc.collect()
    assert len(fake_core.closed) == 2


def test_two_threads_load_a_model_once(folder):
    found = []
    threads = [threading.Thread(target=lambda: found.append(gemmantle.load(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_core.loads) == 1
    assert len({id(engine) for engine in found}) == 1


def test_an_engine_pickles_as_its_arguments(folder):
    engine = gemmantle.load(folder, max_context=48)
    data = pickle.dumps(engine)
    assert pickle.loads(data) is engine
    engine.close()
    engine.close()
    again = pickle.loads(data)
    assert again is not engine
    assert "not opened" in repr(again)
    assert again.logits([7]).shape == (1, 300)
    assert again.info()["max_context"] == 48
    again.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("mode", "quick"),
        ("threads", 0),
        ("max_context", -1),
        ("default_reasoning", "low"),
        ("kv_budget", "all"),
        ("max_queue", -1),
        ("idle_stream_timeout", 0),
        ("stream_interval_ms", -1),
        ("stream_interval_ms", 0.5),
    ],
)
def test_arguments_out_of_range_are_named(folder, name, value):
    with pytest.raises(ValueError, match=name):
        gemmantle.load(folder, **{name: value})
    assert fake_core.loads == []


def test_limits_reach_the_engine(folder):
    limits = {"kv_budget": 1 << 20, "max_queue": 7, "max_queue_ms": 50, "idle_stream_timeout": 2.5}
    with gemmantle.load(folder, max_concurrency=3, **limits) as engine:
        options = engine._opened.engine.options
        assert (options["max_sequences"], options["kv_bytes"], options["max_queue"]) == (3, 1 << 20, 7)
        assert (options["max_queue_ms"], options["idle_stream_ms"]) == (50, 2500)
        assert engine.profile.max_queue_ms == 50
    with gemmantle.load(folder) as engine:
        options = engine._opened.engine.options
        assert (options["max_sequences"], options["kv_bytes"], options["max_queue"]) == (16, 0, 1024)
        assert (options["max_queue_ms"], options["idle_stream_ms"]) == (0, 120_000)


def test_a_load_that_fails_leaves_nothing_behind(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="no weights"):
            gemmantle.load(broken)


# -- names


def test_names_come_from_paths_and_from_the_cache(folder, tmp_path):
    found = hub.resolve(folder)
    assert (found.name, found.path) == ("counting-model", folder)
    snapshot = tmp_path / "cache" / "models--google--gemma-4-E2B-it" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for name in ("google/gemma-4-E2B-it", "Google/Gemma-4-e2b-it", "gemma4:e2b", "google.gemma-4-e2b"):
        assert hub.resolve(name).path == snapshot
        assert hub.resolve(name).name == "google/gemma-4-E2B-it"
    assert hub.resolve(snapshot).name == "google/gemma-4-E2B-it"
    assert "google/gemma-4-E2B-it" in hub.names_on_disk()


def test_the_revision_of_main_wins(tmp_path):
    base = tmp_path / "cache" / "models--org--gemma"
    for revision in ("old", "new"):
        (base / "snapshots" / revision).mkdir(parents=True)
        (base / "snapshots" / revision / "config.json").write_text("{}")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("new")
    assert hub.resolve("org/gemma").path.name == "new"


def test_gguf_files_are_found_in_folders_and_doubts_are_told(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert hub.resolve(tmp_path / "model-q4.gguf").name == "model-q4"
    assert hub.resolve(tmp_path).path.name == "model-q4.gguf"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match=r"model-q4\.gguf, other\.gguf"):
        hub.resolve(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "no/such", "./nothing", "/nothing/at.gguf", "x" * 5000, "a\0b", "..", "a/../../b"]
)
def test_a_name_that_is_nowhere_is_a_file_not_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        hub.resolve(name)


def test_the_demonstration_weights_are_assembled_once_from_their_package(tmp_path, monkeypatch, caplog):
    target = tmp_path / "weights" / "gemma.gguf"
    assembled = []

    def assemble(path, overwrite=False):
        assembled.append(path)
        path.write_bytes(b"GGUF")
        return path

    package = types.ModuleType(hub._DEMO_MODULE)
    package.__spec__ = ModuleSpec(hub._DEMO_MODULE, None)
    package.default_output_path = lambda: target
    package.assemble = assemble
    target.parent.mkdir()
    monkeypatch.setitem(sys.modules, hub._DEMO_MODULE, package)
    for _ in range(2):
        assert hub.resolve("gemma-3-270m").path == target
    assert len(assembled) == 1
    assert assembled[0] != target  # a reader never sees half a file
    assert "Gemma Terms of Use" in caplog.text
    assert "gemma-3-270m" in hub.names_on_disk()


def test_without_their_package_the_message_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(hub, "_DEMO_MODULE", "no_such_package")
    with pytest.raises(ModelNotFound, match=r"pip install 'gemmantle\[demo\]'"):
        hub.resolve("gemma-3-270m")


def test_the_message_names_what_is_here(tmp_path):
    snapshot = tmp_path / "cache" / "models--org--gemma-x" / "snapshots" / "r"
    snapshot.mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="org/gemma-x"):
        hub.resolve("no-such-model")


# -- words


def test_without_a_tokenizer_ids_work_and_text_names_the_missing_file(folder):
    with gemmantle.load(folder) as engine:
        [result] = engine.generate([{"prompt": [5, 6], "max_tokens": 3}])
        assert result.ids == [7, 8, 9]
        assert result.text == ""
        for call in (lambda: engine.tokenize("a"), lambda: engine.detokenize([5])):
            with pytest.raises(RequestError, match=r"tokenizer\.json"):
                call()
        with pytest.raises(RequestError, match=r"tokenizer\.json"):
            list(engine.generate([{"prompt": "a"}]))
        assert engine.score([([5], [6, 7])])[0].logprob == -1.0


def test_text_prompts_get_one_bos_and_ids_are_as_they_are(folder):
    write_tokenizer(folder)
    with gemmantle.load(folder) as engine:
        assert engine.tokenize("AB") == [65, 66]
        assert engine.detokenize([65, 66]) == "AB"
        assert engine.encode_prompt("AB") == [2, 65, 66]
        assert engine.encode_prompt("<bos>AB") == [2, 65, 66]
        [result] = engine.generate([{"prompt": "AB", "max_completion_tokens": 2, "temperature": 0}])
        assert result.text == "CD"
        assert result.usage.prompt_tokens == 3
        assert engine.info()["name"] == "counting-model"
        assert (engine.stats()["queued"], engine.stats()["running"]) == (0, 0)
        client = engine.client()
        assert client.completions.create(model="counting-model", prompt="AB", max_tokens=2).choices[0].text == "CD"
        assert client.models.retrieve(str(folder)).id == "counting-model"


def test_the_checkpoints_own_settings_are_the_defaults(folder):
    settings = {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "eos_token_id": [1, 106], "suppress_tokens": [40]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with gemmantle.load(folder) as engine:
        profile = engine.profile
        assert (profile.default_temperature, profile.default_top_p, profile.default_top_k) == (0.7, 0.8, 9)
        assert profile.raw_suppress == (40,)
        assert engine._opened.engine.options["eos_ids"] == [1, 106]
    with gemmantle.load(folder, default_sampling="openai") as engine:
        assert (engine.profile.default_temperature, engine.profile.default_top_k) == (1.0, 0)


def test_a_model_chats_where_its_answers_end_with_the_turn(folder):
    write_tokenizer(folder, TURNS)
    with gemmantle.load(folder) as engine:
        assert engine.profile.is_chat
        assert set(engine._opened.engine.options["eos_ids"]) == {1, 257, 258}
        assert engine.profile.call_id == 259
        prompt = engine.render([{"role": "user", "content": "Hi"}])
        assert prompt.ids()[:2] == [2, 256]
        [result] = engine.generate([{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}])
        assert len(result.ids) == 2
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    with gemmantle.load(folder) as engine:
        assert not engine.profile.is_chat


def test_the_fingerprint_changes_with_the_files(folder):
    with gemmantle.load(folder) as engine:
        first = engine.profile.fingerprint
    (folder / "model.safetensors").write_bytes(b"x")
    with gemmantle.load(folder) as engine:
        assert engine.profile.fingerprint != first


def test_openai_loads_a_model_on_first_use_and_shares_it(folder):
    write_tokenizer(folder)
    one, two = gemmantle.OpenAI(device="cpu"), gemmantle.OpenAI(device="cpu")
    assert fake_core.loads == []
    for client in (one, two):
        answer = client.completions.create(model=str(folder), prompt="A", max_tokens=3)
        assert answer.choices[0].text == "BCD"
        assert answer.model == "counting-model"
    assert len(fake_core.loads) == 1
    assert "counting-model" in [model.id for model in one.models.list()]


# -- bulk


def test_results_come_in_order_with_ids_text_and_logprobs(folder):
    with gemmantle.load(folder, max_concurrency=2) as engine:
        requests = [
            {"prompt": np.array([k]), "max_tokens": 2, "logprobs": True, "top_logprobs": 1} for k in range(3, 20)
        ]
        results = list(engine.generate(requests))
    assert [result.ids for result in results] == [[k + 1, k + 2] for k in range(3, 20)]
    assert results[0].finish_reason == "length"
    assert results[0].logprobs[0] == bulk.TokenLogprob(4, -0.5, [(4, -0.5)])
    assert results[0].usage.total_tokens == 3


def test_chat_requests_are_parsed():
    engine = FakeEngine([("thought", "hm"), *content("Look. "), *CALL])
    [result] = bulk.generate(engine, [{"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "high"}], 4)
    assert (result.reasoning, result.text, result.finish_reason) == ("hm", "Look.", "tool_calls")
    assert (result.tool_calls[0].name, result.tool_calls[0].arguments) == ("get_weather", {"city": "Paris", "days": 2})


def test_a_wrong_request_is_raised_at_its_turn(folder):
    with gemmantle.load(folder) as engine:
        results = engine.generate([{"prompt": [5], "max_tokens": 1}, {"prompt": [5], "temperatur": 1}])
        assert next(results).ids == [6]
        with pytest.raises(RequestError, match=r"requests\[1\].*temperature") as caught:
            next(results)
        assert caught.value.param == "requests[1].temperatur"
        for request in ({}, "x", {"prompt": "a", "messages": []}, {"prompt": [5], "n": 2}, {"prompt": [[5], [6]]}):
            with pytest.raises(RequestError):
                list(engine.generate([request]))


def test_a_grammar_that_comes_to_a_dead_end_is_raised_at_its_turn_and_ends_the_rest():
    pytest.importorskip("llguidance")
    engine = FakeEngine(content("x", "y"))
    constrained = {"prompt": [5], "max_tokens": 4, "structured_outputs": {"regex": "[ab]+"}}
    results = bulk.generate(engine, [{"prompt": [5], "max_tokens": 4}, constrained, {"prompt": [6]}], 4)
    assert next(results).text == "xy"
    with pytest.raises(RuntimeError, match="dead end after 1 tokens"):
        next(results)
    assert list(results) == []
    assert engine.generations[1].cancelled
    assert all(generation.cancelled or generation.try_next() is None for generation in engine.generations)


def test_requests_left_behind_are_cancelled():
    engine = FakeEngine([*content("a")] * 3)
    results = bulk.generate(engine, [{"messages": [{"role": "user", "content": "Hi"}]}] * 5, 3)
    next(results)
    results.close()
    assert engine.cancelled > 0
    assert all(generation.cancelled or generation.try_next() is None for generation in engine.generations)


def test_results_may_come_as_they_end():
    scripts = iter([[HOLD, *content("late")], content("early")])
    engine = FakeEngine(lambda _: next(scripts))
    late, early = {"prompt": [5], "max_tokens": 4}, {"prompt": [6], "max_tokens": 4}
    results = bulk.generate(engine, [late, early], 4, ordered=False)
    first = next(results)
    assert (first.index, first.text) == (1, "early")
    engine.generations[0].release()
    assert [(result.index, result.text) for result in results] == [(0, "late")]


def test_a_slow_request_holds_back_a_bounded_number_of_results():
    taken = []

    def requests():
        for number in range(1000):
            taken.append(number)
            yield {"prompt": [number + 3], "max_tokens": 4}

    scripts = iter([[HOLD, *content("late")], *[content("early")] * 999])
    engine = FakeEngine(lambda _: next(scripts))
    results = bulk.generate(engine, requests(), 4)
    timer = threading.Timer(0.2, lambda: engine.generations[0].release())
    timer.start()
    assert next(results).text == "late"
    assert len(taken) <= 16
    assert [result.index for result in results] == list(range(1, 1000))
    timer.join()


def test_every_result_may_go_to_a_function(folder):
    seen = []
    with gemmantle.load(folder) as engine:
        requests = [{"prompt": [k], "max_tokens": 1} for k in range(3, 50)]
        assert list(engine.generate(requests, ordered=False, on_result=seen.append)) == []
    assert sorted((result.index, result.ids[0]) for result in seen) == [(k - 3, k + 1) for k in range(3, 50)]


@pytest.mark.parametrize("ids", [[[1, 2]], [1.5], [-1], "ab", [2**40]])
def test_ids_that_are_none_are_refused(folder, ids):
    with gemmantle.load(folder) as engine, pytest.raises(RequestError, match="ids"):
        engine.logits(ids)


# -- scores


def test_scores_of_pairs_choices_and_whole_texts(folder):
    write_tokenizer(folder)
    with gemmantle.load(folder) as engine:
        good, bad = engine.score([("AB", "CD"), ("AB", "CX")])
        assert (good.logprob, good.is_greedy, good.n_tokens, good.n_chars) == (-1.0, True, 2, 2)
        assert (bad.logprob, bad.is_greedy) == (-3.5, False)
        [[first, second]] = engine.score([("A", ["B", "C"])], mode="choice")
        assert first.logprob > second.logprob
        [spaced] = engine.score([("A ", "B")])
        assert spaced.n_tokens == 2  # the blank belongs to the continuation
        long = [3 + k for k in range(150)]
        [rolling] = engine.score([long], mode="rolling")
        assert rolling.n_tokens == 150
        assert rolling.logprob == -75.0
        [text] = engine.score(["ABC"], mode="rolling")
        assert text.token_logprobs == [-3.0, -0.5, -0.5]
        with pytest.raises(RequestError, match="context"):
            engine.score([([3] * 60, [4] * 10)])
        with pytest.raises(ValueError, match="mode"):
            engine.score([], mode="other")


def test_engines_are_closed_before_the_interpreter_ends(folder):
    engine = gemmantle.load(folder)
    engines._close_all()
    assert fake_core.closed.count(str(folder)) == 1
    engine.close()
