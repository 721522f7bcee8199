"""Words: tokenizers, the chat format, and the reader of what a model writes. Needs no weights."""

from __future__ import annotations

from gemmantle.chat.parser import Call, Parsed, parse
from gemmantle.chat.template import Prompt, render
from gemmantle.chat.tokenizer import Tokenizer

__all__ = ["Call", "Parsed", "Prompt", "Tokenizer", "parse", "render"]
