"""The native module from outside: its stub, what it takes and gives, its lock, its errors."""

from __future__ import annotations

import ast
import gc
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmantle import _core, errors

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDER = GOLDEN / "odd" / "12b"
STUB = Path(_core.__file__).parent / "_core.pyi"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "golden.npz") as arrays:
        return {name: arrays[name] for name in arrays}


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return _core.Model.load(str(FOLDER), device="cpu")


@pytest.fixture
def engine(model: _core.Model):
    engine = _core.Engine(model, eos_ids=[1])
    yield engine
    engine.close()


def greedy(**fields: Any) -> _core.SamplingParams:
    return _core.SamplingParams(temperature=0.0, ignore_eos=True, **fields)


def collect(generation: _core.Generation) -> tuple[list[_core.Token], _core.Delta]:
    tokens: list[_core.Token] = []
    while True:
        delta = generation.next(60)
        assert delta is not None, "nothing came within a minute"
        tokens += delta.tokens
        if delta.finish_reason:
            return tokens, delta


def ids_of(generation: _core.Generation) -> list[int]:
    return [token.id for token in collect(generation)[0]]


def words(vocabulary: int) -> _core.Vocabulary:
    return _core.Vocabulary([b"<%d>" % i for i in range(vocabulary)], [0, 1, 2], {"<eos>": 1})


def test_the_stub_names_what_the_module_has():
    def public(names: Any) -> set[str]:
        return {name for name in names if not name.startswith("_")}

    tree = ast.parse(STUB.read_text())
    functions = (ast.FunctionDef,)
    top = {node.name: node for node in tree.body if isinstance(node, (*functions, ast.ClassDef))}
    assert set(top) == public(vars(_core))
    for name, node in top.items():
        assert getattr(_core, name).__doc__, name
        if isinstance(node, ast.ClassDef):
            members = {item.name for item in node.body if isinstance(item, functions)}
            assert public(members) == public(vars(getattr(_core, name))), name


def test_devices_and_isas_say_what_can_run():
    devices = {entry["name"]: entry for entry in _core.devices()}
    assert set(devices) == {"cpu", "reference", "cuda"}
    assert devices["cpu"]["available"]
    assert devices["reference"]["available"]
    for entry in devices.values():
        assert bool(entry["reason"]) != entry["available"]
    assert sum(bool(entry["active"]) for entry in _core.isas()) == 1
    assert all(entry["available"] for entry in _core.isas() if entry["active"])


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_and_greedy_text_are_those_of_the_golden(device: str, golden: dict[str, np.ndarray]):
    engine = _core.Engine(_core.Model.load(str(FOLDER), device=device))
    logits = engine.logits(golden["ids"])
    assert logits.dtype == np.float32
    assert logits.flags.owndata or logits.base is not None
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)
    assert ids_of(engine.submit(golden["ids"], greedy(max_tokens=64))) == golden["greedy"].tolist()
    last = engine.logits(golden["ids"], last_only=True)
    assert last.shape == (1, logits.shape[1])
    np.testing.assert_allclose(last[0], logits[-1], rtol=0, atol=1e-5)


