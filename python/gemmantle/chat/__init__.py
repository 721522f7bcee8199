"""Words: tokenizers, the chat format, and the reader of what a model writes. Needs no weights."""

from __future__ import annotations

from .parser import Parsed, ToolCall, parse
from .template import Prompt, render
from .tokenizer import Tokenizer

__all__ = ["Parsed", "Prompt", "Tokenizer", "ToolCall", "parse", "render"]
