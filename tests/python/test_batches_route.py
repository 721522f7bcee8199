"""/files and /batches through the SDK, and the refusal of /embeddings."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import openai
import pytest
from fake_engine import HELLO, HOLD, FakeEngine
from test_batch import line

from gemmantle.client import async_client_for, client_for


def upload(client, lines):
    data = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("in.jsonl", data), purpose="batch")


def start(client, lines, endpoint="/v1/chat/completions", **fields):
    source = upload(client, lines).id
    return client.batches.create(input_file_id=source, endpoint=endpoint, completion_window="24h", **fields)


def ended(client, name, seconds=30):
    end = time.monotonic() + seconds
    while True:
        batch = client.batches.retrieve(name)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        assert time.monotonic() < end, batch
        time.sleep(0.005)


def answers(client, file_id):
    return {value["custom_id"]: value for value in map(json.loads, client.files.content(file_id).text.splitlines())}


def test_files_are_kept_listed_read_and_deleted():
    client = client_for(FakeEngine(HELLO))
    made = upload(client, [line("a")])
    assert (made.object, made.purpose, made.filename, made.status) == ("file", "batch", "in.jsonl", "processed")
    assert json.loads(client.files.content(made.id).read())["custom_id"] == "a"
    assert client.files.retrieve(made.id).bytes == made.bytes
    assert made.id in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.code == "file_not_found"
    for name in ("file-../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(name)


def test_a_file_for_something_else_is_refused():
    client = client_for(FakeEngine(HELLO))
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"x", purpose="fine-tune")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/files", body={"purpose": "batch"}, cast_to=object)
    assert caught.value.status_code == 415


def test_a_batch_runs_to_its_end():
    client = client_for(FakeEngine(HELLO))
    lines = [line(str(k), model="fake") for k in range(10)] + [line("bad", model="fake", temperature=9)]
    batch = start(client, lines, metadata={"a": "b"})
    assert batch.status in ("validating", "in_progress")
    done = ended(client, batch.id)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (11, 10, 1)
    assert (done.metadata, done.endpoint) == ({"a": "b"}, "/v1/chat/completions")
    good = answers(client, done.output_file_id)
    assert sorted(good, key=int) == [str(k) for k in range(10)]
    assert good["3"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello, world!"
    assert answers(client, done.error_file_id)["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert done.id in [batch.id for batch in client.batches.list()]


def test_a_batch_with_a_wrong_file_fails_in_words():
    client = client_for(FakeEngine(HELLO))
    failed = ended(client, start(client, [line("a", model="fake")] * 2).id)
    assert failed.status == "failed"
    assert "ids are unique" in failed.errors.data[0].message


def test_a_batch_is_cancelled():
    engine = FakeEngine([HOLD, *HELLO])
    client = client_for(engine, max_retries=0)
    name = start(client, [line(str(k), model="fake") for k in range(100)]).id
    end = time.monotonic() + 20
    while len(engine.generations) < 32 and time.monotonic() < end:
        time.sleep(0.002)
    assert client.batches.cancel(name).status == "cancelling"
    engine.release()
    done = ended(client, name)
    assert done.status == "cancelled"
    assert done.request_counts.completed < 100
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(name)


def test_a_batch_of_an_ended_process_is_taken_up(tmp_path):
    path = tmp_path / "state.db"
    script = (
        "import sys, os, time; from test_batches_route import *\n"
        "engine = FakeEngine(lambda choice: HELLO if len(engine.submitted) <= 5 else [HOLD])\n"
        "engine.state_path = sys.argv[1]; client = client_for(engine)\n"
        "name = start(client, [line(str(k), model='fake') for k in range(60)]).id\n"
        "while client.batches.retrieve(name).request_counts.completed < 5: time.sleep(0.002)\n"
        "print(name, flush=True); os._exit(9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", script, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 9, run.stderr
    engine = FakeEngine(HELLO)
    engine.state_path = str(path)
    client = client_for(engine)
    done = ended(client, run.stdout.strip())
    assert (done.status, done.request_counts.completed) == ("completed", 60)
    assert len(engine.submitted) == 55
    assert sorted(answers(client, done.output_file_id), key=int) == [str(k) for k in range(60)]


def test_the_asynchronous_client_does_the_same():
    client = async_client_for(FakeEngine(HELLO))

    async def main():
        data = json.dumps(line("a", model="fake")).encode()
        source = await client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = await client.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for _ in range(2000):
            batch = await client.batches.retrieve(batch.id)
            if batch.status == "completed":
                break
            await asyncio.sleep(0.005)
        return (await client.files.content(batch.output_file_id)).text

    assert json.loads(asyncio.run(main()))["custom_id"] == "a"


def test_embeddings_are_refused_with_the_reason():
    client = client_for(FakeEngine(HELLO), max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="fake", input="Hi")
    assert (caught.value.code, caught.value.param) == ("model_not_embedding", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="fake", input="Hi", encoding_format="wizardry")
    assert caught.value.param == "encoding_format"