def test_chunks_of_any_size_give_the_same(engine: _core.Engine, golden: dict[str, np.ndarray]):
    ids = golden["ids"]
    whole = engine.logits(ids)
    for border in range(1, len(ids)):
        np.testing.assert_allclose(engine.logits(ids, chunks=[border, len(ids) - border]), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(engine.logits(ids, chunks=[1] * len(ids)), whole, rtol=0, atol=1e-5)


def test_many_at_once_give_what_each_gives_alone(model: _core.Model, golden: dict[str, np.ndarray]):
    """A pool that is too small for all of them, so that some are stopped and computed again."""
    prompts = [golden["ids"][i : 2 * i + 4] for i in range(7)]
    large = _core.Engine(model)
    alone = [ids_of(large.submit(prompt, greedy(max_tokens=100))) for prompt in prompts]
    large.close()
    two = _core.Engine(model, max_context=120, max_rows=16, block_size=4, max_sequences=2)
    kv_bytes = two.stats()["kv_bytes"]
    two.close()
    assert isinstance(kv_bytes, int)
    engine = _core.Engine(model, max_context=120, max_rows=16, block_size=4, max_sequences=8, kv_bytes=kv_bytes)
    generations = [engine.submit(prompt, greedy(max_tokens=100)) for prompt in prompts]
    whole = engine.logits(golden["ids"])
    np.testing.assert_allclose(whole, golden["logits"], rtol=0, atol=1e-4)
    assert [ids_of(generation) for generation in generations] == alone
    stats = engine.stats()
    assert stats["blocks_free"] == stats["blocks_total"]
    assert stats["preemptions"] > 0


def test_after_a_cancel_the_same_request_gives_the_same(engine: _core.Engine, golden: dict[str, np.ndarray]):
    first = engine.submit(golden["ids"], greedy(max_tokens=64))
    last = delta = first.next(60)
    first.cancel()
    first.cancel()
    while delta is not None:
        last, delta = delta, first.next(60)
    assert last is not None
    assert last.finish_reason in ("cancelled", "length")
    assert ids_of(engine.submit(golden["ids"], greedy(max_tokens=64))) == golden["greedy"].tolist()


def test_deltas_have_text_usage_and_reasons(model: _core.Model, golden: dict[str, np.ndarray]):
    vocabulary = words(int(golden["logits"].shape[1]))
    engine = _core.Engine(model, vocabulary)
    wanted = golden["greedy"][:5].tolist()
    text = ""
    generation = engine.submit(golden["ids"], greedy(max_tokens=5))
    while (delta := generation.next(60)) is not None:
        text += "".join(piece for _, piece in delta.pieces)
        assert {channel for channel, _ in delta.pieces} <= {"content"}
        if delta.finish_reason:
            break
    assert delta is not None
    assert text == "".join(f"<{i}>" for i in wanted if i > 2)
    assert delta.finish_reason == "length"
    assert delta.stop_reason is None
    assert delta.usage == (75, 5, 0, 0)

    stop = f"<{wanted[2]}>"
    tokens, last = collect(engine.submit(golden["ids"], greedy(stop=[stop])))
    assert last.finish_reason == "stop"
    assert last.stop_reason == stop
    assert [token.id for token in tokens] == wanted[:3]
    assert tokens[2].text == stop.encode()
    tokens, last = collect(engine.submit(golden["ids"], greedy(stop_token_ids=[wanted[1]])))
    assert last.stop_reason == wanted[1]
    assert len(tokens) == 2


def test_log_probabilities_are_those_of_the_logits(engine: _core.Engine, golden: dict[str, np.ndarray]):
    logits = golden["logits"].astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    generation = engine.submit(golden["ids"], greedy(max_tokens=1, logprobs=20, prompt_logprobs=3))
    tokens, _ = collect(generation)
    assert tokens[0].logprob == pytest.approx(logs[-1].max(), abs=2e-4)
    order = np.argsort(-logs[-1], kind="stable")[:20]
    assert [i for i, _ in tokens[0].top] == order.tolist()
    np.testing.assert_allclose([value for _, value in tokens[0].top], logs[-1][order], rtol=0, atol=2e-4)
    entries = generation.prompt_logprobs
    assert entries[0] is None
    for position, entry in enumerate(entries[1:]):
        assert entry is not None
        assert entry.id == golden["ids"][position + 1]
        assert entry.logprob == pytest.approx(logs[position, entry.id], abs=2e-4)
        assert len(entry.top) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("logit_bias", {3: 1e9}),
        ("logit_bias", {-3: 1.0}),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("choice", -1),
        ("stop", [""]),
        ("stop_token_ids", [2**40]),
        ("suppress", [-1]),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("logprobs", 2**40),
        ("prompt_logprobs", -2),
        ("max_tokens", -2),
    ],
)
def test_a_wrong_sampling_field_is_named(field: str, value: object):
    with pytest.raises(errors.RequestError) as caught:
        _core.SamplingParams(**{field: value})
    assert caught.value.param == field
    assert caught.value.code == "invalid_value"


def test_sampling_fields_are_keyword_only_and_seeds_have_64_bits():
    with pytest.raises(TypeError):
        _core.SamplingParams(5)  # type: ignore[misc]
    for seed in (2**64 - 1, -(2**63), 0):
        _core.SamplingParams(seed=seed)


def test_ids_must_be_a_contiguous_int32_array(engine: _core.Engine):
    params = greedy(max_tokens=1)
    for wrong in (np.array([1, 2]), np.array([1.0, 2.0])):
        with pytest.raises(TypeError, match="int32"):
            engine.submit(wrong, params)  # type: ignore[arg-type]
    with pytest.raises(errors.RequestError, match="contiguous"):
        engine.logits(np.arange(8, dtype=np.int32)[::2])
    with pytest.raises(errors.RequestError):
        engine.logits(np.zeros((2, 2), dtype=np.int32))


