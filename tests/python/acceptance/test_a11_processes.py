"""A-11: an engine pickled to a spawned process answers there; a forked child is told what to do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from gemmantle.errors import ForkedEngineError

MODEL = "gemma-4-nano-e"
FRANCE = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def answered(engine):
    """Runs in the other process."""
    return engine.client().chat.completions.create(**FRANCE).choices[0].message.content


def test_a11_a_spawned_process_answers(engine):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(answered, engine).result() == answered(engine)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a11_a_forked_child_is_told_what_to_do(engine):
    answered(engine)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = b""
        try:
            answered(engine)
        except Exception as exc:
            told = str(exc).encode()
            try:
                engine.info()
            except ForkedEngineError:
                told += b" (by its own class)"
        os.write(write, told)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    assert "spawn" in told
    assert told.endswith("(by its own class)")
    assert answered(engine) == "The capital of France is Paris."


def test_a11_clients_say_what_to_pickle_instead(engine):
    with pytest.raises(TypeError, match="pickle the engine"):
        pickle.dumps(engine.transport())
