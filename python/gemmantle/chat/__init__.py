"""Words: tokenizers, the chat format, and the reader of what a model writes. Needs no weights."""

from __future__ import annotations

from .parser import Call, Parsed, parse
from .template import Prompt, render
from .tokenizer import Tokenizer

__all__ = ["Call", "Parsed", "Prompt", "Tokenizer", "parse", "render"]