def test_refusals_say_why(engine: _core.Engine, model: _core.Model, tmp_path: Path):
    def ids(*values: int) -> np.ndarray:
        return np.array(values, dtype=np.int32)

    with pytest.raises(errors.RequestError, match="vocabulary") as wrong_id:
        engine.submit(ids(1, 10**6), greedy())
    assert wrong_id.value.param == "prompt"
    with pytest.raises(errors.RequestError) as empty:
        engine.submit(ids(), greedy())
    assert empty.value.param == "prompt"
    with pytest.raises(errors.RequestError) as long:
        engine.submit(np.ones(engine.max_context(), dtype=np.int32), greedy())
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(errors.RequestError) as text:
        engine.submit(ids(1), greedy(stop=["x"]))
    assert text.value.param == "stop"
    with pytest.raises(errors.RequestError) as chunks:
        engine.logits(ids(1, 2), chunks=[1])
    assert chunks.value.param == "chunks"
    with pytest.raises(errors.RequestError) as device:
        _core.Model.load(str(FOLDER), device="abacus")
    assert device.value.param == "device"
    with pytest.raises(errors.RequestError) as mode:
        _core.Model.load(str(FOLDER), mode="sloppy")
    assert mode.value.param == "mode"
    for options in ({"kv": "f8"}, {"kv": "bf16"}, {"kv": "q8", "device": "reference"}):  # mode exact keeps f32
        with pytest.raises(errors.RequestError) as kv:
            _core.Model.load(str(FOLDER), **options)
        assert kv.value.param == "kv"
    with pytest.raises(errors.RequestError) as block:
        _core.Engine(_core.Model.load(str(FOLDER), device="cpu", mode="fast"), block_size=8)
    assert block.value.param == "block_size"
    with pytest.raises(FileNotFoundError):
        _core.Model.load(str(tmp_path / "absent"))
    with pytest.raises(errors.RequestError) as context:
        _core.Engine(model, max_context=10**9)
    assert context.value.param == "max_context"
    with pytest.raises(MemoryError):
        _core.Engine(model, kv_bytes=1)


def test_a_closed_engine_refuses_and_its_generations_end(model: _core.Model):
    engine = _core.Engine(model)
    generation = engine.submit(np.ones(3, dtype=np.int32), greedy())
    engine.close()
    engine.close()
    with pytest.raises(errors.EngineClosed):
        collect(generation)
    with pytest.raises(errors.EngineClosed):
        engine.submit(np.ones(3, dtype=np.int32), greedy())
    with pytest.raises(errors.EngineClosed):
        engine.logits(np.ones(3, dtype=np.int32))
    assert engine.stats()["running"] == 0


def test_a_generation_that_nobody_reads_stands_still_and_is_cancelled(model: _core.Model):
    engine = _core.Engine(model, stream_buffer=8, idle_stream_ms=20)
    left = engine.submit(np.ones(3, dtype=np.int32), greedy(max_tokens=500))
    deadline = time.monotonic() + 60
    while engine.stats()["generated_tokens"] == 0 or engine.stats()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    tokens, last = collect(left)
    assert (len(tokens), last.finish_reason) == (8, "cancelled")
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_a_descriptor_wakes_a_selector(engine: _core.Engine, golden: dict[str, np.ndarray]):
    generation = engine.submit(golden["ids"], greedy(max_tokens=10))
    tokens: list[int] = []
    while True:
        waiting = select.poll()  # select() itself stops at descriptor 1,023
        waiting.register(generation.fileno(), select.POLLIN)
        assert waiting.poll(60_000)
        delta = generation.try_next()
        assert delta is not None
        tokens += [token.id for token in delta.tokens]
        if delta.finish_reason:
            break
    assert tokens == golden["greedy"][:10].tolist()
    assert select.select([generation.fileno()], [], [], 0)[0] == []


def test_the_interpreter_lock_is_free_while_the_core_works(engine: _core.Engine, golden: dict[str, np.ndarray]):
    """While one thread waits in the core, another one goes on: it has to, for the wait to end."""
    generation = engine.submit(golden["ids"], greedy(max_tokens=1))
    collect(generation)
    idle = engine.submit(golden["ids"], greedy())
    ticks: list[int] = []
    go_on = threading.Event()

    def wait() -> None:
        while idle.next(30) is not None and not go_on.is_set():
            pass

    def load_and_score() -> None:
        for _ in range(3):
            other = _core.Model.load(str(FOLDER), device="cpu")
            _core.Engine(other).logits(golden["ids"])
        go_on.set()

    threads = [threading.Thread(target=wait), threading.Thread(target=load_and_score)]
    for thread in threads:
        thread.start()
    while not go_on.wait(0.001):
        ticks.append(1)
    idle.cancel()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert ticks


