"""The words of a model: text to ids and back, prompts, grammars. They need no engine and may outlive it."""

from __future__ import annotations

import importlib
import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmantle.errors import RequestError

if TYPE_CHECKING:
    from gemmantle.chat import Prompt
    from gemmantle.chat.tokenizer import Tokenizer
    from gemmantle.structured import Compiler

__all__ = ["HasWords", "Words"]


class Words:
    """A tokenizer, or the words that say it is missing, and what follows from it."""

    def __init__(self, name: str, path: Path, file: str | None, series: str, vocabulary: int) -> None:
        """file: of the tokenizer. series: prompts of the E series differ (prompting 3.3). vocabulary: ids."""
        self.file = file
        self.series = series
        self.tokenizer: Tokenizer | None = None
        self.pieces: list[bytes] = []
        if file is not None:
            self.tokenizer = importlib.import_module("gemmantle.chat.tokenizer").Tokenizer.from_file(file)
            self.pieces = self.tokenizer.pieces()
        self.missing = f"'{name}' has no tokenizer: no tokenizer.json and no tokenizer.model in {path}; send token ids"
        self._vocabulary = vocabulary
        self._structured: Compiler | None = None
        self._lock = threading.Lock()

    def known(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(self.missing, code="unsupported_value", param="prompt")
        return self.tokenizer

    @property
    def special(self) -> dict[str, int]:
        return {} if self.tokenizer is None else self.tokenizer.special

    @property
    def bos_id(self) -> int:
        bos = None if self.tokenizer is None else self.tokenizer.bos_id
        return 2 if bos is None else int(bos)

    def encode_prompt(self, text: str, add_bos: bool) -> list[int]:
        if not add_bos:
            return self.known().encode(text)
        return [self.bos_id, *self.known().encode(text.removeprefix("<bos>"))]

    def thought_ids(self, marker: str, text: str) -> tuple[int, ...]:
        """The ids that open or close a thought; none where the vocabulary knows no thoughts."""
        if self.tokenizer is None or marker not in self.tokenizer.special:
            return ()
        written, control = self.tokenizer.encode(text), self.tokenizer.special[marker]
        return (control, *written) if text != "\n" else (*written, control)

    def structured(self) -> Compiler:
        """Made on first use: it takes a second at the released vocabulary."""
        with self._lock:
            if self._structured is None:
                tokenizer = self.known()
                self._structured = importlib.import_module("gemmantle.structured").Compiler(
                    tokenizer.pieces(),
                    tokenizer.special,
                    tokenizer.control,
                    tokenizer.eos_ids,
                    tokenizer.encode,
                    self._vocabulary,
                )
            return self._structured


class HasWords:
    """The methods about text of whatever has `Words` (see `gemmantle.api.protocol.ServingEngine`)."""

    @property
    @abstractmethod
    def words(self) -> Words: ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without BOS; control strings in it stay text."""
        return self.words.known().encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.words.known().decode(list(ids))

    def count_tokens(self, text: str | list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> int:
        """How many tokens a text, or a conversation as its prompt, would count; the BOS of either included."""
        if isinstance(text, str):
            return len(self.encode_prompt(text))
        return len(self.render(text, tools).ids())

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        reasoning_effort: str = "none",
    ) -> Prompt:
        """The prompt of a conversation; its `ids()` knows this model's tokenizer."""
        if reasoning_effort not in ("none", "high"):
            raise RequestError(
                f"reasoning_effort is {reasoning_effort!r}; it must be 'none' or 'high'", param="reasoning_effort"
            )
        return self.render_chat(messages, tools, reasoning_effort == "high")

    @property
    def bos_id(self) -> int:
        return self.words.bos_id

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        thinking: bool,
        **template: bool,
    ) -> Prompt:
        words = self.words
        render = importlib.import_module("gemmantle.chat").render
        prompt: Prompt = render(messages, tools=tools, thinking=thinking, series=words.series, **template)
        return prompt.with_tokenizer(words.known())

    def encode_prompt(self, text: str, add_bos: bool = True) -> list[int]:
        """Ids of a text prompt: exactly one BOS, also where the text spells one already (spec api R-8)."""
        return self.words.encode_prompt(text, add_bos)

    def token_bytes(self, token_id: int) -> bytes:
        pieces = self.words.pieces
        return pieces[token_id] if token_id < len(pieces) else b""

    def structured(self) -> Compiler:
        return self.words.structured()
