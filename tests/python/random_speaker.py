"""The golden checkpoint of random weights, given words: single characters, and control strings of the chat format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers

__all__ = ["CONTROL", "GOLDEN", "LETTERS", "make_speaker"]

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "odd" / "e2b"
CONTROL = [
    "<|turn>", "<turn|>", "<|tool_response>", "<tool_response|>", "<|tool_call>", "<tool_call|>", "<|channel>",
    "<channel|>", "<|think|>", '<|"|>', "<|tool>", "<tool|>",
]  # fmt: skip
LETTERS = [chr(code) for code in (*range(32, 127), 10)] + list("äßéΩжя中文語😀")


def make_speaker(factory: Any, letters: list[str] = LETTERS) -> Path:
    """A folder to load; `factory` is pytest's `tmp_path_factory`. The checkpoint knows 256 ids."""
    if not (GOLDEN / "config.json").is_file():
        pytest.skip(f"no golden checkpoint in {GOLDEN}")
    folder: Path = factory.mktemp("speaker") / "speaker"
    shutil.copytree(GOLDEN, folder)
    first = 256 - len(CONTROL)
    pieces = [*letters, *(f"<unused{k}>" for k in range(first - 3 - len(letters)))]
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, **{piece: 3 + k for k, piece in enumerate(pieces)}}
    vocabulary.update({spelling: first + k for k, spelling in enumerate(CONTROL)})
    tokenizer = LibraryTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", *CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