def test_dropping_a_generation_cancels_it(engine: _core.Engine, golden: dict[str, np.ndarray]):
    generation = engine.submit(golden["ids"], greedy())
    del generation
    gc.collect()
    collect(engine.submit(golden["ids"], greedy(max_tokens=3)))
    deadline = time.monotonic() + 60
    while engine.stats()["running"] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine.stats()["running"] == 0


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    # Whoever runs the tests in the background may have had SIGINT ignored, which children inherit.
    head = (
        "import numpy as np, os, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gemmantle import _core, errors\n"
        f"FOLDER = {str(FOLDER)!r}\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(_core.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", head + body],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_ctrl_c_ends_a_wait():
    done = run_script(
        "engine = _core.Engine(_core.Model.load(FOLDER))\n"
        "ids = np.ones(4, dtype=np.int32)\n"
        "generation = engine.submit(ids, _core.SamplingParams(max_tokens=1))\n"
        "while generation.next() is not None: pass\n"
        "params = _core.SamplingParams(temperature=0.0, ignore_eos=True)\n"
        "held = [engine.submit(ids, params) for _ in range(40)]\n"
        "threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    while True:\n"
        "        held[-1].next()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_forked_child_is_refused_with_the_remedy():
    done = run_script(
        "import warnings\n"
        "warnings.simplefilter('ignore')\n"
        "model = _core.Model.load(FOLDER)\n"
        "engine = _core.Engine(model)\n"
        "ids = np.ones(4, dtype=np.int32)\n"
        "generation = engine.submit(ids, _core.SamplingParams(temperature=0.0, ignore_eos=True))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    refused = 0\n"
        "    for call in (lambda: engine.logits(ids), lambda: engine.stats(), lambda: generation.next(),\n"
        "                 lambda: _core.Engine(model)):\n"
        "        try:\n"
        "            call()\n"
        "        except errors.ForkedEngineError as error:\n"
        "            refused += 'spawn' in str(error)\n"
        "    engine.close()\n"
        "    del generation, engine, model\n"
        "    sys.exit(refused)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(engine.logits(ids).shape[0])\n"
    )
    assert done.stdout == "4\n4\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_the_interpreter_ends_with_engines_at_work():
    done = run_script(
        "engine = _core.Engine(_core.Model.load(FOLDER))\n"
        "params = _core.SamplingParams(temperature=0.0, ignore_eos=True)\n"
        "held = [engine.submit(np.ones(4, dtype=np.int32), params) for _ in range(8)]\n"
        "import builtins\n"
        "builtins.kept = (engine, held)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_checkpoints_tell_their_headers():
    checkpoint = _core.Checkpoint(str(FOLDER))
    assert checkpoint.container == "safetensors"
    assert checkpoint.config_json().lstrip().startswith("{")
    assert checkpoint.keys() == []
    assert checkpoint.get("general.name") is None
    name, kind, shape, size = checkpoint.tensors()[0]
    assert name
    assert kind in ("f32", "bf16", "f16")
    assert np.prod(shape) * (4 if kind == "f32" else 2) == size


def test_channels_split_by_id():
    channels = _core.Channels({"<|channel>": 5, "<channel|>": 6, "<|tool_call>": 7, "<tool_call|>": 8})
    pieces = []
    texts = {20: b"thought", 21: b"\n", 22: b"hm", 23: b"yes", 24: b"call:f{}"}
    for i in (5, 20, 21, 22, 6, 23, 7, 24, 8):
        pieces += channels.feed(i, texts.get(i, b""))
    pieces += channels.finish()
    assert pieces == [("thought", b"hm"), ("content", b"yes"), ("call", b"call:f{}"), ("call_end", b"")]
    assert _core.Channels({}, True).feed(1, b"x") == [("thought", b"x")]


def test_a_vocabulary_checks_its_ids():
    assert len(words(10)) == 10
    with pytest.raises(errors.RequestError):
        _core.Vocabulary([b"a"], [1], {})
    with pytest.raises(errors.RequestError):
        _core.Vocabulary([b"a"], [-1], {})


def test_signals_module_is_left_alone():
    """Neither the core nor an engine installs handlers of its own."""
    done = run_script(
        "engine = _core.Engine(_core.Model.load(FOLDER))\n"
        "engine.logits(np.ones(4, dtype=np.int32))\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    assert done.stdout.split() == ["True"], done.stderr
