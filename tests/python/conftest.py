"""Fixtures that several test files share."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
TOKENIZER_JSON_SHA256 = "cc8d3a0ce36466ccc1278bf987df5f71db1719b9ca6b4118264f45cb627bfe0f"


@pytest.fixture(autouse=True)
def drawn_seeds(request, monkeypatch):
    """A request without a seed draws it from the name of the test, so that what one run saw, the next one sees."""
    print("seeds drawn from", request.node.nodeid)
    monkeypatch.setattr(secrets, "randbits", random.Random(request.node.nodeid).getrandbits)


@pytest.fixture(scope="session")
def tokenizer_json(request):
    """Path of the released tokenizer.json, rebuilt from Google's model (7 s) and kept in pytest's cache."""
    path = Path(request.config.cache.mkdir("gemma4")) / "tokenizer.json"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != TOKENIZER_JSON_SHA256:
        tool = ROOT / "tools" / "make_tokenizer_json.py"
        subprocess.run([sys.executable, str(tool), str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def tokenizers_library(tokenizer_json):
    """The published vocabulary through the `tokenizers` library."""
    from gemmantle.chat.tokenizer import Tokenizer

    return Tokenizer.from_file(tokenizer_json)


@pytest.fixture(scope="session")
def sentencepiece_library():
    """The published vocabulary through the `sentencepiece` library."""
    from gemmantle.chat.tokenizer import Tokenizer

    return Tokenizer.from_file(DATA / "tokenizer_gemma4.model")


@pytest.fixture(scope="session")
def renderings():
    """200 conversations with text and ids of the released template and tokenizer (July 2026)."""
    with (DATA / "renderings.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
