"""A-11: an engine pickled to a spawned process answers and serves there; a forked child is told what to do.

A server is not pickled itself, and a child that was forked beside one reaches it as any other process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import openai
import pytest
from serving import serving

from gemmantle.errors import ForkedEngineError

MODEL = "gemma-4-nano-e"
FRANCE = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
THERE = "The capital of France is Paris."


def answered(engine):
    """By the synchronous client."""
    with engine.client(max_retries=0) as client:
        return client.chat.completions.create(**FRANCE).choices[0].message.content


def answered_in_a_loop(engine):
    async def main():
        async with engine.async_client(max_retries=0) as client:
            return (await client.chat.completions.create(**FRANCE)).choices[0].message.content

    return asyncio.run(main())


def answered_by_all(engine):
    """Runs in the other process: by both clients, and by both of a server there."""
    with contextlib.ExitStack() as stack:
        doors = [engine]
        if importlib.util.find_spec("uvicorn") is not None:
            doors.append(stack.enter_context(serving(engine)))
        return {answer(door) for door in doors for answer in (answered, answered_in_a_loop)}


def test_a11_a_spawned_process_answers_and_serves(engine):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(answered_by_all, engine).result() == {THERE}


def in_a_forked_child(told):
    """What `told` returns there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, told().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("answer", [answered, answered_in_a_loop])
def test_a11_a_forked_child_is_told_what_to_do(engine, answer):
    assert answer(engine) == THERE

    def told():
        with pytest.raises(openai.InternalServerError) as caught:
            answer(engine)
        with pytest.raises(ForkedEngineError):
            engine.info()
        return str(caught.value)

    assert "spawn" in in_a_forked_child(told)
    assert answer(engine) == THERE


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("answer", [answered, answered_in_a_loop])
def test_a11_a_forked_child_is_answered_by_the_server_it_was_forked_from(served, answer):
    assert in_a_forked_child(lambda: answer(served)) == THERE


def test_a11_clients_and_servers_say_what_to_pickle_instead(engine):
    for door in (engine.transport(), engine.asgi()):
        with pytest.raises(TypeError, match="pickle the engine"):
            pickle.dumps(door)
