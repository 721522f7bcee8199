"""`gemmantle serve` with --state and --fallback: what is kept, and who answers for a model that cannot be loaded."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import threading
import time

import openai
import pytest
from fake_engine import HELLO, FakeEngine
from mock_mantle import KEY, Mantle
from serving import serving

import gemmantle
from gemmantle import cli
from gemmantle.api.protocol import Reply
from gemmantle.errors import CorruptFile, UnsupportedHardware
from gemmantle.server import Application, ServedModels

FAR = "google/gemma-4-E2B-it"
USER = [{"role": "user", "content": "Hi"}]


def served(arguments, use):
    """Run the command until `use`, which gets a client, has returned."""
    found = {}
    errors = io.StringIO()

    def work():
        try:
            end = time.monotonic() + 60
            while not (match := re.search(r"serving .* on http://127.0.0.1:(\d+)", errors.getvalue())):
                assert time.monotonic() < end, errors.getvalue()
                time.sleep(0.01)
            found["told"] = errors.getvalue()
            with openai.OpenAI(base_url=f"http://127.0.0.1:{match[1]}/v1", api_key="x", max_retries=0) as client:
                found["used"] = use(client)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=work)
    user.start()
    with contextlib.redirect_stderr(errors):
        status = cli.main(["serve", *arguments, "--port", "0"])
    user.join()
    return status, found


def test_a_model_that_cannot_be_loaded_is_answered_by_the_service(monkeypatch):
    def load(model, **options):
        if model == FAR:
            raise UnsupportedHardware("this machine has no device for it")
        return FakeEngine(HELLO)

    def use(client):
        here = client.chat.completions.with_raw_response.create(model="fake", messages=USER)
        away = client.chat.completions.with_raw_response.create(model=FAR, messages=USER)
        return [raw.headers["x-gemmantle-arm"] for raw in (here, away)], [card.id for card in client.models.list()]

    monkeypatch.setattr(gemmantle, "load", load)
    with Mantle() as mantle:
        monkeypatch.setenv("AWS_BEDROCK_BASE_URL", mantle.url)
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
        status, found = served(["some-model", FAR, "--fallback", "us-east-1"], use)
    assert status == 0
    assert found["used"] == (["local", "remote"], ["fake/model"])
    assert f"{FAR} cannot be loaded and is answered by" in found["told"]
    assert KEY not in found["told"]


@pytest.mark.parametrize(
    ("model", "error", "arguments"),
    [
        (FAR, UnsupportedHardware("no device"), []),  # nobody allowed it
        ("google/gemma-4-12B-it", UnsupportedHardware("no device"), ["--fallback", "us-east-1"]),  # not on offer there
        (FAR, ZeroDivisionError("a bug"), ["--fallback", "us-east-1"]),
    ],
)
def test_what_nobody_stands_in_for_ends_the_server(monkeypatch, capsys, model, error, arguments):
    def load(model, **options):
        raise error

    monkeypatch.setattr(gemmantle, "load", load)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    if isinstance(error, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            cli.main(["serve", model, "--port", "0", *arguments])
    else:
        assert cli.main(["serve", model, "--port", "0", *arguments]) == 1
        assert str(error) in capsys.readouterr().err


def test_a_corrupt_file_counts_as_a_model_that_cannot_be_loaded():
    remote = gemmantle.remote(region="us-east-1", api_key=KEY)
    assert remote.stands_in_for(FAR, CorruptFile("torn"))
    assert not remote.stands_in_for(FAR, ValueError("no such option"))


def test_a_state_file_outlives_the_server(monkeypatch, tmp_path):
    monkeypatch.setattr(gemmantle, "load", lambda model, **options: FakeEngine(HELLO))
    state = ["m", "--state", str(tmp_path / "state.db")]
    status, first = served(state, lambda client: client.responses.create(model="fake", input="Hi").id)
    assert status == 0
    status, second = served(state, lambda client: client.responses.retrieve(first["used"]).output_text)
    assert (status, second["used"]) == (0, "Hello, world!")


def test_a_state_file_that_is_none_is_told(capsys, tmp_path):
    (tmp_path / "text").write_text("not a database")
    assert cli.main(["serve", "m", "--port", "0", "--state", str(tmp_path / "text")]) == 1
    assert "state_path" in capsys.readouterr().err


class Endless:
    """A body that knows how it was closed: a remote one can be closed on its own loop only."""

    def __init__(self):
        self.closed = threading.Event()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0.001)
        return b'data: {"choices":[]}\n\n'

    async def aclose(self):
        self.closed.set()


def test_a_body_is_closed_on_its_loop_when_the_caller_leaves():
    body = Endless()

    class Handler:
        async def ahandle(self, request):
            return Reply(200, [("content-type", "text/event-stream")], body)

    application = Application(ServedModels())
    application.handler = Handler()
    with serving(application=application) as door, door.client() as client:
        with client.chat.completions.create(model="m", messages=USER, stream=True) as stream:
            next(stream)
        assert body.closed.wait(20)
